"""The parts of the compose test that decide something without an engine."""

from __future__ import annotations

import socket

import yaml

from tools.containers.compose_test import PORTS, counted, taken_ports
from tools.containers.images import ROOT

_METRICS = """\
# HELP keyturn_requests_served_total Requests served, by the event published.
keyturn_requests_served_total{type="upload.stored"} 12.0
keyturn_requests_served_total{type="upload.rejected"} 3.0
keyturn_sweep_objects_total{outcome="wrapped"} 5.0
keyturn_sweep_objects_total{outcome="current"} 2.0
"""


def test_a_counter_is_summed_over_its_series() -> None:
    assert counted(_METRICS, 'keyturn_requests_served_total{type="upload.stored"}') == 12
    assert counted(_METRICS, "keyturn_sweep_objects_total") == 7
    assert counted(_METRICS, "keyturn_nothing") == 0


def test_the_ports_are_those_that_compose_publishes() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    published = {
        name: port for name, service in services.items() for port in service.get("ports", ())
    }
    assert published == {name: f"127.0.0.1:{port}:{port}" for name, port in PORTS.items()}


def test_a_port_in_use_is_found() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", PORTS["console"]))
        except OSError:
            assert PORTS["console"] in taken_ports()
            return
        listener.listen()
        assert PORTS["console"] in taken_ports()
