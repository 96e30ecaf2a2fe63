"""`python -m recres.train … --check`: how long a run would take and what it needs, from a little of
it that is really done.

Data, weights and network are loaded as for the run, some updates are made by the training loop
itself, and two videos or a few more are evaluated; the time for each chunk is then counted up to
the whole. All that is written goes to a folder that is removed at the end. Started by mpiexec, all
processes take part (`follow`), as they do in a run.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recres import build, commands, limits, summary
from recres.commands import Interrupted, Interrupts, RunFailed
from recres.config import Config
from recres.errors import InputError
from recres.evaluation import CHUNKS_AT_ONCE, own_batches, score
from recres.feature_store import FeatureStore, free_bytes
from recres.loader import FrameLoader, Loader, Videos, describe_updates
from recres.models import VideoResNet
from recres.runs import RUNS, Run, read_metrics
from recres.train import Job, describe_processes, new_options
from recres.trainer import Trainer, total_updates
from tensorlite import precision
from tensorlite.distributed import Processes

SECONDS = 6.0  # of updates, after the first, are measured
LEAST = 3  # updates measured, though they take longer
WARM = 3  # updates before them: the first takes longer, and the loader gets ahead of the next two
BATCHES = 8  # of chunks whose features are made to measure with, at most


@dataclass
class Estimate:
    """What a run would take; times in seconds, sizes in bytes.

    measured: updates that the time of one comes from; waited: their share that was spent waiting
    for data. reading: of the videos, features: making those that are kept, epoch: training alone,
    evaluation: on held-out videos, an epoch, test: at the end; checkpoints are written beside it.
    memory: of all processes, those that load too, at their peaks; frames: that will come into it,
    at most, as more of them are kept; gpu: of the device, None on the CPU. disk: in the run's
    folder and the store.
    """

    epochs: float
    updates: int
    update: float
    measured: int
    waited: float
    reading: float
    features: float
    epoch: float
    evaluation: float
    test: float
    memory: int
    frames: int
    gpu: int | None
    disk: int

    @property
    def an_epoch(self) -> float:
        """An epoch with all that belongs to it."""
        return self.epoch + self.evaluation

    @property
    def whole(self) -> float:
        """The run from start to end."""
        return self.reading + self.features + self.epochs * self.an_epoch + self.test


class Enough(Interrupts):
    """Asks for an end when so many updates were made and so many seconds have passed since the
    first of them. A signal ends all at once: there is nothing to save."""

    def __init__(self, seconds: float = SECONDS, least: int = WARM + LEAST) -> None:
        super().__init__("interrupted")
        self.seconds, self.least, self.signalled = seconds, least, False
        self.updates, self._since = 0, 0.0

    def updated(self) -> None:
        """See `Interrupts`."""
        self.updates += 1
        if self.updates == 1:
            self._since = time.monotonic()
        elif self.updates >= self.least:
            self.requested = time.monotonic() - self._since > self.seconds

    def _handle(self, number: int, frame: object) -> None:
        self.signalled = True
        raise Interrupted(self.hint)

    def train(self, trainer: Trainer) -> None:
        """Train until it is enough; a signal's `Interrupted` goes on to the caller."""
        try:
            trainer.train()
        except Interrupted:
            if self.signalled:
                raise


class Rehearsal(Job):
    """A job in a folder of its own. few: features are made of no more videos than to measure with,
    and not into --store.

    Attributes, once it is open: whole, all videos; store, of features; reading, the seconds that
    reading the videos took; features, those that making the features would take; missing, the size
    of these.
    """

    def __init__(self, run: Run, options: Config, interrupts: Interrupts, few: bool,
                 processes: Processes) -> None:
        super().__init__(run, interrupts, log=lambda _: None, processes=processes)
        self.options, self.few = options, few and (options.features or options.freeze != "none")
        self.whole: Videos
        self.store: FeatureStore | None = None
        self.reading, self.features, self.missing = 0.0, 0.0, 0

    def videos(self) -> Videos:
        """See `Job`."""
        began = time.perf_counter()
        self.whole = super().videos()
        self.reading = time.perf_counter() - began
        processes = self.options.processes
        return self.whole if not self.few else some_videos(
            self.whole, BATCHES * self.options.batch * processes, 4 * processes)

    def make_features(self, store: FeatureStore, network: VideoResNet,
                      frames: FrameLoader) -> None:
        """See `Job`; measures."""
        if self.processes.rank:
            return super().make_features(store, network, frames)
        folder = self.run.path / "none"  # where nothing is
        all_of_it = build.open_store(self.options, network, self.whole, folder,
                                     self.run.about["model"])
        assert all_of_it is not None
        self.missing = all_of_it.nbytes_missing
        made = store.nbytes_missing
        began = time.perf_counter()
        super().make_features(store, network, frames)
        if made:
            self.features = (time.perf_counter() - began) * self.missing / made


