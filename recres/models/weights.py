"""Pre-trained ResNet weights: from torchvision, timm, Keras or a checkpoint of ours into a model.

Who wrote a file shows in the names of its arrays, and decides what the numbers mean:

    names                                         version   input   eps
    layer1.0.conv1.weight   torchvision, timm     v1.5      torch   1e-5
    conv2_block1_1_conv, res2a_branch2a   Keras   v1        caffe   1.001e-5
    block1.0.conv1.weight   ours                  as its metadata says, else as the model

v1 has the stride of a bottleneck in its first 1x1 convolution, v1.5 in the 3x3: the arrays have
the same shapes, and in the wrong network they give nonsense without a complaint, so that is
refused here. ("torch" input is RGB in [0, 1], standardised; "caffe" is BGR 0–255 minus its mean.)

Two things are folded into the running statistics, so that a norm that uses them computes what the
source computed: a Keras convolution's bias, as running_mean − bias; and an eps other than the
model's, as running_var + eps − the model's eps, which leaves no setting that a checkpoint of the
model could lose.

A network whose input is not images (stacked optical flow) starts from a network for images all the
same, by cross-modality initialisation (Wang et al. 2015, Towards Good Practices for Very Deep
Two-Stream ConvNets): its first convolution gives every input channel the mean of the file's weights
over red, green and blue, in the units of that input.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recres.errors import InputError
from tensorlite import io, nn

from .resnet import VERSIONS, ResNet

# The deviation of ImageNet's pixels, 0.226 (the mean over torchvision's three) of 255: of the input
# of "caffe" weights, where that of "torch" weights is one.
GREY_LEVELS = 0.226 * 255

_UNIT = r"(?:{0}1|block[1-4]\.[0-9]{{1,4}}\.(?:{0}[1-3]|(?:shortcut|temporal)\.{0}))"
_STATISTICS = ("gamma", "beta", "running_mean", "running_var")
_CONV = re.compile(_UNIT.format("conv") + r"\.weight")
_NORM = re.compile(rf"({_UNIT.format('norm')})\.({'|'.join(_STATISTICS)})")
_FC = re.compile(r"fc\.(weight|bias)")

_TORCH_TO_OURS = (
    (r"^layer(\d+)\.", r"block\1."),
    (r"\bbn(\d)\.", r"norm\1."),
    (r"\bdownsample\.0\.", "shortcut.conv."),
    (r"\bdownsample\.1\.", "shortcut.norm."),
    (r"(norm\d?)\.weight$", r"\1.gamma"),
    (r"(norm\d?)\.bias$", r"\1.beta"),
)
_KERAS_STEM = {"conv1", "conv1_conv", "conv1_bn", "bn_conv1"}
_KERAS_CLASSIFIER = {"fc", "fc1000", "probs", "predictions"}
_KERAS_LAYER = re.compile(r"conv([2-5])_block(\d{1,4})_([0-3])(?:_conv|_bn)?", re.ASCII)
_CAFFE_LAYER = re.compile(r"(?:res|bn)([2-5])([a-z])(\d{0,4})_branch(1|2[a-c])", re.ASCII)
_KERAS_LEAVES = {
    **dict.fromkeys(("weight", "kernel", "W"), "weight"),
    **dict.fromkeys(("bias", "b"), "bias"),
    "gamma": "gamma",
    "beta": "beta",
    **dict.fromkeys(("mean", "moving_mean", "running_mean"), "running_mean"),
    # Keras 1 wrote the variance under the name running_std
    **dict.fromkeys(("var", "moving_variance", "running_std"), "running_var"),
}


@dataclass(frozen=True)
class WeightReport:
    """What `load_pretrained` did: names of arrays, and what the weights ask of their input.

    source: "torchvision/timm", "Keras" or "recres". version: "v1" or "v1.5". input_convention:
    "torch" or "caffe", None where a checkpoint of ours does not say. eps: of the source's norms,
    None for ours. loaded, initialised: names in the model. unused: names in the file.
    averaged_for: input channels of the model, where those of the file were averaged for each.
    """

    source: str
    version: str
    input_convention: str | None
    loaded: tuple[str, ...]
    initialised: tuple[str, ...]
    eps: float | None
    unused: tuple[str, ...]
    averaged_for: int | None = None

    def __str__(self) -> str:
        names = self.loaded + self.initialised
        lines = [
            f"weights with {self.source} names: ResNet {self.version}, "
            f"{self.input_convention or 'unstated'} input"
            + (f", eps {self.eps:g}" if self.eps else ""),
            f"  loaded: {_summary(self.loaded, names)}",
            f"  stayed initialised: {_summary(self.initialised, names)}",
        ]
        if self.averaged_for is not None:
            lines.append("  cross-modality initialisation: conv1 has the mean over the file's 3 "
                         f"input channels for each of its {self.averaged_for}")
        if self.unused:
            first = ", ".join(self.unused[:3]) + (", …" if len(self.unused) > 3 else "")
            lines.append(f"  not used from the file: {first} ({len(self.unused)} arrays)")
        return "\n".join(lines)


@dataclass
class _Contents:
    """A file's arrays under our names and in our layout."""

    source: str
    version: str
    input_convention: str | None
    eps: float | None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)  # our name → the file's
    unused: list[str] = field(default_factory=list)
    averaged_for: int | None = None  # as in the report

    def put(self, name: str, array: np.ndarray, origin: str) -> None:
        if name in self.arrays:
            raise InputError(f"{self.origin[name]} and {origin} are both {name}")
        self.arrays[name], self.origin[name] = array, origin

    def drop(self, name: str) -> None:
        del self.arrays[name]
        self.unused.append(self.origin[name])


