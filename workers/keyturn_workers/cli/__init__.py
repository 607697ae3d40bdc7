"""The `keyturn` command line, one module a command (SPEC 11, 12, 14).

`objects` has `ls` and `inspect`; `dead` has all commands for dead letters; `status` asks
`keyturn_workers.reports.status` in process (`reports`).

Exit status: 0 done, 1 rejected or failed, 2 wrong usage, 130 interrupted. A failure is one line on
standard error. A command never prints a traceback, nor a secret unless it has just generated it.
"""
