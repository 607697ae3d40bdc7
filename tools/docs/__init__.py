"""What `make docs` needs beside MkDocs itself."""
