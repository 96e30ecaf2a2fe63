"""Every number that a page shows comes from the run: all of them computed again, and compared.

A small recurrent residual network over 2 chunks of 2 frames is recorded, with differences and
ledger. `Reference` computes the same in plain NumPy and float64, forward and backward written out
by hand, without the engine; `Expected` makes of it the JSON that the tape should be, `Near` and its
kin saying how far rounding may take a number; and `differences` walks both side by side: a number
that only one of them has is a difference, so none is left out.
"""

from __future__ import annotations

import base64
import copy
import json
import math
import os
import platform
import re
from pathlib import Path

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor, nn, trace

# What rounding may change, relative to the largest element of an array; and what central
# differences may differ by from the derivative, relative to its largest element.
ROUNDING = {"float32": 1e-5, "float64": 1e-12}
NUMERIC = {"float32": 2e-5, "float64": 1e-7}
LABELS = np.array([0, 2])
SEED = 3  # of the weights: none that puts a relu or a maximum on the edge (`Reference.margin`)


class Program(nn.Module):
    def __init__(self) -> None:
        self.conv1 = nn.Conv2d(3, 6, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        images = x.reshape(4, 32, 32, 3)
        r = self.norm(tl.max_pool2d(self.conv1(images), 2)).relu()
        y = tl.block_join(self.conv2(r), r, r, frames=2)
        scores = self.fc(tl.global_avg_pool(y))
        return scores.reshape(2, 2, 3).mean(axis=1)


def weights(dtype: str, seed: int = SEED) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (2, 2, 32, 32, 3), "conv1.weight": (3, 3, 3, 6), "norm.gamma": (6,),
              "norm.beta": (6,), "conv2.weight": (3, 3, 6, 6), "conv2.bias": (6,),
              "fc.weight": (6, 3), "fc.bias": (3,)}
    scales = {"conv1.weight": 0.3, "conv2.weight": 0.2}
    return {name: (rng.standard_normal(shape) * scales.get(name, 1.0)).astype(dtype)
            for name, shape in shapes.items()}


def recorded(given: dict[str, np.ndarray], dtype: str) -> dict:
    """The JSON of the program's recording."""
    model = Program().to(dtype=dtype)
    for name, parameter in model.named_parameters():
        parameter.data = given[name].copy()
    x = Tensor(given["x"])
    with trace.record("numbers", check=True, ledger=True) as tape:
        trace.frames(x)
        loss = tl.cross_entropy(model(x), LABELS)
        loss.backward()
    return json.loads(json.dumps(tape.as_dict()))


# The same by hand


