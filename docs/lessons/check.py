"""Checks the exercises of a lesson: python docs/lessons/check.py 3

For each exercise one line says "right", "not yet" or what is wrong. The functions are those of
`exercises/`, or of the folder given as --folder.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
from checks import CHECKS, Check

HERE = Path(__file__).resolve().parent


def load(path: Path) -> ModuleType:
    """The module in the file at `path`, whose name need not be an identifier."""
    spec = importlib.util.spec_from_file_location(f"lesson_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verdict(check: Check, module: ModuleType, name: str) -> str:
    """What is to be said about the function `name` of the learner's module."""
    function = getattr(module, name, None)
    if function is None:
        return f"not yet: there is no function {name}"
    try:
        with np.errstate(all="ignore"):
            hint = check(function)
    except NotImplementedError:
        return "not yet"
    except Exception as error:  # the learner's code may do anything
        return f"raises {type(error).__name__}: {error}"
    return "right" if hint is None else hint


def verdicts(lesson: int, folder: Path) -> dict[str, str]:
    """`verdict` of each exercise of a lesson, by name."""
    (path,) = folder.glob(f"{lesson:02}_*.py")
    module = load(path)
    return {name: verdict(check, module, name) for name, check in CHECKS[lesson].items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the exercises of a lesson.")
    parser.add_argument("lesson", type=int, choices=sorted(CHECKS))
    parser.add_argument("--folder", type=Path, default=HERE / "exercises")
    args = parser.parse_args()
    said = verdicts(args.lesson, args.folder)
    for number, (name, text) in enumerate(said.items(), 1):
        print(f"{args.lesson}.{number} {name}: {text}")
    return int(any(text != "right" for text in said.values()))


if __name__ == "__main__":
    raise SystemExit(main())
