"""`python -m recres.export RUN FILE`: a run's best model for other software.

FILE.onnx is the trained network as an ONNX model, for whole chunks or, with --stream, for one frame
after the other. It is run in ONNX Runtime on real frames of the run's test videos, and only one
that says what the network says is written. FILE.safetensors or .pth are its weights under PyTorch's
names. A file of that name is replaced, but no file that a run is made of.

Either says of itself, as metadata, its classes and what is to be done to a video's frames before
the network sees them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from recres import build, commands
from recres.commands import RunFailed
from recres.config import Config, add_overrides, override
from recres.errors import InputError
from recres.evaluation import CHUNKS_AT_ONCE, predict_logits
from recres.loader import Chunk, FrameLoader, Videos, other_frames
from recres.models import VideoResNet
from recres.models.streaming import Stream
from recres.onnx import require
from recres.onnx.graph import LEAST_OPSET
from recres.onnx.networks import chunk_model, stream_model
from recres.onnx.session import Agreement, Session, compare, runnable_opset
from recres.runs import Run, refuse_own
from recres.torch_weights import SUFFIXES, save_torch, torch_state
from recres.video.sample import segment_indices
from tensorlite.io import write_bytes

STREAMED = 16  # windows of each video that a streaming model is checked on, at most
SIDE_BY_SIDE = 8  # videos that go through it at once
OF_THE_MACHINE = ("root", "frames", "weights", "store", "threads", "device", "precision", "workers")


def parser() -> commands.Parser:
    """The command's arguments."""
    result = commands.Parser(
        "recres.export", "Write a run's best model as an ONNX model, or its weights under "
        "PyTorch's names.", less_memory="a smaller --check needs less")
    result.add_argument("run", metavar="RUN", help="folder of the run")
    result.add_argument("file", metavar="FILE", type=Path, help="model.onnx; or, for the weights "
                        "alone, one that ends in " + ", ".join(SUFFIXES))
    result.add_argument("--stream", action="store_true", help="the form for live video: one frame "
                        "and states in, logits of the chunk that ends with it and new states out")
    result.add_argument("--opset", metavar="N", type=int, help="of ONNX's operators, at least "
                        f"{LEAST_OPSET} (default: the newest that the installed onnx knows, and "
                        "onnxruntime runs)")
    result.add_argument("--check", metavar="N", type=int, default=8, help="compare with ONNX "
                        "Runtime on so many test videos; 0: on none (default: 8)")
    add_overrides(result, without=("device", "precision"))
    result.set_defaults(device="cpu")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return commands.run(parser(), _export, argv)


def _export(args: argparse.Namespace) -> int:
    suffix = args.file.suffix.lower()
    if suffix not in (".onnx", *SUFFIXES):
        raise InputError(f"{args.file}: suffix {args.file.suffix!r}, expected .onnx or, for the "
                         f"weights alone, {', '.join(SUFFIXES)}")
    if suffix in SUFFIXES and (args.stream or args.opset is not None):
        raise InputError(f"{args.file}: weights alone have no --stream and no --opset")
    if args.check < 0:
        raise InputError(f"--check {args.check}: expected at least 0")
    if not args.file.absolute().parent.is_dir():
        raise InputError(f"{args.file.parent}: no such folder")
    if args.file.is_dir():
        raise InputError(f"{args.file}: is a folder, expected the name of a file")
    refuse_own(args.file)
    run = Run.open(args.run)
    options = override(run.config, args)
    if options.weights and args.file.exists() and args.file.resolve() == \
            Path(options.weights).resolve():
        raise InputError(f"{args.file}: the run's --weights, which it started from")
    if options.features:
        raise InputError(f"{run.path}: a model of features of whole videos; recres.export needs a "
                         "network of frames")
    if args.stream and (options.input != "frames" or options.sampling != "chunks"):
        raise InputError("--stream: the run does not look at chunks of successive frames")
    commands.use_machine(options.threads, "cpu")
    model, classes, convention = build.open_model(run, options)
    assert isinstance(model, VideoResNet)
    about = _about(options, classes, convention)
    if suffix == ".onnx":
        _export_onnx(args, run, options, model, about)
    else:
        _export_weights(args.file, model, about)
    return 0


def _about(options: Config, classes: Sequence[str], convention: str) -> dict[str, str]:
    """What an exported file says of itself, as metadata; nothing of the machine it was made on."""
    convention = "flow" if options.input == "flow" else convention
    described = {
        "torch": "RGB / 255, minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225)",
        "caffe": "BGR 0-255, minus (103.939, 116.779, 123.68)",
        "flow": "x and y of successive fields in turn, pixels a frame"}
    return {"classes": json.dumps(list(classes), ensure_ascii=False),
            "input_convention": convention, "normalisation": described[convention],
            "frames": _frames(options), "view": "the square in the middle of a frame, its side "
            f"224/256 of the frame's shorter one, resized to {options.image_size} x "
            f"{options.image_size} (by area where that is smaller, else linearly)",
            "version": options.version, "frame_step": str(options.frame_step),
            "options": json.dumps({name: value for name, value in options.to_json().items()
                                   if name not in OF_THE_MACHINE}, ensure_ascii=False)}


