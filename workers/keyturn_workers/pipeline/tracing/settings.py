"""Check OpenTelemetry's own variables before their use. No I/O except for file names.

The SDK ignores most malformed values, and logs that at best. Here each one stops the process, as a
malformed setting of Keyturn does (SPEC 11).
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from keyturn.errors import SettingsError

_Check: TypeAlias = tuple[Callable[[str], bool], str]

_SAMPLER: Final = "OTEL_TRACES_SAMPLER"
_SAMPLERS: Final = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
_PREFIXES: Final = ("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_")
_DEFAULT_ENDPOINT: Final = "http://localhost:4318"


def check_environment(environ: Mapping[str, str]) -> str:
    """Check the SDK's variables; return the receiver's host and port, for log lines.

    Raises:
        SettingsError: one line with the name of the variable, without its value.
    """
    for name, (is_valid, problem) in _checks():
        # To the SDK a sampler's name with a space is unknown, and it records everything.
        value = environ.get(name, "")
        value = value if name == _SAMPLER else value.strip()
        if value and not is_valid(value):
            raise SettingsError(f"{name} {problem}")
    argument = f"{_SAMPLER}_ARG"
    if environ.get(_SAMPLER, "").lower().endswith("traceidratio"):
        if argument not in environ:
            # The SDK would record everything.
            raise SettingsError(f"{argument} is missing: the share of traces to record, 0 to 1")
        if not 0 <= _number(environ[argument]) <= 1:
            raise SettingsError(f"{argument} is malformed: not a number from 0 to 1")
    endpoints = (environ.get(f"{prefix}ENDPOINT") for prefix in _PREFIXES)
    address = next((each for each in endpoints if each), _DEFAULT_ENDPOINT)
    return urlsplit(address).netloc.rpartition("@")[2]  # an address may contain a password


def _checks() -> Iterator[tuple[str, _Check]]:
    positive = _is_positive, "is malformed: not a positive number"
    yield "OTEL_TRACES_EXPORTER", _one_of("otlp")
    yield _SAMPLER, _one_of(*_SAMPLERS)
    for name in ("SCHEDULE_DELAY", "MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE", "EXPORT_TIMEOUT"):
        yield f"OTEL_BSP_{name}", positive
    for prefix in _PREFIXES:
        yield f"{prefix}PROTOCOL", _one_of("http/protobuf")
        yield f"{prefix}COMPRESSION", _one_of("none", "gzip", "deflate")
        yield f"{prefix}TIMEOUT", positive
        yield f"{prefix}ENDPOINT", (_is_url, "is malformed: not an http:// or https:// URL")
        for file in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"):
            yield f"{prefix}{file}", (_is_readable, "is malformed: not a file that can be read")


def _one_of(*allowed: str) -> _Check:
    return (lambda text: text.lower() in allowed), f"must be {' or '.join(allowed)}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


def _is_positive(text: str) -> bool:
    return 0 < _number(text) < float("inf")


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def _is_readable(text: str) -> bool:
    path = Path(text)
    return path.is_file() and os.access(path, os.R_OK)
