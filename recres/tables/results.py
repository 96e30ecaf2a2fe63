"""What came of a table's runs: a cell's mean over seeds, and its differences with their intervals.

A `Table` says what was run and what came of each run; it may be half done, and what is missing or
failed stays in it. `Table.summary` is all that is shown anywhere: every number in it is worked out
here, from the runs' results and score files, and the renderers only lay it out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from recres.errors import InputError
from recres.scores import SavedScores, read_scores
from recres.statistics import mean_and_deviation, mean_interval, paired_difference

PAPER_DATA, PAPER_CLASSES = "ucf101", 101
LEVEL = 0.95
ROUNDING = 1e-12  # what is nearer to zero than this is zero

_GROUP = re.compile(r"(v_.*)_(g\d+)_c\d+")


@dataclass(frozen=True)
class RunResult:
    """One run of a cell. cell: its name; path: the run's folder; scores: its score file; seconds:
    how long it trained; reason: why it failed. Numbers are None unless the run is complete."""

    cell: str
    seed: int
    split: int
    path: str
    status: Literal["complete", "failed", "missing"]
    video_error: float | None = None
    chunk_error: float | None = None
    seconds: float | None = None
    scores: str | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.status == "complete" and self.video_error is None:
            raise ValueError(f"{self.path}: complete, but without a video error")


@dataclass(frozen=True)
class Entry:
    """A row's place in one column: the paper's number, if it has one, and our runs, if any."""

    column: str
    paper: float | None = None
    runs: list[RunResult] = field(default_factory=list)

    def complete_seeds(self) -> dict[int, list[RunResult]]:
        """The runs of each seed that is complete on all of the entry's splits, by split. The others
        do not count: a mean over fewer splits is of other videos."""
        splits = {run.split for run in self.runs}
        done: dict[int, list[RunResult]] = {}
        for run in self.runs:
            if run.status == "complete":
                done.setdefault(run.seed, []).append(run)
        return {seed: sorted(runs, key=lambda run: run.split) for seed, runs in sorted(done.items())
                if {run.split for run in runs} == splits}

    def by_seed(self, error: str = "video_error") -> dict[int, float]:
        """Each complete seed's error, averaged over the splits."""
        return {seed: float(np.mean([getattr(run, error) for run in runs]))
                for seed, runs in self.complete_seeds().items()
                if all(getattr(run, error) is not None for run in runs)}


@dataclass(frozen=True)
class Row:
    """A line of a table. label: by the table's label columns, e.g. {"features": "block4", "model":
    "GRU"}. reference: the row that the others are compared with. note: shown beneath the table."""

    label: dict[str, str]
    entries: list[Entry]
    reference: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        """The labels in one text."""
        return ", ".join(text for text in self.label.values() if text)

    def entry(self, column: str) -> Entry:
        """What stands in a column; an empty entry where nothing was planned."""
        return next((entry for entry in self.entries if entry.column == column), Entry(column))


@dataclass(frozen=True)
class Table:
    """A table, finished or not.

    about: what its reader has to know, by name: at least "data" and "classes", then e.g. videos,
    budget, updates a cell, backbone. At most one row is the reference. further: pairs of rows, by
    their places, to be compared besides: the first of each with the second. ValueError for labels
    or columns that the table does not have.
    """

    number: int
    title: str
    about: dict[str, Any]
    label_columns: list[str]
    columns: list[str]
    rows: list[Row]
    further: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for row in self.rows:
            if list(row.label) != self.label_columns:
                raise ValueError(f"row {row.name}: labels {list(row.label)}, expected "
                                 f"{self.label_columns}")
            named = [entry.column for entry in row.entries]
            if len(set(named)) < len(named) or not set(named) <= set(self.columns):
                raise ValueError(f"row {row.name}: columns {named}, expected of {self.columns}")
        if sum(row.reference for row in self.rows) > 1:
            raise ValueError("rows: more than one reference")

    @property
    def reference(self) -> Row | None:
        """The row that the others are compared with."""
        return next((row for row in self.rows if row.reference), None)

    @property
    def comparable(self) -> bool:
        """Whether the paper's numbers are of this data set."""
        return (self.about.get("data"), self.about.get("classes")) == (PAPER_DATA, PAPER_CLASSES)

    @property
    def caveat(self) -> str:
        """What a reader must know before looking at the paper's numbers beside ours."""
        if self.comparable:
            return ""
        return (f"The paper's numbers are of UCF-101 with its {PAPER_CLASSES} classes, ours of "
                f"{self.about.get('data', 'another data set')} with "
                f"{self.about.get('classes', 'other')} classes: 'ours - paper' is information, not "
                "a comparison.")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """All that is shown of the table, of JSON's types.

        An entry's "difference" is None where there is nothing to compare, and has only a "reason"
        where score files cannot be compared.
        """
        reference = self.reference
        return {
            "table": self.number, "title": self.title, "about": self.about,
            "comparable_with_paper": self.comparable, "caveat": self.caveat,
            "label_columns": self.label_columns, "columns": self.columns,
            "reference": reference.label if reference else None,
            "rows": [{"label": row.label, "name": row.name, "reference": row.reference,
                      "note": row.note,
                      "entries": [self._summarise(row, column) for column in self.columns]}
                     for row in self.rows],
            "further": [{"row": self.rows[one].name, "from": self.rows[other].name,
                         "column": column, "difference": difference}
                        for one, other in self.further for column in self.columns
                        if (difference := self._difference(self.rows[one], self.rows[other],
                                                           column)) is not None]}

    def _summarise(self, row: Row, column: str) -> dict[str, Any]:
        entry = row.entry(column)
        errors = entry.by_seed()
        mean, deviation = mean_and_deviation(list(errors.values())) if errors else (None, None)
        chunk = list(entry.by_seed("chunk_error").values())
        chunk_mean, chunk_deviation = mean_and_deviation(chunk) if chunk else (None, None)
        off = mean - entry.paper if mean is not None and entry.paper is not None else None
        return {
            "column": column, "paper": entry.paper,
            "video_error": mean, "video_error_deviation": deviation,
            "chunk_error": chunk_mean, "chunk_error_deviation": chunk_deviation,
            "by_seed": {str(seed): error for seed, error in errors.items()},
            "seeds_planned": len({run.seed for run in entry.runs}),
            "splits": sorted({run.split for run in entry.runs}),
            "ours_minus_paper": off,
            "difference": None if row.reference else self._difference(row, self.reference, column),
            "runs": [asdict(run) for run in entry.runs]}

    def _difference(self, row: Row, base: Row | None, column: str) -> dict[str, Any] | None:
        if base is None:
            return None
        entry, other = row.entry(column), base.entry(column)
        if not entry.complete_seeds() or not other.complete_seeds():
            return None
        try:
            return compare(entry, other, str(self.about.get("data")))
        except InputError as error:
            return {"reason": str(error)}


