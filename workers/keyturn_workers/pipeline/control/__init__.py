"""The control worker: enrollments, rotations, recoveries, sweeps, deletes, and consoles' requests.

See SPEC 5.4, 6, 8 and 16.

| module | purpose |
| --- | --- |
| `request_handler` | serves requests; sweeps go to `sweep.starter`, reports to `status` |
| `enrollment` | creates a project's first keyring |
| `rotation` | changes the keyring, and starts the sweep |
| `recovery` | accepts a keyring that its mark contradicts, or that has none |
| `deletion` | puts tombstones |
| `dead_letters` | replays and discards dead letters |
"""
