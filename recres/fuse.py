"""`python -m recres.fuse SCORES...`: average the posteriors of several networks on the same videos.

Late fusion as in two-stream networks (Simonyan & Zisserman 2014): a video's fused posterior is the
weighted mean of those that, say, a network on frames and one on optical flow give it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recres import commands
from recres.errors import InputError
from recres.runs import refuse_own
from recres.scores import SavedScores, read_scores, write_scores


def parser() -> commands.Parser:
    """The command's arguments."""
    result = commands.Parser("recres.fuse", "Average the posteriors of several runs on the same "
                             "videos (late fusion) and say what that does to the error.",
                             less_memory="score files need no GPU")
    result.add_argument("scores", metavar="SCORES", type=Path, nargs="+", help="a score file, or "
                        "the folder of a run (its scores.npz)")
    result.add_argument("--weights", metavar="W,W,...", help="weight of each of them (default: all "
                        "the same)")
    result.add_argument("--out", metavar="FILE.npz", type=Path,
                        help="write the fused posteriors to this file")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return commands.run(parser(), _fuse, argv)


def _fuse(args: argparse.Namespace) -> int:
    if args.out is not None and args.out.suffix != ".npz":
        raise InputError(f"--out {args.out}: expected a name that ends in .npz")
    paths = [path / "scores.npz" if path.is_dir() else path for path in args.scores]
    if args.out is not None:
        refuse_own(args.out, "--out")
        if os.path.realpath(args.out) in map(os.path.realpath, paths):
            raise InputError(f"--out {args.out}: one of the score files that are fused")
    scores = [read_scores(path) for path in paths]
    weights = _parse_weights(args.weights, len(paths))
    fused = fuse(scores, weights, [str(path) for path in paths])
    if args.out is not None:
        try:
            write_scores(args.out, fused, fused.classes, fused.data, fused.split)
        except OSError as error:
            raise InputError(f"--out {args.out}: {error.strerror}") from None
    print(describe(scores, fused, weights, [str(path) for path in paths]))
    if args.out is not None:
        print(f"written  {args.out}")
    return 0


def _parse_weights(text: str | None, count: int) -> list[float]:
    if text is None:
        return [1.0] * count
    try:
        weights = [float(word) for word in text.split(",")]
    except ValueError:
        raise InputError(f"--weights {text}: expected numbers with commas between") from None
    if len(weights) != count:
        raise InputError(f"--weights {text}: {len(weights)} for {count} score files")
    if not math.isfinite(sum(weights)) or min(weights) < 0 or not sum(weights):
        raise InputError(f"--weights {text}: expected numbers of at least 0, not all of them 0, "
                         "and their sum finite")
    return weights


def fuse(scores: Sequence[SavedScores], weights: Sequence[float] | None = None,
         names: Sequence[str] | None = None) -> SavedScores:
    """The weighted mean of posteriors, video by video, in the first one's order of videos.

    weights: of at least 0, scaled to sum to 1; all the same without. names: what errors call the
    scores. The result's `chunks` are sums: of all posteriors that went in. InputError where the
    scores are of other classes, another split, other videos or other labels.
    """
    names = names or [f"scores {number}" for number in range(1, len(scores) + 1)]
    share = np.ones(len(scores)) if weights is None else np.array(weights, np.float64)
    share = share / share.sum()
    first = scores[0]
    posteriors, chunks = share[0] * first.posteriors, first.chunks.copy()
    data, split = first.data, first.split
    for one, weight, name in zip(scores[1:], share[1:], names[1:], strict=True):
        place = _align(first, one, names[0], name)
        posteriors = posteriors + weight * one.posteriors[place]
        chunks = chunks + one.chunks[place]
        data, split = data or one.data, split or one.split
    return first._replace(posteriors=posteriors, chunks=chunks, data=data, split=split)


def _align(first: SavedScores, other: SavedScores, first_name: str, name: str) -> np.ndarray:
    """(V,): where in `other` each video of `first` is. InputError where they do not belong
    together."""
    if other.classes != first.classes:
        raise InputError(f"{name}: its {len(other.classes)} classes are not the "
                         f"{len(first.classes)} of {first_name}")
    # Files from before they said so are known by their videos alone.
    if first.data and other.data and first.data != other.data:
        raise InputError(f"{name}: scores of {other.data}, those of {first_name} are of "
                         f"{first.data}")
    if first.split and other.split and first.split != other.split:
        raise InputError(f"{name}: scores of split {other.split}, those of {first_name} are of "
                         f"split {first.split}")
    place = {video: i for i, video in enumerate(other.names)}
    for one, lacks, videos in ((name, first.names, place.keys()),
                               (first_name, other.names, set(first.names))):
        if missing := [video for video in lacks if video not in videos]:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise InputError(f"{one}: lacks {', '.join(missing[:3])}{more}, which "
                             f"{first_name if one == name else name} has")
    order = np.array([place[video] for video in first.names])
    if (wrong := other.labels[order] != first.labels).any():
        raise InputError(f"{name}: {first.names[int(wrong.argmax())]} has another label than in "
                         f"{first_name}")
    return order


def describe(scores: Sequence[SavedScores], fused: SavedScores, weights: Sequence[float],
             names: Sequence[str]) -> str:
    """Each one's error and the fused one, and how many videos' answers turned right and wrong."""
    width = max(len(name) for name in (*names, "scores", "fused"))
    rows = [f"{'scores':{width}}  weight  video error  turned right  turned wrong"]
    total = sum(weights)
    for one, weight, name in zip(scores, weights, names, strict=True):
        place = {video: i for i, video in enumerate(one.names)}
        before = one.right[[place[video] for video in fused.names]]
        better, worse = int((fused.right & ~before).sum()), int((before & ~fused.right).sum())
        rows.append(f"{name:{width}}  {weight / total:6.3f}  {one.video_error:11.4f}  "
                    f"{better:12}  {worse:12}")
    rows.append(f"{'fused':{width}}          {fused.video_error:11.4f}  of {len(fused.names)} "
                "videos")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
