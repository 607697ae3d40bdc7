"""Reports for people: the same for the console and for commands (SPEC 8.6, 16.1).

`status` is the only reader of state for people. `dead_letters` reads, shows and moves letters.
"""
