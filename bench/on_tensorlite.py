"""Our side of each row, through the public interface of tensorlite and recres."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

import tensorlite as tl
from bench.rows import CLASSES, Row, Run, phases
from recres.models import RecurrentResNet, ResNet


def about() -> str:
    """The library, and the BLAS that it finds under it."""
    blas = {f"{info['internal_api']} {info['version']} ({info.get('architecture', '?')})"
            for info in threadpool_info() if info["user_api"] == "blas"}
    return f"tensorlite {tl.__version__}, NumPy {np.__version__} on {', '.join(sorted(blas))}"


def build(row: Row, variant: str, threads: int, arrays: Iterator[tuple[str, np.ndarray]]) -> Run:
    """What is to be timed, as a function; it returns what the check compares."""
    tl.set_num_threads(threads)
    return {"conv": conv, "norm_relu": norm_relu, "gru": gru, "network": network}[row.job](
        row, arrays)


def to_numpy(name: str, value: Any) -> np.ndarray:
    return value.numpy() if isinstance(value, tl.Tensor) else np.asarray(value)


def model(row: Row) -> ResNet:
    """The network of a row, freshly drawn."""
    context = row.options["context"]
    options = {"version": "v1.5", "width": row.options["width"], "rng": 0}
    if not context:
        return ResNet(row.options["depth"], CLASSES, **options)
    return RecurrentResNet(row.options["depth"], CLASSES, skip="identity", position="block4",
                           context=context, readout="last", **options)


def layer(row: Row, forward: Callable[[], tl.Tensor], inputs: dict[str, tl.Tensor],
          grad: np.ndarray) -> Run:
    """A layer's forward, its backward alone, or both; `inputs` are the leaves with a gradient."""
    def gradients(y: tl.Tensor, retain_graph: bool) -> dict[str, Any]:
        for tensor in inputs.values():
            tensor.zero_grad()
        y.backward(grad, retain_graph=retain_graph)
        return {f"grad.{name}": tensor.grad for name, tensor in inputs.items()}

    return phases(row, forward, gradients)


def conv(row: Row, arrays: Iterator[tuple[str, np.ndarray]]) -> Run:
    given = dict(arrays)
    x = tl.Tensor(given["x"], requires_grad=row.options["needs_dx"])
    weight = tl.Tensor(given["weight"], requires_grad=True)
    stride, padding = row.options["stride"], row.options["padding"]
    leaves = {"x": x, "weight": weight} if x.requires_grad else {"weight": weight}
    return layer(row, lambda: tl.conv2d(x, weight, stride=stride, padding=padding), leaves,
                 given["grad"])


def norm_relu(row: Row, arrays: Iterator[tuple[str, np.ndarray]]) -> Run:
    given = dict(arrays)
    x = tl.Tensor(given["x"], requires_grad=True)
    norm = tl.nn.BatchNorm2d(x.shape[-1]).to(dtype=x.dtype)
    norm.load_state_dict({name: given[name] for name in ("gamma", "beta")}, strict=False)
    return layer(row, lambda: tl.relu(norm(x)), {"x": x, "gamma": norm.gamma, "beta": norm.beta},
                 given["grad"])


def gru(row: Row, arrays: Iterator[tuple[str, np.ndarray]]) -> Run:
    given = dict(arrays)
    x = tl.Tensor(given["x"])
    net = tl.nn.GRU(x.shape[2], given["w_hh"].shape[0]).to(dtype=x.dtype)
    net.load_state_dict({name: given[name] for name, _ in net.named_parameters()})
    return layer(row, lambda: net(x), dict(net.named_parameters()), given["grad"])


def network(row: Row, arrays: Iterator[tuple[str, np.ndarray]]) -> Run:
    net = model(row).to(dtype=row.dtype)
    given = {}
    for name, array in arrays:  # one by one: a second copy of the state would count as memory
        if name.startswith("state."):
            net.load_state_dict({name.removeprefix("state."): array}, strict=False)
        else:
            given[name] = array
    x, labels = tl.Tensor(given["x"]), given["labels"]
    return inference(net, x) if row.phase == "infer" else training(net, x, labels)


def inference(net: ResNet, x: tl.Tensor) -> Run:
    """How we infer, in plain and folded rows alike: as users are told to for many inferences."""
    net.fold()

    def run() -> dict[str, Any]:
        with tl.no_grad():
            return {"logits": net(x)}

    return run


def training(net: ResNet, x: tl.Tensor, labels: np.ndarray) -> Run:
    optimizer = tl.optim.Adam(net.named_parameters())
    parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())

    def run() -> dict[str, Any]:
        optimizer.zero_grad()
        logits = net(x)
        loss = tl.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        return {"logits": logits, "loss": loss, **buffers,
                **{f"grad.{name}": parameter.grad for name, parameter in parameters.items()}}

    return run
