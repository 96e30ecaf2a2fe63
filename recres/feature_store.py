"""Features of frames behind frozen stages: computed once, kept on disk, read in every epoch.

What the network makes of a frame up to a frozen stage never changes, as long as the frame is always
seen in the same view. A folder holds any number of stores, each in a folder of its own that is
named for what it has (`block3-maps`, `block3-pooled`, `block3-maps-mirror`):

    about.json      what made the features; a store is not mixed with what anything else made
    features.f16    numbers and nothing else, little endian, video after video: of each video its
                    frames and, with --mirror, their mirror images
    videos.jsonl    a line a video, written when its numbers are on disk: its name, the count of its
                    sampled frames, the size of its file, and where its numbers begin (in bytes) and
                    their CRC-32
    lock            held by the process that writes

So making a store can be stopped at any moment: what has a line is kept, and what comes after it is
cut off. A store grows by the videos that it lacks, and serves any number of runs and splits.

A line is found by name and count of frames. At one frame step the count says which frames they are,
whatever the least count that was asked for (`video.sample.sample_indices`: a video that is too
short for it is sampled more finely, and then has more of them). So runs with different contexts use
one store, and only videos that are too short for one of them are in it twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recres.commands import say
from recres.config import Config
from recres.errors import InputError
from recres.evaluation import in_full
from recres.files import append, parse_json, read_bytes, read_json, refuse_links, write_json
from recres.loader import SIDES, Chunk, FrameLoader, Videos, other_frames
from recres.models import STAGES, VideoResNet
from recres.models.resnet import parts_up_to, stage_number
from recres.random import generator
from recres.video.prefetch import Prefetcher
from tensorlite import Tensor, global_avg_pool, no_grad

FORMAT = "recres-features-1"
FRAMES_AT_ONCE = 16  # through the network, at most, while features are made
NUMBER = np.dtype("<f2")
LARGEST = float(np.finfo(NUMBER).max)


class Kind(NamedTuple):
    """Which features of a frame: the maps after a stage, or their mean over the frame."""

    stage: str
    pooled: bool

    def __str__(self) -> str:
        return f"{self.stage}-{'pooled' if self.pooled else 'maps'}"


# From (place of a video, kinds of features) one after the other, each video's features by kind:
# (views, n, H, W, C), pooled (views, n, C), float32.
Jobs = Iterable[tuple[int, Sequence[Kind]]]
Encode = Callable[[Jobs], Generator[Mapping[Kind, np.ndarray], None, None]]


@dataclass(frozen=True)
class MadeBy:
    """What features come from, and so what they can be used for.

    parameters: sha256 of all numbers of the frozen stages in use. weights: where these are from, in
    words. convention: how the network wants its images. pixels: how the frames are not exactly
    those of the videos (`FrameSource.pixels`). The precision that products are computed
    with is not among it: it is rounding, as float16 is.
    """

    stage: str
    pooled: bool
    mirror: bool
    depth: int
    version: str
    width: int
    channels: int
    input: str
    flow_length: int | None
    image_size: int
    frame_step: int
    convention: str
    parameters: str
    weights: str | None
    pixels: str | None

    @property
    def kind(self) -> Kind:
        """Which features these are."""
        return Kind(self.stage, self.pooled)

    @property
    def name(self) -> str:
        """The name of their store's folder."""
        return f"{self.kind}-mirror" if self.mirror else str(self.kind)

    @property
    def views(self) -> int:
        """In how many views each frame is kept: as it is and, with `mirror`, mirrored."""
        return 1 + self.mirror


def made_by(model: VideoResNet, stage: str, pooled: bool, config: Config, convention: str,
            weights_source: str | None, pixels: str | None = None) -> MadeBy:
    """What the features of `model` after `stage` come from."""
    return MadeBy(
        stage=stage, pooled=pooled, mirror=config.mirror, depth=model.depth, version=model.version,
        width=model.width, channels=model.channels, input=config.input,
        flow_length=config.flow_length if config.input == "flow" else None,
        image_size=config.image_size, frame_step=config.frame_step, convention=convention,
        parameters=fingerprint(model, stage), weights=weights_source, pixels=pixels)


