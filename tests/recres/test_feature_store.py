"""Features kept of frozen stages: the same numbers as computing them again, at any interruption,
and never those of something else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recres import build, config, feature_store, features
from recres.datasets import Split, figures
from recres.errors import InputError
from recres.evaluation import predict_logits
from recres.feature_store import (
    FeatureStore,
    Kind,
    StoreFiles,
    create_all,
    encode_frames,
    encoder,
    feature_shape,
    fingerprint,
    made_by,
    missing,
)
from recres.loader import FrameLoader, Videos
from recres.models import average_pooling
from recres.video.sample import sample_indices

MAPS, POOLED = Kind("block2", False), Kind("block2", True)


@pytest.fixture(scope="module")
def setting(figures_root):
    options = config.resolve({"root": str(figures_root), "image_size": 32, "holdout": 0.3,
                              "width": 4, "threads": 1, "freeze": "block2", "mirror": True})
    model = build.build_model(options, 10)
    rng = np.random.default_rng(0)
    for _, array in model.named_buffers():  # not the identity that they start as
        array += rng.uniform(0.1, 0.5, array.shape).astype(np.float32)
    split = figures.read(figures_root)
    split = split._replace(train=tuple(v for v in split.train if v.label < 4),  # 12 videos
                           test=split.test[:2])
    videos = Videos(split, options)
    loader = FrameLoader(videos.source, options, "torch")
    return SimpleNamespace(options=options, model=model, videos=videos, loader=loader,
                           encode=encoder(model, loader))


def make_store(setting, folder, kind=MAPS, *, videos=None, sides=("train", "holdout", "test"),
               options=None, model=None, convention="torch"):
    options, model = options or setting.options, model or setting.model
    made = made_by(model, kind.stage, kind.pooled, options, convention, None)
    shape = feature_shape(model, kind.stage, options.image_size)
    return FeatureStore(folder, made, shape[-1:] if kind.pooled else shape,
                        videos or setting.videos, options, sides)


@pytest.fixture(scope="module")
def whole(setting, tmp_path_factory):
    """A complete store; not to be written to."""
    store = make_store(setting, tmp_path_factory.mktemp("whole"))
    create_all([store], setting.encode)
    return store


def copy(whole, folder):
    return shutil.copytree(whole.path, folder / whole.path.name)


def refuse(jobs):
    pytest.fail(f"computed again: {list(jobs)}")


def noted(encode, asked):
    """`encode`, which notes in `asked` what it is asked for."""
    def wrapped(jobs):
        jobs = list(jobs)
        for job, made in zip(jobs, encode(jobs), strict=True):
            asked.append(job)
            yield made
    return wrapped


# The same numbers

def test_features_are_those_of_the_network_rounded_once(setting, whole):
    """To float16: 2^-11 of each feature, or, where float16 is subnormal, half of its least step."""
    for place in whole.places:
        for view, frames in enumerate(setting.loader.fixed(place)):
            expected = encode_frames(setting.model, [MAPS], frames)[MAPS]
            np.testing.assert_allclose(whole.sequence(place, view), expected, rtol=2**-11,
                                       atol=2**-25)
    assert whole.missing == () and whole.nbytes_missing == 0
    assert (whole.path / "features.f16").stat().st_size == whole.nbytes


def test_logits_from_kept_features_are_those_of_the_whole_network(setting, whole):
    for side in ("train", "holdout", "test"):
        chunks = setting.videos.chunks(side)[:8]
        kept = predict_logits(setting.model, whole.load(chunks), **whole.arguments(chunks))
        full = predict_logits(setting.model, setting.loader.load(chunks))
        assert np.abs(full).max() > 0.1
        np.testing.assert_allclose(kept, full, atol=2**-11 * np.abs(full).max())


def test_backwards(setting, whole):
    chunks = setting.videos.chunks("train")
    video = [c for c in chunks if c.video == chunks[0].video]  # an even number of frames
    forwards, backwards = whole.load(video), whole.load(video, backwards=True)
    np.testing.assert_array_equal(backwards, forwards[::-1, ::-1])
    assert not np.array_equal(backwards, forwards)
    played = encode_frames(setting.model, [MAPS], setting.loader.load(video[:1], None, True)[0])
    np.testing.assert_allclose(backwards[0], played[MAPS], rtol=2**-11, atol=2**-25)


def test_flow_cannot_be_played_backwards(setting, tmp_path):
    options = replace(setting.options, input="flow", flow_length=2)
    store = make_store(setting, tmp_path, options=options, videos=Videos(
        setting.videos.split, options, setting.videos.found),
        model=average_pooling(18, classes=10, width=4, channels=4))
    assert store.made_by.channels == 4 and store.made_by.flow_length == 2
    with pytest.raises(ValueError, match="the flow of a video played backwards is not"):
        store.load(setting.videos.chunks("train")[:1], backwards=True)


def test_temporal_segments(setting, whole):
    options = replace(setting.options, sampling="segments")
    videos = Videos(setting.videos.split, options)
    store = make_store(setting, whole.folder, options=options, videos=videos)
    chunks = videos.chunks("train")
    for epoch in (None, 0):
        loaded = store.load(chunks, epoch)
        for chunk, found in zip(chunks, loaded, strict=True):
            places = list(videos.frame_indices(chunk, epoch))
            assert epoch == 0 or min(np.diff(places)) > 1
            assert any(np.array_equal(found, store.sequence(chunk.video, view)[places])
                       for view in range(1 if epoch is None else 2))


def test_an_epoch_draws_the_frame_or_its_mirror_image(setting, whole):
    chunks = setting.videos.chunks("train")
    plain = whole.load(chunks)
    drawn = whole.load(chunks, epoch=0)
    mirrored = np.array([not np.array_equal(a, b) for a, b in zip(plain, drawn, strict=True)])
    assert 0.2 < mirrored.mean() < 0.8
    np.testing.assert_array_equal(drawn, whole.load(chunks, epoch=0))
    assert not np.array_equal(drawn, whole.load(chunks, epoch=1))
    which = int(np.flatnonzero(mirrored)[0])
    video, start = chunks[which].video, chunks[which].start
    _, flipped = setting.loader.fixed(video)
    expected = encode_frames(setting.model, [MAPS], flipped[start : start + 2])[MAPS]
    np.testing.assert_allclose(drawn[which], expected, rtol=2**-11, atol=2**-25)


def test_one_pass_gives_what_several_give(setting, tmp_path):
    kinds = [MAPS, POOLED, Kind("stem", True), Kind("block4", True)]
    together = [make_store(setting, tmp_path / "together", kind) for kind in kinds]
    create_all(together, setting.encode)
    for store in together:
        alone = make_store(setting, tmp_path / "alone", store.kind)
        create_all([alone], setting.encode)
        for name in ("features.f16", "videos.jsonl", "about.json"):
            assert (store.path / name).read_bytes() == (alone.path / name).read_bytes()
    maps, pooled = together[:2]
    place = maps.places[0]
    assert pooled.sequence(place).shape == (setting.videos.counts[place], 8)
    np.testing.assert_allclose(pooled.sequence(place), maps.sequence(place).mean(axis=(1, 2)),
                               rtol=2**-10, atol=2**-25)
    chunk = setting.videos.chunks("test")[:1]
    np.testing.assert_array_equal(pooled.load(chunk)[0],
                                  pooled.sequence(chunk[0].video)[: setting.options.context])


def test_a_video_is_encoded_as_far_as_is_missing(setting, tmp_path):
    deep, shallow = Kind("block3", True), Kind("block1", True)
    create_all([make_store(setting, tmp_path, deep, sides=["train"])], setting.encode)
    stores, asked, done = [make_store(setting, tmp_path, k) for k in (deep, shallow)], [], []
    create_all(stores, noted(setting.encode, asked), done.append)
    train = set(setting.videos.sides["train"])
    assert len(asked) == len(setting.videos.counts)
    assert sum(done) == sum(setting.videos.counts.values())
    for place, kinds in asked:
        assert set(kinds) == ({shallow} if place in train else {deep, shallow})
    stages, stage = [], setting.model.stage
    model = SimpleNamespace(eval=setting.model.eval, parameters=setting.model.parameters,
                            stage=lambda name, x: (stages.append(name), stage(name, x))[1])
    encode_frames(model, [shallow], np.zeros((1, 32, 32, 3), np.float32))
    assert stages == ["stem", "block1"]


def test_runs_with_other_contexts_use_it_too(setting, whole):
    options = replace(setting.options, context=3)
    other = make_store(setting, whole.folder, options=options,
                       videos=Videos(setting.videos.split, options))
    assert other.missing == ()
    chunks = other.videos.chunks("train")[:2]
    np.testing.assert_array_equal(other.load(chunks)[0], other.sequence(chunks[0].video)[:3])


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
def test_a_count_of_sampled_frames_says_which_they_are(n_frames, step, one, other):
    """What makes name and count a key, whatever the context."""
    a, b = sample_indices(n_frames, step, one), sample_indices(n_frames, step, other)
    assert (len(a) == len(b)) == (a == b)


# Growing, and being interrupted

def test_it_grows_by_another_split(setting, tmp_path):
    split = setting.videos.split
    first = Split(split.name, 1, split.classes, split.train[:6], split.test)
    second = Split(split.name, 2, split.classes, split.test, split.train)
    options = replace(setting.options, holdout=0.0)
    store = make_store(setting, tmp_path, videos=Videos(first, options))
    create_all([store], setting.encode)
    before = {place: store.sequence(place) for place in store.places}
    again, asked = make_store(setting, tmp_path, videos=Videos(second, options)), []
    loader = FrameLoader(again.videos.source, options, "torch")
    assert len(again.missing) == len(split.train) - 6
    create_all([again], noted(encoder(setting.model, loader), asked))
    assert [place for place, _ in asked] and again.missing == ()
    assert sorted(again.videos.source.videos[place].name for place, _ in asked) == \
        sorted(video.name for video in split.train[6:])
    names = [video.name for video in again.videos.source.videos]
    for place, kept in before.items():
        name = store.videos.source.videos[place].name
        np.testing.assert_array_equal(again.sequence(names.index(name)), kept)
    create_all([make_store(setting, tmp_path, videos=Videos(second, options))], refuse)


def test_each_video_is_computed_once(setting, tmp_path):
    store, asked = make_store(setting, tmp_path / "stores"), []
    assert list(tmp_path.iterdir()) == []  # to look is not to write
    store.create(lambda place: asked.append(place) or np.ones(
        (2, setting.videos.counts[place], *store.shape), np.float32))
    assert sorted(asked) == sorted(setting.videos.counts)
    make_store(setting, tmp_path / "stores").create(lambda place: pytest.fail("computed again"))
    (store.path / ".tmp-1-about.json").touch()
    store.remove()
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, sys
from recres import features
from recres.feature_store import StoreFiles
after, write = int(sys.argv[1]), os.write
def append(self, *arguments, original=StoreFiles.append):
    global after
    after -= 1
    if after < 0:  # in the middle of a video, and then in the middle of its line
        name = "features.f16" if sys.argv[2] == "data" else "videos.jsonl"
        if name == "videos.jsonl":
            original(self, *arguments)
        with open(self.path / name, "r+b") as file:
            size = file.seek(0, 2)
            file.write(b"x" * 7) if name == "features.f16" else file.truncate(size - 7)
            file.flush()
            os.kill(os.getpid(), 9)
    original(self, *arguments)
StoreFiles.append = append
features.main(sys.argv[3:])
"""