def load_pretrained(
    model: ResNet,
    path: str | os.PathLike[str],
    log: Callable[[str], object] = print,
) -> WeightReport:
    """Load what fits from a file of ResNet weights into `model`; `log` gets the report as text.

    The file: .pth, .pt, .safetensors, .npz or .h5, in the names of torchvision and timm, of Keras,
    or ours. The model is any of `recres.models`; names of its own that the file lacks (a temporal
    skip, a truncated file's later blocks) stay as they are, as does a classifier of another number
    of classes or after another stage; a norm is loaded only together with its convolution.

    Raises InputError, with the model untouched: the file cannot be read, or is not what the hash in
    its name promises; holds a different network (deep stem, attention, ResNet v2); is of the other
    version or depth; has an array of the wrong shape or with a value that is not finite; has
    nothing for this model. For a basic-block network v1 and v1.5 are the same.
    """
    path = Path(path)
    try:
        io.check_file_hash(path)
        if path.suffix.lower() == ".safetensors":
            arrays, metadata = io.load_safetensors(path)
        elif path.suffix.lower() in (".pth", ".pt"):
            arrays, metadata = io.load_pth(path)
        else:
            arrays, metadata = io.load_arrays(path), {}
    except (io.FormatError, ImportError) as error:
        raise InputError(str(error)) from error
    state = model.state_dict()
    try:
        contents = _recognise(arrays, metadata, model.version)
        _pair_norms(contents)
        _refuse_other_depth(contents.arrays, state)
        _average_inputs(contents, state)
        _select(contents, state)
        if "block1.0.conv3.weight" in state and contents.version != model.version:
            raise InputError(
                f"{contents.source} weights of ResNet {contents.version} for a model of version "
                f"{model.version!r}: their strides differ; build it with {contents.version!r}"
            )
        _match_eps(contents, model)
        values = {name: _values(contents, name, state[name]) for name in contents.arrays}
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    model.load_state_dict({**state, **values})
    report = WeightReport(
        contents.source,
        contents.version,
        contents.input_convention,
        loaded=tuple(name for name in state if name in values),
        initialised=tuple(name for name in state if name not in values),
        eps=contents.eps,
        unused=tuple(contents.unused),
        averaged_for=contents.averaged_for,
    )
    log(f"{path}: {report}")
    return report


def _recognise(
    arrays: dict[str, np.ndarray], metadata: dict[str, str], version: str
) -> _Contents:
    """Whose names these are, and the arrays under ours."""
    if any(_NORM.fullmatch(name) for name in arrays):
        contents = _Contents(
            "recres", metadata.get("version", version), metadata.get("input_convention"), None
        )
        for name, array in arrays.items():
            if _is_ours(name):
                contents.put(name, array, name)
            else:
                contents.unused.append(name)
        return contents
    if any(re.match(r"layer[1-4]\.\d|bn1\.", name) for name in arrays):
        return _from_torch(arrays, metadata)
    if any(_keras_unit(name.rpartition("/")[0]) for name in arrays):
        return _from_keras(arrays)
    some = ", ".join(sorted(arrays)[:3]) or "no array at all"
    raise InputError(f"no ResNet of torchvision, timm, Keras or ours: it has {some}")


def _is_ours(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in (_CONV, _NORM, _FC))


