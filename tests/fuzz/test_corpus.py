"""Every kind of hostile file that was ever found to get through, each with what went wrong.

And properties of the readers on documents and arrays that hypothesis draws.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import time
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recres import build, features, guard, limits, replay
from recres.config import Config, resolve
from recres.datasets import ucf101
from recres.errors import InputError
from recres.feature_store import StoreFiles
from recres.files import lines_of, parse_json, read_bytes, read_json
from recres.models import resnet18
from recres.models.weights import load_pretrained
from recres.runs import Run
from recres.scores import read_scores
from recres.video.decode import VideoError, read_frames
from tensorlite.io import FormatError, load_arrays, load_npz
from tensorlite.io import limits as array_limits
from tests.fuzz import readers


def clean(read, *arguments, match=None):
    """Reading ends with a one-line error; it."""
    with pytest.raises((InputError, FormatError), match=match) as raised:
        read(*arguments)
    text = str(raised.value)
    assert text.isprintable() and len(text) <= 1000
    return text


@pytest.fixture
def data(tmp_path):
    """A data set of three classes in lists; give a list's name and a line to add."""
    readers._lists(tmp_path)

    def add(name, line):
        with open(tmp_path / "ucfTrainTestlist" / name, "ab") as file:
            file.write(line + b"\n")
        return tmp_path

    return add


# Lists

def test_a_group_of_five_thousand_digits(data):
    """int() raised ValueError: Exceeds the limit (4300 digits)."""
    entry = b"Walk/v_Walk_g" + b"1" * 5000 + b"_c01.avi 1"
    clean(ucf101.read, data("trainlist01.txt", entry), match="trainlist01.txt:7: ")


@pytest.mark.parametrize("entry", [
    b"../v_Walk_g09_c01.avi 1", b"/etc/v_Walk_g09_c01.avi 1", b"Walk/../v_Walk_g09_c01.avi 1",
    b"..\\v_Walk_g09_c01.avi 1", b"Walk/v_Walk\0_g09_c01.avi 1", b"./v_.._g09_c01.avi 1",
    b"Walk\xe2\x80\xa8/v_Walk_g09_c01.avi 1", b"Walk/v_Walk_g09_c01.avi\x0b../../x 1"])
def test_names_do_not_leave_the_root(data, entry):
    clean(lambda: ucf101.read(data("trainlist01.txt", entry), check_files=False))


def test_a_list_that_is_a_pipe(data):
    """Opening it waited for ever."""
    root = data("trainlist01.txt", b"")
    path = root / "ucfTrainTestlist" / "trainlist01.txt"
    path.unlink()
    os.mkfifo(path)
    clean(ucf101.read, root, match="not a file")


def test_many_classes_take_no_time(tmp_path):
    """Each was compared with all before it: minutes for fifty thousand."""
    (tmp_path / "ucfTrainTestlist").mkdir()
    lines = "".join(f"{i} Class{i}\n" for i in range(1, 50_001))
    (tmp_path / "ucfTrainTestlist" / "classInd.txt").write_text(lines)
    began = time.process_time()
    clean(ucf101.read, tmp_path, match="trainlist01.txt: no such file")
    assert time.process_time() - began < 5


def test_a_folder_whose_name_has_a_new_line(tmp_path):
    """The message had two lines."""
    assert "a\\nb" in clean(ucf101.read, tmp_path / "a\nb")


# JSON

@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '"\\ud800"', "9" * 5000, "",
                                  "\0", "{"])
def test_json_that_is_none(text, tmp_path):
    """Nested too deep, RecursionError; with half a surrogate pair, it could not be printed."""
    (tmp_path / "x.json").write_text(text)
    clean(read_json, tmp_path / "x.json", match="x.json: cannot be read as JSON: ")


