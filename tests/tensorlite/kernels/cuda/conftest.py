"""What the tests of CUDA kernels share: the emulator, in each order in which it runs threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tensorlite.kernels.cuda.launch import running_on
from tests.cuda_on_cpu.emulator import SCHEDULES, Emulator, require_compiler, unset_memory


@pytest.fixture(scope="session")
def schedules() -> tuple[str, ...]:
    """All orders; a test that asks for them needs g++."""
    require_compiler()
    return SCHEDULES


@pytest.fixture(params=SCHEDULES)
def emulator(request: pytest.FixtureRequest, schedules: tuple[str, ...]) -> Iterator[Emulator]:
    """Kernels launched on NumPy arrays run in the emulator, in each order in turn; fresh arrays are
    full of NaN."""
    runner = Emulator(request.param)
    with running_on(runner), unset_memory():
        yield runner
