"""What must be confirmed before a sweep (SPEC 8.6, 16.2). Pure."""

from typing import Final
from urllib.parse import urlencode

from keyturn.identifiers import ALL_PROJECTS
from keyturn_workers.console.actions.outcome import SweepOptions
from keyturn_workers.console.model.rows import SweepRow

ALL_PROJECTS_PHRASE: Final = "all projects"


def needs_confirmation(project: str, options: SweepOptions) -> bool:
    """Whether a sweep does something that no later sweep takes back, or to everything."""
    return (
        project == ALL_PROJECTS
        or options.encrypt_plaintext
        or options.repair
        or options.master_key is not None
    )


def confirmation_phrase(project: str) -> str:
    """What a person types to confirm: the project's id, or `all projects`."""
    return ALL_PROJECTS_PHRASE if project == ALL_PROJECTS else project


def is_confirmed(typed: str, phrase: str) -> bool:
    """Whether the phrase was typed; blanks around it do not count, case does."""
    return typed.strip() == phrase.strip() and bool(phrase.strip())


def options_of(row: SweepRow) -> SweepOptions | None:
    """The options of a sweep; None while its record was not read."""
    if row.encrypt_plaintext is None or row.repair is None:
        return None
    return SweepOptions(row.master_key, row.encrypt_plaintext, row.repair)


def again_query(row: SweepRow) -> str:
    """The query of the form that starts the same sweep again."""
    fields = {"scope": "all"} if row.project == ALL_PROJECTS else {"project": row.project}
    options = options_of(row)
    if options is not None:
        fields |= {"encrypt_plaintext": "yes"} if options.encrypt_plaintext else {}
        fields |= {"repair": "yes"} if options.repair else {}
        fields |= {"master_key": options.master_key} if options.master_key else {}
    return urlencode(fields)
