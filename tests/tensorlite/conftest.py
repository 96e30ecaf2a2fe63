"""What tests of the engine share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tensorlite import kernels
from tensorlite.device import require_cuda
from tensorlite.kernels import cuda
from tensorlite.kernels.cuda.launch import running_on
from tests.cuda_on_cpu.emulator import Emulator, require_compiler, unset_memory


@contextlib.contextmanager
def emulated() -> Iterator[str]:
    """Inside, the CUDA kernels run, on the emulator, for arrays on the CPU."""
    with pytest.MonkeyPatch.context() as patch, unset_memory(), running_on(
        Emulator("shuffled")
    ):
        patch.setattr(kernels, "of", lambda array: cuda)
        yield "cpu"


@pytest.fixture(scope="session", params=["cpu", "emulator", "cuda:0"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each device in turn: the CPU, the CUDA kernels on their emulator, and a GPU, which is
    skipped, with the reason, where there is none."""
    if request.param == "emulator":
        require_compiler()
        with emulated() as name:
            yield name
        return
    if request.param != "cpu":
        try:
            require_cuda(request.param)
        except RuntimeError as missing:
            pytest.skip(str(missing))
    yield request.param


