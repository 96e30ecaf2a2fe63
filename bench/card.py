"""The GPU that both engines run on in one process: memory, time, and what the card can reach.

tensorlite allocates and launches through CuPy, PyTorch through itself; both work on the card's
default stream, so what one queues comes after what the other queued.
"""

from __future__ import annotations

import contextlib
import gc
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bench import on_tensorlite
from bench.cuda_rows import PRECISIONS
from bench.rows import LOSS_SCALE, Row, Run
from recres.errors import InputError
from tensorlite import Tensor, __version__
from tensorlite.device import Array, require_cuda, to_device
from tensorlite.precision import using

DEVICE = "cuda:0"

WARM_UP_SECONDS = 0.3
# A turn: so many steps that they last this long, but no fewer and no more than that. Of layers the
# launches of a whole turn are queued before it begins, and the queue holds about a thousand.
NETWORK_TURN = (0.2, 3, 20)
LAYER_TURN = (0.02, 5, 40)
MOST_HELD = 0.2  # seconds for which the card is kept waiting at most

COPY_BYTES = 1 << 30
PRODUCT_SIZE = 8192
CEILING_RUNS = 10

HOLD = r"""
extern "C" __global__ void hold(unsigned long long nanoseconds) {
    unsigned long long now, start;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - start < nanoseconds);
}
"""


class Ceilings(NamedTuple):
    """Bytes a second of a copy, counted as read and written; operations a second of a product, by
    precision."""

    bytes_per_s: float
    flops: dict[str, float]


def steps_in_turn(row: Row, seconds: float) -> int:
    """How many steps of that length make up a turn."""
    target, fewest, most = NETWORK_TURN if row.job == "network" else LAYER_TURN
    return min(most, max(fewest, math.ceil(target / seconds)))


def live_peak() -> Any:
    """A CuPy memory hook that knows the most bytes in use since `begin`, of what was allocated
    while it was on."""
    from cupy.cuda import MemoryHook

    class LivePeak(MemoryHook):
        def __init__(self) -> None:
            self.sizes: dict[int, int] = {}
            self.bytes = self.peak = 0

        def malloc_postprocess(self, **call: Any) -> None:
            self.bytes += call["mem_size"] - self.sizes.get(call["mem_ptr"], 0)
            self.sizes[call["mem_ptr"]] = call["mem_size"]
            self.peak = max(self.peak, self.bytes)

        def free_postprocess(self, **call: Any) -> None:
            self.bytes -= self.sizes.pop(call["mem_ptr"], 0)

        def begin(self) -> None:
            self.peak = self.bytes

    return LivePeak()


class Card:
    """The GPU. InputError, saying what is missing, where it or an engine cannot be used."""

    def __init__(self) -> None:
        try:
            self.cupy: Any = require_cuda(DEVICE)
        except RuntimeError as missing:
            raise InputError(str(missing)) from None
        try:
            import torch
        except ImportError:
            raise InputError("PyTorch, to compare with, is not installed") from None
        if not torch.cuda.is_available():
            raise InputError(f"PyTorch {torch.__version__} finds no CUDA device")
        torch.backends.cudnn.benchmark = True
        self.torch: Any = torch
        self._hold = self.cupy.RawKernel(HOLD, "hold")
        self.ceilings = self._measure_ceilings()

    def about(self) -> list[str]:
        """The card and what runs on it."""
        runtime = self.cupy.cuda.runtime
        properties = runtime.getDeviceProperties(0)
        driver = runtime.driverGetVersion()
        return [
            f"{properties['name'].decode()} ({properties['totalGlobalMem'] / 1e9:.0f} GB)",
            f"driver for CUDA {driver // 1000}.{driver % 1000 // 10}",
            f"Python {platform.python_version()}", f"tensorlite {__version__}",
            f"CuPy {self.cupy.__version__}", f"PyTorch {self.torch.__version__}",
            f"cuDNN {self.torch.backends.cudnn.version()}"]

    @contextlib.contextmanager
    def precision(self, name: str) -> Iterator[None]:
        """Inside, both engines multiply float32 numbers so; which of PyTorch's are 16 bits is said
        by the variant."""
        backends = self.torch.backends

        def allow(tf32: bool) -> None:
            backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = tf32

        allow(name == "tf32")
        try:
            with using(name):
                yield
        finally:
            allow(False)

    def ours(self, row: Row, given: Mapping[str, np.ndarray]) -> Player:
        return Ours(self, row, given)

    def theirs(self, row: Row, variant: str, given: Mapping[str, np.ndarray]) -> Player:
        return Theirs(self, row, variant, given)

    def release(self) -> None:
        """Give back what PyTorch keeps for a side that is gone."""
        self.torch.compiler.reset()
        gc.collect()
        self.torch.cuda.empty_cache()

    def usable(self) -> bool:
        """Whether the process can still work with the card: an error inside a kernel ends that."""
        try:
            self.wait()
        except Exception:
            return False
        return True

    def wait(self) -> None:
        self.cupy.cuda.runtime.deviceSynchronize()

    def hold(self, seconds: float) -> None:
        """Keep the card busy, so that what is queued from here on begins later."""
        self._hold((1,), (1,), (np.uint64(seconds * 1e9),))

    def _measure_ceilings(self) -> Ceilings:
        cupy, torch = self.cupy, self.torch
        source, target = cupy.zeros(COPY_BYTES, np.uint8), cupy.empty(COPY_BYTES, np.uint8)
        copy = self._quickest(lambda: cupy.copyto(target, source))
        flops = {}
        for name in PRECISIONS:
            dtype = torch.float16 if name == "float16" else torch.float32
            a, b = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device=DEVICE, dtype=dtype)
                    for _ in range(2))
            with self.precision(name):
                flops[name] = 2 * PRODUCT_SIZE**3 / self._quickest(partial(torch.mm, a, b))
        return Ceilings(2 * COPY_BYTES / copy, flops)

    def _quickest(self, run: Callable[[], Any]) -> float:
        """Seconds of the quickest run, by events."""
        seconds = math.inf
        for _ in range(CEILING_RUNS):
            begin, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
            begin.record()
            run()
            end.record()
            end.synchronize()
            seconds = min(seconds, self.cupy.cuda.get_elapsed_time(begin, end) / 1e3)
        return seconds