@contextlib.contextmanager
def opened(options: Config, interrupts: Interrupts, few: bool = False,
           processes: Processes | None = None) -> Iterator[tuple[Rehearsal, Trainer]]:
    """All that a run with these options needs, ready to train, in a folder that is removed at the
    end. few: see `Rehearsal`; then every batch is an update. processes: those that take part, this
    being rank 0, the others in `follow`."""
    processes = processes or Processes()
    if options.data == "figures" and not (Path(options.root) / "figures.json").exists():
        raise InputError(f"{options.root}: no figures there, and here nothing is written: "
                         f"python -m recres.datasets.figures --out {options.root} makes them")
    changed = replace(options, update_fraction=None, store=None) if few else options
    with (tempfile.TemporaryDirectory(prefix="recres-") as folder,
          Run.create(folder, changed, {}) as run, interrupts):
        processes.share((run.path, changed, run.about, options, limits.values()))
        with (precision.using(options.precision),
              contextlib.closing(Rehearsal(run, options, interrupts, few, processes)) as job):
            commands.use_machine(options.threads, job.config.device)
            trainer, _, job.store = job.open()
            trainer.guard.dumps = False
            trainer.checkpoints.wait()
            trainer.checkpoints.processes = Processes()  # there is nothing to go on with
            processes.after_a_death("nothing was written")
            try:
                yield job, trainer
            finally:
                trainer.checkpoints.close()  # what is being written goes before its folder does


def follow(run: Run, options: Config, processes: Processes) -> None:
    """Take part in the rehearsal of rank 0, in the folder of `run`."""
    stop = Enough(math.inf)
    with (stop, precision.using(options.precision),
          contextlib.closing(Rehearsal(run, options, stop, True, processes)) as job):
        commands.use_machine(options.threads, job.config.device)
        trainer, _, _ = job.open()
        stop.train(trainer)
        _evaluation(trainer, trainer.videos, trainer.loader)
        _memory(job)


