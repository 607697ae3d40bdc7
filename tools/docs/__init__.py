"""What `make docs` needs besides MkDocs itself."""
