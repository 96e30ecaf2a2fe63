"""The engine beside PyTorch on one GPU, in one process: times, rates and memory.

    python -m bench.cuda                           # the whole table
    python -m bench.cuda --only resnet50_train --only 'conv_56*_float16'
    python -m bench.cuda --json > results.json     # a list of objects; the rest goes to stderr
    python -m bench.cuda --results rows.jsonl      # goes on where an earlier call ended

A row computes in the precision at the end of its name: float32 is exact, tf32 rounds what is
multiplied to 10 bits of fraction, float16 has 16 bits in memory and on the tensor cores, and sums
and weights in float32. Before anything is timed, both sides compute the same from the same
numbers, and what a variant of PyTorch is off by more than the precision's tolerance
(`bench.cuda_rows`) is left out with its reason; the row fails if none is left. Then our side takes
turns with each variant, A B, B A, …: several steps a turn between two CUDA events, after warming
up, and a time is the median over the turns. The fastest variant counts: NCHW or channels last with
cuDNN's benchmark mode, autocast or 16-bit weights, norms folded, torch.compile.

ratio: our time over PyTorch's, so less is better. TFLOP/s and GB/s: what a perfect program would
have to do (`bench.work`) over our time, and beside it the share of what a big product and a copy of
1 GB reached on the same card. memory, of networks: the most bytes of arrays in use at once, in a
step that has warmed up, of either engine's pool; library handles and code are not in it.

Exit status: 0 done, 1 a row failed, 2 no such machine or wrong arguments, 3 an error on the card
ended its work: with --results, another call does the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from bench.agreement import compare
from bench.card import Card, Ceilings, Player
from bench.cpu import make_parser
from bench.cuda_rows import ROWS
from bench.rows import OURS, Row, arrays, select
from bench.sides import Failed
from bench.work import work
from recres.commands import bar, run, say
from tensorlite.io import replacing

LOST = 3


class Turns(NamedTuple):
    """Seconds of a step, turn by turn: ours, and those of the variant that we alternated with."""

    ours: list[float]
    theirs: list[float]


def alternate(ours: Player, theirs: Player, pairs: int) -> Turns:
    """A B, B A, …"""
    turns = Turns([], [])
    sides = [(turns.ours, ours), (turns.theirs, theirs)]
    for pair in range(pairs):
        for seconds, side in sides[:: -1 if pair % 2 else 1]:
            seconds.append(side.turn())
    return turns


def measure(row: Row, given: Mapping[str, np.ndarray], pairs: int, card: Card) -> dict[str, Any]:
    """Check a row and time it; its entry in the JSON list. Failed if we, or all of PyTorch's
    variants, fail."""
    turns: dict[str, Turns] = {}
    memory: dict[str, int] = {}
    failed: dict[str, str] = {}
    with card.precision(row.precision):
        try:
            ours = card.ours(row, given)
        except Exception as error:
            raise Failed(f"{OURS}: {short(error)}") from error
        for side in row.sides[1:]:
            try:
                theirs = card.theirs(row, side.variant, given)
                compare(ours.results, theirs.results.items(), side, row.tolerance)
                theirs.settle()
                turns[side.variant] = alternate(ours, theirs, pairs)
                memory[side.variant] = theirs.peak_memory
            except Exception as error:
                failed[side.variant] = short(error)
            theirs = None  # type: ignore[assignment]  # what it holds is wanted for the next
            card.release()
    if not turns:
        raise Failed("; ".join(dict.fromkeys(failed.values())))
    return entry(row, turns, ours.peak_memory, memory, failed, card.ceilings)


def short(error: Exception) -> str:
    """An error in one line, of those that go on for pages the beginning."""
    text = " ".join(str(error).split())
    text = text if len(text) < 300 else text[:300] + " …"
    return text if isinstance(error, Failed) else f"{type(error).__name__}: {text}".rstrip(": ")


def best(turns: Mapping[str, Turns]) -> str:
    """The fastest variant."""
    return min(turns, key=lambda name: median(turns[name].theirs))


def entry(row: Row, turns: Mapping[str, Turns], our_memory: int, memory: Mapping[str, int],
          failed: Mapping[str, str], ceilings: Ceilings) -> dict[str, Any]:
    """A row's object in the JSON list. Our time is that of the turns with the best variant."""
    variant = best(turns)
    chosen = turns[variant]
    ours, theirs = median(chosen.ours), median(chosen.theirs)
    ratios = [a / b for a, b in zip(chosen.ours, chosen.theirs, strict=True)]
    least = work(row)
    result: dict[str, Any] = {
        "name": row.name, "shapes": row.shapes, "precision": row.precision, "tensorlite_s": ours,
        "pytorch_s": theirs, "pytorch_variant": variant, "ratio": ours / theirs,
        "pairs": len(ratios), "spread": [min(ratios), max(ratios)],
        "variants_s": {name: median(each.theirs) for name, each in turns.items()},
        "failed_variants": dict(failed), "flop": least.flops, "least_bytes": least.bytes,
        "tensorlite_flops": least.flops / ours, "pytorch_flops": least.flops / theirs,
        "ceiling_flops": ceilings.flops[row.precision],
        "tensorlite_bytes_per_s": least.bytes / ours, "pytorch_bytes_per_s": least.bytes / theirs,
        "ceiling_bytes_per_s": ceilings.bytes_per_s}
    if row.job == "network":
        result |= {"memory_ratio": our_memory / memory[variant], "tensorlite_mb": our_memory / 1e6,
                   "pytorch_mb": memory[variant] / 1e6,
                   "variants_mb": {name: size / 1e6 for name, size in memory.items()}}
    return result


