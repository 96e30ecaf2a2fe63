"""What a trace costs, and how quickly its page steps: `python -m bench.trace`.

A ResNet-18's forward and backward with and without a recording, turn by turn in one process; then
the page of that recording in a headless Chromium, every step timed from the key to the next frame
drawn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tensorlite as tl
from recres.models import resnet18
from tensorlite import trace

from .browser import executable, visit

# Press the key that steps on; resolve when the frame that shows the step has been drawn.
STEP = """() => new Promise(done => {
    const began = performance.now();
    document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - began), 0));
})"""


def program(batch: int, size: int) -> Callable[[], object]:
    """A training step's forward and backward of a ResNet-18, 1000 classes, images of size²."""
    rng = np.random.default_rng(0)
    model = resnet18(1000, rng=0)
    images = tl.Tensor(rng.standard_normal((batch, size, size, 3)).astype(np.float32))
    labels = rng.integers(0, 1000, batch)

    def step() -> None:
        model.zero_grad()
        tl.cross_entropy(model(images), labels).backward()

    return step


def traced(step: Callable[[], object]) -> trace.Tape:
    """The recording of one step."""
    with trace.record("ResNet-18") as tape:
        step()
    return tape


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def step_times(file: Path, fragment: str = "") -> list[float]:
    """Milliseconds of each step of the page, from its start to its end."""
    with visit(file, fragment) as seen:
        count = seen.page.evaluate("Flow.tape.events.length")
        times = [float(seen.page.evaluate(STEP)) for _ in range(count)]
        if seen.page.evaluate("Flow.store.state.step") != count - 1 or seen.complaints:
            raise RuntimeError(f"the page did not step to its end: {seen.complaints}")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.trace", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    for batch, size in ((1, 224), (8, 112), (8, 224)):
        plain, with_trace = side_by_side(program(batch, size), args.rounds)
        print(f"ResNet-18, batch {batch}, {size} x {size}: {1e3 * plain:.0f} ms, traced "
              f"{1e3 * with_trace:.0f} ms, ratio {with_trace / plain:.2f}", flush=True)
    if executable() is None:
        print("no browser is installed: the page's steps are not timed")
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "flow.html"
        tape = traced(program(1, 224))
        tape.save_html(file)
        print(f"page: {file.stat().st_size / 1e6:.1f} MB, {len(tape.events)} steps")
        opened = ",".join(sorted({path for op in tape.ops for path in ancestors(op.module)}))
        for name, fragment in (("folded", ""), ("all modules open", f"open={opened}")):
            times = sorted(step_times(file, fragment))
            print(f"a step, {name}: median {statistics.median(times):.0f} ms, 95 % within "
                  f"{times[int(len(times) * 0.95)]:.0f} ms, all {times[-1]:.0f} ms", flush=True)


def side_by_side(step: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of a step without and with a recording, taken turn by turn."""
    plain, with_trace = [], []
    for measured in range(rounds + 1):
        times = seconds(step), seconds(lambda: traced(step))
        if measured:  # the first round warms up
            plain.append(times[0])
            with_trace.append(times[1])
    return statistics.median(plain), statistics.median(with_trace)


def ancestors(module: str | None) -> list[str]:
    """The path of a module and of all around it."""
    parts = module.split(".") if module else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


if __name__ == "__main__":
    main()
