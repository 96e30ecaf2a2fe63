"""Sampled frames of a data set's videos, decoded once and kept on disk.

Decoding a clip of UCF-101 yields every frame to keep every tenth; a store has the tenth alone. Its
folder:

    about.json           the settings that say which frames these are, and where they are from
    frames-00000.bin …   the frames, as JPEG or raw, video after video, about SHARD_BYTES a file
    videos.jsonl         a line a video (`Line`), written when its frames are on disk
    lock                 held by the process that writes

So preparing can be stopped at any moment: what has a line is kept, and what follows is cut off. Of
two lines of a video, the later counts: its file changed in between.

Which frames of a video are used depends on the run's context (`sample.sample_indices`): one that is
too short is sampled more finely. A store made for a context has what every context up to that one
needs of each video. Raw frames are those that decoding gives, bit for bit, unless a size is asked
for; JPEG ones are the same at every reading.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import stat
import threading
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from recres import limits
from recres.datasets import Video
from recres.errors import InputError
from recres.files import append, at_once, read_bytes, read_json, refuse_links, write_json
from recres.video.decode import VideoError, check_bytes, iter_frames
from recres.video.sample import sample_indices, sample_step

FORMAT = "recres-frames-1"
CODECS = ("jpeg", "raw")
SHARD_BYTES = 256 << 20  # of a file of frames, after which the next one begins
MOST_CONTEXT = 1024
MOST_OF_JPEG = 65500  # pixels of a side, the bound of libjpeg

_SHARD = re.compile(r"frames-(\d{5,19})\.bin", re.ASCII)


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


def encode_video(video: Video, settings: Settings) -> tuple[Line, bytes]:
    """Decode a video: its line, not yet placed in a shard, and its frames as they are kept.

    A video that cannot be used has a line that says why.
    """
    line: dict[str, Any] = {"video": f"{video.path.parent.name}/{video.path.name}",
                            "group": video.group, "label": video.label}
    try:
        # Before decoding: of a file that changes meanwhile it is the old state that is noted.
        with contextlib.suppress(OSError):
            if (video.path.is_file()
                    and video.path.stat().st_size <= limits.VIDEO_FILE_BYTES):
                line |= file_state(video.path)
        frames, total, shape = _encoded(video.path, settings, whole=False)
        if len(frames) < settings.context:
            # Too short. Now that it is known how many there are, reading it again is cheap.
            frames, total, shape = _encoded(video.path, settings, whole=True)
            kept = kept_indices(total, settings)
            frames = [frames[index] for index in kept]
        else:
            total = None
    except VideoError as error:
        return Line(**line, bad=error.reason), b""
    data = b"".join(frames)
    return Line(**line, frames=len(frames), total=total, height=shape[0], width=shape[1],
                sizes=tuple(map(len, frames)), checksum=zlib.crc32(data)), data


def _encoded(path: Path, settings: Settings, whole: bool) -> tuple[list[bytes], Any, Any]:
    frames: list[bytes] = []
    index, shape, size = 0, (0, 0), 0
    for index, frame in iter_frames(path, 1 if whole else settings.frame_step):  # noqa: B007
        frame = _reduced(frame, settings.size)
        shape, size = frame.shape, size + frame.nbytes
        if size > limits.VIDEO_BYTES:
            raise VideoError(path, "too long: its sampled frames have more than "
                                   f"{limits.VIDEO_BYTES} bytes")
        if settings.codec == "jpeg" and max(shape) > MOST_OF_JPEG:
            raise VideoError(path, f"frames of {shape[1]}x{shape[0]}, a JPEG has no side of more "
                                   f"than {MOST_OF_JPEG} (--codec raw keeps them)")
        frames.append(_compressed(frame, settings))
    return frames, index + 1, shape


def _reduced(frame: np.ndarray, size: int | None) -> np.ndarray:
    height, width = frame.shape[:2]
    shorter = min(height, width)
    if size is None or shorter <= size:
        return frame
    wanted = (max(1, round(width * size / shorter)), max(1, round(height * size / shorter)))
    return cv2.resize(frame, wanted, interpolation=cv2.INTER_AREA)


def _compressed(frame: np.ndarray, settings: Settings) -> bytes:
    if settings.codec == "raw":
        return frame.tobytes()
    assert settings.quality is not None
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR),
                            [cv2.IMWRITE_JPEG_QUALITY, settings.quality])
    if not ok:
        raise RuntimeError(f"OpenCV cannot write a JPEG of {frame.shape}")
    return data.tobytes()


class FrameStore:
    """The frames in a store that is there; any number of threads may ask.

    Attributes: path; settings; about, all of about.json; lines, by `Line.key`; damage, for each
    line of the index that is none, its number and what is wrong. InputError where `path` is no
    store or, unless `tolerant`, where its index is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], tolerant: bool = False) -> None:
        self.path = Path(path)
        self.index = self.path / "videos.jsonl"
        self.about = _read_about(self.path)
        self.settings = Settings(**self.about["settings"])
        self.lines: dict[str, Line] = {}
        self.damage: list[tuple[int, str]] = []
        self.ends: dict[int, int] = {}  # by shard, where the last of its lines ends
        self.index_bytes = 0
        self._verified: set[str] = set()
        self._lock = threading.Lock()
        self._read_index()
        if self.damage and not tolerant:
            number, why = self.damage[0]
            raise InputError(f"{self.index}: line {number} is damaged: {why}; without it, its "
                             "video is decoded again by recres.data prepare")

    def __getstate__(self) -> dict[str, Any]:
        """For another process; a lock cannot go there."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _read_index(self) -> None:
        data = read_bytes(self.index) if os.path.lexists(self.index) else b""
        self.index_bytes = data.rfind(b"\n") + 1  # what follows, a killed writer was at
        for number, text in enumerate(data[: self.index_bytes].split(b"\n")[:-1], start=1):
            try:
                self.note(Line.parse(text, self.settings))
            except (ValueError, RecursionError) as error:
                reason = "it is no JSON" if isinstance(error, json.JSONDecodeError | RecursionError
                                                       | UnicodeDecodeError) else str(error)
                self.damage.append((number, reason))

    def note(self, line: Line) -> None:
        """Take up a line."""
        self.lines[line.key] = line
        if line.bad is None:
            self.ends[line.shard] = max(self.ends.get(line.shard, 0), line.end)

    @property
    def nbytes(self) -> int:
        """Bytes of the frames of all videos."""
        return sum(sum(line.sizes) for line in self.lines.values())

    def shard(self, number: int) -> Path:
        """The file of a number."""
        return self.path / f"frames-{number:05d}.bin"

    def require(self, step: int, context: int, image_size: int | None = None) -> None:
        """InputError, naming what differs, unless runs with these options can use the store."""
        made = self.settings
        if step != made.frame_step:
            raise InputError(f"{self.path}: made with --frame-step {made.frame_step}, wanted is "
                             f"{step}")
        if context > made.context:
            raise InputError(f"{self.path}: made for --context up to {made.context}, wanted is "
                             f"{context}")
        if image_size is not None and made.size is not None and made.size < image_size:
            raise InputError(f"{self.path}: made with --size {made.size}, wanted are images of "
                             f"{image_size}")

    def match(self, videos: Sequence[Video]) -> None:
        """InputError unless the store has all these videos, as they are on disk now.

        A video that is not on disk cannot be compared, and need not be there.
        """
        lacking = [video for video in videos if video.name.lower() not in self.lines]
        if lacking:
            raise InputError(f"{self.path}: lacks {len(lacking)} of {len(videos)} videos (the "
                             f"first is {lacking[0].name}); recres.data prepare adds them")
        for video in videos:
            line = self.lines[video.name.lower()]
            if line.bad is None:
                with contextlib.suppress(OSError):
                    if why := differs(line, video.path):
                        raise InputError(f"{self.path}: made of another {video.path}: it {why}; "
                                         "recres.data prepare decodes it again")

    def decoded_bytes(self, videos: Iterable[Video]) -> int:
        """Bytes of all kept frames of these videos once they are decoded."""
        lines = (self.lines[video.name.lower()] for video in videos)
        return sum(line.frames * line.height * line.width * 3 for line in lines)

    def count(self, video: Video, context: int) -> int:
        """How many sampled frames a run with this context uses. VideoError for a bad video."""
        return len(self._places(self._line(video), context))

    def frames(self, video: Video, context: int, some: Iterable[int] | None = None) -> np.ndarray:
        """The sampled frames of a video, or only `some` of them, (n, H, W, 3) uint8 RGB.

        As `sample_video` gives them. VideoError for a bad video; InputError where the store is
        damaged, which its checksum says when a video is first asked for.
        """
        line = self._line(video)
        places = self._places(line, context)
        if some is not None:
            places = [places[i] for i in some]
        check_bytes(video.path, len(places), 3 * line.height * line.width)
        return self._decoded(line, places)

    def _line(self, video: Video) -> Line:
        line = self.lines[video.name.lower()]
        if line.bad is not None:
            raise VideoError(video.path, line.bad)
        return line

    def _places(self, line: Line, context: int) -> Sequence[int]:
        """Which of the frames kept of a video are those for a context."""
        if line.total is None:
            return range(line.frames)
        place = {index: i for i, index in enumerate(kept_indices(line.total, self.settings))}
        return [place[i] for i in sample_indices(line.total, self.settings.frame_step, context)]

    def _decoded(self, line: Line, places: Sequence[int]) -> np.ndarray:
        begins = list(accumulate(line.sizes, initial=0))
        begin, end = begins[min(places)], begins[max(places) + 1]
        with self._lock:
            verified = line.key in self._verified
        data = self._read(line, begin, end) if verified else self.verify(line)[begin:end]
        shape = (len(places), line.height, line.width, 3)
        if self.settings.codec == "raw" and isinstance(places, range):
            return np.frombuffer(data, np.uint8).reshape(shape)
        frames = np.empty(shape, np.uint8)
        for place, frame in zip(places, frames, strict=True):
            part = data[begins[place] - begin : begins[place + 1] - begin]
            if self.settings.codec == "raw":
                frame[...] = np.frombuffer(part, np.uint8).reshape(shape[1:])
            else:
                self._decode_image(line, place, part, frame)
        return frames

    def verify(self, line: Line) -> bytes:
        """A video's bytes, compared with their checksum; InputError where they differ."""
        data = self._read(line, 0, sum(line.sizes))
        found = zlib.crc32(data)
        if found != line.checksum:
            raise self._damaged(line, f"CRC-32 is {found:08x}, expected {line.checksum:08x}")
        with self._lock:
            self._verified.add(line.key)
        return data

    def verify_images(self, line: Line) -> None:
        """Decode every frame of a video; InputError where one is not what the index says."""
        self._decoded(line, range(line.frames))

    def _read(self, line: Line, begin: int, end: int) -> bytes:
        path = self.shard(line.shard)
        try:
            with open(path, "rb", buffering=0, opener=at_once) as file:
                about = os.fstat(file.fileno())
                if not stat.S_ISREG(about.st_mode):
                    raise InputError(f"{path}: not a file")
                if about.st_size < line.end:  # before as much memory is asked for
                    raise self._damaged(line, f"they end at byte {line.end}, the file at "
                                              f"{about.st_size}")
                file.seek(line.offset + begin)
                parts, left = [], end - begin
                while left and (part := file.read(left)):
                    parts.append(part)
                    left -= len(part)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _decode_image(self, line: Line, place: int, data: bytes, out: np.ndarray) -> None:
        # Looked at first: a few bytes may claim an image of gigabytes.
        image = None
        if _jpeg_size(data) == (line.height, line.width):
            with contextlib.suppress(cv2.error):
                image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is None or image.shape != out.shape:
            raise self._damaged(line, f"frame {place} is no JPEG of {line.width}x{line.height}")
        # (IMREAD_COLOR_RGB would need a copy to here, which takes as long as this)
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=out)

    def _damaged(self, line: Line, why: str) -> InputError:
        return InputError(f"{self.shard(line.shard)}: the frames of {line.video} are damaged: "
                          f"{why}; take its line out of {self.index.name}, and recres.data "
                          "prepare makes them again")


