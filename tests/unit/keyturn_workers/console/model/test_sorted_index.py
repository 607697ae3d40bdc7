"""An order that is kept while single rows change."""

from __future__ import annotations

import random

from keyturn_workers.console.model.sorted_index import SortedIndex


def test_the_order_is_that_of_the_keys_after_any_changes() -> None:
    chance = random.Random(3)  # noqa: S311 - examples
    keys: dict[str, int] = {f"n{number}": number for number in range(50)}
    index = SortedIndex(keys.items())
    for _ in range(300):
        name = f"n{chance.randrange(60)}"
        if chance.random() < 0.2:
            keys.pop(name, None)
            index.remove(name)
        else:
            keys[name] = chance.randrange(20)
            index.put(name, keys[name])
    expected = sorted(keys, key=lambda name: (keys[name], name))
    assert index.names() == expected
    assert index.names(descending=True) == expected[::-1]
    assert index.names_below(7) == [name for name in expected if keys[name] < 7]
    assert len(index) == len(expected)
