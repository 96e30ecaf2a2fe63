"""Which checkpoints a run keeps, and writing them while training goes on.

    checkpoint.safetensors    the newest
    checkpoint-1.safetensors  the one before it; -2 the one before that, as many as are kept
    best.safetensors          the model of the best epoch
    checkpoint.damaged        one that was found altered when the run was gone on with

`recover` is asked when a run begins or goes on: it sees to it that checkpoint.safetensors is whole,
taking the one before where it is not. `Checkpoints` writes: the arrays are copies, one thread at a
time puts them on disk, and what went wrong there is raised by `check` or `wait`. What could not be
written is still in memory then, and `rescue` puts it where it can (`other_folders`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recres import checkpoint
from recres.commands import RunFailed
from tensorlite.distributed import Processes
from tensorlite.io import FormatError, flush_folder, replacing

NEWEST, BEST, DAMAGED = "checkpoint.safetensors", "best.safetensors", "checkpoint.damaged"
MEMORY = Path("/dev/shm")


class State(NamedTuple):
    """All that training goes on from (`checkpoint.snapshot`), after so many updates."""

    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]
    update: int


def resume_command(folder: Path, processes: Processes) -> str:
    """What goes on with a run of these processes."""
    return f"{processes.launcher}python -m recres.train --resume {shlex.quote(str(folder))}"


class NotWritten(Exception):
    """Something of a run could not be written to its folder; the cause says why."""


def other_folders() -> Iterator[Path]:
    """Where the state of a run may go whose own folder cannot be written to: the one for temporary
    files (TMPDIR), the user's, and at last memory."""
    with contextlib.suppress(OSError):  # there is none that anything could be written to
        yield Path(tempfile.gettempdir())
    with contextlib.suppress(RuntimeError):
        yield Path.home()
    if MEMORY.is_dir():
        yield MEMORY


def earlier(folder: Path) -> list[Path]:
    """The checkpoints before the newest, as far as they are there, the later ones first."""
    found = {}
    for path in folder.glob("checkpoint-*.safetensors"):
        number = path.stem.removeprefix("checkpoint-")
        if number.isdecimal():
            found[int(number)] = path
    return [found[number] for number in sorted(found)]


def recover(folder: Path, log: Callable[[str], object]) -> Path | None:
    """The newest checkpoint, found whole; None where there is none at all.

    Where the newest is damaged, the one before takes its place, and `log` is told. FormatError
    where none is whole, InputError for one that this version does not read, OSError or MemoryError
    for one that nothing is known to be wrong with, but that cannot be read at the moment.
    """
    newest = folder / NEWEST
    damage: list[str] = []
    for path in (newest, *earlier(folder)):
        if not path.exists():
            continue
        try:
            _, progress = checkpoint.read_checkpoint(path)
        except FormatError as error:
            _raise_if_passing(error)
            damage.append(str(error))
            continue
        if path != newest:
            if newest.exists():
                os.replace(newest, folder / DAMAGED)
            os.replace(path, newest)
            flush_folder(folder)
            why = "; ".join(damage) or f"{newest}: no such file"
            log(f"damaged   {why}: going on from the one before, {path.name}, after update "
                f"{progress.update}")
        return newest
    if damage:
        raise FormatError(f"{'; '.join(damage)}; no other checkpoint of the run is whole: it has "
                          "to be begun anew")
    return None


def has_best(folder: Path, epoch: int, log: Callable[[str], object]) -> bool:
    """Whether best.safetensors is whole, and of the epoch that a checkpoint calls the best.

    It is of a later one where that was killed, or damaged, before it had a checkpoint; that epoch
    is trained again. `log` is told of damage. Raises as `recover`.
    """
    try:
        return checkpoint.load_model(folder / BEST)[1].get("epoch") == str(epoch)
    except FormatError as error:
        _raise_if_passing(error)
        log(f"damaged   {error}: the best model is lost, and the best of the epochs that are left "
            "takes its place, or the last if none is")
        return False


def _raise_if_passing(error: FormatError) -> None:
    """Raise the cause of `error` where a file cannot be read though it may well be whole."""
    cause = error.__cause__
    if isinstance(cause, MemoryError | OSError) and getattr(cause, "errno", 0) != errno.EIO:
        raise cause from None


