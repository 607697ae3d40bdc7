"""See `keyturn_workers.code_help`."""

from keyturn_workers.code_help import CODES, CodeHelp, code_help

__all__ = ["CODES", "CodeHelp", "code_help"]
