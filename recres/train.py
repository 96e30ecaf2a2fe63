"""`python -m recres.train`: train a network on videos, and test it once at the end."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recres import build, checkpoint, commands, config, report
from recres.commands import Interrupts, bar, say
from recres.config import Config
from recres.datasets import Split
from recres.errors import InputError
from recres.evaluation import assess, chunks_to_assess
from recres.feature_store import FeatureStore, encoder, feature_shape
from recres.loader import FrameLoader
from recres.metrics import Scores
from recres.runs import RUNS, Run, write_json
from recres.trainer import Trainer
from tensorlite import precision
from tensorlite.io import FormatError


def parser() -> commands.Parser:
    """The command's arguments."""
    result = commands.Parser(
        "recres.train", "Train a recurrent residual network, or a baseline, on videos. Without "
        "arguments: on drawn figures, which are made first.",
        less_memory="a smaller --batch or --precision float16 needs less")
    run = result.add_argument_group("run")
    run.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/<time>-...)")
    run.add_argument("--resume", metavar="RUN", nargs="?", const="", help="go on with the run in "
                     "this folder, by its own options; without a value: the latest under runs/")
    config.add_options(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return commands.run(parser(), lambda args: _train(args, argv), argv)


def _train(args: argparse.Namespace, argv: Sequence[str] | None) -> int:
    if args.resume is None:
        options = config.resolve(config.given(args), args.data_root)
        out = args.out or _name(options)
        run = Run.create(out, options, {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S"), "environment": report.environment(),
            "command": report.command_line("recres.train", argv)})
    else:
        run = Run.open(args.resume) if args.resume else Run.latest()
        _refuse_changes(run, args)
        options = config.with_threads(run.config, getattr(args, "threads", run.config.threads))
    with run, Interrupts(f"stopped; to go on: python -m recres.train --resume {run.path}") as stop:
        if run.result is not None:
            print(f"{run.path}: complete, video error {run.result['video_error']:.4f}")
            return 0
        if options.threads != run.config.threads:
            say(f"threads   {options.threads}, not {run.config.threads} as before: what follows is "
                "equal only to rounding")
        run.change(options)
        try:
            with precision.using(options.precision):
                Job(run, stop).do()
        except (InputError, FormatError):
            if args.resume is None:
                run.discard()
            raise
    return 0


def _name(options: Config) -> Path:
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{options.data}-{options.model}"
    names = [name, *(f"{name}-{i}" for i in range(2, 100))]
    return next(RUNS / n for n in names if not (RUNS / n).exists())


def _refuse_changes(run: Run, args: argparse.Namespace) -> None:
    if args.out is not None:
        raise InputError("--out: --resume goes on in the run's own folder")
    stored = run.config.to_json()
    for name, value in config.given(args).items():
        if name != "threads" and value != stored[name]:
            raise InputError(f"--{name.replace('_', '-')} {value}: the run in {run.path} has "
                             f"{stored[name]}, and that cannot change")


class Job:
    """A training run from the data to result.json; every step that is done already is skipped."""

    def __init__(self, run: Run, interrupts: Interrupts) -> None:
        self.run, self.config, self.interrupts = run, run.config, interrupts

    def do(self) -> None:
        """Do what is left to do."""
        commands.use_machine(self.config.threads, self.config.device)
        say(f"run       {self.run.path}")
        videos = build.open_videos(self.config, self.run.path)
        for reason in videos.skipped.values():
            say(f"skipped   {reason}")
        model = build.build_model(self.config, len(videos.split.classes))
        if not (self.run.path / "checkpoint.safetensors").is_file():
            self.run.about["model"] = build.load_weights(model, self.config)
            self.run.write_config()
        model.to(self.config.device)
        convention = self.run.about["model"]["input"]
        frames = FrameLoader(videos.source, self.config, convention)
        stage = build.frozen_stage(self.config, model)
        say(report.heading(self.config, model, videos, stage))
        about = {"version": self.config.version, "input_convention": convention,
                 "options": json.dumps(self.config.to_json()),
                 "classes": json.dumps(videos.split.classes)}
        store = None if stage is None else FeatureStore(
            self.run.path / "features.bin", stage,
            feature_shape(model, stage, self.config.image_size), videos, self.config)
        trainer = Trainer(model, store or frames, videos, self.run, about, self.interrupts, say)
        if trainer.progress.update:
            say(f"resumed   after update {trainer.progress.update}, in epoch "
                  f"{trainer.progress.epoch + 1}")
        if store is not None and trainer.progress.epoch < self.config.epochs:
            _make_features(store, encoder(model, store.stage, frames))
        trainer.train()
        self._finish(trainer, frames)
        if store is not None:
            store.remove()

    def _finish(self, trainer: Trainer, frames: FrameLoader) -> None:
        """Test the best model, and write what is to be kept of the run."""
        path, videos, best = self.run.path, trainer.videos, trainer.progress.best
        assert best is not None
        arrays, _ = checkpoint.load_model(path / "best.safetensors")
        checkpoint.restore_model(path / "best.safetensors", trainer.model, arrays)
        with bar(f"testing epoch {best['epoch']}", "chunk",
                 chunks_to_assess(videos, "test")) as progress:
            summary, scores = assess(trainer.model, frames, videos, "test", progress.update)
        report.write_scores(path / "scores.npz", scores, videos.split.classes)
        written = ["result.json", "scores.npz", *_draw(path, scores, videos.split)]
        write_json(path / "result.json", report.result(
            self.config, videos, summary, best, trainer.progress.seconds))
        say(f"\ntest of epoch {best['epoch']}, the best on held-out groups"
              if self.config.holdout else "\ntest of the last epoch")
        say(f"{report.table(summary)}\n{'written':12} {path}: {', '.join(written)}")


def _make_features(store: FeatureStore, encode: Callable[[int], Any]) -> None:
    if not store.complete:
        say(f"features  {store.nbytes / 1e9:.2f} GB in {store.path}, until the run is complete")
    with bar("features", "video", len(store.videos)) as progress:
        store.create(encode, lambda done, _: progress.update(done - progress.n))


def _draw(path: Path, scores: Scores, split: Split) -> list[str]:
    """Draw the pictures of a run, if that can be done here; the names of the files."""
    try:
        from recres import pictures
    except ImportError:
        say("pictures  not drawn: matplotlib is not installed (pip install 'recres[plots]')")
        return []
    pictures.curves(path / "metrics.jsonl", path / "curves.png")
    pictures.confusion(scores, split.classes, path / "confusion.png", split.pairs)
    return ["curves.png", "confusion.png"]


if __name__ == "__main__":
    sys.exit(main())
