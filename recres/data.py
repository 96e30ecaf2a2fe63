"""`python -m recres.data prepare | check`: a data set's frames, decoded once; and whether a data
set, or a store of its frames, is as it should be.

    python -m recres.data prepare --data ucf101 --root DIR  # for --frames DIR/frames
    python -m recres.data check --root DIR
    python -m recres.data check --store DIR/frames --json problems.json
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import cv2

from recres import build, commands, config
from recres.commands import Interrupts, bar, say
from recres.config import MOST_THREADS, Config
from recres.data_check import check_data_set, check_store, videos_folder
from recres.datasets import Video, ucf101
from recres.errors import InputError
from recres.files import write_json
from recres.video.decode import VideoError
from recres.video.frame_index import CODECS, Line, Settings
from recres.video.frame_store import FrameStore, FrameStoreWriter, encode_video
from recres.video.processes import in_processes
from tensorlite.io import one_line

CONTEXT = 8  # for which a store is made by default; short videos take more room with more
SHOWN = 10  # problems of each kind that `check` prints


class _Part(argparse.ArgumentParser):
    """The arguments of one of the two; its complaints are those of the whole."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parser() -> commands.Parser:
    """The command's arguments."""
    result = commands.Parser(
        "recres.data", "Decode the videos of a data set once, for runs to share; check a data set "
        "or what was made of it.", less_memory="fewer --workers need less")
    parts = result.add_subparsers(dest="command", required=True, metavar="prepare|check",
                                  parser_class=_Part)
    prepare = parts.add_parser("prepare", help="keep the sampled frames of all videos in a store",
                               allow_abbrev=False)
    store = prepare.add_argument_group("store")
    store.add_argument("--out", metavar="STORE", type=Path,
                       help="its folder; a run's --frames (default: <root>/frames)")
    store.add_argument("--context", metavar="N", type=int, default=CONTEXT,
                       help="for runs with a --context up to this one, which is how many frames "
                            f"are kept even of a short video (default: {CONTEXT})")
    store.add_argument("--size", metavar="N", type=int, help="reduce frames to this shorter side, "
                       "in pixels (default: as they are)")
    store.add_argument("--codec", choices=CODECS, default="jpeg", help="raw frames are exactly the "
                       "videos', and take 15 times the room (default: jpeg)")
    store.add_argument("--quality", metavar="N", type=int,
                       help="of JPEG, 1 to 100 (default: 90)")
    store.add_argument("--repair", action="store_true", help="read all frames that are there, "
                       "and decode videos again whose frames are damaged")
    _add_workers(store)
    config.add_options(prepare, ("data", "root", "frame_step", "skip_bad"))
    check = parts.add_parser("check", help="look for what is wrong with a data set or a store",
                             allow_abbrev=False)
    check.add_argument("--root", metavar="DIR", type=Path, help="folder of a data set laid out "
                       "like UCF-101; with --store: the one to compare it with (default: the one "
                       "that it was made of, if it is there)")
    check.add_argument("--store", metavar="STORE", type=Path, help="folder of a store of frames")
    check.add_argument("--json", metavar="FILE", type=Path, help="write all that is wrong here")
    _add_workers(check)
    for part in (prepare, check):
        part.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
        part.add_argument("--limit", action=commands.Limit, help=argparse.SUPPRESS)
    return result


