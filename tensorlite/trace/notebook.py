"""What tensors and tapes look like in a notebook: HTML that needs nothing beside itself.

Colours follow the reader's light or dark setting and are never all that tells two things apart.
"""

from __future__ import annotations

import base64
import html
import math
import struct
from collections.abc import Sequence

import numpy as np

from tensorlite.device import Array, to_device
from tensorlite.tensor import Tensor

from .steps import Gradient, Steps, number
from .summary import picture_of, summarise
from .tape import Picture, Summary, Tape

TABLE, STACK = 64, 16  # values of a matrix, and of more axes, shown as such; others as pictures
PLANES = 4  # of a picture
EMBEDDED = 2_000_000  # characters of a page that is shown within the notebook

STYLE = """<style>
.tensorlite { font: 14px/1.5 system-ui, sans-serif; color: #1a1a1a; color-scheme: light dark;
  --line: #bbb; --soft: #555; }
.tensorlite code { font: 13px/1.5 ui-monospace, monospace; }
.tensorlite .sides { display: flex; flex-wrap: wrap; gap: 2em; margin-top: .5em; }
.tensorlite .soft { color: var(--soft); }
.tensorlite table { border-collapse: collapse; margin: .25em 0; background: none; }
.tensorlite td, .tensorlite th { border: 1px solid var(--line); padding: .1em .5em;
  text-align: right; font-variant-numeric: tabular-nums; background: none; color: inherit; }
.tensorlite th:first-child { text-align: left; }
.tensorlite svg { display: inline-block; margin: .25em .5em .25em 0; }
.tensorlite iframe { width: 100%; height: 640px; border: 1px solid var(--line); }
@media (prefers-color-scheme: dark) { .tensorlite { color: #e6e6e6; --line: #555; --soft: #aaa; } }
</style>"""


def tensor_html(tensor: Tensor) -> str:
    """A tensor: what it is, its values or a picture of them, its gradient beside it."""
    facts = [_shape(tensor.shape), str(tensor.dtype), tensor.device]
    if tensor.node is not None:
        facts.append(f"made by {tensor.node.name}")
    elif tensor.requires_grad:
        facts.append("requires_grad")
    name = "Tensor" if tensor.name is None else f"Tensor {tensor.name}"
    parts = [_side("", tensor.data)]
    if tensor.grad is not None:
        parts.append(_side("gradient", tensor.grad))
    return (f'{STYLE}<div class="tensorlite"><b>{_text(name)}</b> '
            f'<span class="soft">{_text(", ".join(facts))}</span>'
            f'<div class="sides">{"".join(parts)}</div></div>')


def tape_html(tape: Tape) -> str:
    """A tape: a summary with a table of its modules, and its page, unless that is large."""
    counts = [sum(event.kind == kind for event in tape.events) for kind in ("forward", "backward")]
    meetings = sum(any(piece.before is not None for piece in event.pieces)
                   for event in tape.events)
    words = (f"{counts[0]} steps forward, {counts[1]} backward, "
             f"at {meetings} of which paths meet")
    rows = [("module", "type", "ops", "‖∂ output‖", "‖∂ parameters‖")]
    for row in Steps(tape).modules(len(tape.events) - 1):
        rows.append((row.path, row.type, str(row.ops), _norm(row.output),
                     "" if not row.parameters else
                     "not computed" if row.norm is None else number(row.norm)))
    notes = "".join(f"<p>{_text(note)}</p>" for note in tape.notes)
    return (f'{STYLE}<div class="tensorlite"><b>{_text(tape.title)}</b> '
            f'<span class="soft">{_text(words)}</span>{notes}{_table(rows)}{_page(tape)}</div>')


def _page(tape: Tape) -> str:
    from .page import html as page

    if not tape.events:
        return ""
    text = page(tape)
    if len(text) > EMBEDDED:
        return (f'<p class="soft">The page that steps through it has {len(text) / 1e6:.1f} MB: '
                'write it with <code>tape.save_html("flow.html")</code>.</p>')
    return f'<iframe title="{_text(tape.title)}" srcdoc="{_text(text)}"></iframe>'


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _shape(shape: Sequence[int]) -> str:
    return f"shape {tuple(shape)}" if shape else "scalar"


