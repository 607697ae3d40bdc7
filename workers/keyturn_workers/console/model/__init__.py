"""The console's model: a pure fold over signed messages (SPEC 16.2).

| module | holds |
| --- | --- |
| `model` | `Model`: takes messages, answers pages |
| `rows` | what pages show, and their queries |
| `projects`, `sweeps`, `failures`, `evidence` | what is known of each |
| `sweep_facts`, `sweep_messages`, `samples` | one sweep: what messages say about it, and its row |
| `sorted_index`, `paging`, `retention` | the order of tables, their pages, what is kept |
| `master_keys`, `census` | master keys, and what depends on them |
| `workers` | worker processes and queues |
| `audit` | the audit trail |
| `history`, `offsets` | counts by minute, each message once |
| `pages` | reports that come in pages |
| `attention`, `attention_sources`, `attention_work`, `attention_projects` | what needs a person |
| `changes` | which topics changed |
"""

from keyturn_workers.console.model.changes import TOPICS, Changes, Topic
from keyturn_workers.console.model.model import Model
from keyturn_workers.console.model.rows import (
    AttentionItem,
    AuditQuery,
    AuditRow,
    Census,
    DeadCount,
    DeadSummary,
    EvidenceView,
    FailureRow,
    Feed,
    FeedName,
    MasterKeyRow,
    ObjectGroup,
    Overview,
    Page,
    ProjectQuery,
    ProjectRow,
    ProjectSort,
    ProjectState,
    QueueDepth,
    QueueRow,
    QueueSnapshot,
    RateSample,
    Severity,
    SweepCounts,
    SweepQuery,
    SweepRef,
    SweepRow,
    SweepState,
    SweepView,
    WorkerRow,
)

__all__ = [
    "TOPICS",
    "AttentionItem",
    "AuditQuery",
    "AuditRow",
    "Census",
    "Changes",
    "DeadCount",
    "DeadSummary",
    "EvidenceView",
    "FailureRow",
    "Feed",
    "FeedName",
    "MasterKeyRow",
    "Model",
    "ObjectGroup",
    "Overview",
    "Page",
    "ProjectQuery",
    "ProjectRow",
    "ProjectSort",
    "ProjectState",
    "QueueDepth",
    "QueueRow",
    "QueueSnapshot",
    "RateSample",
    "Severity",
    "SweepCounts",
    "SweepQuery",
    "SweepRef",
    "SweepRow",
    "SweepState",
    "SweepView",
    "Topic",
    "WorkerRow",
]
