"""The folder of a run: what stands in it, who may write to it, and how it is read back.

    config.json             all options, versions, command line, and what the model started from
    lock                    held while a process writes to the folder
    log.txt                 what the run had to say, where a table asked for it
    videos.json             frames counted in each video, once
    metrics.jsonl           a line an update and a line an evaluation, appended
    checkpoint.safetensors  all that training goes on from; checkpoint-1.safetensors and so on are
                            the ones before it (recres.checkpoints)
    best.safetensors        the model of the best epoch
    features/               features of the frozen stages, until the run is complete (without
                            --store)
    scores.npz              posteriors of the test videos
    curves.png, confusion.png
    nonfinite-*.json, .safetensors  an update that was not finite, for recres.replay
    tensorboard/            event files (--tensorboard), made from metrics.jsonl
    report.html, flow.html  where recres.report and recres.flow were asked for them
    result.json             written last: a run that has one is complete
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recres.config import Config
from recres.errors import InputError
from recres.files import lines_of, parse_json, read_json, write_json

RUNS = Path("runs")
OWN = re.compile(r"(config|result|videos)\.json|metrics\.jsonl|log\.txt|lock|scores\.npz|"
                 r"(best|checkpoint(-\d+)?)\.safetensors|nonfinite-.*\.(json|safetensors)|"
                 r"(curves|confusion)\.png")


def refuse_own(path: Path, option: str = "") -> None:
    """InputError where a file to be written, which `option` names, has the name of one that a run
    is made of, and there is a run in that folder."""
    if OWN.fullmatch(path.name) and (path.parent / "config.json").is_file():
        raise InputError(f"{option} {path}: the name of a file that the run there is made of, "
                         "expected another".lstrip())


class Run:
    """A run's folder. As a context manager it holds the lock, and only then may be written to.

    Make one with `Run.create` or `Run.open`. Attributes: path, config, about (what else stands in
    config.json).
    """

    def __init__(self, path: Path, config: Config, about: dict[str, Any]) -> None:
        self.path, self.config, self.about = path, config, about
        self._lock: int | None = None

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Config,
               about: Mapping[str, Any]) -> Run:
        """A new run, locked. InputError unless the folder is absent or empty, or another writes."""
        path = Path(path)
        run = cls(path, config, dict(about))
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.lock()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        # (".tmp-": of a writer that was killed)
        found = sorted(p.name for p in path.iterdir()
                       if p.name != "lock" and not p.name.startswith(".tmp-"))
        if found:
            run.unlock()
            more = f"; go on with it by --resume {path}" if "config.json" in found else ""
            raise InputError(f"{path}: not empty (it has {found[0]}), a new run needs an empty "
                             f"folder{more}")
        run.write_config()
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """The run in a folder, not locked. InputError if there is none."""
        path = Path(path)
        if not (path / "config.json").is_file():
            raise InputError(f"{path}: no run there (no config.json)")
        about = read_json(path / "config.json")
        if not isinstance(about, dict):
            raise InputError(f"{path / 'config.json'}: not the configuration of a run")
        config = Config.from_json(about.pop("options", {}), str(path / "config.json"))
        return cls(path, config, about)

    @classmethod
    def latest(cls, folder: Path = RUNS) -> Run:
        """The run begun last in `folder`. InputError if there is none."""
        found = []
        for path in folder.glob("*/config.json"):
            with contextlib.suppress(InputError):  # what is wrong with another run is no obstacle
                run = cls.open(path.parent)
                found.append((str(run.about.get("started", "")), path.parent.name, run))
        if not found:
            raise InputError(f"{folder}: no run there to go on with")
        return max(found, key=lambda one: one[:2])[2]

    def discard(self) -> None:
        """Remove a new run that could not begin, so that its folder can be used again. A run that
        has a checkpoint stays."""
        if not any(self.path.glob("checkpoint*.safetensors")):
            for name in ("config.json", "videos.json", "log.txt", "lock"):
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else is in it
                self.path.rmdir()

    def lock(self) -> None:
        """Take the lock; InputError when another process has it. The system frees it when this
        process ends, however it ends."""
        path = self.path / "lock"
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 20).decode(errors="replace").strip()
                os.close(descriptor)
                raise InputError(f"{self.path}: another process ({holder or 'unknown'}) is writing "
                                 "to this run") from None
            if _is_still(path, descriptor):
                break
            os.close(descriptor)  # removed meanwhile (`discard`): another may lock a new one
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock = descriptor

    def unlock(self) -> None:
        """Give the lock back, if it is held."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Run:
        if self._lock is None:
            self.lock()
        for stale in self.path.glob(".tmp-*-*"):  # of a writer that was killed
            stale.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        self.unlock()

    def write_config(self) -> None:
        """Write config.json from `config` and `about`."""
        write_json(self.path / "config.json", {"options": self.config.to_json(), **self.about})

    def change(self, config: Config) -> None:
        """Go on with these options, and let config.json say so where it says something else (or
        nothing, of an option that came after the run)."""
        self.config = config
        if read_json(self.path / "config.json")["options"] != config.to_json():
            self.write_config()

    @property
    def result(self) -> dict[str, Any] | None:
        """What result.json says; None while the run is not complete."""
        path = self.path / "result.json"
        return read_json(path) if path.is_file() else None


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


class MetricsLog:
    """metrics.jsonl, open for appending: one JSON object a line.

    A line that cannot be written stays in `unwritten`, to be written before the next one, and
    `error` says why: training goes on to where it can stop without losing anything.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab+", buffering=0)  # noqa: SIM115 - closed by close()
        self.unwritten: list[str] = []
        self.error: OSError | None = None
        self._torn = False
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            self._torn = self._file.read(1) != b"\n"  # the line a killed writer was at

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line; it must have no number that is not finite."""
        self.extend([json.dumps(line, allow_nan=False)])

    def extend(self, lines: Iterable[str]) -> None:
        """Add lines as they are."""
        self.unwritten += lines
        try:
            while self.unwritten:
                data = ("\n" * self._torn + self.unwritten[0] + "\n").encode()
                while data:
                    self._torn = True
                    data = data[self._file.write(data):]
                self._torn = False
                del self.unwritten[0]
        except OSError as error:
            self.error = error

    def sync(self) -> None:
        """Put on disk what was appended, to survive a power cut too."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: str | os.PathLike[str], kind: str = "update") -> list[dict[str, Any]]:
    """The lines of one kind ("update", "evaluation", "nonfinite") of a metrics.jsonl, in order of
    their number.

    Evaluations are numbered by "epoch", the others by "update". After a resume the later line of a
    number counts; a line that is torn is passed over. An absent file has no lines.
    """
    key = "epoch" if kind == "evaluation" else "update"
    lines: dict[int, dict[str, Any]] = {}
    for line in lines_of(path) if os.path.lexists(path) else ():
        try:
            value = parse_json(line, path)
        except InputError:
            continue
        if isinstance(value, dict) and value.get("kind") == kind and type(value.get(key)) is int:
            lines[value[key]] = value
    return [lines[number] for number in sorted(lines)]