def same_features(one, two):
    """Two stores have the same videos with the same features."""
    a, b = StoreFiles(one), StoreFiles(two)
    assert a.lines.keys() == b.lines.keys()
    for key in a.lines:
        np.testing.assert_array_equal(a.video(key), b.video(key))
    assert (one / "features.f16").stat().st_size == (two / "features.f16").stat().st_size
    assert len((one / "videos.jsonl").read_bytes().splitlines()) == len(a.lines)


@pytest.mark.parametrize("seed", range(12))
def test_a_torn_end_is_cut_off_and_the_rest_kept(setting, whole, tmp_path, seed):
    """Killed anywhere: whole lines without more, a torn line, numbers without a line."""
    rng = np.random.default_rng(seed)
    path = copy(whole, tmp_path)
    index = (path / "videos.jsonl").read_bytes()
    kept_bytes = int(rng.integers(len(index) + 1))
    (path / "videos.jsonl").write_bytes(index[:kept_bytes])
    lines = [json.loads(line) for line in index[:kept_bytes].split(b"\n")[:-1]]
    kept = {line["name"] for line in lines}
    size = sum(2 * line["frames"] * 2 * int(np.prod(whole.shape)) for line in lines)
    data = path / "features.f16"
    with open(data, "r+b") as file:
        file.truncate(int(rng.integers(size, data.stat().st_size + 1)))
    if seed % 4 == 0:  # a killed process had not even begun, or had only just done so
        (path / "lock").unlink()
    store, asked = make_store(setting, tmp_path), []
    for place in set(store.places) - set(store.missing):
        store.sequence(place)
    create_all([store], noted(setting.encode, asked))
    names = [setting.videos.source.videos[place].name for place, _ in asked]
    assert len(names) + len(kept) == len(whole.places) and not kept & set(names)
    same_features(path, whole.path)


