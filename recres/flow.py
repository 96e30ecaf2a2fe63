"""`python -m recres.flow [RUN] [VIDEO]`: the page that steps through a network's gradient flow.

Real chunks of a video go through the network and back, as in training, and every step of it is
recorded (`tensorlite.trace`). In float64, so that differences and sums can be held against the
gradients to rounding. No file of a run is changed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recres import build, commands, config
from recres.config import Config
from recres.datasets import Video, figures
from recres.errors import InputError
from recres.loader import Chunk, FrameLoader
from recres.models import RecurrentResNet, VideoResNet
from recres.runs import Run, refuse_own
from recres.video.sample import chunk_starts
from recres.video.source import FrameSource
from tensorlite import Tensor, cross_entropy, trace

NETWORK = ("backbone", "width", "context", "skip", "position", "readout", "seed")  # of a fresh one
DRAWN = (1, 1)  # group and clip of the figures' drawn clip: one of the test side of split 1
_NAME = re.compile(r"v_(\w+)_g\d+_c\d+", re.IGNORECASE | re.ASCII)


class Subject(NamedTuple):
    """A network and what it wants of its inputs. about: where it comes from, in words."""

    model: VideoResNet
    options: Config
    classes: Sequence[str]
    convention: str
    about: str


class Clip(NamedTuple):
    """Chunks of a video (B, T, H, W, C). about: which ones, in words."""

    chunks: np.ndarray
    path: Path
    about: str


def parser() -> commands.Parser:
    """The command's arguments."""
    result = commands.Parser(
        "recres.flow", "Make the page that steps through the gradient flow of a recurrent residual "
        "network on real chunks of a video: of a run's best model, or of a fresh network; on a "
        "video, or on a drawn one.", less_memory="--no-check and a smaller --batch need less")
    result.add_argument("run", metavar="RUN", nargs="?", type=Path,
                        help="folder of a run (default: a fresh network)")
    result.add_argument("video", metavar="VIDEO", nargs="?", type=Path,
                        help="(default: a drawn one)")
    result.add_argument("--html", metavar="FILE", type=Path,
                        help="the page (default: flow.html in the run's folder, or here)")
    result.add_argument("--json", metavar="FILE", type=Path,
                        help="also write the recording as JSON")
    result.add_argument("--label", metavar="CLASS", help="what the video shows (default: as its "
                        "name or folder says, else the class that is predicted); of a drawn clip, "
                        "what to draw")
    result.add_argument("--chunk", metavar="N", type=int, default=1,
                        help="begin with the N-th chunk of the video (default: 1)")
    result.add_argument("--batch", metavar="N", type=int, default=2, help="go on with the chunks "
                        "after it: so many in all, to normalise over (default: 2)")
    result.add_argument("--no-check", action="store_true",
                        help="no derivatives by differences: much faster")
    result.add_argument("--open", action="store_true", help="show the page in the browser")
    config.add_options(result, (*NETWORK, "threads"))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return commands.run(parser(), _flow, argv)


