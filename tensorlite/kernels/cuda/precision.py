"""Whether products of float32 arrays may round their operands to TF32 on a GPU's tensor cores."""

from __future__ import annotations

_tf32 = False


def tf32() -> bool:
    """Whether TF32 is allowed; at first it is not."""
    return _tf32


def set_tf32(allowed: bool) -> None:
    """Allow products of float32 operands rounded to 10 bits of fraction, several times faster."""
    global _tf32
    _tf32 = bool(allowed)