def _from_torch(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> _Contents:
    # What `recres.export` writes under these names may be v1, and then says so.
    version, convention = metadata.get("version"), metadata.get("input_convention")
    contents = _Contents("torchvision/timm", version if version in VERSIONS else "v1.5",
                         convention if convention in ("torch", "caffe") else "torch", 1e-5)
    for name, array in arrays.items():
        ours = name
        for pattern, replacement in _TORCH_TO_OURS:
            ours = re.sub(pattern, replacement, ours)
        if _is_ours(ours):
            contents.put(ours, _outputs_last(array), name)
        elif name.startswith(("layer", "conv1", "bn1")):
            if not name.endswith(".num_batches_tracked"):
                raise InputError(f"not a plain ResNet: it has {name} (shape {array.shape})")
        else:
            contents.unused.append(name)
    return contents


def _from_keras(arrays: dict[str, np.ndarray]) -> _Contents:
    contents = _Contents("Keras", "v1", "caffe", 1.001e-5)
    biases = {}
    for name, array in arrays.items():
        layer, _, leaf = name.rpartition("/")
        leaf = re.sub(r"(_\d+)?(:0)?$", "", leaf.removeprefix(f"{layer}_"))  # Keras 1: conv1_W_1:0
        unit, kind = _keras_unit(layer), _KERAS_LEAVES.get(leaf)
        if unit is None or kind is None:
            if unit or layer.startswith(("conv", "res", "bn", "post_bn")):
                raise InputError(f"not a ResNet v1: it has {name} (shape {array.shape})")
            contents.unused.append(name)
        elif kind == "bias" and unit != "fc":
            biases[unit] = array
        elif kind in _STATISTICS:
            contents.put(f"{unit.replace('conv', 'norm')}.{kind}", array, name)
        else:
            # "weight" has its outputs first, as in PyTorch; "kernel" and "W" have them last
            ours = _outputs_last(array) if leaf == "weight" else array
            contents.put(f"{unit}.{kind}", ours, name)
    for unit, bias in biases.items():
        mean = f"{unit.replace('conv', 'norm')}.running_mean"
        if mean in contents.arrays and contents.arrays[mean].shape == bias.shape:
            with np.errstate(invalid="ignore", over="ignore"):  # `_values` will refuse these
                dtype = np.result_type(contents.arrays[mean], bias, np.float32)
                contents.arrays[mean] = np.subtract(contents.arrays[mean], bias, dtype=dtype)
        elif f"{unit}.weight" in contents.arrays:
            raise InputError(f"the bias of {unit} has no norm of its length to go into")
    return contents


def _keras_unit(layer: str) -> str | None:
    """Our name of the convolution that a Keras layer is, or belongs to; "fc" for the classifier."""
    if layer in _KERAS_STEM:
        return "conv1"
    if layer in _KERAS_CLASSIFIER:
        return "fc"
    if match := _KERAS_LAYER.fullmatch(layer):
        stage, block, place = match[1], int(match[2]) - 1, int(match[3])
    elif match := _CAFFE_LAYER.fullmatch(layer):  # blocks a, b, c, … or a, b1, b2, …
        stage, block = match[1], int(match[3] or ord(match[2]) - ord("a"))
        place = ("1", "2a", "2b", "2c").index(match[4])
    else:
        return None
    return f"block{int(stage) - 1}.{block}." + (f"conv{place}" if place else "shortcut.conv")


def _outputs_last(array: np.ndarray) -> np.ndarray:
    """A weight whose outputs come first to one whose outputs come last; anything else as it is."""
    if array.ndim == 4:
        return io.from_oihw(array)
    return io.from_oi(array) if array.ndim == 2 else array


def _pair_norms(contents: _Contents) -> None:
    """Drop norms whose convolution is absent; refuse half a norm."""
    norms: dict[str, list[str]] = {}
    for name in contents.arrays:
        if match := _NORM.fullmatch(name):
            norms.setdefault(match[1], []).append(match[2])
    for norm, present in norms.items():
        if f"{norm.replace('norm', 'conv')}.weight" not in contents.arrays:
            for statistic in present:
                contents.drop(f"{norm}.{statistic}")
        elif absent := [s for s in _STATISTICS if s not in present]:
            raise InputError(f"{norm} lacks {', '.join(absent)}: not a batch norm")


def _refuse_other_depth(arrays: Iterable[str], state: Iterable[str]) -> None:
    """Raise InputError where a stage has more residual blocks than the model's, or fewer though the
    file goes on after it (its last stage may be cut short)."""
    theirs, ours = _block_counts(arrays), _block_counts(state)
    for stage in sorted(theirs.keys() & ours.keys()):
        short = theirs[stage] < ours[stage] and stage < max(theirs)
        if theirs[stage] > ours[stage] or short:
            raise InputError(
                f"another depth: {theirs[stage]} residual blocks in {stage}, the model has "
                f"{ours[stage]}"
            )


def _block_counts(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        if match := re.match(r"(block\d)\.(\d+)\.", name):
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return counts


def _average_inputs(contents: _Contents, state: dict[str, np.ndarray]) -> None:
    """The first convolution of a network for images as one for the model's other inputs."""
    weight, channels = contents.arrays.get("conv1.weight"), state["conv1.weight"].shape[2]
    if weight is not None and weight.ndim == 4 and weight.shape[2] == 3 != channels:
        mean = weight.mean(axis=2, keepdims=True, dtype=np.float64)
        if contents.input_convention == "caffe":
            mean *= GREY_LEVELS  # what is not an image comes in units of one
        contents.arrays["conv1.weight"] = mean.repeat(channels, axis=2)
        contents.averaged_for = channels


def _select(contents: _Contents, state: dict[str, np.ndarray]) -> None:
    """Drop what the model has not, and a classifier of other classes or after another stage; refuse
    another shape."""
    weight = contents.arrays.get("fc.weight")
    if weight is not None and weight.ndim == 2:
        inputs, classes = state["fc.weight"].shape
        ends = [max(_block_counts(names), default="stem") for names in (contents.arrays, state)]
        other_stage = weight.shape[0] != inputs and ends[0] != ends[1]
        if other_stage or (weight.shape[0] == inputs and weight.shape[1] != classes):
            for name in {"fc.weight", "fc.bias"} & contents.arrays.keys():
                contents.drop(name)
    for name, array in list(contents.arrays.items()):
        if name not in state:
            contents.drop(name)
        elif array.shape != state[name].shape:
            raise InputError(
                f"{contents.origin[name]} is {name} of shape {array.shape}, the model's is "
                f"{state[name].shape}"
            )
    if not contents.arrays:
        raise InputError("nothing in it is for this model")


def _match_eps(contents: _Contents, model: ResNet) -> None:
    """Move what the source's eps has over the model's into the running variances."""
    if contents.eps is None:
        return
    modules = dict(model.named_modules())
    for name, array in contents.arrays.items():
        if name.endswith(".running_var"):
            norm = modules[name.removesuffix(".running_var")]
            assert isinstance(norm, nn.BatchNorm2d)
            with np.errstate(over="ignore"):  # `_values` will refuse that
                contents.arrays[name] = array + array.dtype.type(contents.eps - norm.eps)


def _values(contents: _Contents, name: str, like: np.ndarray) -> np.ndarray:
    """The array as the model's type. Raises InputError where it holds no usable numbers."""
    with np.errstate(over="ignore"):
        values = contents.arrays[name].astype(like.dtype)
    if not np.isfinite(values).all():
        raise InputError(f"{contents.origin[name]} has values that are not finite")
    if name.endswith(".running_var") and values.min() < 0:
        raise InputError(f"{contents.origin[name]} is a variance below zero")
    return values


def _summary(names: Collection[str], universe: Collection[str]) -> str:
    """Names in a few words: "conv1, block1–block3, block4.0.conv1 (216 arrays)".

    A stage or block all of whose arrays in `universe` are among the names is named once, and
    neighbours in number are joined; a convolution stands for its norm too.
    """
    absent = {prefix for name in set(universe) - set(names) for prefix in _prefixes(name)}
    labels = {next((p for p in _prefixes(name) if p not in absent), name) for name in names}
    runs: list[list[str]] = []
    for label in sorted(labels, key=_order):
        if runs and label.startswith("block") and _follows(runs[-1][-1], label):
            runs[-1].append(label)
        else:
            runs.append([label])
    text = ", ".join(run[0] if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return f"{text} ({len(names)} arrays)" if names else "nothing"


def _prefixes(name: str) -> list[str]:
    """ "block4.0.norm1.beta" → block4, block4.0, block4.0.conv1: what it is part of."""
    parts = name.replace("norm", "conv").split(".")[:3]
    if not name.startswith("block"):
        parts = parts[:1]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _order(label: str) -> tuple[int, list[tuple[str, int]]]:
    """From the network's input to its output."""
    group = 0 if label.startswith(("conv", "norm")) else 1 if label.startswith("block") else 2
    return group, [(stem, int(number or 0)) for stem, number in re.findall(r"(\D+)(\d*)", label)]


def _follows(label: str, next_label: str) -> bool:
    (_, before), (_, after) = _order(label), _order(next_label)
    return before[:-1] == after[:-1] and after[-1] == (before[-1][0], before[-1][1] + 1)
