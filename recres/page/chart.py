"""Line charts as SVG that takes its colours from the page, so that they fit a dark one too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recres.page.markup import Html, el

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 10, 42  # margins around the plot
COLOURS = 8  # classes c0, c1, ... of the style sheet
DASHES = (None, "6 3", "2 3")
POINTS = 400  # more than these cannot be told apart in a chart of this width


@dataclass(frozen=True)
class Line:
    """A line of a chart: y over x, with a gap where y is None.

    colour: its number; beyond the colours there are, dashes tell lines apart. faint: drawn thin
    and behind the others. marked: its points are drawn, each with its values as a tooltip.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 0
    faint: bool = False
    marked: bool = False

    @property
    def style(self) -> str:
        """The class of its colour."""
        return "faint" if self.faint else f"c{self.colour % COLOURS}"

    @property
    def dash(self) -> str | None:
        """The pattern of its dashes; None where it is drawn through."""
        return DASHES[self.colour // COLOURS % len(DASHES)]


def number(value: float) -> str:
    """A number as short as it can be told: four digits that count."""
    return f"{value:.4g}"


def line_chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], *,
               log: bool = False, mark: tuple[float, float, str] | None = None) -> Html:
    """A figure with one y axis: from zero up, or, with `log`, logarithmic, where values that are
    not positive make gaps. mark: a point to encircle, and what it is. Without a value to draw the
    figure says so."""
    shown = [(line, _points(line, log)) for line in lines]
    shown = [(line, points) for line, points in shown if any(points)]
    heading = el("figcaption", title)
    if not shown:
        return el("figure", heading, el("p", "Nothing was logged of this.", class_="note"),
                  class_="chart")
    every = [point for _, runs in shown for run in runs for point in run]
    x_ticks = ticks(min(0.0, *(x for x, _ in every)), max(x for x, _ in every), whole=True)
    low, high = min(y for _, y in every), max(y for _, y in every)
    y_ticks = log_ticks(low, high) if log else ticks(min(0.0, low), high)
    scale = math.log10 if log else float
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    x_last = max(x for x, _ in every)
    y_first = scale(min(low, y_ticks[0]) if log else y_ticks[0])
    y_last = scale(max(high, y_ticks[-1]) if log else y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / ((x_last - x_ticks[0]) or 1)
        up = (scale(y) - y_first) / ((y_last - y_first) or 1)
        return LEFT + across * plot_width, TOP + (1 - up) * plot_height

    parts: list[Html] = []
    for value in y_ticks:
        _, y = place(x_ticks[0], value)
        parts += [el("path", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", class_="grid"),
                  el("text", number(value), x=LEFT - 7, y=f"{y + 4:.1f}", text_anchor="end")]
    for value in x_ticks:
        if value <= x_last:
            x, _ = place(value, y_ticks[0])
            parts += [el("path", d=f"M{x:.1f} {HEIGHT - BOTTOM}v5", class_="axis"),
                      el("text", f"{value:g}", x=f"{x:.1f}", y=HEIGHT - BOTTOM + 18,
                         text_anchor="middle")]
    parts.append(el("path", d=f"M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}", class_="axis"))
    parts.append(el("text", x_label, x=LEFT + plot_width / 2, y=HEIGHT - 5, text_anchor="middle",
                    class_="label"))
    middle = TOP + plot_height / 2
    parts.append(el("text", y_label, x=13, y=middle, text_anchor="middle", class_="label",
                    transform=f"rotate(-90 13 {middle:g})"))
    for line, runs in sorted(shown, key=lambda item: not item[0].faint):
        parts += _draw(line, [[place(*point) for point in run] for run in runs])
        if line.marked or all(len(run) == 1 for run in runs):
            parts += [_dot(line, place(*point), point, x_label) for run in runs for point in run]
    if mark is not None:
        x, y = place(*mark[:2])
        parts.append(el("circle", el("title", mark[2]), cx=f"{x:.1f}", cy=f"{y:.1f}", r=8,
                        class_="mark"))
    last = "; ".join(f"{line.name}: {number(runs[-1][-1][1])}" for line, runs in shown)
    svg = el("svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img",
             aria_label=f"{title}. Last values: {last}.")
    legend = [el("li", _swatch(line), line.name) for line, _ in shown]
    if mark is not None:
        legend.append(el("li", _ring(), mark[2]))
    return el("figure", heading, svg, el("ul", legend, class_="legend"), class_="chart")


def _points(line: Line, log: bool) -> list[list[tuple[float, float]]]:
    """The pieces of a line between its gaps, thinned to what can be seen: its ends, and of each
    stretch the least and the greatest value, so that no peak is lost."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if y is None or not math.isfinite(y) or (log and y <= 0):
            pieces.append([])
        else:
            pieces[-1].append((float(x), float(y)))
    pieces = [piece for piece in pieces if piece]
    total = sum(map(len, pieces))
    if total <= POINTS:
        return pieces
    step = -(-2 * total // POINTS)
    return [sorted({piece[0], piece[-1], *(point for i in range(0, len(piece), step)
                                           for point in _extremes(piece[i : i + step]))})
            for piece in pieces]


def _extremes(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])]


def _draw(line: Line, runs: list[list[tuple[float, float]]]) -> list[Html]:
    path = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run) for run in runs)
    return [el("path", d=path, class_=f"line {line.style}", stroke_dasharray=line.dash)]


def _dot(line: Line, at: tuple[float, float], point: tuple[float, float], x_label: str) -> Html:
    text = f"{line.name}, {x_label.split(' (')[0]} {point[0]:g}: {number(point[1])}"
    return el("circle", el("title", text), cx=f"{at[0]:.1f}", cy=f"{at[1]:.1f}", r=3,
              class_=f"dot {line.style}")


def _swatch(line: Line) -> Html:
    return el("svg", el("path", d="M1 6H23", class_=f"line {line.style}",
                        stroke_dasharray=line.dash), _small_dot(line), viewBox="0 0 24 12",
              class_="swatch", aria_hidden="true")


def _small_dot(line: Line) -> Html | None:
    return el("circle", cx=12, cy=6, r=3, class_=f"dot {line.style}") if line.marked else None


def _ring() -> Html:
    return el("svg", el("circle", cx=12, cy=6, r=5, class_="mark"), viewBox="0 0 24 12",
              class_="swatch", aria_hidden="true")


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Four to nine round numbers from at most `low` to at least `high`; whole ones if asked."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    steps: list[Any] = [factor * power for factor in (1, 2, 5, 10)]
    step = next((s for s in steps if span / s <= 8), steps[-1])
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from about `low` to `high`, all positive, for a logarithmic axis: powers of
    ten, and where these would be fewer than three, 2 and 5 times them too."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first < 3:
        fine = [m * 10.0 ** e for e in range(first, last + 1) for m in (1, 2, 5)]
        start = max(i for i, value in enumerate(fine) if value <= low * (1 + 1e-9))
        stop = next((i for i, value in enumerate(fine) if value >= high), len(fine) - 1)
        return fine[start : max(stop, start + 1) + 1]
    step = -(-(last - first) // 7)
    return [10.0 ** e for e in range(first, last + step, step)]
