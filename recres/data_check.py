"""What can be wrong with a data set laid out like UCF-101, and with a store of its frames.

Reading a data set stops at the first thing that is wrong. Here all of it is looked for, every file
is decoded to its end, and each finding is a `Problem` of one of these kinds:

    missing         a listed video is not on disk; a store lacks one
    extra           a file that no list has; a store has a video, a file or bytes that nothing
                    refers to
    corrupt         a video, or a frame in a store, does not decode
    truncated       a file ends before the end that it declares, or that a store's index does; or
                    a store's index within a line
    unreadable      the system does not let us read a file or folder
    same-bytes      two videos are the same, byte for byte
    same-name       two files of one name, but for upper and lower case
    listed-twice    a video is twice in the lists of one split
    wrong-class     a video lies, or is listed, in the folder of another class than its name says
    class-index     classInd.txt does not number its classes, or lists and it disagree
    crossing-group  a group is on both sides of a split
    untrained       a class is tested in a split that does not train on it
    list            a line of a list, or a whole list, cannot be used
    index           a line of a store's index cannot be used
    checksum        bytes in a store are not those that were written
    stale           a store was made of another file than the one there is now
    frame-count     a store's index counts other frames than the video has
    label           a store's index has another class or group of a video than the lists
    unusable        a store notes why it has no frames of a video
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from recres.commands import bar
from recres.datasets import ucf101
from recres.errors import InputError
from recres.video.decode import VideoError, check_file, iter_frames
from recres.video.frame_index import Line, Settings, differs, file_state, kept_indices
from recres.video.frame_store import FrameStore
from recres.video.prefetch import Prefetcher
from recres.video.processes import in_processes

_NAME = re.compile(r"v_(\w+)_g\d{1,9}_c\d+\.avi", re.IGNORECASE | re.ASCII)


class Problem(NamedTuple):
    """One thing that is wrong: its kind, the file (and line) it is in, and what it is."""

    kind: str
    where: str
    what: str


class Found(NamedTuple):
    """What `check_data_set` found. frames, sha256s: by the video's name in lower case, how many
    frames a store keeps of it, and what its bytes are, where it can be decoded."""

    problems: list[Problem]
    videos: int
    listed: int
    frames: dict[str, int]
    sha256s: dict[str, str]


class _Entry(NamedTuple):
    """A line of a list that can be used; `file` is <class>/<name>.avi, as it stands there."""

    file: str
    name: str
    folder: str
    group: str
    where: str


class _Lists(NamedTuple):
    """What lists say: classes, in lower case, with their labels; the listed videos of all splits by
    name in lower case."""

    classes: dict[str, int]
    listed: dict[str, _Entry]
    problems: list[Problem]


class _Seen(NamedTuple):
    """What looking at one video file showed: its sha256 and count of frames, or a problem."""

    sha256: str = ""
    total: int = 0
    problem: Problem | None = None


def check_data_set(root: str | os.PathLike[str], workers: int = 1,
                   settings: Settings | None = None) -> Found:
    """Look at every list and every video under `root`. settings: of a store, to count what it has
    of each video. InputError where there is no such folder."""
    root = Path(root)
    folder = videos_folder(root)
    lists = _read_lists(root)
    problems = list(lists.problems)
    paths, on_disk = _walk(folder, problems)
    names = {path.name.lower() for path in on_disk.values()}
    for key, entry in lists.listed.items():
        if f"{key}.avi" not in names:  # (what is in the wrong folder is said below)
            problems.append(Problem("missing", str(folder / entry.file),
                                    f"no such file, but {entry.where} lists it"))
    for path in paths:
        problems.extend(_misplaced(path, lists))
    frames: dict[str, int] = {}
    sha256s: dict[str, str] = {}
    first: dict[str, Path] = {}
    videos = [path for path in paths if path.suffix.lower() == ".avi"]
    results = in_processes(inspect, videos, workers, crashed)
    with bar("decoding", "video", len(videos)) as shown:
        for path, seen in zip(videos, results, strict=True):
            shown.update()
            if seen.problem is not None:
                problems.append(seen.problem)
                continue
            sha256s[path.stem.lower()] = seen.sha256
            if settings is not None:
                frames[path.stem.lower()] = _kept(seen.total, settings)
            if (other := first.setdefault(seen.sha256, path)) != path:
                problems.append(Problem("same-bytes", str(path),
                                        f"the same bytes as {_short(other)}"))
    return Found(problems, len(videos), len(lists.listed), frames, sha256s)


def inspect(path: Path) -> _Seen:
    """Read and decode a video to its end."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            path.stat()
            return _seen("unreadable", path, "not a regular file")
        check_file(path)  # what is no video is not read to its end, however large it is
        sha256 = file_state(path)["sha256"]
        total = 0
        for index, _ in iter_frames(path):
            total = index + 1
    except VideoError as error:
        kind = "truncated" if error.reason.startswith("cut short") else "corrupt"
        return _seen(kind, path, error.reason)
    except OSError as error:
        return _seen("unreadable", path, error.strerror or type(error).__name__)
    return _Seen(sha256, total)