def test_what_is_too_large_is_not_read(tmp_path, monkeypatch):
    """A file of a terabyte, which takes no room on disk, was read until memory ran out."""
    for name in ("x.json", "x.npz", "x.pth", "x.safetensors", "x.h5"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(2**40)
    assert "limits.TEXT_BYTES" in clean(read_json, tmp_path / "x.json")
    for name in ("x.npz", "x.pth", "x.safetensors", "x.h5"):
        assert "limits.FILE_BYTES" in clean(load_arrays, tmp_path / name)
    clean(list, lines_of(tmp_path / "x.json"), match="a line of more than")
    (tmp_path / "y.json").write_text("[1, 2]")
    assert read_json(tmp_path / "y.json") == [1, 2]
    monkeypatch.setattr(limits, "TEXT_BYTES", 5)
    clean(read_json, tmp_path / "y.json", match="6 bytes, more than the 5 of ")
    np.savez(tmp_path / "y.npz", a=np.zeros(1))
    monkeypatch.setattr(array_limits, "FILE_BYTES", 20)
    clean(load_arrays, tmp_path / "y.npz", match="more than the 20 of ")


@pytest.mark.parametrize("path", ["nowhere", "a\0b", "/dev/zero", ".", "x" * 5000])
def test_what_is_no_file(path):
    clean(read_bytes, path)


@pytest.mark.parametrize("change", [
    {"data": []}, {"data": "others"}, {"image_size": "64"}, {"image_size": True}, {"lr": "nan"},
    {"lr": math.nan}, {"root": "a\0b"}, {"seed": 10**400}, {"batch": 0}, {"mirror": 1},
    {"threads": None}, {"skip": ["conv"]}, {"width": 1.5}, {"weights": {}}, {"lr": 10**400},
    {"width": 2**40}, {"context": 2**40}, {"image_size": 2**30}, {"batch": 2**50},
    {"processes": 2**50}])
def test_options_of_the_wrong_kind(change):
    """Were taken as they came (`data` as a list: TypeError)."""
    options = resolve({"threads": 1, "root": "x"}).to_json()
    assert Config.from_json(options, "c").to_json() == options
    clean(Config.from_json, options | change, "config.json", match="^config.json: ")


def test_a_network_larger_than_its_file_is_not_made(tmp_path, monkeypatch):
    """Options beside a small model had a network of gigabytes drawn before they were compared."""
    readers._run(tmp_path)
    run = Run.open(tmp_path / "run")
    assert build.open_model(run, run.config)[1] == readers.CLASSES
    monkeypatch.setattr(build, "build_model", lambda *_: pytest.fail("it was made"))
    clean(build.open_model, run, replace(run.config, width=512), match="no stem of the run's --wid")


@pytest.mark.parametrize("line", ["[" * 100_000, "9" * 5000, '{"kind": "nonfinite"}',
                                  '{"kind": "nonfinite", "update": "1"}', '"\\ud800"', "3"])
def test_a_log_that_is_gone_on_with(tmp_path, line):
    """RecursionError, ValueError, KeyError, TypeError, when a run was resumed."""
    good = '{"kind": "nonfinite", "update": 2}\n'
    (tmp_path / "metrics.jsonl").write_text(good + line + "\n" + good)
    assert guard._count(tmp_path / "metrics.jsonl", 2) == 1


@pytest.mark.parametrize("change", [
    {"update": "3"}, {"chunks": 0}, {"scale": None}, {"what": []}, {"classes": 3},
    {"classes": [1, 2, 3]}, {"batches": []}, {"batches": [[3]]}, {"batches": [[{"file": 3}]]},
    {"batches_kept": 2**70}, {"batches_kept": "1"}, {"classes": ["one"]}])
def test_an_update_written_down_as_none_was(tmp_path, change):
    """Were taken as they came, and ended the command where they were used."""
    path, _ = readers._nonfinite(tmp_path)
    about = json.loads(path.read_text())
    assert len(replay.read(path).batches) == 1
    path.write_text(json.dumps(about | change))
    clean(replay.read, path, match="nonfinite-3.json: ")


@pytest.mark.parametrize("text", ["[]", "3", '{"found": {}}', '{"sampling": SAMPLING}',
                                  '{"sampling": SAMPLING, "sizes": [], "found": 3}'])
def test_counts_of_frames_that_are_none_are_made_again(tmp_path, text):
    """AttributeError, KeyError."""
    for video in ucf101.read(readers._lists(tmp_path)[0].parents[1]).train:
        readers.write_clip(video.path, "MJPG")
    for video in ucf101.read(tmp_path).test:
        readers.write_clip(video.path, "MJPG")
    options = readers._options(root=str(tmp_path), data="ucf101", holdout=0.0)
    sampling = {name: getattr(options, name)
                for name in ("frame_step", "context", "input", "flow_length")}
    (tmp_path / "videos.json").write_text(text.replace("SAMPLING", json.dumps(sampling)))
    assert set(features._open_videos(options, tmp_path / "videos.json").counts.values()) == {2}


@pytest.mark.parametrize("name", ["features.f16", "videos.jsonl"])
def test_what_a_store_of_features_links_to_is_not_cut_off(tmp_path, name):
    """Going on with a store from elsewhere emptied the file that a link in it led to."""
    path = readers._feature_store(tmp_path)[0].parent
    StoreFiles(path).cut()
    mine = tmp_path / "mine"
    (path / name).rename(mine)
    (path / name).symlink_to(mine)
    with open(mine, "ab") as file:
        file.write(b"precious")
    clean(StoreFiles(path).cut, match=f"{name}: not a file of its own")
    assert mine.read_bytes().endswith(b"precious")


# Arrays

def npz_of(header: str, body: bytes = b"") -> bytes:
    head = header.encode() + b"\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body)
    return out.getvalue()


def described(descr: str, shape: str) -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(("content", "why"), [
    # a text of no character in no bytes, 2**40 times: as a list it took all memory
    (npz_of(described("<U0", "(1099511627776,)")), "elements of no size"),
    # texts of numbers that are no characters: SystemError, later UnicodeEncodeError
    (npz_of(described("<U1", "(1,)"), b"\xff\xff\xff\x7f"), "texts that are none"),
    (npz_of(described(">U1", "(1,)"), b"\x00\x00\xd8\x00"), "texts that are none"),
    (npz_of(described("|O", "(1,)"), b"cos\nsystem\n."), "has the type object"),
    (npz_of(described("<f8", f"({2**40},)")), "cannot be read"),
])
def test_npy_members(tmp_path, content, why):
    (tmp_path / "a.npz").write_bytes(content)
    clean(load_npz, tmp_path / "a.npz", True, match=why)
    clean(read_scores, tmp_path / "a.npz", match=why)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("names", [("a.npy", "a.npy"), ("a.npy", "a")])
def test_two_arrays_of_a_name(tmp_path, names):
    """The later one counted, without a word."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for name in names:
            content = io.BytesIO()
            np.save(content, np.zeros(2))
            file.writestr(name, content.getvalue())
    clean(load_arrays, tmp_path / "a.npz", match="'a' is there twice")


def test_many_names_one_of_them_twice(tmp_path):
    """Each was compared with all before it: hours for a file of a few megabytes."""
    count = 60_000
    names = np.array([f"v{i}" for i in range(count - 1)] + [f"v{count - 2}"])
    np.savez(tmp_path / "a.npz", names=names, labels=np.zeros(count, int), classes=np.array(["A"]),
             posteriors=np.ones((count, 1)), chunks=np.ones(count, int))
    began = time.process_time()
    clean(read_scores, tmp_path / "a.npz", match=f"video v{count - 2} is there twice")
    assert time.process_time() - began < 5


def integer(value: int) -> bytes:
    packed = value.to_bytes(20, "little", signed=True)
    return b"\x8a" + bytes([len(packed)]) + packed


@pytest.mark.parametrize("program", [
    # integers of one hash as keys took quadratic time: hours for a file of a few megabytes
    b"}(" + b"".join(integer(i * (2**61 - 1)) + b"N" for i in range(1, 30_000)) + b"u.",
    b"]" + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(1, 30_000)) + b".",
], ids=["keys", "places"])
def test_integers_of_one_hash(tmp_path, program):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02" + program)
    (tmp_path / "a.pth").write_bytes(out.getvalue())
    began = time.process_time()
    clean(load_arrays, tmp_path / "a.pth", match="a key of many digits|a place that is none")
    assert time.process_time() - began < 2


def test_weights_that_are_true_or_false(tmp_path):
    """NumPy subtracts no bool from a bool: TypeError. And digits without end, as above."""
    model = resnet18(classes=3, width=2, rng=0)
    ones = np.ones(2, bool)
    np.savez(tmp_path / "a.npz", **{"conv1_conv/kernel": np.ones((7, 7, 3, 2), bool),
                                    "conv1_conv/bias": ones, **{
        f"conv1_bn/{leaf}": ones for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}})
    report = load_pretrained(model, tmp_path / "a.npz", log=lambda text: None)
    assert "conv1.weight" in report.loaded
    np.savez(tmp_path / "b.npz", **{f"conv2_block{'1' * 5000}_1_conv/kernel": np.zeros(1),
                                    "x\ny": np.zeros(1)})
    clean(load_pretrained, model, tmp_path / "b.npz")


# Videos

def test_a_list_of_other_videos_is_no_video(tmp_path):
    """FFmpeg played what it names, whatever the suffix; one that names itself took seconds."""
    readers.write_clip(tmp_path / "ok.avi", "MJPG")
    for name in ("ok.avi", "list.avi"):
        (tmp_path / "list.avi").write_text(f"ffconcat version 1.0\nfile {name}\n")
        clean(read_frames, tmp_path / "list.avi", match="not a video that OpenCV can open")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nok.avi\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.avi").write_text(playlist)
    clean(read_frames, tmp_path / "list.avi", match="not a video that OpenCV can open")


@pytest.mark.parametrize(("name", "most", "why"), [
    ("VIDEO_PIXELS", 48 * 32 - 1, "frames of 48x32 pixels, more than the 1535 of"),
    ("VIDEO_FRAMES", 11, "more than the 11 frames of"),
    ("VIDEO_BYTES", 12 * 48 * 32 * 3 - 1, "12 frames have 55296 bytes, more than the 55295 of")])
def test_limits_of_videos(tmp_path, monkeypatch, name, most, why):
    clip = readers.write_clip(tmp_path / "a.avi", "MJPG")
    monkeypatch.setattr(limits, name, most + 1)
    assert len(read_frames(clip)) == 12
    monkeypatch.setattr(limits, name, most)
    text = clean(read_frames, clip, match=why)
    assert f"recres.limits.{name}" in text


def test_a_declared_size_is_looked_at_first(tmp_path):
    """30000×30000 pixels: no memory is asked for before that is refused."""
    clip = readers.write_clip(tmp_path / "a.avi", "MJPG")
    content = bytearray(clip.read_bytes())
    for tag, at in ((b"strf", 12), (b"avih", 40)):
        struct.pack_into("<ii", content, content.find(tag) + at, 30000, 30000)
    clip.write_bytes(content)
    try:
        assert read_frames(clip).shape == (12, 32, 48, 3)  # what the frames themselves say
    except VideoError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("codec", ["MJPG", "XVID", "mp4v"])
def test_containers_are_known(tmp_path, codec):
    for suffix in (".avi", ".mp4", ".mkv"):
        clip = tmp_path / f"a{suffix}"
        writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*codec), 25, (48, 32))
        if writer.isOpened():
            writer.write(np.zeros((32, 48, 3), np.uint8))
            writer.write(np.zeros((32, 48, 3), np.uint8))
            writer.release()
            assert len(read_frames(clip)) == 2


# Drawn by hypothesis

MANY = settings(max_examples=max(300, 5 * settings.default.max_examples),
                suppress_health_check=list(HealthCheck))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner,
                                                                max_size=4), max_leaves=12)


@MANY
@given(VALUES)
def test_what_json_can_say_is_read(value):
    text = json.dumps(value)
    try:
        found = parse_json(text, "x")
    except InputError as error:
        assert str(error).isprintable()
        with pytest.raises(UnicodeEncodeError):
            json.dumps(value, ensure_ascii=False).encode()
    else:
        assert repr(found) == repr(json.loads(text))


@MANY
@given(st.binary(max_size=60))
def test_bytes_are_json_or_one_line(content):
    try:
        parse_json(content, "x")
    except InputError as error:
        assert str(error).isprintable()


OPTIONS = resolve({"threads": 1, "root": "x"}).to_json()


@MANY
@given(st.dictionaries(st.sampled_from(sorted(OPTIONS)) | st.text(max_size=5), VALUES, max_size=3))
def test_options_are_whole_or_refused(change):
    try:
        config = Config.from_json(OPTIONS | change, "c")
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert set(config.to_json()) == set(OPTIONS)
        assert all(isinstance(value, type(OPTIONS[name])) or OPTIONS[name] is None or value is None
                   or isinstance(value, int | float)
                   for name, value in config.to_json().items())


@MANY
@given(st.lists(st.text(st.characters(), max_size=30) | st.sampled_from(
    ["Walk/v_Walk_g02_c02.avi 1", "Run/v_Run_g03_c09.avi 2", "../v_.._g01_c01.avi 1"]),
    max_size=4))
def test_lists_stay_in_the_root(tmp_path_factory, lines):
    root = tmp_path_factory.getbasetemp() / "listed"
    root.mkdir(exist_ok=True)
    readers._lists(root)
    text = "\n".join(lines).encode(errors="surrogatepass")
    (root / "ucfTrainTestlist" / "trainlist01.txt").write_bytes(text)
    try:
        split = ucf101.read(root, check_files=False)
    except InputError as error:
        assert str(error).isprintable()
    else:
        videos = (*split.train, *split.test)
        assert all(v.path.resolve().is_relative_to(root.resolve() / "UCF-101") for v in videos)
