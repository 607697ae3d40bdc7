"""What the package offers is there, though it is imported late."""

from __future__ import annotations

import pytest

from keyturn_workers import amqp


def test_each_name_of_the_package_is_there() -> None:
    assert {getattr(amqp, name).__name__ for name in amqp.__all__} == set(amqp.__all__)


def test_another_name_is_not() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        _ = amqp.other
