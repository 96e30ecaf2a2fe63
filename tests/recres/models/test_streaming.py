"""Streaming: equal to the model on every window, and one frame's work a frame."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import tensorlite as tl
from recres.models import average_pooling, recurrent_resnet, resnet18
from recres.models.recurrent import SKIPS
from recres.models.resnet import BasicBlock, Bottleneck, ResNet
from recres.models.streaming import Stream
from tensorlite import nn


def video(n_frames: int, videos: int = 2, side: int = 32, dtype=np.float64) -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.standard_normal((n_frames, videos, side, side, 3)).astype(dtype)


def ready(model, dtype=np.float64):
    """With norms that do something, as after training, and features that vary between frames."""
    rng = np.random.default_rng(9)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean[:] = 0.1 * rng.standard_normal(module.c)
            module.running_var[:] = rng.uniform(0.5, 1.5, module.c)
            module.gamma.data[:] = rng.uniform(0.5, 1.5, module.c)
            module.beta.data[:] = 0.3 * rng.standard_normal(module.c)
    return model.to(dtype=dtype).eval()


def windows(model, frames: np.ndarray) -> list[np.ndarray | None]:
    """What the model says of the last T frames, each window on its own."""
    size, videos = model.context, frames.shape[1]
    starts = range(len(frames) - size + 1)
    chunks = np.concatenate([np.stack(frames[i : i + size], axis=1) for i in starts])
    logits = model(tl.Tensor(chunks)).numpy().reshape(len(starts), videos, -1)
    return [None] * (size - 1) + list(logits)


def assert_streams(model, frames: np.ndarray) -> None:
    stream, expected = Stream(model), windows(model, frames)
    said = np.stack([logits for logits in expected if logits is not None])
    if len(said) > 1:  # a test that tells windows apart
        assert np.abs(np.diff(said, axis=0)).min() > 1e-6
    for i, (frame, logits) in enumerate(zip(frames, expected, strict=True)):
        got = stream.push(frame)
        if logits is None:
            assert got is None, i
        else:
            scale = np.abs(logits).max()
            assert np.abs(got.numpy() - logits).max() <= 1e-9 * scale, f"frame {i}"


ROOM = {"block1": 2, "block2": 5, "mid_block4": 5, "block4": 5}  # frames, at most 5
PLACES = [(position, context) for position, most in ROOM.items() for context in range(1, most + 1)]
SKIPS_AND_VERSIONS = list(itertools.product(["identity", "conv", "conv_nonlinear"],
                                            ["v1", "v1.5"]))


@pytest.mark.parametrize(("position", "context"), PLACES)
@pytest.mark.parametrize("readout", ["last", "mean"])
def test_every_window_is_the_chunk(position, context, readout):
    options = {"classes": 3, "position": position, "context": context, "readout": readout, "rng": 1}
    for skip, version in SKIPS_AND_VERSIONS[::2]:  # in ResNet-18 the versions are the same
        model = recurrent_resnet(18, skip=skip, version=version, width=4, **options)
        assert_streams(ready(model), video(context + 2))
    turn = PLACES.index((position, context)) + (readout == "mean")
    skip, version = SKIPS_AND_VERSIONS[turn % 6]
    model = recurrent_resnet(50, skip=skip, version=version, width=2, **options)
    assert_streams(ready(model), video(context + 2))


@pytest.mark.parametrize("context", [1, 2, 4])
def test_average_pooling(context):
    assert_streams(ready(average_pooling(18, classes=3, context=context, width=4, rng=1)),
                   video(context + 3))


@pytest.mark.parametrize(("position", "context"), [("block1", 2), ("block2", 6), ("mid_block4", 3),
                                                   ("block4", 1), ("block4", 4)])
@pytest.mark.parametrize("readout", ["last", "mean"])
def test_a_purely_temporal_skip(position, context, readout):
    """Whose windows each sum from their own beginning."""
    model = recurrent_resnet(18, classes=3, skip="pure_temporal", position=position,
                             context=context, readout=readout, width=4, rng=1)
    assert_streams(ready(model), video(context + 3))


@pytest.mark.parametrize("context", [1, 2, 4])
@pytest.mark.parametrize("readout", ["last", "mean"])
def test_no_skip(readout, context):
    model = recurrent_resnet(18, classes=3, skip="none", context=context, readout=readout, width=4,
                             rng=1)
    assert_streams(ready(model), video(context + 3))


@pytest.mark.parametrize("position", ["block1", "block2", "mid_block3", "block3"])
@pytest.mark.parametrize("readout", ["last", "mean"])
def test_a_truncated_network(position, readout):
    for skip in SKIPS:
        model = recurrent_resnet(18, classes=3, skip=skip, position=position, readout=readout,
                                 context=2 if position == "block1" else 3, width=4, rng=1,
                                 truncate="block3", recurrent_gradient="same-frame")
        assert_streams(ready(model), video(5))
    assert_streams(ready(average_pooling(18, classes=3, context=3, width=4, truncate="block3")),
                   video(5))


def test_frames_of_other_channels():
    frames = np.random.default_rng(7).standard_normal((4, 2, 32, 32, 10))
    model = ready(recurrent_resnet(18, classes=3, width=4, channels=10, rng=1))
    assert_streams(model, frames)
    with pytest.raises(ValueError, match=r"frame: expected \(H, W, 10\) or \(N, H, W, 10\), got"):
        Stream(model).push(frames[0, :, :, :, :3])


@pytest.mark.parametrize("temporal_norm", [False, True])
def test_a_temporal_skip_without_norm(temporal_norm):
    model = recurrent_resnet(18, classes=3, skip="conv", context=3, width=4, rng=1,
                             temporal_norm=temporal_norm)
    assert_streams(ready(model), video(6))


class Work:
    """Images that went into the stem and into F of each block, since the last `take`."""

    def __init__(self, model: ResNet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.count = model, {}
        names = {id(block): name for name, block in model.residual_blocks()}
        self.watch(monkeypatch, ResNet, "stem", lambda _: "stem")
        for kind in (BasicBlock, Bottleneck):
            for method in ("residual", "forward"):
                self.watch(monkeypatch, kind, method, lambda block: names[id(block)])
        self.inside = False

    def watch(self, monkeypatch, kind, method, name) -> None:
        original = getattr(kind, method)

        def counted(owner, x, *rest):
            if self.inside:  # F, within a whole block that has been counted
                return original(owner, x, *rest)
            self.inside = True
            self.count[name(owner)] = self.count.get(name(owner), 0) + x.shape[0]
            try:
                return original(owner, x, *rest)
            finally:
                self.inside = False

        monkeypatch.setattr(kind, method, counted)

    def take(self) -> list[int]:
        names = ["stem", *(name for name, _ in self.model.residual_blocks())]
        counts, self.count = [self.count.get(name, 0) for name in names], {}
        return counts


@pytest.mark.parametrize(("position", "context", "readout", "expected"), [
    ("block4", 1, "last", [1] * 9),
    ("block4", 3, "last", [1] * 9),
    ("block2", 4, "last", [1] * 9),
    ("block1", 2, "last", [1] * 9),
    ("block4", 3, "mean", [1] * 7 + [1, 2]),  # the 1st and the 2nd skip
    ("block2", 4, "mean", [1, 1, 1, 2, 3, 4, 4, 4, 4]),
    ("block1", 2, "mean", [1, 1, 2, 2, 2, 2, 2, 2, 2]),
])
@pytest.mark.parametrize("skip", ["identity", "conv"])
def test_a_frame_is_worked_on_once(monkeypatch, position, context, readout, expected, skip):
    """In stem and blocks, and behind a skip with readout "mean" as often as it has versions."""
    model = recurrent_resnet(18, classes=2, skip=skip, position=position, context=context,
                             readout=readout, width=4)
    if skip == "conv":
        passed_on = [0] * (context - 1)
        for i, name in enumerate(model.recurrent):
            block = dict(model.residual_blocks())[name]

            def counted(x, i=i, original=block.temporal.forward):
                passed_on[i] += x.shape[0]
                return original(x)

            monkeypatch.setattr(block.temporal, "forward", counted)
    work, stream = Work(model, monkeypatch), Stream(model)
    for i, frame in enumerate(video(context + 3, videos=1, dtype=np.float32)):
        stream.push(frame)
        counts = work.take()
        assert all(had <= most for had, most in zip(counts, expected, strict=True))
        if skip == "conv":  # S of each version that comes in
            ins = [expected[1 + [n for n, _ in model.residual_blocks()].index(name)]
                   for name in model.recurrent]
            assert all(had <= most for had, most in zip(passed_on, ins, strict=True))
            assert i + 1 < context or passed_on == ins
            passed_on[:] = [0] * len(passed_on)
    assert counts == expected


@pytest.mark.parametrize(("skip", "readout", "first", "then"), [
    ("none", "last", [0] * 9, [1] * 9),  # two frames are of no use to a window of three
    ("none", "mean", [1] * 9, [1] * 9),
    ("pure_temporal", "last", [1] * 5 + [0] * 4, [1] * 9),  # up to block2.1, the skip
    ("pure_temporal", "mean", [1] * 9, [1] * 5 + [3] * 4),
])
def test_a_frame_is_worked_on_once_in_networks_to_compare_with(monkeypatch, skip, readout, first,
                                                               then):
    model = recurrent_resnet(18, classes=2, skip=skip, position="block2", context=3,
                             readout=readout, width=4)
    work, stream = Work(model, monkeypatch), Stream(model)
    counts = []
    for frame in video(5, videos=1, dtype=np.float32):
        stream.push(frame)
        counts.append(work.take())
    assert counts[0] == first and counts[2:] == [then] * 3


def test_convolutions_of_a_push_are_those_of_one_image():
    """All of them, projections included: those of a window, of which each frame is new."""
    class Convolved(tl.Observer):
        outputs = 0

        def forward(self, node, output):
            if "conv" in node.name:
                self.outputs += output.size

    model = recurrent_resnet(18, classes=2, context=4, position="mid_block4", width=4)
    image = ready(recurrent_resnet(18, classes=2, context=1, width=4), np.float32)
    stream, frames = Stream(model), video(6, dtype=np.float32)
    for frame in frames[:-1]:
        stream.push(frame)
    with tl.observe(Convolved()) as seen:
        stream.push(frames[-1])
    with tl.observe(Convolved()) as single:
        image(tl.Tensor(frames[-1][:, None]))
    assert 0 < seen.outputs == single.outputs


def test_one_video_needs_no_axis_of_its_own():
    model = ready(recurrent_resnet(18, classes=3, context=2, width=4, rng=1))
    frames = video(4)
    both, one = Stream(model), Stream(model)
    for frame in frames:
        logits, mine = both.push(frame), one.push(frame[0])
        if logits is not None:
            assert mine.shape == (1, 3)
            np.testing.assert_allclose(mine.numpy()[0], logits.numpy()[0], rtol=1e-9)


@pytest.mark.parametrize("readout", ["last", "mean"])
def test_reset_begins_a_new_video(readout):
    model = ready(recurrent_resnet(18, classes=3, context=3, readout=readout, width=4, rng=1))
    stream, frames = Stream(model), video(5, side=64)
    for frame in video(4):
        stream.push(frame)
    stream.reset()
    assert stream.push(frames[0]) is None and stream.push(frames[1]) is None
    np.testing.assert_allclose(stream.push(frames[2]).numpy(), windows(model, frames)[2],
                               rtol=1e-9)


def test_running_statistics_are_used_and_left_alone():
    model = recurrent_resnet(18, classes=3, context=2, width=4, rng=1)  # as for training
    before = model.state_dict()
    stream = Stream(model)
    for frame in video(3, dtype=np.float32):
        stream.push(frame)
    assert not model.training
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


def test_frames_are_left_alone_and_may_be_reused_by_the_caller():
    model = ready(recurrent_resnet(18, classes=3, context=2, width=4, rng=1))
    frames, buffer, stream = video(3), np.empty((2, 32, 32, 3)), Stream(model)
    for frame, logits in zip(frames, windows(model, frames), strict=True):
        buffer[:] = frame
        got = stream.push(buffer)
        assert np.array_equal(buffer, frame)
        if logits is not None:
            np.testing.assert_allclose(got.numpy(), logits, rtol=1e-9)


def test_a_push_that_failed_has_not_been(monkeypatch):
    model = ready(recurrent_resnet(18, classes=3, context=3, readout="mean", width=4, rng=1))
    frames, stream = video(4), Stream(model)
    for frame in frames[:3]:
        stream.push(frame)
    with monkeypatch.context() as patch:
        def fails(x):
            raise MemoryError
        patch.setattr(model.fc, "forward", fails)
        with pytest.raises(MemoryError):
            stream.push(frames[3])
    np.testing.assert_allclose(stream.push(frames[3]).numpy(), windows(model, frames)[3],
                               rtol=1e-9)


def test_nothing_is_recorded():
    class Recorded(tl.Observer):
        any = False

        def forward(self, node, output):
            self.any |= node.recording

    stream = Stream(recurrent_resnet(18, classes=3, context=1, width=4))
    with tl.observe(Recorded()) as seen:
        assert not stream.push(video(1, dtype=np.float32)[0]).requires_grad
    assert not seen.any


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 1), (1, 2, 32, 32, 3), (3, 32, 32)])
def test_what_is_no_frame_is_refused(shape):
    stream = Stream(recurrent_resnet(18, classes=3, context=2, width=4))
    with pytest.raises(ValueError, match=r"frame: expected \(H, W, 3\) or \(N, H, W, 3\), got"
                       ) as caught:
        stream.push(np.zeros(shape, np.float32))
    assert str(shape) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(64, 32, 3), (3, 32, 32, 3)])
def test_a_frame_unlike_those_before_is_refused_and_changes_nothing(shape):
    model = ready(recurrent_resnet(18, classes=3, context=2, width=4, rng=1))
    frames, stream = video(2, videos=1), Stream(model)
    stream.push(frames[0])
    with pytest.raises(ValueError, match=r"frame: got shape .* frames before .*\(1, 32, 32, 3\)"):
        stream.push(np.zeros(shape))
    np.testing.assert_allclose(stream.push(frames[1]).numpy(), windows(model, frames)[1],
                               rtol=1e-9)


def test_a_network_for_images_is_refused():
    with pytest.raises(TypeError, match="model: expected a network for chunks"):
        Stream(resnet18(3, width=4))
