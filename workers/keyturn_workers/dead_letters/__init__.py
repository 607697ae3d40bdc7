"""Dead letters, for workers and commands (SPEC 6.9, 12, 16.1).

| module | what it holds |
| --- | --- |
| `letters` | a letter: what it claims, what may be shown of it, and its copy; pure |
| `queue` | dead-letter queues: locked, and read without removing a letter |
| `move` | replaying and discarding letters, in one pass over their queue |
"""
