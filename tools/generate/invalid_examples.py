"""Invalid examples: a valid message with one thing wrong, and why it is refused (SPEC 1, 6.3).

It must never produce a message that a model accepts; a test holds it to that.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from keyturn.messages import (
    AUDIT_MODELS,
    EVENT_MODELS,
    MARK_MODELS,
    REQUEST_MODELS,
    WORKER_REPORT_MODELS,
    CountedEvent,
    id_field,
)
from tools.generate.sealed_secrets import SWEEP_ID

Document = dict[str, Any]
Case = tuple[str, str, str]
"""Title, body, reason."""

# What identifies a message that no request begins.
_OWN_IDS: Final = dict.fromkeys(AUDIT_MODELS, "audit_id") | dict.fromkeys(
    WORKER_REPORT_MODELS, "worker_id"
)
_LONE_SURROGATE: Final = '"\\ud800"'


def cases(name: str, valid: Document) -> Iterator[Case]:
    """Every invalid example of this type, made from a valid one."""
    yield from _of_every_message(name, valid)
    if name in REQUEST_MODELS:
        yield from _of_every_request(valid)
        yield from _of_one_request(name, valid)
    elif name in AUDIT_MODELS:
        yield from _of_audit_records(valid)
    elif name in WORKER_REPORT_MODELS:
        yield from _of_worker_reports(valid)
    elif name in MARK_MODELS:
        yield from _of_marks(valid)
    else:
        yield from _of_one_event(name, valid)


def _of_one_request(name: str, valid: Document) -> Iterator[Case]:
    if name == "upload.requested":
        yield from _of_uploads(valid)
    elif name == "enroll.requested":
        yield _changed(valid, "plaintext-forbidden", "only 'allowed'", plaintext="forbidden")
        yield _changed(valid, "adopt-as-text", "a boolean, not text", adopt="true")
    elif name == "rotation.requested":
        yield _changed(valid, "generation-zero", "generations begin at 1", expected_generation=0)
        yield _changed(valid, "generation-as-text", "a number", expected_generation="3")
    elif name == "sweep.requested":
        yield _changed(valid, "repair-as-number", "a boolean, not a number", repair=1)
    elif name == "status.requested":
        yield from _of_status_requests(valid)
    elif name == "audit.requested":
        yield from _of_audit_requests(valid)
    elif name == "dead_letters.requested":
        yield from _of_dead_letters(valid)
    elif name == "recover.requested":
        yield from _of_recoveries(valid)


def _of_status_requests(valid: Document) -> Iterator[Case]:
    yield _changed(valid, "view-unknown", "not in the list", view="objects_opened")
    yield _changed(valid, "sweep-without-id", "sweep_id is missing", view="sweep")
    yield _changed(valid, "id-without-sweep", "no sweep is requested", sweep_id=SWEEP_ID)
    evidence = {"view": "evidence", "project": "*"}
    yield _changed(valid, "evidence-of-all", "evidence is that of one project", **evidence)
    yield _changed(valid, "keys-of-one", "the master keys are those of all", view="master_keys")
    yield _changed(valid, "limit-zero", "at least one row", limit=0)
    yield _changed(valid, "limit-too-high", "at most 1000 rows", limit=1001)
    yield _changed(valid, "after-too-long", "at most 2048 characters", after="a" * 2049)
    yield _changed(valid, "page-zero", "pages begin at 1", page=0)
    yield _changed(valid, "order-unknown", "not a column of the view", order="kek_id")
    yield _changed(valid, "filter-unknown", "no such field", filter={"colour": "red"})
    yield _changed(valid, "filter-of-another-view", "not of this view", filter={"code": "gone"})
    yield _changed(valid, "state-of-another-view", "not a state", filter={"state": "failed"})
    yield _without(valid, "view")


def _of_audit_requests(valid: Document) -> Iterator[Case]:
    letter = valid["letters"][0]
    yield _changed(valid, "one-project", "dead letters belong to no project", project="acme")
    yield _changed(valid, "action-unknown", "not in the list", action="dead_letter.opened")
    yield _changed(valid, "no-letters", "at least one letter", letters=[])
    body = letter | {"body": "e30="}
    yield _changed(valid, "letter-with-its-body", "a record holds no body", letters=[body])
    yield _changed(valid, "letter-without-digest", "the digest is missing", letters=[{}])
    yield _changed(valid, "reason-two-lines", "one line", reason="a\nb")
    yield _changed(valid, "queue-control", "a control character", queue="keyturn\n")
    yield _without(valid, "actor")


def _of_dead_letters(valid: Document) -> Iterator[Case]:
    digest = "0" * 64
    yield _changed(valid, "one-project", "dead letters belong to no project", project="acme")
    yield _changed(valid, "action-unknown", "not in the list", action="open")
    yield _changed(valid, "queue-unknown", "not a dead-letter queue", queue="keyturn.upload")
    yield _changed(valid, "code-and-letters", "either of the two", letters=[digest])
    yield _changed(valid, "no-letters", "at least one letter", code=None, letters=[])
    yield _changed(valid, "letter-short", "64 hex digits", code=None, letters=["5f"])
    yield _changed(valid, "reason-two-lines", "one line", reason="a\nb")
    yield _without(valid, "code")
    yield _without(valid, "actor")


def _of_recoveries(valid: Document) -> Iterator[Case]:
    yield _changed(valid, "project-of-all", "one project", project="*")
    yield _changed(valid, "serial-negative", "a count", serial=-1)
    yield _changed(valid, "digest-upper-case", "hex in lower case", digest="A" * 64)
    yield _changed(valid, "reason-two-lines", "one line", reason="a\nb")
    yield _without(valid, "mark")
    yield _without(valid, "serial")
    yield _without(valid, "digest")
    yield _without(valid, "reason")


def _of_one_event(name: str, valid: Document) -> Iterator[Case]:
    if name == "upload.stored":
        yield _changed(valid, "size-negative", "a count of bytes", size=-1)
    elif name == "rotation.accepted":
        yield _changed(valid, "generation-zero", "generations begin at 1", generation=0)
        yield _without(valid, "generation")
    elif name == "object.deleted":
        yield _changed(valid, "key-dots", "a '..' segment", key="reports/../q3.pdf")
        yield _without(valid, "key")
    elif name == "status.reported":
        yield from _of_status_reports(valid)
    elif name == "project.recovered":
        yield _changed(valid, "serial-negative", "a count", serial=-1)
        yield _without(valid, "serial")
    elif name == "audit.accepted":
        yield _changed(valid, "one-project", "dead letters belong to no project", project="acme")
    elif name == "dead_letters.moved":
        yield _changed(valid, "moved-negative", "a count", moved=-1)
        yield _changed(valid, "queue-unknown", "not a dead-letter queue", queue="keyturn.upload")
        yield _without(valid, "left")
    elif issubclass(EVENT_MODELS[name], CountedEvent):
        yield from _of_counts(name, valid)


def _of_audit_records(valid: Document) -> Iterator[Case]:
    digest = "0" * 64
    yield _changed(valid, "counter-zero", "counters begin at 1", counter=0)
    yield _changed(valid, "second-without-previous", "previous is missing", counter=2)
    yield _changed(valid, "first-with-previous", "the first record has none", previous=digest)
    yield _changed(valid, "action-unknown", "not in the list", action="object.looked_at")
    yield _changed(valid, "reason-two-lines", "one line", reason="a\nb")
    yield _changed(valid, "reason-too-long", "at most 500 characters", reason="x" * 501)
    yield _changed(valid, "actor-control", "a control character", actor="kim\u001b[2J")
    yield _without(valid, "previous")
    yield _without(valid, "actor")
    yield _without(valid, "outcome")


def _of_status_reports(valid: Document) -> Iterator[Case]:
    row = valid["projects"][0]
    yield _changed(valid, "view-unknown", "not in the list", view="objects_opened")
    yield _changed(valid, "total-negative", "a count", total=-1)
    yield _changed(valid, "complete-as-number", "a boolean, not a number", is_complete=1)
    yield _changed(valid, "generation-zero", "begins at 1", projects=[row | {"generation": 0}])
    yield _changed(valid, "mark-unknown", "not in the list", projects=[row | {"mark": "stale"}])
    yield _changed(valid, "row-without-project", "project is missing", projects=[{}])
    yield _changed(valid, "rows-as-object", "a list", projects=row)
    yield _without(valid, "view")


def _of_marks(valid: Document) -> Iterator[Case]:
    yield _changed(valid, "serial-negative", "a count", serial=-1)
    yield _changed(valid, "serial-as-text", "a number", serial="7")
    yield _changed(valid, "serial-too-high", "at most 63 bits", serial=2**63)
    yield _changed(valid, "generation-zero", "generations begin at 1", generation=0)
    yield _changed(valid, "digest-upper-case", "hex in lower case", digest="A" * 64)
    yield _changed(valid, "digest-short", "64 hex digits", digest="5f")
    yield _changed(valid, "project-of-all", "one project", project="*")
    yield _without(valid, "serial")
    yield _without(valid, "digest")


def _of_worker_reports(valid: Document) -> Iterator[Case]:
    queue = valid["queues"][0]
    yield _changed(valid, "served-negative", "a count", queues=[queue | {"served": -1}])
    yield _changed(valid, "waited-negative", "seconds", queues=[queue | {"waited_s": -0.1}])
    yield _changed(valid, "queue-upper-case", "not a queue", queues=[queue | {"queue": "Upload"}])
    yield _changed(valid, "lease-zero", "at least a second", lease_s=0)
    yield _changed(valid, "host-control", "a control character", host="worker\u001b[2J")
    yield _changed(valid, "stopping-as-number", "a boolean, not a number", is_stopping=1)
    yield _without(valid, "started_at")
    yield _without(valid, "queues")
    yield _without(valid, "type")


def _of_counts(name: str, valid: Document) -> Iterator[Case]:
    yield _changed(valid, "failed-negative", "a count", failed=-1)
    yield _changed(valid, "objects-as-text", "a number", objects="1500")
    yield _changed(valid, "clean-as-number", "a boolean, not a number", clean=1)
    yield _without(valid, "rewrapped")
    yield _without(valid, "clean")
    if name.endswith(".completed"):
        yield _changed(valid, "evidence-upper-case", "hex in lower case", evidence="A" * 64)
    if name != "sweep.completed":
        yield _changed(valid, "all-projects", "one project", project="*")


def _of_every_message(name: str, valid: Document) -> Iterator[Case]:
    request_id = None if name in MARK_MODELS else _OWN_IDS.get(name) or id_field(name)
    # Of a worker, which belongs to no project.
    field = "project" if "project" in valid else "host"
    text = _compact(valid)
    if request_id is not None:
        yield _changed(valid, "id-upper-case", "ids are in lower case", **{request_id: "A" * 36})
        yield _without(valid, request_id)
    yield _changed(valid, f"{field}-as-number", "a number where text belongs", **{field: 7})
    twice = text.replace("{", f'{{"{field}":"other",', 1)
    yield "name-twice", twice, "duplicate name in an object"
    yield "cut", text[: len(text) // 2], "not JSON"
    yield "no-object", _compact([valid]), "not a JSON object"
    named = f'"{field}":'
    surrogate = text.replace(f"{named}{json.dumps(valid[field])}", named + _LONE_SURROGATE, 1)
    yield "lone-surrogate", surrogate, "not text"


def _of_every_request(valid: Document) -> Iterator[Case]:
    yield _changed(valid, "unknown-field", "requests have no other fields", priority="high")
    yield _changed(valid, "project-upper-case", "not a project id", project="Acme")
    yield _changed(valid, "project-too-long", "at most 63 characters", project="a" * 64)
    yield _changed(
        valid, "time-with-offset", "times end in Z", requested_at="2026-11-24T10:00:00+00:00"
    )
    yield _changed(valid, "time-impossible", "no such day", requested_at="2026-02-30T10:00:00Z")
    yield _without(valid, "requested_at")
    if valid["type"] != "upload.requested":
        yield _changed(valid, "actor-control", "a control character", actor="kim\n")
    if "key" in valid:
        yield _changed(valid, "key-dots", "a '..' segment", key="reports/../q3.pdf")
        yield _changed(valid, "key-slash", "a leading '/'", key="/q3.pdf")
        yield _changed(valid, "key-too-long", "more than 900 bytes of UTF-8", key="ü" * 451)
        yield _changed(valid, "key-control", "a control character", key="q3\n.pdf")


def _of_uploads(valid: Document) -> Iterator[Case]:
    def metadata(title: str, reason: str, **entries: str) -> Case:
        named = {name.replace("_", "-"): value for name, value in entries.items()}
        return _changed(valid, title, reason, metadata=named)

    yield metadata("metadata-own-name", "enc- names are Keyturn's own", enc_algo="none")
    yield metadata("metadata-name-upper-case", "names are a-z, 0-9 and -", Author="kim")
    yield metadata("metadata-too-much", "more than 1 KiB on the wire", note="x" * 1021)
    yield metadata("metadata-control", "a control character", note="a\r\nx-evil: 1")
    yield _changed(valid, "content-type-control", "a control character", content_type="a\nb")
    sealed = dict(valid["sealed_key"])
    spaced = sealed | {"ciphertext": " " + sealed["ciphertext"]}
    yield _changed(valid, "base64-space", "base64 does not decode", sealed_key=spaced)
    unpadded = {"inline": valid["body"]["inline"].rstrip("=")[:-1]}
    yield _changed(valid, "base64-unpadded", "base64 does not decode", body=unpadded)
    both = valid["body"] | {"staged": {"size": 100}}
    yield _changed(valid, "body-twice", "inline or staged, not both", body=both)
    yield _changed(valid, "body-empty", "inline or staged", body={})
    yield _changed(valid, "staged-as-text", "a number", body={"staged": {"size": "100"}})


def _changed(valid: Document, title: str, reason: str, /, **changes: Any) -> Case:
    return title, _compact(valid | changes), reason


def _without(valid: Document, field: str) -> Case:
    left = {name: value for name, value in valid.items() if name != field}
    title = f"no-{field.replace('_', '-')}"
    return title, _compact(left), f"{field} is missing"


def _compact(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)
