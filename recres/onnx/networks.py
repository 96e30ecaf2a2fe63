"""The networks of `recres.models` as ONNX graphs, in the form for inference.

A graph says what `forward` and `Stream.push` say, with every batch norm in the convolution before
it. ONNX wants channels first: frames come as the network here takes them, (…, H, W, C), and are
transposed once.

Frames of a chunk, or versions of a frame, are folded into the first axis, as in the models.

In the form for streams, what `Stream` keeps from frame to frame goes out and comes in again as a
state, of zeros when a video begins. Where `Stream` has nothing to add yet, zeros are added, and
what would come of them is never part of a complete window (`streaming.py` says why): the first
T - 1 logits of a video mean nothing, and are to be passed over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from recres.models import VideoResNet
from recres.models.resnet import Bottleneck, ResidualBlock
from recres.onnx.graph import Graph
from tensorlite import nn
from tensorlite.io import to_oihw

STATE, NEXT = "state.", "next."  # how the names of states begin, coming in and going out


class Maps(NamedTuple):
    """Feature maps (batch · frames, C, H, W) in a graph; shape: (C, H, W)."""

    name: str
    frames: int
    shape: tuple[int, int, int]


def chunk_model(model: VideoResNet, image_size: int, about: Mapping[str, str] | None = None,
                opset: int | None = None) -> Any:
    """`model` as an `onnx.ModelProto`: chunks "input" (batch, T, H, W, C) → "logits".

    image_size: H and W. about: more metadata. InputError without ONNX, or for an opset that it has
    not.
    """
    writer = _Writer(model, opset)
    return writer.finish("chunk", writer.chunks(image_size), image_size, about or {})


def stream_model(model: VideoResNet, image_size: int, about: Mapping[str, str] | None = None,
                 opset: int | None = None) -> Any:
    """`model` as an `onnx.ModelProto` for streams: a frame "input" (batch, H, W, C) and states
    "state.NAME" → "logits" of the window that the frame completes, and states "next.NAME".

    Arguments and errors as of `chunk_model`.
    """
    writer = _Writer(model, opset)
    return writer.finish("stream", writer.stream(image_size), image_size, about or {})


class _Writer:
    """Writes one network's graph."""

    def __init__(self, model: VideoResNet, opset: int | None) -> None:
        self.model, self.graph = model, Graph(opset)
        self.modules = dict(model.named_modules())
        self.arrays = {name: np.asarray(array, np.float64)
                       for name, array in model.state_dict().items()}
        self.recurrent: Sequence[str] = getattr(model, "recurrent", ())
        self.skip = getattr(model, "skip", "none")
        self.last = getattr(model, "readout", "mean") == "last"
        self.states: list[str] = []  # by name, in the order in which they come in
        self._next: dict[str, tuple[str, list[int]]] = {}  # what they become, and its shape

    def finish(self, form: str, logits: str, image_size: int, about: Mapping[str, str]) -> Any:
        """The model, its logits being an output."""
        model = self.model
        self.graph.output("logits", logits, [model.classes])
        for name in self.states:  # after the logits
            value, shape = self._next[name]
            self.graph.output(NEXT + name, value, shape)
        frames = [model.context] if form == "chunk" else []
        expected = ["batch", *frames, image_size, image_size, model.channels]
        return self.graph.model(type(model).__name__, {
            "form": form, "context": str(model.context), "input_shape": json.dumps(expected),
            "states": json.dumps(self.states), **about})

    def chunks(self, size: int) -> str:
        """Logits of chunks."""
        model, graph = self.model, self.graph
        frames, channels = model.context, model.channels
        x = graph.input("input", [frames, size, size, channels])
        if self.last and not self.recurrent:
            x, frames = graph.slice("input", x, frames - 1, frames), 1
        x = graph.node("Transpose", "input", x, perm=[0, 1, 4, 2, 3])
        y = self.stem(self.fold("input", x, frames, (channels, size, size)))
        for name, block in model.residual_blocks():
            y = self.chunk_block(name, y) if name in self.recurrent else self.block(name, block, y)
        features = self.pool(y)
        if y.frames > 1:
            features = graph.node("ReduceMean", "pool", features, graph.integers(1))
        return self.classify(graph.reshape("pool", features, y.shape[0]))

    def stream(self, size: int) -> str:
        """Logits of the window that a frame completes."""
        model, graph, more = self.model, self.graph, self.model.context - 1
        x = graph.input("input", [size, size, model.channels])
        x = graph.node("Transpose", "input", x, perm=[0, 3, 1, 2])
        y = self.stem(Maps(x, 1, (model.channels, size, size)))
        for name, block in model.residual_blocks():
            y = self.stream_block(name, y) if name in self.recurrent else self.block(name, block, y)
        pooled = self.pool(y)
        if not self.last and more:
            # Each window under way gets the version of the frame that it has come to.
            mine = graph.gather("pool", pooled, [min(i, y.frames - 1) for i in range(more + 1)])
            sums = graph.node("Add", "pool", mine,
                              graph.zero_first("pool", self.state("sums", [more, y.shape[0]]), 3))
            self.keep("sums", graph.slice("pool", sums, 0, more), [more, y.shape[0]])
            share = graph.constant("pool.share", np.array(1 / (more + 1), np.float32))
            pooled = graph.node("Mul", "pool", graph.slice("pool", sums, more, more + 1), share)
        return self.classify(graph.reshape("pool", pooled, y.shape[0]))

    # What both forms are made of.

    def stem(self, x: Maps) -> Maps:
        y = self.conv_norm(x, "conv1", "norm1", relu=True)
        height, width = ((n + 2 - 3) // 2 + 1 for n in y.shape[1:])
        name = self.graph.node("MaxPool", "stem", y.name, kernel_shape=[3, 3], strides=[2, 2],
                               pads=[1, 1, 1, 1])
        return Maps(name, y.frames, (y.shape[0], height, width))

    def block(self, name: str, block: ResidualBlock, x: Maps) -> Maps:
        """A residual block without a temporal skip."""
        return self.join(name, self.residual(name, x), self.shortcut(name, x))

    def residual(self, name: str, x: Maps) -> Maps:
        last = 3 if isinstance(self.modules[name], Bottleneck) else 2
        for i in range(1, last + 1):
            x = self.conv_norm(x, f"{name}.conv{i}", f"{name}.norm{i}", relu=i < last)
        return x

    def shortcut(self, name: str, x: Maps) -> Maps:
        if f"{name}.shortcut" not in self.modules:
            return x
        return self.conv_norm(x, f"{name}.shortcut.conv", f"{name}.shortcut.norm")

    def temporal(self, name: str, x: Maps) -> Maps:
        """S(x) of a convolutional skip."""
        norm = f"{name}.temporal.norm"
        return self.conv_norm(x, f"{name}.temporal.conv", norm if norm in self.modules else None,
                              relu=self.skip == "conv_nonlinear")

    def conv_norm(self, x: Maps, conv: str, norm: str | None, relu: bool = False) -> Maps:
        """A convolution with its norm: norm(x ∗ W) = x ∗ (W · scale) + beta - mean · scale."""
        layer, weight = self.modules[conv], self.arrays[f"{conv}.weight"]
        assert isinstance(layer, nn.Conv2d)
        inputs = [x.name]
        bias = None
        if norm is not None:
            layer_norm = self.modules[norm]
            assert isinstance(layer_norm, nn.BatchNorm2d)
            gamma, beta, mean, var = (self.arrays[f"{norm}.{part}"] for part in
                                      ("gamma", "beta", "running_mean", "running_var"))
            scale = gamma / np.sqrt(var + layer_norm.eps)
            weight, bias = weight * scale, beta - mean * scale
        inputs.append(self.graph.constant(f"{conv}.weight", to_oihw(weight).astype(np.float32)))
        if bias is not None:
            inputs.append(self.graph.constant(f"{conv}.bias", bias.astype(np.float32)))
        name = self.graph.node("Conv", conv, *inputs, kernel_shape=list(layer.kernel),
                               strides=list(layer.stride), pads=list(layer.padding) * 2)
        if relu:
            name = self.graph.node("Relu", conv, name)
        height, width = ((n + 2 * pad - kernel) // stride + 1 for n, pad, kernel, stride in
                         zip(x.shape[1:], layer.padding, layer.kernel, layer.stride, strict=True))
        return Maps(name, x.frames, (layer.cout, height, width))

    def join(self, name: str, first: Maps, *others: Maps) -> Maps:
        """relu of the sum."""
        total = first.name
        for other in others:
            total = self.graph.node("Add", name, total, other.name)
        return first._replace(name=self.graph.node("Relu", name, total))

    def pool(self, x: Maps) -> str:
        """(batch, frames, C): the mean over each map."""
        name = self.graph.node("GlobalAveragePool", "pool", x.name)
        return self.graph.reshape("pool", name, x.frames, x.shape[0])

    def classify(self, features: str) -> str:
        """Logits of pooled features (batch, C)."""
        weight, bias = (self.graph.constant(name, self.arrays[name].astype(np.float32))
                        for name in ("fc.weight", "fc.bias"))
        return self.graph.node("Gemm", "fc", features, weight, bias)

    def unfold(self, name: str, x: Maps) -> str:
        """(batch, frames, C, H, W)."""
        return self.graph.reshape(name, x.name, x.frames, *x.shape)

    def fold(self, name: str, unfolded: str, frames: int, shape: tuple[int, int, int]) -> Maps:
        """The opposite."""
        return Maps(self.graph.reshape(name, unfolded, *shape), frames, shape)

    def some(self, name: str, x: Maps, start: int, stop: int) -> Maps:
        """Frames from `start` to before `stop` of each chunk."""
        part = self.graph.slice(name, self.unfold(name, x), start, stop)
        return self.fold(name, part, stop - start, x.shape)

    # Blocks with a temporal skip, for chunks: as in `models/temporal.py`.

    def chunk_block(self, name: str, x: Maps) -> Maps:
        if self.skip == "pure_temporal":
            return self.pure_chunk_block(name, x)
        end = x.frames
        now = self.some(name, x, 1, end) if self.last else x
        if self.skip == "identity":
            whole = self.shortcut(name, x)
            spatial = self.some(name, whole, 1, end) if self.last else whole
            before = self.some(name, whole, 0, end - 1)
        else:
            spatial = self.shortcut(name, now)
            before = self.temporal(name, self.some(name, x, 0, end - 1))
        if not self.last:
            padded = self.graph.zero_first(name, self.unfold(name, before), 5)
            before = self.fold(name, padded, end, before.shape)
        return self.join(name, self.residual(name, now), spatial, before)

    def pure_chunk_block(self, name: str, x: Maps) -> Maps:
        """y_t = relu(F(x_t) + shortcut(x_t) + y_{t-1}), frame by frame."""
        graph, residual, shortcut = self.graph, self.residual(name, x), self.shortcut(name, x)
        total = graph.node("Add", name, residual.name, shortcut.name)
        unfolded = graph.reshape(name, total, x.frames, *residual.shape)
        outputs: list[str] = []
        for t in range(x.frames):
            y = graph.slice(name, unfolded, t, t + 1)
            if outputs:
                y = graph.node("Add", name, y, outputs[-1])
            outputs.append(graph.node("Relu", name, y))
        if self.last:
            return self.fold(name, outputs[-1], 1, residual.shape)
        together = graph.node("Concat", name, *outputs, axis=1)
        return self.fold(name, together, x.frames, residual.shape)

    # Blocks with a temporal skip, for streams: as in `models/streaming.py`.

    def stream_block(self, name: str, x: Maps) -> Maps:
        """All versions of a frame, that of the youngest window first."""
        graph, residual, shortcut = self.graph, self.residual(name, x), self.shortcut(name, x)
        shape = residual.shape
        total = graph.node("Add", name, residual.name, shortcut.name)
        unfolded = graph.reshape(name, total, x.frames, *shape)
        if self.skip == "pure_temporal":
            more = self.model.context - 1
            before = graph.zero_first(name, self.state(name, [more, *shape]), 5)
            versions = graph.node("Relu", name, graph.node("Add", name, unfolded, before))
            self.keep(name, graph.slice(name, versions, 0, more), [more, *shape])
            if not self.last:
                return self.fold(name, versions, more + 1, shape)
            return self.fold(name, graph.slice(name, versions, more, more + 1), 1, shape)
        passed_on = shortcut if self.skip == "identity" else self.temporal(name, x)
        before = self.state(name, [x.frames, *shape])
        self.keep(name, self.unfold(name, passed_on), [x.frames, *shape])
        count = x.frames
        if not self.last:  # one more version: a window's first frame, which has none before it
            unfolded = graph.gather(name, unfolded, [*range(count), count - 1])
            before, count = graph.zero_first(name, before, 5), count + 1
        versions = graph.node("Relu", name, graph.node("Add", name, unfolded, before))
        return self.fold(name, versions, count, shape)

    def state(self, name: str, shape: Sequence[int]) -> str:
        """What was kept of the frame before."""
        self.states.append(name)
        return self.graph.input(STATE + name, shape)

    def keep(self, name: str, value: str, shape: Sequence[int]) -> None:
        """Keep `value` for the next frame."""
        self._next[name] = value, list(shape)
