"""Logs: one line each, JSON where requested, libraries' lines in the same form."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import pytest

_SCRIPT = """
import logging, structlog, sys
from keyturn_workers.process.logging import configure
configure(sys.argv[1], "info")
log = structlog.get_logger()
log.debug("not logged")
log.info("upload.stored", upload_id="1", size_bytes=5)
logging.getLogger("aiormq.connection").warning("a library's chatter")
logging.getLogger("aio_pika.connection").error("a library's %s", "failure")
secret = "local-canary"
try:
    raise ValueError("logged")
except ValueError:
    log.exception("failed")
"""

_LATE_RETURN = """
import logging, sys
from aiormq.abc import DeliveredMessage
from pamqp import body, commands, header
from keyturn_workers.process.logging import configure
configure(sys.argv[1], "debug")
sealed = b"body-canary"
message = DeliveredMessage(commands.Basic.Return(), header.ContentHeader(), sealed, None)
log = logging.getLogger("aiormq.channel")
log.error("Unhandled message %r returning", message)
log.error("Unhandled message %r returning", {"body": sealed})
log.error("Got frame for closed channel %d: %r", 7, body.ContentBody(sealed))
log.error("error when creating transport: %r", ConnectionRefusedError(111, "refused"))
log.error("nothing to format")
"""


@cache
def _lines(log_format: str, script: str = _SCRIPT) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script, log_format], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.mark.slow
def test_json_lines_are_json_and_nothing_else() -> None:
    lines = [json.loads(line) for line in _lines("json")]
    assert [line["event"] for line in lines] == ["upload.stored", "a library's failure", "failed"]
    assert lines[0]["size_bytes"] == 5
    assert lines[1]["logger"] == "aio_pika.connection"
    assert "ValueError: logged" in lines[2]["exception"]


@pytest.mark.slow
def test_tracebacks_hold_no_local_variables() -> None:
    assert "local-canary" not in "".join(_lines("json"))
    assert "local-canary" not in "".join(_lines("console"))


@pytest.mark.slow
def test_no_message_of_the_broker_is_logged() -> None:
    """The client library logs one as a whole that the broker returns after its publish ended."""
    lines = _lines("json", _LATE_RETURN)
    assert [json.loads(line)["event"] for line in lines] == [
        "Unhandled message 'DeliveredMessage' returning",
        "Unhandled message 'dict' returning",
        "Got frame for closed channel 7: 'ContentBody'",
        "error when creating transport: ConnectionRefusedError(111, 'refused')",
        "nothing to format",
    ]
    assert "canary" not in "".join([*lines, *_lines("console", _LATE_RETURN)])


_TLS_FAILURE = """
import logging, ssl, sys
from keyturn_workers.process.logging import configure
configure(sys.argv[1], "info")
cause = ssl.SSLCertVerificationError(1, "certificate verify failed")
cause.verify_code = 10
lost = ConnectionError(1, "certificate verify failed: certificate has expired (_ssl.c:1006)")
lost.__cause__ = cause
log = logging.getLogger("aio_pika.robust_connection")
log.warning('Connection attempt to "%s" failed: %s', "amqps://canary", lost)
log = logging.getLogger("aiormq.connection")
log.error("error when creating transport: %r", lost)  # said again, for each attempt
"""


@pytest.mark.slow
def test_a_broker_with_a_wrong_certificate_is_reported_in_our_words() -> None:
    (line,) = [json.loads(line) for line in _lines("json", _TLS_FAILURE)]
    assert line["event"] == "the broker cannot be reached (its certificate has expired)"


_REFUSALS = """
import logging, sys
from aio_pika.exceptions import ProbableAuthenticationError
from keyturn_workers.process.logging import configure
configure(sys.argv[1], "info")
log = logging.getLogger("aio_pika.robust_connection")
failed = 'Connection attempt to "%s" failed: %s. Reconnecting after %r seconds.'
log.warning(failed, "amqp://canary", ProbableAuthenticationError("canary"), 1)
log.warning(failed, "amqp://canary", ConnectionRefusedError(111, "refused"), 1)
log.error("Reconnect attempt failed")
"""


def test_a_broker_that_refuses_a_running_worker_is_reported_in_our_words() -> None:
    """A broker that is merely away is not reported here: a worker tries again every second."""
    lines = [json.loads(line) for line in _lines("json", _REFUSALS)]
    assert [(line["level"], line["event"]) for line in lines] == [
        (
            "warning",
            (
                "the broker cannot be reached "
                "(it refuses the user name or password in KEYTURN_AMQP_URL)"
            ),
        ),
        ("error", "Reconnect attempt failed"),
    ]
