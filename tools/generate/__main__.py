"""`python -m tools.generate`: writes the generated files of `contracts/`."""

from tools.generate import write

print(f"{len(write())} files written")
