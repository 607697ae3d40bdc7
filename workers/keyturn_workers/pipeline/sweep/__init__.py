"""Sweeps: bring every object of a project to the desired state, and prove it (SPEC 8).

A rotation changes the keyring first, and then adds an origin to the project's record (`starter`).
From then on the record advances step by step: a step reads record and keyring, and decides what is
next (`reconciler`, by the rules of `core.sweep_transitions` and `core.sweep_proof`). It sends pages
of object keys to any number of workers. Each makes an attempt at its page and stores the result
(`page`). Each step schedules the next one, which looks for results. Once every page has been
observed late enough with nothing to change, the step leaves evidence (`evidence`), lets the keyring
drop its old keys, and gives each origin its end.

| module | purpose |
| --- | --- |
| `starter` | requests become origins |
| `steps` | applies step messages to records; the context that all parts of a sweep share |
| `reconciler` | the steps of one project |
| `paginator` | divides a project's object keys into pages |
| `page` | one attempt at one page |
| `page_object_keys` | lists the object keys of a page, as the bucket has them now |
| `evidence` | the evidence of clean ends |
| `all_projects` | sweeps of all projects: one part for each |
| `messages`, `handler` | the messages of sweeps: steps, pages, events |
| `periodic` | recovers lost messages and records |
"""
