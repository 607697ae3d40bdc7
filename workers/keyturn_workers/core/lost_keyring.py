"""The generations of a keyring that was lost, of which a mark knows the customer keys. Pure.

See SPEC 5.4 and 5.5. Without these keys, the objects at those generations would be lost, too.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from keyturn.errors import GenerationMismatchError
from keyturn.request_origin import RequestOrigin
from keyturn_workers.core.customer_keys import CustomerKey
from keyturn_workers.core.keyring import Generation, Keyring

UNKNOWN_KEK_ID: Final = "0" * 16
"""The KEK id of such a generation."""


def lost_generations(
    customer_keys: Mapping[int, CustomerKey], created: Generation, origin: RequestOrigin | None
) -> tuple[Generation, ...]:
    """Entries for generations of a lost keyring: only their customer keys are known, by a mark.

    The rest is that of the generation that was created when they were found.
    """
    return tuple(
        replace(
            created,
            generation=generation,
            kek_id=UNKNOWN_KEK_ID,
            kek=None,
            origin=origin,
            customer_key=customer_key,
        )
        for generation, customer_key in sorted(customer_keys.items())
    )


def take_over(
    keyring: Keyring,
    customer_keys: Mapping[int, CustomerKey],
    *,
    above: int,
    recovery: str,
    at: str,
) -> Keyring:
    """A restored keyring, with the customer keys of a later one that it lacks (SPEC 5.5).

    `above` is the later one's current generation. The later one's generations with a customer key
    join the history, and the keyring's own current generation is repeated above all of them.
    Otherwise the objects at lost generations would be refused for ever, or a later rotation would
    give the number of one to another secret, by which no plain wrap there opens. The repeated
    generation has the newest customer key: no wrap may need less than before.

    `recovery` is the id of the request that accepts the keyring.

    Raises:
        GenerationMismatchError: a generation of both has different customer keys.
    """
    known = {entry.generation: entry for entry in (*keyring.history, keyring.current)}
    for generation in known.keys() & {above, *customer_keys}:
        marked = customer_keys.get(generation)
        if known[generation].secret_id != (marked and marked.secret_id):
            raise GenerationMismatchError(
                f"the record and the mark have different customer keys at generation {generation}: "
                "restore the newest record, or remove this one and enroll with adopt"
            )
    lost = {number: key for number, key in customer_keys.items() if number not in known}
    if not lost and above <= keyring.current.generation:
        return keyring
    every = {**customer_keys, **keyring.customer_keys}
    repeated = replace(
        keyring.current,
        generation=max(above, keyring.current.generation) + 1,
        rotation_id=recovery,
        at=at,
        customer_key=every[max(every)] if every else None,
    )
    before = replace(keyring.current, origin=keyring.origin)
    # Without an origin: these generations are no rotations, whose ends would be published.
    entries = (*keyring.history, before, *lost_generations(lost, repeated, None))
    return replace(
        keyring,
        current=repeated,
        origin=None,
        plaintext_allowed=keyring.plaintext_allowed and not every,
        history=tuple(sorted(entries, key=lambda entry: entry.generation)),
    )
