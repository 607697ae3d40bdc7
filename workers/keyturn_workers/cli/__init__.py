"""The `keyturn` command line: what a person or a script runs (SPEC 11, 12, 14).

| module | commands |
| --- | --- |
| `development`, `keygen` | `init`, `keygen` |
| `worker` | `worker upload`, `worker control`, `worker all` |
| `enroll`, `upload` | what publishes |
| `objects`, `download` | `ls`, `inspect`, `download`: straight from the bucket |
| `doctor` | the bucket and the broker, probed |
| `dead` | `dead list`, `show`, `replay`, `discard` |

Exit status 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted; a failure is one
line on standard error. It must never print a secret that was not just made, nor a traceback.
"""

from keyturn_workers.cli.app import main

__all__ = ["main"]
