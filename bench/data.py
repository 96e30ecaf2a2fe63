"""Frames a second of what feeds training: decoding, stores of frames, augmentation.

    python -m bench.data --root data/ucf101              # 40 of its clips, two minutes
    python -m bench.data --root data/ucf101 --threads 4 --json > data.json

A frame is a sampled one, RGB, in memory; the frames that decoding passes over on the way are not
counted. *Whole videos* are all sampled frames of a clip, as a first epoch or an evaluation has
them; one of the stores has smaller frames (--size), as for training on smaller images. *Chunks* are
--context frames of a clip drawn at random, as training has them where memory cannot keep all
videos: decoding must read all of the clip for them, a store gives these alone. *Augmentation* is
what a loader does to them: crop, mirror, resize, normalise. *Batches* are chunks decoded and
augmented ahead of training, by as many processes as stand there (`bench.batches`).

Beside ours: OpenCV alone, PyAV and TorchCodec, the last two where they are installed (pip install
av torchcodec). Before anything is timed, each side's frames are compared with ours: OpenCV's and
those of the raw store must be equal, bit for bit; PyAV and TorchCodec turn YUV into RGB by other
roundings, and JPEG loses something, so there the mean difference must be below a stated bound
(smaller frames are compared with ours made smaller).
TorchCodec looks for frames by their times, which are wrong where an AVI file has B-frames (its
issue 1363), as some clips of UCF-101 have: for some frames it gives the one before, which is let
pass. Its newest wheels (0.14, 0.17) want the libraries of CUDA, 0.13 does not; those of FFmpeg (apt
install ffmpeg) none brings. The files are read before, so that no disk is measured. The sides take
turns; a figure is the median.

Exit status: 0 done, 1 sides disagree, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import cv2
import numpy as np

from bench import batches
from bench.cpu import heading
from recres.commands import Parser, RunFailed, bar, run, say
from recres.datasets import Video, ucf101
from recres.errors import InputError
from recres.video import augment
from recres.video.decode import sample_video
from recres.video.frame_index import Settings
from recres.video.frame_store import FrameStore, FrameStoreWriter, encode_video, reduced
from recres.video.prefetch import Prefetcher

TURNS = 5
# Mean difference from our frames, in grey levels of 256, that a side may have. (Smaller frames have
# more detail a pixel, of which JPEG loses more.)
EXACT, OTHER_ROUNDING, LOSSY, LOSSY_SMALL = 0.0, 2.0, 4.0, 6.0

Read = Callable[[Video], np.ndarray]  # a clip's frames


def opencv(video: Video, step: int) -> np.ndarray:
    """The sampled frames as a plain loop over OpenCV's frames has them."""
    capture, frames, index = cv2.VideoCapture(str(video.path)), [], 0
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        if index % step == 0:
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        index += 1
    capture.release()
    return np.stack(frames)


