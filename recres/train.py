"""`python -m recres.train`: train a network on videos, and test it once at the end."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from recres import build, checkpoint, checkpoints, commands, config, limits, sequences, summary
from recres.commands import Interrupted, Interrupts, RunFailed, bar, say
from recres.config import Config
from recres.datasets import Split
from recres.errors import InputError
from recres.evaluation import assess, chunks_to_assess
from recres.feature_store import FeatureStore
from recres.files import write_json
from recres.loader import FrameLoader, Loader, Videos
from recres.metrics import Scores
from recres.models import VideoResNet
from recres.models.sequence import SequenceModel
from recres.runs import RUNS, Run
from recres.scores import write_scores
from recres.together import own_device, share_network
from recres.trainer import Follower, Trainer
from recres.video.source import FrameSource
from recres.workers import WorkerDied, WorkerLoader
from tensorlite import distributed, get_num_threads, nn, precision
from tensorlite.distributed import Processes
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
    run.add_argument("--check", action="store_true", help="a dry run: load everything, make a "
                     "few updates, evaluate a few videos, say how long the whole would take and "
                     "what it needs, and write nothing")
    config.add_options(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    try:
        processes = distributed.start()
    except distributed.Missing as error:
        if distributed.launched()[0]:
            return 0  # rank 0 says it
        print(f"error: {error}", file=sys.stderr)
        return 2
    status = 1
    try:
        if processes.rank:
            given = sys.argv[1:] if argv is None else argv
            status = commands.run(parser(), lambda _: _follow(processes),
                                  ["--debug"] if "--debug" in given else [], together=True)
        else:
            status = commands.run(parser(), lambda args: _train(args, argv, processes), argv,
                                  together=True)
    finally:
        processes.end(status)
    return status


def _follow(processes: Processes) -> int:
    """Take part in the run of rank 0, which has read the options."""
    shared = processes.share(None)
    if shared is None:  # there is none: rank 0 says why
        return 0
    path, options, about, rehearsed, known = shared
    limits.change(known)
    run = Run(path, options, about)
    advice = "" if rehearsed is not None else (
        f"; go on with: {checkpoints.resume_command(path, processes)}")
    try:
        if rehearsed is not None:
            from recres import rehearsal

            rehearsal.follow(run, rehearsed, processes)
        else:
            with Interrupts(quiet=True) as stop:
                Job(run, stop, lambda text: None, processes=processes).do()
    except Interrupted:
        if processes.all_end():  # as all were
            return 130
        raise Interrupted(f"rank {processes.rank} of {processes.size} was asked to stop, and all "
                          f"stop{advice}") from None
    except Exception as error:
        if processes.all_end():  # all for the same reason: rank 0 says it
            return 1
        text = " ".join(str(error).split())
        raise RunFailed(f"rank {processes.rank} of {processes.size}: {type(error).__name__}: {text}"
                        f"{advice}") from error
    return 0


def new_options(args: argparse.Namespace, processes: Processes) -> Config:
    """The options of a new run."""
    given, size = config.given(args), processes.size
    if given.setdefault("processes", size) != size:
        raise InputError(f"--processes {given['processes']}: mpiexec has started {size}" if size > 1
                         else f"--processes {given['processes']}: start that many by mpiexec -n "
                         f"{given['processes']} python -m recres.train ...")
    if size > 1:
        given.setdefault("threads", max(1, get_num_threads() // processes.local_size))
        if given.get("device", "cpu") != "cpu":
            given.setdefault("workers", config.cuda_workers(processes.local_size))
    return config.resolve(given, args.data_root)


def _train(args: argparse.Namespace, argv: Sequence[str] | None, processes: Processes) -> int:
    if args.check:
        from recres import rehearsal

        return rehearsal.check(args, processes)
    if args.resume is None:
        options = new_options(args, processes)
        out = args.out or _name(options)
        run = Run.create(out, options, {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S"), "environment": summary.environment(),
            "command": summary.command_line("recres.train", argv)})
    else:
        run = Run.open(args.resume) if args.resume else Run.latest()
        _refuse_changes(run, args)
        if run.config.processes != processes.size and run.result is None:
            raise InputError(f"{run.path}: a run of {run.config.processes} processes, and that "
                             f"cannot change: expected mpiexec -n {run.config.processes}, not "
                             f"{processes.size}")
        options = config.with_changes(run.config, config.given(args))
    resume = checkpoints.resume_command(run.path, processes)
    with run, Interrupts(f"stopped; to go on: {resume}") as stop:
        if run.result is not None:
            print(f"{run.path}: complete, video error {run.result['video_error']:.4f}")
            if run.config.store is None:  # killed before it had removed them
                shutil.rmtree(run.path / "features", ignore_errors=True)
            return 0
        if options.threads != run.config.threads:
            say(f"threads   {options.threads}, not {run.config.threads} as before: what follows is "
                "equal only to rounding")
        run.change(options)
        try:
            processes.share((run.path, options, run.about, None, limits.values()))
            processes.after_a_death(f"go on with: {resume}")
            Job(run, stop, processes=processes).do()
        except WorkerDied as error:
            raise RunFailed(f"{error}; to go on from the last checkpoint: {resume}") from error
        except (InputError, FormatError):
            if args.resume is None:
                run.discard()
            raise
    return 0


def describe_processes(config: Config) -> str:
    """What is said of several processes, at the beginning."""
    threads = summary.count(config.threads, "thread")
    return (f"processes {config.processes}, of {threads} each; batch norms by "
            f"{'all of their' if config.sync_norm else 'each one of the'} batches")


def _name(options: Config) -> Path:
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{options.data}-{options.model}"
    names = [name, *(f"{name}-{i}" for i in range(2, 100))]
    return next(RUNS / n for n in names if not (RUNS / n).exists())


def _refuse_changes(run: Run, args: argparse.Namespace) -> None:
    if args.out is not None:
        raise InputError("--out: --resume goes on in the run's own folder")
    stored = run.config.to_json()
    for name, value in config.given(args).items():
        if name not in config.CHANGEABLE and value != stored[name]:
            began = "none" if stored[name] is None else stored[name]
            raise InputError(f"--{name.replace('_', '-')} {value}: the run in {run.path} has "
                             f"{began}, and that cannot change")


class Job:
    """A training run from the data to result.json; every step that is done already is skipped.

    log: gets what there is to say, line by line. source: frames of the same videos that another job
    has decoded; this one's are in `source` afterwards. processes: those that do the job together,
    each by a call of its own; all but rank 0 write nothing. What has called `open` calls `close`,
    which ends the processes that load.
    """

    def __init__(self, run: Run, interrupts: Interrupts, log: Callable[[str], object] = say,
                 source: FrameSource | None = None, processes: Processes | None = None) -> None:
        self.run, self.config, self.interrupts, self.log = run, run.config, interrupts, log
        self.source, self.processes = source, processes or Processes()
        self.workers: WorkerLoader | None = None
        self.config = replace(self.config, device=own_device(self.config.device, self.processes))

    def do(self) -> None:
        """Do what is left to do."""
        commands.use_machine(self.config.threads, self.config.device)
        with precision.using(self.config.precision), contextlib.closing(self):
            trainer, frames, store = self.open()
            if trainer.progress.update:
                self.log(f"resumed   after update {trainer.progress.update}, in epoch "
                         f"{trainer.progress.epoch + 1}")
            trainer.train()
            # What is kept of flow or dynamic images cannot be played backwards.
            self._finish(trainer, trainer.loader if self.config.input == "frames" else frames)
            if not self.processes.rank and store is not None and self.config.store is None:
                store.remove()
            self.processes.wait()

    def close(self) -> None:
        """End the processes that load, if there are any."""
        if self.workers is not None:
            self.workers.close()

    def videos(self) -> Videos:
        """The videos to work with."""
        return build.open_videos(self.config, self.run.path, self.log, self.source)

    def make_features(self, store: FeatureStore, network: VideoResNet,
                      frames: FrameLoader) -> None:
        """Make what features `store` lacks."""
        build.make_features(store, network, frames, self.log)

    def open(self) -> tuple[Trainer, Loader, FeatureStore | None]:
        """All that training needs, loaded or made: what trains, what makes inputs of the frames
        themselves, and the store of features if there is one."""
        config, run, processes = self.config, self.run, self.processes
        if processes.size > 1:
            self.log(describe_processes(config))
        with processes.first():
            videos = self.videos()
        self.source = videos.source
        self._refuse_other_frames()
        classes = videos.split.classes
        network = build.build_network(config, len(classes))
        model = network if not config.features else build.build_sequence_model(config, len(classes))
        if not processes.rank:
            self._begin(network, model)
        start = processes.share(run.about.get("model"))
        share_network(processes, network)
        network.to(config.device)
        model.to(config.device)
        frames = FrameLoader(videos.source, config, start["input"])
        with processes.first():
            store = build.open_store(config, network, videos, run.path, start)
            self.log(summary.heading(config, model, videos, store))
            if store is not None:
                self.make_features(store, network, frames)
        images = self._images(frames) if store is None else frames
        loader = build.open_loader(config, store, images)
        if isinstance(model, SequenceModel) and store is not None and config.z_norm:
            model.set_statistics(*sequences.statistics(store, videos.sides["train"]))
        about = {"version": config.version, "input_convention": start["input"],
                 "options": json.dumps(config.to_json()), "classes": json.dumps(classes),
                 "pixels": json.dumps(videos.source.pixels)}
        kind = Follower if processes.rank else Trainer
        trainer = kind(model, loader, videos, run, about, self.interrupts, self.log, processes)
        return trainer, images, store

    def _images(self, frames: FrameLoader) -> Loader:
        """What loads the frames themselves: processes, if the options say so."""
        if self.config.workers == 0:
            return frames
        self.workers = WorkerLoader(frames, self.config.workers, self.config.batch)
        return self.workers

    def _begin(self, network: VideoResNet, model: nn.Module) -> None:
        """Load what the run starts from: its newest checkpoint or, before there is one, weights."""
        config, run = self.config, self.run
        newest = checkpoints.recover(run.path, self.log)
        if config.features or newest is None:
            run.about["model"] = build.load_weights(network, config, log=self.log)
            if config.features:
                build.refuse_untrained(config, run.about["model"], config.features, "--features")
            run.write_config()
        else:
            checkpoint.load_network(newest, model)

    def _refuse_other_frames(self) -> None:
        """InputError where --frames has other pixels than when the run began."""
        assert self.source is not None
        found = self.source.pixels
        began = self.run.about.setdefault("pixels", found)
        if found != began:
            raise InputError(f"{self.config.frames}: frames are {found or 'exact'}, the run in "
                             f"{self.run.path} began with {began or 'exact ones'}")

    def _finish(self, trainer: Trainer, loader: Loader) -> None:
        """Test the best model, and write what is to be kept of the run."""
        config, path, videos, model = self.config, self.run.path, trainer.videos, trainer.model
        best, first = trainer.progress.best, not self.processes.rank
        with self.processes.first():  # in whose waiting, unlike in sharing, a signal is heard
            if first:
                arrays, _ = checkpoint.load_model(path / "best.safetensors")
                checkpoint.restore_model(path / "best.safetensors", model, arrays)
        share_network(self.processes, model)
        if not first:
            assess(model, loader, videos, "test", processes=self.processes)
            return
        assert best is not None
        with bar(f"testing epoch {best['epoch']}", "chunk",
                 chunks_to_assess(videos, "test")) as progress:
            errors, scores = assess(model, loader, videos, "test", progress.update, self.processes)
        write_scores(path / "scores.npz", scores, videos.split.classes, config.data, config.split)
        written = ["result.json", "scores.npz", *_draw(path, scores, videos.split, self.log)]
        write_json(path / "result.json", summary.result(
            config, videos, errors, best, trainer.progress.seconds))
        self.log(f"\ntest of epoch {best['epoch']}, the best on held-out groups"
                 if config.holdout else "\ntest of the last epoch")
        self.log(f"{summary.table(errors)}\n{'written':12} {path}: {', '.join(written)}")


def _draw(path: Path, scores: Scores, split: Split, log: Callable[[str], object]) -> list[str]:
    """Draw the pictures of a run, if that can be done here; the names of the files."""
    try:
        from recres import pictures
    except ImportError:
        log("pictures  not drawn: matplotlib is not installed (pip install 'recres[plots]')")
        return []
    pictures.curves(path / "metrics.jsonl", path / "curves.png")
    pictures.confusion(scores, split.classes, path / "confusion.png", split.pairs)
    return ["curves.png", "confusion.png"]


if __name__ == "__main__":
    sys.exit(main())
