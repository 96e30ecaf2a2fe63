"""A network's weights under PyTorch's names and in its layout: what torchvision's ResNets load.

The way back is in `models/weights.py`. A temporal skip, which torchvision has not, is
`layerS.B.temporal.conv` and `.norm`. Our norms have PyTorch's eps.
"""

from __future__ import annotations

import io
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from recres.errors import InputError
from recres.models import ResNet
from tensorlite.io import save_safetensors, to_oi, to_oihw, write_bytes
from tensorlite.io.torch_pickle import ABOUT

SUFFIXES = (".safetensors", ".pth", ".pt")

_OURS_TO_TORCH = (
    (r"^block(\d)\.", r"layer\1."),
    (r"(norm\d?)\.gamma$", r"\1.weight"),
    (r"(norm\d?)\.beta$", r"\1.bias"),
    (r"\bshortcut\.conv\.", "downsample.0."),
    (r"\bshortcut\.norm\.", "downsample.1."),
    (r"\bnorm(\d)\.", r"bn\1."),
)


def torch_state(model: ResNet) -> dict[str, np.ndarray]:
    """All weights and statistics by PyTorch's names: a whole state_dict, norms' counters too."""
    state: dict[str, np.ndarray] = {}
    for name, array in model.state_dict().items():
        for pattern, replacement in _OURS_TO_TORCH:
            name = re.sub(pattern, replacement, name)
        layout = {4: to_oihw, 2: to_oi}.get(array.ndim)
        state[name] = layout(array) if layout else array
        if name.endswith(".running_var"):
            counter = name.removesuffix("running_var") + "num_batches_tracked"
            state[counter] = np.zeros((), np.int64)
    return state


def save_torch(path: Path, state: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Write a state_dict as .safetensors or, with PyTorch's own `torch.save`, as .pth; `about` is
    its metadata. InputError for another suffix, or .pth without PyTorch.

    A .pth has it in the attribute that PyTorch gives its state_dicts, `_metadata`, where
    `load_state_dict` passes it over: without it v1 would be read back as v1.5, and "caffe" input as
    "torch", and the network would compute nonsense.
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        save_safetensors(path, state, about)
        return
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: suffix {path.suffix!r}, expected one of {', '.join(SUFFIXES)}")
    try:
        import torch
    except ImportError:
        raise InputError(f"{path}: only PyTorch writes {suffix}, and it is not installed; "
                         ".safetensors needs nothing more") from None
    tensors = OrderedDict((name, torch.from_numpy(array)) for name, array in state.items())
    tensors._metadata = {"": {ABOUT: dict(about)}}  # type: ignore[attr-defined]
    written = io.BytesIO()  # where a disk is full, torch.save's own error does not say so
    torch.save(tensors, written)
    write_bytes(path, written.getbuffer())
