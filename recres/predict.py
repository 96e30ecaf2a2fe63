"""`python -m recres.predict RUN VIDEO…`: what a trained network sees in videos, and, by --camera,
in what a camera sees at the moment."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from recres import build, commands, config
from recres.camera import PATIENCE, Camera
from recres.commands import RunFailed
from recres.config import Config
from recres.datasets import Video
from recres.errors import InputError
from recres.evaluation import CHUNKS_AT_ONCE, in_full, predict_logits
from recres.loader import Chunk, FrameLoader
from recres.metrics import log_softmax
from recres.models import VideoResNet
from recres.models.streaming import Stream
from recres.runs import Run
from recres.video import augment
from recres.video.decode import VideoError, iter_frames
from recres.video.sample import chunk_starts
from recres.video.source import FrameSource
from tensorlite import Tensor
from tensorlite.io import replacing
from tensorlite.precision import using

WRITTEN_WIDTH = 320  # narrower videos are enlarged, so that the label can be read
WRITTEN_HEIGHT = 65000  # to this at most, without the strip: a JPEG picture has at most 65535 rows


def parser() -> commands.Parser:
    """The command's arguments."""
    result = commands.Parser("recres.predict",
                             "Name the actions in videos with a run's best model.",
                             less_memory="--precision float16 needs less, --device cpu none there")
    result.add_argument("run", metavar="RUN", help="folder of the run")
    result.add_argument("videos", metavar="VIDEO", nargs="*", type=Path)
    result.add_argument("--camera", metavar="N|FILE", help="look at what the camera with this "
                        "number sees (0 is the first), or at a file as if it were one, until "
                        "Ctrl-C: once a second print the class and the frame rate. There is no "
                        "window (OpenCV is used without): --write FILE keeps the labelled video")
    result.add_argument("--top", metavar="K", type=int, default=5,
                        help="how many classes to print (default: 5)")
    result.add_argument("--stream", action="store_true", help="go along each video as if it were "
                        "live: after every sampled frame print the class of the chunk that ends "
                        "with it, and at the end the rate, instead of the classes of the whole")
    result.add_argument("--write", metavar="DIR|FILE", type=Path,
                        help="also write each video into this folder, with its label drawn in; "
                        "with --camera: what is seen into this .avi file")
    config.add_overrides(result, without=("root", "frames"))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 if any of the videos could not be used."""
    return commands.run(parser(), _predict, argv)


def _predict(args: argparse.Namespace) -> int:
    if args.top < 1:
        raise InputError(f"--top {args.top}: expected at least 1")
    if args.stream and args.write is not None:
        raise InputError("--write: draws the class of the whole video, which --stream does not "
                         "look for")
    if (args.camera is None) == (not args.videos):
        raise InputError("expected videos, or --camera" if args.camera is None else
                         f"--camera {args.camera}: looks at no other videos")
    run = Run.open(args.run)
    options = config.override(run.config, args)
    if args.camera is not None:
        _check_camera(args, options)
    if args.stream and (options.input != "frames" or options.sampling != "chunks"):
        raise InputError("--stream: the run does not look at chunks of successive frames")
    if options.features:
        raise InputError(f"{run.path}: a model of features of whole videos; recres.evaluate runs "
                         "it, recres.predict needs a network of frames")
    commands.use_machine(options.threads, options.device)
    model, classes, convention = build.open_model(run, options)
    assert isinstance(model, VideoResNet)
    with using(options.precision):
        if args.camera is not None:
            return _watch(model, classes, options, convention, args)
        return _predict_all(model, classes, options, convention, args)


def _predict_all(model: VideoResNet, classes: Sequence[str], options: Config, convention: str,
                 args: argparse.Namespace) -> int:
    status = 0
    targets = (_targets(args.write, args.videos) if args.write is not None else
               [None] * len(args.videos))
    for path, target in zip(args.videos, targets, strict=True):
        try:
            if args.stream:
                _print_stream(model, classes, options, convention, path)
                continue
            posterior = classify(model, options, convention, path)
            order = np.argsort(-posterior, kind="stable")[: args.top]
            print(path)
            for label in order:
                print(f"  {posterior[label]:.3f}  {classes[label]}")
            if target is not None:
                text = f"{classes[order[0]]} {posterior[order[0]]:.2f}"
                write_labelled(path, target, text)
                print(f"  written to {target}")
        except VideoError as error:
            print(f"error: {error}{commands.allowing(str(error))}", file=sys.stderr)
            status = 2
    return status


def classify(model: VideoResNet, options: Config, convention: str, path: Path) -> np.ndarray:
    """(classes,) the posterior of a video, the mean over its chunks. Raises VideoError."""
    source = FrameSource([Video(path, 0, "", path.stem)], options.frame_step, options.context,
                         1 << 62, options.input, options.flow_length)
    loader = FrameLoader(source, options, convention)
    starts = ((0,) if options.sampling == "segments" else
              chunk_starts(len(source.frames(0)), options.context))
    chunks = [Chunk(i, 0, start) for i, start in enumerate(starts)]
    posteriors = [np.exp(log_softmax(predict_logits(model, loader.load(batch))))
                  for batch in (chunks[i : i + CHUNKS_AT_ONCE]
                                for i in range(0, len(chunks), CHUNKS_AT_ONCE))]
    return np.concatenate(posteriors).mean(axis=0)


def follow(model: VideoResNet, options: Config, convention: str, path: Path
           ) -> Iterator[tuple[int, np.ndarray | None]]:
    """For every sampled frame of a video its index and the posterior (classes,) of the chunk that
    ends with it, None where there have been too few frames for a chunk.

    Works on each frame once and holds one at a time, for videos of any length. Raises VideoError.
    """
    stream = Stream(model)
    for index, frame in iter_frames(path, options.frame_step):
        view = augment.evaluation_view(*frame.shape[:2])
        shown = augment.apply(frame[None], view, options.image_size)
        with np.errstate(all="ignore"):  # answers that are not finite are still answers
            logits = stream.push(augment.normalise(shown, convention))
        yield index, None if logits is None else np.exp(log_softmax(in_full(logits)))[0]


def _print_stream(model: VideoResNet, classes: Sequence[str], options: Config, convention: str,
                  path: Path) -> None:
    count, began = 0, time.perf_counter()
    for count, (index, posterior) in enumerate(follow(model, options, convention, path), start=1):
        if count == 1:
            print(path)
        if posterior is not None:
            label = int(posterior.argmax())
            print(f"  frame {index:5}  {posterior[label]:.3f}  {classes[label]}", flush=True)
    rate = count / (time.perf_counter() - began)
    few = f", too few for a chunk of {options.context}" if count < options.context else ""
    print(f"  sampled frames: {count}, {rate:.1f} a second{few}")


def _check_camera(args: argparse.Namespace, options: Config) -> None:
    """InputError for what --camera cannot do."""
    if args.stream:
        raise InputError("--stream: goes along videos, --camera is live anyway")
    if options.input != "frames":
        raise InputError(f"--camera {args.camera}: the run looks at --input {options.input}, which "
                         "is made of whole videos")
    if args.write is not None and (args.write.suffix != ".avi" or args.write.is_dir()
                                   or not args.write.parent.is_dir()):
        raise InputError(f"--write {args.write}: expected an .avi file in a folder that is there")
    if args.write is not None and args.write.exists() and not args.camera.isdecimal() \
            and os.path.exists(args.camera) and args.write.samefile(args.camera):
        raise InputError(f"--write {args.write}: is the video itself")


class Sliding:
    """Classifies the last T sampled frames, each chunk by itself: for networks whose chunks are no
    windows of successive frames, which a `Stream` could go along with."""

    def __init__(self, model: VideoResNet) -> None:
        self.model = model
        self._frames: deque[np.ndarray] = deque(maxlen=model.context)

    def push(self, frame: np.ndarray) -> np.ndarray | None:
        """Go on by one frame (H, W, C); logits (1, classes), None as long as there are too few."""
        self._frames.append(frame)
        if len(self._frames) < self.model.context:
            return None
        return predict_logits(self.model, np.stack(self._frames)[None])


class Live:
    """What a network says of frames as they come.

    Of every `frame_step` frames the first that is there is looked at. Attributes: posterior
    (classes,) of the last chunk, None as long as there is none; seen, frames looked at.
    """

    def __init__(self, model: VideoResNet, options: Config, convention: str) -> None:
        self.options, self.convention = options, convention
        self._model: Stream | Sliding = (Stream(model) if options.sampling == "chunks"
                                         else Sliding(model))
        self.posterior: np.ndarray | None = None
        self.seen, self._last = 0, -1

    def look(self, index: int, frame: np.ndarray) -> None:
        """Go on by the frame (H, W, 3) with this number."""
        if index // self.options.frame_step == self._last:
            return
        self._last = index // self.options.frame_step
        view = augment.evaluation_view(*frame.shape[:2])
        shown = augment.apply(frame[None], view, self.options.image_size)
        with np.errstate(all="ignore"):  # answers that are not finite are still answers
            pixels = augment.normalise(shown, self.convention)
            logits = self._model.push(pixels[0])
        self.seen += 1
        if logits is not None:
            array = in_full(logits) if isinstance(logits, Tensor) else logits
            self.posterior = np.exp(log_softmax(array))[0]


def _watch(model: VideoResNet, classes: Sequence[str], options: Config, convention: str,
           args: argparse.Namespace) -> int:
    """Look at what a camera sees until it ends or somebody asks for an end, which is the usual way:
    then all is well, and what was written is whole. 1 where it gave no more frames, but no end."""
    live, count = Live(model, options, convention), 0
    with contextlib.ExitStack() as held:
        camera = held.enter_context(Camera(args.camera))
        writer = (held.enter_context(labelled(args.write, camera.rate))
                  if args.write is not None else None)
        held.enter_context(commands.Interrupts())
        began = last = time.perf_counter()
        at_last = 0
        with contextlib.suppress(commands.Interrupted):
            for index, frame in camera.frames():
                live.look(index, frame)
                text = _answer(live, classes)
                if writer is not None:
                    writer(frame, text)
                count += 1
                now = time.perf_counter()
                if now - last >= 1:
                    print(f"{now - began:7.1f} s  {(count - at_last) / (now - last):6.1f} frames/s"
                          f"  {text}", flush=True)
                    last, at_last = now, count
        seconds = time.perf_counter() - began
    few = "" if live.posterior is not None else f", too few for a chunk of {options.context}"
    dropped = f", {camera.dropped} more dropped" if camera.dropped else ""
    print(f"{camera.shown}: {count} frames in {seconds:.1f} s, {count / seconds:.1f} frames/s"
          f"{dropped}; looked at {live.seen}{few}")
    if live.posterior is not None:
        print(f"last: {_answer(live, classes)}")
    if args.write is not None:
        print(f"written to {args.write}")
    if camera.stalled:
        print(f"error: {camera.shown}: no frame for {PATIENCE:g} s, given up", file=sys.stderr)
    return 1 if camera.stalled else 0


def _answer(live: Live, classes: Sequence[str]) -> str:
    if live.posterior is None:
        return "…"
    label = int(live.posterior.argmax())
    return f"{live.posterior[label]:.2f} {classes[label]}"


def _targets(folder: Path, videos: Sequence[Path]) -> list[Path]:
    """Where the labelled copies go, each onto no other. InputError where that is no folder, or one
    would go onto a video that was given."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"--write {folder}: not a folder")
    given = {os.path.realpath(video) for video in videos}
    targets: dict[Path, None] = {}
    for video in videos:
        target, number = folder / f"{video.stem}.avi", 2
        while target in targets:
            target, number = folder / f"{video.stem}-{number}.avi", number + 1
        if (there := os.path.realpath(target)) in given:
            what = ("is the video itself" if there == os.path.realpath(video) else
                    f"is a video that was given, the copy of {video} would replace it")
            raise InputError(f"--write {folder}: {target} {what}")
        targets[target] = None
    return list(targets)


