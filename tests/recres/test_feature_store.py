"""Features kept of frozen stages: the same numbers as computing them again, at any interruption."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from recres import build, config
from recres.datasets import figures
from recres.errors import InputError
from recres.evaluation import predict_logits
from recres.feature_store import FeatureStore, encoder, feature_shape
from recres.loader import FrameLoader, Videos


@pytest.fixture(scope="module")
def setting(figures_root):
    options = config.resolve({"root": str(figures_root), "image_size": 32, "holdout": 0.3,
                              "width": 4, "threads": 1, "freeze": "block2", "mirror": True})
    model = build.build_model(options, 10)
    rng = np.random.default_rng(0)
    for _, array in model.named_buffers():  # not the identity that they start as
        array += rng.uniform(0.1, 0.5, array.shape).astype(np.float32)
    videos = Videos(figures.read(figures_root), options)
    return SimpleNamespace(options=options, model=model, videos=videos,
                           loader=FrameLoader(videos.source, options, "torch"))


def make_store(setting, path):
    shape = feature_shape(setting.model, "block2", 32)
    return FeatureStore(path, "block2", shape, setting.videos, setting.options)


def test_logits_from_kept_features_are_those_of_the_whole_network(setting, tmp_path):
    store = make_store(setting, tmp_path / "features.bin")
    store.create(encoder(setting.model, "block2", setting.loader))
    for side in ("train", "holdout"):
        chunks = setting.videos.chunks(side)[:8]
        kept = predict_logits(setting.model, store.load(chunks), after="block2")
        whole = predict_logits(setting.model, setting.loader.load(chunks))
        np.testing.assert_allclose(kept, whole, rtol=1e-4, atol=1e-5)


def test_backwards(setting, tmp_path):
    store = make_store(setting, tmp_path / "features.bin")
    store.create(encoder(setting.model, "block2", setting.loader))
    chunks = setting.videos.chunks("train")
    video = [c for c in chunks if c.video == chunks[0].video]  # an even number of frames
    np.testing.assert_array_equal(store.load(video, backwards=True), store.load(video)[::-1, ::-1])


def test_an_epoch_draws_the_frame_or_its_mirror_image(setting, tmp_path):
    store = make_store(setting, tmp_path / "features.bin")
    store.create(encoder(setting.model, "block2", setting.loader))
    chunks = setting.videos.chunks("train")
    plain = store.load(chunks)
    drawn = store.load(chunks, epoch=0)
    mirrored = np.array([not np.array_equal(a, b) for a, b in zip(plain, drawn, strict=True)])
    assert 0.2 < mirrored.mean() < 0.8
    np.testing.assert_array_equal(drawn, store.load(chunks, epoch=0))
    assert not np.array_equal(drawn, store.load(chunks, epoch=1))
    which = int(np.flatnonzero(mirrored)[0])
    video, start = chunks[which].video, chunks[which].start
    _, flipped = setting.loader.fixed(video)
    whole = predict_logits(setting.model, flipped[None, start : start + 2])
    kept = predict_logits(setting.model, drawn[which : which + 1], after="block2")
    np.testing.assert_allclose(kept, whole, rtol=1e-4, atol=1e-5)


def test_each_frame_is_computed_once(setting, tmp_path):
    encode, asked = encoder(setting.model, "block2", setting.loader), []
    store = make_store(setting, tmp_path / "features.bin")
    store.create(lambda video: asked.append(video) or encode(video))
    assert sorted(asked) == sorted(store.videos)
    assert store.complete and store.path.stat().st_size == store.nbytes
    make_store(setting, store.path).create(lambda video: pytest.fail("computed again"))
    store.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", [0, 1, 5])
def test_making_it_goes_on_where_it_was_stopped(setting, tmp_path, torn):
    encode = encoder(setting.model, "block2", setting.loader)
    whole = make_store(setting, tmp_path / "whole")
    whole.create(encode)
    asked = []

    def stops(video):
        asked.append(video)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return encode(video)

    store = make_store(setting, tmp_path / "features.bin")
    with pytest.raises(KeyboardInterrupt):
        store.create(stops)
    assert not store.path.exists()
    if torn:  # a killed writer leaves part of a video
        with open(tmp_path / ".partial-features.bin", "ab") as file:
            file.write(b"x" * torn)
    again = []
    store.create(lambda video: again.append(video) or encode(video))
    assert asked[:3] + again == list(store.videos)
    assert store.path.read_bytes() == whole.path.read_bytes()


def test_a_disk_without_room_is_one_line(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"the features need .* GB more, the disk has 0.00 GB"):
        make_store(setting, tmp_path / "features.bin").create(
            lambda video: pytest.fail("it began all the same"))


def test_kept_features_end_before_the_first_temporal_skip():
    for values, stage in (({"freeze": "block2"}, "block2"), ({"freeze": "block4"}, "block3"),
                          ({"freeze": "none"}, None), ({"freeze": "stem"}, "stem"),
                          ({"freeze": "block3", "position": "block1"}, "stem"),
                          ({"freeze": "block4", "model": "avgpool"}, "block4")):
        options = config.resolve({"width": 4, **values})
        assert build.frozen_stage(options, build.build_model(options, 3)) == stage
