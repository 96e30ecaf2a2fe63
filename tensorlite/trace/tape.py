"""What a recording holds: plain records, which are also the JSON that the page and tests read.

Numbers are indices into the tape's lists: a tensor's place in `tensors`, an op's in `ops`. Frames
are numbered from 0. Optional means None (null in JSON) where there is nothing to say.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorlite.io import replacing

FORMAT = "tensorlite.trace 1"


@dataclass
class Picture:
    """An array brought down to a few small planes, to be looked at.

    kind: "rgb" (planes of 3 channels), "maps" (the mean over channels of feature maps) or "matrix".
    height, width: of a plane as it is kept; how: in words, what was done to the array to get here.
    planes: for each plane its title, the frame it shows (optional) and its values, float32,
        little-endian, in C order (height, width[, 3]), as base64.
    """

    kind: str
    height: int
    width: int
    how: str
    planes: list[dict[str, Any]]


@dataclass
class Summary:
    """An array as it was at one moment.

    norm: √Σx²; min, max, mean: over the finite elements (optional: there may be none); nonfinite:
    how many are NaN or infinite. frame_norms: the norm of each frame's part, a list as long as the
    tape has frames, None for frames that the array lacks; optional. values: all elements in C
    order, of arrays of at most `summary.WHOLE` elements; optional. histogram: {"low", "high",
    "counts", "of"}, of so many elements evenly picked; optional, as is `picture`: for larger ones.
    """

    shape: list[int]
    dtype: str
    norm: float
    min: float | None
    max: float | None
    mean: float | None
    nonfinite: int = 0
    frame_norms: list[float | None] | None = None
    values: list[float | None] | None = None
    histogram: dict[str, Any] | None = None
    picture: Picture | None = None


@dataclass
class Check:
    """Derivatives by central differences beside those of backward, of some elements of an array;
    None for numbers that are not finite.

    where: the flat indices of the elements, all if `every`. analytic, numeric: the derivative of
    each. smooth: whether the function has a derivative there, as far as differences can tell.
    along: {"analytic", "numeric"}: the derivative along one random direction, which every element
    has a part in; optional. worst: the largest difference over what is tolerated, right: at most 1.
    """

    where: list[int]
    every: bool
    analytic: list[float | None]
    numeric: list[float | None]
    smooth: list[bool]
    along: dict[str, float | None] | None
    worst: float
    right: bool


@dataclass
class TensorRecord:
    """A tensor of the program.

    name: a parameter's path in its model ("block1.0.conv1.weight"), else the variable that held it
    where that is known, else "%7" after its number. A leaf whose values have changed since it was
    recorded, by an optimiser, is recorded as a tensor of its own: "w (2)". kind: "parameter",
    "leaf" (with a gradient), "constant" (without) or "result". op: what made it, of results;
    optional. frames: the frames that it holds, in order; optional. grad: d(loss)/d(this) when
    complete; optional. numeric: the check of that against differences of the whole program;
    optional.
    """

    name: str
    kind: str
    shape: list[int]
    dtype: str
    requires_grad: bool
    op: int | None = None
    frames: list[int] | None = None
    value: Summary | None = None
    grad: Summary | None = None
    numeric: Check | None = None


@dataclass
class OpRecord:
    """One op applied.

    op: its name ("conv2d"). forward, backward: its formulas, in plain text. slots: the names of its
    inputs in them; inputs: a tensor or None where an optional one was left out. roles: for each
    input its part where the op is a sum of named parts ("residual branch", "spatial skip",
    "temporal skip"), else None. shifts: for each input by how many frames it comes earlier than the
    output: 1 for a temporal skip; 0.
    module: path in the model ("block1.0.conv1"; "" is the model itself, None outside any), and
    module_type its class. source: {"file", "line", "text", "function"} of the program's line that
    asked for it; optional. saved: [{"shape", "dtype", "bytes"}] of what was kept for backward,
    saved_bytes their sum, counting what other tensors hold anyway. options: JSON-ready.
    """

    op: str
    slots: list[str]
    inputs: list[int | None]
    output: int
    options: dict[str, Any]
    forward: str
    backward: str
    roles: list[str | None]
    shifts: list[int]
    frames: list[int] | None
    module: str | None
    module_type: str | None
    source: dict[str, Any] | None
    saved: list[dict[str, Any]]
    saved_bytes: int
    recorded: bool


@dataclass
class Piece:
    """What one step of the backward walk sent to one input of its op.

    slot: which input; tensor: that input. grad: what was sent. before: the sum of what had arrived
    there earlier (None: this is the first), after: the sum with it. Where `before` is not None,
    paths meet. deposited: whether the sum is complete and went to the leaf's ``.grad`` at this
    step; held: what that had held from an earlier backward, and was added to; optional. sum_right:
    whether after = before + grad. check: of `grad`, against differences of this one op; optional.
    """

    slot: int
    tensor: int
    grad: Summary
    before: Summary | None
    after: Summary
    deposited: bool = False
    held: Summary | None = None
    sum_right: bool = True
    check: Check | None = None


@dataclass
class Unsent:
    """An input that a step of the backward walk sent nothing to, though its gradient is not zero;
    as in `Piece`. Only recorded with differences, which tell."""

    slot: int
    tensor: int
    check: Check


@dataclass
class Event:
    """One step of the recording, in the order in which they happened.

    kind: "forward" (op applied), "start" (backward begins at `tensor` with the gradient `grad`) or
    "backward" (the walk passes `op`, whose output's gradient is complete and is `grad`). numbers:
    the step's formula with the numbers put in, where they are few; optional. unsent: what a wrong
    backward left out.
    """

    kind: str
    op: int | None = None
    tensor: int | None = None
    grad: Summary | None = None
    numbers: str | None = None
    pieces: list[Piece] = field(default_factory=list)
    unsent: list[Unsent] = field(default_factory=list)


@dataclass
class Ledger:
    """Where the gradients of parameters come from, at the joint of one residual block.

    block: its module path; op: the sum where its paths meet. parts: [{"role", "frame", "norm"}]:
    one linear part of the gradient at the joint each, by path ("other" where the sum's term has no
    role) and by frame of what it goes back to; parts that are zero are left out. parameters: by
    name {"shape", "where": flat indices of the elements shown, those where the gradient is
    largest, "every": whether they are all, "whole": {"norm", "values"}: the gradient followed as
    one, "parts": [{"norm", "share", "values"}] beside `parts`, "rest": the same, of what does not
    come by this joint, "error": max |sum of parts and rest - whole| / max |whole|, "run": {"norm",
    "values"} of the gradient that the program itself came to}. share is <part, whole> / <whole,
    whole>, so that shares add up to 1; None where the whole is zero. Each part is computed in the
    program's precision; they are added up in float64.
    """

    block: str
    op: int
    parts: list[dict[str, Any]]
    parameters: dict[str, dict[str, Any]]


@dataclass
class Tape:
    """A recorded program; see `trace.record`.

    frames: how many frames were marked; None where there are none. sources: the text of the
    program's files, line by line, by path. notes: what the reader of the page should know.
    """

    title: str = "Gradient flow"
    frames: int | None = None
    tensors: list[TensorRecord] = field(default_factory=list)
    ops: list[OpRecord] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    ledgers: list[Ledger] = field(default_factory=list)
    sources: dict[str, list[str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The tape as JSON-ready dictionaries and lists, with "format" beside the fields; what is a
        list or dictionary in a record is shared with it, not copied."""
        return {"format": FORMAT, **_fields(self)}

    def _repr_html_(self) -> str:
        from .notebook import tape_html

        return tape_html(self)

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write the tape as JSON; the file appears whole or not at all."""
        _write(Path(path), json.dumps(self.as_dict(), allow_nan=False))

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the page that steps through the tape: one file that opens offline."""
        from .page import html

        _write(Path(path), html(self))


def _fields(record: Any) -> dict[str, Any]:
    """A record and those that it holds as dictionaries. (`dataclasses.asdict` would copy every
    number as well: most of the time that it takes to save a page.)"""
    return {name: _plain(value) for name, value in vars(record).items()}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
        return [_fields(item) for item in value]
    return value


def _write(path: Path, text: str) -> None:
    if path.exists() and not path.is_file():  # a pipe, a device: nothing to put in its place
        path.write_text(text, "utf-8")
        return
    with replacing(path) as beside:
        beside.write_text(text, "utf-8")