def _read_about(path: Path) -> dict[str, Any]:
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


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width that a JPEG's frame header gives; None where there is none."""
    if data[:2] != b"\xff\xd8":  # of another format, whose header claims what it likes
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        # 0xC0 to 0xCF are frame headers, but for tables (C4, CC) and an extension (C8).
        if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):
            return (int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9]))
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


class FrameStoreWriter:
    """Adds videos to the store in `path`, which is made where there is none.

    To be used as a context manager, which holds the lock. about: what else to note in about.json of
    a new store. InputError where a store with other settings is there, or another process writes.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Settings,
                 about: dict[str, Any] | None = None, shard_bytes: int = SHARD_BYTES) -> None:
        settings.check(str(path))
        self.path, self.settings, self.shard_bytes = Path(path), settings, shard_bytes
        self._about = {"format": FORMAT, "settings": asdict(settings), **(about or {})}
        self._descriptor: int | None = None

    def __enter__(self) -> FrameStoreWriter:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from None
        try:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.path}: another process is writing to this store") from None
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        for stale in self.path.glob(".tmp-*-about.json"):  # of a writer that was killed
            stale.unlink()
        if not (self.path / "about.json").exists():
            found = sorted(entry.name for entry in self.path.iterdir() if entry.name != "lock")
            if found:
                raise InputError(f"{self.path}: no store of frames (it has {found[0]}), and not "
                                 "empty: a new one needs a folder of its own")
            write_json(self.path / "about.json", self._about)
        self.store = FrameStore(self.path)
        made = asdict(self.store.settings)
        for name, wanted in asdict(self.settings).items():
            if made[name] != wanted:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{self.path}: made with {option} {made[name]}, wanted is "
                                 f"{wanted}; another --out keeps them apart")
        self._cut()

    def _cut(self) -> None:
        """Take off what a killed writer left without a line. A shard that is too short stays as it
        is, and so does the hole in it: its videos are missing."""
        shards = {path: int(found[1]) for path in self.path.iterdir()
                  if (found := _SHARD.fullmatch(path.name))}
        refuse_links((*shards, self.store.index))
        for path, number in shards.items():
            end = self.store.ends.get(number, 0)
            if path.stat().st_size > end:
                os.truncate(path, end)
        if self.store.index.exists():
            os.truncate(self.store.index, self.store.index_bytes)

    def missing(self, videos: Sequence[Video]) -> list[Video]:
        """The videos that are to be decoded: without a line, or whose frames a shard has lost, or
        of a file that has changed, or bad without its bytes having been seen.

        Of a file that has been copied, the new time is noted, so that it is not read to compare the
        next time.
        """
        return [video for video in videos if self._is_missing(video)]

    def _is_missing(self, video: Video) -> bool:
        line = self.store.lines.get(video.name.lower())
        if line is None or line.sha256 is None:
            return True
        try:
            if line.bad is None and self.store.shard(line.shard).stat().st_size < line.end:
                return True
            if differs(line, video.path):
                return True
            modified = video.path.stat().st_mtime_ns
        except OSError:
            return True
        if modified != line.modified:
            self._note(replace(line, modified=modified))
        return False

    def add(self, line: Line, data: bytes) -> None:
        """Add what `encode_video` gave; on disk when this returns."""
        if line.bad is None:
            number = max(self.store.ends, default=0)
            offset = self.store.ends.get(number, 0)
            size = path.stat().st_size if (path := self.store.shard(number)).exists() else 0
            if offset >= self.shard_bytes or size < offset:  # full, or it has lost its end
                number, offset = number + 1, 0
            line = replace(line, shard=number, offset=offset)
            append(self.store.shard(number), data)
        self._note(line)

    def _note(self, line: Line) -> None:
        append(self.store.index, json.dumps(asdict(line)).encode() + b"\n")
        self.store.note(line)
