"""A table as text, Markdown, JSON, CSV and a picture; all of them from `Table.summary`.

Every cell that was planned is shown: its mean and deviation over seeds, why it failed, or "-" where
it has not run. What is compared with the table's reference row stands in a table of its own below.
"""

from __future__ import annotations

import csv as csv_format
import io
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recres.tables.results import Table
from tensorlite.io import replacing, write_bytes

_LEFT = ("ours", "error is")  # columns of numbers with a text after them, which align so
WIDTH = 100  # of running text and of long reasons in the terminal
_OVER = ("videos", "groups", "seeds")  # what a difference's intervals are over
_REASON = 40  # characters of a failure's reason in a table's cell; all of it stands below

# Okabe and Ito's colours, which people with any colour vision tell apart; a column is told by its
# marker too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73")
_MARKERS = ("o", "s", "^")


def text(table: Table) -> str:
    """The table for a terminal."""
    summary = table.summary
    parts = [_title(summary)]
    if summary["caveat"]:
        parts.append(textwrap.fill("Note: " + summary["caveat"], WIDTH))
    parts.append("\n".join(f"{name:14} {value}" for name, value in _about(summary)))
    parts.append(_aligned(*_errors(summary, _REASON)))
    if rows := _differences(summary):
        parts.append(textwrap.fill(_differences_title(summary), WIDTH))
        parts.append(_aligned(*rows))
    if rows := _further(summary):
        parts += ["Further differences:", _aligned(*rows)]
    if notes := _notes(summary):
        parts.append("\n".join(textwrap.fill(note, WIDTH, subsequent_indent="  ")
                               for note in notes))
    return "\n\n".join(part for part in parts if part)


