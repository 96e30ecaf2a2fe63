"""Videos with labels, in lists to train on and to test on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from recres.errors import InputError
from recres.random import generator


class Video(NamedTuple):
    """A labelled video; `group` is the actor and place that it shares with others of its group."""

    path: Path
    label: int
    group: str
    name: str


class Split(NamedTuple):
    """A division of a data set into what is trained on and what is tested on.

    Labels index `classes`. `pairs` names the classes that are each other played backwards.
    """

    name: str
    number: int
    classes: tuple[str, ...]
    train: tuple[Video, ...]
    test: tuple[Video, ...]
    pairs: tuple[tuple[str, str], ...] = ()


def holdout(
    videos: Sequence[Video], share: float, seed: int
) -> tuple[tuple[Video, ...], tuple[Video, ...]]:
    """Hold out whole groups of the training videos: (to fit on, held out), in their order.

    Groups drawn by `seed` are held out until at least `share` of the videos and every class is
    among them; every class keeps videos to fit on. A group is held out of all classes alike: a
    group's number may mean the same actor in each of them (figures) or not (UCF-101), and either
    way no group is on both sides. Raises InputError when that is impossible.
    """
    if not 0 < share < 1:
        raise InputError(f"the share held out is {share}, expected between 0 and 1")
    classes_of: dict[str, set[int]] = {}
    for video in videos:
        classes_of.setdefault(video.group, set()).add(video.label)
    names = sorted(classes_of)
    if len(names) < 2:
        raise InputError(f"{len(names)} group of training videos, holding out needs at least 2")

    classes = {video.label for video in videos}
    remaining = set(names)
    held: tuple[Video, ...] = ()
    held_classes: set[int] = set()
    for i in generator(seed, "holdout").permutation(len(names)):
        group = classes_of[names[i]]
        if len(held) >= share * len(videos) and group <= held_classes:
            continue
        left = remaining - {names[i]}
        if set().union(*(classes_of[name] for name in left)) == classes:
            remaining = left
            held = tuple(video for video in videos if video.group not in remaining)
            held_classes |= group
    if held_classes != classes:
        lacking = next(video for video in videos if video.label not in held_classes)
        raise InputError(
            f"class {lacking.label} ({lacking.name}) has too few groups of training videos to "
            "hold one out"
        )
    if len(held) < share * len(videos):
        raise InputError(
            f"whole groups make {len(held)} of {len(videos)} training videos that can be held "
            f"out, fewer than the share of {share}"
        )
    return tuple(video for video in videos if video.group in remaining), held
