"""How many processes a number of objects in a number of hours needs: `make capacity`.

docs/operations/capacity.md explains it.

| module | what it does or holds |
| --- | --- |
| `model` | the formulas: rates of one process, processes, requests, bytes. Pure |
| `measured` | what the formulas start from, as values and as `measured.json` |
| `plan` | the answers for one number of objects, as tables |
| `costs`, `upload_costs` | measure what an object costs: `measured.json` |
| `simulation` | real workers behind a storage that is further away |
| `check` | the formulas against that simulation, written to `checked.json` |
| `document` | the tables of docs/operations/capacity.md, made from the two files |
"""
