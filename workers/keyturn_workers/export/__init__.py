"""All objects of a project, decrypted, in a folder or under an S3 prefix (`keyturn export`).

| module | what it does |
| --- | --- |
| `run` | reads each object, and lets a destination store it; retries, counts |
| `folder`, `s3_prefix` | the destinations |
| `manifest` | the manifest of a destination: which object is in which file |
| `names` | names that every file system can hold; pure |

A destination shows a file under its own name only after its whole body was authenticated. Its
manifest is also what an interrupted export continues from.
"""