def conv(x, w, stride):
    """A 3 x 3 convolution with a border of one."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    size = x.shape[1] // stride
    y = np.zeros((len(x), size, size, w.shape[3]))
    for a in range(3):
        for b in range(3):
            y += padded[:, a:, b:][:, ::stride, ::stride][:, :size, :size] @ w[a, b]
    return y


def conv_back(x, w, g, stride):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    dx, dw = np.zeros(padded.shape), np.zeros(w.shape)
    size = g.shape[1]
    for a in range(3):
        for b in range(3):
            rows = slice(a, a + stride * size, stride), slice(b, b + stride * size, stride)
            dx[:, rows[0], rows[1]] += g @ w[a, b].T
            dw[a, b] = np.einsum("nijc,nijo->co", padded[:, rows[0], rows[1]][:, :size, :size], g)
    return dx[:, 1:-1, 1:-1], dw


def one_frame_on(x):
    y = np.zeros(x.shape)
    y[1::2] = x[0::2]
    return y


def one_frame_back(g):
    dx = np.zeros(g.shape)
    dx[0::2] = g[1::2]
    return dx


class Reference:
    """The network: `values` and `grads` by name, `sent` what each step of backward sends."""

    def __init__(self, given: dict[str, np.ndarray]) -> None:
        p = self.p = {name: array.astype(np.float64) for name, array in given.items()}
        v = self.values = dict(p)
        v["images"] = p["x"].reshape(4, 32, 32, 3)
        v["a"] = conv(v["images"], p["conv1.weight"], 4)
        self.windows = v["a"].reshape(4, 4, 2, 4, 2, 6)
        v["m"] = self.windows.max(axis=(2, 4))
        mean, variance = v["m"].mean(axis=(0, 1, 2)), v["m"].var(axis=(0, 1, 2))
        self.inverse = 1 / np.sqrt(variance + 1e-5)
        self.hat = (v["m"] - mean) * self.inverse
        v["n"] = p["norm.gamma"] * self.hat + p["norm.beta"]
        v["r"] = np.maximum(v["n"], 0)
        v["c"] = conv(v["r"], p["conv2.weight"], 1) + p["conv2.bias"]
        v["s"] = v["c"] + v["r"]
        v["t"] = v["s"] + one_frame_on(v["r"])
        v["y"] = np.maximum(v["t"], 0)
        v["q"] = v["y"].sum(axis=(1, 2)) / 16
        v["z"] = v["q"] @ p["fc.weight"] + p["fc.bias"]
        v["zz"] = v["z"].reshape(2, 2, 3)
        v["l"] = (v["zz"][:, 0] + v["zz"][:, 1]) / 2
        powers = np.exp(v["l"])
        self.softmax = powers / powers.sum(axis=1, keepdims=True)
        v["loss"] = -np.log(self.softmax[[0, 1], LABELS]).sum() / 2
        ordered = np.sort(self.windows.transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4))
        self.margin = min(np.abs(v["n"]).min(), np.abs(v["t"]).min(),
                          (ordered[:, 3] - ordered[:, 2]).min())
        self._backward()

    def _backward(self) -> None:
        v, p = self.values, self.p
        g = self.grads = {"loss": np.ones(())}
        g["l"] = (self.softmax - np.eye(3)[LABELS]) / 2
        g["zz"] = np.repeat(g["l"][:, None] / 2, 2, axis=1)
        g["z"] = g["zz"].reshape(4, 3)
        g["q"] = g["z"] @ p["fc.weight"].T
        g["fc.weight"], g["fc.bias"] = v["q"].T @ g["z"], g["z"].sum(axis=0)
        g["y"] = np.broadcast_to(g["q"][:, None, None] / 16, v["y"].shape)
        g["t"] = g["y"] * (v["t"] > 0)
        g["s"], self.r_temporal = g["t"], one_frame_back(g["t"])
        g["c"], self.r_spatial = g["s"], g["s"]
        back = self.through_conv2(g["c"])
        g["conv2.weight"], g["conv2.bias"], self.r_residual = (
            back["conv2.weight"], back["conv2.bias"], back["r"])
        g["r"] = self.r_temporal + self.r_spatial + self.r_residual
        g |= self.through_stem(g["r"])

    def through_conv2(self, g):
        dr, dw = conv_back(self.values["r"], self.p["conv2.weight"], g, 1)
        return {"r": dr, "conv2.weight": dw, "conv2.bias": g.sum(axis=(0, 1, 2))}

    def through_stem(self, g_r):
        """From r back to the first parameters: each line is linear in its gradient."""
        g_n = g_r * (self.values["n"] > 0)
        gamma, beta = (g_n * self.hat).sum(axis=(0, 1, 2)), g_n.sum(axis=(0, 1, 2))
        g_m = self.p["norm.gamma"] * self.inverse * (g_n - beta / 64 - self.hat * gamma / 64)
        largest = self.windows == self.values["m"][:, :, None, :, None]
        g_a = (largest * g_m[:, :, None, :, None]).reshape(4, 8, 8, 6)
        _, dw = conv_back(self.values["images"], self.p["conv1.weight"], g_a, 4)
        return {"n": g_n, "norm.gamma": gamma, "norm.beta": beta, "m": g_m, "a": g_a,
                "conv1.weight": dw}


# What may differ from what is expected, and by how much


class Near:
    """A number within `off` of `value`."""

    def __init__(self, value: float, off: float) -> None:
        self.value, self.off = float(value), float(off)

    def accepts(self, actual) -> bool:
        return isinstance(actual, float | int) and abs(actual - self.value) <= self.off


class Ratio:
    """The largest difference over what is tolerated, which is the checker's own business: what can
    be said of it is that it is right."""

    def accepts(self, actual) -> bool:
        return isinstance(actual, float | int) and 0 <= actual <= 1


class Counts:
    """A histogram's counts; an element within rounding of a bin's edge may be on either side."""

    def __init__(self, sample: np.ndarray, off: float) -> None:
        low, high = sample.min(), sample.max()
        place = (sample - low) / (high - low) * 24
        doubt = 48 * off / (high - low)
        first, last = (np.clip(np.floor(place + d), 0, 23) for d in (-doubt, doubt))
        self.least = [int(((first == k) & (last == k)).sum()) for k in range(24)]
        self.most = [int(((first == k) | (last == k)).sum()) for k in range(24)]
        self.total = sample.size

    def accepts(self, actual) -> bool:
        return (isinstance(actual, list) and len(actual) == 24 and sum(actual) == self.total
                and all(a <= n <= b for a, n, b in zip(self.least, actual, self.most, strict=True)))


class Plane:
    """The values of a plane, float32 in base64."""

    def __init__(self, values: np.ndarray, off: float) -> None:
        self.values = values
        self.off = off + 1e-7 * np.abs(values).max()

    def accepts(self, actual) -> bool:
        found = np.frombuffer(base64.b64decode(actual), "<f4")
        return found.size == self.values.size and bool(
            (np.abs(found - self.values.reshape(-1)) <= self.off).all())


NUMERAL = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]\d+)?|(?<=\D)-\d+(?:\.\d+)?(?:e[-+]\d+)?")


class Written:
    """A text with numbers of 4 significant digits, of which rounding may change the last."""

    def __init__(self, text: str) -> None:
        self.text = text

    def accepts(self, actual) -> bool:
        if not isinstance(actual, str) or NUMERAL.sub("#", actual) != NUMERAL.sub("#", self.text):
            return False
        for a, b in zip(NUMERAL.findall(actual), NUMERAL.findall(self.text), strict=True):
            unit = 10.0 ** (math.floor(math.log10(abs(float(b)))) - 3) if float(b) else 0.0
            if abs(float(a) - float(b)) > 1.001 * unit:
                return False
        return True


class Formula:
    """A formula: the numbers in it are those of the op's shapes and options."""

    def __init__(self, *numbers: int | float) -> None:
        self.numbers = {str(n) for n in numbers} | {"0", "1"}

    def accepts(self, actual) -> bool:
        found = re.findall(r"\d+(?:e-\d+)?", actual) if isinstance(actual, str) else ["none"]
        return bool(actual) and set(found) <= self.numbers


