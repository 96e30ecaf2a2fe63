"""The kernels for NVIDIA GPUs, with the names and signatures of `kernels.cpu`.

None is written yet: asking for one says so. Operations that need no kernel of their own
(arithmetic, reductions, reshaping) already run on CuPy arrays.
"""

from __future__ import annotations

from typing import NoReturn


def __getattr__(name: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(name)
    raise NotImplementedError(
        f"{name}: this version has no CUDA kernels yet; use device 'cpu'")