def _frames(options: Config) -> str:
    """What of a video is a chunk, in words."""
    step, context = options.frame_step, options.context
    if options.input == "dynamic":
        return "one dynamic image (approximate rank pooling) of the whole video"
    which = (f"the middle ones of {context} equal parts of the video" if
             options.sampling == "segments" else f"{context} successive ones")
    what = (f"; of each the {options.flow_length} fields of optical flow that begin there" if
            options.input == "flow" else "")
    return f"every frame whose number can be divided by {step}, and of these {which}{what}"


def _export_weights(path: Path, model: VideoResNet, about: dict[str, str]) -> None:
    state = torch_state(model)
    _written(path, lambda: save_torch(path, state, about))
    print(f"{'written':12} {path}: {len(state)} arrays under PyTorch's names, ResNet-{model.depth} "
          f"{about['version']}, {about['input_convention']} input")
    if model.depth >= 50 and about["version"] == "v1":
        print(f"{'note':12} v1 has a bottleneck's stride in its first 1x1 convolution, torchvision "
              "in the 3x3: its network must be changed to that to compute the same")


def _export_onnx(args: argparse.Namespace, run: Run, options: Config, model: VideoResNet,
                 about: dict[str, str]) -> None:
    make = stream_model if args.stream else chunk_model
    opset = runnable_opset() if args.opset is None and args.check else args.opset
    proto = make(model, options.image_size, about, opset)
    require("onnx").checker.check_model(proto, full_check=True)
    data = proto.SerializeToString()
    checked = "no: --check 0"
    if args.check:
        session = Session(data)
        build.refuse_no_figures(options, args.root)
        videos = build.open_videos(options, run.path)
        loader = FrameLoader(videos.source, options, about["input_convention"])
        examine = _check_stream if args.stream else _check_chunks
        pairs = examine(model, session, loader, videos, args.check)
        ours, theirs = (np.concatenate(part) for part in zip(*pairs, strict=True))
        checked = _judge(args.file, session, compare(ours, theirs))
    _written(args.file, lambda: write_bytes(args.file, data))
    opset, shape = proto.opset_import[0].version, _shape(proto.graph.input[0])
    form = (f"one frame {shape}, states: {len(proto.graph.input) - 1}" if args.stream else
            f"chunks {shape}")
    print(f"{'written':12} {args.file}: opset {opset}, {form}, float32, "
          f"{about['input_convention']} input, {len(data) / 1e6:.1f} MB")
    print(f"{'checked':12} {checked}")


def _check_chunks(model: VideoResNet, session: Session, loader: FrameLoader, videos: Videos,
                  count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Our logits and ONNX Runtime's of the middle chunks of `count` test videos, evenly spread."""
    chunks = _middles(videos, _spread(videos, count))
    with commands.bar("checking", "chunk", len(chunks)) as shown:
        for i in range(0, len(chunks), CHUNKS_AT_ONCE):
            inputs = loader.load(chunks[i : i + CHUNKS_AT_ONCE])
            yield predict_logits(model, inputs), session.chunks(inputs)
            shown.update(len(inputs))


def _check_stream(model: VideoResNet, session: Session, loader: FrameLoader, videos: Videos,
                  count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same of the windows along the beginnings of test videos, frame by frame; videos with as
    many frames go side by side."""
    stream, places = Stream(model), _spread(videos, count)
    lengths = {place: min(videos.counts[place], model.context - 1 + STREAMED) for place in places}
    with commands.bar("checking", "video", len(places)) as shown:
        for length, found in groupby(sorted(places, key=lengths.__getitem__),
                                     lengths.__getitem__):
            alike = list(found)
            for i in range(0, len(alike), SIDE_BY_SIDE):
                group = alike[i : i + SIDE_BY_SIDE]
                stream.reset()
                session.reset()
                seen = [next(loader.fixed(place))[:length] for place in group]
                for place, here in zip(group, seen, strict=True):
                    if len(here) < length:
                        raise other_frames(videos.source.videos[place], len(here),
                                           str(videos.counts[place]))
                frames = np.stack(seen, axis=1)
                for frame in frames:  # (videos, H, W, C)
                    ours, theirs = stream.push(frame), session.push(frame)
                    if ours is not None:
                        yield ours.numpy(), theirs
                shown.update(len(group))


def _spread(videos: Videos, count: int) -> list[int]:
    """The places of `count` test videos, or of all if they are fewer."""
    places = videos.sides["test"]
    return [places[i] for i in segment_indices(len(places), min(count, len(places)))]


def _middles(videos: Videos, places: Sequence[int]) -> list[Chunk]:
    """The chunks in the middle of test videos."""
    chunks = {video: list(found) for video, found in
              groupby(videos.chunks("test"), lambda chunk: chunk.video)}
    return [chunks[place][len(chunks[place]) // 2] for place in places]


def _judge(path: Path, session: Session, found: Agreement) -> str:
    """What the comparison found, in words; RunFailed where the model is not the network."""
    text = (f"ONNX Runtime {session.version} on {found.n} chunks of test videos: logits equal to "
            f"{found.error:.1e}, the largest being {found.largest:.3g}, the same class on "
            f"{found.same}")
    if not found:
        raise RunFailed(f"{path}: not written, the model is not the network: {text}")
    return text


def _written(path: Path, write: Callable[[], None]) -> None:
    """Write the file at `path`; InputError where that cannot be done."""
    try:
        write()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def _shape(value: Any) -> str:
    """The shape of an `onnx.ValueInfoProto`."""
    sides = (side.dim_param or str(side.dim_value) for side in value.type.tensor_type.shape.dim)
    return f"({', '.join(sides)})"


if __name__ == "__main__":
    sys.exit(main())
