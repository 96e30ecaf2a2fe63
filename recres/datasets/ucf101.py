"""UCF-101 as it is distributed, and every data set laid out like it.

    root/UCF-101/<Class>/v_<Class>_g<group>_c<clip>.avi
    root/ucfTrainTestlist/classInd.txt                     1 ApplyEyeMakeup
                          trainlist01.txt … trainlist03    <Class>/v_….avi 1
                          testlist01.txt  … testlist03     <Class>/v_….avi

Fewer classes than 101 will do: the classes are those of classInd.txt. Upper and lower case are
told apart nowhere, since HandstandPushups is spelt in two ways, differently in each copy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from recres.datasets import Split, Video
from recres.errors import InputError
from recres.files import read_text

SPLITS = (1, 2, 3)

CLASS = re.compile(r"\w+", re.ASCII)
ENTRY = re.compile(r"([^/\\]+)/(v_(\w+)_g(\d{1,9})_c\d+)\.avi", re.IGNORECASE | re.ASCII)


def read(
    root: str | os.PathLike[str], split: int = 1, check_files: bool = True, name: str = "ucf101"
) -> Split:
    """Read a split of UCF-101 under `root`; the lists may also lie in or beside that folder.

    Raises InputError, one line that names file and line, when a list is missing, malformed or
    empty, when lists and classes disagree, when a video is listed twice or a group number is on
    both sides, or when a listed video is not on disk. check_files=False reads the lists only.
    """
    if split not in SPLITS:
        raise InputError(f"split {split} of {name}: expected 1, 2 or 3")
    root = Path(root)
    if not os.path.isdir(root):
        raise InputError(f"{root}: no such folder, expected one that holds UCF-101/")
    videos = root if root.name == "UCF-101" else root / "UCF-101"
    lists = _find_lists(root)
    classes = _read_classes(lists / "classInd.txt")
    train_list, test_list = (lists / f"{side}list{split:02d}.txt" for side in ("train", "test"))
    train = _read_list(train_list, videos, classes, labelled=True)
    test = _read_list(test_list, videos, classes, labelled=False)
    _check_sides(train_list, train, test_list, test, classes)
    if check_files:
        if not os.path.isdir(videos):
            raise InputError(f"{videos}: no such folder, expected one with the videos")
        on_disk = _index(videos)
        train = _locate(train_list, train, videos, on_disk)
        test = _locate(test_list, test, videos, on_disk)
    return Split(name, split, classes, train, test)


def _find_lists(root: Path) -> Path:
    places = (root / "ucfTrainTestlist", root, root.parent / "ucfTrainTestlist")
    for place in places:
        if os.path.isfile(place / "classInd.txt"):
            return place
    raise InputError(f"{places[0] / 'classInd.txt'}: no such file")


def lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield ("file:line", the line's words) for every line of a list that is not blank. Of a line
    of more than two words the third is all the rest: it may be as long as the file.

    Raises InputError where the list cannot be read or, at its end, is empty.
    """
    empty = True
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if words := line.split(maxsplit=2):
            empty = False
            yield f"{path}:{number}", words
    if empty:
        raise InputError(f"{path}: the list is empty")


def _read_classes(path: Path) -> tuple[str, ...]:
    classes: list[str] = []
    known: set[str] = set()
    for where, words in lines(path):
        expected = len(classes) + 1
        if len(words) != 2 or words[0] != str(expected) or not CLASS.fullmatch(words[1]):
            raise InputError(f"{where}: {' '.join(words)!r}, expected '{expected} <Class>'")
        if words[1].lower() in known:
            raise InputError(f"{where}: class {words[1]} is there twice")
        known.add(words[1].lower())
        classes.append(words[1])
    return tuple(classes)


def _read_list(
    path: Path, videos: Path, classes: tuple[str, ...], labelled: bool
) -> tuple[Video, ...]:
    labels = {known.lower(): label for label, known in enumerate(classes)}
    result: list[Video] = []
    seen: dict[str, str] = {}
    for where, words in lines(path):
        entry = words[0]
        match = ENTRY.fullmatch(entry)
        if match is None or len(words) > 2 or (labelled and len(words) < 2):
            form = "<Class>/v_<Class>_g<group>_c<clip>.avi" + (" <label>" if labelled else "")
            raise InputError(f"{where}: {' '.join(words)!r}, expected '{form}'")
        folder, stem, clip_class, group = match.groups()
        label = labels.get(folder.lower())
        if label is None:
            raise InputError(f"{where}: class {folder} of {entry} is not in classInd.txt")
        if clip_class.lower() != folder.lower():
            raise InputError(f"{where}: {entry} is a clip of {clip_class} in the folder {folder}")
        if len(words) == 2 and words[1] != str(label + 1):
            raise InputError(
                f"{where}: label {words[1]} of {entry}, but classInd.txt gives {folder} {label + 1}"
            )
        if stem.lower() in seen:
            raise InputError(f"{where}: {entry} is listed twice, first at {seen[stem.lower()]}")
        seen[stem.lower()] = where
        result.append(Video(videos / entry, label, f"g{int(group):02d}", stem))
    return tuple(result)


def _check_sides(
    train_list: Path,
    train: tuple[Video, ...],
    test_list: Path,
    test: tuple[Video, ...],
    classes: tuple[str, ...],
) -> None:
    """No group number on both sides, and no class that is tested without having been trained."""
    trained = {video.group: video for video in train}
    for video in test:
        if video.group in trained:
            raise InputError(
                f"group {video.group} is on both sides: {trained[video.group].name} in "
                f"{train_list} and {video.name} in {test_list}"
            )
    untrained = {video.label for video in test} - {video.label for video in train}
    if untrained:
        raise InputError(f"{test_list}: class {classes[min(untrained)]} has no training video")


def _index(videos: Path) -> dict[str, Path]:
    """The files of all class folders by their lower-case "<class>/<file>"; of two that differ in
    case alone, the first in the order of names."""
    found: dict[str, Path] = {}
    try:
        for folder in sorted(entry.path for entry in os.scandir(videos) if entry.is_dir()):
            for path in sorted(Path(entry.path) for entry in os.scandir(folder)):
                found.setdefault(f"{path.parent.name}/{path.name}".lower(), path)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from error
    return found


def _locate(
    list_path: Path, listed: tuple[Video, ...], videos: Path, on_disk: dict[str, Path]
) -> tuple[Video, ...]:
    """The listed videos with the paths under which they are on disk."""

    def find(video: Video) -> Path | None:
        return on_disk.get(video.path.relative_to(videos).as_posix().lower())

    located = tuple(video._replace(path=path) for video in listed if (path := find(video)))
    if len(located) < len(listed):
        first = next(video for video in listed if not find(video))
        raise InputError(
            f"{first.path}: no such file; {len(listed) - len(located)} of the {len(listed)} videos "
            f"in {list_path} are missing"
        )
    return located