def differences(actual, expected, path: str = "tape") -> list[str]:
    """Where `actual`, a JSON, is not what is expected of it."""
    if hasattr(expected, "accepts"):
        return [] if expected.accepts(actual) else [
            f"{path}: {actual} is not {getattr(expected, '__dict__', expected)}"]
    if isinstance(expected, dict) and isinstance(actual, dict):
        if expected.keys() != actual.keys():
            return [f"{path}: fields {sorted(expected.keys() ^ actual.keys())}"]
        return [d for k in expected for d in differences(actual[k], expected[k], f"{path}.{k}")]
    if isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return [f"{path}: {len(actual)} items, not {len(expected)}"]
        return [d for k, (a, e) in enumerate(zip(actual, expected, strict=True))
                for d in differences(a, e, f"{path}[{k}]")]
    same = type(actual) is type(expected) and actual == expected
    return [] if same else [f"{path}: {actual!r} is not {expected!r}"]


# The tape that is expected


def small(plane):
    """To at most 28 pixels a side, as means over squares; and how."""
    height, width = plane.shape[:2]
    side = math.ceil(max(height, width) / 28)
    down, along = min(side, height), min(side, width)
    rows, columns = height // down, width // along
    result = np.zeros((rows, columns, *plane.shape[2:]))
    for i in range(rows):
        for j in range(columns):
            result[i, j] = plane[i * down:(i + 1) * down,
                                 j * along:(j + 1) * along].mean(axis=(0, 1))
    said = f"{height} x {width}" + ("" if side == 1 else f" as means over {down} x {along}")
    return result, said


