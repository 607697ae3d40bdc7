"""What a master key that is held elsewhere costs: derivations, uploads, calls (SPEC 2.2, 11).

`docs/operations/performance.md` says how each figure is measured.
"""
