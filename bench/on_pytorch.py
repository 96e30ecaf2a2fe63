"""PyTorch's side of each row, in the layout and with the folding that the variant names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench import reference
from bench.rows import CLASSES, Row, Run, phases

Arrays = Iterator[tuple[str, np.ndarray]]

# Weights have their outputs last in tensorlite, first in PyTorch.
WEIGHTS = ("weight", "w_ih", "w_hh")


def about() -> str:
    return f"PyTorch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"


def build(row: Row, variant: str, threads: int, arrays: Arrays) -> Run:
    """What is to be timed, as a function; it returns what the check compares."""
    torch.set_num_threads(threads)
    return {"conv": conv, "norm_relu": norm_relu, "gru": gru, "network": network}[row.job](
        row, variant, arrays)


def to_numpy(name: str, value: torch.Tensor) -> np.ndarray:
    value = value.detach()
    if name.endswith(WEIGHTS):
        value = value.permute(2, 3, 1, 0) if value.ndim == 4 else value.T
    elif value.ndim == 4:
        value = value.permute(0, 2, 3, 1)
    return np.asarray(value.numpy(), order="C")


def from_numpy(name: str, array: np.ndarray, variant: str = "") -> torch.Tensor:
    """In PyTorch's order of axes and the memory format of `variant`."""
    tensor = torch.from_numpy(np.asarray(array))
    if name.endswith(WEIGHTS) and tensor.ndim == 2:
        return tensor.T.contiguous()
    if tensor.ndim == 4:
        tensor = tensor.permute(3, 2, 0, 1) if name.endswith(WEIGHTS) else tensor.permute(
            0, 3, 1, 2)
        return tensor.contiguous(memory_format=memory_format(variant))
    return tensor.clone()


def memory_format(variant: str) -> torch.memory_format:
    return (torch.channels_last if variant.startswith("channels_last")
            else torch.contiguous_format)


def in_format(net: torch.nn.Module, variant: str) -> torch.nn.Module:
    """`net` itself, its weights in the memory format of `variant`."""
    return net.to(memory_format=memory_format(variant))  # type: ignore[call-overload]


def layer(row: Row, forward: Callable[[], torch.Tensor], inputs: dict[str, torch.Tensor],
          grad: torch.Tensor) -> Run:
    """A layer's forward, its backward alone, or both; `inputs` are the leaves with a gradient."""
    leaves, names = tuple(inputs.values()), [f"grad.{name}" for name in inputs]

    def gradients(y: torch.Tensor, retain_graph: bool) -> dict[str, Any]:
        return dict(zip(names, torch.autograd.grad(y, leaves, grad, retain_graph=retain_graph),
                        strict=True))

    return phases(row, forward, gradients)


def conv(row: Row, variant: str, arrays: Arrays) -> Run:
    given = {name: from_numpy(name, array, variant) for name, array in arrays}
    x, weight = given["x"], given["weight"].requires_grad_()
    leaves = {"x": x.requires_grad_()} if row.options["needs_dx"] else {}
    stride, padding = row.options["stride"], row.options["padding"]
    return layer(row, lambda: F.conv2d(x, weight, None, stride, padding),
                 {**leaves, "weight": weight}, given["grad"])


def norm_relu(row: Row, variant: str, arrays: Arrays) -> Run:
    given = {name: from_numpy(name, array, variant) for name, array in arrays}
    x = given["x"].requires_grad_()
    norm = torch.nn.BatchNorm2d(x.shape[1], dtype=x.dtype)
    with torch.no_grad():
        norm.weight.copy_(given["gamma"])
        norm.bias.copy_(given["beta"])
    return layer(row, lambda: F.relu(norm(x), inplace=True),
                 {"x": x, "gamma": norm.weight, "beta": norm.bias}, given["grad"])


def gru(row: Row, variant: str, arrays: Arrays) -> Run:
    given = {name: from_numpy(name, array) for name, array in arrays}
    x = given["x"]
    net: Any = torch.nn.GRU(x.shape[2], given["w_hh"].shape[1], batch_first=True, dtype=x.dtype)
    parameters = {"w_ih": net.weight_ih_l0, "w_hh": net.weight_hh_l0, "b_ih": net.bias_ih_l0,
                  "b_hh": net.bias_hh_l0}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(given[name])
    return layer(row, lambda: net(x)[0], parameters, given["grad"])


def model(row: Row) -> reference.ResNet:
    """The network of a row, freshly drawn."""
    depth, context, width = (row.options[name] for name in ("depth", "context", "width"))
    net = (reference.RecurrentResNet(depth, CLASSES, context, width) if context
           else reference.ResNet(depth, CLASSES, width))
    return net.to(getattr(torch, row.dtype))


def named_state(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by tensorlite's names, in which gamma and beta are a norm's."""
    leaves = {"weight": "gamma", "bias": "beta"}
    named = {}
    for path, module in net.named_modules():
        is_norm = isinstance(module, torch.nn.BatchNorm2d)
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is not None and name != "num_batches_tracked":
                named[f"{path}.{leaves.get(name, name) if is_norm else name}"] = tensor
    return named


def network(row: Row, variant: str, arrays: Arrays) -> Run:
    net = in_format(model(row), variant)
    state, given = named_state(net), {}
    for name, array in arrays:  # one by one: a second copy of the state would count as memory
        if name.startswith("state."):
            with torch.no_grad():
                state[name.removeprefix("state.")].copy_(from_numpy(name, array))
        elif name == "x" and array.ndim == 5:  # chunks: images in the layout of the variant
            x = from_numpy(name, array.reshape(-1, *array.shape[2:]), variant)
            given[name] = x.unflatten(0, array.shape[:2])
        else:
            given[name] = from_numpy(name, array, variant)
    x, labels = given["x"], given["labels"]
    return inference(net, variant, x) if row.phase == "infer" else training(net, x, labels)


def inference(net: torch.nn.Module, variant: str, x: torch.Tensor) -> Run:
    net.eval()
    if variant.endswith("_fused"):
        from torch.fx.experimental.optimization import fuse

        net = in_format(fuse(net), variant)
    elif variant.endswith("_frozen"):
        with torch.inference_mode():
            net = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(net, x)))

    def run() -> dict[str, Any]:
        with torch.inference_mode():
            return {"logits": net(x)}

    return run


def training(net: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Run:
    # The fused step is PyTorch's fastest on the CPU.
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    state = named_state(net)

    def run() -> dict[str, Any]:
        optimizer.zero_grad()
        logits = net(x)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        gradients = {f"grad.{name}": tensor.grad for name, tensor in state.items()
                     if tensor.grad is not None}
        buffers = {name: tensor for name, tensor in state.items() if not tensor.requires_grad}
        return {"logits": logits, "loss": loss, **buffers, **gradients}

    return run
