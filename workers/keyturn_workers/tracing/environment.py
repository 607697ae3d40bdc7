"""OpenTelemetry's own variables, checked before they are used. Pure; no I/O but for files' names.

The SDK ignores most values that it cannot read, and says so in a log line at best. Here each one
stops the process, as a setting of Keyturn does (SPEC 11).
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from keyturn.errors import SettingsError

_SIGNALS: Final = ("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_")
_SAMPLERS: Final = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
_DEFAULT_ENDPOINT: Final = "http://localhost:4318"
_NUMBERS: Final = (
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_EXPORT_TIMEOUT",
)


def is_disabled(environ: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's own switch turns it off."""
    return environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def receiver(environ: Mapping[str, str]) -> str:
    """Host and port of the receiver, for log lines: an address may hold a password."""
    url = urlsplit(_exporting(environ, "ENDPOINT") or _DEFAULT_ENDPOINT)
    return url.netloc.rpartition("@")[2]


def root_ratio(environ: Mapping[str, str]) -> float:
    """The fraction of root spans that the sampler records, from 0 to 1.

    Args:
        environ: Checked by `check_environment`.
    """
    sampler = environ.get("OTEL_TRACES_SAMPLER", "").lower()
    if sampler.endswith("traceidratio"):
        return float(environ["OTEL_TRACES_SAMPLER_ARG"])
    return 0.0 if sampler.endswith("always_off") else 1.0


def check_environment(environ: Mapping[str, str]) -> None:
    """Check what the SDK will read.

    Raises:
        SettingsError: one line that names the variable, and not its value.
    """
    _check(environ, "OTEL_TRACES_EXPORTER", ("otlp",))
    # The SDK takes a name with a space for an unknown one, and records everything.
    _check(environ, "OTEL_TRACES_SAMPLER", _SAMPLERS, strip=False)
    _check_ratio(environ)
    for name in _NUMBERS:
        _check_with(environ, name, _is_positive, "not a positive number")
    for prefix in _SIGNALS:
        _check(environ, f"{prefix}PROTOCOL", ("http/protobuf",))
        _check(environ, f"{prefix}COMPRESSION", ("none", "gzip", "deflate"))
        _check_with(environ, f"{prefix}TIMEOUT", _is_positive, "not a positive number")
        _check_with(environ, f"{prefix}ENDPOINT", _is_url, "not an http:// or https:// URL")
        for file in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"):
            _check_with(environ, f"{prefix}{file}", _is_readable, "not a file that can be read")


def _check(
    environ: Mapping[str, str], name: str, allowed: tuple[str, ...], *, strip: bool = True
) -> None:
    value = environ.get(name, "").lower()
    if strip:
        value = value.strip()
    if value and value not in allowed:
        raise SettingsError(f"{name} must be {' or '.join(allowed)}")


def _check_ratio(environ: Mapping[str, str]) -> None:
    name = "OTEL_TRACES_SAMPLER_ARG"
    if not environ.get("OTEL_TRACES_SAMPLER", "").strip().lower().endswith("traceidratio"):
        return
    if name not in environ:
        # The SDK would record everything.
        raise SettingsError(f"{name} is missing: the share of traces to record, from 0 to 1")
    if not 0 <= _number(environ[name]) <= 1:
        raise SettingsError(f"{name} is malformed: not a number from 0 to 1")


def _check_with(
    environ: Mapping[str, str], name: str, is_valid: Callable[[str], bool], problem: str
) -> None:
    value = environ.get(name, "").strip()
    if value and not is_valid(value):
        raise SettingsError(f"{name} is malformed: {problem}")


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


def _exporting(environ: Mapping[str, str], name: str) -> str | None:
    return next((value for prefix in _SIGNALS if (value := environ.get(f"{prefix}{name}"))), None)
