"""Text that must never run in a page and must stay readable: markup, templates, bidi, controls.

What Keyturn shows comes from the outside: object keys, metadata, details of refusals, headers and
bodies of dead letters (SPEC 16). Whatever runs sets `window.pwned`, or opens a dialog.
"""

from __future__ import annotations

from typing import Final

RUNS: Final = "window.pwned=1"
"""What each piece of markup tries to do."""

SCRIPT: Final = f"<script>{RUNS}</script>"
IMAGE: Final = f'"><img src=x onerror={RUNS}>'
ATTRIBUTE: Final = f"' autofocus onfocus={RUNS} x='"
TEMPLATE: Final = "{{ 7*7 }}{% raw %}${7*7}"
URL: Final = f"javascript:{RUNS}"
BIDI: Final = "invoice\u202egpj.exe"
"""Shown as it is, it reads invoiceexe.jpg."""
INVISIBLE: Final = "zero\u200bwidth\u2066isolate\u2069"
CONTROLS: Final = "\x1b[2Jclear\x07\x00\x9b31m\r\nforged line"
LONG: Final = "unbroken" * 90

OBJECT_KEYS: Final = (
    f"reports/{SCRIPT}.pdf",
    f"{IMAGE}.png",
    f"{ATTRIBUTE}.txt",
    f"templates/{TEMPLATE}",
    f"bidi/{BIDI}",
    f"invisible/{INVISIBLE}",
    f"long/{LONG}",
    "ordinary/q3 report.pdf",
)
"""Object keys that SPEC 1 allows."""

TEXTS: Final = (SCRIPT, IMAGE, ATTRIBUTE, TEMPLATE, URL, BIDI, INVISIBLE, CONTROLS, LONG)
"""Text for headers and bodies, where control characters may be too."""