def heading(about: Iterable[str], ceilings: Ceilings) -> str:
    """The machine, what runs on it, and what it can do."""
    products = ", ".join(f"{name} {flops / 1e12:.0f}" for name, flops in ceilings.flops.items())
    return (", ".join([time.strftime("%Y-%m-%d"), *about])
            + f"\ncopy {ceilings.bytes_per_s / 1e9:.0f} GB/s, products in TFLOP/s: {products}")


COLUMNS = (f"{'':48}{'ours':>10} {'theirs':>10}  {'their best':31}{'ratio':>6}  {'of a turn':11}"
           f"{'TFLOP/s':>8}{'GB/s':>13}{'memory, MB':>17}{'ratio':>7}")


def line(result: Mapping[str, Any]) -> str:
    """A row of the table to read."""
    if "failed" in result:
        return f"{result['name']:48}FAILED: {result['failed']}"
    low, high = result["spread"]
    flops = share(result["tensorlite_flops"], result["ceiling_flops"], 1e12)
    moved = share(result["tensorlite_bytes_per_s"], result["ceiling_bytes_per_s"], 1e9)
    text = (f"{result['name']:48}{1e3 * result['tensorlite_s']:7.3f} ms "
            f"{1e3 * result['pytorch_s']:7.3f} ms  {result['pytorch_variant']:31}"
            f"{result['ratio']:6.2f}  {f'{low:.2f}–{high:.2f}':10}{flops:>10}{moved:>12}")
    if "memory_ratio" in result:
        text += (f"{result['tensorlite_mb']:8.0f} /{result['pytorch_mb']:6.0f}"
                 f"{result['memory_ratio']:7.2f}")
    for variant, reason in result["failed_variants"].items():
        text += f"\n    without {variant}: {reason}"
    return text


def share(achieved: float, ceiling: float, unit: float) -> str:
    """In a unit, and in percent of a ceiling; nothing where nothing was to be done."""
    return f"{achieved / unit:.0f} {100 * achieved / ceiling:3.0f}%" if achieved else ""


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by name, from a file of JSON lines that may end in half a line, or not be there."""
    found: dict[str, dict[str, Any]] = {}
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if text.endswith("\n"):
                result = json.loads(text)
                found[result["name"]] = result
    return found


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Add a row to the file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def benchmark(options: argparse.Namespace) -> int:
    rows = select(options.only, ROWS)
    card = Card()
    kept: dict[str, dict[str, Any]] = {}
    if options.results:
        kept = read_results(options.results)
        with replacing(options.results) as beside:  # without half a line at its end
            beside.touch()
            for result in kept.values():
                write_result(beside, result)
    text = heading(card.about(), card.ceilings)
    show = (lambda text: None) if options.json else say
    show(text + "\n\n" + COLUMNS)
    results: list[dict[str, Any]] = []
    lost, given, made_for = False, {}, None
    with bar("", "s", total=round(sum(row.cost for row in rows))) as progress:
        for row in rows:
            progress.set_description_str(row.name)
            if row.name in kept:
                result = kept[row.name]
            else:
                needs = (row.job, row.shapes, row.options, row.activations == "float16")
                if needs != made_for:  # neighbours share
                    given, made_for = arrays(row), needs
                try:
                    result = measure(row, given, options.pairs, card)
                except Failed as reason:
                    result = {"name": row.name, "shapes": row.shapes, "precision": row.precision,
                              "failed": str(reason)}
                    progress.write(f"error: {row.name}: {reason}", file=sys.stderr)
                if options.results:
                    write_result(options.results, result)
                lost = not card.usable()
            results.append(result)
            show(line(result))
            progress.update(row.cost)
            if lost:
                break
    if options.json:
        print(text, file=sys.stderr)
        print("[\n" + ",\n".join(json.dumps(result) for result in results) + "\n]")
    if lost:
        print(f"error: {results[-1]['name']}: an error on the card ended its work; "
              f"{len(rows) - len(results)} rows are left", file=sys.stderr)
        return LOST
    return 1 if any("failed" in result for result in results) else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("bench.cuda", "Compare the engine with PyTorch on a GPU.")
    parser.add_argument("--results", metavar="FILE", type=Path,
                        help="write each row here as it is done; rows that are here are not "
                             "measured again")
    return run(parser, benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