class Player:
    """A side of a row on the card: what it computed once, its peak of memory, and its turns."""

    results: dict[str, Array]  # until it has settled, where they are PyTorch's
    peak_memory: int

    def __init__(self, card: Card, row: Row, run: Run) -> None:
        self.card, self.row, self.run, self.steps, self.queueing = card, row, run, 1, 0.0

    def settle(self) -> None:
        """Warm up, and measure the peak of memory."""
        raise NotImplementedError

    def warm_up(self) -> None:
        """Run until everything has settled, and find out how many steps make up a turn."""
        count, began, seconds = 0, time.perf_counter(), math.inf
        while count < 3 or time.perf_counter() - began < WARM_UP_SECONDS:
            start = time.perf_counter()
            self.run()
            queued = time.perf_counter() - start
            self.card.wait()
            seconds, count = min(seconds, time.perf_counter() - start), count + 1
            self.queueing = queued if count == 1 else min(self.queueing, queued)
        self.steps = steps_in_turn(self.row, seconds)

    def turn(self) -> float:
        """Seconds of a step. Layers are queued while the card is held back, so that their time is
        the card's; that of a network's step is what it takes, waiting for the host included."""
        begin, end = self.event(), self.event()
        if self.row.job != "network":
            self.card.hold(min(MOST_HELD, 1.5 * self.steps * self.queueing + 1e-4))
        begin.record()
        for _ in range(self.steps):
            self.run()
        end.record()
        end.synchronize()
        return self.elapsed(begin, end) / 1e3 / self.steps

    def event(self) -> Any:
        raise NotImplementedError

    def elapsed(self, begin: Any, end: Any) -> float:
        """Milliseconds between two events."""
        raise NotImplementedError


class Ours(Player):
    def __init__(self, card: Card, row: Row, given: Mapping[str, np.ndarray]) -> None:
        card.cupy.get_default_memory_pool().free_all_blocks()
        with live_peak() as memory:
            super().__init__(card, row, on_tensorlite.make(row, iter(given.items()), DEVICE))
            # Results of a network go to the host, those of layers stay: they are large, and quickly
            # compared there, and nobody asks for the memory.
            place = "cpu" if row.job == "network" else DEVICE
            self.results = {
                name: to_device(value.data if isinstance(value, Tensor) else value, place).copy()
                for name, value in self.run().items()}
        if row.phase == "train" and row.precision == "float16":
            # Adam takes the scale out on its way; PyTorch's writes the gradients back without it.
            for name, value in self.results.items():
                if name.startswith("grad."):
                    value /= LOSS_SCALE
        self.memory = memory
        self.settle()

    def settle(self) -> None:
        with self.memory:
            self.warm_up()
            self.memory.begin()
            self.run()
            self.card.wait()
        self.peak_memory = self.memory.peak

    def event(self) -> Any:
        return self.card.cupy.cuda.Event()

    def elapsed(self, begin: Any, end: Any) -> float:
        return self.card.cupy.cuda.get_elapsed_time(begin, end)


class Theirs(Player):
    def __init__(self, card: Card, row: Row, variant: str, given: Mapping[str, np.ndarray]) -> None:
        from bench import on_pytorch

        super().__init__(card, row, on_pytorch.make(row, variant, iter(given.items()), DEVICE))
        self.results = {
            name: on_pytorch.to_numpy(name, value) if row.job == "network"
            else card.cupy.from_dlpack(on_pytorch.in_our_order(name, value))
            for name, value in self.run().items()}

    def settle(self) -> None:
        self.results = {}  # which are PyTorch's memory
        self.warm_up()
        cuda = self.card.torch.cuda
        cuda.reset_peak_memory_stats()
        self.run()
        self.card.wait()
        self.peak_memory = cuda.max_memory_allocated()

    def event(self) -> Any:
        return self.card.torch.cuda.Event(enable_timing=True)

    def elapsed(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end)
