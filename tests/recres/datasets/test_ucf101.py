"""UCF-101's layout, everything that can be wrong with it, and holding out groups."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recres.datasets import Video, holdout, ucf101
from recres.errors import InputError

CLASSES = ("Archery", "HandstandPushups")
CLIP_CLASSES = ("Archery", "HandStandPushups")


def entries(groups):
    return [
        f"{folder}/v_{clip}_g{group:02d}_c{number:02d}.avi"
        for folder, clip in zip(CLASSES, CLIP_CLASSES, strict=True)
        for group in groups
        for number in (1, 2)
    ]


@pytest.fixture
def root(tmp_path):
    """Two classes, groups 1–2 tested and 3–5 trained in split 1, the official spelling."""
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 HandstandPushups\n")
    for split, tested in enumerate(((1, 2), (3,), (4, 5)), start=1):
        trained = [group for group in range(1, 6) if group not in tested]
        lines = [f"{entry} {1 + entry.startswith('Hand')}" for entry in entries(trained)]
        (lists / f"trainlist0{split}.txt").write_text("\r\n".join(lines) + "\r\n")
        (lists / f"testlist0{split}.txt").write_text("\n".join(entries(tested)) + "\n\n")
    for entry in entries(range(1, 6)):
        path = tmp_path / "UCF-101" / entry
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def edit(root, name, old, new):
    path = root / "ucfTrainTestlist" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def refuse(root, message, split=1, **options):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        ucf101.read(root, split, **options)
    assert "\n" not in str(caught.value)


def test_read(root):
    split = ucf101.read(root)
    assert (split.name, split.number, split.classes, split.pairs) == ("ucf101", 1, CLASSES, ())
    assert len(split.train) == 12 and len(split.test) == 8
    path = root / "UCF-101/HandstandPushups/v_HandStandPushups_g03_c01.avi"
    assert split.train[6] == Video(path, 1, "g03", "v_HandStandPushups_g03_c01")
    assert {video.group for video in split.test} == {"g01", "g02"}


def test_the_three_splits(root):
    assert [len(ucf101.read(str(root), number).test) for number in (1, 2, 3)] == [8, 4, 8]


@pytest.mark.parametrize("folder", ["UCF-101", "ucfTrainTestlist"])
def test_other_places_of_the_lists(root, folder):
    if folder == "UCF-101":  # beside the folder named
        split = ucf101.read(root / "UCF-101")
    else:  # in it
        for path in (root / folder).iterdir():
            path.rename(root / path.name)
        split = ucf101.read(root)
    assert all(video.path.is_file() for video in split.train + split.test)
    assert len(split.train) == 12


@pytest.mark.parametrize("on_disk", ["HandstandPushups", "HandStandPushups"])
@pytest.mark.parametrize("clips", ["HandstandPushups", "HandStandPushups"])
@pytest.mark.parametrize("listed", ["HandstandPushups", "HandStandPushups"])
@pytest.mark.parametrize("index", ["HandstandPushups", "HandStandPushups"])
def test_every_spelling_of_handstand_pushups(root, on_disk, clips, listed, index):
    folder = root / "UCF-101" / "HandstandPushups"
    for path in folder.iterdir():
        path.rename(folder / path.name.replace("HandStandPushups", clips))
    folder.rename(folder.with_name(on_disk))
    edit(root, "classInd.txt", "HandstandPushups", index)
    for name in ("trainlist01.txt", "testlist01.txt"):
        path = root / "ucfTrainTestlist" / name
        path.write_text(path.read_text().replace("HandstandPushups/", f"{listed}/"))
    split = ucf101.read(root)
    assert split.classes == ("Archery", index)
    assert all(video.path.is_file() for video in split.train + split.test)
    assert sum(video.label for video in split.train) == 6


def test_a_byte_order_mark_is_no_part_of_the_list(root):
    path = root / "ucfTrainTestlist" / "classInd.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert ucf101.read(root).classes == CLASSES


def test_missing_folder(root):
    refuse(root / "none", f"{root / 'none'}: no such folder")


def test_missing_lists(root):
    (root / "ucfTrainTestlist" / "trainlist02.txt").unlink()
    refuse(root, "trainlist02.txt: no such file", split=2)
    (root / "ucfTrainTestlist" / "classInd.txt").unlink()
    refuse(root, f"{root / 'ucfTrainTestlist' / 'classInd.txt'}: no such file")


@pytest.mark.parametrize("split", [0, 4])
def test_unknown_split(root, split):
    refuse(root, f"split {split} of ucf101: expected 1, 2 or 3", split=split)


@pytest.mark.parametrize("name", ["classInd.txt", "trainlist01.txt", "testlist01.txt"])
def test_empty_and_unreadable_lists(root, name):
    path = root / "ucfTrainTestlist" / name
    path.write_text(" \n\n")
    refuse(root, f"{path}: the list is empty")
    path.write_bytes(b"\xff\xfe\x00\x80")
    refuse(root, f"{path}: not a text file")
    path.unlink()
    path.mkdir()
    refuse(root, f"{path}: no such file" if name == "classInd.txt" else f"{path}: Is a directory")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2 Hand", "3 Hand", "classInd.txt:2: '3 HandstandPushups', expected '2 <Class>'"),
        ("2 Hand", "x Hand", "classInd.txt:2: 'x HandstandPushups'"),
        ("1 Archery", "Archery", "classInd.txt:1: 'Archery', expected '1 <Class>'"),
        ("1 Archery", "1 Archery bow", "classInd.txt:1: '1 Archery bow'"),
        ("1 Archery", "1 ../Archery", "classInd.txt:1: '1 ../Archery'"),
        ("HandstandPushups", "archery", "classInd.txt:2: class archery is there twice"),
    ],
)
def test_malformed_class_index(root, old, new, message):
    edit(root, "classInd.txt", old, new)
    refuse(root, message)


FIRST = "Archery/v_Archery_g03_c01.avi 1"


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("Juggling/v_Juggling_g03_c01.avi 1", "class Juggling of Juggling/v_Juggling_g03_c01.avi"),
        ("Archery/v_Archery_g03_c01.avi 2", "label 2 of Archery/v_Archery_g03_c01.avi, but"),
        ("Archery/v_Archery_g03_c01.avi one", "label one of Archery"),
        ("Archery/v_Archery_g03_c01.avi", "expected '<Class>/v_<Class>_g<group>_c<clip>.avi <lab"),
        ("Archery/v_Archery_g03_c01.avi 1 1", "expected '<Class>"),
        ("Archery/v_Archery_03_01.avi 1", "expected '<Class>"),
        ("v_Archery_g03_c01.avi 1", "expected '<Class>"),
        ("Archery/v_HandStandPushups_g03_c01.avi 1", "is a clip of HandStandPushups in the folder"),
        ("Archery/v_Archery_g03_c02.avi 1", "v_Archery_g03_c02.avi is listed twice, first at"),
        ("../v_.._g03_c01.avi 1", "expected '<Class>"),
        ("../Archery/v_Archery_g03_c01.avi 1", "expected '<Class>"),
        ("/Archery/v_Archery_g03_c01.avi 1", "expected '<Class>"),
        ("..\\Archery/v_Archery_g03_c01.avi 1", "expected '<Class>"),
        ("../v_Archery_g03_c01.avi 1", "class .. of ../v_Archery_g03_c01.avi is not in classInd"),
    ],
)
def test_malformed_entries(root, new, message):
    path = edit(root, "trainlist01.txt", FIRST, new)
    refuse(root, message)
    line = 2 if "listed twice" in message else 1
    refuse(root, f"{path}:{line}: ")


def test_a_test_list_may_carry_labels_if_they_are_right(root):
    edit(root, "testlist01.txt", "g01_c01.avi", "g01_c01.avi 1")
    assert len(ucf101.read(root).test) == 8
    edit(root, "testlist01.txt", "g01_c01.avi 1", "g01_c01.avi 2")
    refuse(root, "testlist01.txt:1: label 2 of Archery")


def test_a_group_on_both_sides(root):
    lists = root / "ucfTrainTestlist"
    edit(root, "testlist01.txt", "v_Archery_g01_c01", "v_Archery_g04_c09")
    refuse(
        root,
        f"group g04 is on both sides: v_HandStandPushups_g04_c02 in {lists / 'trainlist01.txt'} "
        f"and v_Archery_g04_c09 in {lists / 'testlist01.txt'}",
    )


def test_a_class_that_is_only_tested(root):
    path = root / "ucfTrainTestlist" / "trainlist01.txt"
    path.write_text("".join(f"{entry} 1\n" for entry in entries([3]) if "Archery" in entry))
    refuse(root, "testlist01.txt: class HandstandPushups has no training video")


def test_missing_videos(root):
    gone = [root / "UCF-101" / entry for entry in entries([4])]
    for path in gone:
        path.unlink()
    refuse(root, f"{gone[0]}: no such file; 4 of the 12 videos in ")
    assert len(ucf101.read(root, check_files=False).train) == 12
    for path in (root / "UCF-101").rglob("*.avi"):
        path.unlink()
    for folder in (root / "UCF-101").iterdir():
        folder.rmdir()
    (root / "UCF-101").rmdir()
    refuse(root, f"{root / 'UCF-101'}: no such folder, expected one with the videos")


@pytest.mark.parametrize(
    ("split", "train", "test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)]
)
def test_the_official_lists(shared, split, train, test):
    result = ucf101.read(shared / "ucf101-lists", split, check_files=False)
    assert (len(result.classes), len(result.train), len(result.test)) == (101, train, test)
    assert {video.label for video in result.train} == set(range(101))


def test_the_seven_classes_at_hand(shared):
    split = ucf101.read(shared / "ucf101-7")
    assert (len(split.classes), len(split.train), len(split.test)) == (7, 200, 128)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=60),
    st.sampled_from([0.05, 0.1, 0.3, 0.5]),
    st.integers(0, 100),
)
def test_holdout(pairs, share, seed):
    videos = tuple(
        Video(ucf101.Path(f"{i}"), label, f"g{group:02d}", f"{i}")
        for i, (label, group) in enumerate(pairs)
    )
    try:
        fit, held = holdout(videos, share, seed)
    except InputError:
        return  # see test_holdout_succeeds_where_every_class_has_every_group
    assert sorted(fit + held, key=videos.index) == list(videos)
    assert list(fit) == sorted(fit, key=videos.index)
    assert not {video.group for video in fit} & {video.group for video in held}
    classes = {video.label for video in videos}
    assert {v.label for v in fit} == {v.label for v in held} == classes
    assert len(held) >= share * len(videos)


@given(st.integers(1, 5), st.integers(2, 20), st.floats(0.01, 0.5), st.integers(0, 1000))
def test_holdout_succeeds_where_every_class_has_every_group(classes, groups, share, seed):
    videos = tuple(
        Video(ucf101.Path(f"{label}-{group}"), label, f"g{group:02d}", "")
        for label in range(classes)
        for group in range(groups)
    )
    fit, held = holdout(videos, share, seed)
    assert (fit, held) == holdout(videos, share, seed)
    # No group more than the share asks for.
    assert share * len(videos) <= len(held) < share * len(videos) + classes


def test_holdout_depends_on_the_seed():
    videos = tuple(Video(ucf101.Path(f"{i}"), 0, f"g{i:02d}", f"{i}") for i in range(20))
    assert len({holdout(videos, 0.2, seed)[1] for seed in range(10)}) > 5


@pytest.mark.parametrize(
    ("groups", "share", "message"),
    [
        (((0, 1), (1, 1)), 0.1, "1 group of training videos, holding out needs at least 2"),
        (((0, 1), (0, 2), (1, 2)), 0.1, "class 1 (v1) has too few groups of training videos"),
        (((0, 1), (0, 2)), 0.9, "whole groups make 1 of 2 training videos that can be held out"),
        (((0, 1), (0, 2)), 0.0, "the share held out is 0.0, expected between 0 and 1"),
        (((0, 1), (0, 2)), 1.0, "the share held out is 1.0, expected between 0 and 1"),
        ((), 0.1, "0 group of training videos"),
    ],
)
def test_holdout_that_is_impossible(groups, share, message):
    videos = tuple(Video(ucf101.Path("x"), c, f"g{g:02d}", f"v{c}") for c, g in groups)
    with pytest.raises(InputError, match=re.escape(message)):
        holdout(videos, share, 0)
