"""`python -m recres.features --out DIR`: features of every sampled frame, for runs to share.

The frozen backbone (--weights) sees each frame of all videos of a data set once; `recres.train
--store DIR` then begins where the features are. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from recres import build, commands, config
from recres.commands import Interrupts, bar, say
from recres.config import Config
from recres.errors import InputError
from recres.feature_store import (
    Kind,
    StoreFiles,
    check_room,
    create_all,
    encoder,
    free_bytes,
    missing,
)
from recres.files import read_json, write_json
from recres.loader import FrameLoader, Videos
from recres.models import STAGES
from recres.models.resnet import stage_number
from tensorlite.precision import using

# The options of a run that say which features come out, or how they are computed.
OPTIONS = ("data", "root", "split", "frame_step", "image_size", "frames", "input", "flow_length",
           "skip_bad", "backbone", "width", "version", "context", "weights", "mirror", "seed",
           "threads", "device", "precision")
KINDS = ("pooled", "maps")


def parser() -> commands.Parser:
    """The command's arguments."""
    result = commands.Parser(
        "recres.features", "Compute the features of every sampled frame of all videos with a "
        "frozen backbone, and keep them for runs to share. Interrupted, it goes on; called again, "
        "it makes what is missing.", less_memory="--precision float16 needs less")
    stores = result.add_argument_group("features")
    stores.add_argument("--out", metavar="DIR", type=Path, required=True,
                        help="folder of the stores; a run's --store")
    stores.add_argument("--stages", metavar="STAGE,...", default="block2,block3,block4",
                        help=f"the stages after which to keep them, of {', '.join(STAGES)} "
                             "(default: block2,block3,block4)")
    stores.add_argument("--pooled", action="store_true", help="keep their mean over each frame, "
                        "for models of sequences (--features of recres.train; the default)")
    stores.add_argument("--maps", action="store_true", help="keep them whole, for temporal skips "
                        "(--freeze of recres.train)")
    stores.add_argument("--check", action="store_true", help="compare all features in DIR with "
                        "their checksums, and do nothing else")
    config.add_options(result, OPTIONS)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return commands.run(parser(), _features, argv)


def _features(args: argparse.Namespace) -> int:
    if args.check:
        return _check(args.out)
    if os.path.lexists(args.out) and not args.out.is_dir():
        raise InputError(f"--out {args.out}: not a folder")
    if (args.out / "config.json").exists():  # (whose videos.json would be replaced)
        raise InputError(f"--out {args.out}: the folder of a run, expected one of features")
    kinds = _kinds(args)
    options = _options(args, kinds)
    commands.use_machine(options.threads, options.device)
    with Interrupts("stopped; the same command goes on"), using(options.precision):
        return _make(args.out, options, kinds)


def _kinds(args: argparse.Namespace) -> list[Kind]:
    stages = args.stages.split(",")
    for stage in stages:
        if stage not in STAGES:
            raise InputError(f"--stages {args.stages}: {stage!r} is none, expected one or more of "
                             f"{', '.join(STAGES)}")
    stages = sorted(set(stages), key=stage_number)
    whole = (True,) * (args.pooled or not args.maps) + (False,) * args.maps
    return [Kind(stage, pooled) for stage in stages for pooled in whole]


def _options(args: argparse.Namespace, kinds: Sequence[Kind]) -> Config:
    values = {**config.given(args), "model": "avgpool", "freeze": kinds[-1].stage, "holdout": 0.0}
    return config.resolve(values, args.data_root)


def _make(out: Path, options: Config, kinds: Sequence[Kind]) -> int:
    videos = _open_videos(options, out / "videos.json")
    for reason in videos.skipped.values():
        say(f"skipped   {reason}")
    model = build.build_network(options, len(videos.split.classes))
    start = build.load_weights(model, options)
    build.refuse_untrained(options, start, kinds[-1].stage, "--stages")
    model.to(options.device)
    stores = [build.store_of(kind, options, model, videos, out, start) for kind in kinds]

    total = sum(videos.counts[place] for place in videos.counts)
    say(f"data      {videos.split.name}: {len(videos.counts)} videos, {total} sampled frames, one "
        f"frame in {options.frame_step}, {options.image_size} x {options.image_size} pixels")
    say(f"network   {options.backbone} {options.version}, width {options.width}, weights: "
        f"{options.weights or f'none, drawn from seed {options.seed}'}")
    for store in stores:
        there = f", {len(store.places) - len(store.missing)} of them there" if store.missing else \
            ", complete"
        say(f"{'store':9} {store.path}: {len(store.places)} videos, {store.nbytes / 1e9:.3f} GB"
            + there)
    lacking = missing(stores)
    needed = sum(store.nbytes_missing for store in stores)
    if not lacking:
        say("complete  nothing is missing")
        return 0
    frames = sum(videos.counts[place] for place in lacking)
    say(f"to make   {frames} frames of {len(lacking)} videos, {needed / 1e9:.3f} GB; the disk has "
        f"{free_bytes(out) / 1e9:.3f} GB free")
    check_room(stores)
    loader = FrameLoader(videos.source, options, start["input"])
    began = time.perf_counter()
    with bar("features", "frame", frames) as shown:
        create_all(stores, encoder(model, loader, options.threads), shown.update)
    seconds = time.perf_counter() - began
    say(f"made      {frames} frames, {needed / 1e9:.3f} GB in {seconds:.1f} s: "
        f"{frames / seconds:.1f} frames/s")
    return 0


def _open_videos(options: Config, path: Path) -> Videos:
    """The videos of the data set; `path` remembers how many frames were sampled of each, since
    counting decodes them all. It counts only for the same way of sampling and the same files."""
    split = build.read_split(options, log=say)
    sampling = {name: getattr(options, name)
                for name in ("frame_step", "context", "input", "flow_length")}
    sizes = {video.name: video.path.stat().st_size if video.path.is_file() else None
             for video in (*split.train, *split.test)}
    known = read_json(path) if path.is_file() else {}
    whole = isinstance(known, dict) and known.get("sampling") == sampling and all(
        isinstance(known.get(name), dict) for name in ("sizes", "found"))
    found = known["found"] if whole else {}
    bad = [text for text in found.values() if isinstance(text, str)]
    if (all(name in found and known["sizes"].get(name) == size for name, size in sizes.items())
            and (options.skip_bad or not bad)):
        return Videos(split, options, found)
    videos = build.scan_videos(options)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"sampling": sampling, "sizes": sizes, "found": videos.found})
    return videos


def _check(out: Path) -> int:
    paths = sorted(path.parent for path in out.glob("*/about.json"))
    if not paths:
        raise InputError(f"{out}: no features there")
    wrong = []
    for path in paths:
        files, bad = StoreFiles(path), 0
        with bar(f"checking {path.name}", "video", len(files.lines)) as shown:
            for key in files.lines:
                try:
                    files.video(key)
                except InputError as error:
                    wrong.append(error)
                    bad += 1
                    say(str(error))
                shown.update()
        say(f"{path.name:20} {len(files.lines)} videos, {files.nbytes / 1e9:.3f} GB: "
            + (f"{bad} damaged" if bad else "all checksums right"))
    if wrong:
        raise InputError(f"{out}: the features of {len(wrong)} videos are damaged")
    return 0


if __name__ == "__main__":
    sys.exit(main())
