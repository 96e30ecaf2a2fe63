"""What can go wrong between processes, beside the death of one."""

from __future__ import annotations


class Missing(RuntimeError):
    """What several processes need is not there; the message is one line."""


class Diverged(RuntimeError):
    """Ranks do not hold the same parameters; the message is one line."""
