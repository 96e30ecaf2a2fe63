"""Whether what a run's files say can be shown: they may be from anyone.

A page or a table lays out what it finds; so each value that it makes something of is looked at
before, and one that cannot be is an error of one line which names the file and the value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from recres.errors import InputError

NORMS = 100  # names of parts of a network whose gradients are logged, at most

Known = tuple[str, Callable[[Any], bool]]  # what is expected, and whether a value is that


def _is_number(value: Any) -> bool:
    # (beyond these bounds sums and logarithms of what is drawn are not finite)
    return type(value) in (int, float) and (value == 0 or 1e-100 <= abs(value) <= 1e100)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


SHARE: Known = "a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1
COUNT: Known = "a count", lambda value: type(value) is int and 0 <= value < 2**53
NUMBER: Known = "a number", _is_number
TIME: Known = "a time", lambda value: _is_number(value) and 0 <= value < 2**53
TEXT: Known = "a text", _is_text
MAPPING: Known = "an object", lambda value: isinstance(value, dict)
TEXTS: Known = "a list of texts", lambda value: isinstance(value, list) and all(
    map(_is_text, value))

RESULT = {"chunk_error": SHARE, "pair_error": SHARE, "within_pair_error": SHARE,
          "reversed_becomes_partner": SHARE, "training_seconds": TIME, "protocol": TEXT,
          "counts": MAPPING, "best": MAPPING, "skipped": MAPPING}
COUNTS = dict.fromkeys(("train_videos", "holdout_videos", "test_videos", "test_chunks"), COUNT)
UPDATE = {"epoch": COUNT, "loss": NUMBER, "learning_rate": NUMBER, "gradient_norm": NUMBER,
          "gradient_norms": MAPPING}
EVALUATION = {"training_loss": NUMBER, "loss": NUMBER}
ABOUT = {"command": TEXTS, "started": TEXT, "environment": MAPPING, "model": MAPPING}
MODEL = {"weights": MAPPING, "temporal_convolutions": TEXT}
WEIGHTS = {"source": TEXT, "initialised": TEXTS}


def check_result(result: Any, path: Path) -> dict[str, Any]:
    """What result.json says; InputError where it is no result of a run."""
    if not isinstance(result, dict) or not isinstance(result.get("per_class"), dict):
        raise InputError(f"{path}: not the result of a run")
    require(result, {"video_error": SHARE}, path)
    _check(result, RESULT, path)
    _check(result.get("counts"), COUNTS, f"{path}: counts")
    best = result.get("best")
    _check(best, {"video_error": SHARE}, f"{path}: best")
    if best:
        require(best, {"epoch": COUNT}, f"{path}: best")
    for name, row in result["per_class"].items():
        require(row, {"video_error": SHARE, "videos": COUNT}, f"{path}: class {_short(name)}")
    return result


def check_about(about: Mapping[str, Any], path: Path) -> None:
    """InputError where what stands in config.json beside the options is not what a run notes."""
    _check(about, ABOUT, path)
    environment = about.get("environment") or {}
    _check(environment, dict.fromkeys(environment, TEXT), f"{path}: environment")
    start = about.get("model") or {}
    _check(start, MODEL, f"{path}: model")
    _check(start.get("weights"), WEIGHTS, f"{path}: weights")


def check_updates(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """InputError where a line of an update in metrics.jsonl is none that a run writes."""
    names: set[str] = set()
    for line in lines:
        where = f"{path}: update {_short(line['update'])}"
        require(line, {"update": COUNT}, where)
        _check(line, UPDATE, where)
        norms = line.get("gradient_norms") or {}
        _check(norms, dict.fromkeys(norms, NUMBER), where)
        names.update(norms)
        if len(names) > NORMS:
            raise InputError(f"{where}: gradients of more than {NORMS} parts")


def check_evaluations(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """The same of a line of an evaluation."""
    for line in lines:
        where = f"{path}: evaluation of epoch {_short(line['epoch'])}"
        require(line, {"epoch": COUNT}, where)
        _check(line, EVALUATION, where)
        found = {name: known for name, known in
                 {"update": COUNT, "video_error": SHARE, "chunk_error": SHARE}.items()
                 if name in line}
        require(line, found, where)


def _check(values: Any, known: Mapping[str, Known], where: str | Path) -> None:
    """InputError where one of the values that are there is not what it can be."""
    if isinstance(values, Mapping):
        require(values, {name: each for name, each in known.items()
                          if values.get(name) is not None}, where)


def require(values: Any, known: Mapping[str, Known], where: str | Path) -> None:
    """InputError unless all these values are there, and each is what it can be."""
    for name, (expected, can_be) in known.items():
        value = values.get(name) if isinstance(values, Mapping) else None
        if not can_be(value):
            raise InputError(f"{where}: {_short(name)} is {_short(value)}, expected {expected}")


def _short(value: Any) -> str:
    """A value in an error message, whose length is nobody's to choose."""
    if isinstance(value, list | dict):  # (which may be nested too deep to be written out)
        return f"a {type(value).__name__}"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
