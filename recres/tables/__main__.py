"""`python -m recres.tables N`: the paper's tables, each by one command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recres import commands, config, summary
from recres.commands import Interrupts, say
from recres.errors import InputError
from recres.tables import render
from recres.tables.budget import parse_duration, show_duration
from recres.tables.plan import NUMBERS
from recres.tables.results import times
from recres.tables.runner import Runner

# The options of recres.train that all cells share; the others are what the tables are about.
SHARED = ("data", "root", "frame_step", "image_size", "frames", "flow_length", "chunks_per_video",
          "holdout", "skip_bad", "backbone", "width", "version", "truncate", "weights", "freeze",
          "updates", "batch", "update_fraction", "lr", "schedule", "clip_norm", "colour_jitter",
          "mirror", "threads", "workers", "device", "precision")


def parser() -> commands.Parser:
    """The command's arguments."""
    result = commands.Parser(
        "recres.tables", "Run the experiments of the paper's tables, and print and write each "
        "table with the paper's numbers beside ours.",
        less_memory="a smaller --batch or --precision float16 needs less")
    result.add_argument("tables", metavar="N", nargs="+", choices=(*map(str, NUMBERS), "all"),
                        help="which tables: 1 to 5, or all")
    result.add_argument("--out", metavar="DIR", type=Path, help="folder of the tables and their "
                        "runs; what is complete there is not run again (default: "
                        "runs/tables-<data>)")
    result.add_argument("--split", dest="splits", choices=("1", "2", "3", "all"), default="1",
                        help="which division into training and test side (default: 1)")
    result.add_argument("--seeds", metavar="N", type=int, default=1,
                        help="run every cell with so many seeds (default: 1)")
    result.add_argument("--budget", metavar="TIME", help="such as 15m or 2h, for everything: "
                        "turned once into a number of updates, the same for every cell (default: "
                        "--updates, or the epochs of recres.train)")
    result.add_argument("--dry-run", action="store_true",
                        help="list the runs with their estimated times, and train nothing")
    config.add_options(result, SHARED)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 if a cell failed."""
    return commands.run(parser(), lambda args: _tables(args, argv), argv)


def _tables(args: argparse.Namespace, argv: Sequence[str] | None) -> int:
    options = config.given(args)
    if args.seeds < 1:
        raise InputError(f"--seeds {args.seeds}: expected at least 1")
    budget = None if args.budget is None else parse_duration(args.budget)
    if budget is not None and "updates" in options:
        raise InputError(f"--updates {options['updates']}: --budget says how many")
    numbers = NUMBERS if "all" in args.tables else sorted(set(map(int, args.tables)))
    splits = (1, 2, 3) if args.splits == "all" else (int(args.splits),)
    folder = args.out or Path("runs") / f"tables-{options.get('data', 'figures')}"
    runner = Runner(folder, numbers, options, args.data_root, splits, args.seeds, budget)
    commands.use_machine(runner.base.threads, runner.base.device)
    runner.prepare(say)
    seconds = sum(map(runner.estimate, runner.tasks))
    updates = f", {runner.updates} updates a network" if runner.updates else ""
    say(f"{len(runner.tasks)} runs of {len(runner.plan.cells)} cells{updates}, about "
        f"{show_duration(seconds)}")
    if budget is not None and seconds > 1.1 * budget:
        say(f"budget    {show_duration(budget)} was made into updates for fewer runs than these")
    if args.dry_run:
        for task in runner.tasks:
            left = runner.estimate(task)
            say(f"  {task.name:44} {show_duration(left) if left else 'complete'}")
        return 0
    again = " ".join(summary.command_line("recres.tables", argv))
    try:
        with Interrupts(f"stopped; to go on: {again}") as stop:
            runner.run(stop, summary.command_line("recres.tables", argv), say)
    finally:
        made = runner.tables()
        for table in made:
            print(f"\n{render.text(table)}")
            render.write(table, folder)
    say(f"written   {folder}; its runs trained for {show_duration(times(made))}")
    for name, reason in runner.failures.items():
        print(f"failed    {name}: {reason}", file=sys.stderr)
    return 1 if runner.failures else 0


if __name__ == "__main__":
    sys.exit(main())
