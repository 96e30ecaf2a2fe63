"""Sampled frames of a data set's videos, decoded once and kept on disk.

Decoding a clip of UCF-101 yields every frame to keep every tenth; a store has the tenth alone. Its
folder:

    about.json           the settings that say which frames these are, and where they are from
    frames-00000.bin …   the frames, as JPEG or raw, video after video, about SHARD_BYTES a file
    videos.jsonl         a line a video (`frame_index.Line`), written when its frames are on disk
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
import json
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from recres import limits
from recres.datasets import Video
from recres.errors import InputError
from recres.files import append, naming, open_regular, refuse_links, write_json
from recres.video.decode import VideoError, check_bytes, iter_frames
from recres.video.frame_index import (
    FORMAT,
    Line,
    Settings,
    differs,
    file_state,
    kept_indices,
    read_about,
    read_lines,
)
from recres.video.sample import sample_indices
from tensorlite.io import write_bytes

SHARD_BYTES = 256 << 20  # of a file of frames, after which the next one begins
MOST_OF_JPEG = 65500  # pixels of a side, the bound of libjpeg

_SHARD = re.compile(r"frames-(\d{5,19})\.bin", re.ASCII)


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
        frame = reduced(frame, settings.size)
        shape, size = frame.shape, size + frame.nbytes
        if size > limits.VIDEO_BYTES:
            raise VideoError(path, "too long: its sampled frames have more than "
                                   f"{limits.VIDEO_BYTES} bytes")
        if settings.codec == "jpeg" and max(shape) > MOST_OF_JPEG:
            raise VideoError(path, f"frames of {shape[1]}x{shape[0]}, a JPEG has no side of more "
                                   f"than {MOST_OF_JPEG} (--codec raw keeps them)")
        frames.append(_compressed(frame, settings))
    return frames, index + 1, shape


def reduced(frame: np.ndarray, size: int | None) -> np.ndarray:
    """A frame (H, W, 3) with `size` as its shorter side where that is larger; see `Settings`."""
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
        self.about = read_about(self.path)
        self.settings = Settings(**self.about["settings"])
        self.lines: dict[str, Line] = {}
        self.ends: dict[int, int] = {}  # by shard, where the last of its lines ends
        lines, self.damage, self.index_bytes = read_lines(self.index, self.settings)
        self._verified: set[str] = set()
        self._lock = threading.Lock()
        for line in lines:
            self.note(line)
        if self.damage and not tolerant:
            number, why = self.damage[0]
            raise InputError(f"{self.index}: line {number} is damaged: {why}; recres.data prepare "
                             "--repair leaves it out and decodes its video again")

    def __getstate__(self) -> dict[str, Any]:
        """For another process; a lock cannot go there."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

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
            with open_regular(path, buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if size < line.end:  # before as much memory is asked for
                    raise self._damaged(line, f"they end at byte {line.end}, the file at {size}")
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
                          f"{why}; recres.data prepare --repair makes them again")


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
    a new store. repair: videos whose frames are damaged are `missing`, for which all are read and
    decoded; lines of the index that are none go. InputError where a store with other settings is
    there, or another process writes.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Settings,
                 about: dict[str, Any] | None = None, shard_bytes: int = SHARD_BYTES,
                 repair: bool = False) -> None:
        settings.check(str(path))
        self.path, self.settings, self.shard_bytes = Path(path), settings, shard_bytes
        self.repair = repair
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
        for name in ("about.json", "videos.jsonl"):
            for stale in self.path.glob(f".tmp-*-{name}"):  # of a writer that was killed
                stale.unlink()
        if not (self.path / "about.json").exists():
            found = sorted(entry.name for entry in self.path.iterdir() if entry.name != "lock")
            if found:
                raise InputError(f"{self.path}: no store of frames (it has {found[0]}), and not "
                                 "empty: a new one needs a folder of its own")
            write_json(self.path / "about.json", self._about)
        self.store = FrameStore(self.path, tolerant=self.repair)
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
        if self.store.damage:  # (and `repair`)
            with naming(self.path):
                write_bytes(self.store.index, b"".join(map(_json_line, self.store.lines.values())))

    def missing(self, videos: Sequence[Video], seen: Callable[[], object] = lambda: None
                ) -> list[Video]:
        """The videos that are to be decoded: without a line, or whose frames a shard has lost, or
        of a file that has changed, or bad without its bytes having been seen. Not those whose file
        is gone but whose frames are there. `seen` is called after each video.

        Of a file that has been copied, the new time is noted, so that it is not read to compare the
        next time.
        """
        found = []
        for video in videos:
            if self._is_missing(video):
                found.append(video)
            seen()
        return found

    def _is_missing(self, video: Video) -> bool:
        line = self.store.lines.get(video.name.lower())
        if line is None or line.sha256 is None:
            return True
        if line.bad is None and not self._is_whole(line):
            return True
        try:
            if differs(line, video.path):
                return True
            modified = video.path.stat().st_mtime_ns
        except FileNotFoundError:
            return line.bad is not None
        except OSError:
            return True
        if modified != line.modified:
            self._note(replace(line, modified=modified))
        return False

    def _is_whole(self, line: Line) -> bool:
        """Whether a video's frames are there, and if `repair`, what they were."""
        try:
            if self.store.shard(line.shard).stat().st_size < line.end:
                return False
            if self.repair:
                self.store.verify(line)
                self.store.verify_images(line)
        except (OSError, InputError):
            return False
        return True

    def add(self, line: Line, data: bytes) -> None:
        """Add what `encode_video` gave; on disk when this returns."""
        if line.bad is None:
            number = max(self.store.ends, default=0)
            offset = self.store.ends.get(number, 0)
            size = path.stat().st_size if (path := self.store.shard(number)).exists() else 0
            if offset >= self.shard_bytes or size < offset:  # full, or it has lost its end
                number, offset = number + 1, 0
            line = replace(line, shard=number, offset=offset)
            self._append(self.store.shard(number), data)
        self._note(line)

    def _note(self, line: Line) -> None:
        self._append(self.store.index, _json_line(line))
        self.store.note(line)

    def _append(self, path: Path, data: bytes) -> None:
        with naming(self.path):
            append(path, data)


def _json_line(line: Line) -> bytes:
    return json.dumps(asdict(line)).encode() + b"\n"
