"""`python -m recres.evaluate RUN`: compute the errors of a run's best model again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recres import build, commands, config, report
from recres.errors import InputError
from recres.evaluation import assess, chunks_to_assess
from recres.loader import FrameLoader
from recres.runs import Run, write_json
from tensorlite.precision import using


def parser() -> commands.Parser:
    """The command's arguments."""
    result = commands.Parser("recres.evaluate", "Compute the errors of a run's best model again.",
                             less_memory="--precision float16 needs less, --device cpu none there")
    result.add_argument("run", metavar="RUN", help="folder of the run")
    result.add_argument("--side", choices=("test", "holdout"), default="test",
                        help="the videos to evaluate on (default: test)")
    result.add_argument("--weights", metavar="FILE", type=Path, help="a model of the same network "
                        "that another run saved (default: best.safetensors of this run)")
    config.add_overrides(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return commands.run(parser(), _evaluate, argv)


def _evaluate(args: argparse.Namespace) -> int:
    run = Run.open(args.run)
    options = config.override(run.config, args)
    commands.use_machine(options.threads, options.device)
    model, classes, convention = build.open_model(run, options, args.weights)
    videos = build.open_videos(options, run.path)
    if videos.split.classes != classes:
        raise InputError(f"{options.root}: its classes are not those of the model")
    if not videos.sides[args.side]:
        raise InputError(f"--side {args.side}: the run held no videos out")
    loader = FrameLoader(videos.source, options, convention)
    with commands.bar(f"evaluating {args.side}", "chunk",
                      chunks_to_assess(videos, args.side)) as shown, using(options.precision):
        summary, scores = assess(model, loader, videos, args.side, shown.update)
    names = f"evaluation-{args.side}.json", f"scores-{args.side}.npz"
    report.write_scores(run.path / names[1], scores, classes)
    write_json(run.path / names[0], {
        "side": args.side, "weights": str(args.weights or "best.safetensors"),
        "precision": options.precision, **summary})
    print(f"{report.table(summary)}\n{'written':12} {run.path}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