def _add_workers(group: argparse._ActionsContainer) -> None:
    cores = len(os.sched_getaffinity(0))
    group.add_argument("--workers", metavar="N", type=int, default=cores, help="processes that "
                       "decode (default: one for each core; 1: none but this one)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return commands.run(parser(), _data, argv)


def _data(args: argparse.Namespace) -> int:
    if not 1 <= args.workers <= MOST_THREADS:
        raise InputError(f"--workers {args.workers}: expected 1 to {MOST_THREADS}")
    cv2.setNumThreads(1)
    if args.command == "check":
        with Interrupts("stopped"):
            return _check(args)
    with Interrupts("stopped; the same command goes on"):
        return _prepare(args)


def _prepare(args: argparse.Namespace) -> int:
    options = config.resolve(config.given(args), args.data_root)
    quality = args.quality
    if args.codec == "raw" and quality is not None:
        raise InputError(f"--quality {quality}: --codec raw has none")
    if args.codec == "jpeg" and quality is None:
        quality = 90
    settings = Settings(options.frame_step, args.context, args.size, args.codec, quality)
    settings.check("the store asked for")
    root = Path(options.root)
    out = args.out or (root.parent if root.name == "UCF-101" else root) / "frames"
    videos = _listed(options)
    about = {"data": options.data, "root": _text(os.path.abspath(root)),
             "opencv": cv2.__version__}
    with FrameStoreWriter(out, settings, about, repair=args.repair) as writer:
        with bar("comparing", "video", len(videos)) as shown:
            missing = writer.missing(videos, shown.update)
        size = "as they are" if settings.size is None else f"reduced to {settings.size} pixels"
        codec = settings.codec + (f" of quality {quality}" if quality is not None else "")
        say(f"data      {options.data}: {len(videos)} videos; one frame in {settings.frame_step}, "
            f"context up to {settings.context}, {size}, {codec}")
        say(f"store     {out}: {len(videos) - len(missing)} videos are there, {len(missing)} are "
            f"missing{', damaged' if args.repair else ''} or have changed")
        began = time.perf_counter()
        frames, nbytes = _fill(writer, missing, options.skip_bad, args.workers)
        seconds = time.perf_counter() - began
        lines = [writer.store.lines[video.name.lower()] for video in videos]
        for line in lines:
            if line.bad is not None:
                _note_bad(root, line, options.skip_bad)
        if missing:
            say(f"made      {frames} frames of {len(missing)} videos, "
                f"{nbytes / 1e9:.3f} GB in {seconds:.1f} s: "
                f"{frames / seconds:.0f} frames/s")
        say(f"complete  {sum(line.frames for line in lines)} frames, "
            f"{writer.store.nbytes / 1e9:.3f} GB")
    return 0


def _listed(options: Config) -> list[Video]:
    """The videos of all splits that there are lists for, each once."""
    videos: dict[str, Video] = {}
    for number in ucf101.SPLITS:
        if number == 1 or _has_lists(Path(options.root), number):
            split = build.read_split(replace(options, split=number), log=say)
            for video in (*split.train, *split.test):
                videos.setdefault(video.name.lower(), video)
    return list(videos.values())


def _has_lists(root: Path, number: int) -> bool:
    return any((folder / f"trainlist{number:02d}.txt").exists()
               for folder in (root / "ucfTrainTestlist", root, root.parent / "ucfTrainTestlist"))


def _fill(writer: FrameStoreWriter, missing: Sequence[Video], skip_bad: bool, workers: int
          ) -> tuple[int, int]:
    """Decode and add these videos; the number of their frames, and their bytes in the store."""
    frames = nbytes = 0
    results = in_processes(partial(encode_video, settings=writer.settings), missing, workers,
                           crashed)
    with bar("decoding", "video", len(missing)) as shown:
        for video, (line, data) in zip(missing, results, strict=True):
            if line.bad is not None and not skip_bad:
                raise VideoError(video.path, line.bad)
            writer.add(line, data)
            frames, nbytes = frames + line.frames, nbytes + len(data)
            shown.update()
    return frames, nbytes


def crashed(video: Video) -> tuple[Line, bytes]:
    """The line of a video at which the decoder dies."""
    return Line(f"{video.path.parent.name}/{video.path.name}", video.group, video.label,
                bad="the decoder crashes on it"), b""


def _note_bad(root: Path, line: Line, skip_bad: bool) -> None:
    assert line.bad is not None
    if not skip_bad:
        raise InputError(f"{root}: {line.video} cannot be used: {line.bad} (--skip-bad leaves such "
                         "videos out)")
    say(one_line(f"skipped   {line.video}: {line.bad}"))


def _check(args: argparse.Namespace) -> int:
    if args.root is None and args.store is None:
        raise InputError("check: expected --root DIR, --store STORE, or both")
    root, store, problems = args.root, None, []
    if args.store is not None:
        store = FrameStore(args.store, tolerant=True)
        made_of = store.about.get("root")
        if root is None and isinstance(made_of, str):
            with contextlib.suppress(InputError):  # it is not here, or not with its videos
                videos_folder(Path(made_of))
                root = Path(made_of)
    found = None
    if args.root is not None:
        found = check_data_set(args.root, args.workers, store.settings if store else None)
        problems = found.problems
        say(f"data      {args.root}: {found.videos} video files, {found.listed} listed")
    if store is not None:
        problems += check_store(store, root, args.workers, found)
        say(f"store     {args.store}: {len(store.lines)} videos, {store.nbytes / 1e9:.3f} GB, "
            + (one_line(f"compared with {root}") if root
               else "compared with no data set (see --root)"))
    kinds = Counter(problem.kind for problem in problems)
    for kind in kinds:
        of_kind = [problem for problem in problems if problem.kind == kind]
        for problem in of_kind[:SHOWN]:
            say(one_line(f"{problem.kind:16} {problem.where}: {problem.what}"))
        if len(of_kind) > SHOWN:
            say(f"{'':16} … and {len(of_kind) - SHOWN} more (--json has them all)")
    say(_table(kinds))
    if args.json is not None:
        write_json(args.json, {
            "root": _text(root) if root else None, "store": _text(args.store) if store else None,
            "counts": dict(kinds),
            "problems": [{name: _text(text) for name, text in problem._asdict().items()}
                         for problem in problems]})
    return 1 if problems else 0


def _text(value: object) -> str:
    """As JSON can have it: bytes of names that are no UTF-8 escaped."""
    return str(value).encode(errors="backslashreplace").decode()


def _table(kinds: Counter[str]) -> str:
    if not kinds:
        return "nothing is wrong"
    rows = [f"{'problem':16} {'number':>6}"]
    rows += [f"{kind:16} {number:6}" for kind, number in kinds.most_common()]
    return "\n" + "\n".join([*rows, f"{'all':16} {kinds.total():6}"])


if __name__ == "__main__":
    sys.exit(main())