def write_labelled(path: Path, target: Path, text: str) -> None:
    """Write the video in `path` with `text` on a strip below it; motion JPEG at its own rate.

    The file appears whole or not at all. Raises VideoError, and InputError where it cannot be
    written.
    """
    capture = cv2.VideoCapture(os.path.abspath(path))
    rate = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target}: {error.strerror}") from None
    with labelled(target, rate if rate > 0 else 25.0) as write:
        for _, frame in iter_frames(path):
            write(frame, text)


@contextlib.contextmanager
def labelled(target: Path, rate: float) -> Iterator[Callable[[np.ndarray, str], None]]:
    """What writes frames and their texts into a video, motion JPEG with `rate` frames a second.

    The file appears whole or not at all. Raises InputError where it cannot be written, RunFailed
    where there is no room for all of it.
    """
    writer = cv2.VideoWriter()

    def write(frame: np.ndarray, text: str) -> None:
        shown = label_frame(frame, text)
        if not writer.isOpened():
            codec = cv2.VideoWriter.fourcc(*"MJPG")
            if not writer.open(str(beside), codec, rate, (shown.shape[1], shown.shape[0])):
                raise InputError(f"{target}: cannot be written")
        writer.write(cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))

    try:
        with replacing(target) as beside:
            yield write
            if not writer.isOpened():
                raise InputError(f"{target}: not written, there was no frame")
            writer.release()
            if not _is_whole(beside):  # (the writer itself reports nothing)
                raise RunFailed(f"{target}: not written, there was no room for all of it: is the "
                                "disk full?")
    except OSError as error:
        raise InputError(f"{target}: {error.strerror}") from None


