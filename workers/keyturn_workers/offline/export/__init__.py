"""Moving all objects of a project out (`keyturn export`) or to another one (`keyturn copy`).

| module | contents |
| --- | --- |
| `run` | reads each object, and lets a destination store it; retries and counts |
| `folder`, `s3_prefix` | the destinations of an export |
| `project` | another project as the destination |
| `manifest` | the manifest of a destination: which object is in which file |
| `names` | names that every file system can hold; pure |

A destination shows a file under its own name only after its whole body was authenticated. An
interrupted export continues from its manifest.
"""
