"""Text files from outside, read with one-line errors: lists of videos, and JSON; and how our own
are written.

What is no regular file is not opened (a pipe would never end), and what is larger than
`limits.TEXT_BYTES` is not read. What is written is on disk, to survive a power cut too, when the
function returns.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from recres import limits
from recres.errors import InputError
from tensorlite.io import flush_folder, write_bytes


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a small file. InputError where there is none, or more than TEXT_BYTES."""
    try:
        # (the name might be another file's a moment later: what is opened is looked at)
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limits.TEXT_BYTES:
                raise InputError(f"{os.fspath(path)}: {size} bytes, more than the "
                                 f"{limits.TEXT_BYTES} of recres.limits.TEXT_BYTES")
            return file.read(size)
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from None


def _refusal(path: str | os.PathLike[str], error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    if isinstance(error, FileNotFoundError):
        return InputError(f"{os.fspath(path)}: no such file")
    # (ValueError: of a NUL in the name)
    return InputError(f"{os.fspath(path)}: {getattr(error, 'strerror', None) or error}")


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str], buffering: int = -1) -> Iterator[IO[bytes]]:
    """A file, open to be read, without waiting for the other end of a pipe. InputError where it is
    no regular file; else raises as `open`."""
    def at_once(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    with open(path, "rb", buffering, opener=at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InputError(f"{os.fspath(path)}: not a file")
        yield file


def refuse_links(paths: Iterable[Path]) -> None:
    """InputError where one of the files to be written to, if it is there, is a link, or no file: a
    folder may be from anyone, and a link in it lead to any file."""
    for path in paths:
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            raise InputError(f"{path}: not a file of its own, which alone is written to")


def read_text(path: str | os.PathLike[str]) -> str:
    """A text in UTF-8, with or without a mark at its beginning. InputError as `read_bytes`."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{os.fspath(path)}: not a text file") from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file. InputError where it is absent or is none."""
    return parse_json(read_bytes(path), os.fspath(path))


def parse_json(text: str | bytes, where: str | os.PathLike[str]) -> Any:
    """The value of a JSON text. InputError, naming `where`, if it is none, is nested too deep to
    be read, or has texts that cannot be written (half a surrogate pair)."""
    try:
        value = json.loads(text)
        if (b"\\u" if isinstance(text, bytes) else "\\u") in text:  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise InputError(f"{where}: cannot be read as JSON: nested too deep") from None
    except ValueError as error:
        raise InputError(f"{where}: cannot be read as JSON: {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON; the file appears whole, and is on disk, or not at all. InputError for
    a text that is none in UTF-8, such as a folder's name may be."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        data = f"{text}\n".encode()
    except UnicodeEncodeError as error:
        line = text[: error.start].rpartition("\n")[2] + text[error.start :].partition("\n")[0]
        raise InputError(f"{ascii(os.fspath(path))[1:-1]}: {ascii(line.strip())}: expected names "
                         "in UTF-8") from None
    with naming(path):
        write_bytes(path, data)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError within is one of `path`: "no space left" alone does not say where."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def append(path: Path, data: bytes | memoryview) -> None:
    """Add to the end of a file, which is made where there is none; what was added may be there in
    part after a crash, and is on disk when this returns."""
    new = not path.exists()
    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if new:
        flush_folder(path.parent)


def lines_of(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The lines of a log of any length, one at a time, but for those longer than TEXT_BYTES. Raises
    InputError as `read_bytes` does."""
    try:
        with open_regular(path) as file:
            while line := file.readline(limits.TEXT_BYTES + 1):
                if len(line) > limits.TEXT_BYTES:
                    raise InputError(f"{os.fspath(path)}: a line of more than {limits.TEXT_BYTES} "
                                     "bytes (recres.limits.TEXT_BYTES)")
                yield line
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from None
