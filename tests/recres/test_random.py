"""Keyed random generators."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from recres.random import generator

KEYS = [
    (0,), (1,), (1, 0), (0, 1), (0, 1, 2), (0, 12), (0, "1"), (0, "12"), (0, "1", "2"), (0, ""),
    (0, "view"), (0, "view", 3), (0, 3, "view"), (-1,), (2**32,), (2**64, "view"), (0, "i1:1"),
]  # fmt: skip


def test_equal_keys_give_equal_streams_and_others_different_ones():
    draws = [generator(*key).integers(2**63) for key in KEYS]
    assert draws == [generator(*key).integers(2**63) for key in KEYS]
    assert all(a != b for a, b in itertools.combinations(draws, 2))


def test_numpy_integers_are_integers():
    assert generator(np.int64(3), np.uint8(7)).random() == generator(3, 7).random()


def test_streams_are_the_same_on_every_machine():
    """A change here changes what every seed means."""
    assert generator(7, 2, 31, "view").integers(10**6, size=3).tolist() == [874520, 475966, 154048]


def test_a_key_of_another_type_is_refused():
    with pytest.raises(TypeError):
        generator(0, 1.5)