def _memory(job: Job) -> int:
    """Bytes of all processes and of those that load for them, at their peaks, when all have come
    here."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    loading = job.workers.peak_bytes if job.workers is not None else 0
    job.processes.wait()
    return int(job.processes.total(own + loading))


def some_videos(videos: Videos, chunks: int, others: int) -> Videos:
    """`videos` with so many of the training side that they have this many chunks, or all, and so
    many of each of the others."""
    few, found = copy.copy(videos), 0
    training = []
    for place in videos.sides["train"]:
        if found >= chunks:
            break
        training.append(place)
        found += len(side_of(videos, "train", [place]).chunks("train"))
    few.sides = {"train": tuple(training), "holdout": videos.sides["holdout"][:others],
                 "test": videos.sides["test"][:others]}
    return few


def side_of(videos: Videos, side: str, places: Sequence[int]) -> Videos:
    """`videos` with these alone on that side."""
    result = copy.copy(videos)
    result.sides = videos.sides | {side: tuple(places)}
    return result


def check(args: argparse.Namespace, processes: Processes) -> int:
    """Do what --check asks for; returns the exit status."""
    if args.resume is not None:
        raise InputError("--check: is of a run to be begun, --resume goes on with one")
    options = new_options(args, processes)
    target = Path(args.out) if args.out is not None else RUNS
    if args.out is not None and target.exists() and any(p.name != "lock" for p in target.iterdir()):
        raise InputError(f"{target}: not empty, a new run needs an empty folder")
    estimate = rehearse(options, print, processes=processes)
    for line in describe(estimate, options, target):
        print(line)
    return 0


def rehearse(options: Config, log: Callable[[str], object], seconds: float = SECONDS,
             *, processes: Processes | None = None) -> Estimate:
    """Do a little of a run with these options, and count up; `log` gets what is about to be
    trained. Raises as the run would. processes: see `opened`."""
    stop, processes = Enough(seconds), processes or Processes()
    with opened(options, stop, True, processes) as (job, trainer):
        if processes.size > 1:
            log(describe_processes(options))
        log(summary.heading(options, trainer.model, job.whole, job.store))
        stop.train(trainer)
        lines = read_metrics(job.run.path / "metrics.jsonl")
        if not lines:
            raise RunFailed("all updates were left out: there is nothing to measure")
        lines = lines[min(WARM, len(lines) - 1) :]
        times = [(line["data_time"], line["compute_time"], line["chunks"]) for line in lines]
        spent = sum(data + compute for data, compute, _ in times)
        chunk = spent / sum(chunks for *_, chunks in times)
        evaluated = _evaluation(trainer, trainer.videos, trainer.loader)
        counts = {name: len(job.whole.chunks(name)) for name in job.whole.sides}
        updates = describe_updates(counts["train"], options)
        total = total_updates(counts["train"], options)
        checkpoint = (job.run.path / "checkpoint.safetensors").stat().st_size
        return Estimate(
            epochs=total / updates["updates"], updates=updates["updates"],
            update=chunk * counts["train"] / updates["updates"], measured=len(lines),
            waited=sum(data for data, *_ in times) / spent, reading=job.reading,
            features=job.features, epoch=chunk * counts["train"],
            evaluation=evaluated * _own_chunks(job.whole, "holdout", processes),
            test=(evaluated * _own_chunks(job.whole, "test", processes)
                  * (2 if job.whole.split.pairs else 1)),  # and backwards
            memory=_memory(job),
            frames=processes.size * job.whole.source.yet_to_keep,
            gpu=_gpu_bytes(options.device),
            # (for a moment there is one checkpoint more; and the best model)
            disk=(options.keep + 2) * checkpoint + job.missing)


def _evaluation(trainer: Trainer, videos: Videos, loader: Loader) -> float:
    """Seconds that evaluating takes for each chunk that falls to this process: of two videos, or as
    many more as fill two batches for every process (of one, loading would not go on beside
    computing as it does in a run), after two others."""
    side, processes = "holdout" if videos.sides["holdout"] else "test", trainer.processes
    places, count = videos.sides[side], 2
    while (count < len(places) and len(side_of(videos, side, places[:count]).chunks(side))
           < 2 * CHUNKS_AT_ONCE * processes.size):
        count += 1
    for chosen in (places[count : count + 2] or places[:2], places[:count]):
        part = side_of(videos, side, chosen)
        began = time.perf_counter()
        score(trainer.model, loader, part, side, processes=processes)
        seconds = time.perf_counter() - began
    return seconds / max(1, _own_chunks(part, side, processes))


def _own_chunks(videos: Videos, side: str, processes: Processes) -> int:
    """How many chunks this process evaluates of a side."""
    return sum(map(len, own_batches(videos.chunks(side), processes)))


def _gpu_bytes(device: str) -> int | None:
    """What the pool of a GPU's memory has grown to."""
    if device == "cpu":
        return None
    import cupy

    return int(cupy.get_default_memory_pool().total_bytes())


def describe(estimate: Estimate, options: Config, target: Path) -> Iterator[str]:
    """What is printed of an estimate; target: where the run would be."""
    e = estimate
    rows = {"measured": f"{e.measured} updates, {e.update:.3g} s for one; {e.waited:.0%} of that "
                        "is waiting for data",
            "reading": f"{duration(e.reading)}, to count the frames of every video, once"}
    if e.features:
        rows["features"] = f"{duration(e.features)}, once"
    rows["epoch"] = (f"{duration(e.an_epoch)}: {e.updates} updates {duration(e.epoch)}, "
                     f"evaluation {duration(e.evaluation)}")
    rows["whole"] = (f"{duration(e.whole)}: {e.epochs:.4g} epochs, and the test "
                     f"{duration(e.test)}")
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    whose = f"in {options.processes} processes" if options.processes > 1 else "at its peak"
    rows["memory"] = f"{e.memory / 1e9:.2f} GB {whose}, of {available / 1e9:.1f} GB"
    if e.frames:
        rows["memory"] += f"; frames that will be kept in it: up to {e.frames / 1e9:.2f} GB more"
    if e.gpu is not None:
        rows["memory"] += f"; {e.gpu / 1e9:.2f} GB on {options.device}"
    free = free_bytes(target)
    rows["disk"] = f"{e.disk / 1e9:.2f} GB, {free / 1e9:.1f} GB are free in {target}"
    if e.disk > free:
        rows["disk"] += ": too little"
    for name, text in rows.items():
        yield f"{name:9} {text}"
    yield "nothing was written: without --check the run begins"


def duration(seconds: float) -> str:
    """A time in words: "3.2 s", "4 min 10 s", "2 h 5 min", "3 d 4 h"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else f"{seconds * 1000:.0f} ms"
    whole = round(seconds)
    for large, one, small, other in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"),
                                     (60, "min", 1, "s")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {one}" + (f" {rest} {other}" if rest else "")
    raise AssertionError
