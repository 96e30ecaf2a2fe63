"""Which frames a tensor holds, followed through the ops of a program.

The labels of a tensor are an array of the shape of its first axes (as many as it takes): the frame
of each part, -1 for none. Marked at a program's inputs, they go through ops that keep the first
axes as they are, and through those that move elements about as the elements do. Where an op's
inputs are of different frames its output is of the latest: what comes from an earlier one has
skipped through time.
"""

from __future__ import annotations

import math

import numpy as np

from tensorlite.autograd import Node
from tensorlite.tensor import Tensor

Labels = np.ndarray


def along_axis(shape: tuple[int, ...], axis: int) -> Labels:
    """The labels of a tensor of `shape` whose `axis` is time."""
    return np.broadcast_to(np.arange(shape[axis]), shape[: axis + 1])


def held(labels: Labels | None) -> list[int] | None:
    """The frames among `labels`, in order; None if there are none."""
    found = [] if labels is None else [int(t) for t in np.unique(labels) if t >= 0]
    return found or None


def follow(node: Node, output: Tensor, labels: list[Labels | None]
           ) -> tuple[Labels | None, list[int]]:
    """The labels of an op's output, given those of its inputs; and for each input by how many
    frames it comes earlier than the output."""
    shifts = [0] * len(labels)
    if all(label is None for label in labels):
        return None, shifts
    special = _MOVING.get(node.name)
    if special is not None:
        return special(node, output, labels), shifts
    if "temporal skip" in node.function.roles:
        shifts = [int(role == "temporal skip") for role in node.function.roles][: len(labels)]
        labels = [None if shift else label for label, shift in zip(labels, shifts, strict=True)]
    # An input of fewer axes is lined up with the last ones of the output, not the first.
    fits = [label is not None and tensor is not None and output.shape[: label.ndim] == label.shape
            and (tensor.ndim >= output.ndim or not label.ndim)
            for label, tensor in zip(labels, node.inputs, strict=True)]
    fitting = [label for label, fit in zip(labels, fits, strict=True) if fit and label is not None]
    if not fitting:
        return _common(labels), shifts
    axes = max(label.ndim for label in fitting)
    latest = np.maximum.reduce([_spread(label, output.shape[:axes]) for label in fitting])
    for slot, label in enumerate(labels):
        if label is not None and fits[slot]:
            behind = np.unique(latest - _spread(label, output.shape[:axes]))
            shifts[slot] = int(behind[0]) if behind.size == 1 else 0
    return latest, shifts


def _spread(labels: Labels, shape: tuple[int, ...]) -> Labels:
    """`labels` of the first axes repeated over further ones, to `shape`."""
    return np.broadcast_to(labels.reshape(labels.shape + (1,) * (len(shape) - labels.ndim)), shape)


def _common(labels: list[Labels | None]) -> Labels | None:
    """The one frame that all of `labels` are of, as the label of a whole tensor."""
    values = np.unique(np.concatenate([label.reshape(-1) for label in labels
                                       if label is not None]))
    return np.asarray(values[0]) if values.size == 1 and values[0] >= 0 else None


def _input_shape(node: Node) -> tuple[int, ...]:
    tensor = node.inputs[0]
    assert tensor is not None
    return tensor.shape


def _reshape(node: Node, output: Tensor, labels: list[Labels | None]) -> Labels | None:
    label = labels[0]
    assert label is not None
    for axes in range(output.ndim + 1):
        if math.prod(output.shape[:axes]) == label.size:
            return label.reshape(output.shape[:axes])
    before = _input_shape(node)  # labels of more axes fit where those of fewer do not
    for axes in range(label.ndim + 1, len(before) + 1):
        wider = _spread(label, before[:axes])
        for after in range(output.ndim + 1):
            if math.prod(output.shape[:after]) == wider.size:
                return wider.reshape(output.shape[:after])
    return _common(labels)


def _index(node: Node, output: Tensor, labels: list[Labels | None]) -> Labels | None:
    label = labels[0]
    assert label is not None
    key = node.options["key"]
    keys = key if isinstance(key, tuple) else (key,)
    plain = all(isinstance(k, int | slice) for k in keys)
    shape = _input_shape(node)
    axes = max(label.ndim, len(keys)) if plain else len(shape)
    return _leading(_spread(label, shape[:axes])[key])  # picked as the elements are


def _leading(labels: Labels) -> Labels:
    """`labels` less the last axes along which they do not change."""
    while labels.ndim and labels.size and (labels == labels[..., :1]).all():
        labels = labels[..., 0]
    return labels


def _transpose(node: Node, output: Tensor, labels: list[Labels | None]) -> Labels | None:
    label = labels[0]
    assert label is not None
    order = node.options["axes"]
    axes = next(n for n in range(label.ndim, len(order) + 1) if set(order[:n]) == set(range(n)))
    return _leading(_spread(label, _input_shape(node)[:axes]).transpose(order[:axes]))


def _concatenate(node: Node, output: Tensor, labels: list[Labels | None]) -> Labels | None:
    axis = node.options["axis"]
    axes = max(axis + 1, *(label.ndim for label in labels if label is not None))
    parts = [_spread(np.asarray(-1) if label is None else label, tensor.shape[:axes])
             for tensor, label in zip(node.inputs, labels, strict=True) if tensor is not None]
    return np.concatenate(parts, axis=axis)


def _reduce(node: Node, output: Tensor, labels: list[Labels | None]) -> Labels | None:
    label = labels[0]
    assert label is not None
    axes = [a for a in node.options["axes"] if a < label.ndim]
    first = label[tuple(slice(0, 1) if a in axes else slice(None) for a in range(label.ndim))]
    if label.size and (label == first).all():
        kept = first if node.options["keepdims"] else first.squeeze(tuple(axes))
        return kept
    return None


_MOVING = {"reshape": _reshape, "index": _index, "transpose": _transpose,
           "concatenate": _concatenate, "sum": _reduce, "mean": _reduce, "max": _reduce}
