"""The index of a store of frames (`frame_store`): with which settings it was made, and a line for
each video that says where its frames lie and which file they were made of.

about.json and videos.jsonl may be from anyone: all that they say is looked at before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recres import limits
from recres.errors import InputError
from recres.files import read_bytes, read_json
from recres.video.sample import sample_step

FORMAT = "recres-frames-1"
CODECS = ("jpeg", "raw")
MOST_CONTEXT = 1024


@dataclass(frozen=True)
class Settings:
    """Which frames a store has, and in which form.

    frame_step: every n-th frame. context: enough frames a video for every context up to this one.
    size: the shorter side to which larger frames are reduced; None keeps them as they are. quality:
    of JPEG, None for raw frames.
    """

    frame_step: int
    context: int
    size: int | None = None
    codec: str = "jpeg"
    quality: int | None = 90

    @property
    def pixels(self) -> str | None:
        """How the frames are not exactly those of the videos; None where they are."""
        changes = [f"shorter side {self.size}"] if self.size is not None else []
        changes += [f"jpeg of quality {self.quality}"] if self.codec == "jpeg" else []
        return ", ".join(changes) or None

    def check(self, where: str) -> None:
        """Raise InputError, naming `where`, for what no store can be made with."""
        ranges = (("frame_step", 1, 2**31 - 1), ("context", 1, MOST_CONTEXT),
                  *((("size", 16, 2**14),) if self.size is not None else ()),
                  *((("quality", 1, 100),) if self.codec == "jpeg" else ()))
        if self.codec not in CODECS:
            raise InputError(f"{where}: codec is {self.codec!r}, expected one of "
                             f"{', '.join(CODECS)}")
        if self.codec == "raw" and self.quality is not None:
            raise InputError(f"{where}: quality is {self.quality!r}, but raw frames have none")
        for name, least, most in ranges:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise InputError(f"{where}: {name} is {value!r}, expected {least} to {most}")


@dataclass(frozen=True)
class Line:
    """What a line of videos.jsonl says of a video, or why there are no frames of it (`bad`).

    video: <Class>/<name>.avi. frames: how many are kept. total: how many the file has; only known,
    and only needed, of a video that is too short for the context at the frame step. offset: of the
    first frame in its shard; sizes: bytes of each. checksum: CRC-32 of them all. file_size,
    modified (ns) and sha256 are those of the video file; null where it could not be read.
    """

    video: str
    group: str
    label: int
    frames: int = 0
    total: int | None = None
    height: int = 0
    width: int = 0
    shard: int = 0
    offset: int = 0
    sizes: tuple[int, ...] = ()
    checksum: int = 0
    file_size: int | None = None
    modified: int | None = None
    sha256: str | None = None
    bad: str | None = None

    @property
    def key(self) -> str:
        """By which a video is found: its name, in which upper and lower case are not told apart."""
        return self.video.rpartition("/")[2].lower().removesuffix(".avi")

    @property
    def end(self) -> int:
        """Where in its shard its frames end."""
        return self.offset + sum(self.sizes)

    @classmethod
    def parse(cls, text: bytes, settings: Settings) -> Line:
        """The line that `text` is; ValueError saying what is wrong with it."""
        values = json.loads(text)
        if not isinstance(values, dict) or not isinstance(values.get("sizes"), list):
            raise ValueError("it is no line of an index")
        try:
            line = cls(**values | {"sizes": tuple(values["sizes"])})
        except TypeError:
            raise ValueError("it has other entries than a line has") from None
        for name in ("video", "group"):
            if not isinstance(getattr(line, name), str):
                raise ValueError(f"{name} is no text")
        if line.bad is not None and (not isinstance(line.bad, str) or line.sizes or line.frames):
            raise ValueError("bad is no reason, or there are frames of a bad video")
        if not isinstance(line.sha256, str | None) or type(line.modified) not in (int, type(None)):
            raise ValueError("sha256 is no text, or modified no number")
        numbers = (line.label, line.frames, line.height, line.width, line.shard, line.offset,
                   line.checksum, *(0 if number is None else number
                                    for number in (line.total, line.file_size)), *line.sizes)
        if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            raise ValueError("a number in it is none that can be")
        if line.bad is None:
            line._check_frames(settings)
        return line

    def _check_frames(self, settings: Settings) -> None:
        if self.frames < 1 or self.frames != len(self.sizes):
            raise ValueError(f"{self.frames} frames, but the sizes of {len(self.sizes)}")
        frame = self.height * self.width * 3
        if (not frame or frame > 3 * limits.VIDEO_PIXELS
                or self.frames * frame > limits.VIDEO_BYTES):
            raise ValueError(f"{self.frames} frames of {self.width}x{self.height}: none, or more "
                             f"than {limits.VIDEO_PIXELS} pixels or {limits.VIDEO_BYTES} bytes")
        if settings.codec == "raw" and set(self.sizes) != {frame}:
            raise ValueError(f"raw frames of {self.width}x{self.height} have {frame} bytes each")
        # A video that has `context` frames at the frame step has them for every smaller one too.
        enough = self.frames >= settings.context if self.total is None else (
            # (the cheap ones first: a hostile index has many lines)
            self.total <= min(settings.context * settings.frame_step, limits.VIDEO_FRAMES)
            and self.frames >= min(self.total, settings.context)
            and len(kept_indices(self.total, settings)) == self.frames)
        if not enough:
            raise ValueError(f"{self.frames} frames of {self.total or 'an unknown number'} are not "
                             f"those kept for a context of {settings.context}")


def kept_indices(total: int, settings: Settings) -> tuple[int, ...]:
    """The frames that a store keeps of a video of `total` frames, for all contexts it is for."""
    kept = np.zeros(total, bool)
    for step in {sample_step(total, settings.frame_step, context)
                 for context in range(1, settings.context + 1)}:
        kept[::step] = True
    return tuple(np.flatnonzero(kept).tolist())


def file_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Size, time of change and sha256 of a file, as a `Line` has them. OSError if it cannot be
    read."""
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file_size": about.st_size, "modified": about.st_mtime_ns, "sha256": digest}


