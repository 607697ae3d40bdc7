"""Sign-in to the console, and the protection of its requests (SPEC 16.3).

| module | holds |
| --- | --- |
| `auth` | accounts and everything below as one value, made from the settings |
| `person` | the person behind a request, and their role |
| `passwords` | the password file, and the check of passwords |
| `provider` | sign-in at an OpenID Connect provider, and the reading of its claims |
| `link` | the one-time link, while no one has an account |
| `sessions` | signed cookies, and signed-out sessions |
| `sign_in` | the pages that sign a person in and out |
| `protection` | checks and headers of each request: origins, form tokens, the log |
"""
