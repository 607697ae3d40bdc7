"""Numbers with their nouns, for commands, reports and pages."""


def plural(number: int, noun: str) -> str:
    """The number with its noun, in the singular or plural."""
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"
