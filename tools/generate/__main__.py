"""`python -m tools.generate`: writes the generated files of `contracts/`.

`--new-sealed` first seals the examples' secrets anew: HPKE is randomised, so what it
gave once is kept in `examples/sealed.json`, with the keys that open it.
It must never be given a key that is used for anything else.
"""

import sys

from tools.generate import ROOT, pretty, write
from tools.generate.sealed_secrets import new_sealed


def main() -> None:
    """Write everything, and print the number of files."""
    if "--new-sealed" in sys.argv[1:]:
        target = ROOT / "examples" / "sealed.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(pretty(new_sealed()), encoding="utf-8")
    sys.stdout.write(f"{len(write())} files written\n")


main()
