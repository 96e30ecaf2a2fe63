"""Runs the cells of a plan, each in a folder of its own, and collects what came out.

    plan.json       options, budget, and the number of updates that it was turned into
    cells/NAME-splitN-seedN/    a run of recres.train (recres.runs), with a log.txt
    features/       features of frozen backbones, shared by the cells
    fused/          scores of several cells, averaged
    table-N.md, .json, .csv, .png

A run that is complete is not run again, and one that was cut is gone on with; since the result of a
run does not depend on where it was cut, neither do the tables.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from recres import build, config, summary
from recres.commands import Interrupts, RunFailed, bar
from recres.config import Config
from recres.errors import InputError
from recres.feature_store import NUMBER, Kind, feature_shape, free_bytes
from recres.files import read_json, write_json
from recres.fuse import fuse
from recres.loader import Videos
from recres.models.resnet import stage_number
from recres.run_files import COUNT, MAPPING, SHARE, TIME, require
from recres.runs import Run
from recres.scores import read_scores, write_scores
from recres.tables.budget import Cost, encoding_rate, measure, reading_time, updates_within
from recres.tables.plan import Cell, Place, TablePlan, make
from recres.tables.results import Entry, Row, RunResult, Table
from recres.train import Job
from recres.trainer import total_updates
from recres.video.source import FrameSource
from tensorlite.io import FormatError

# Nothing is chosen: the last update counts, and the learning rate has come down by then.
CELL_DEFAULTS = {"holdout": 0.0, "schedule": "cosine"}
# Options that are not of every cell: models on features (which the paper updates more often, too),
# flow, dynamic images, segments.
NOT_OF_FEATURES = ("freeze", "truncate", "update_fraction", "colour_jitter", "chunks_per_video")
NOT_OF_FLOW = ("colour_jitter", "mirror", "frames")
NOT_OF_DYNAMIC = ("mirror", "chunks_per_video", "frames")
BACKBONE = "none-frames"  # what is trained on single frames
# Options that say where and with what a run computes, in which going on with it may differ.
PLACES = ("threads", "workers", "device", "store", "weights", "root")


@dataclass(frozen=True)
class Task:
    """A cell on a split with a seed."""

    cell: Cell
    split: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.cell.name}-split{self.split}-seed{self.seed}"


class Features(NamedTuple):
    """Features that cells keep: of how many frames, and their size."""

    name: str
    options: Config
    frames: int
    nbytes: int


class Runner:
    """Runs tables of the paper, by their numbers, into `folder`.

    options: of recres.train, as they were given, for all cells; "updates" among them is for those
    that the budget is for. data_root: where data sets lie that have no "root". splits, seeds: every
    cell is run on each of these with each of so many. budget: seconds for everything; None: as many
    updates as --updates says, or the epochs of recres.train.
    """

    def __init__(self, folder: Path, numbers: Sequence[int], options: Mapping[str, Any],
                 data_root: str, splits: Sequence[int], seeds: int, budget: float | None) -> None:
        self.folder, self.data_root, self.budget = folder, data_root, budget
        self.options = {name: value for name, value in options.items() if name != "updates"}
        # A network as the cells have it; what some of them lack is looked at cell by cell.
        common = Cell("", {"context": 2})
        self.base = config.resolve(CELL_DEFAULTS | self._options_of(common), data_root)
        self.pretrained = pretrained_stage(self.base)
        self.plan = make(numbers, self.base.truncate, self.base.batch * self.base.context,
                         self.pretrained)
        self.tasks = [Task(cell, split, seed) for seed in range(seeds) for split in splits
                      for cell in self.plan.cells.values()]
        self.updates: int | None = options.get("updates")
        self.costs: dict[str, float] = {}  # seconds of a run, by the cell's name
        self.failures: dict[str, str] = {}
        # Frames of the videos as they were sampled for the last cell (`_sampling`).
        self._source: tuple[tuple[Any, ...], FrameSource] | None = None

    def config(self, task: Task, ready: bool = True) -> Config:
        """All options of a task; ready=False: as far as they are known before a backbone is."""
        cell, values = task.cell, CELL_DEFAULTS | self._options_of(task.cell)
        values |= dict(cell.options) | {"split": task.split, "seed": task.seed,
                                        "threads": self.base.threads}
        if cell.budgeted:
            values["updates"] = self.updates or 1
        if "features" in values or values.get("freeze", "none") != "none":
            name = "features" if self._shares_features(cell) else f"features-seed{task.seed}"
            values["store"] = str((self.folder / name).absolute())
        if cell.backbone and self.pretrained is None and ready:
            backbone = self._path(Task(self.plan.cells[BACKBONE], task.split, task.seed))
            if not (backbone / "result.json").is_file():
                raise InputError(f"{backbone}: the network that is trained on single frames is not "
                                 "complete")
            values["weights"] = str((backbone / "best.safetensors").absolute())
            values["store"] = str((backbone / "features").absolute())
        return config.resolve(values, self.data_root)

    def _options_of(self, cell: Cell) -> dict[str, Any]:
        """The given options, as far as they are of a cell."""
        left_out = {"features": NOT_OF_FEATURES, "flow": NOT_OF_FLOW, "dynamic": NOT_OF_DYNAMIC,
                    "segments": ("chunks_per_video",)}
        kinds = ["features"] if "features" in cell.options else [
            cell.options.get(name, "") for name in ("input", "sampling")]
        without = {name for kind in kinds for name in left_out.get(kind, ())}
        if "flow" not in kinds:
            without.add("flow_length")
        if kinds != ["features"] and self.options.get("freeze", "none") == "none":
            without.add("mirror")
        values = {name: value for name, value in self.options.items() if name not in without}
        if values.get("chunks_per_video"):  # of two frames; as many frames, whatever the context
            frames = values["chunks_per_video"] * 2
            values["chunks_per_video"] = max(1, round(frames / cell.options["context"]))
        return values

    def _shares_features(self, cell: Cell) -> bool:
        """Whether its frozen stages are the same with every seed: those that weights fill are."""
        if self.pretrained is None:
            return False
        return "features" in cell.options or (
            self.base.freeze == "stem"
            or stage_number(self.base.freeze) <= stage_number(self.pretrained))

    def _path(self, task: Task) -> Path:
        return self.folder / "cells" / task.name

    # Before anything is trained

    def prepare(self, log: Callable[[str], object]) -> None:
        """Read plan.json, or measure the cells and make it. InputError where the folder has one of
        other options."""
        path = self.folder / "plan.json"
        options = self.base.to_json() | self.options
        wanted: dict[str, Any] = {"options": options, "budget": self.budget}
        # As long as nothing has run (after a dry run) another plan can be made.
        known = path.is_file() and (self.folder / "cells").is_dir()
        plan = read_plan(path) if known else {**wanted, "updates": None, "seconds": {}}
        differ = [name for name, value in wanted["options"].items()
                  if plan["options"].get(name) != value and name not in ("threads", "device")]
        if differ or plan["budget"] != self.budget:
            what = f"--{differ[0].replace('_', '-')}" if differ else "--budget"
            raise InputError(f"{what}: {self.folder} holds tables that were made with another; "
                             "--out keeps them apart")
        if self.updates not in (None, plan["updates"] or self.updates):
            raise InputError(f"--updates {self.updates}: {self.folder} holds tables that were made "
                             f"with {plan['updates']}; --out keeps them apart")
        self.updates = plan["updates"] or self.updates
        self.costs = dict(plan["seconds"])
        counts = self._count_frames(log)
        features = self._features(counts)
        self._check_room(features, log)
        if not all(name in self.costs for name in self.plan.cells):
            self._measure(counts, features)
            write_json(path, wanted | {"updates": self.updates, "seconds": self.costs})

    def _count_frames(self, log: Callable[[str], object]) -> Mapping[str, int | str]:
        """How many frames are sampled of each video, where chunks are of one frame."""
        path = self.folder / "frames.json"
        sampling = {name: getattr(self.base, name)
                    for name in ("data", "root", "frame_step", "skip_bad")}
        known = read_json(path) if path.is_file() else {}
        whole = isinstance(known, dict) and isinstance(known.get("found"), dict) and all(
            type(count) in (int, str) for count in known["found"].values())
        if not whole or known.get("sampling") != sampling:
            single = config.replace(self.base, context=1)
            known = {"sampling": sampling, "found": build.scan_videos(single, log).found}
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
        return known["found"]

    def _features(self, counts: Mapping[str, int | str]) -> list[Features]:
        """What the cells keep of frozen stages, each once for all that share it."""
        frames = sum(n for n in counts.values() if isinstance(n, int))
        found: dict[tuple[str, bool], Features] = {}
        runs = len(self.tasks) // len(self.plan.cells)
        for cell in self.plan.cells.values():
            options = self.config(Task(cell, self.base.split, 0), ready=False)
            network = build.build_network(options, 2)
            stage = build.frozen_stage(options, network)
            pooled = bool(options.features)
            if stage is None or (stage, pooled) in found:
                continue
            shape = feature_shape(network, stage, options.image_size)
            numbers = shape[-1] if pooled else math.prod(shape)
            seeds = len({task.seed for task in self.tasks})
            stores = (runs if cell.backbone and self.pretrained is None else
                      1 if self._shares_features(cell) else seeds)
            mirrored = "-mirror" if options.mirror else ""
            found[stage, pooled] = Features(
                f"{Kind(stage, pooled)}{mirrored}", options, frames * stores,
                stores * frames * numbers * NUMBER.itemsize * (1 + options.mirror))
        return list(found.values())

    def _check_room(self, features: Sequence[Features], log: Callable[[str], object]) -> None:
        """Say how large the features will be. InputError where the disk has no room for them."""
        size = sum(each.nbytes for each in features)
        if not size:
            return
        there = sum(path.stat().st_size for each in features
                    for path in self.folder.rglob(f"{each.name}/features.f16"))
        log(f"features  {size / 1e9:.2f} GB in all, {there / 1e9:.2f} GB of it made, in "
            f"{self.folder}: {', '.join(each.name for each in features)}")
        if size - there > (free := free_bytes(self.folder)):
            needed = (size - there) / 1e9
            raise InputError(f"{self.folder}: the features need {needed:.2f} GB more, the disk has "
                             f"{free / 1e9:.2f} GB free")

    def _measure(self, counts: Mapping[str, int | str], features: Sequence[Features]) -> None:
        """Find out what the cells cost, and, if that is not known, how many updates they get."""
        runs = len(self.tasks) // len(self.plan.cells)
        costs: dict[str, tuple[Cost, int]] = {}  # and updates of those that the budget is not for
        with bar("measuring", "cell", len(self.plan.cells)) as shown:
            for cell in self.plan.cells.values():
                options = self.config(Task(cell, self.base.split, 0), ready=False)
                videos = self._planned(options, counts)
                train, test = (len(videos.chunks(side)) for side in ("train", "test"))
                cost = measure(options, len(videos.split.classes), train,
                               test * (2 if videos.split.pairs else 1))
                if options.input != "frames":
                    cost = cost._replace(rest=cost.rest + reading_time(videos))
                costs[cell.name] = cost, total_updates(train, options)
                shown.update()
        budgeted = [cost for name, (cost, _) in costs.items() if self.plan.cells[name].budgeted]
        if self.updates is None and self.budget is not None:
            fixed = sum(each.frames / encoding_rate(each.options, 2) for each in features)
            fixed += runs * sum(cost.seconds(updates) for name, (cost, updates) in costs.items()
                                if not self.plan.cells[name].budgeted)
            self.updates = updates_within(self.budget, budgeted, runs, fixed)
        elif self.updates is None and budgeted:
            chunks = len(self._planned(self.base, counts).chunks("train"))
            self.updates = total_updates(chunks, self.base)
        for name, (cost, updates) in costs.items():
            self.costs[name] = round(cost.seconds(
                self.updates or 1 if self.plan.cells[name].budgeted else updates), 1)

    def _planned(self, options: Config, counts: Mapping[str, int | str]) -> Videos:
        """The videos and chunks of a cell, to a chunk or two, from the frames that `counts` says:
        those that are too short are sampled more finely when it comes to it."""
        found = {name: n if isinstance(n, str) else 1 if options.input == "dynamic"
                 else max(n, options.context) for name, n in counts.items()}
        return Videos(build.read_split(options, log=str), options, found)

    def estimate(self, task: Task) -> float:
        """Seconds that a run will take, 0 if it is complete."""
        complete = (self._path(task) / "result.json").is_file()
        return 0.0 if complete else self.costs[task.cell.name]

    # Running

    def run(self, interrupts: Interrupts, command: Sequence[str],
            log: Callable[[str], object]) -> None:
        """Run what is not complete; what fails is remembered, and the others are run."""
        total = sum(map(self.estimate, self.tasks))
        with bar("tables", "s", round(total)) as shown:
            for number, task in enumerate(self.tasks, start=1):
                seconds = self.estimate(task)
                shown.set_postfix_str(task.name)
                try:
                    error = self._run(task, interrupts, command)
                except Exception as failure:  # the others are not lost
                    self.failures[task.name] = _one_line(failure)
                    text = f"failed: {self.failures[task.name]}"
                else:
                    text = f"video error {error:.4f}"
                if seconds:
                    log(f"{number:4}/{len(self.tasks)}  {task.name:44} {text}")
                    shown.update(round(seconds))

    def _run(self, task: Task, interrupts: Interrupts, command: Sequence[str]) -> float:
        """Run a task, if need be; its video error."""
        path, options = self._path(task), self.config(task)
        with self._open(path, options, command) as run:
            if run.result is None:
                if not (path / "videos.json").is_file() and (found := self._counted(options)):
                    write_json(path / "videos.json", found)
                sampling = _sampling(options)
                known, source = self._source or (None, None)
                with open(path / "log.txt", "a", encoding="utf-8") as file:
                    job = Job(run, interrupts, lambda text: print(text, file=file, flush=True),
                              source if known == sampling else None)
                    job.do()
                assert job.source is not None
                self._source = sampling, job.source
        result = read_json(path / "result.json")
        require(result, {"video_error": SHARE}, path / "result.json")
        return result["video_error"]

    def _counted(self, options: Config) -> Any:
        """How many frames of each video are sampled for these options, if that is known: from a run
        that samples in the same way, on whatever split. None if it is not."""
        if (options.input, options.context) == ("frames", 1):
            return read_json(self.folder / "frames.json")["found"]
        wanted = _sampling(options)[1:]
        for task in self.tasks:
            path = self._path(task) / "videos.json"
            if path.is_file() and _sampling(Run.open(path.parent).config)[1:] == wanted:
                return read_json(path)
        return None

    @contextlib.contextmanager
    def _open(self, path: Path, options: Config, command: Sequence[str]) -> Iterator[Run]:
        new = not (path / "config.json").is_file()
        if new:
            run = Run.create(path, options, {
                "started": time.strftime("%Y-%m-%dT%H:%M:%S"), "command": list(command),
                "environment": summary.environment()})
        else:
            run = Run.open(path)
            stored, wanted = run.config.to_json(), options.to_json()
            for name in wanted:
                if stored[name] != wanted[name] and name not in PLACES:
                    raise InputError(f"{path}: made with --{name.replace('_', '-')} "
                                     f"{stored[name]}, not {wanted[name]}")
        with run:
            if run.result is None:
                run.change(options)
            try:
                yield run
            except (InputError, FormatError):
                if new:
                    run.discard()
                raise

    # What came out

    def tables(self) -> list[Table]:
        """The tables, as far as their cells are complete."""
        return [self._table(plan) for plan in self.plan.tables]

    def _table(self, plan: TablePlan) -> Table:
        return Table(
            plan.number, plan.title, self._about(plan), list(plan.label_columns),
            list(plan.columns),
            [Row(dict(zip(plan.label_columns, row.label, strict=True)),
                 [self._entry(place) for place in row.places],
                 i == plan.place(plan.reference), row.note) for i, row in enumerate(plan.rows)],
            [(plan.place(one), plan.place(other)) for one, other in plan.further])

    def _about(self, plan: TablePlan) -> dict[str, Any]:
        base, numbers = self.base, sorted({task.split for task in self.tasks})
        splits = [build.read_split(config.replace(base, split=number), log=str)
                  for number in numbers]
        used = [self.plan.cells[name] for row in plan.rows for place in row.places
                for name in place.cells]
        trained = "; frozen backbones: trained on single frames first" if any(
            cell.backbone for cell in used) else ""
        update = (f"{base.update_fraction:.2%} of the training data" if base.update_fraction else
                  f"{base.batch * base.context} frames")
        chosen = "best epoch on held-out groups" if base.holdout else "last one"
        start = Path(base.weights).name if base.weights else f"none{trained}"
        return {
            "data": base.data, "classes": len(splits[0].classes),
            "videos": "; ".join(f"split {split.number}: {len(split.train)} to train on, "
                                f"{len(split.test)} to test on" for split in splits),
            "network": f"{base.backbone} {base.version}, width {base.width}"
                       + (f", ends after {base.truncate}" if base.truncate != "none" else ""),
            "weights": start,
            "frozen": "nothing" if base.freeze == "none" else f"up to {base.freeze}, temporal "
                      "convolutions excepted",
            "input": f"one frame in {base.frame_step}, {base.image_size} x {base.image_size}",
            "training": f"Adam, {base.schedule} learning rate {base.lr:g}, {self.updates} updates "
                        f"of {update} a network, the {chosen} counts" if any(
                            cell.budgeted for cell in used) else None,
            "seeds": len({task.seed for task in self.tasks}),
        }

    def _entry(self, place: Place) -> Entry:
        runs = []
        for task in self.tasks:
            if place.cells and task.cell.name == place.cells[0]:
                parts = [Task(self.plan.cells[name], task.split, task.seed) for name in place.cells]
                runs.append(self._result(parts[0]) if len(parts) == 1 else self._fused(parts))
        return Entry(place.column, place.paper, runs)

    def _result(self, task: Task) -> RunResult:
        path = self._path(task)
        if (path / "result.json").is_file():
            return read_result(path, (task.cell.name, task.seed, task.split))
        known = task.cell.name, task.seed, task.split, str(path)
        if task.name in self.failures:
            return RunResult(*known, "failed", reason=self.failures[task.name])
        return RunResult(*known, "missing")

    def _fused(self, tasks: Sequence[Task]) -> RunResult:
        """The error of the tasks' mean posteriors."""
        parts = [self._result(task) for task in tasks]
        name = "+".join(task.cell.name for task in tasks)
        folder = self.folder / "fused"
        path = folder / f"{name}-split{tasks[0].split}-seed{tasks[0].seed}.npz"
        known = name, tasks[0].seed, tasks[0].split, str(path)
        for status in ("failed", "missing"):
            if reasons := [part.reason for part in parts if part.status == status]:
                return RunResult(*known, status, reason=reasons[0])
        try:
            fused = fuse([read_scores(part.scores) for part in parts if part.scores])
        except InputError as error:
            return RunResult(*known, "failed", reason=str(error))
        folder.mkdir(exist_ok=True)
        write_scores(path, fused, fused.classes, fused.data, fused.split)
        seconds = sum(part.seconds or 0.0 for part in parts)
        return RunResult(*known, "complete", fused.video_error, None, seconds, str(path))


