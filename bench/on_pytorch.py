"""PyTorch's side of each row, in the layout and with what else the variant names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench import reference
from bench.rows import CLASSES, LOSS_SCALE, Row, Run, phases

Arrays = Iterator[tuple[str, np.ndarray]]

# Weights have their outputs last in tensorlite, first in PyTorch.
WEIGHTS = ("weight", "w_ih", "w_hh")


def about() -> str:
    return f"PyTorch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"


def build(row: Row, variant: str, threads: int, arrays: Arrays) -> Run:
    """What is to be timed on the CPU, as a function; it returns what the check compares."""
    torch.set_num_threads(threads)
    return make(row, variant, arrays, "cpu")


def make(row: Row, variant: str, arrays: Arrays, device: str) -> Run:
    """The same on a device; whether float32 products may be TF32 is for the caller to say."""
    return {"conv": conv, "norm_relu": norm_relu, "gru": gru, "network": network}[row.job](
        row, variant, arrays, device)


def to_numpy(name: str, value: torch.Tensor) -> np.ndarray:
    return np.asarray(in_our_order(name, value).cpu().numpy(), order="C")


def in_our_order(name: str, value: torch.Tensor) -> torch.Tensor:
    """A view with tensorlite's order of axes."""
    value = value.detach()
    if name.endswith(WEIGHTS):
        return value.permute(2, 3, 1, 0) if value.ndim == 4 else value.T
    return value.permute(0, 2, 3, 1) if value.ndim == 4 else value


def from_numpy(name: str, array: np.ndarray, variant: str = "", device: str = "cpu",
               dtype: str = "") -> torch.Tensor:
    """On a device, in PyTorch's order of axes and the memory format of `variant`."""
    given = torch.from_numpy(np.asarray(array))
    tensor = given.to(device, getattr(torch, dtype) if dtype else None)
    if name.endswith(WEIGHTS) and tensor.ndim == 2:
        return tensor.T.contiguous()
    if tensor.ndim == 4:
        tensor = tensor.permute(3, 2, 0, 1) if name.endswith(WEIGHTS) else tensor.permute(
            0, 3, 1, 2)
        return tensor.contiguous(memory_format=memory_format(variant))
    return tensor.clone() if tensor is given else tensor


def place(row: Row, variant: str, arrays: Arrays, device: str,
          names: tuple[str, ...] = ("x", "grad", "weight")) -> dict[str, torch.Tensor]:
    """A layer's arrays on a device; those of `names` in the dtype of the activations."""
    return {name: from_numpy(name, array, variant, device,
                             row.activations if name in names else row.dtype)
            for name, array in arrays}


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


def conv(row: Row, variant: str, arrays: Arrays, device: str) -> Run:
    given = place(row, variant, arrays, device)
    x, weight = given["x"], given["weight"].requires_grad_()
    leaves = {"x": x.requires_grad_()} if row.options["needs_dx"] else {}
    stride, padding = row.options["stride"], row.options["padding"]
    return layer(row, lambda: F.conv2d(x, weight, None, stride, padding),
                 {**leaves, "weight": weight}, given["grad"])


def norm_relu(row: Row, variant: str, arrays: Arrays, device: str) -> Run:
    given = place(row, variant, arrays, device)
    x = given["x"].requires_grad_()
    norm = torch.nn.BatchNorm2d(x.shape[1], dtype=given["gamma"].dtype, device=device)
    with torch.no_grad():
        norm.weight.copy_(given["gamma"])
        norm.bias.copy_(given["beta"])
    return layer(row, lambda: F.relu(norm(x), inplace=True),
                 {"x": x, "gamma": norm.weight, "beta": norm.bias}, given["grad"])


def gru(row: Row, variant: str, arrays: Arrays, device: str) -> Run:
    names = ("x", "grad", "w_ih", "w_hh", "b_ih", "b_hh")
    given = place(row, "", arrays, device, names)
    x = given["x"]
    net: Any = torch.nn.GRU(x.shape[2], given["w_hh"].shape[1], batch_first=True, dtype=x.dtype,
                            device=device)
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


def network(row: Row, variant: str, arrays: Arrays, device: str) -> Run:
    net = in_format(model(row).to(device), variant)
    state, given = named_state(net), {}
    for name, array in arrays:  # one by one: a second copy of the state would count as memory
        if name.startswith("state."):
            with torch.no_grad():
                state[name.removeprefix("state.")].copy_(from_numpy(name, array))
        elif name == "x" and array.ndim == 5:  # chunks: images in the layout of the variant
            x = from_numpy(name, array.reshape(-1, *array.shape[2:]), variant, device,
                           row.activations)
            given[name] = x.unflatten(0, array.shape[:2])
        elif name == "x":
            given[name] = from_numpy(name, array, variant, device, row.activations)
        else:
            given[name] = from_numpy(name, array, variant, device)
    x, labels = given["x"], given["labels"]
    if row.phase == "infer":
        return inference(net, variant, x)
    return training(net, variant, x, labels)


def mixed(variant: str, device: str) -> torch.autocast:
    """Autocast to 16 bits, if the variant asks for it."""
    return torch.autocast(device, torch.float16, enabled="autocast" in variant)


def inference(net: Any, variant: str, x: torch.Tensor) -> Run:
    net.eval()
    if "half" in variant:
        net = net.half()
    if "fused" in variant:
        from torch.fx.experimental.optimization import fuse

        net = in_format(fuse(net), variant)
    elif "frozen" in variant:
        with torch.inference_mode():
            net = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(net, x)))
    if "compiled" in variant:
        net = torch.compile(net)

    def run() -> dict[str, Any]:
        with torch.inference_mode(), mixed(variant, x.device.type):
            return {"logits": net(x)}

    return run


def training(net: torch.nn.Module, variant: str, x: torch.Tensor, labels: torch.Tensor) -> Run:
    # The fused step is PyTorch's fastest on the CPU, and on a GPU it needs no word from the card.
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    state = named_state(net)
    forward: Any = torch.compile(net) if "compiled" in variant else net
    scaler = torch.amp.GradScaler(x.device.type, init_scale=LOSS_SCALE,
                                  enabled="autocast" in variant)

    def run() -> dict[str, Any]:
        optimizer.zero_grad()
        with mixed(variant, x.device.type):
            logits = forward(x)
            loss = F.cross_entropy(logits, labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        gradients = {f"grad.{name}": tensor.grad for name, tensor in state.items()
                     if tensor.grad is not None}
        buffers = {name: tensor for name, tensor in state.items() if not tensor.requires_grad}
        return {"logits": logits, "loss": loss, **buffers, **gradients}

    return run