class Checkpoints:
    """Writes the newest `keep` checkpoints of a run, and its best model, in a thread of its own.

    `written` is the number of updates made by the newest checkpoint on disk. processes: those that
    train; what is to be said when one of them dies is kept up to date.
    """

    def __init__(self, folder: Path, keep: int, written: int | None = None,
                 processes: Processes | None = None) -> None:
        self.folder, self.keep, self.written = folder, keep, written or 0
        self.processes = processes or Processes()
        if written is not None:
            self._tell()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._failed: tuple[Mapping[str, np.ndarray], Mapping[str, str]] | None = None
        self._unwritten: State | None = None

    def save(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], update: int,
             before: Callable[[], object] = lambda: None) -> None:
        """Begin to write a checkpoint of so many updates (see `checkpoint.snapshot`), whose arrays
        nobody may write to any more. `before` is called first, in the thread."""
        def write() -> None:
            self._unwritten = State(arrays, metadata, update)
            before()
            self._write_newest(arrays, metadata)
            self.written, self._unwritten = update, None
            self._tell()

        self._begin(write)

    def save_best(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
        """Begin to write the best model; a checkpoint saved afterwards is written after it."""
        def write() -> None:
            self._failed = arrays, metadata
            checkpoint.write_model(self.folder / BEST, arrays, metadata)
            self._failed = None

        self._begin(write)

    @property
    def busy(self) -> bool:
        """Whether something is being written."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """NotWritten if what was written last could not be."""
        if self._error is not None:
            raise NotWritten from self._error

    def wait(self) -> None:
        """Wait until everything is on disk; raises as `check`."""
        self.close()
        self.check()

    def close(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def rescue(self, state: State | None, update: int, error: NotWritten,
               failed: BaseException | None = None) -> RunFailed:
        """Write the state of now, and a best model that was not written, outside the run's folder:
        into the first of `other_folders` that takes it. `update` is how many were begun. state:
        None where that of now is not whole; then that of the checkpoint which could not be written
        takes its place. failed: what else went wrong.

        Gives the error that says where they are and how to go on with them, or what is lost.
        """
        self.close()
        resume = resume_command(self.folder, self.processes)
        text = f"{self.folder}: cannot be written: {_reason(error.__cause__ or error)}"
        if failed is not None:
            text += f"; and {_reason(failed)}"
        state, tried = state or self._unwritten, []
        for folder in other_folders():
            if state is None:
                break
            try:
                place = self._put(folder, state)
            except Exception as second:
                tried.append(f"{folder}: {_reason(second)}")
                continue
            note = ", which is memory, and gone when the machine ends" if folder == MEMORY else ""
            return RunFailed(f"{text}; the state after update {state.update} is saved in {place}"
                             f"{note}; when there is room, go on with: mv "
                             f"{shlex.quote(str(place))}/* {shlex.quote(str(self.folder))} && "
                             f"{resume}")
        nor = f"; nor can {', nor '.join(tried)}" if tried else ""
        lost = "nothing is lost" if update == self.written else (
            f"lost is what came after update {self.written}, up to update {update}")
        return RunFailed(f"{text}{nor}; {lost}; when there is room, go on with: {resume}")

    def _put(self, folder: Path, state: State) -> Path:
        """Write what is to be rescued into a new folder within `folder`, or leave nothing there."""
        place = Path(tempfile.mkdtemp(prefix="recres-", dir=folder))
        try:
            if self._failed is not None:
                checkpoint.write_model(place / BEST, *self._failed)
            checkpoint.write(place / NEWEST, state.arrays, state.metadata)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return place

    def _tell(self) -> None:
        self.processes.after_a_death(f"the last checkpoint is of update {self.written}, go on "
                                     f"with: {resume_command(self.folder, self.processes)}")

    def _begin(self, write: Callable[[], object]) -> None:
        """Have a thread call `write`, once the one before has ended."""
        self.wait()

        def body() -> None:
            try:
                write()
            except Exception as error:
                self._error = error

        thread = threading.Thread(target=body, name="checkpoint")
        thread.start()
        self._thread = thread  # (a signal may come in between: one not begun cannot be waited for)

    def _write_newest(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
        """Whole on disk under another name first: the others move up only for one that is."""
        newest = self.folder / NEWEST
        with replacing(newest) as beside:
            checkpoint.write(beside, arrays, metadata)
            self._move_up(newest)
        flush_folder(self.folder)

    def _move_up(self, newest: Path) -> None:
        """Each of the earlier checkpoints becomes one earlier, the newest the first of them."""
        name = lambda number: self.folder / f"checkpoint-{number}.safetensors"  # noqa: E731
        last = self.keep - 1
        for path in earlier(self.folder):
            if int(path.stem.removeprefix("checkpoint-")) > last:
                path.unlink()
        for number in range(last - 1, 0, -1):
            if name(number).exists():
                os.replace(name(number), name(number + 1))
        if last and newest.exists():
            with replacing(name(1)) as beside:  # it keeps its own name too: a run always has one
                try:
                    os.link(newest, beside)
                except OSError:  # a file system without links
                    os.replace(newest, beside)


def _reason(error: BaseException) -> str:
    """What an error says, without the name of a temporary file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
