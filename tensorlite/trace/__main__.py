"""``python -m tensorlite.trace SCRIPT.py``: run a program, recorded, and look at what it did.

The page is written (--html), the recording stepped through in the terminal (--step) or written as
JSON (--json). Without one of these it is stepped where there is a terminal, else summed up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import runpy
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from tensorlite import trace

from .stepper import step, table
from .steps import Steps
from .tape import Tape

PROGRAM = "python -m tensorlite.trace"
WITH_VALUE, FLAGS = ("--html", "--json"), ("--step", "--check", "--no-check", "-h", "--help")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    ours, rest = _split(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(ours)
    script = Path(options.script)
    if not script.is_file():
        return _refuse(f"SCRIPT: there is no file {options.script!r}")
    for target in (options.html, options.json):
        if target is None or target == "-":
            continue
        if Path(target).is_dir():
            return _refuse(f"{target!r} is a folder: expected a file to write")
        if not Path(target).absolute().parent.is_dir():
            return _refuse(f"there is no folder to write {target!r} in")
    start = Path.cwd()  # (the script may go elsewhere)
    with contextlib.ExitStack() as stack:
        json_out = stack.enter_context(_kept_clean()) if options.json == "-" else None
        tape, status = _record(options.script, rest, options.check)
        if not any(event.op is not None for event in tape.events):
            print(f"{options.script}: applied no op of tensorlite: there is nothing to show",
                  file=sys.stderr)
            return status or 1
        if json_out is not None:
            json.dump(tape.as_dict(), json_out, allow_nan=False)
            json_out.write("\n")
        elif options.json is not None:
            tape.save_json(start / options.json)
        elif options.html is not None:
            tape.save_html(start / options.html)
            size = os.path.getsize(start / options.html) / 1e6
            print(f"{options.html}: {len(tape.events)} steps, {size:.1f} MB")
        elif options.step or sys.stdin.isatty():
            step(tape)
        else:
            print(summary(tape))
    return status


def summary(tape: Tape) -> str:
    """What was recorded, in a few lines and a table."""
    forwards = sum(event.kind == "forward" for event in tape.events)
    meetings = sum(any(piece.before is not None for piece in event.pieces)
                   for event in tape.events)
    backwards = sum(event.kind == "backward" for event in tape.events)
    head = (f"{tape.title}: {len(tape.events)} steps: {forwards} forward, {backwards} backward, "
            f"at {meetings} of which paths meet")
    return "\n".join([*tape.notes, head, table(Steps(tape), len(tape.events) - 1)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, usage=f"{PROGRAM} SCRIPT.py [--html FILE | --step | --json FILE] "
        "[--check] [ARGS ...]", description="Run a script, record what it does with tensorlite, "
        "and step through it, forwards and backwards. What follows these options goes to the "
        "script; -- ends them.")
    parser.add_argument("script", metavar="SCRIPT.py")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--html", metavar="FILE", help="write the page, one file that opens offline")
    how.add_argument("--step", action="store_true", help="step through it in the terminal")
    how.add_argument("--json", metavar="FILE", help="write the events as JSON, - for the output")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=False,
                        help="put derivatives by central differences beside those of backward")
    return parser


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments for here and those for the script: all from the first after its name that is
    not known here."""
    ours: list[str] = []
    named, k = False, 0
    while k < len(argv):
        word = argv[k]
        if word in WITH_VALUE:
            ours += argv[k:k + 2]
            k += 2
            continue
        if named and word == "--":
            return ours, argv[k + 1:]
        if word not in FLAGS and not word.startswith(tuple(f"{name}=" for name in WITH_VALUE)):
            if named:
                break
            named = not word.startswith("-")
        ours.append(word)
        k += 1
    return ours, argv[k:]


def _refuse(message: str) -> int:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return 2


def _record(script: str, arguments: list[str], check: bool) -> tuple[Tape, int]:
    """Run `script` as ``python SCRIPT ARGUMENTS`` would, recorded; the tape, and the exit status.
    """
    status = 0
    argv, path = sys.argv, sys.path[:]
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    try:
        with trace.record(Path(script).name, check=check) as tape:
            try:
                runpy.run_path(script, run_name="__main__")
            except SystemExit as error:
                status = _status(error)
            except BaseException as error:
                status = 130 if isinstance(error, KeyboardInterrupt) else 1
                _report(error, script)
                last = traceback.format_exception_only(error)[-1].strip()
                tape.notes.append(f"the script ended with {last}")
    finally:
        sys.argv, sys.path[:] = argv, path
        sys.stdout.flush()
    return tape, status


def _status(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


def _report(error: BaseException, script: str) -> None:
    """Print the traceback from the script's own first line on."""
    frame: TracebackType | None = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename != script:
        frame = frame.tb_next
    traceback.print_exception(error.with_traceback(frame))


@contextlib.contextmanager
def _kept_clean() -> Iterator:
    """The standard output, to which nothing else goes within it: what is printed goes to the
    standard error."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield out
        finally:
            out.flush()
            os.dup2(out.fileno(), 1)


if __name__ == "__main__":
    sys.exit(main())