def fingerprint(model: VideoResNet, stage: str) -> str:
    """sha256 of the parameters and buffers of the stem to `stage`, with their names and shapes."""
    used = parts_up_to(stage)
    digest = hashlib.sha256()
    for name, array in sorted(model.state_dict().items()):
        if name.partition(".")[0] in used:
            array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.data.cast("B"))
    return digest.hexdigest()


class _Line(NamedTuple):
    """A line of videos.jsonl."""

    name: str
    frames: int
    size: int
    offset: int
    checksum: int


class StoreFiles:
    """The files of a store that is there. InputError where they are no store, or damaged.

    Attributes: path, its folder; about, what about.json says; lines, by name and count of frames;
    end, where in features.f16 the last of them ends.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.features, self.index = path, path / "features.f16", path / "videos.jsonl"
        self.about: dict[str, Any] = read_json(path / "about.json")
        found = self.about.get("format") if isinstance(self.about, dict) else None
        if found != FORMAT:
            raise InputError(f"{path}: format in about.json is {found!r}, expected {FORMAT!r}")
        shape, mirror = self.about.get("shape"), self.about.get("mirror")
        if (not isinstance(shape, list) or len(shape) not in (1, 3)
                or any(type(n) is not int or not 1 <= n < 2**31 for n in shape)
                or type(mirror) is not bool):
            raise InputError(f"{path}: about.json does not say the shape of its features")
        self.frame_shape, self.views = tuple(shape), 1 + mirror
        self.lines: dict[tuple[str, int], _Line] = {}
        self.end = 0
        self._verified: set[_Line] = set()
        self._mapped: np.ndarray | None = None
        self._read()

    def _read(self) -> None:
        data = read_bytes(self.index) if os.path.lexists(self.index) else b""
        size = 0
        if os.path.lexists(self.features):
            if not self.features.is_file():
                raise InputError(f"{self.features}: not a file")
            size = self.features.stat().st_size
        self._index_bytes = data.rfind(b"\n") + 1  # what follows, a killed writer was at
        for number, text in enumerate(data[: self._index_bytes].split(b"\n")[:-1], start=1):
            line = self._parse(text)
            if line is None:
                raise InputError(f"{self.index}: line {number} is damaged; without it, its video "
                                 "is made again")
            if self._end(line) > size:
                raise self._damaged(line, f"they end at byte {self._end(line)}, the file at {size}")
            self._note(line)

    def _parse(self, text: bytes) -> _Line | None:
        """The line that `text` is; None where it is none, or its numbers lie on another's."""
        try:
            line = _Line(**parse_json(text, self.index))
        except (InputError, TypeError):
            return None
        numbers = (line.frames, line.size, line.offset, line.checksum)
        if not isinstance(line.name, str) or any(
                type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            return None
        in_order = line.offset >= self.end and line.offset % NUMBER.itemsize == 0
        return line if line.frames and in_order else None

    def _note(self, line: _Line) -> None:
        self.lines[line.name, line.frames] = line
        self.end = max(self.end, self._end(line))

    def _end(self, line: _Line) -> int:
        numbers = self.views * line.frames * math.prod(self.frame_shape)
        return line.offset + NUMBER.itemsize * numbers

    @property
    def nbytes(self) -> int:
        """Size of the features of all videos."""
        return sum(self._end(line) - line.offset for line in self.lines.values())

    def video(self, key: tuple[str, int]) -> np.ndarray:
        """A video's features (views, n, ...), float16, mapped; compared with their checksum when
        they are first asked for."""
        line = self.lines[key]
        if self._mapped is None or self._end(line) > self._mapped.nbytes:
            self._mapped = np.memmap(self.features, NUMBER, "r",
                                     shape=(self.end // NUMBER.itemsize,))
        numbers = self._mapped[line.offset // NUMBER.itemsize : self._end(line) // NUMBER.itemsize]
        if line not in self._verified:
            found = zlib.crc32(numbers.data)
            if found != line.checksum:
                raise self._damaged(line, f"their CRC-32 is {found:08x}, not {line.checksum:08x}")
            self._verified.add(line)
        return numbers.reshape(self.views, line.frames, *self.frame_shape)

    def _damaged(self, line: _Line, why: str) -> InputError:
        return InputError(f"{self.features}: the features of video {line.name} are damaged: {why}; "
                          f"without its line in {self.index.name} they are made again")

    def append(self, name: str, size: int, features: np.ndarray) -> None:
        """Add a video's features (views, n, ...), while the lock is held; on disk when this
        returns."""
        data = np.ascontiguousarray(features, NUMBER)
        line = _Line(name, features.shape[1], size, self.end, zlib.crc32(data.data))
        append(self.features, data.data.cast("B"))
        append(self.index, json.dumps(line._asdict()).encode() + b"\n")
        self._note(line)
        self._verified.add(line)

    def cut(self) -> None:
        """Take off what a killed writer left without a line, while the lock is held."""
        refuse_links((self.features, self.index))
        for path, size in ((self.features, self.end), (self.index, self._index_bytes)):
            with open(path, "ab") as file:
                file.truncate(size)


class FeatureStore:
    """A `Loader` of chunks of features of the videos of `sides`; also of whole videos.

    folder: of stores; this one is in `path` therein. made_by: what the features come from, or are
    to come from. shape: of one frame's, (H, W, C) or, pooled, (C,). Nothing is written before
    `create` or `create_all`.

    InputError where the store in `path` was made by something else, or of other videos of the same
    names, or is damaged.
    """

    in_flight = 1

    def __init__(self, folder: Path, made_by: MadeBy, shape: Sequence[int], videos: Videos,
                 config: Config, sides: Sequence[str] = SIDES) -> None:
        self.folder, self.path = folder, folder / made_by.name
        self.made_by, self.kind, self.stage = made_by, made_by.kind, made_by.stage
        self.shape, self.views = tuple(shape), made_by.views
        self.videos, self.config = videos, config
        self.places = tuple(place for side in sides for place in videos.sides[side])
        self._files: StoreFiles | None = None
        self._open()

    def _open(self) -> None:
        """Look at what is there now."""
        if not (self.path / "about.json").exists():
            if (self.path / "videos.jsonl").exists():
                raise InputError(f"{self.path}: has features, but no about.json to say what made "
                                 "them")
            return
        self._files = StoreFiles(self.path)
        self._refuse_another()
        for place in self.places:
            line = self._files.lines.get(self._key(place))
            if line is not None and line.size != (size := self._file_size(place)):
                raise InputError(
                    f"{self.path}: the features of video {line.name} were made of a file of "
                    f"{line.size} bytes, {self.videos.source.videos[place].path} has {size}")

    def _about(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self.made_by), "shape": list(self.shape)}

    def _refuse_another(self) -> None:
        assert self._files is not None
        wanted, found = self._about(), self._files.about
        for name in wanted:
            # Where equal numbers are from makes no difference.
            if name != "weights" and found.get(name) != wanted[name]:
                was, now = (_weights_text(e) if name == "parameters" else f"{name} {e.get(name)}"
                            for e in (found, wanted))
                raise InputError(f"{self.path}: its features were made with {was}, wanted are some "
                                 f"with {now}; another --store keeps them apart")

    def _key(self, place: int) -> tuple[str, int]:
        return self.videos.source.videos[place].name, self.videos.counts[place]

    def _file_size(self, place: int) -> int:
        return os.stat(self.videos.source.videos[place].path).st_size

    @property
    def missing(self) -> tuple[int, ...]:
        """Places of the videos that are yet to be made."""
        there = self._files.lines if self._files is not None else {}
        return tuple(place for place in self.places if self._key(place) not in there)

    @property
    def nbytes(self) -> int:
        """Size of the features of all videos of the sides, made or not."""
        return self._bytes(self.places)

    @property
    def nbytes_missing(self) -> int:
        """Size of the features that are yet to be made."""
        return self._bytes(self.missing)

    def _bytes(self, places: Iterable[int]) -> int:
        frames = sum(self.videos.counts[place] for place in places)
        return NUMBER.itemsize * self.views * frames * math.prod(self.shape)

    def create(self, encode: Callable[[int], np.ndarray],
               progress: Callable[[int], Any] | None = None) -> None:
        """`create_all` of this store alone; encode(place) → its features of that video."""
        create_all([self], lambda jobs: ({self.kind: encode(place)} for place, _ in jobs), progress)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock, waiting for another process that has it; the files are then in order."""
        self.path.mkdir(parents=True, exist_ok=True)
        with _locked(self.path):
            self._open()
            if self._files is None:
                write_json(self.path / "about.json", self._about())
                self._files = StoreFiles(self.path)
            self._files.cut()
            yield

    def _add(self, place: int, features: np.ndarray) -> None:
        video, count = self.videos.source.videos[place], self.videos.counts[place]
        if features.ndim > 1 and features.shape[1] != count:
            raise other_frames(video, features.shape[1], str(count))
        expected = (self.views, count, *self.shape)
        if features.shape != expected or features.dtype != np.float32:
            raise ValueError(f"features: expected float32 {expected}, got {features.dtype} "
                             f"{features.shape}")
        with np.errstate(over="ignore"):
            numbers = features.astype(NUMBER, order="C")
        if not np.isfinite(numbers).all():
            worst = features[~np.isfinite(numbers)][0]
            raise InputError(f"{video.path}: a feature after {self.stage} is {worst:g}, expected a "
                             f"number that float16 can hold, at most {LARGEST:g}")
        assert self._files is not None
        self._files.append(video.name, self._file_size(place), numbers)

    def load(self, chunks: Sequence[Chunk], epoch: int | None = None,
             backwards: bool = False) -> np.ndarray:
        """See `recres.loader.Loader`; with --mirror a training epoch draws one of the two views of
        each chunk."""
        if backwards and self.made_by.input != "frames":
            raise ValueError(f"backwards: the {self.made_by.input} of a video played backwards is "
                             "not that of the video in reverse")
        indices = [self.videos.frame_indices(chunk, epoch) for chunk in chunks]
        out = np.empty((len(chunks), len(indices[0]), *self.shape), np.float32)
        for target, chunk, places in zip(out, chunks, indices, strict=True):
            view = 0
            if epoch is not None and self.views > 1:
                rng = generator(self.config.seed, epoch, chunk.number, "view")
                view = int(rng.integers(self.views))
            frames = self._video(chunk.video)[view]
            frames = frames[::-1] if backwards else frames
            for row, i in zip(target, places, strict=True):
                row[...] = frames[i]
        return out

    def arguments(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """See `recres.loader.Loader`."""
        return {"after": self.stage}

    def sequence(self, place: int, view: int = 0) -> np.ndarray:
        """The features of all sampled frames of a video, (n, C) or (n, H, W, C), float32."""
        return self._video(place)[view].astype(np.float32)

    def _video(self, place: int) -> np.ndarray:
        name, _ = key = self._key(place)
        if self._files is None or key not in self._files.lines:
            raise ValueError(f"video {name}: not in {self.path}; create() comes first")
        return self._files.video(key)

    def remove(self) -> None:
        """Delete the store, and the folder of stores if nothing else is in it."""
        self._files = None
        stale = [path.name for path in self.path.glob(".tmp-*")]
        for name in ("videos.jsonl", "features.f16", "about.json", "lock", *stale):
            (self.path / name).unlink(missing_ok=True)  # lines first: none may be false
        with contextlib.suppress(OSError):
            self.path.rmdir()
            self.folder.rmdir()


def _weights_text(about: Mapping[str, Any]) -> str:
    return f"parameters {str(about.get('parameters'))[:12]} (weights: {about.get('weights')})"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a store. The system frees it when this process ends, however it ends."""
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            say(f"waiting   {path}: another process ({holder or 'unknown'}) is writing to it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def missing(stores: Sequence[FeatureStore]) -> tuple[int, ...]:
    """Places of the videos that at least one of the stores lacks."""
    return tuple(dict.fromkeys(place for store in stores for place in store.missing))


def create_all(stores: Sequence[FeatureStore], encode: Encode,
               progress: Callable[[int], Any] | None = None) -> None:
    """Make what is missing of several stores in one pass over the videos.

    encode: usually an `encoder`; of each video it is asked for what is missing. `progress` is
    called with numbers of frames done. InputError where the disk has no room, or a number is none
    that float16 can hold.
    """
    stores = sorted((store for store in stores if store.missing), key=lambda store: store.path)
    check_room(stores)
    with contextlib.ExitStack() as held:
        for store in stores:  # in one order, so that no two processes wait for each other
            held.enter_context(store._writing())
        lacking = [(store, frozenset(store.missing)) for store in stores]
        jobs = [(place, [store for store, places in lacking if place in places])
                for place in missing(stores)]
        if not jobs:
            return
        made = held.enter_context(contextlib.closing(
            encode([(place, [store.kind for store in wanted]) for place, wanted in jobs])))
        for (place, wanted), features in zip(jobs, made, strict=True):
            for store in wanted:
                store._add(place, features[store.kind])
            if progress is not None:
                progress(store.videos.counts[place])


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder that may be yet to be made."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_room(stores: Sequence[FeatureStore]) -> None:
    """InputError where the disk has no room for what is missing of the stores of a folder."""
    needed = sum(store.nbytes_missing for store in stores)
    if needed and needed > (free := free_bytes(stores[0].folder)):
        raise InputError(f"{stores[0].folder}: the features need {needed / 1e9:.2f} GB more, the "
                         f"disk has {free / 1e9:.2f} GB free")


def encoder(model: VideoResNet, loader: FrameLoader, workers: int = 1) -> Encode:
    """The `encode` of `create_all`: each frame goes through the network once, as far as the last
    stage that is asked for, while `workers` threads decode the videos to come."""

    def encode(jobs: Jobs) -> Generator[Mapping[Kind, np.ndarray], None, None]:
        jobs = list(jobs)
        with Prefetcher(lambda job: list(loader.fixed(job[0])), jobs, workers) as decoded:
            for (_, kinds), views in zip(jobs, decoded, strict=True):
                each = [encode_frames(model, kinds, frames) for frames in views]
                yield {kind: np.stack([features[kind] for features in each]) for kind in kinds}

    return encode


def encode_frames(model: VideoResNet, kinds: Sequence[Kind],
                  frames: np.ndarray) -> dict[Kind, np.ndarray]:
    """Images (n, H, W, channels) → their features of each kind, on the CPU, in one pass."""
    model.eval()
    device = next(model.parameters()).device
    last = max(stage_number(kind.stage) for kind in kinds)
    parts: dict[Kind, list[np.ndarray]] = {kind: [] for kind in kinds}
    with no_grad():
        for some in np.array_split(frames, -(-len(frames) // FRAMES_AT_ONCE)):
            x = Tensor(some, device=device)
            for stage in STAGES[: last + 1]:
                x = model.stage(stage, x)
                for kind in kinds:
                    if kind.stage == stage:
                        parts[kind].append(in_full(global_avg_pool(x) if kind.pooled else x))
    return {kind: np.concatenate(arrays) for kind, arrays in parts.items()}


def feature_shape(model: VideoResNet, stage: str, image_size: int) -> tuple[int, ...]:
    """(H', W', C) of the features after `stage` of an image of that size."""
    kind = Kind(stage, pooled=False)
    blank = np.zeros((1, image_size, image_size, model.channels), np.float32)
    return encode_frames(model, [kind], blank)[kind].shape[1:]
