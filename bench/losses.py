"""Whether a training run on a GPU follows the same run on the CPU: their losses beside each other.

    python -m bench.losses CPU_RUN GPU_RUN --precision tf32

The first loss is that of the same weights on the same chunks, and differs by rounding alone. The
updates after it feed rounding back: two runs on a CPU, with 1 and with 2 threads, were 2e-4, 4e-4
and 3e-3 apart in the next three losses, up to 8e-2 later, and 4e-3 in the mean of 38. So the next
three, and the mean over all updates, are compared more loosely.

Exit status: 0 it does, 1 it does not, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from bench.cuda_rows import PRECISIONS
from recres.commands import Parser, run
from recres.errors import InputError
from recres.runs import read_metrics

# Largest relative difference of the first loss, of the next NEXT, and of the mean.
ALLOWED = {"float32": (1e-5, 2e-2, 5e-2), "tf32": (2e-3, 4e-2, 5e-2), "float16": (5e-3, 4e-2, 5e-2)}
NEXT, SHOWN = 3, 10


def losses(folder: Path) -> list[float]:
    """Of every update of a run."""
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


def compare(reference: Sequence[float], other: Sequence[float], precision: str) -> list[str]:
    """What is too far apart, in words."""
    first, following, mean = ALLOWED[precision]
    if len(reference) != len(other) or len(reference) <= NEXT:
        return [f"{len(reference)} and {len(other)} updates"]
    pairs = [*zip(reference, other, [first] + NEXT * [following], strict=False),
             (fmean(reference), fmean(other), mean)]
    names = [*(f"loss {i + 1}" for i in range(NEXT + 1)), "mean"]
    return [f"{name}: {a:.6f} and {b:.6f} differ by {abs(b / a - 1):.1e}, allowed are {allowed:.0e}"
            for name, (a, b, allowed) in zip(names, pairs, strict=True)
            if not abs(b / a - 1) <= allowed]


def show(options: argparse.Namespace) -> int:
    reference, other = losses(options.reference), losses(options.run)
    if not reference:
        raise InputError(f"{options.reference}: no updates of a run there")
    print(f"{'update':>6}{'reference':>12}{options.precision:>12}{'difference':>12}")
    for number, (a, b) in enumerate(zip(reference[:SHOWN], other, strict=False), start=1):
        print(f"{number:6}{a:12.6f}{b:12.6f}{abs(b / a - 1):12.1e}")
    wrong = compare(reference, other, options.precision)
    if other:
        print(f"{'mean':>6}{fmean(reference):12.6f}{fmean(other):12.6f}")
    for text in wrong:
        print(f"error: {text}", file=sys.stderr)
    return 1 if wrong else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("bench.losses", "Compare the losses of a run on a GPU with those on the CPU.",
                    less_memory="")
    parser.add_argument("reference", type=Path, help="folder of the run on the CPU")
    parser.add_argument("run", type=Path, help="folder of the other run")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    return run(parser, show, argv)


if __name__ == "__main__":
    sys.exit(main())
