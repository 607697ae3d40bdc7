"""The search for a wrap goes by no label: every value, role, format and likely generation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyturn.crypto import Secret, new_dek, to_base64, v0_seal, wrap_dek
from keyturn_workers.verify import VerificationKeys
from keyturn_workers.verify.object_check import find_wrap, is_wrap_sized

KEK = Secret(b"k" * 32)
OTHER = Secret(b"o" * 32)
KEYS = VerificationKeys("acme", "user", {"": KEK})


def _wrap(role: str = "user", algorithm: str = "Cobblestone-256", generation: int = 1) -> bytes:
    return wrap_dek(
        KEK,
        role,  # type: ignore[arg-type]
        algorithm=algorithm,
        project="acme",
        object_key="k",
        generation=generation,
        dek=new_dek(),
    )


def _find(wrap: bytes, keys: VerificationKeys = KEYS, label: str = "") -> str | None:
    metadata = {"enc-x": to_base64(wrap), "enc-kek-user": label, "enc-algo": "deleted"}
    return find_wrap(metadata, "k", keys)


@pytest.mark.parametrize("role", ["user", "admin"])
@pytest.mark.parametrize("algorithm", ["Cobblestone-256", "AES-256-GCM"])
def test_every_role_and_algorithm_is_tried(role: str, algorithm: str) -> None:
    expected = f"enc-x opens as the {role} wrap of generation 7, for {algorithm}"
    assert _find(_wrap(role, algorithm, 7)) == expected
    assert _find(_wrap(role, algorithm, 7), replace(KEYS, keks={"a": OTHER, "b": KEK})) == expected
    assert _find(_wrap(role, algorithm, 7), replace(KEYS, keks={"a": OTHER})) is None


@pytest.mark.parametrize(
    ("generation", "label", "given", "found"),
    [
        (1, "", (), True),
        (32, "", (), True),
        (33, "", (), False),
        (33, "", (33,), True),
        (33, "1:0", (), True),
        (34, "1:0", (), False),
        (1, "500:0", (), True),
        (32, "500:0", (), True),
        (33, "500:0", (), False),
        (467, "500:0", (), False),
        (468, "500:0", (), True),
        (500, "500:0", (), True),
        (532, "500:0", (), True),
        (533, "500:0", (), False),
        (533, "500:0", (40, 533), True),
        (40, "041:9f86d081884c7d65", (), True),
        (40, "41", (), True),
        (40, "x41", (), False),
    ],
)
def test_the_generations_are_the_labeled_its_neighbors_the_first_and_those_given(
    generation: int, label: str, given: tuple[int, ...], *, found: bool
) -> None:
    keys = replace(KEYS, generations=given)
    assert (_find(_wrap(generation=generation), keys, label) is not None) is found


def test_v0_wraps_are_tried_under_each_key_that_is_known() -> None:
    wrap = v0_seal(OTHER.reveal(), new_dek())
    assert _find(wrap) is None
    assert _find(wrap, replace(KEYS, v0_kek=OTHER)) == "enc-x opens as a v0 wrap"
    assert _find(wrap, replace(KEYS, keks={"": OTHER})) == "enc-x opens as a v0 wrap"


def test_a_wrap_of_another_place_is_no_finding() -> None:
    """It opens nothing here: its context names its own place."""
    metadata = {"enc-dek-user": to_base64(_wrap())}
    assert find_wrap(metadata, "other", KEYS) is None
    assert find_wrap(metadata, "k", replace(KEYS, project="other")) is None
    assert find_wrap({"dek-user": to_base64(_wrap())}, "k", KEYS) is None


def test_no_spelling_hides_a_wrap() -> None:
    text = to_base64(_wrap())
    assert text.endswith("=")
    stray = text[:-2] + chr(ord(text[-2]) + 1) + "="
    for spelling in (
        text,
        text.rstrip("="),
        text + "=",
        text.replace("+", "-").replace("/", "_"),
        f" {text[:50]}\r\n\t{text[50:]} ",
        f"{text[:50]}!{text[50:]}",
        stray,
    ):
        assert is_wrap_sized(spelling)
        assert find_wrap({"enc-x": spelling}, "k", KEYS) is not None, spelling


@pytest.mark.parametrize("value", ["", "=", "A", "é", "AAAA", "A" * 136, "2:9f86d081884c7d65"])
def test_what_is_not_as_long_as_a_wrap_is_not_tried(value: str) -> None:
    assert not is_wrap_sized(value)
    assert find_wrap({"enc-x": value}, "k", KEYS) is None
