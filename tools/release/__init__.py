"""`make release-check`: what a release publishes, built twice, installed and run; nothing is sent.

| module | purpose |
| --- | --- |
| `versions` | one version everywhere, and its entry in the changelog |
| `build` | builds the last commit twice, compares every byte, and fills `dist/` |
| `install` | installs each package into an empty environment, and runs the README's program |

`.github/workflows/release.yml` runs the same check, and publishes what it left in `dist/`.
"""
