"""Readers of the bucket without a worker, for commands.

`verify` is the independent check of one project. `export` writes all objects of a project to
another place. `download` reads one object's plaintext.
"""
