"""What needs a person now: pure rules over what the console knows (SPEC 16.2).

| module | rules about |
| --- | --- |
| `attention_sources` | the broker, the feeds, control workers, unsigned messages, the audit trail |
| `attention_work` | queues, worker processes, dead letters |
| `attention_projects` | keyrings, sweeps and rotations, API keys, master keys |

Each rule is a function of the facts and gives a few items at most: of many rows of one kind it
makes one item with their number and a link to the table.
"""

from typing import Final

from keyturn_workers.console.model.attention_facts import Facts, Rule
from keyturn_workers.console.model.attention_projects import PROJECT_RULES
from keyturn_workers.console.model.attention_sources import SOURCE_RULES
from keyturn_workers.console.model.attention_work import WORK_RULES
from keyturn_workers.console.model.rows import AttentionItem

__all__ = ["RULES", "Facts", "find_attention"]

RULES: Final[tuple[Rule, ...]] = (*SOURCE_RULES, *WORK_RULES, *PROJECT_RULES)
_SEVERITIES: Final = ("act", "soon", "info")


def find_attention(facts: Facts) -> tuple[AttentionItem, ...]:
    """The items of all rules, the most urgent first."""
    items = [item for rule in RULES for item in rule(facts)]
    items.sort(key=lambda item: _SEVERITIES.index(item.severity))
    return tuple(items)