class Expected:
    """Makes the JSON that is expected of the recording of `given`."""

    FOLDED = ("images", "a", "m", "n", "r", "c", "s", "t", "y", "q", "z")
    TENSORS = ("x", "images", "conv1.weight", "a", "m", "norm.gamma", "norm.beta", "n", "r",
               "conv2.weight", "conv2.bias", "c", "s", "t", "y", "q", "fc.weight", "fc.bias", "z",
               "zz", "l", "loss")
    # op, inputs by slot, output, options, numbers in its formulas, its place in the model, a piece
    # of its line, what it saves
    OPS = (
        ("reshape", {"x": "x"}, "images", {"shape": [4, 32, 32, 3]}, (), "", "x.reshape", ()),
        ("conv2d", {"x": "images", "weight": "conv1.weight", "bias": None}, "a",
         {"stride": [4, 4], "padding": [1, 1], "dilation": [1, 1], "groups": 1}, (4,), "conv1",
         "self.conv1(images)", ((4, 32, 32, 3), (3, 3, 3, 6))),
        ("max_pool2d", {"x": "a"}, "m",
         {"source": None, "kernel": [2, 2], "stride": [2, 2], "padding": [0, 0]}, (2,), "",
         "self.conv1(images)", ((4, 8, 8, 6), (4, 4, 4, 6))),
        ("batch_norm", {"x": "m", "gamma": "norm.gamma", "beta": "norm.beta"}, "n",
         {"mode": "train", "momentum": 0.1, "eps": 1e-5}, (64, "1e-05"), "norm",
         "self.conv1(images)", ((4, 4, 4, 6), (6,), (6,), (6,))),
        ("relu", {"x": "n"}, "r", {}, (), "", "self.conv1(images)", ((4, 4, 4, 6),)),
        ("conv2d", {"x": "r", "weight": "conv2.weight", "bias": "conv2.bias"}, "c",
         {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}, (), "conv2",
         "tl.block_join", ((4, 4, 4, 6), (3, 3, 6, 6))),
        ("add", {"a": "c", "b": "r"}, "s", {}, (), "", "tl.block_join", ()),
        ("temporal_skip", {"y": "s", "x": "r"}, "t", {"frames": 2}, (2,), "", "tl.block_join", ()),
        ("relu", {"x": "t"}, "y", {}, (), "", "tl.block_join", ((4, 4, 4, 6),)),
        ("global_avg_pool", {"x": "y"}, "q", {}, (16,), "", "tl.global_avg_pool", ()),
        ("linear", {"x": "q", "weight": "fc.weight", "bias": "fc.bias"}, "z", {}, (), "fc",
         "tl.global_avg_pool", ((4, 6), (6, 3))),
        ("reshape", {"x": "z"}, "zz", {"shape": [2, 2, 3]}, (), "", "scores.reshape", ()),
        ("mean", {"x": "zz"}, "l", {"axes": [1], "keepdims": False}, (2,), "", "scores.reshape",
         ()),
        ("crossentropy", {"logits": "l"}, "loss", {"reduction": "mean"}, (2,), None,
         "tl.cross_entropy", ((2, 3), (2,), (2, 2))),
    )
    TYPES = {"": "Program", "conv1": "Conv2d", "norm": "BatchNorm2d", "conv2": "Conv2d",
             "fc": "Linear", None: None}
    ROLES = {"s": ["residual branch", "spatial skip"], "t": [None, "temporal skip"]}

    def __init__(self, given: dict[str, np.ndarray], dtype: str) -> None:
        self.reference = Reference(given)
        self.dtype, self.off, self.numeric = dtype, ROUNDING[dtype], NUMERIC[dtype]
        self.numbers = {name: k for k, name in enumerate(self.TENSORS)}
        self.made = {output: k for k, (_, _, output, *_) in enumerate(self.OPS)}

    def tape(self) -> dict:
        lines = Path(__file__).read_text().splitlines()
        file = Path(os.path.relpath(__file__)).as_posix()
        return {
            "format": "tensorlite.trace 1", "title": "numbers", "frames": 2,
            "tensors": [self.tensor(name) for name in self.TENSORS],
            "ops": [self.op(k, file, lines) for k in range(len(self.OPS))],
            "events": [*self.forwards(), *self.backwards()], "ledgers": [self.ledger()],
            "sources": {file: lines},
            "versions": {"tensorlite": tl.__version__, "numpy": np.__version__,
                         "python": platform.python_version()},
            "notes": []}

    # Arrays

    def near(self, value: float, scale: float) -> Near:
        return Near(value, self.off * scale)

    def labels(self, name: str) -> np.ndarray | None:
        if name in self.FOLDED:
            return np.array([0, 1, 0, 1])
        return np.array([[0, 1], [0, 1]]) if name in ("x", "zz") else None

    def summary(self, name: str, array: np.ndarray) -> dict:
        array = np.asarray(array)
        top, labels, flat = np.abs(array).max(), self.labels(name), array.reshape(-1)
        norms = None
        if labels is not None:
            norms = [np.sqrt((array[labels == t] ** 2).sum()) for t in (0, 1)]
        whole = array.size <= 256
        return {
            "shape": list(array.shape), "dtype": self.dtype, "nonfinite": 0,
            "norm": self.near(np.sqrt((flat**2).sum()), np.sqrt((flat**2).sum())),
            "min": self.near(flat.min(), top), "max": self.near(flat.max(), top),
            "mean": self.near(flat.mean(), top),
            "frame_norms": norms and [self.near(n, max(norms)) for n in norms],
            "values": [self.near(v, top) for v in flat] if whole else None,
            "histogram": None if whole else self.histogram(flat, top),
            "picture": None if whole else self.picture(name, array, top)}

    def histogram(self, flat: np.ndarray, top: float) -> dict:
        sample = flat[::math.ceil(flat.size / 4096)]
        return {"low": self.near(sample.min(), top), "high": self.near(sample.max(), top),
                "counts": Counts(sample, self.off * top), "of": sample.size}

    def picture(self, name: str, array: np.ndarray, top: float) -> dict:
        if name == "conv2.weight":
            plane, how = small(array.reshape(54, 6))
            return {"kind": "matrix", "height": 27, "width": 3, "how": how, "planes": [
                {"title": "", "frame": None, "data": Plane(plane, self.off * top)}]}
        images = array.reshape(-1, *array.shape[-3:])[:2]  # the first chunk
        colour = array.shape[-1] == 3
        planes = [small(image if colour else image.mean(axis=-1)) for image in images]
        words = "the first 2 of 4 images; " + ("" if colour else "mean over 6 channels; ")
        return {"kind": "rgb" if colour else "maps", "height": len(planes[0][0]),
                "width": len(planes[0][0]), "how": words + planes[0][1],
                "planes": [{"title": f"frame {t}", "frame": t,
                            "data": Plane(plane, self.off * top)}
                           for t, (plane, _) in enumerate(planes)]}

    def check(self, seed: int, x: np.ndarray, grad: np.ndarray) -> dict:
        """Of the gradient `grad` of something that is `x`: at which elements is drawn by `seed`."""
        x, flat = np.asarray(x), np.asarray(grad).reshape(-1)
        where = np.arange(flat.size)
        if flat.size > 256:
            where = np.sort(np.random.default_rng(seed).choice(flat.size, 16, replace=False))
        top = np.abs(flat).max()
        way = np.random.default_rng(seed).standard_normal(x.shape) * np.maximum(1, np.abs(x))
        along = way.reshape(-1) @ flat
        size = np.abs(way.reshape(-1) * flat).sum()
        return {"where": where.tolist(), "every": flat.size <= 256,
                "analytic": [self.near(flat[k], top) for k in where],
                "numeric": [Near(flat[k], self.numeric * top) for k in where],
                "smooth": [True] * len(where),
                "along": {"analytic": self.near(along, size),
                          "numeric": Near(along, self.numeric * size)},
                "worst": Ratio(), "right": True}

    # Records

    def tensor(self, name: str) -> dict:
        value, k = self.reference.values[name], self.numbers[name]
        grad, labels = self.reference.grads.get(name), self.labels(name)
        named = name in self.reference.p or name == "loss"
        kind = "result" if name in self.made else "constant" if name == "x" else "parameter"
        return {"name": name if named else f"%{k}", "kind": kind,
                "shape": list(np.shape(value)), "dtype": self.dtype,
                "requires_grad": grad is not None, "op": self.made.get(name),
                "frames": None if labels is None else [0, 1], "value": self.summary(name, value),
                "grad": None if grad is None else self.summary(name, grad),
                "numeric": None if grad is None else self.check(0, value, grad)}

    def op(self, k: int, file: str, lines: list[str]) -> dict:
        op, inputs, output, options, extra, module, piece, saved = self.OPS[k]
        line = next(i for i, text in enumerate(lines) if piece in text)
        shapes = [np.shape(self.reference.values[t]) for t in (*inputs.values(), output) if t]
        formula = Formula(*(n for shape in shapes for n in shape), *extra)
        kept = [{"shape": list(shape), "dtype": self.dtype,
                 "bytes": math.prod(shape) * np.dtype(self.dtype).itemsize} for shape in saved]
        if op == "crossentropy":
            kept[1] |= {"dtype": "int64", "bytes": 16}
        return {"op": op, "slots": list(inputs),
                "inputs": [None if t is None else self.numbers[t] for t in inputs.values()],
                "output": self.numbers[output], "options": options, "forward": formula,
                "backward": formula, "roles": self.ROLES.get(output, [None] * len(inputs)),
                "shifts": [0, 1] if op == "temporal_skip" else [0] * len(inputs),
                "frames": None if self.labels(output) is None else [0, 1],
                "module": module, "module_type": self.TYPES[module],
                "source": {"file": file, "line": line + 1, "text": lines[line].strip(),
                           "function": "recorded" if module is None else "forward"},
                "saved": kept, "saved_bytes": sum(part["bytes"] for part in kept),
                "recorded": op != "reshape" or k > 0}

    # Events

    def forwards(self) -> list[dict]:
        v = self.reference.values
        at = (0, 2, 2, 0)
        window = v["a"][0, 4:6, 4:6, 0].reshape(-1)
        p = self.reference.softmax
        texts = {
            2: f"y[0, 2, 2, 0] = max({listed(window)}) = {few(window.max())}",
            4: f"y[0, 2, 2, 0] = max({part(v['n'][at])}, 0) = {few(v['r'][at])}",
            6: f"y[0, 2, 2, 0] = {part(v['c'][at])} + {part(v['r'][at])} = {few(v['s'][at])}",
            8: f"y[0, 2, 2, 0] = max({part(v['t'][at])}, 0) = {few(v['y'][at])}",
            10: "y[0, 0] = " + products(v["q"][0], v["fc.weight"][:, 0])
                + f" + {part(v['fc.bias'][0])} = {few(v['z'][0, 0])}",
            13: f"softmax(logits) = {nested(p)}, label [0, 2]\n"
                f"(-log {few(p[0, 0])} - log {few(p[1, 2])}) / 2 = {few(v['loss'])}"}
        return [self.event("forward", k, None, [], texts.get(k)) for k in range(len(self.OPS))]

    def event(self, kind: str, op: int | None, grad: dict | None, pieces: list[dict],
              text: str | None = None, tensor: int | None = None) -> dict:
        return {"kind": kind, "op": op, "tensor": tensor, "grad": grad,
                "numbers": None if text is None else Written(text), "pieces": pieces,
                "unsent": []}

    def backwards(self) -> list[dict]:
        ref = self.reference
        v, g = ref.values, ref.grads
        sums = {"r": [ref.r_temporal, ref.r_temporal + ref.r_spatial, g["r"]]}
        sent = {(7, 1): ref.r_temporal, (6, 1): ref.r_spatial, (5, 0): ref.r_residual}
        at = (0, 2, 2, 0)
        first = few(g["s"][at])
        rows = range(4)
        texts = {
            13: "∂logits = g / 2 · (softmax(logits) - onehot(label)) = 1 / 2 · "
                f"({nested(ref.softmax)} - [[1, 0, 0], [0, 0, 1]]) = {nested(g['l'])}",
            10: f"∂x[0, 0] = {products(g['z'][0], v['fc.weight'][0])} = {few(g['q'][0, 0])}\n"
                f"∂weight[0, 0] = {products(v['q'][:, 0], g['z'][:, 0])} = "
                f"{few(g['fc.weight'][0, 0])}\n"
                f"∂bias[0] = {' + '.join(part(g['z'][n, 0]) for n in rows)} = "
                f"{few(g['fc.bias'][0])}",
            9: f"∂x[0, 0, 0, 0] = {part(g['q'][0, 0])} / 16 = {few(g['y'][0, 0, 0, 0])}",
            8: f"∂x[0, 2, 2, 0] = {part(g['y'][at])} · ({part(v['t'][at])} > 0) = "
               f"{few(g['t'][at])}",
            6: f"∂a[0, 2, 2, 0] = g[0, 2, 2, 0] = {first}\n"
               f"∂b[0, 2, 2, 0] = g[0, 2, 2, 0] = {first}",
            4: f"∂x[0, 2, 2, 0] = {part(g['r'][at])} · ({part(v['n'][at])} > 0) = "
               f"{few(g['n'][at])}"}
        events = [self.event("start", None, self.summary("loss", g["loss"]), [], None,
                             self.numbers["loss"])]
        arrived = 0
        for k in range(len(self.OPS) - 1, 0, -1):
            _, inputs, output, *_ = self.OPS[k]
            pieces = []
            for slot, name in enumerate(inputs.values()):
                if name not in g:
                    continue
                grad = sent.get((k, slot), g[name])
                before, after = None, grad
                if name == "r":
                    before = sums["r"][arrived - 1] if arrived else None
                    after = sums["r"][arrived]
                    arrived += 1
                pieces.append({
                    "slot": slot, "tensor": self.numbers[name],
                    "grad": self.summary(name, grad),
                    "before": None if before is None else self.summary(name, before),
                    "after": self.summary(name, after), "deposited": name in ref.p,
                    "held": None, "sum_right": True, "check": self.check(slot, v[name], grad)})
            events.append(self.event("backward", k, self.summary(output, g[output]), pieces,
                                     texts.get(k)))
        return events

    # The ledger

    def ledger(self) -> dict:
        ref = self.reference
        g, parts = ref.grads["t"], []
        for frame in (0, 1):
            only = np.zeros(g.shape)
            only[frame::2] = g[frame::2]
            back = ref.through_conv2(only)
            parts.append(("residual branch", frame, only, back | ref.through_stem(back["r"])))
            parts.append(("spatial skip", frame, only, ref.through_stem(only)))
        parts.sort(key=lambda p: p[0])
        later = one_frame_back(g)
        parts.append(("temporal skip", 0, later, ref.through_stem(later)))
        names = ("conv1.weight", "norm.gamma", "norm.beta", "conv2.weight", "conv2.bias")
        return {
            "block": "", "op": 7,
            "parts": [{"role": role, "frame": frame,
                       "norm": self.near(np.linalg.norm(grad), np.linalg.norm(grad))}
                      for role, frame, grad, _ in parts],
            "parameters": {name: self.account(ref.grads[name], [
                found.get(name, np.zeros(ref.grads[name].shape)) for *_, found in parts])
                for name in names}}

    def account(self, whole: np.ndarray, parts: list[np.ndarray]) -> dict:
        where = sorted(sorted(range(whole.size), key=lambda k: -abs(whole.reshape(-1)[k]))[:6])
        top, norm = np.abs(whole).max(), np.linalg.norm(whole)

        def line(part: np.ndarray) -> dict:
            return {"norm": self.near(np.linalg.norm(part), norm),
                    "share": self.near((part * whole).sum() / (whole * whole).sum(), 1),
                    "values": [self.near(v, top) for v in part.reshape(-1)[where]]}

        all_of_it = {"norm": self.near(norm, norm),
                     "values": [self.near(v, top) for v in whole.reshape(-1)[where]]}
        return {"shape": list(whole.shape), "where": where, "every": whole.size <= 6,
                "whole": all_of_it, "run": all_of_it,
                "parts": [line(p) for p in parts], "rest": line(np.zeros(whole.shape)),
                "error": self.near(0, 1)}


