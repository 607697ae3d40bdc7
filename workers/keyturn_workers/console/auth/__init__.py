"""Who may use the console, and what protects its requests (SPEC 16.3).

| module | holds |
| --- | --- |
| `auth` | accounts, and all of this as one value, made from the settings |
| `person` | the person that a request comes from, and what they may do |
| `passwords` | the password file, and how passwords are checked |
| `provider` | sign-in at an OpenID Connect provider, and what its claims say |
| `sessions` | signed cookies, and the sessions that were signed out |
| `sign_in` | the pages that sign a person in and out |
| `protection` | what each request passes: headers, origins, form tokens, the log |
"""
