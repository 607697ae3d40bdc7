"""How often a serving process looks for garbage: seldom (SPEC 7, 9).

Called once, when all that stays was loaded.
"""

import gc
from typing import Final

_THRESHOLD: Final = 50_000


def tame_garbage_collection() -> None:
    """Leave what was loaded at start out of collections, and collect less often.

    What a request makes is freed by reference counts; the cycles left over are few. With
    Python's own threshold of 700 objects a busy process collects hundreds of times a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_THRESHOLD)