def few(value: float) -> str:
    text = f"{float(value):.4g}"
    return "0" if text == "-0" else text


def part(value: float) -> str:
    return f"({few(value)})" if few(value).startswith("-") else few(value)


def listed(values) -> str:
    return ", ".join(few(v) for v in values)


def nested(rows) -> str:
    return f"[{', '.join(f'[{listed(row)}]' for row in rows)}]"


def products(a, b) -> str:
    return " + ".join(f"{part(x)} · {part(y)}" for x, y in zip(a, b, strict=True))


# The tests


@pytest.fixture(scope="module", params=["float32", "float64"])
def run(request) -> tuple[str, dict, dict]:
    given = weights(request.param)
    return request.param, recorded(given, request.param), Expected(given, request.param).tape()


def numeric_leaves(value, path=()) -> list[tuple]:
    if isinstance(value, dict):
        return [leaf for k, v in value.items() for leaf in numeric_leaves(v, (*path, k))]
    if isinstance(value, list):
        return [leaf for k, v in enumerate(value) for leaf in numeric_leaves(v, (*path, k))]
    return [path] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_the_program_is_away_from_its_kinks():
    assert Reference(weights("float64")).margin > 1e-4


def test_every_number_is_the_one_computed_by_hand(run):
    _, tape, expected = run
    assert differences(tape, expected) == []
    assert len(numeric_leaves(tape)) > 6_000


