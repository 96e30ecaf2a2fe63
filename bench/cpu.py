"""The engine beside PyTorch on the CPU: times of layers and whole networks, and their memory.

    python -m bench.cpu                         # the whole table: 20 minutes on 2 idle cores
    python -m bench.cpu --only resnet50 --only 'conv_56*_k3_*'
    python -m bench.cpu --json > results.json   # a list of objects; the rest goes to stderr

Each side of a row runs in its own process, in an environment without settings of BLAS and OpenMP
libraries, with the same number of threads. Before anything is timed, both compute the same thing
from the same numbers, and the row fails unless they agree. Then they take turns, A B, B A, …, and
a time is the median over the turns. PyTorch is tried in each of its variants (NCHW and channels
last; in the folded rows also with batch norms fused in eager mode or frozen into a graph) and the
fastest counts. Other engines: `pip install mygrad autograd`; without them their rows are skipped.

ratio: our time over the other's, so less is better; behind it the smallest and largest ratio
of a single turn. memory: peak of the whole process, of a whole network's rows.

Exit status: 0 done, 1 a row failed, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any

from bench.agreement import compare
from bench.rows import OURS, ROWS, Row, Side, arrays, select
from bench.sides import Child, Failed, Missing
from recres.commands import Parser, bar, run, say

PAIRS = 7
BUSY = 0.5  # mean number of running threads, over the last minute, of a machine that is not idle


def measure(row: Row, threads: int, pairs: int) -> tuple[dict[str, Any], dict[Side, str]]:
    """Check a row and time it; its entry in the JSON list, and what engines the sides are.

    A side whose package is missing is left out; Missing if no opponent remains.
    """
    with ExitStack() as stack:
        children = {side: stack.enter_context(closing(Child(side, threads))) for side in row.sides}
        about: dict[Side, str] = {}
        given = arrays(row)
        for side, child in tuple(children.items()):
            try:
                about[side] = child.build(row, given)
            except Missing:
                if side == OURS or len(children) == 2:
                    raise
                del children[side]
        ours = dict(children[OURS].results())
        for side, child in children.items():
            if side != OURS:
                compare(ours, child.results(), side, row.tolerance)
        for child in children.values():
            child.warm_up()
        seconds: dict[Side, list[float]] = {side: [] for side in children}
        for pair in range(pairs):
            for side in list(children)[:: -1 if pair % 2 else 1]:
                seconds[side].append(children[side].sample())
        memory = {side: child.peak_memory() for side, child in children.items()}
    return entry(row, seconds, memory, about), about


def entry(row: Row, seconds: dict[Side, list[float]], memory: dict[Side, int],
          about: dict[Side, str]) -> dict[str, Any]:
    medians = {side: median(times) for side, times in seconds.items()}
    best = min((side for side in medians if side != OURS), key=lambda side: medians[side])
    ratios = [a / b for a, b in zip(seconds[OURS], seconds[best], strict=True)]
    others = {side: side.variant or side.engine for side in medians if side != OURS}
    result: dict[str, Any] = {"name": row.name, "shapes": row.shapes,
                              "tensorlite_s": medians[OURS]}
    if best.engine == "pytorch":
        result |= {"pytorch_s": medians[best], "pytorch_variant": others[best]}
    else:
        result |= {"other_s": medians[best], "other": f"{about[best]} {best.variant}".rstrip()}
    result |= {"ratio": medians[OURS] / medians[best], "pairs": len(ratios),
               "spread": [min(ratios), max(ratios)],
               "variants_s": {name: medians[side] for side, name in others.items()}}
    if row.job == "network":
        result |= {"memory_ratio": memory[OURS] / memory[best],
                   "tensorlite_mb": memory[OURS] / 1e6, "pytorch_mb": memory[best] / 1e6,
                   "variants_mb": {name: memory[side] / 1e6 for side, name in others.items()}}
    return result


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def heading(threads: int, about: Iterable[str]) -> str:
    """The machine and what runs on it."""
    return ", ".join([time.strftime("%Y-%m-%d"), cpu_name(),
                      f"{threads} thread{'s' if threads > 1 else ''}",
                      f"Python {platform.python_version()}", *sorted(set(about))])


COLUMNS = (f"{'':46}{'ours':>10} {'theirs':>10}  {'their best':21}{'ratio':>6}  {'of a turn':13}"
           f"{'memory, MB':>14}{'ratio':>7}")


def line(result: dict[str, Any]) -> str:
    """A row of the table to read."""
    if "ratio" not in result:
        return f"{result['name']:46}" + (f"SKIPPED: {result['skipped']}" if "skipped" in result
                                         else f"FAILED: {result['failed']}")
    theirs = result.get("pytorch_s") or result["other_s"]
    low, high = result["spread"]
    text = (f"{result['name']:46}{1e3 * result['tensorlite_s']:7.2f} ms {1e3 * theirs:7.2f} ms  "
            f"{result.get('pytorch_variant') or result['other']:21}{result['ratio']:6.2f}  "
            f"{f'{low:.2f}–{high:.2f}':13}")
    if "memory_ratio" in result:
        text += (f"{result['tensorlite_mb']:6.0f} /{result['pytorch_mb']:6.0f}"
                 f"{result['memory_ratio']:7.2f}")
    return text.rstrip()


def benchmark(options: argparse.Namespace) -> int:
    rows = select(options.only, ROWS)
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > BUSY:
        print(f"warning: other programs are at work (load {load:.1f}); they slow the two sides "
              "down unequally", file=sys.stderr)
    results: list[dict[str, Any]] = []
    about: dict[Side, str] = {}
    show = (lambda text: None) if options.json else say
    with bar("", "s", total=round(sum(row.cost for row in rows))) as progress:
        for row in rows:
            progress.set_description_str(row.name)
            try:
                result, engines = measure(row, options.threads, options.pairs)
                if not about:
                    show(heading(options.threads, engines.values()) + "\n\n" + COLUMNS)
                about |= engines
            except Missing as reason:
                result = {"name": row.name, "shapes": row.shapes, "skipped": str(reason)}
            except Failed as reason:
                result = {"name": row.name, "shapes": row.shapes, "failed": str(reason)}
                progress.write(f"error: {row.name}: {reason}", file=sys.stderr)
            results.append(result)
            show(line(result))
            progress.update(row.cost)
    if options.json:
        print(heading(options.threads, about.values()), file=sys.stderr)
        print("[\n" + ",\n".join(json.dumps(result) for result in results) + "\n]")
    return 1 if any("failed" in result for result in results) else 0


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return value


def make_parser(module: str, description: str) -> Parser:
    """What the benchmarks of both devices are asked."""
    parser = Parser(module, description, less_memory="--only chooses smaller rows")
    parser.add_argument("--json", action="store_true", help="print a list of objects, nothing else")
    parser.add_argument("--only", metavar="NAME", action="append", default=[],
                        help="only this row, or those that begin so or match the pattern; may be "
                             "given several times")
    parser.add_argument("--pairs", metavar="N", type=positive, default=PAIRS,
                        help=f"turns of each side (default: {PAIRS})")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = make_parser("bench.cpu", "Compare the engine with PyTorch on the CPU.")
    parser.add_argument("--threads", metavar="N", type=positive, default=cores,
                        help="of each side (default: the cores that this process may use)")
    return run(parser, benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
