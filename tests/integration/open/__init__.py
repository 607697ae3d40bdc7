"""`keyturn/open`, the TypeScript client that decrypts by itself, in its runtimes."""