def pyav(video: Video, step: int) -> np.ndarray:
    """The same with PyAV, in one thread."""
    av = importlib.import_module("av")
    with av.open(str(video.path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        return np.stack([frame.to_ndarray(format="rgb24")
                         for index, frame in enumerate(container.decode(stream))
                         if index % step == 0])


def torchcodec(video: Video, step: int) -> np.ndarray:
    """The same with TorchCodec, in one thread."""
    decoders = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(str(video.path), dimension_order="NHWC",
                                    num_ffmpeg_threads=1, seek_mode="exact")
    return decoder[::step].numpy()


def with_before(video: Video, step: int) -> np.ndarray:
    """Each sampled frame and the one before it in the video, (n, 2, H, W, 3)."""
    frames = sample_video(video.path, 1, 1)
    places = np.arange(0, len(frames), step)
    return np.stack([frames[places], frames[np.maximum(places - 1, 0)]], axis=1)


def installed(read: Callable[[Video, int], np.ndarray], video: Video) -> bool:
    """Whether a side's package is here (or, of TorchCodec, finds its libraries)."""
    try:
        read(video, 10)
    except (ImportError, RuntimeError, OSError):
        return False
    return True


class Row(NamedTuple):
    """What is timed: `read` of each clip. Rows of a `group` are compared with its first; bound: how
    far a row's frames may be from that one's, None where there is nothing to compare. accepted: in
    place of that one's frames (n, ...), several for each (n, m, ...), of which the nearest counts.
    """

    group: str
    name: str
    read: Read
    bound: float | None
    accepted: Read | None = None


def rows(videos: Sequence[Video], stores: dict[str, FrameStore], step: int, context: int, size: int
         ) -> Iterator[Row]:
    """All rows that can be had here."""
    yield Row("whole videos", "decoded (recres)", lambda v: sample_video(v.path, step, 1), EXACT)
    yield Row("whole videos", "decoded (OpenCV alone)", lambda v: opencv(v, step), EXACT)
    before = partial(with_before, step=step)
    for name, read, accepted in (("PyAV", pyav, None), ("TorchCodec", torchcodec, before)):
        if installed(read, videos[0]):
            yield Row("whole videos", f"decoded ({name})", partial(read, step=step),
                      OTHER_ROUNDING, accepted)
        else:
            say(f"{name} is not installed: it has no row")

    def bound(store: FrameStore) -> float:
        lossy = LOSSY if store.settings.size is None else LOSSY_SMALL
        return lossy if store.settings.codec == "jpeg" else EXACT

    def expected(video: Video, store: FrameStore) -> np.ndarray:
        return np.stack([reduced(frame, store.settings.size)
                         for frame in sample_video(video.path, step, 1)])[:, None]

    for name, store in stores.items():
        small = store.settings.size is not None
        yield Row("whole videos", f"store, {name}", partial(store.frames, context=1),
                  bound(store), partial(expected, store=store) if small else None)

    rng = np.random.default_rng(0)
    places = {}
    for video in videos:
        start = int(rng.integers(stores["raw"].count(video, context) - context + 1))
        places[video.name] = range(start, start + context)
    yield Row("chunks", "decoded (recres)",
              lambda v: sample_video(v.path, step, context)[list(places[v.name])], EXACT)

    def chunk(video: Video, store: FrameStore) -> np.ndarray:
        return store.frames(video, context, places[video.name])

    for name, store in stores.items():
        if store.settings.size is None:
            yield Row("chunks", f"store, {name}", partial(chunk, store=store), bound(store))

    loaded = {video.name: sample_video(video.path, step, context) for video in videos}

    def augmented(video: Video) -> np.ndarray:
        frames = loaded[video.name]
        height, width = frames.shape[1:3]
        view = augment.training_view(height, width, np.random.default_rng(1))
        return augment.normalise(augment.apply(frames, view, size), "torch")

    yield Row("augmentation", f"to {size} x {size}, float32", augmented, None)


def difference(row: Row, ours: Row, videos: Sequence[Video]) -> float | None:
    """The mean difference of a row's frames from ours, of the worst clip, in grey levels.
    RunFailed if it is above the bound."""
    if row.bound is None:
        return None
    worst = 0.0
    for video in videos:
        found = row.read(video)
        choice = ours.read(video)[:, None] if row.accepted is None else row.accepted(video)
        expected = choice[:, 0].shape
        if found.shape != expected:
            raise RunFailed(f"{row.name}: {video.name} has frames {found.shape}, expected "
                            f"{expected}")
        away = [np.abs(several.astype(np.int16) - frame).mean(axis=(1, 2, 3)).min()
                for several, frame in zip(choice, found, strict=True)]
        worst = max(worst, float(np.mean(away)))
    if worst > row.bound:
        raise RunFailed(f"{row.name}: frames differ from ours by {worst:.2f} levels on average, "
                        f"allowed are {row.bound:g}")
    return worst


def frames_a_second(row: Row, videos: Sequence[Video], threads: int) -> float:
    """One pass over the clips."""
    began = time.perf_counter()
    with Prefetcher(row.read, videos, threads) as results:
        frames = sum(len(result) for result in results)
    return frames / (time.perf_counter() - began)


def make_store(folder: Path, name: str, videos: Sequence[Video], settings: Settings
               ) -> FrameStore:
    """A store of these clips."""
    with (FrameStoreWriter(folder, settings) as writer,
          bar(f"store, {name}", "video", len(videos)) as shown):
        for video in videos:
            writer.add(*encode_video(video, settings))
            shown.update()
    return FrameStore(folder)


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """An entry a row: its frames a second, and its ratio to the first of its group."""
    split = ucf101.read(args.root, args.split)
    listed = (*split.train, *split.test)
    videos = listed[:: max(1, len(listed) // args.clips)][: args.clips]
    stores = {name: make_store(folder / name.replace(" ", "-"), name, videos,
                               Settings(args.frame_step, args.context, size, codec, quality))
              for name, size, codec, quality in (
                  ("jpeg", None, "jpeg", args.quality),
                  (f"jpeg of size {args.size}", args.size, "jpeg", args.quality),
                  ("raw", None, "raw", None))}
    for name, store in stores.items():
        frames = sum(line.frames for line in store.lines.values())
        say(f"store, {name}: {store.nbytes / frames / 1e3:.1f} kB a frame")
    listed_rows = list(rows(videos, stores, args.frame_step, args.context, args.image_size))
    first = [next(i for i, other in enumerate(listed_rows) if other.group == row.group)
             for row in listed_rows]
    differences = [difference(row, listed_rows[i], videos)
                   for row, i in zip(listed_rows, first, strict=True)]
    with bar("measuring", "pass", TURNS * len(listed_rows)) as shown:
        rates = batches.in_turns([partial(frames_a_second, row, videos, args.threads)
                                  for row in listed_rows], TURNS, shown.update)
    return [{"group": row.group, "name": row.name, "difference": found,
             "frames_s": median(rates[i]),
             "ratio": median(a / b for a, b in zip(rates[i], rates[first[i]], strict=True))}
            for i, (row, found) in enumerate(zip(listed_rows, differences, strict=True))
            ] + batches.measure(args, videos, stores["jpeg"], TURNS)


def parser() -> Parser:
    """The command's arguments."""
    result = Parser("bench.data", "Frames a second of decoding, of stores of frames, and of "
                    "augmentation, on real clips.", less_memory="fewer --clips need less")
    result.add_argument("--root", metavar="DIR", default="data/ucf101",
                        help="a data set laid out like UCF-101 (default: data/ucf101)")
    for name, default, text in (
        ("split", 1, "whose lists name the clips"),
        ("clips", 40, "how many of them"),
        ("frame-step", 10, "sample every n-th frame"),
        ("context", 2, "frames of a chunk"),
        ("image-size", 224, "side of an augmented frame"),
        ("quality", 90, "of JPEG"),
        ("size", 128, "shorter side of the frames of a store of smaller ones"),
        ("threads", 1, "how many work at once"),
    ):
        result.add_argument(f"--{name}", metavar="N", type=int, default=default,
                            help=f"{text} (default: {default})")
    result.add_argument("--folder", metavar="DIR", type=Path,
                        help="make the stores under this one (default: where temporary files are)")
    result.add_argument("--json", action="store_true",
                        help="print a list of objects; the rest goes to stderr")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run(parser(), _bench, argv)


def _bench(args: argparse.Namespace) -> int:
    for name in ("clips", "context", "frame_step", "image_size", "threads"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least "
                             "1")
    cv2.setNumThreads(1)
    about = heading(args.threads, [f"OpenCV {cv2.__version__}"])
    with (contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext(),
          tempfile.TemporaryDirectory(dir=args.folder) as folder):
        say(about)
        entries = measure(args, Path(folder))
    if args.json:
        print(json.dumps([{"machine": about, **entry} for entry in entries], indent=1))
        return 0
    say(f"{'':40}{'frames/s':>9} {'ratio':>6}  mean difference, grey levels")
    for entry in entries:
        error = "" if entry["difference"] is None else f"{entry['difference']:.2f}"
        say(f"{entry['group'] + ': ' + entry['name']:40}{entry['frames_s']:9.0f} "
            f"{entry['ratio']:6.2f}  {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