def _norm(gradient: Gradient) -> str:
    return "not computed" if gradient.summary is None else number(gradient.summary.norm)


def _side(title: str, array: Array) -> str:
    data = to_device(array, "cpu")
    summary = summarise(data)
    head = f'<div class="soft">{_text(title)}</div>' if title else ""
    if data.size <= (TABLE if data.ndim <= 2 else STACK):
        return f"<div>{head}{_values(summary)}</div>"
    picture = picture_of(data.astype(np.float64), None, False)
    return f"<div>{head}{_statistics(summary)}{_heat(picture)}</div>"


def _statistics(summary: Summary) -> str:
    words = [f"norm {number(summary.norm)}"]
    if summary.min is not None:
        words += [f"min {number(summary.min)}", f"max {number(summary.max)}",
                  f"mean {number(summary.mean)}"]
    if summary.nonfinite:
        words.append(f"{summary.nonfinite} NaN or ∞")
    return f"<div><code>{_text(', '.join(words))}</code></div>"


def _values(summary: Summary) -> str:
    """A number, a row, or a table for each matrix."""
    assert summary.values is not None
    values = [number(value) for value in summary.values]
    if not summary.shape:
        return f"<code>{values[0]}</code>"
    if not values:
        return '<span class="soft">empty</span>'
    columns = summary.shape[-1]
    rows = summary.shape[-2] if len(summary.shape) > 1 else 1
    tables = []
    for start in range(0, len(values), rows * columns):
        lines = [values[k:k + columns]
                 for k in range(start, start + rows * columns, columns)]
        tables.append(_table([tuple(line) for line in lines], head=False))
    return "".join(tables)


def _table(rows: Sequence[tuple[str, ...]], head: bool = True) -> str:
    lines = []
    for k, row in enumerate(rows):
        cell = "th" if head and k == 0 else "td"
        lines.append("".join(f"<{cell}>{_text(text)}</{cell}>" for text in row))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _heat(picture: Picture | None) -> str:
    if picture is None:
        return ""
    shown = "".join(_plane(picture, plane) for plane in picture.planes[:PLANES])
    return f'<div>{shown}</div><div class="soft">{_text(picture.how)}</div>'


def _plane(picture: Picture, plane: dict) -> str:
    """One plane as squares of colour: blue below zero, orange above, white to the page at zero; or
    red, green and blue."""
    raw = base64.b64decode(plane["data"])
    values = struct.unpack(f"<{len(raw) // 4}f", raw)
    colours = _rgb(values) if picture.kind == "rgb" else _signed(values)
    side = max(2, min(12, 168 // max(picture.height, picture.width)))
    squares = "".join(
        f'<path fill="{colour}" d="M{k % picture.width} {k // picture.width}h1v1h-1z"/>'
        for k, colour in enumerate(colours))
    label = _text(plane["title"] or picture.how)
    return (f'<svg role="img" aria-label="{label}" width="{picture.width * side}" '
            f'height="{picture.height * side}" viewBox="0 0 {picture.width} {picture.height}" '
            f'shape-rendering="crispEdges"><title>{label}</title>{squares}</svg>')


def _signed(values: Sequence[float]) -> list[str]:
    """Colours of signed values, the largest of which is full."""
    top = max((abs(v) for v in values if math.isfinite(v)), default=0.0) or 1.0
    colours = []
    for value in values:
        if not math.isfinite(value):
            colours.append("#888")
            continue
        full = (213, 94, 0) if value > 0 else (0, 114, 178)  # of the palette of Okabe and Ito
        share = abs(value) / top
        colours.append("#" + "".join(f"{round(255 + share * (c - 255)):02x}" for c in full))
    return colours


def _rgb(values: Sequence[float]) -> list[str]:
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, width = min(finite), (max(finite) - min(finite)) or 1.0
    parts = [round(255 * (v - low) / width) if math.isfinite(v) else 128 for v in values]
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in zip(*[iter(parts)] * 3, strict=True)]