def _is_whole(path: Path) -> bool:
    """Whether an .avi file ends where it says that it does, which is written when all else is: a
    RIFF chunk, or, of large files, several."""
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            name, length = file.read(4), file.read(4)
            if name != b"RIFF" or len(length) < 4:
                return False
            at += 8 + int.from_bytes(length, "little")
    return at == size > 0


def label_frame(frame: np.ndarray, text: str) -> np.ndarray:
    """The frame (H, W, 3) on top of a dark strip with `text`, enlarged if it is small."""
    height, width = frame.shape[:2]
    times = max(1, min(-(-WRITTEN_WIDTH // width), WRITTEN_HEIGHT // height))
    picture = cv2.resize(frame, (width * times, height * times), interpolation=cv2.INTER_CUBIC)
    width = picture.shape[1]
    strip = np.full((max(28, width // 12), width, 3), 24, np.uint8)
    font, high = cv2.FONT_HERSHEY_SIMPLEX, strip.shape[0]
    (one, _), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(high / 45, max(width - 16, 1) / max(one, 1))
    cv2.putText(strip, text, (8, round(high * 0.68)), font, scale, (240, 240, 240),
                max(1, round(scale * 1.6)), cv2.LINE_AA)
    return np.concatenate([picture, strip])


if __name__ == "__main__":
    sys.exit(main())
