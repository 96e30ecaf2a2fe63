"""Which runs the paper's tables are made of, and where in a table each one's error stands.

A `Cell` is a run of `recres.train` by its options, apart from split and seed; tables share cells
that are the same run. The networks of tables 2 to 5 are given the same number of updates, of the
same number of frames each (or, with --update-fraction, of the same share of their chunks), and are
fine-tuned to the same depth. The paper's numbers: Iqbal et al. 2017.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recres.models.resnet import STAGES, stage_number

NUMBERS = (1, 2, 3, 4, 5)
SEGMENTS = 3  # of temporal segment networks (Wang et al. 2016)
# Of the models on frozen features, which cost next to nothing beside the networks.
SEQUENCE_OPTIONS = {"epochs": 20, "lr": 3e-3, "schedule": "cosine", "batch": 16}
CONTROLS = ("none-last", "none-frames")


@dataclass(frozen=True)
class Cell:
    """A run by its options. backbone: whether it starts from the network that was trained on single
    frames, where no --weights are given; budgeted: whether the budget says how long it trains."""

    name: str
    options: Mapping[str, Any]
    backbone: bool = False
    budgeted: bool = True


@dataclass(frozen=True)
class Place:
    """Where in a row a number stands: its column, the paper's number, and whose it is; the scores
    of several cells are fused."""

    column: str
    paper: float | None
    cells: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowPlan:
    """A row by its labels."""

    label: tuple[str, ...]
    places: tuple[Place, ...]
    note: str = ""


@dataclass(frozen=True)
class TablePlan:
    """A table of the paper. Differences are taken from the row of the cell `reference`, and besides
    between the rows of each pair of cells in `further`."""

    number: int
    title: str
    label_columns: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[RowPlan, ...]
    reference: str
    further: tuple[tuple[str, str], ...] = ()

    def place(self, cell: str) -> int:
        """Which row is that of a cell alone."""
        return next(i for i, row in enumerate(self.rows)
                    if any(place.cells == (cell,) for place in row.places))


@dataclass
class Plan:
    """Tables and the cells they need, each before those that start from it."""

    tables: list[TablePlan] = field(default_factory=list)
    cells: dict[str, Cell] = field(default_factory=dict)


def make(numbers: Sequence[int], truncate: str, frames: int, pretrained: str | None) -> Plan:
    """The plan of these tables.

    truncate: the stage that the network ends with, or "none". frames: of an update. pretrained: the
    last stage that --weights fill, None where the backbone is one that is trained on single frames.
    """
    last = "block4" if truncate == "none" else truncate
    known = _cells(last, frames, pretrained)
    tables = [_TABLES[number](last, known) for number in numbers]
    wanted = {name for table in tables for row in table.rows for place in row.places
              for name in place.cells}
    if pretrained is None and any(known[name].backbone for name in wanted):
        wanted.add("none-frames")
    cells = {name: cell for name, cell in known.items() if name in wanted}
    return Plan(tables, dict(sorted(cells.items(), key=lambda item: _turn(item[1]))))


def _turn(cell: Cell) -> tuple[Any, ...]:
    """Backbones before what starts from them; cells that sample videos alike one after the other,
    since frames once decoded are shared."""
    options = cell.options
    return cell.backbone, options.get("input", "frames"), options.get("context", 1)


def _cells(last: str, frames: int, pretrained: str | None) -> dict[str, Cell]:
    """Every cell by name; `last`: the network's last stage."""
    cells: dict[str, Cell] = {}

    def add(name: str, context: int, backbone: bool = False, **options: Any) -> None:
        batch = max(1, frames // context)
        cells[name] = Cell(name, {"context": context, "batch": batch, **options}, backbone)

    for position in positions(last):
        add(f"conv-{position}", 2, skip="conv", position=position)
    add("identity", 2, skip="identity", position=last)
    add("conv_nonlinear", 2, skip="conv_nonlinear", position=last)
    for skip in ("conv", "conv_nonlinear"):
        add(f"{skip}-same-frame", 2, skip=skip, position=last, recurrent_gradient="same-frame")
    for context in (3, 5):
        add(f"identity-T{context}", context, skip="identity", position=last)
    add("none-last", 2, skip="none", readout="last")
    add("none-frames", 1, skip="none")
    add("pure-temporal", 2, skip="pure_temporal", position=last)
    add("segments", SEGMENTS, model="avgpool", sampling="segments")
    # Inputs of another kind leave nothing that a frozen stage was trained for.
    add("flow", 1, skip="none", input="flow", freeze="none")
    add("dynamic", 1, skip="none", input="dynamic", freeze="none")
    for stage in ("block4", "block3", "block2"):
        if stage_number(stage) > min(stage_number(last), stage_number(pretrained or last)):
            continue  # the network ends before it, or nothing has trained it
        for model in ("avgpool", "gru", "lstm"):
            for z_norm in (True, False):
                name = f"{stage}-{model}" + ("-znorm" if z_norm else "")
                cells[name] = Cell(name, {"model": model, "features": stage, "z_norm": z_norm,
                                          **SEQUENCE_OPTIONS}, backbone=True, budgeted=False)
    return cells


def positions(last: str) -> tuple[str, ...]:
    """Table 2's positions in a network that ends with the stage `last`."""
    return "block1", "block2", f"mid_{last}", last


def _table_1(last: str, cells: Mapping[str, Cell]) -> TablePlan:
    paper = {("block4", "avgpool"): (0.236, 0.237), ("block4", "gru"): (0.239, 0.276),
             ("block3", "avgpool"): (0.309, 0.313), ("block3", "gru"): (0.403, 0.325),
             ("block2", "avgpool"): (0.431, 0.434), ("block2", "gru"): (0.440, 0.493)}
    columns = "with Z-norm", "without"
    rows = []
    for (stage, model), numbers in paper.items():
        if f"{stage}-{model}" not in cells:
            absent = "not run: the network ends before it, or the weights do not fill it"
            places = tuple(Place(c, n) for c, n in zip(columns, numbers, strict=True))
            rows.append(RowPlan((stage, _MODELS[model]), places, absent))
            continue
        names = f"{stage}-{model}-znorm", f"{stage}-{model}"
        rows.append(RowPlan((stage, _MODELS[model]), tuple(
            Place(*each[:2], (each[2],)) for each in zip(columns, numbers, names, strict=True))))
    deepest = next(stage for stage in reversed(STAGES) if f"{stage}-avgpool" in cells)
    deeper = f"{deepest}-gru-znorm"
    further = tuple((f"{stage}-gru-znorm", deeper) for stage in ("block3", "block2")
                    if stage != deepest and f"{stage}-gru" in cells)
    return TablePlan(1, "Frozen features of single frames", ("features", "model"), columns,
                     tuple(rows), f"{deepest}-avgpool-znorm", further)


_MODELS = {"avgpool": "average pooling", "gru": "GRU, 128 units"}


def _row(label: Sequence[str], paper: float | None, cell: str, note: str = "") -> RowPlan:
    return RowPlan(tuple(label), (Place("error", paper, (cell,)),), note)


def _controls(width: int) -> tuple[RowPlan, ...]:
    """The network without a temporal skip, fine-tuned the same way: rows that the paper lacks."""
    return tuple(_row((text, *[""] * (width - 1)), None, cell) for text, cell in (
        ("control: no temporal skip, last frame", "none-last"),
        ("control: no temporal skip, every frame", "none-frames")))


def _table_2(last: str, cells: Mapping[str, Cell]) -> TablePlan:
    places = positions(last)
    paper = dict(zip(places, (0.265, 0.234, 0.231, 0.219), strict=True))
    rows = [_row((name, "conv"), paper[name], f"conv-{name}",
                 f"the paper's number is of {name.replace(last, 'block4')}"
                 if last != "block4" and last in name else "") for name in places]
    return TablePlan(2, "Position of the temporal skip", ("position", "type"), ("error",),
                     (*rows, *_controls(2)), "none-frames", _from_last_frame(
                         f"conv-{name}" for name in places))


def _from_last_frame(cells: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Each compared with the other control, which is shown half of the frames."""
    return tuple((cell, "none-last") for cell in cells)


def _table_3(last: str, cells: Mapping[str, Cell]) -> TablePlan:
    right, wrong = "Σ a(t-1) e(t)", "Σ a(t) e(t)"
    rows = (_row(("identity", ""), 0.197, "identity"),
            _row(("conv, linear", right), 0.219, f"conv-{last}"),
            _row(("conv, non-linear", right), 0.210, "conv_nonlinear"),
            _row(("conv, linear", wrong), 0.219, "conv-same-frame"),
            _row(("conv, non-linear", wrong), 0.210, "conv_nonlinear-same-frame"))
    further = (("conv-same-frame", f"conv-{last}"),
               ("conv_nonlinear-same-frame", "conv_nonlinear"),
               (f"conv-{last}", "identity"), ("conv_nonlinear", "identity"),
               *_from_last_frame(("identity", f"conv-{last}", "conv_nonlinear")))
    return TablePlan(3, "Type of the temporal skip", ("type", "gradient of W_s"), ("error",),
                     (*rows, *_controls(2)), "none-frames", further)


def _table_4(last: str, cells: Mapping[str, Cell]) -> TablePlan:
    deepest = next(stage for stage in reversed(STAGES) if f"{stage}-avgpool" in cells)
    baseline = f"{deepest}-avgpool-znorm"
    rows = (_row(("1", "baseline: frozen features, average pooling"), 0.236, baseline),
            _row(("2", "1 temporal skip"), 0.197, "identity"),
            _row(("3", "2 temporal skips"), 0.194, "identity-T3"),
            _row(("5", "4 temporal skips"), 0.209, "identity-T5"),
            _row(("1", "control: no temporal skip, every frame"), None, "none-frames"),
            _row(("2", "control: no temporal skip, last frame"), None, "none-last"))
    return TablePlan(4, "Temporal context", ("frames", "network"), ("error",), rows, "none-frames",
                     (("identity", baseline), ("none-frames", baseline),
                      *_from_last_frame(("identity", "identity-T3", "identity-T5"))))


def _table_5(last: str, cells: Mapping[str, Cell]) -> TablePlan:
    columns = "appearance", "motion", "both"
    deepest = next(stage for stage in reversed(STAGES) if f"{stage}-lstm" in cells)

    def row(name: str, paper: Sequence[float | None], *cells: Sequence[str]) -> RowPlan:
        own = [*cells, *[()] * (3 - len(cells))]
        return RowPlan((name,), tuple(
            Place(c, p, tuple(names)) for c, p, names in zip(columns, paper, own, strict=True)))

    rows = (row("improved dense trajectories", (None, None, 0.141)),
            row("dynamic image networks", (0.231, None, None), ["dynamic"]),
            row("two-stream", (0.270, 0.163, 0.120), ["none-frames"], ["flow"],
                ["none-frames", "flow"]),
            row("two-stream, GoogLeNet", (0.247, 0.142, 0.107)),
            row("two-stream, VGG", (0.216, 0.130, 0.086)),
            row("spatio-temporal ResNets", (None, None, 0.066)),
            row("recurrent residual network", (0.198, None, None), ["identity"], [],
                ["identity", "flow"]),
            row("temporal segments", (None, None, None), ["segments"]),
            row("purely temporal skip", (None, None, None), ["pure-temporal"]),
            row("LSTM on frozen features", (None, None, None), [f"{deepest}-lstm-znorm"]))
    return TablePlan(5, "Appearance, motion and both", ("method",), columns, rows, "identity")


_TABLES = {1: _table_1, 2: _table_2, 3: _table_3, 4: _table_4, 5: _table_5}