def compare(entry: Entry, base: Entry, data: str = PAPER_DATA) -> dict[str, Any]:
    """How much larger an entry's video error is than another's, on the same test videos.

    Every video counts the same, over all splits together; a video's error is the mean over each
    entry's complete seeds. "videos" and "groups" are the ends of the intervals over test videos and
    over groups of them, "seeds" over the differences of the seeds that both have: None with one.
    "verdict" is "higher" or "lower" only where each of them leaves zero out. InputError where score
    files cannot be read or are of other videos.
    """
    errors, base_errors = _video_errors(entry), _video_errors(base)
    if different := errors.keys() ^ base_errors.keys():
        split, name = min(different)
        raise InputError(f"other test videos: {name} of split {split} is in one of them only")
    places = sorted(errors)
    a, b = (np.array([by_video[place] for place in places]) for by_video in (errors, base_errors))
    groups = [group(name, data) for _, name in places]
    ours, theirs = entry.by_seed(), base.by_seed()
    shared = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    try:
        videos = paired_difference(a, b, level=LEVEL)
        clusters = paired_difference(a, b, groups, level=LEVEL)
    except ValueError as error:
        raise InputError(f"no interval: {error}") from None
    by_seed = mean_interval(shared, LEVEL) if shared else None
    intervals = [videos[1:], clusters[1:], *([by_seed] if by_seed else [])]
    verdict = ("higher" if all(low > ROUNDING for low, _ in intervals) else
               "lower" if all(high < -ROUNDING for _, high in intervals) else "not detectable")
    return {"mean": videos.mean, "level": LEVEL,
            "videos": [videos.low, videos.high], "groups": [clusters.low, clusters.high],
            "seeds": list(by_seed) if by_seed else None,
            "deviation": mean_and_deviation(shared)[1] if shared else None,
            "number_of_videos": len(places), "number_of_groups": len(set(groups)),
            "number_of_seeds": len(shared), "verdict": verdict}


def group(name: str, data: str = PAPER_DATA) -> str:
    """What a video shares its recording with: class and group of v_<Class>_g01_c02, else itself. In
    the drawn figures a group is an actor at a place, who performs all classes."""
    found = _GROUP.fullmatch(name)
    if found is None:
        return name
    return found[2] if data == "figures" else f"{found[1]}_{found[2]}"


def _video_errors(entry: Entry) -> dict[tuple[int, str], float]:
    """By split and name, the share of the complete seeds that get a video wrong."""
    wrong: dict[tuple[int, str], list[bool]] = {}
    seeds = entry.complete_seeds()
    for runs in seeds.values():
        for run in runs:
            scores = _read(run)
            for name, right in zip(scores.names, scores.right, strict=True):
                wrong.setdefault((run.split, name), []).append(not right)
    few = [name for (_, name), found in wrong.items() if len(found) < len(seeds)]
    if few:
        raise InputError(f"other test videos: {min(few)} is not in every seed's scores")
    return {place: float(np.mean(found)) for place, found in wrong.items()}


def _read(run: RunResult) -> SavedScores:
    if run.scores is None:
        raise InputError(f"{run.path}: no score file")
    scores = read_scores(run.scores)
    if scores.split and scores.split != run.split:
        raise InputError(f"{run.scores}: scores of split {scores.split}, expected {run.split}")
    # A score file that is not the result's would make an interval of another run.
    if run.video_error is not None and abs(scores.video_error - run.video_error) > 1e-9:
        raise InputError(f"{run.scores}: video error {scores.video_error:.4f}, the run's result "
                         f"says {run.video_error:.4f}")
    return scores


def times(tables: Sequence[Table]) -> float:
    """Seconds that the complete runs of some tables trained, a run that several share once."""
    runs = {run.path: run.seconds or 0.0 for table in tables for row in table.rows
            for entry in row.entries for run in entry.runs if run.status == "complete"}
    return sum(runs.values())