def test_every_number_is_looked_at(run):
    """A tape with any one number changed is not accepted."""
    dtype, tape, expected = run
    rng = np.random.default_rng(0)
    leaves = numeric_leaves({k: v for k, v in tape.items() if k != "sources"})
    chosen = [leaves[k] for k in rng.choice(len(leaves), 60, replace=False)]
    kinds = {tuple(step for step in path if isinstance(step, str)): path for path in leaves}
    for path in {*chosen, *kinds.values()}:
        changed = copy.copy(tape)
        place = changed
        for step in path[:-1]:
            place[step] = copy.copy(place[step])
            place = place[step]
        value = place[path[-1]]
        place[path[-1]] = value + 7 if isinstance(value, int) else value * 1.5 + 1.5
        assert differences(changed, expected), path


def test_pictures_and_texts_are_looked_at(run):
    _, tape, expected = run
    changed = copy.deepcopy(tape)
    plane = next(t for t in changed["tensors"] if t["value"]["picture"])["value"]["picture"][
        "planes"][0]
    values = np.frombuffer(base64.b64decode(plane["data"]), "<f4").copy()
    values[5] += 0.1
    plane["data"] = base64.b64encode(values.tobytes()).decode()
    for event in changed["events"]:
        if event["numbers"]:
            event["numbers"] = re.sub(r"\d(?=\D*$)", lambda m: str((int(m[0]) + 5) % 10),
                                      event["numbers"])
    texts = sum(event["numbers"] is not None for event in tape["events"])
    assert texts == 12
    assert len(differences(changed, expected)) == texts + 1


def test_a_number_that_is_not_known_is_refused(run):
    _, tape, expected = run
    changed = copy.copy(tape)
    changed["events"] = [*tape["events"][:-1], {**tape["events"][-1], "seconds": 0.1}]
    assert differences(changed, expected) == [
        f"tape.events[{len(tape['events']) - 1}]: fields ['seconds']"]


def test_changing_one_weight_changes_the_numbers():
    given = weights("float64")
    before = Expected(given, "float64").tape()
    given["conv1.weight"][1, 1, 0, 2] += 0.25
    after = recorded(given, "float64")
    assert differences(after, Expected(given, "float64").tape()) == []
    found = differences(after, before)
    assert any(d.startswith("tape.events[") for d in found)
    assert len(found) > 1000
