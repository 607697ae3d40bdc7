"""moto's S3 server, one request at a time: `python -m tools.servers.moto_server`.

The quick storage of the demo and of functional tests. A request's body is read completely before
the lock around moto is acquired, so that each request is atomic and conditional puts are correct
even for slow bodies. Tests of races must use a real server instead (SPEC 10).
"""

from __future__ import annotations

import argparse
import os
import threading
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any, cast

from moto.moto_server.werkzeug_app import (
    BackendRequest,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import ThreadedWSGIServer
from werkzeug.test import run_wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

_IN_MEMORY_BYTES = 16 * 2**20
_COPY_BYTES = 2**20


def read_body(environ: WSGIEnvironment) -> IO[bytes]:
    """The whole body of a request: in memory if small, else in an unnamed file.

    Raises:
        ConnectionError: the client disconnected before the announced length was read.
    """
    # The handler closes it after the response.
    body = SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115 - see above
    try:
        _copy(environ, body)
    except BaseException:
        body.close()
        raise
    environ["CONTENT_LENGTH"] = str(body.tell())
    body.seek(0)
    return cast("IO[bytes]", body)


def _copy(environ: WSGIEnvironment, body: SpooledTemporaryFile[bytes]) -> None:
    source = environ["wsgi.input"]
    if environ.get("wsgi.input_terminated"):
        while block := source.read(_COPY_BYTES):
            body.write(block)
    else:
        left_bytes = int(environ.get("CONTENT_LENGTH") or 0)
        while left_bytes:
            block = source.read(min(left_bytes, _COPY_BYTES))
            if not block:
                raise ConnectionError("the body ended early")
            body.write(block)
            left_bytes -= len(block)


class _Request(BackendRequest):
    """A request whose body is an object even if its content type is that of a form.

    Otherwise flask parses the body as form fields and moto stores an empty object.
    """

    @property
    def want_form_data_parsed(self) -> bool:
        """Whether flask parses form fields: never."""
        return False


class Handler(MotoRequestHandler):
    """HTTP/1.1 with keep-alive; werkzeug's own handler closes every connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def handle_expect_100(self) -> bool:
        """Send `100 Continue` at once: every body is read, whatever the response will be."""
        done = super().handle_expect_100()
        self.wfile.flush()
        return done

    def run_wsgi(self) -> None:
        """Read the body, call the application, and write its whole response."""
        environ = self.make_environ()
        with read_body(environ) as body:
            environ["wsgi.input"] = body
            environ.pop("wsgi.input_terminated", None)
            environ.pop("HTTP_TRANSFER_ENCODING", None)
            answer, status, headers = run_wsgi_app(self.server.app, environ, buffered=True)
        parts = list(answer)
        code, _, reason = status.partition(" ")
        self.send_response(int(code), reason)
        for name, value in headers:
            if name.lower() not in {"connection", "transfer-encoding", "date", "server"}:
                self.send_header(name, value)
        bodiless = self.command == "HEAD" or int(code) in {204, 304}
        if "content-length" not in {name.lower() for name, _ in headers} and not bodiless:
            self.send_header("Content-Length", str(sum(len(part) for part in parts)))
        self.end_headers()
        if not bodiless:
            self.wfile.writelines(parts)
        self.wfile.flush()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing: one line per request would hide errors."""


def atomic(app: WSGIApplication) -> WSGIApplication:
    """The application with a lock around each call and around reading its response."""
    lock = threading.Lock()

    def locked(environ: WSGIEnvironment, start_response: Any) -> list[bytes]:
        with lock:
            answer, status, headers = run_wsgi_app(app, environ, buffered=True)
            start_response(status, list(headers.items()))
            return list(answer)

    return cast("WSGIApplication", locked)


def main() -> None:
    """Serve on loopback until killed."""
    parser = argparse.ArgumentParser(description="moto's S3, one request at a time")
    parser.add_argument("--port", type=int, required=True)
    port: int = parser.parse_args().port
    os.environ["MOTO_PORT"] = str(port)
    app = create_backend_app("s3")
    app.request_class = _Request
    ThreadedWSGIServer("127.0.0.1", port, atomic(app), handler=Handler).serve_forever()


if __name__ == "__main__":
    main()
