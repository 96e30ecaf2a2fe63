"""`python -m recres.data`: a store from the command line; every kind of damage is found by name."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from recres import config, data, limits, train
from recres.data_check import Problem, check_data_set, check_store
from recres.datasets import ucf101
from recres.errors import InputError
from recres.loader import Chunk, FrameLoader
from recres.video import frame_store
from recres.video.decode import sample_video
from recres.video.frame_index import Line, Settings
from recres.video.frame_store import FrameStore, FrameStoreWriter, encode_video
from recres.video.prefetch import Prefetcher
from recres.video.processes import in_processes
from recres.video.source import FrameSource
from tensorlite.io import load_arrays

CLASSES = ("Jump", "Run")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path, write_video):
    """A data set: 2 classes, groups 1 and 2 to train on and 3 to test on, 2 clips of each."""
    root = tmp_path / "set"
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("1 Jump\n2 Run\n")
    rng = np.random.default_rng(0)
    sides: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(CLASSES, start=1):
        for group in (1, 2, 3):
            for clip in (1, 2):
                file = f"{name}/v_{name}_g{group:02d}_c{clip:02d}.avi"
                frames = rng.integers(0, 256, (5 + 4 * clip, 4, 6, 3), dtype=np.uint8)
                write_video(root / "UCF-101" / file, frames.repeat(8, 1).repeat(8, 2))
                sides["test" if group == 3 else "train"].append(f"{file} {label}\n")
    for side, lines in sides.items():
        (lists / f"{side}list01.txt").write_text("".join(lines))
    return root


def prepare(root, *more, out=None):
    arguments = ["prepare", "--data", "ucf101", "--root", str(root), "--frame-step", "3",
                 "--context", "3", "--workers", "1", *more]
    return data.main([*arguments, *(("--out", str(out)) if out else ())])


def check(*arguments):
    return data.main(["check", "--workers", "1", *map(str, arguments)])


def test_prepare_makes_a_store_and_has_nothing_to_do_again(root, capsys):
    assert prepare(root, "--codec", "raw") == 0
    out = capsys.readouterr().out
    assert "12 videos; one frame in 3, context up to 3, as they are, raw" in out
    assert "made      48 frames of 12 videos" in out
    split, store = ucf101.read(root), FrameStore(root / "frames")
    for video in (*split.train, *split.test):
        np.testing.assert_array_equal(store.frames(video, 2), sample_video(video.path, 3, 2))
        assert store.lines[video.name.lower()].label == video.label
    before = (root / "frames" / "videos.jsonl").read_bytes()
    assert prepare(root, "--codec", "raw") == 0
    assert "12 videos are there, 0 are missing" in capsys.readouterr().out
    assert (root / "frames" / "videos.jsonl").read_bytes() == before
    assert prepare(root, "--codec", "jpeg") == 2
    assert "made with --codec raw, wanted is jpeg" in capsys.readouterr().err


def test_all_splits_are_in_the_store_and_other_options_are_refused(root, capsys):
    lists = root / "ucfTrainTestlist"
    for side in ("train", "test"):
        lines = (lists / f"{side}list01.txt").read_text().splitlines(keepends=True)
        (lists / f"{side}list02.txt").write_text("".join(lines))
        (lists / f"{side}list01.txt").write_text("".join(lines[::2]))
    assert prepare(root) == 0 and len(FrameStore(root / "frames").lines) == 12
    for options, text in (
        (["--quality", "0"], "quality is 0, expected 1 to 100"),
        (["--codec", "raw", "--quality", "5"], "--quality 5: --codec raw has none"),
        (["--workers", "0"], "--workers 0: expected 1 to"),
        (["--frame-step", "0"], "--frame-step 0: expected at least 1"),
        (["--colour", "3"], "unrecognized arguments: --colour 3"),
    ):
        assert prepare(root, *options) == 2
        assert text in capsys.readouterr().err


def test_what_is_made_anew_is_counted(root, capsys):
    big = root / "UCF-101" / "Jump" / "v_Jump_g01_c01.avi"
    write = cv2.VideoWriter(str(big), cv2.VideoWriter.fourcc(*"MJPG"), 25, (640, 480))
    for _ in range(7):
        write.write(np.zeros((480, 640, 3), np.uint8))
    write.release()
    assert prepare(root, "--codec", "raw") == 0
    with open(big, "ab") as file:
        file.write(b"more")
    capsys.readouterr()
    assert prepare(root, "--codec", "raw") == 0  # 3 frames of 640x480x3
    assert "made      3 frames of 1 videos, 0.003 GB in" in capsys.readouterr().out


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_the_number_of_workers_makes_no_difference(root, tmp_path, codec):
    for workers in (1, 3):
        assert prepare(root, "--codec", codec, "--workers", str(workers),
                       out=tmp_path / str(workers)) == 0
    for name in ("frames-00000.bin", "videos.jsonl"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_batches_of_real_clips_are_bit_equal_at_any_number_of_workers(shared, tmp_path, codec):
    split = ucf101.read(shared / "ucf101-7")
    videos = (*split.train[::50], *split.test[::50])
    options = config.resolve({"data": "ucf101", "root": str(tmp_path), "image_size": 64})
    settings = Settings(options.frame_step, 4, codec=codec,
                        quality=None if codec == "raw" else 90)
    with FrameStoreWriter(tmp_path / "s", settings) as writer:
        for result in in_processes(partial(encode_video, settings=settings), videos, 1,
                                   data.crashed):
            writer.add(*result)
    chunks = [Chunk(i, i % len(videos), i // len(videos)) for i in range(4 * len(videos))]
    batches = [chunks[i : i + 5] for i in range(0, len(chunks), 5)]

    def load(workers, max_bytes, store):
        source = FrameSource(videos, options.frame_step, options.context, max_bytes, store=store)
        loader = FrameLoader(source, options, "torch")
        with Prefetcher(lambda batch: loader.load(batch, epoch=1), batches, workers) as results:
            return list(results)

    store = FrameStore(tmp_path / "s")
    expected = load(1, 10**9, store if codec == "jpeg" else None)
    for workers, max_bytes in ((1, 0), (4, 0), (4, 10**9)):
        for found, batch in zip(load(workers, max_bytes, store), expected, strict=True):
            np.testing.assert_array_equal(found, batch)


def test_a_bad_video_stops_or_is_noted(root, capsys):
    bad = root / "UCF-101" / "Run" / "v_Run_g02_c01.avi"
    bad.write_bytes(b"no video")
    assert prepare(root) == 2
    assert f"error: {bad}: not a video that OpenCV can open" in capsys.readouterr().err
    assert prepare(root, "--skip-bad") == 0
    assert "skipped   Run/v_Run_g02_c01.avi: not a video" in capsys.readouterr().out
    store = FrameStore(root / "frames")
    assert len(store.lines) == 12 and store.lines["v_run_g02_c01"].bad
    assert prepare(root) == 2
    assert "Run/v_Run_g02_c01.avi cannot be used: not a video" in capsys.readouterr().err


def test_killed_at_any_moment_it_goes_on_to_the_same_store(root, tmp_path):
    assert prepare(root, out=tmp_path / "whole") == 0
    command = [sys.executable, "-m", "recres.data", "prepare", "--data", "ucf101", "--root", root,
               "--frame-step", "3", "--context", "3", "--workers", "2", "--out", tmp_path / "s"]
    index = tmp_path / "s" / "videos.jsonl"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    last = time.monotonic() + 30
    while not index.exists() and process.poll() is None and time.monotonic() < last:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert prepare(root, out=tmp_path / "s") == 0
    for name in ("frames-00000.bin", "videos.jsonl", "about.json"):
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


class Killed(BaseException):
    """Nothing is done after it."""


def same(root, torn, whole):
    return check("--store", torn) == 0 and all(
        (torn / name).read_bytes() == (whole / name).read_bytes()
        for name in ("frames-00000.bin", "videos.jsonl", "about.json"))


def test_ended_before_within_or_after_any_write_it_goes_on_to_the_same_store(root, tmp_path,
                                                                            monkeypatch):
    assert prepare(root, out=tmp_path / "whole") == 0
    write = frame_store.append
    for moment in range(0, 72, 4):  # of 3 for each of 24 writes
        count = 0

        def dying(path, content, moment=moment):
            nonlocal count
            count += 1
            if count == moment // 3 + 1:
                write(path, content[: (0, len(content) // 2, len(content))[moment % 3]])
                raise Killed
            write(path, content)

        torn = tmp_path / str(moment)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(frame_store, "append", dying)
            prepare(root, out=torn)
        assert prepare(root, out=torn) == 0
        assert same(root, torn, tmp_path / "whole"), moment


def die_once(video, settings):
    """encode_video in a process that is killed at one video, the first time."""
    mark = Path(os.environ["DIE_ONCE"])
    if video.name == "v_Run_g01_c01" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_video(video, settings)


def test_a_killed_worker_makes_no_difference(root, tmp_path, monkeypatch):
    assert prepare(root, out=tmp_path / "whole") == 0
    monkeypatch.setenv("DIE_ONCE", str(tmp_path / "died"))
    monkeypatch.setattr(data, "encode_video", die_once)
    assert prepare(root, "--workers", "2", out=tmp_path / "torn") == 0
    assert (tmp_path / "died").exists() and same(root, tmp_path / "torn", tmp_path / "whole")


def test_a_whole_data_set_and_its_store_have_nothing_wrong(root, capsys, tmp_path):
    prepare(root, "--codec", "raw")
    capsys.readouterr()
    assert check("--root", root, "--store", root / "frames", "--json", tmp_path / "p.json") == 0
    out = capsys.readouterr().out
    assert "12 video files, 12 listed" in out and "nothing is wrong" in out
    assert json.loads((tmp_path / "p.json").read_text())["problems"] == []


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_each_kind_of_damage_to_a_data_set_is_found_and_nothing_else(root, capsys, tmp_path):
    videos, lists = root / "UCF-101", root / "ucfTrainTestlist"
    jump, run = videos / "Jump", videos / "Run"
    planted = {}

    def plant(kind, where):
        planted[str(where)] = kind

    plant("missing", run / "v_Run_g01_c01.avi")
    (run / "v_Run_g01_c01.avi").unlink()
    plant("extra", run / "v_Run_g09_c01.avi")
    data_ = bytearray((run / "v_Run_g01_c02.avi").read_bytes())
    (run / "v_Run_g09_c01.avi").write_bytes(data_ + b"!")
    plant("extra", run / "notes.txt")
    (run / "notes.txt").write_text("mine")
    plant("corrupt", run / "v_Run_g02_c01.avi")
    (run / "v_Run_g02_c01.avi").write_bytes(b"RIFF" + bytes(500))
    plant("truncated", run / "v_Run_g02_c02.avi")
    size = (run / "v_Run_g02_c02.avi").stat().st_size
    os.truncate(run / "v_Run_g02_c02.avi", size // 2)
    plant("unreadable", run / "v_Run_g03_c01.avi")  # a link to itself: also root cannot read it
    (run / "v_Run_g03_c01.avi").unlink()
    (run / "v_Run_g03_c01.avi").symlink_to("v_Run_g03_c01.avi")
    plant("same-bytes", jump / "v_Jump_g01_c02.avi")
    shutil.copy(jump / "v_Jump_g01_c01.avi", jump / "v_Jump_g01_c02.avi")
    plant("wrong-class", jump / "v_Run_g03_c02.avi")
    (run / "v_Run_g03_c02.avi").rename(jump / "v_Run_g03_c02.avi")
    train, test = lists / "trainlist01.txt", lists / "testlist01.txt"
    plant("class-index", f"{train}:3")
    edit(train, "v_Jump_g02_c01.avi 1", "v_Jump_g02_c01.avi 2")
    plant("list", f"{train}:9")
    plant("listed-twice", f"{train}:10")
    with open(train, "a") as file:
        file.write("../../etc/passwd 1\nJump/v_Jump_g01_c01.avi 1\n")
    plant("crossing-group", f"{test}:5")
    line = "Jump/v_Jump_g02_c02.avi 1\n"
    edit(train, line, "\n")
    with open(test, "a") as file:
        file.write(line)

    assert check("--root", root, "--json", tmp_path / "p.json") == 1
    found = json.loads((tmp_path / "p.json").read_text())
    assert {(p["where"], p["kind"]) for p in found["problems"]} == set(planted.items())
    assert len(found["problems"]) == len(planted) and len(set(planted.values())) >= 11
    assert found["counts"] == dict(Counter(planted.values()))
    out = capsys.readouterr().out
    for where, kind in planted.items():
        assert any(row.split()[:2] == [kind, f"{where}:"] for row in out.splitlines()), where
    assert f"{'all':16} {len(planted):6}" in out


@pytest.mark.parametrize("damage, kind, where, what", [
    (lambda root: edit(root / "ucfTrainTestlist/classInd.txt", "2 Run", "3 Run"), "class-index",
     "classInd.txt:2", "'3 Run', expected '2 <Class>'"),
    (lambda root: edit(root / "ucfTrainTestlist/testlist01.txt", "Jump/v_Jump_g03_c01",
                       "Run/v_Jump_g03_c01"), "wrong-class", "testlist01.txt:1", "a clip of Jump"),
    (lambda root: (root / "ucfTrainTestlist/testlist02.txt").write_text(
        "Run/v_Run_g01_c01.avi\n"), "list", "trainlist02.txt", "no such file"),
    (lambda root: shutil.copy(root / "UCF-101/Run/v_Run_g01_c01.avi",
                              root / "UCF-101/Run/v_run_g01_c01.AVI"), "same-name",
     "v_run_g01_c01.AVI", "there is Run/v_Run_g01_c01.avi too"),
    (lambda root: os.mkfifo(root / "UCF-101/Run/v_Run_g01_c03.avi"), "unreadable",
     "v_Run_g01_c03.avi", "not a regular file"),
    (lambda root: (root / "UCF-101/list.txt").write_text(""), "extra", "list.txt", "not in the"),
    (lambda root: (root / "ucfTrainTestlist/trainlist01.txt").write_text(
        "Run/v_Run_g01_c01.avi 2\n"), "untrained", "testlist01.txt", "split 1 tests class jump"),
])
def test_further_damage_to_a_data_set(root, damage, kind, where, what):
    damage(root)
    problems = check_data_set(root).problems
    assert any(p.kind == kind and p.where.endswith(where) and p.what.startswith(what)
               for p in problems), problems


def rewrite(store, name, **changes):
    """Change what the index says of a video."""
    lines = [json.loads(line) for line in store.index.read_text().splitlines()]
    for line in lines:
        if name in line["video"]:
            line.update(changes)
    store.index.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_each_kind_of_damage_to_a_store_is_found_and_nothing_else(root, tmp_path, capsys):
    prepare(root, "--quality", "95")
    store = FrameStore(root / "frames")
    shard, index = store.shard(0), store.index
    lines = {line.video.partition("v_")[2][:-4]: line for line in store.lines.values()}
    planted = {}

    def plant(kind, name, of=index):
        planted[f"{of}: {lines[name].video}"] = kind

    def flip(line: Line, at: int, values: bytes):
        with open(shard, "r+b") as file:
            file.seek(line.offset + at)
            file.write(values)

    plant("checksum", "Jump_g01_c01", shard)
    flip(lines["Jump_g01_c01"], 300, b"\x00\x01\x02\x03")
    plant("corrupt", "Jump_g01_c02", shard)  # written as it is, but no image
    line = lines["Jump_g01_c02"]
    flip(line, 0, b"no JPEG at all")
    data_ = shard.read_bytes()[line.offset : line.end]
    rewrite(store, "Jump_g01_c02", checksum=zlib.crc32(data_))
    plant("stale", "Jump_g02_c01")
    path = root / "UCF-101" / "Jump" / "v_Jump_g02_c01.avi"
    path.write_bytes(path.read_bytes() + b"more")
    plant("frame-count", "Jump_g02_c02")
    line = lines["Jump_g02_c02"]
    shorter = replace(line, frames=line.frames - 1, sizes=line.sizes[:-1])
    data_ = shard.read_bytes()[shorter.offset : shorter.end]
    rewrite(store, "Jump_g02_c02", **asdict(replace(shorter, checksum=zlib.crc32(data_))))
    plant("label", "Run_g01_c01")
    rewrite(store, "Run_g01_c01", label=0)
    plant("unusable", "Run_g01_c02")
    rewrite(store, "Run_g01_c02", frames=0, sizes=[], bad="the decoder crashes on it")
    plant("extra", "Run_g02_c01")
    train = root / "ucfTrainTestlist" / "trainlist01.txt"
    edit(train, "Run/v_Run_g02_c01.avi 2\n", "")
    (root / "UCF-101" / "Run" / "v_Run_g02_c01.avi").unlink()
    plant("truncated", "Run_g03_c02", shard)  # the last of all
    os.truncate(shard, shard.stat().st_size - 5)
    planted[str(root / "frames" / "notes.txt")] = "extra"
    (root / "frames" / "notes.txt").write_text("mine")
    with open(train, "a") as file:
        file.write("Run/v_Run_g02_c09.avi 2\n")
    shutil.copy(root / "UCF-101" / "Run" / "v_Run_g01_c02.avi",
                root / "UCF-101" / "Run" / "v_Run_g02_c09.avi")
    planted[str(index)] = "missing"
    capsys.readouterr()
    assert check("--store", root / "frames", "--root", root, "--json", tmp_path / "p.json") == 1
    found = json.loads((tmp_path / "p.json").read_text())["problems"]
    expected = {**planted,
                str(root / "UCF-101" / "Run" / "v_Run_g02_c09.avi"): "same-bytes"}
    assert {(p["where"], p["kind"]) for p in found} == set(expected.items())
    assert len(found) == len(expected) and len(set(planted.values())) >= 9
    assert not [p["what"] for p in found if "damaged" in p["what"] or "recres.data" in p["what"]]
    # Without the data set the same of the store itself.
    alone = check_store(FrameStore(root / "frames"))
    kinds = {"checksum", "corrupt", "truncated", "unusable"}
    assert {p.kind for p in alone} == kinds | {"extra"}


def test_a_missing_shard_and_a_damaged_index_are_found(root, capsys):
    prepare(root)
    store = FrameStore(root / "frames")
    text = store.index.read_bytes().splitlines(keepends=True)
    store.index.write_bytes(b"".join([*text[:3], b"{}\n", *text[4:]]))
    store.shard(0).unlink()
    capsys.readouterr()
    assert check("--store", root / "frames") == 1
    out = capsys.readouterr().out
    assert f"compared with {root}" in out
    assert f"index            {store.index}:4: it is no line of an index" in out
    assert f"missing          {store.shard(0)}: no such file" in out
    assert f"{'all':16} {2:6}" in out


def test_a_video_that_changed_without_its_time_is_found(root, tmp_path):
    assert prepare(root) == 0
    path = root / "UCF-101" / "Jump" / "v_Jump_g01_c01.avi"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    data_ = bytearray(path.read_bytes())
    data_[-1] ^= 1  # of its index, without which it decodes all the same
    path.write_bytes(data_)
    os.utime(path, ns=times)
    assert check("--root", root, "--store", root / "frames", "--json", tmp_path / "p.json") == 1
    (problem,) = json.loads((tmp_path / "p.json").read_text())["problems"]
    assert problem["kind"] == "stale" and "Jump/v_Jump_g01_c01.avi" in problem["where"]
    assert problem["what"].endswith("other bytes now, but the same time of change")


@pytest.mark.parametrize("left, kind, what", [
    (lambda index, shard: os.truncate(index, index.stat().st_size - 1), "truncated",
     "ends within a line"),
    (lambda index, shard: index.write_bytes(b"".join(index.read_bytes().splitlines(True)[:-1])),
     "extra", "bytes at its end that the index does not refer to"),
    (lambda index, shard: shard.write_bytes(shard.read_bytes() + b"more"), "extra", "4 bytes at")])
def test_a_store_whose_end_is_not_its_own_is_found_without_the_data_set(root, left, kind, what):
    assert prepare(root) == 0
    store = FrameStore(root / "frames")
    left(store.index, store.shard(0))
    problems = check_store(FrameStore(root / "frames"))
    assert any(problem.kind == kind and what in problem.what for problem in problems)
    assert {Path(problem.where) for problem in problems} <= {store.index, store.shard(0)}
    assert prepare(root) == 0 and check_store(FrameStore(root / "frames")) == []


def test_what_is_damaged_is_made_again_where_that_is_asked_for(root, capsys):
    """A byte of a shard, and a line of the index; what is whole is not decoded again."""
    prepare(root, "--codec", "raw")
    store = FrameStore(root / "frames")
    shard, text = store.shard(0), store.index.read_bytes().splitlines(keepends=True)
    data = bytearray(shard.read_bytes())
    data[Line.parse(text[5], store.settings).offset + 7] ^= 1
    shard.write_bytes(data)
    assert prepare(root, "--codec", "raw") == 0  # which looks at no frame
    store.index.write_bytes(b"".join([*text[:3], text[3][:40] + b"\n", *text[4:]]))
    assert prepare(root, "--codec", "raw") == 2
    assert "line 4 is damaged: it is no JSON; recres.data prepare --repair leaves it out" in (
        capsys.readouterr().err)
    assert prepare(root, "--codec", "raw", "--repair") == 0
    out = capsys.readouterr().out
    assert "10 videos are there, 2 are missing, damaged or have changed" in out
    assert "frames of 2 videos" in out
    assert check("--store", root / "frames") == 0
    split, store = ucf101.read(root), FrameStore(root / "frames")
    for video in (*split.train, *split.test):
        np.testing.assert_array_equal(store.frames(video, 2), sample_video(video.path, 3, 2))
    before = store.index.read_bytes()
    assert prepare(root, "--codec", "raw", "--repair") == 0
    assert "12 videos are there, 0 are" in capsys.readouterr().out
    assert store.index.read_bytes() == before


def whole_lists(root):
    for number in ucf101.SPLITS:
        if number == 1 or (root / f"ucfTrainTestlist/trainlist{number:02d}.txt").exists():
            ucf101.read(root, number)


@pytest.mark.parametrize("name, old, new, kind", [
    ("trainlist01.txt", "v_Run_g01_c01.avi 2", "v_Run_g01_c01.avi", "list"),
    ("trainlist01.txt", "v_Run_g01_c01", "v_Run_g" + "1" * 5000 + "_c01", "list"),
    ("classInd.txt", "2 Run", "2 Run!", "class-index"),
    ("classInd.txt", "2 Run", "2 Run 3 4", "class-index"),
])
def test_what_reading_refuses_is_found(root, name, old, new, kind):
    """These were passed over, or ended the command."""
    edit(root / "ucfTrainTestlist" / name, old, new)
    with pytest.raises(InputError):
        whole_lists(root)
    assert kind in {problem.kind for problem in check_data_set(root).problems}


@pytest.mark.parametrize("name", ["classInd.txt", "trainlist01.txt", "testlist01.txt"])
def test_lists_that_are_pipes_or_too_large(root, name):
    """The one was waited for, and the other read, without end."""
    path = root / "ucfTrainTestlist" / name
    path.unlink()
    os.mkfifo(path)
    assert Problem("list", str(path), "not a file") in check_data_set(root).problems
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(2**40)
    assert any(p.kind == "list" and p.where == str(path) and "recres.limits.TEXT_BYTES" in p.what
               for p in check_data_set(root).problems)


def test_a_huge_file_that_is_no_video_is_not_read_to_its_end(root):
    path = root / "UCF-101" / "Run" / "v_Run_g01_c01.avi"
    os.truncate(path, 0)
    os.truncate(path, 2**42)
    began = time.monotonic()
    assert [(p.kind, p.where) for p in check_data_set(root).problems] == [("corrupt", str(path))]
    assert time.monotonic() - began < 10


def test_thousands_of_missing_videos_take_no_time(root):
    """Each was looked for among all files: minutes for those of UCF-101."""
    lists, run = root / "ucfTrainTestlist", root / "UCF-101" / "Run"
    with open(lists / "trainlist01.txt", "a") as file:
        for i in range(6000):
            file.write(f"Run/v_Run_g01_c{i + 10}.avi 2\n")
    for i in range(6000):
        (run / f"x{i}").touch()
    began = time.process_time()
    kinds = Counter(problem.kind for problem in check_data_set(root).problems)
    assert kinds == {"missing": 6000, "extra": 6000}
    assert time.process_time() - began < 5


@pytest.mark.parametrize("workers", ["1", "2"])
def test_limits_are_set_on_the_command_line(root, capsys, monkeypatch, workers):
    monkeypatch.setattr(limits, "VIDEO_FRAMES", limits.VIDEO_FRAMES)  # to be put back
    assert prepare(root, "--workers", workers, "--limit", "VIDEO_FRAMES=12") == 2
    assert ("more than the 12 frames of recres.limits.VIDEO_FRAMES (--limit VIDEO_FRAMES=N allows "
            "more)") in capsys.readouterr().err
    assert data.main(["--limit", "VIDEO_FRAMES=12", "check", "--root", str(root),
                      "--workers", workers]) == 1
    assert "corrupt               6" in capsys.readouterr().out
    assert prepare(root, "--workers", workers, "--limit", "VIDEO_FRAMES=13") == 0
    for text in ("VIDEO_FRAMES=0", "VIDEO_FRAMES", "frames=3", "=", "ROOM=1e3"):
        assert prepare(root, "--limit", text) == 2
        assert f"--limit {text}: expected NAME=N with N at least 1, and NAME one of VIDEO_FR" in (
            capsys.readouterr().err)
    with pytest.raises(SystemExit, match="^0$"):
        data.main(["--limit", "list"])
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert shown.keys() == limits.values().keys()
    assert " 13  frames of a video file" in shown["VIDEO_FRAMES"]
    assert "17179869184  bytes of a file of arrays" in shown["FILE_BYTES"]


def test_names_that_cannot_be_printed(root, tmp_path, capsys):
    """Of bytes that are no UTF-8, or with what a terminal takes for commands."""
    os.rename(root / "UCF-101/Run/v_Run_g03_c02.avi",
              os.fsencode(root / "UCF-101/Run") + b"/x\x1b[2J\n\xff.avi")
    assert check("--root", root, "--json", tmp_path / "p.json") == 1
    out = capsys.readouterr().out
    assert "x\\x1b[2J\\n\\udcff.avi: not named like" in out and "\x1b" not in out
    found = json.loads((tmp_path / "p.json").read_text())["problems"]
    assert {p["kind"] for p in found} == {"missing", "extra", "corrupt"}


def test_a_store_whose_frames_are_a_pipe_or_whose_data_set_is_not_here(root, capsys):
    """Opening it waited for ever; a folder of another kind in its place was an error."""
    prepare(root)
    index, about = (root / "frames" / name for name in ("videos.jsonl", "about.json"))
    text = about.read_text()
    about.write_text(text.replace(str(root), str(root.parent)))
    assert check("--store", root / "frames") == 0
    assert "compared with no data set" in capsys.readouterr().out
    line = json.loads(index.read_text().splitlines()[0])
    index.write_text(json.dumps(line | {"sizes": [0] * line["frames"], "video": "\x1b[2J"}) + "\n")
    (root / "frames" / "frames-00000.bin").unlink()
    os.mkfifo(root / "frames" / "frames-00000.bin")
    assert check("--store", root / "frames") == 1
    out = capsys.readouterr().out
    assert "not a regular file" in out and "\x1b" not in out


def test_a_full_disk_is_said_with_the_store(root, capsys, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(frame_store, "append", full)
    assert prepare(root) == 1
    assert f"No space left on device: '{root / 'frames'}'" in capsys.readouterr().err


@pytest.mark.parametrize("writes, options", [("append", []), ("write_bytes", ["--repair"])])
def test_a_full_disk_is_said_while_a_store_is_compared(root, capsys, monkeypatch, writes, options):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert prepare(root) == 0
    os.utime(root / "UCF-101" / "Jump" / "v_Jump_g01_c01.avi", (1, 1))
    if options:
        edit(root / "frames" / "videos.jsonl", '{"video": "Jump', "{'video': \"Jump")
    monkeypatch.setattr(frame_store, writes, full)
    assert prepare(root, *options) == 1
    assert f"No space left on device: '{root / 'frames'}'" in capsys.readouterr().err


def test_a_data_set_in_a_folder_whose_name_is_no_text(root, capsys):
    folder = Path(os.fsdecode(os.fsencode(root.parent) + b"/\xff"))
    root.rename(folder)
    assert prepare(folder) == 2
    assert "v_Jump_g01_c01.avi: the name is not valid UTF-8" in capsys.readouterr().err
    run = root.parent / "run"
    assert train.main(["--data", "ucf101", "--root", str(folder), "--holdout", "0.3", "--threads",
                       "1", "--skip-bad", "--out", str(run), "--width", "4"]) == 2
    error = capsys.readouterr().err
    assert "config.json: " in error and r"\udcff" in error and "names in UTF-8" in error


def test_check_refuses_what_is_no_data_set_or_store(root, tmp_path, capsys):
    for arguments, text in (
        ((), "check: expected --root DIR, --store STORE, or both"),
        (("--root", tmp_path / "none"), "none/UCF-101: no such folder"),
        (("--store", root), "no store of frames there"),
    ):
        assert check(*arguments) == 2
        assert text in capsys.readouterr().err


def test_training_from_a_raw_store_is_training_from_the_videos(tiny, trained, figures_root,
                                                               tmp_path, capsys):
    store = tmp_path / "store"
    make = ["prepare", "--root", str(figures_root), "--workers", "1", "--out", str(store)]
    assert data.main([*make, "--codec", "raw"]) == 0
    assert train.main(["--out", str(tmp_path / "run"), *tiny, "--frames", str(store)]) == 0
    found, expected = (load_arrays(folder / "best.safetensors")
                       for folder in (tmp_path / "run", trained))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    for options, text in ((["--context", "9", "--skip", "none"], "made for --context up to 8"),
                          (["--frame-step", "3"], "made with --frame-step 5, wanted is 3"),
                          (["--input", "flow"], "--input flow: is made of all frames of a video")):
        arguments = ["--out", str(tmp_path / "other"), *tiny, "--frames", str(store), *options]
        assert train.main(arguments) == 2
        assert text in capsys.readouterr().err


def test_a_run_goes_on_only_with_the_frames_it_began_with(tiny, figures_root, tmp_path, capsys):
    store, run = tmp_path / "store", tmp_path / "run"
    make = ["prepare", "--root", str(figures_root), "--workers", "1", "--out", str(store)]
    assert data.main(make) == 0
    assert train.main(["--out", str(run), *tiny, "--epochs", "1", "--frames", str(store)]) == 0
    (run / "result.json").unlink()
    shutil.rmtree(store)
    assert data.main([*make, "--quality", "50"]) == 0
    assert train.main(["--resume", str(run)]) == 2
    assert "frames are jpeg of quality 50, the run in" in capsys.readouterr().err
