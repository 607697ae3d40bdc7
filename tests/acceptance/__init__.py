"""Acceptance: real worker processes, killed, stopped and cut off; nothing may be lost."""
