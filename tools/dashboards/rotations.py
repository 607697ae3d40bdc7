"""The dashboard of rotations and sweeps: control requests, pages, objects, master keys."""

from __future__ import annotations

from typing import Final

from tools.dashboards.model import Dashboard, Panel, Query, Row, Variable, stat
from tools.dashboards.queries import (
    FIRING,
    JOB,
    VHOSTS,
    master_keys,
    quantile,
    quantiles,
    queue,
    rate,
    rates,
)

_CONTROL: Final = f'{JOB},queue="keyturn.control"'
_SWEEPS: Final = f'{JOB},queue=~"keyturn.(plan|sweep)"'
_QUEUES: Final = "keyturn.(control|plan|sweep)"
_STAGES: Final = "keyturn:stage_seconds_bucket:rate5m"

_NOW: Final = Row(
    "Now",
    (
        stat(
            "Objects inspected",
            "Objects of completed page attempts in a second. Each object is inspected at least "
            "twice: once to write it, once to prove it.",
            "ops",
            rate("keyturn_sweep_objects_total"),
        ),
        stat(
            "Objects rewrapped",
            "Objects that got new wraps, in a second.",
            "ops",
            rate("keyturn_sweep_objects_total", f'{JOB},outcome="rewrapped"'),
        ),
        stat(
            "Pages waiting",
            "Pages that no sweep worker has yet. A sweep keeps at most 512 pages in progress.",
            "short",
            queue("messages_ready", "keyturn.sweep", ""),
        ),
        stat(
            "Failures",
            "Failures of single objects in the time range; counted again in each attempt.",
            "short",
            f"sum(increase(keyturn_sweep_failures_total{{{JOB}}}[$__range]))",
            red_from=1,
        ),
        stat(
            "Audit records waiting",
            "Audit records that the broker has not confirmed. Control requests wait for them.",
            "short",
            f"sum(keyturn_audit_records_pending{{{JOB}}})",
            red_from=1,
        ),
        FIRING,
    ),
)

_SWEEPS_ROW: Final = Row(
    "Sweeps",
    (
        Panel(
            "Objects, by outcome",
            "rewrapped and encrypted count writes; current needed nothing.",
            "ops",
            rates("keyturn_sweep_objects_total", "outcome"),
            stacked=True,
        ),
        Panel(
            "Pages",
            "Page attempts. A page is attempted again until an attempt changes nothing.",
            "ops",
            (Query(rate("keyturn_sweep_pages_total", JOB, "instance"), "{{instance}}"),),
            stacked=True,
        ),
        Panel(
            "Queues of sweeps",
            "Steps (plan) and pages (sweep) on the broker, with those that workers hold.",
            "short",
            (
                Query(queue("messages_ready", "keyturn.(plan|sweep)"), "{{queue}} ready"),
                Query(queue("messages_unacked", "keyturn.(plan|sweep)"), "{{queue}} at workers"),
            ),
        ),
        Panel(
            "Duration of a page",
            "One attempt at a page, with the objects that it changed.",
            "s",
            quantiles(_STAGES, f'{JOB},queue="keyturn.sweep",stage="take"'),
        ),
        Panel(
            "Stages of sweeps (p99)",
            "take is one attempt at a page; record writes its result; serve is all of it.",
            "s",
            (Query(quantile(0.99, _STAGES, _SWEEPS, "queue, stage, le"), "{{queue}} {{stage}}"),),
        ),
        Panel(
            "Oldest page or step",
            "How long a worker has had its oldest page or step. More than an hour: it hangs.",
            "s",
            (
                Query(
                    f"max by (queue) (keyturn_oldest_message_age_seconds{{{_SWEEPS}}})",
                    "{{queue}}",
                ),
            ),
        ),
        Panel(
            "Failures of objects, by code",
            "keyturn status names the sweep and the objects. Each attempt counts them again.",
            "ops",
            rates("keyturn_sweep_failures_total", "code"),
            width=12,
        ),
        Panel(
            "Retries, by code",
            "Control requests, steps and pages that come again later. waiting is not an error: a "
            "step waits for pages or a lease.",
            "ops",
            rates("keyturn_retries_total", "code", f'{JOB},queue=~"{_QUEUES}"'),
            width=12,
        ),
    ),
)

_CONTROL_ROW: Final = Row(
    "Control requests",
    (
        Panel(
            "Served, by event",
            "Enrollments, rotations, sweeps, deletes and reports that were served.",
            "ops",
            rates("keyturn_requests_served_total", "type", f'{JOB},type!~"upload[.].*"'),
        ),
        Panel(
            "Refused control requests, by code",
            "Dead letters of the queues of control requests, steps and pages.",
            "ops",
            rates("keyturn_requests_refused_total", "code", f'{JOB},queue=~"{_QUEUES}"'),
        ),
        Panel(
            "Queue of control requests",
            "Control requests on the broker. Those for a retry wait in queues of their own.",
            "short",
            (
                Query(queue("messages_ready", "keyturn.control", ""), "ready"),
                Query(queue("messages_unacked", "keyturn.control", ""), "at workers"),
                Query(queue("messages_ready", "keyturn[.]control[.]retry[.].*", ""), "for a retry"),
            ),
        ),
        Panel(
            "Duration of control requests",
            "The work itself, without the wait.",
            "s",
            quantiles(_STAGES, f'{_CONTROL},stage="serve"'),
            width=12,
        ),
        Panel(
            "Wait of control requests",
            "From a request's requested_at to its first delivery, by the clocks of publisher and "
            "worker.",
            "s",
            quantiles("keyturn:queue_wait_seconds_bucket:rate5m", _CONTROL),
            width=12,
        ),
    ),
)

DASHBOARD: Final = Dashboard(
    "Keyturn rotations",
    "Rotations, sweeps and other control requests. Needs the recording rules of Keyturn.",
    (Variable("job", "Job", "keyturn_consuming"), VHOSTS),
    (_NOW, _SWEEPS_ROW, _CONTROL_ROW, master_keys()),
)
