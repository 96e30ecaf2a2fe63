"""A hunt for a wrong gradient: python docs/lessons/hunt.py 3

Runs a small program of the lesson's kind on an engine with a bug (reading on in this file spoils
the hunt) and writes pages/hunt_03.html, where each step of backward shows its gradients beside
those of central differences. The bug is one of these:

    no-accumulation   where paths meet, the last piece replaces the sum
    same-frame        a temporal skip's weights are paired with the same frame's input
    norm-means        a batch norm's gradient lacks its two means
    broadcast         what was repeated forward is not summed backward
    padding           a convolution's gradient is cut out one pixel off
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tensorlite as tl
from tensorlite import trace

PAGES = Path(__file__).resolve().parent / "pages"
HUNTS = {3: "broadcast", 4: "padding", 5: "norm-means", 6: "no-accumulation", 7: "same-frame"}


def _tensors(*shapes: tuple[int, ...]) -> list[tl.Tensor]:
    rng = np.random.default_rng(0)
    return [tl.Tensor(rng.standard_normal(shape).round(1), requires_grad=True) for shape in shapes]


def program_3() -> None:
    D, w, b, target = _tensors((2, 4), (4, 1), (1, 1), (2, 1))
    d = D @ w + b - target
    (d * d).mean().backward()


def program_4() -> None:
    x, W, target = _tensors((1, 1, 6, 2), (1, 3, 2, 2), (1, 1, 6, 2))
    d = tl.conv2d(x, W, padding=(0, 1)) - target
    (d * d).mean().backward()


def program_5() -> None:
    z, gamma, beta, target = _tensors((4, 1), (1,), (1,), (4, 1))
    d = tl.batch_norm(z, gamma, beta, np.zeros(1), np.ones(1)) - target
    (d * d).mean().backward()


def program_6() -> None:
    x, w = _tensors((3,), (3,))
    y = x + (w * x).tanh()
    y.sum().backward()


def program_7() -> None:
    x, W, W_s = _tensors((3, 1, 4, 1), (1, 1, 1, 1), (1, 1, 1, 1))
    x = trace.frames(x, axis=0)
    y = tl.block_join(tl.conv2d(x, W), x, tl.conv2d(x, W_s), frames=3)
    y[-1:].sum().backward()


PROGRAMS: dict[int, Callable[[], None]] = {
    3: program_3, 4: program_4, 5: program_5, 6: program_6, 7: program_7}


@functools.cache
def recorded(lesson: int) -> trace.Tape:
    """The hunt's program, run with its bug."""
    with trace.record(f"Hunt {lesson}", check=True) as tape, trace.inject(HUNTS[lesson]):
        PROGRAMS[lesson]()
    return tape


def located(lesson: int) -> str:
    """The op at which backward first parts from the differences."""
    tape = recorded(lesson)
    return next(tape.ops[event.op].op for event in tape.events if event.op is not None
                and any(not piece.sum_right or piece.check is not None and not piece.check.right
                        for piece in event.pieces))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the page of a hunt for a wrong gradient.")
    parser.add_argument("lesson", type=int, choices=sorted(HUNTS))
    lesson = parser.parse_args().lesson
    PAGES.mkdir(exist_ok=True)
    page = PAGES / f"hunt_{lesson:02}.html"
    recorded(lesson).save_html(page)
    print(page)


if __name__ == "__main__":
    main()
