"""Our side of each row, through the public interface of tensorlite and recres."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

import tensorlite as tl
from bench.rows import CLASSES, LOSS_SCALE, Row, Run, phases
from recres.models import RecurrentResNet, ResNet
from tensorlite.device import Array, to_device

Arrays = Iterator[tuple[str, np.ndarray]]


def about() -> str:
    """The library, and the BLAS that it finds under it."""
    blas = {f"{info['internal_api']} {info['version']} ({info.get('architecture', '?')})"
            for info in threadpool_info() if info["user_api"] == "blas"}
    return f"tensorlite {tl.__version__}, NumPy {np.__version__} on {', '.join(sorted(blas))}"


def build(row: Row, variant: str, threads: int, arrays: Arrays) -> Run:
    """What is to be timed on the CPU, as a function; it returns what the check compares."""
    tl.set_num_threads(threads)
    return make(row, arrays, "cpu")


def make(row: Row, arrays: Arrays, device: str) -> Run:
    """The same on a device; products are formed as `tensorlite.precision.using` says around it."""
    return {"conv": conv, "norm_relu": norm_relu, "gru": gru, "network": network}[row.job](
        row, arrays, device)


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
          grad: Array) -> Run:
    """A layer's forward, its backward alone, or both; `inputs` are the leaves with a gradient."""
    def gradients(y: tl.Tensor, retain_graph: bool) -> dict[str, Any]:
        for tensor in inputs.values():
            tensor.zero_grad()
        y.backward(grad, retain_graph=retain_graph)
        return {f"grad.{name}": tensor.grad for name, tensor in inputs.items()}

    return phases(row, forward, gradients)


def place(row: Row, arrays: Arrays, device: str) -> dict[str, Array]:
    """A layer's arrays on a device, in the dtypes of the row."""
    return {name: to_device(array.astype(row.activations if name in ("x", "grad") else row.dtype,
                                         copy=False), device)
            for name, array in arrays}


def conv(row: Row, arrays: Arrays, device: str) -> Run:
    given = place(row, arrays, device)
    x = tl.Tensor(given["x"], requires_grad=row.options["needs_dx"])
    weight = tl.Tensor(given["weight"], requires_grad=True)
    stride, padding = row.options["stride"], row.options["padding"]
    leaves = {"x": x, "weight": weight} if x.requires_grad else {"weight": weight}
    return layer(row, lambda: tl.conv2d(x, weight, stride=stride, padding=padding), leaves,
                 given["grad"])


def norm_relu(row: Row, arrays: Arrays, device: str) -> Run:
    given = dict(arrays)
    norm = tl.nn.BatchNorm2d(given["x"].shape[-1]).to(dtype=row.dtype)
    norm.load_state_dict({name: given.pop(name) for name in ("gamma", "beta")}, strict=False)
    norm.to(device)
    given = place(row, iter(given.items()), device)
    x = tl.Tensor(given["x"], requires_grad=True)
    return layer(row, lambda: tl.relu(norm(x)), {"x": x, "gamma": norm.gamma, "beta": norm.beta},
                 given["grad"])


def gru(row: Row, arrays: Arrays, device: str) -> Run:
    given = dict(arrays)
    net = tl.nn.GRU(given["x"].shape[2], given["w_hh"].shape[0]).to(dtype=row.dtype)
    net.load_state_dict({name: given.pop(name) for name, _ in net.named_parameters()})
    net.to(device)
    given = place(row, iter(given.items()), device)
    x = tl.Tensor(given["x"])
    return layer(row, lambda: net(x), dict(net.named_parameters()), given["grad"])


def network(row: Row, arrays: Arrays, device: str) -> Run:
    net = model(row).to(dtype=row.dtype)
    given = {}
    for name, array in arrays:  # one by one: a second copy of the state would count as memory
        if name.startswith("state."):
            net.load_state_dict({name.removeprefix("state."): array}, strict=False)
        else:
            given[name] = array
    net.to(device)
    x = tl.Tensor(given["x"].astype(row.activations, copy=False), device=device)
    if row.phase == "infer":
        return inference(net, x)
    return training(row, net, x, to_device(given["labels"], device))


def inference(net: ResNet, x: tl.Tensor) -> Run:
    """How we infer, in plain and folded rows alike: as users are told to for many inferences."""
    net.fold()

    def run() -> dict[str, Any]:
        with tl.no_grad():
            return {"logits": net(x)}

    return run


def training(row: Row, net: ResNet, x: tl.Tensor, labels: Array) -> Run:
    """Adam's step; with float16 also what finds and skips an overflow, as users are told to."""
    optimizer = tl.optim.Adam(net.named_parameters())
    scaler = tl.optim.LossScaler(LOSS_SCALE) if row.precision == "float16" else None
    parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())

    def run() -> dict[str, Any]:
        optimizer.zero_grad()
        logits = net(x)
        loss = tl.cross_entropy(logits, labels)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.backward(loss)
            optimizer.guarded_step(scaler=scaler)
        return {"logits": logits, "loss": loss, **buffers,
                **{f"grad.{name}": parameter.grad for name, parameter in parameters.items()}}

    return run