def _flow(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    for name in ("chunk", "batch"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: expected at least 1")
    run, video = _sort(args.run, args.video)
    target = args.html or (run or Path()) / "flow.html"
    for file in filter(None, (target, args.json)):
        if file.is_dir() or not file.parent.is_dir():
            raise InputError(f"{file}: cannot be written there")
        refuse_own(file)
    subject = _fresh(args) if run is None else _of_run(run, args)
    commands.use_machine(subject.options.threads, "cpu")
    clip = _read(subject, video, args)
    tape = record(subject, clip, _label(subject, clip.path, args.label), not args.no_check)
    tape.save_html(target)
    if args.json is not None:
        tape.save_json(args.json)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {len(tape.events)} steps, "
          f"made in {time.perf_counter() - began:.1f} s")
    if args.open:
        webbrowser.open(target.absolute().as_uri())
    return 0


def _sort(run: Path | None, video: Path | None) -> tuple[Path | None, Path | None]:
    """The run and the video: what stands alone may be either."""
    for path in (run, video):
        if path is not None and not path.exists():
            raise InputError(f"{path}: no such file or folder")
    if run is not None and video is None and not run.is_dir():
        return None, run
    if run is not None and not run.is_dir():
        raise InputError(f"{run}: expected the folder of a run, and after it the video")
    return run, video


def _fresh(args: argparse.Namespace) -> Subject:
    options = config.resolve(config.given(args))
    classes = figures.CLASSES
    return Subject(build.build_network(options, len(classes)), options, classes, "torch",
                   f"A fresh network, its weights drawn with seed {options.seed}.")


def _of_run(path: Path, args: argparse.Namespace) -> Subject:
    run = Run.open(path)
    for name, value in config.given(args).items():
        if name in NETWORK:
            raise InputError(f"--{name} {value}: the network of the run in {path} is as it is")
    options = config.override(replace(run.config, device="cpu", precision="float32"), args)
    if options.features:
        raise InputError(f"{path}: a model of features of whole videos; recres.flow needs a "
                         "network of frames")
    model, classes, convention = build.open_model(run, options)
    assert isinstance(model, VideoResNet)
    return Subject(model, options, classes, convention, f"The best model of the run in {path}.")


def _read(subject: Subject, video: Path | None, args: argparse.Namespace) -> Clip:
    """The chunks that were asked for."""
    if video is not None:
        return _cut(subject, video, args, f"the video {video.name}")
    if subject.options.data != "figures":
        raise InputError(f"{args.run}: a run on {subject.options.data}, give it a video")
    action = _match(args.label or figures.CLASSES[0], figures.CLASSES)
    if action is None:
        raise InputError(_unknown(args.label, figures.CLASSES))
    group, clip = DRAWN
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"v_{action}_g{group:02d}_c{clip:02d}.avi"
        figures.write_clip(path, figures.frames(action, group, clip))
        return _cut(subject, path, args, f"the drawn clip {path.name}")


def _cut(subject: Subject, path: Path, args: argparse.Namespace, shown: str) -> Clip:
    options = subject.options
    source = FrameSource([Video(path, 0, "", path.stem)], options.frame_step, options.context,
                         1 << 62, options.input, options.flow_length)
    starts = ((0,) if options.sampling == "segments" else
              chunk_starts(len(source.frames(0)), options.context))
    if args.chunk > len(starts):
        raise InputError(f"--chunk {args.chunk}: {shown} has {len(starts)}, of {options.context} "
                         "sampled frames each")
    numbers = range(args.chunk - 1, min(len(starts), args.chunk - 1 + args.batch))
    loader = FrameLoader(source, options, subject.convention)
    chunks = loader.load([Chunk(i, 0, starts[i]) for i in numbers])
    first, last = numbers[0] + 1, numbers[-1] + 1
    which = f"Chunk {first}" if first == last else f"Chunks {first} to {last}"
    return Clip(chunks, path, f"{which} of the {len(starts)} of {shown}, of {options.context} "
                "sampled frames each, seen as in an evaluation.")


def _match(name: str, classes: Sequence[str]) -> str | None:
    """The class of this name; upper and lower case are not told apart."""
    return next((known for known in classes if known.lower() == name.lower()), None)


def _unknown(name: str, classes: Sequence[str]) -> str:
    more = ", …" if len(classes) > 10 else ""
    return f"--label {name}: expected one of {', '.join(classes[:10])}{more}"


def _label(subject: Subject, path: Path, given: str | None) -> str | None:
    """The class that the video shows, as far as that is known."""
    if given is not None:
        found = _match(given, subject.classes)
        if found is None:
            raise InputError(_unknown(given, subject.classes))
        return found
    name = _NAME.fullmatch(path.stem)
    names = ([name[1]] if name else []) + [path.absolute().parent.name]
    return next(filter(None, (_match(name, subject.classes) for name in names)), None)


def record(subject: Subject, clip: Clip, label: str | None, check: bool) -> trace.Tape:
    """The recording of one update's forward and backward walk, without its step.

    label: the class of the chunks, None for the one that the network gives them.
    """
    model = subject.model.train().to(dtype=np.float64)
    frames = Tensor(clip.chunks, dtype=np.float64, requires_grad=True)
    with _bars() as progress, trace.record(_title(subject, label or "?"), check=check, ledger=True,
                                           progress=progress) as tape:
        trace.frames(frames)
        try:
            logits = model(frames)
        except ValueError as error:
            if not str(error).startswith("batch_norm:"):
                raise
            raise InputError(f"{clip.path.name}: {error}; more chunks (--batch, or a longer video) "
                             "have more") from None
        number = (int(logits.numpy().mean(axis=0).argmax()) if label is None
                  else subject.classes.index(label))
        loss = cross_entropy(logits, np.full(len(clip.chunks), number))
        loss.backward()
    shown = subject.classes[number]
    tape.title = _title(subject, shown)
    how = "the class that the network gives them, as theirs is not known" if label is None else (
        "the class that they are of")
    tape.notes += [subject.about, clip.about, f"The loss is the mean cross-entropy of the chunks "
                   f"with {shown}, {how}.", _mode(model),
                   "Everything is computed in float64 (training does in float32). The gradient of "
                   "the frames, which training has no need of, is computed as well."]
    return tape


def _title(subject: Subject, shown: str) -> str:
    options, model = subject.options, subject.model
    name = options.backbone.replace("resnet", "ResNet-")
    if isinstance(model, RecurrentResNet) and model.recurrent:
        name += f", {model.skip.replace('_', ' ')} skip at {model.position}, T = {model.context}"
    return f"{name}: {shown}"


def _mode(model: VideoResNet) -> str:
    frozen = [name for name, module in model.named_modules()
              if getattr(module, "frozen", False)]
    if not frozen:
        return "As in training, every batch norm uses the statistics of these chunks."
    parts = dict.fromkeys("stem" if name == "norm1" else name.partition(".")[0] for name in frozen)
    return (f"As in training, batch norms use the statistics of these chunks; those in "
            f"{', '.join(parts)} are frozen and use their running ones.")


@contextmanager
def _bars() -> Iterator[Any]:
    """What shows progress(what, done, total) as a bar for each `what`."""
    shown: dict[str, Any] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in shown:
            for bar in shown.values():
                bar.close()
            shown[what] = commands.bar(what, "part", total)
        shown[what].update(done - shown[what].n)

    try:
        yield progress
    finally:
        for bar in shown.values():
            bar.close()


if __name__ == "__main__":
    sys.exit(main())