def test_killed_before_anything_was_made(setting, whole, tmp_path):
    for leave in ((), ("lock",), ("lock", "about.json"), ("lock", "about.json", "features.f16")):
        path = copy(whole, tmp_path)
        for name in {"about.json", "features.f16", "videos.jsonl", "lock"} - set(leave):
            (path / name).unlink()
        store = make_store(setting, tmp_path)
        assert store.missing == store.places
        create_all([store], setting.encode)
        same_features(path, whole.path)
        store.remove()


@pytest.mark.parametrize(("file", "after"), [("data", 0), ("data", 3), ("index", 5)])
def test_sigkill(tiny_command, tiny_made, tmp_path, capsys, file, after):
    """While a video is written, and while its line is."""
    command = [sys.executable, "-c", KILLED, str(after), file, *tiny_command]
    done = subprocess.run([*command, "--out", str(tmp_path / "killed")], capture_output=True)
    capsys.readouterr()
    assert done.returncode == -9, done.stderr.decode()
    assert features.main([*tiny_command, "--out", str(tmp_path / "killed")]) == 0
    assert f"frames of {40 - after} videos" in capsys.readouterr().out
    same_features(tmp_path / "killed" / "block1-pooled", tiny_made / "block1-pooled")


@pytest.fixture(scope="module")
def tiny_command(figures_root):
    return ["--root", str(figures_root), "--width", "4", "--image-size", "32", "--threads", "1",
            "--stages", "block1"]


