"""Rotation measured (SPEC 8): what a page worker costs, by what it grows, and where it ends.

| module | what it measures or holds |
| --- | --- |
| `pages` | one page worker against a bare loop; requests and bytes an object |
| `sizes` | one object of 4 KiB to 512 MiB against its way through a client |
| `scaling` | 1 to 8 page workers on a storage that is 20 ms away |
| `whole_rotation` | a rotation of many objects with real processes: time, rate, memory |
| `world` | a project whose keyring and objects the bench puts there itself |
| `passes` | one pass over pages by running page workers, and what it took |
| `delay_proxy`, `reencrypt` | separate processes: the delaying proxy, and the baseline |

The page workers are the real `keyturn worker sweep`. Where a single pass is measured, the
bench is the planner: it writes the project's record and sends the pages.
"""
