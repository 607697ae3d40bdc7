"""Dead letters, for commands and the console (SPEC 12, 16).

| module | what it holds |
| --- | --- |
| `errors` | `DeadLetterError` and its kinds |
| `queues` | names of dead-letter queues, and the work queue of a letter |
| `description` | what a letter claims |
| `redaction` | a letter as JSON, without what may be secret |
| `lock` | one reader at a time |
| `reader` | reading letters without removing them |
| `replay` | sending a letter back as it was sent |

Nothing in a letter is trusted: anyone with write access to the broker can invent its id, its
headers and its code. A sealed body, or the value of an unknown field, must never be shown.
"""
