"""What people do by the console: sweeps, rotations and deletes, as signed requests (SPEC 16).

    actions = Actions(publisher)
    action = await actions.start_sweep(person, request_id, "acme", SweepOptions())
    action.state  # sending, published, accepted, rejected, not_sent or unknown

| module | holds |
| --- | --- |
| `outcome` | one request that a person made, and what became of it; pure |
| `service` | `Actions`: publishes each request once, and waits for its answer |
| `rules` | what must be confirmed; pure |
| `form_tokens` | signed tokens of forms, so that each is served once |
| `fresh_keys` | API keys that were shown and are not published yet |
"""

from keyturn_workers.console.actions.form_tokens import FormTokens
from keyturn_workers.console.actions.fresh_keys import FreshKeys
from keyturn_workers.console.actions.outcome import Action, ActionState, SweepOptions
from keyturn_workers.console.actions.service import Actions, TooManyActionsError

__all__ = [
    "Action",
    "ActionState",
    "Actions",
    "FormTokens",
    "FreshKeys",
    "SweepOptions",
    "TooManyActionsError",
]