def markdown(table: Table) -> str:
    """The table as Markdown."""
    summary = table.summary
    parts = ["# " + _title(summary)]
    if summary["caveat"]:
        parts.append(f"**{summary['caveat']}**")
    parts.append("\n".join(f"* {name}: {_escape(str(value))}" for name, value in _about(summary)))
    parts.append(_pipes(*_errors(summary)))
    if rows := _differences(summary):
        parts += ["## Differences", _differences_title(summary), _pipes(*rows)]
    if rows := _further(summary):
        parts += ["## Further differences", _pipes(*rows)]
    if notes := _notes(summary):
        parts.append("\n".join(f"* {_escape(note)}" for note in notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def to_json(table: Table) -> str:
    """The table's `summary` as JSON."""
    return json.dumps(table.summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def csv(table: Table) -> str:
    """A line for each of the table's entries that has a number in the paper or a run of ours."""
    summary = table.summary
    file = io.StringIO()
    writer = csv_format.writer(file, lineterminator="\n")
    numbers = ("paper", "video_error", "video_error_deviation", "chunk_error",
               "chunk_error_deviation", "ours_minus_paper")
    writer.writerow([*summary["label_columns"], "column", "reference", *numbers, "seeds",
                     "seeds_planned", "difference", "low_videos", "high_videos", "low_groups",
                     "high_groups", "low_seeds", "high_seeds", "difference_deviation", "verdict",
                     "failed", "note"])
    for row in summary["rows"]:
        for entry in row["entries"]:
            if entry["paper"] is None and not entry["runs"]:
                continue
            found = entry["difference"] or {}
            ends = [end for over in _OVER for end in found.get(over) or (None, None)]
            failed = "; ".join(f"{_run_name(run)}: {run['reason']}" for run in _failed(entry))
            values = [entry[name] for name in numbers] + [
                len(entry["by_seed"]), entry["seeds_planned"], found.get("mean"), *ends,
                found.get("deviation"), found.get("verdict", found.get("reason")), failed,
                row["note"]]
            writer.writerow([*row["label"].values(), entry["column"], int(row["reference"]),
                             *("" if value is None else value for value in values)])
    return file.getvalue()


def write(table: Table, folder: Path) -> list[str]:
    """Write table-N.md, .json, .csv and, where matplotlib is installed, .png into `folder`; their
    names. Each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for suffix, content in ((".md", markdown(table)), (".json", to_json(table)),
                            (".csv", csv(table))):
        name = f"table-{table.number}{suffix}"
        write_bytes(folder / name, content.encode())
        names.append(name)
    try:
        picture(table, folder / f"table-{table.number}.png")
    except ImportError:  # the extra "plots" is not installed
        return names
    return [*names, f"table-{table.number}.png"]


def _title(summary: dict[str, Any]) -> str:
    about = summary["about"]
    return f"Table {summary['table']}: {summary['title']} ({about.get('data', 'unknown data')})"


def _about(summary: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name.replace("_", " "), value) for name, value in summary["about"].items()
            if value is not None]


def _number(value: float | None, sign: bool = False) -> str:
    return "-" if value is None else f"{value:{'+' if sign else ''}.3f}"


def _interval(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"{_number(ends[0], True)} to {_number(ends[1], True)}"


def _failed(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [run for run in entry["runs"] if run["status"] == "failed"]


def _run_name(run: dict[str, Any]) -> str:
    return f"{run['cell']}, split {run['split']}, seed {run['seed']}"


def _ours(entry: dict[str, Any], shorten: int | None = None) -> str:
    """Mean ± deviation, and of how many seeds if some are lacking; why it failed; or "-"."""
    done, planned = len(entry["by_seed"]), entry["seeds_planned"]
    if done:
        deviation = entry["video_error_deviation"]
        shown = _number(entry["video_error"])
        shown += "" if deviation is None else f" ± {deviation:.3f}"
        return shown + (f" ({done} of {planned} seeds)" if done < planned else "")
    if failed := _failed(entry):
        reason = failed[0]["reason"] or "no reason given"
        return "failed: " + (textwrap.shorten(reason, shorten, placeholder=" …")
                             if shorten else reason)
    return "-"


def _errors(summary: dict[str, Any], shorten: int | None = None
            ) -> tuple[list[str], list[list[str]], int]:
    """Headings, rows, and how many columns of labels the table of video errors begins with."""
    columns, several = summary["columns"], len(summary["columns"]) > 1
    headings = list(summary["label_columns"])
    for column in columns:
        headings += [f"{column}: {name}" if several else name
                     for name in ("paper", "ours", "ours - paper")]
    rows = []
    for row in summary["rows"]:
        cells = list(row["label"].values())
        for entry in row["entries"]:
            cells += [_number(entry["paper"]), _ours(entry, shorten),
                      _number(entry["ours_minus_paper"], True)]
        rows.append(cells)
    return headings, rows, len(summary["label_columns"])


def _differences(summary: dict[str, Any]) -> tuple[list[str], list[list[str]], int] | None:
    """The same of the differences from the reference row; None where there are none."""
    several = len(summary["columns"]) > 1
    rows = []
    for row in summary["rows"]:
        for entry in row["entries"]:
            found = entry["difference"]
            if found is None:
                continue
            labels = [*row["label"].values(), *([entry["column"]] if several else [])]
            rows.append([*labels, *_difference_cells(found)])
    if not rows:
        return None
    labels = [*summary["label_columns"], *(["column"] if several else [])]
    return [*labels, *_DIFFERENCE], rows, len(labels)


_DIFFERENCE = ("difference", *(f"95 % interval over: {over}" for over in _OVER), "error is")


def _difference_cells(found: dict[str, Any]) -> list[str]:
    """What stands under the headings of `_DIFFERENCE`."""
    if "reason" in found:
        return [*["-"] * (1 + len(_OVER)), "see below"]
    one = ", one seed" if found["number_of_seeds"] < 2 else ""
    return [_number(found["mean"], True), *(_interval(found[over]) for over in _OVER),
            found["verdict"] + one]


def _further(summary: dict[str, Any]) -> tuple[list[str], list[list[str]], int] | None:
    """The same of the other pairs of rows; None where there are none."""
    several = len(summary["columns"]) > 1
    rows = [[pair["row"], pair["from"], *([pair["column"]] if several else []),
             *_difference_cells(pair["difference"])] for pair in summary["further"]]
    labels = ["of", "from", *(["column"] if several else [])]
    return ([*labels, *_DIFFERENCE], rows, len(labels)) if rows else None


def _differences_title(summary: dict[str, Any]) -> str:
    name = next(row["name"] for row in summary["rows"] if row["reference"])
    return (f"Differences in video error from \"{name}\", on the same test videos. What the "
            "intervals are over: drawing other test videos; drawing other groups of them (clips of "
            "one recording); training with other seeds (Student's t). An error is called higher or "
            "lower only where each of them leaves out zero, and there is no correction for the "
            "number of rows.")


def _notes(summary: dict[str, Any]) -> list[str]:
    """Rows' notes, all failures in full, and why a difference is lacking."""
    notes = [f"{row['name']}: {row['note']}" for row in summary["rows"] if row["note"]]
    several = len(summary["columns"]) > 1
    for row in summary["rows"]:
        for entry in row["entries"]:
            name = row["name"] + (f" ({entry['column']})" if several else "")
            for reason in dict.fromkeys(run["reason"] for run in _failed(entry)):
                which = "; ".join(_run_name(run) for run in _failed(entry)
                                  if run["reason"] == reason)
                notes.append(f"{name}: failed: {reason or 'no reason given'} ({which})")
            waiting = sum(run["status"] == "missing" for run in entry["runs"])
            if waiting:
                notes.append(f"{name}: {waiting} of {len(entry['runs'])} runs not complete yet")
            if entry["difference"] and "reason" in entry["difference"]:
                notes.append(f"{name}: no difference: {entry['difference']['reason']}")
    for pair in summary["further"]:
        if "reason" in pair["difference"]:
            notes.append(f"{pair['row']}: no difference from {pair['from']}: "
                         f"{pair['difference']['reason']}")
    return list(dict.fromkeys(notes))


def _aligned(headings: list[str], rows: list[list[str]], labels: int) -> str:
    """Columns under each other; labels and texts to the left, numbers to the right of theirs.

    A heading "column: name" stands in two lines, the column's name once.
    """
    split = [heading.rpartition(": ")[::2] for heading in headings]
    widths = [max(len(name), *(len(row[i]) for row in rows)) for i, (_, name) in enumerate(split)]
    above = ""
    for i, (group_name, _) in enumerate(split):
        begins = group_name and (i == 0 or split[i - 1][0] != group_name)
        if begins:
            wide = [j for j in range(len(split)) if split[j][0] == group_name]
            short = len(group_name) - sum(widths[j] for j in wide) - 2 * (len(wide) - 1)
            widths[wide[-1]] += max(0, short)
            above = above.ljust(sum(widths[:i]) + 2 * i) + group_name
    lines = [above] if above else []
    for cells in ([name for _, name in split], ["-" * width for width in widths], *rows):
        lines.append("  ".join(
            cell.ljust(width) if i < labels or split[i][1] in _LEFT else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))).rstrip())
    return "\n".join(lines)


def _pipes(headings: list[str], rows: list[list[str]], labels: int) -> str:
    lines = [headings, ["---" if i < labels else "---:" for i in range(len(headings))], *rows]
    return "\n".join("| " + " | ".join(map(_escape, cells)) + " |" for cells in lines)


def _escape(value: str) -> str:
    return " ".join(value.replace("|", "\\|").replace("<", "&lt;").split())


def picture(table: Table, path: Path) -> None:
    """Draw the table: the mean over seeds with its deviation, each seed a dot, the paper's numbers.

    Needs matplotlib. The file appears whole or not at all.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    summary = table.summary
    rows, columns = summary["rows"], summary["columns"]
    present = [[entry for entry in row["entries"] if entry["paper"] is not None or entry["runs"]]
               for row in rows]
    heights = [max(0.5, 0.3 * len(entries)) for entries in present]  # inches
    figure = Figure(figsize=(9, 1.7 + sum(heights) + (0.3 if summary["caveat"] else 0)),
                    layout="constrained")
    axes = figure.subplots()
    middles, top = [], 0.0
    for number, (entries, height) in enumerate(zip(present, heights, strict=True)):
        if number % 2:
            axes.axhspan(top, top + height, color="#f3f4f6", zorder=0)
        middles.append(top + height / 2)
        for i, entry in enumerate(entries):
            _draw_entry(axes, entry, top + height * (i + 0.5) / len(entries),
                        columns.index(entry["column"]))
        top += height
    axes.set_yticks(middles, [_row_name(row) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row["reference"] else "normal")
    axes.set_ylim(top, 0)
    axes.set_xlim(left=-0.012 * axes.get_xlim()[1])  # so that a marker at zero is whole
    axes.set_xlabel("video error")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [Line2D([], [], color=_COLOURS[i % 3], marker=_MARKERS[i % 3], markersize=7,
                      label=f"ours, {column}" if len(columns) > 1 else "ours: mean ± deviation")
               for i, column in enumerate(columns)]
    handles += [Line2D([], [], color="#555555", marker="o", linestyle="none", markersize=3.5,
                       label="a seed"),
                Line2D([], [], color="#333333", marker="D", linestyle="none", markersize=7,
                       markerfacecolor="none", label="paper"
                       + ("" if summary["comparable_with_paper"] else " (all of UCF-101)"))]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False,
                  fontsize=9)
    heading = [_title(summary), *textwrap.wrap(summary["caveat"], 112)]
    figure.suptitle("\n".join(heading), x=0.01, ha="left", fontsize=10)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=130, format="png")


def _row_name(row: dict[str, Any]) -> str:
    name = row["name"] + (" (reference)" if row["reference"] else "")
    return textwrap.fill(name, 34)


def _draw_entry(axes: Any, entry: dict[str, Any], y: float, column: int) -> None:
    colour = _COLOURS[column % 3]
    if entry["by_seed"]:
        seeds = list(entry["by_seed"].values())
        axes.plot(seeds, [y + 0.09] * len(seeds), "o", color=colour, markersize=3, zorder=4,
                  markeredgewidth=0)
        axes.errorbar(entry["video_error"], y, xerr=entry["video_error_deviation"], color=colour,
                      fmt=_MARKERS[column % 3], markersize=7, capsize=4, linewidth=1.6, zorder=5)
    elif entry["runs"]:
        axes.annotate("failed" if _failed(entry) else "not run", (0, y), xytext=(6, 0),
                      textcoords="offset points", va="center", fontsize=8, style="italic",
                      color=colour)
    if entry["paper"] is not None:
        axes.plot(entry["paper"], y, "D", color=colour, markerfacecolor="none", markersize=7,
                  markeredgewidth=1.4, zorder=6)