def pretrained_stage(options: Config) -> str | None:
    """The last stage that --weights fill, with all before it; None without --weights."""
    if options.weights is None:
        return None
    network = build.build_network(options, 2)
    start = build.load_weights(network, options, log=str)["weights"]
    drawn = {name.partition(".")[0] for name in start["initialised"]}
    filled = [stage for stage in network.stages[1:] if stage not in drawn]
    if "conv1" in drawn or filled[:2] != ["block1", "block2"]:
        raise InputError(f"--weights {options.weights}: do not fill block1 and block2, which the "
                         "baselines need")
    filled = [stage for i, stage in enumerate(filled) if stage == network.stages[i + 1]]
    return filled[-1]


def read_result(path: Path, task: tuple[str, int, int]) -> RunResult:
    """What came of the run in a folder that has a result; task: its cell, seed and split."""
    file = path / "result.json"
    try:
        result = read_json(file)
        require(result, {"video_error": SHARE, "chunk_error": SHARE, "training_seconds": TIME},
                file)
    except InputError:
        return RunResult(*task, str(path), "failed", reason=f"{file}: damaged")
    return RunResult(*task, str(path), "complete", result["video_error"], result["chunk_error"],
                     result["training_seconds"], str(path / "scores.npz"))


def read_plan(path: Path) -> dict[str, Any]:
    """What plan.json says; InputError where it is no plan."""
    plan = read_json(path)
    if not isinstance(plan, dict):
        raise InputError(f"{path}: not a plan of tables")
    require(plan, {"options": MAPPING, "seconds": MAPPING}, path)
    require(plan["seconds"], dict.fromkeys(plan["seconds"], TIME), path)
    for name, known in (("updates", COUNT), ("budget", TIME)):
        if plan.get(name) is not None:
            require(plan, {name: known}, path)
    return {"updates": None, "budget": None, **plan}


def _sampling(options: Config) -> tuple[Any, ...]:
    """What the frames of videos, and their counts, depend on."""
    return options.split, options.input, options.context, options.flow_length


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    plain = isinstance(error, InputError | FormatError | RunFailed | OSError)
    return text if plain and text else f"{type(error).__name__}: {text}"