@pytest.fixture(scope="module")
def tiny_made(tiny_command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    assert features.main([*tiny_command, "--out", str(folder)]) == 0
    return folder


def test_an_exception_loses_nothing(setting, whole, tmp_path):
    def stops(jobs):
        for i, made in enumerate(setting.encode(jobs)):
            if i == 4:
                raise KeyboardInterrupt
            yield made

    threads = threading.active_count()
    store, asked = make_store(setting, tmp_path), []
    with pytest.raises(KeyboardInterrupt):
        create_all([store], stops)
    assert len(store.missing) == len(store.places) - 4
    create_all([store], noted(setting.encode, asked))
    assert [place for place, _ in asked] == list(store.places[4:])
    same_features(store.path, whole.path)
    assert threading.active_count() == threads


# Damage

@pytest.mark.parametrize("video", [0, 5, -1])
def test_a_changed_bit_is_found_and_named(setting, whole, tmp_path, video):
    path = copy(whole, tmp_path)
    lines = [json.loads(line) for line in (path / "videos.jsonl").read_text().splitlines()]
    with open(path / "features.f16", "r+b") as file:
        file.seek(lines[video]["offset"] + 1000)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    store = make_store(setting, tmp_path)
    for place in store.places:
        name = setting.videos.source.videos[place].name
        if name == lines[video]["name"]:
            with pytest.raises(InputError, match=f"features.f16: .*{name} are damaged: their CRC"):
                store.sequence(place)
        else:
            store.sequence(place)
    # what the message advises
    del lines[video]
    (path / "videos.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = make_store(setting, tmp_path)
    assert len(again.missing) == 1
    create_all([again], setting.encode)
    for place in again.places:
        np.testing.assert_array_equal(again.sequence(place), whole.sequence(place))


def test_a_checksum_is_compared_once(whole, monkeypatch):
    files = StoreFiles(whole.path)
    key = next(iter(files.lines))
    files.video(key)
    monkeypatch.setattr(feature_store.zlib, "crc32", lambda data: pytest.fail("once more"))
    files.video(key)


def test_a_file_that_is_too_short_is_refused(setting, whole, tmp_path):
    path = copy(whole, tmp_path)
    with open(path / "features.f16", "r+b") as file:
        file.truncate(whole.nbytes - 1)
    last = json.loads((path / "videos.jsonl").read_text().splitlines()[-1])["name"]
    with pytest.raises(InputError, match=f"features.f16: the features of video {last} are damaged: "
                                         f"they end at byte {whole.nbytes}, the file at"):
        make_store(setting, tmp_path)


@pytest.mark.parametrize("line", ["", "{}", "[1]", "nonsense", '{"name": 3}',
                                  '{"name": "a", "frames": "2", "size": 1, "offset": 0, '
                                  '"checksum": 0}',
                                  '{"name": "a", "frames": 2, "size": 1, "offset": -2, '
                                  '"checksum": 0}'])
def test_a_damaged_line_is_named(setting, whole, tmp_path, line):
    path = copy(whole, tmp_path)
    lines = (path / "videos.jsonl").read_text().splitlines()
    lines[2] = line
    (path / "videos.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="videos.jsonl: line 3 is damaged"):
        make_store(setting, tmp_path)


def test_features_of_nobody_knows_what_are_refused(setting, whole, tmp_path):
    path = copy(whole, tmp_path)
    about = json.loads((path / "about.json").read_text())
    (path / "about.json").write_text(json.dumps({**about, "format": "recres-features-0"}))
    with pytest.raises(InputError, match="format in about.json is 'recres-features-0', expected"):
        make_store(setting, tmp_path)
    (path / "about.json").unlink()
    with pytest.raises(InputError, match="has features, but no about.json"):
        make_store(setting, tmp_path)


# What made them

def test_another_network_is_refused(setting, whole):
    other = build.build_model(replace(setting.options, seed=1), 10)
    with pytest.raises(InputError) as refused:
        make_store(setting, whole.folder, model=other)
    here, there = (fingerprint(model, "block2")[:12] for model in (other, setting.model))
    assert str(refused.value).startswith(f"{whole.path}: its features were made with parameters "
                                         f"{there} (weights: None), wanted are some with parameters"
                                         f" {here} ")


@pytest.mark.parametrize(("change", "text"), [
    ({"image_size": 48}, "image_size 32, wanted are some with image_size 48"),
    ({"frame_step": 3}, "frame_step 5, wanted are some with frame_step 3"),
    ({"width": 6}, "width 4, wanted are some with width 6"),
    ({"backbone": "resnet34"}, "depth 18, wanted are some with depth 34"),
    ({"input": "dynamic"}, "input frames, wanted are some with input dynamic"),
])
def test_other_features_are_refused(setting, whole, change, text):
    options = replace(setting.options, **change)
    with pytest.raises(InputError, match=text) as refused:
        make_store(setting, whole.folder, options=options, model=build.build_model(options, 10))
    assert str(whole.path) in str(refused.value) and "\n" not in str(refused.value)


def test_another_input_convention_is_refused(setting, whole):
    with pytest.raises(InputError, match="convention torch, wanted are some with convention caffe"):
        make_store(setting, whole.folder, convention="caffe")


def test_later_stages_and_where_weights_come_from_make_no_difference(setting, whole):
    model = build.build_model(setting.options, 3)
    state = setting.model.state_dict()
    own = model.state_dict()
    used = {name: state[name] for name in own
            if name.startswith(("conv1", "norm1", "block1", "block2"))}
    model.load_state_dict({**own, **used})
    assert not np.array_equal(model.state_dict()["block3.0.norm1.running_mean"],
                              state["block3.0.norm1.running_mean"])
    made = made_by(model, "block2", False, setting.options, "torch", "recres")
    store = FeatureStore(whole.folder, made, whole.shape, setting.videos, setting.options)
    assert store.missing == ()


@pytest.mark.parametrize("name", ["conv1.weight", "norm1.running_mean", "block1.0.conv1.weight",
                                  "block2.1.norm2.running_var", "block2.0.shortcut.conv.weight"])
def test_every_number_counts(setting, name):
    model = build.build_model(setting.options, 10)
    state = setting.model.state_dict()
    model.load_state_dict(state)
    assert fingerprint(model, "block2") == fingerprint(setting.model, "block2")
    state[name].flat[-1] += 1e-3
    model.load_state_dict(state)
    assert fingerprint(model, "block2") != fingerprint(setting.model, "block2")
    before = "block1" if name.startswith("block2") else None
    if before:
        assert fingerprint(model, before) == fingerprint(setting.model, before)


def test_another_file_under_the_name_of_a_video_is_refused(setting, whole, figures_root, tmp_path):
    root = shutil.copytree(figures_root, tmp_path / "figures")
    split = setting.videos.split
    moved = split._replace(train=tuple(v._replace(path=root / v.path.relative_to(figures_root))
                                       for v in split.train))
    videos = Videos(moved, setting.options, setting.videos.found)
    assert make_store(setting, whole.folder, videos=videos).missing == ()
    changed = moved.train[3]
    with open(changed.path, "ab") as file:
        file.write(b"x")
    size = changed.path.stat().st_size
    with pytest.raises(InputError, match=f"the features of video {changed.name} were made of a file"
                                         f" of {size - 1} bytes, {changed.path} has {size}"):
        make_store(setting, whole.folder, videos=videos)


# Values, room, and company

@pytest.mark.parametrize(("value", "fits"), [(65504.0, True), (-65504.0, True), (65520.0, False),
                                             (-1e30, False), (np.inf, False), (np.nan, False)])
def test_what_float16_cannot_hold_is_refused(setting, tmp_path, value, fits):
    store = make_store(setting, tmp_path, POOLED)

    def encode(place):
        features = np.ones((2, setting.videos.counts[place], *store.shape), np.float32)
        if place == store.places[1]:
            features[-1, -1, -1] = value
        return features

    if fits:
        store.create(encode)
        assert store.sequence(store.places[1], view=1)[-1, -1] == value
        return
    path = setting.videos.source.videos[store.places[1]].path
    with pytest.raises(InputError, match="at most 65504") as refused:
        store.create(encode)
    assert str(refused.value).startswith(f"{path}: a feature after block2 is {value:g}, expected")
    assert store.missing == store.places[1:]


def test_features_of_a_video_that_has_other_frames_now(setting, tmp_path):
    store = make_store(setting, tmp_path)
    path = setting.videos.source.videos[store.places[0]].path
    with pytest.raises(InputError, match=f"^{path}: has .* sampled frames, but had .* when they"):
        store.create(lambda place: np.zeros((2, setting.videos.counts[place] - 1, *store.shape),
                                            np.float32))
    assert store.missing == store.places


@pytest.mark.parametrize("wrong", [lambda x: x[:1], lambda x: x[..., 1:],
                                   lambda x: x.astype(np.float64)])
def test_features_of_another_shape_or_dtype_are_refused(setting, tmp_path, wrong):
    store = make_store(setting, tmp_path)
    with pytest.raises(ValueError, match=r"features: expected float32 \(2, .*, got float"):
        store.create(lambda place: wrong(np.zeros((2, setting.videos.counts[place], *store.shape),
                                                  np.float32)))
    assert store.missing == store.places


def test_a_disk_without_room_is_one_line(setting, tmp_path, monkeypatch):
    stores = [make_store(setting, tmp_path / "new" / "stores", kind) for kind in (MAPS, POOLED)]
    needed = sum(store.nbytes_missing for store in stores)
    free, asked = needed - 1, []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (
        asked.append(path), SimpleNamespace(free=free))[1])
    with pytest.raises(InputError, match=r"new/stores: the features need \d\.\d\d GB more, the "
                                         r"disk has \d\.\d\d GB free"):
        create_all(stores, refuse)
    assert asked == [tmp_path] and list(tmp_path.iterdir()) == []
    free = needed
    create_all(stores, setting.encode)
    free = 0
    create_all(stores, refuse)  # nothing is missing, and no room is needed


def test_before_it_is_made_there_is_nothing_to_load(setting, tmp_path):
    with pytest.raises(ValueError, match="create\\(\\) comes first"):
        make_store(setting, tmp_path).load(setting.videos.chunks("train")[:1])


HOLDS = """
import sys, time
from pathlib import Path
from recres.feature_store import _locked
with _locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(1)
"""


def test_a_second_process_waits_and_then_uses_what_the_first_made(setting, whole, tmp_path, capsys):
    """Here the first is done with all videos but one when the second gets the lock."""
    store = make_store(setting, tmp_path)
    store.path.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(store.path)],
                          stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        for name in ("about.json", "features.f16", "videos.jsonl"):
            shutil.copy(whole.path / name, store.path / name)
        index = store.path / "videos.jsonl"
        index.write_bytes(b"".join(index.read_bytes().splitlines(keepends=True)[:-1]))
        began, asked = time.monotonic(), []
        create_all([store], noted(setting.encode, asked))
        assert time.monotonic() - began > 0.5
    assert f"another process ({first.pid}) is writing" in capsys.readouterr().out
    assert len(asked) == 1 and missing([store]) == ()
    same_features(Path(store.path), whole.path)
