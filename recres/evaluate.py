"""`python -m recres.evaluate RUN`: compute the errors of a run's best model again.

A model is tested on videos that it was not trained on, or its error means nothing: each of
UCF-101's three splits tests videos that the other two train on. What a model was trained on stands
in its file, and evaluating it on another split is refused unless --force, which the result says.
So it does where the frames have other pixels than those that it was trained on (--frames).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recres import build, checkpoint, commands, config, summary
from recres.config import Config
from recres.datasets import ucf101
from recres.errors import InputError
from recres.evaluation import assess, chunks_to_assess
from recres.feature_store import FeatureStore
from recres.files import parse_json, write_json
from recres.loader import FrameLoader, Loader, Videos
from recres.runs import Run
from recres.scores import write_scores
from tensorlite.precision import using


def parser() -> commands.Parser:
    """The command's arguments."""
    result = commands.Parser("recres.evaluate", "Compute the errors of a run's best model again.",
                             less_memory="--precision float16 needs less, --device cpu none there")
    result.add_argument("run", metavar="RUN", help="folder of the run")
    result.add_argument("--side", choices=("test", "holdout"), default="test",
                        help="the videos to evaluate on (default: test)")
    result.add_argument("--split", metavar="N", type=int, choices=(1, 2, 3),
                        help="of which split (default: the run's)")
    result.add_argument("--weights", metavar="FILE", type=Path, help="a model of the same network "
                        "that another run saved (default: best.safetensors of this run)")
    result.add_argument("--force", action="store_true", help="evaluate even on videos that the "
                        "model was trained on; the result says so")
    config.add_overrides(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return commands.run(parser(), _evaluate, argv)


def _evaluate(args: argparse.Namespace) -> int:
    run = Run.open(args.run)
    options = config.override(run.config, args)
    options = replace(options, split=args.split or options.split)
    commands.use_machine(options.threads, options.device)
    model, classes, convention = build.open_model(run, options, args.weights)
    build.refuse_no_figures(options, args.root)
    videos = build.open_videos(options, run.path)
    if videos.split.classes != classes:
        raise InputError(f"{options.root}: its classes are not those of the model")
    if not videos.sides[args.side]:
        raise InputError(f"--side {args.side}: the run held no videos out")
    path = args.weights or run.path / "best.safetensors"
    trained, about = _trained_on(path)
    _say_pixels(videos, about)
    reason = why_not(trained, videos, args.side)
    if reason is not None and not args.force:
        raise InputError(f"{path}: {reason}; --force evaluates it all the same")
    if reason is not None:
        commands.say(f"forced    {reason}")
    loader, store = _open_loader(options, videos, convention, run, args.side)
    with commands.bar(f"evaluating {args.side}", "chunk",
                      chunks_to_assess(videos, args.side)) as shown, using(options.precision):
        errors, scores = assess(model, loader, videos, args.side, shown.update)
    if store is not None:
        store.remove()
    # Never under the name of the run's own, honest evaluation.
    name = args.side + (f"-split{options.split}" if options.split != run.config.split else "")
    name += "-forced" if reason is not None else ""
    names = f"evaluation-{name}.json", f"scores-{name}.npz"
    write_scores(run.path / names[1], scores, classes, options.data, options.split)
    write_json(run.path / names[0], {
        "side": args.side, "weights": str(args.weights or "best.safetensors"),
        "data": options.data, "split": options.split, "trained_on": about,
        "forced": reason is not None, "force_reason": reason,
        "precision": options.precision, "pixels": videos.source.pixels, **errors})
    print(f"{summary.table(errors)}\n{'written':12} {run.path}: {', '.join(names)}")
    return 0


def _open_loader(options: Config, videos: Videos, convention: str, run: Run,
                 side: str) -> tuple[Loader, FeatureStore | None]:
    """Frames for the whole network; for a model of features, these from its backbone, and the
    store of them if it is to be removed."""
    frames = FrameLoader(videos.source, options, convention)
    if not options.features:
        return frames, None
    network = build.build_network(options, len(videos.split.classes))
    start = build.load_weights(network, options, log=str)
    network.to(options.device)
    same = videos.source.pixels == run.about.get("pixels")
    keep = same and options.store is not None
    if not same:  # those that the run keeps are of other pixels
        options = replace(options, store=str(run.path / "features-evaluation"))
    store = build.open_store(options, network, videos, run.path, start, (side,))
    assert store is not None
    build.make_features(store, network, frames)
    return build.open_loader(options, store, frames), None if keep else store


def _trained_on(path: Path) -> tuple[Config | None, dict[str, Any] | None]:
    """The options that the model in a file was trained with, and what of them a result repeats;
    None where the file does not say."""
    _, about = checkpoint.load_model(path)
    try:
        values = parse_json(about["options"], path)
    except (KeyError, InputError):
        return None, None
    trained = Config.from_json(values if isinstance(values, Mapping) else {}, str(path))
    # Older files do not say it, but a run without a store had the frames of the videos.
    pixels = parse_json(about.get("pixels", '"unknown"' if trained.frames else "null"), path)
    return trained, {"data": trained.data, "split": trained.split, "root": trained.root,
                     "pixels": pixels if isinstance(pixels, str | None) else "unknown"}


def _say_pixels(videos: Videos, trained: Mapping[str, Any] | None) -> None:
    """A line where the frames are not like those that the model was trained on."""
    here, there = videos.source.pixels, trained["pixels"] if trained else "unknown"
    if here != there:
        commands.say(f"pixels    {here or 'those of the videos'}; the model was trained on "
                     f"{there or 'those of the videos'}")


def why_not(trained: Config | None, videos: Videos, side: str) -> str | None:
    """Why a model trained with these options must not be evaluated on a side of `videos`.

    None if nothing speaks against it. Names of videos decide, not the split's number alone: the
    lists of the data set that it was trained on are read again where they are still there.
    """
    here = videos.config
    if trained is None:
        return "it does not say which videos it was trained on, these may be among them"
    if trained.data != here.data:
        return (f"trained on {trained.data}, but this is {here.data}: the error would be that of "
                "another data set's model")
    if side == "holdout":
        different = [name for name in ("split", "holdout", "seed", "skip_bad")
                     if getattr(trained, name) != getattr(here, name)]
        if different:
            own, other = (", ".join(f"{name} {getattr(which, name)}" for name in different)
                          for which in (trained, here))
            return (f"trained with {own}, but these videos are held out with {other}: it may have "
                    "been trained on them")
        return None
    places = videos.sides[side]
    tested = {videos.source.videos[place].name.lower() for place in places}
    listed = _training_names(trained)
    common = tested & listed
    if not common and (listed or trained.split == here.split):
        return None
    found = (f"{len(common)} of the {len(tested)} test videos are among its training videos" if
             listed else "its training videos are among the test videos")
    where = "" if trained.root == here.root else f" ({trained.root})"
    there = "" if trained.root == here.root else f" ({here.root})"
    return (f"trained on split {trained.split} of {trained.data}{where}, but this tests on split "
            f"{here.split}{there}: {found}, so the error would come out too low")


def _training_names(trained: Config) -> set[str]:
    """Lower-case names of the training side's videos, none where its lists cannot be read now."""
    try:
        split = ucf101.read(trained.root, trained.split, check_files=False)
    except InputError:
        return set()
    return {video.name.lower() for video in split.train}


if __name__ == "__main__":
    sys.exit(main())
