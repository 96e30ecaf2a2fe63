"""`python -m recres.lr_finder`: which learning rate a training run might use.

The range test of Smith (2017): a fresh network is trained while the rate rises exponentially, up to
where the loss diverges. A tenth of the rate at which the smoothed loss is least is suggested: there
it still falls, and the moving average lags behind. No run is made, and none is touched.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recres import commands, config
from recres.commands import Interrupts, RunFailed, bar, say
from recres.errors import InputError
from recres.files import write_json
from recres.loader import Chunk, plan_epoch, prefetch
from recres.rehearsal import opened
from recres.runs import refuse_own
from recres.trainer import Trainer
from tensorlite.io import replacing

SMOOTHING = 0.9  # of the moving average of the loss
SUGGESTED = 0.1  # of the rate at which the smoothed loss is least
DIVERGED = 3.0  # times the rise above the best smoothed loss that a loss must make to end the test


@dataclass
class Range:
    """A range test. rates, losses: of each update; smoothed: the losses' moving average, corrected
    for its start. suggested: a rate; best: where the smoothed loss is least; diverged: the rate at
    which the test ended early, None if it did not."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggested: float
    best: float
    diverged: float | None


def parser() -> commands.Parser:
    """The command's arguments."""
    result = commands.Parser(
        "recres.lr_finder", "Find a learning rate: train a fresh network while the rate rises, and "
        "see where the loss falls and where it diverges. Takes the options of recres.train.",
        less_memory="a smaller --batch or --precision float16 needs less")
    test = result.add_argument_group("range test")
    test.add_argument("--from", dest="low", metavar="X", type=float, default=1e-6,
                      help="the first rate (default: 1e-6)")
    test.add_argument("--to", dest="high", metavar="X", type=float, default=1.0,
                      help="the last rate (default: 1)")
    test.add_argument("--steps", metavar="N", type=int, default=100,
                      help="how many updates (default: 100)")
    test.add_argument("--out", metavar="FILE", type=Path, default=Path("lr_finder.json"),
                      help="where the numbers go; the picture beside it, as .png (default: "
                      "lr_finder.json)")
    config.add_options(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return commands.run(parser(), _find, argv)


def _find(args: argparse.Namespace) -> int:
    if not 0 < args.low < args.high < math.inf:
        raise InputError(f"--from {args.low:g} --to {args.high:g}: expected 0 < from < to")
    if args.steps < 10:
        raise InputError(f"--steps {args.steps}: expected at least 10")
    if args.out.suffix != ".json" or args.out.is_dir() or not args.out.parent.is_dir():
        raise InputError(f"--out {args.out}: expected a .json file in a folder that is there")
    for file in (args.out, args.out.with_suffix(".png")):
        refuse_own(file, "--out")
    for name in ("lr", "epochs", "updates", "schedule"):
        if hasattr(args, name):
            raise InputError(f"--{name} {getattr(args, name)}: is what the range test looks for or "
                             "decides itself")
    options = config.resolve(config.given(args), args.data_root)
    with opened(options, Interrupts()) as (_, trainer):
        found = range_test(trainer, rates(args.low, args.high, args.steps))
    write_json(args.out, {**asdict(found), "from": args.low, "to": args.high, "steps": args.steps,
                          "options": options.to_json()})
    written = [str(args.out)]
    if draw(found, args.out.with_suffix(".png")):
        written.append(str(args.out.with_suffix(".png")))
    else:
        say("picture   not drawn: matplotlib is not installed (pip install 'recres[plots]')")
    end = "" if found.diverged is None else f", it diverges at {found.diverged:.2g}"
    print(f"{'updates':9} {len(found.rates)}, rates from {found.rates[0]:.2g} to "
          f"{found.rates[-1]:.2g}")
    print(f"{'loss':9} {found.smoothed[0]:.4f} at first, {min(found.smoothed):.4f} at its least, "
          f"at the rate {found.best:.2g}{end}")
    print(f"{'suggested':9} --lr {found.suggested:.2g}, a tenth of that")
    print(f"{'written':9} {', '.join(written)}")
    return 0


def rates(low: float, high: float, steps: int) -> list[float]:
    """So many rates from `low` to `high`, each the same multiple of the one before."""
    return [low * (high / low) ** (i / (steps - 1)) for i in range(steps)]


def range_test(trainer: Trainer, planned: Sequence[float]) -> Range:
    """Make an update at each of the `planned` rates, until the loss diverges. RunFailed where it
    does so before anything can be seen."""
    losses: list[float] = []
    smoothed: list[float] = []
    average, best = 0.0, math.inf
    with np.errstate(all="ignore"), bar("range test", "update", len(planned)) as shown:
        for loss in _updates(trainer, planned):
            if not math.isfinite(loss):
                break
            losses.append(loss)
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            smoothed.append(average / (1 - SMOOTHING ** len(losses)))
            best = min(best, smoothed[-1])
            shown.update()
            if len(losses) > 5 and smoothed[-1] > best + DIVERGED * max(smoothed[0] - best,
                                                                       0.1 * abs(best)):
                break
    if len(losses) < 5:
        raise RunFailed(f"the loss is not finite after {len(losses)} updates, at the rate "
                        f"{planned[len(losses)]:.2g}: a lower --from may show more")
    used, least = list(planned[: len(losses)]), int(np.argmin(smoothed))
    if least < len(planned) // 10:
        raise RunFailed(f"the loss does not fall at any rate from {used[0]:.2g} to {used[-1]:.2g}: "
                        "more --steps, another --from or a larger --batch may show more")
    return Range(used, losses, smoothed, SUGGESTED * used[least], used[least],
                 used[-1] if len(used) < len(planned) else None)


def _updates(trainer: Trainer, planned: Sequence[float]) -> Iterator[float]:
    """The loss of each update, before it is made."""
    options, model, optimizer = trainer.config, trainer.model, trainer.optimizer
    updates: list[tuple[int, list[list[Chunk]]]] = list(itertools.islice(
        ((epoch, update) for epoch in itertools.count()
         for update in plan_epoch(trainer.chunks, options, epoch)), len(planned)))
    items = [(epoch, batch) for epoch, update in updates for batch in update]

    def load(item: tuple[int, list[Chunk]]) -> Any:
        return trainer.uploads.send(trainer.loader.load(item[1], item[0]))

    model.train()
    with prefetch(trainer.loader, load, items) as inputs:
        for rate, (_, update) in zip(planned, updates, strict=True):
            optimizer.zero_grad()
            loss, size = 0.0, sum(map(len, update))
            for batch in update:
                loss += float(trainer.accumulate(trainer.uploads.take(next(inputs)), batch, size))
            yield loss
            optimizer.lr = rate
            optimizer.guarded_step(options.clip_norm, trainer.scaler)()


def draw(found: Range, path: Path) -> bool:
    """Draw the test; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, color="0.75", label="loss")
    axes.plot(found.rates, found.smoothed, color="C0", label="smoothed")
    axes.plot(found.best, min(found.smoothed), "o", color="C0", label=f"least: {found.best:.2g}")
    axes.axvline(found.suggested, color="C3", linestyle="--",
                 label=f"suggested: {found.suggested:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    low, high = min(found.losses), max(found.losses[0], found.smoothed[0])
    room = high - low + 0.1  # (above, where the loss diverges, it may leave the picture)
    axes.set_ylim(low - 0.1 * room, high + room)
    axes.legend()
    with replacing(path) as beside:
        figure.savefig(beside, dpi=110, format="png")
    return True


if __name__ == "__main__":
    sys.exit(main())
