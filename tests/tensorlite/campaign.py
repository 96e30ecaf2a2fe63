"""How many examples the slower property tests draw: a few by default, more in the long campaign."""

from __future__ import annotations

from hypothesis import settings

DEFAULT = 20  # examples of the profile of that name (tests/conftest.py)


def examples(count: int) -> settings:
    """Settings that draw `count` examples by default, and more as the profile does."""
    return settings(max_examples=max(1, count * settings.default.max_examples // DEFAULT))
