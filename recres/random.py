"""Random generators keyed by what they are for.

Every draw in recres comes from a generator keyed by (seed, epoch, item, purpose) and never from
one that others draw from too. So neither the order of the work, nor the number of workers or
ranks, nor a restart in the middle can change a draw.
"""

from __future__ import annotations

import hashlib
import operator

import numpy as np


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """A generator determined by `seed` and `key`, e.g. generator(7, epoch, item, "view").

    Equal arguments give equal streams in every process and on every machine; different ones give
    independent streams. Integers and strings are told apart: 1 is not "1". Raises TypeError for
    a key that is neither.
    """
    # Each part carries its type and length, so that no two keys spell the same text. A list of
    # words would not do: SeedSequence takes [1] and [1, 0] for the same entropy.
    digest = hashlib.blake2b(digest_size=16)
    for part in (seed, *key):
        text = part if isinstance(part, str) else str(operator.index(part))
        kind = "s" if isinstance(part, str) else "i"
        digest.update(f"{kind}{len(text)}:{text}".encode())
    entropy = int.from_bytes(digest.digest(), "little")
    return np.random.default_rng(np.random.SeedSequence(entropy))