def crashed(path: Path) -> _Seen:
    """What is said of a video at which the decoder dies."""
    return _seen("corrupt", path, "the decoder crashes on it")


def _seen(kind: str, path: Path, what: str) -> _Seen:
    return _Seen(problem=Problem(kind, str(path), what))


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _kept(total: int, settings: Settings) -> int:
    sampled = -(-total // settings.frame_step)
    return sampled if sampled >= settings.context else len(kept_indices(total, settings))


def videos_folder(root: Path) -> Path:
    """Where the videos of the data set under `root` are; InputError where it is no folder."""
    folder = root if root.name == "UCF-101" else root / "UCF-101"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected the videos of a data set there")
    return folder


def _walk(folder: Path, problems: list[Problem]) -> tuple[list[Path], dict[str, Path]]:
    """All files in the folders of classes, in order; and by "<class>/<file>" in lower case."""
    paths: list[Path] = []
    on_disk: dict[str, Path] = {}
    for place in sorted(_entries(folder, problems)):
        if not place.is_dir():
            problems.append(Problem("extra", str(place), "not in the folder of a class"))
            continue
        for path in sorted(_entries(place, problems)):
            key = f"{path.parent.name}/{path.name}".lower()
            if key in on_disk:
                problems.append(Problem("same-name", str(path),
                                        f"there is {_short(on_disk[key])} too"))
            else:
                on_disk[key] = path
            paths.append(path)
    return paths, on_disk


def _entries(folder: Path, problems: list[Problem]) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        problems.append(Problem("unreadable", str(folder), error.strerror or str(error)))
        return []


def _misplaced(path: Path, lists: _Lists) -> Iterator[Problem]:
    """What is wrong with a file's being where it is."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        yield Problem("extra", str(path), "not named like a video of UCF-101")
    elif match[1].lower() != path.parent.name.lower():
        yield Problem("wrong-class", str(path),
                      f"a clip of {match[1]} in the folder {path.parent.name}")
    elif lists.listed and path.stem.lower() not in lists.listed:
        yield Problem("extra", str(path), "in none of the lists")


def _read_lists(root: Path) -> _Lists:
    problems: list[Problem] = []
    places = (root / "ucfTrainTestlist", root, root.parent / "ucfTrainTestlist")
    folder = next((place for place in places if (place / "classInd.txt").exists()), places[0])
    classes = _read_classes(folder / "classInd.txt", problems)
    listed: dict[str, _Entry] = {}
    for number in ucf101.SPLITS:
        files = [folder / f"{side}list{number:02d}.txt" for side in ("train", "test")]
        if number > 1 and not any(file.exists() for file in files):
            continue
        seen: dict[str, _Entry] = {}
        train, test = (_read_list(file, classes, seen, problems, labelled)
                       for file, labelled in zip(files, (True, False), strict=True))
        problems.extend(_sides(number, files, train, test))
        listed = seen | listed
    return _Lists(classes, listed, problems)


def _lines(path: Path, problems: list[Problem]) -> list[tuple[str, list[str]]]:
    """As `ucf101.lines`; none of a list that cannot be read."""
    try:
        return list(ucf101.lines(path))
    except InputError as error:
        problems.append(Problem("list", str(path), str(error).removeprefix(f"{path}: ")))
        return []


def _read_classes(path: Path, problems: list[Problem]) -> dict[str, int]:
    classes: dict[str, int] = {}
    for count, (where, words) in enumerate(_lines(path, problems), start=1):
        if (len(words) != 2 or words[0] != str(count)
                or not ucf101.CLASS.fullmatch(words[1])):
            problems.append(Problem("class-index", where,
                                    f"{' '.join(words)!r}, expected '{count} <Class>'"))
        name = words[-1].lower()
        if name in classes:
            problems.append(Problem("class-index", where, f"class {words[-1]} is there twice"))
        classes.setdefault(name, count)
    return classes


def _read_list(path: Path, classes: Mapping[str, int], seen: dict[str, _Entry],
               problems: list[Problem], labelled: bool) -> list[_Entry]:
    result: list[_Entry] = []
    for where, words in _lines(path, problems):
        match = ucf101.ENTRY.fullmatch(words[0])
        if match is None or len(words) > 2 or (labelled and len(words) < 2):
            form = "<Class>/v_<Class>_g<group>_c<clip>.avi" + (" <label>" if labelled else "")
            problems.append(Problem("list", where, f"{' '.join(words)!r}, expected {form}"))
            continue
        folder, name, clip_class, group = match.groups()
        label = classes.get(folder.lower())
        if clip_class.lower() != folder.lower():
            problems.append(Problem("wrong-class", where,
                                    f"a clip of {clip_class} in the folder {folder}"))
        elif label is None and classes:
            problems.append(Problem("class-index", where,
                                    f"class {folder} is not in classInd.txt"))
        elif label is not None and words[1:] not in ([], [str(label)]):
            problems.append(Problem("class-index", where, f"label {words[1]} of {words[0]}, but "
                                    f"classInd.txt gives {folder} {label}"))
        entry = _Entry(words[0], name, folder, f"g{int(group):02d}", where)
        if (other := seen.setdefault(name.lower(), entry)) is not entry:
            problems.append(Problem("listed-twice", where, f"{words[0]} stands at {other.where} "
                                    "already"))
            continue
        result.append(entry)
    return result


def _sides(number: int, files: Sequence[Path], train: Sequence[_Entry], test: Sequence[_Entry]
           ) -> Iterator[Problem]:
    """Groups on both sides, and classes on the test side alone."""
    if not train or not test:
        return
    trained = {entry.group: entry for entry in reversed(train)}
    for group, entry in {entry.group: entry for entry in reversed(test)}.items():
        if group in trained:
            yield Problem("crossing-group", entry.where, f"group {group} is on both sides of split "
                          f"{number}: {entry.name} here, {trained[group].name} at "
                          f"{trained[group].where}")
    untrained = {e.folder.lower() for e in test} - {e.folder.lower() for e in train}
    for name in sorted(untrained):
        yield Problem("untrained", str(files[1]), f"split {number} tests class {name}, but does "
                      "not train on it")


def check_store(store: FrameStore, root: str | os.PathLike[str] | None = None, workers: int = 1,
                found: Found | None = None) -> list[Problem]:
    """Look at everything in a store, opened `tolerant`; compare it with the data set under `root`,
    if one is given, and with what was found there. InputError where `root` is none."""
    problems = [Problem("index", f"{store.index}:{number}", what) for number, what in store.damage]
    lines = list(store.lines.values())
    problems += _left_over(store)
    if root is not None:
        problems += _compare(store, Path(root), found)
    problems += [Problem("unusable", f"{store.index}: {line.video}", line.bad)
                 for line in lines if line.bad is not None]
    absent = {line.shard for line in lines
              if line.bad is None and not store.shard(line.shard).exists()}
    problems += [Problem("missing", str(store.shard(number)), "no such file, but the index refers "
                         "to it") for number in sorted(absent)]
    known = {"about.json", "videos.jsonl", "lock", *(store.shard(n).name for n in store.ends)}
    problems += [Problem("extra", str(path), "no file of the store")
                 for path in sorted(store.path.iterdir()) if path.name not in known]
    present = [line for line in lines if line.bad is None and line.shard not in absent]
    with (bar("reading frames", "video", len(present)) as shown,
          Prefetcher(partial(_verify, store), present, workers) as results):
        for result in results:
            shown.update()
            problems += result
    return problems


def _left_over(store: FrameStore) -> Iterator[Problem]:
    """What a killed writer leaves; a store that was not copied to its end has it too."""
    size = store.index.stat().st_size if store.index.is_file() else 0
    if size > store.index_bytes:
        yield Problem("truncated", str(store.index), f"ends within a line, {size} bytes of which "
                                                     f"{store.index_bytes} are whole lines")
    if store.damage:  # (a line that is damaged may refer to what comes last)
        return
    for number, end in sorted(store.ends.items()):
        path = store.shard(number)
        with contextlib.suppress(OSError):  # (what cannot be read is said of its videos)
            if path.is_file() and (size := path.stat().st_size) > end:
                yield Problem("extra", str(path), f"{size - end} bytes at its end that the index "
                                                  "does not refer to")


def _verify(store: FrameStore, line: Line) -> list[Problem]:
    """What is wrong with the bytes of a video's frames."""
    path = store.shard(line.shard)
    where = f"{path}: {line.video}"
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return [Problem("unreadable", where, "not a regular file")]
        size = path.stat().st_size
        if size < line.end:
            return [Problem("truncated", where, f"its frames end at byte {line.end}, the file at "
                                                f"{size}")]
        open(path, "rb").close()
    except OSError as error:
        return [Problem("unreadable", where, error.strerror or str(error))]
    for kind, look in (("checksum", store.verify), ("corrupt", store.verify_images)):
        try:
            look(line)
        except InputError as error:
            return [Problem(kind, where, _reason(error))]
    return []


def _reason(error: InputError) -> str:
    text = str(error)
    return text.partition("are damaged: ")[2].partition("; recres.data prepare")[0] or text


def _compare(store: FrameStore, root: Path, found: Found | None) -> Iterator[Problem]:
    """How a store is not of the data set under `root`."""
    folder = videos_folder(root)
    lists = _read_lists(root)  # (what is wrong with the lists is the data set's affair)
    on_disk = _walk(folder, [])[1]
    for key, entry in lists.listed.items():
        # (a video without a line may be one whose line is damaged, which is said)
        if key not in store.lines and not store.damage:
            yield Problem("missing", str(store.index), f"has no frames of {entry.file}")
    for key, line in store.lines.items():
        where = f"{store.index}: {line.video}"
        entry_ = lists.listed.get(key)
        if entry_ is None:
            yield Problem("extra", where, "in none of the lists")
            continue
        label = lists.classes.get(entry_.folder.lower(), line.label + 1) - 1
        if (line.label, line.group) != (label, entry_.group):
            yield Problem("label", where, f"class {line.label + 1}, group {line.group}; the lists "
                          f"say {label + 1}, {entry_.group}")
        if line.bad is not None:
            continue
        path = on_disk.get(f"{entry_.folder}/{entry_.name}.avi".lower())
        try:
            why = differs(line, path) if path else "is gone"
        except OSError as error:
            why = f"cannot be read: {error.strerror}"
        if not why and found and found.sha256s.get(key, line.sha256) != line.sha256:
            why = "has other bytes now, but the same time of change"  # a disk may do that
        if why:
            yield Problem("stale", where, f"made of {path or folder / entry_.file}, which {why}")
        elif found and found.frames.get(key, line.frames) != line.frames:
            yield Problem("frame-count", where, f"{line.frames} frames are kept, of the video it "
                          f"would be {found.frames[key]}")
