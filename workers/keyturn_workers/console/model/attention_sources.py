"""What needs a person: the console's sources (SPEC 6.7, 15.3, 16.2). Pure."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from keyturn_workers.console.model.attention_facts import Facts, Rule, ago, count_of
from keyturn_workers.console.model.rows import AttentionItem

BEHIND_AFTER: Final = timedelta(minutes=2)
_STREAMS: Final = ("events", "history", "reports", "workers", "audit")
_WHAT: Final = {
    "history": "earlier events",
    "reports": "reports of control workers",
    "workers": "reports of worker processes",
    "audit": "the audit trail",
    "queues": "depth and consumers of the queues",
}


def broker_gone(facts: Facts) -> Iterable[AttentionItem]:
    """Nothing is read of the broker."""
    events = facts.feeds.get("events")
    if events is None or events.is_connected:
        return
    since = events.since or facts.started_at
    yield AttentionItem(
        "broker_gone",
        "act",
        "Events cannot be read",
        f"For {ago(facts.now - since)}: {events.problem or 'not connected yet'}.",
        "/queues",
        "Check that RabbitMQ is running, that this console's KEYTURN_AMQP_URL is correct, and that "
        "workers have started at least once. The console connects as soon as it can. Until then, "
        "all pages show what was known before.",
        as_of=since,
    )


def feed_lost(facts: Facts) -> Iterable[AttentionItem]:
    """One source cannot be read, although the broker is there."""
    if not facts.is_broker_up:
        return
    for name, what in _WHAT.items():
        feed = facts.feeds.get(name)
        if feed is None or feed.is_connected or feed.problem is None:
            continue
        yield AttentionItem(
            "feed_lost",
            "soon",
            f"The console cannot read {what}",
            feed.problem,
            "/queues",
            "Give the console's broker user the documented permissions. "
            "Workers declare missing streams when they start.",
            as_of=feed.since,
        )


def feed_behind(facts: Facts) -> Iterable[AttentionItem]:
    """Events are read later than they are published."""
    events = facts.feeds.get("events")
    if events is None or not events.is_connected or events.is_caught_up:
        return
    if facts.now - (events.since or facts.started_at) < BEHIND_AFTER:
        return
    yield AttentionItem(
        "feed_behind",
        "soon",
        "The console is behind with events",
        "It has not read all events that the broker holds.",
        "/queues",
        "Wait. If it does not catch up, give it more CPU.",
        as_of=events.as_of,
    )


def status_unanswered(facts: Facts) -> Iterable[AttentionItem]:
    """Control workers do not answer, or cannot read the storage."""
    status = facts.feeds.get("status")
    if not facts.is_broker_up or status is None or status.problem is None:
        return
    if status.is_connected:
        yield AttentionItem(
            "status_unreadable",
            "act",
            "Control workers cannot read what was asked for",
            status.problem,
            "/queues",
            "Check the storage, and the log of the control workers.",
            as_of=status.as_of,
        )
        return
    yield AttentionItem(
        "status_unanswered",
        "act",
        "No control worker answers",
        status.problem,
        "/queues",
        "Start a control worker; check that KEYTURN_PUBLISHERS grants this console "
        "status.requested for all projects.",
        "keyturn worker control",
        as_of=status.since,
    )


def unsigned_events(facts: Facts) -> Iterable[AttentionItem]:
    """Messages on the deployment's streams that no event key signed."""
    refused = sum(feed.refused for name in _STREAMS if (feed := facts.feeds.get(name)))
    if not refused:
        return
    yield AttentionItem(
        "unsigned_events",
        "act",
        f"{count_of(refused, 'message')} not signed by this deployment",
        "Messages on its streams have no valid signature. They were ignored.",
        "/queues",
        "If workers have a new event key, add its public half to KEYTURN_EVENT_PUBLIC_KEY. "
        "Otherwise find out which broker user writes to the exchange keyturn.",
        as_of=facts.now,
    )


def unsigned_messages(facts: Facts) -> Iterable[AttentionItem]:
    """Requests that no known publisher signed."""
    if not facts.unsigned_depth:
        return
    yield AttentionItem(
        "unsigned_messages",
        "soon",
        f"{count_of(facts.unsigned_depth, 'request')} that no known publisher signed",
        "They are kept apart from signed dead letters.",
        "/dead?queue=keyturn.unsigned.dead",
        "Check the publishers' keys and KEYTURN_PUBLISHERS; discard what is not yours.",
        as_of=facts.now,
    )


def audit_gap(facts: Facts) -> Iterable[AttentionItem]:
    """The audit trail has a gap, or holds what is forged."""
    if not facts.audit_findings:
        return
    newest = facts.audit_findings[max(facts.audit_findings)]
    yield AttentionItem(
        "audit_gap",
        "act",
        f"The audit trail has {count_of(len(facts.audit_findings), 'problem')}",
        "; ".join(newest),
        "/audit",
        "Export it and keep the file, then find out who can write to keyturn.audit.",
        "keyturn audit export audit.jsonl",
        as_of=facts.now,
    )


def cut(facts: Facts) -> Iterable[AttentionItem]:
    """Something was left out, to bound the memory."""
    for note in facts.notes:
        yield AttentionItem(
            "cut", "info", "The console holds only a part", note, "/queues", "Use the command line."
        )


SOURCE_RULES: Final[tuple[Rule, ...]] = (
    broker_gone,
    feed_lost,
    feed_behind,
    status_unanswered,
    unsigned_events,
    unsigned_messages,
    audit_gap,
    cut,
)
