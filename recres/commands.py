"""What the commands share: arguments, errors of one line, exit codes, and being interrupted.

Exit status: 0 done, 2 what was given cannot be used, 1 the run failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

import cv2
from tqdm import tqdm

import tensorlite
from recres import limits
from recres.errors import InputError
from tensorlite import distributed
from tensorlite.io import FormatError
from tensorlite.transfer import explain_memory_error


class RunFailed(RuntimeError):
    """A run cannot go on; the message is one line."""


class Interrupted(BaseException):
    """Somebody asked for an end (Ctrl-C, SIGTERM); the message says how to go on."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `InputError`s; adds --debug.

    less_memory: what to say to someone whose GPU ran out of it.
    """

    def __init__(self, module: str, description: str, less_memory: str) -> None:
        super().__init__(prog=f"python -m {module}", description=description, allow_abbrev=False)
        self.less_memory = less_memory
        self.add_argument("--debug", action="store_true",
                          help="show the traceback of an error")
        self.add_argument("--limit", metavar="NAME=N", action=Limit,
                          help="how much is taken of a file from outside; what is larger is "
                               "refused. --limit list: what there are")

    def error(self, message: str) -> NoReturn:
        if unknown := re.match("unrecognized arguments: (--[^ =]+)", message):
            near = get_close_matches(unknown[1], self._option_string_actions, 1, 0.8)
            message += "".join(f" (is it {option}?)" for option in near)
        raise InputError(message)


class Limit(argparse.Action):
    """Changes one of `recres.limits`, or prints them all."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: Any, option_string: str | None = None) -> None:
        if values == "list":
            width = max(map(len, limits.MEANINGS))
            for name, number in limits.values().items():
                print(f"{name:{width}} {number:11}  {limits.MEANINGS[name]}")
            parser.exit()
        name, _, number = values.partition("=")
        try:
            limits.change({name: int(number)})
        except ValueError:
            raise InputError(f"--limit {values}: expected NAME=N with N at least 1, and NAME one "
                             f"of {', '.join(limits.values())}") from None


def use_machine(threads: int, device: str) -> None:
    """Compute with this many threads on this device from here on. OpenCV gets no threads of its
    own: the cores belong to the kernels, and to whole videos where many are decoded."""
    tensorlite.set_num_threads(threads)
    tensorlite.use_device(device)
    cv2.setNumThreads(1)


def bar(text: str, unit: str, total: int | None = None) -> Any:
    """A progress bar that leaves nothing behind, and shows only on a terminal."""
    return tqdm(total=total, desc=text, unit=unit, leave=False, disable=None)


def say(text: str) -> None:
    """Print a line, above a progress bar that may be there. Bytes of names that are no UTF-8 are
    escaped."""
    tqdm.write(text.encode(errors="backslashreplace").decode(), file=sys.stdout)
    sys.stdout.flush()


def allowing(text: str) -> str:
    """What to add to an error that names one of the limits: the option that changes it."""
    limit = re.search(r"\blimits\.([A-Z_]+)", text)
    return f" (--limit {limit[1]}=N allows more)" if limit else ""


def refused_several(prog: str) -> int | None:
    """The exit status of a command that mpiexec started more than once, None of any other. Copies
    that know nothing of each other would write the same files: rank 0 says so, and all end."""
    rank, size = distributed.launched()
    if size == 1:
        return None
    if rank == 0:
        print(f"error: {prog}: works in one process, and mpiexec has started {size}: start it "
              "without mpiexec", file=sys.stderr)
    return 0 if rank else 2


def run(parser: Parser, body: Callable[[argparse.Namespace], int],
        argv: Sequence[str] | None = None, together: bool = False) -> int:
    """Parse the arguments and call `body` with them; returns the exit status. together: whether
    the command knows of the other processes where mpiexec has started several.

    Every error becomes one line on stderr; with --debug its traceback comes before that line.
    """
    if not together and (refused := refused_several(parser.prog)) is not None:
        return refused
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return body(parser.parse_args(arguments))
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"\n{str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        bad_input = isinstance(error, InputError | FormatError)
        plain = bad_input or isinstance(error, RunFailed | OSError | MemoryError)
        text = " ".join(str(error).split())
        if not text:
            plain, text = True, ("out of memory" if isinstance(error, MemoryError)
                                 else type(error).__name__)
        if memory := explain_memory_error(error):
            plain, text = True, f"{memory}; {parser.less_memory}"
        name = "" if plain else f"{type(error).__name__}: "
        known = bad_input or memory or isinstance(error, RunFailed | OSError | MemoryError)
        hint = "" if known or "--debug" in arguments else " (--debug shows where)"
        print(f"error: {name}{text}{hint}{allowing(text)}", file=sys.stderr)
        return 2 if bad_input else 1


class Interrupts:
    """Turns SIGINT and SIGTERM into `Interrupted`, at once or, within `deferred`, after it.

    `hint` becomes the exception's message. As a context manager it installs the handlers (in the
    main thread; elsewhere signals do not arrive) and puts the former ones back. quiet: that the
    end is put off is for another process to say.
    """

    def __init__(self, hint: str = "interrupted", quiet: bool = False) -> None:
        self.hint, self.quiet = hint, quiet
        self.requested = False
        self._deferring = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        with contextlib.suppress(ValueError):  # not in the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: object) -> None:
        if self._deferring and not self.requested:
            self.requested = True
            if not self.quiet:
                print("\nfinishing the update (once more: stop at once) …", file=sys.stderr)
        else:
            self.requested = True  # (in a place where Python drops exceptions, this is what stays)
            raise Interrupted(self.hint)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it the first signal only sets `requested`; the caller looks at that afterwards."""
        before, self._deferring = self._deferring, True
        try:
            yield
        finally:
            self._deferring = before

    def updated(self) -> None:
        """Called after every update: one that counts them may ask for the end."""

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it, though it is in `deferred`, nothing is put off, nor what was before."""
        before, self._deferring = self._deferring, False
        try:
            if self.requested:
                raise Interrupted(self.hint)
            yield
        finally:
            self._deferring = before