def differs(line: Line, path: str | os.PathLike[str]) -> str | None:
    """How the file in `path` is not the one that `line` was made of; None where it is the same.

    A file of the same size and time of change is taken to be the same; a copy, with another time,
    is read to see. OSError where there is no such file.
    """
    about = os.stat(path)
    if about.st_size != line.file_size:
        return f"had {line.file_size} bytes, now {about.st_size}"
    if about.st_mtime_ns != line.modified and about.st_size > limits.VIDEO_FILE_BYTES:
        return (f"has {about.st_size} bytes, more than the {limits.VIDEO_FILE_BYTES} of "
                "recres.limits.VIDEO_FILE_BYTES")
    if about.st_mtime_ns != line.modified and file_state(path)["sha256"] != line.sha256:
        return "has other bytes now, of the same number"
    return None


def read_about(path: Path) -> dict[str, Any]:
    """What the about.json of the store in `path` says. InputError where it is that of none."""
    file = path / "about.json"
    if not os.path.lexists(file):
        raise InputError(f"{path}: no store of frames there (no about.json)")
    about = read_json(file)
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise InputError(f"{file}: format is {found!r}, expected {FORMAT!r}")
    try:
        settings = Settings(**about["settings"])
    except (LookupError, TypeError):
        raise InputError(f"{file}: does not say with which settings the store was made") from None
    settings.check(str(file))
    return about


def read_lines(path: Path, settings: Settings) -> tuple[list[Line], list[tuple[int, str]], int]:
    """The lines of a videos.jsonl, which may be absent; of each that is none, its number and what
    is wrong; and the bytes of them all: what follows, a killed writer was at."""
    data = read_bytes(path) if os.path.lexists(path) else b""
    end = data.rfind(b"\n") + 1
    lines: list[Line] = []
    damage: list[tuple[int, str]] = []
    for number, text in enumerate(data[:end].split(b"\n")[:-1], start=1):
        try:
            lines.append(Line.parse(text, settings))
        except (ValueError, RecursionError) as error:
            reason = "it is no JSON" if isinstance(error, json.JSONDecodeError | RecursionError
                                                   | UnicodeDecodeError) else str(error)
            damage.append((number, reason))
    return lines, damage, end
