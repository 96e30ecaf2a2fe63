"""The lessons run, and say nothing that is not so.

A number in a lesson stands in one of three places: in the code; in a comment behind a `print` (and
in the lines of comment directly below it), which is that print's output, to the letter, up to a
"←"; or in other text, where it must be a number of the code or of the output, or part of a
calculation ("2 + 4 = 6") that comes out.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import io
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from tensorlite import trace

LESSONS = Path(__file__).resolve().parents[2] / "docs" / "lessons"
SCRIPTS = sorted(LESSONS.glob("[0-9][0-9]_*.py"))
CALCULATION = re.compile(r"(?<![\w.])[\d(\-−][\d.()·+\-−/³² ]*(?:= [\d.()·+\-−/³² ]*\d)+")
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")
each_lesson = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


@functools.cache
def module(name: str) -> ModuleType:
    """A module of the lessons' folder, which is no package."""
    sys.path.insert(0, str(LESSONS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(LESSONS))


# What a script says


class Said(NamedTuple):
    """What a script states: its output, line by line, and its other text."""

    output: list[str]
    text: str


def said(source: str) -> Said:
    comments, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            comments[line] = token.string.removeprefix("#").removeprefix(" ")
            if token.line.strip().startswith("#"):
                alone.add(line)
    tree = ast.parse(source)
    prints = [node for node in ast.walk(tree) if isinstance(node, ast.Call)
              and isinstance(node.func, ast.Name) and node.func.id == "print"]
    output, rest = [], [ast.get_docstring(tree) or ""]
    rest += [ast.get_docstring(node) or "" for node in ast.walk(tree)
             if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for node in sorted(prints, key=lambda node: node.lineno):
        line = node.end_lineno or 0
        if line not in comments and line + 1 in alone:
            line += 1
        while line in comments:
            stated, _, why = comments.pop(line).partition("←")
            output.append(stated.rstrip())
            rest.append(why)
            line += 1
            if line not in alone:
                break
    return Said(output, "\n".join([*rest, *comments.values()]))


def printed(source: str, name: str = "lesson") -> list[str]:
    """What a script prints, line by line."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(source, name, "exec"), {"__name__": "__main__"})
    return out.getvalue().splitlines()


def unexplained(source: str, output: list[str]) -> list[str]:
    """Numbers of a script's text that come from nowhere, and calculations that do not come out."""
    code = [float(node.value) for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Constant) and type(node.value) in (int, float)]
    known = {0.0, 1.0, 2.0, *code, *(float(n) for line in output for n in NUMBER.findall(line))}
    text = re.sub(r"[Ll]essons? \d|[a-z]\w*_\w+", "", said(source).text)
    wrong = []
    for match in CALCULATION.finditer(text):
        sides = [side.replace("·", "*").replace("−", "-").replace("³", "**3").replace("²", "**2")
                 for side in match[0].split("=")]
        values = [eval(side) for side in sides]  # (of digits and signs alone)
        if np.ptp(values) > 1e-9:
            wrong.append(match[0])
        known.update(float(n) for n in NUMBER.findall(match[0]))
    return wrong + [n for n in NUMBER.findall(text) if float(n) not in known]


@each_lesson
def test_what_a_lesson_states_is_what_it_prints(script: Path) -> None:
    source = script.read_text("utf-8")
    output = printed(source, str(script))
    assert said(source).output == output
    assert unexplained(source, output) == []


@each_lesson
def test_a_lesson_is_short_and_its_page_named_after_it(script: Path) -> None:
    source = script.read_text("utf-8")
    assert len(source.splitlines()) <= 60
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert docstring.startswith(f"Lesson {int(script.stem[:2])}, ")


def test_the_ladder_has_seven_rungs() -> None:
    assert [int(script.stem[:2]) for script in SCRIPTS] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("source", "fault"), [
    ("print(3)  # 4", "output"),  # wrong
    ("print(3)", "output"),  # not stated
    ("x = 3  # 3", None),
    ("print(3)  # 3\n# 4", "output"),  # a line more
    ("print(3)  # 3  ← 1 + 2 = 3", None),
    ("print(3)  # 3  ← 1 + 1 = 3", "text"),  # does not come out
    ("print(3)  # 3  ← 7, as said", "text"),  # from nowhere
    ('"""It gives 5.5."""\nprint(3)  # 3', "text"),
    ("for i in range(2):\n    print(i)\n# 0\n# 1", None),
    ("for i in range(2):\n    print(i)\n\n# 0\n# 1", "output"),  # not directly below
    ("for i in range(2):\n    print(i)  # 0\n# 1", None),
    ("# 12.5 is expected\nprint(3)  # 3", "text"),
])
def test_a_wrong_statement_is_found(source: str, fault: str | None) -> None:
    output = printed(source)
    faults = {"output"} if said(source).output != output else set()
    if unexplained(source, output):
        faults.add("text")
    assert faults == ({fault} if fault else set())


# The recording and the pages


@functools.cache
def tape(script: Path) -> trace.Tape:
    return module("make_pages").record(script)


@each_lesson
def test_the_recording_of_a_lesson_agrees_with_differences(script: Path) -> None:
    recorded = tape(script)
    pieces = [p for event in recorded.events for p in event.pieces]
    assert pieces and all(p.sum_right for p in pieces)
    checks = [p.check for p in pieces if p.check] + [t.numeric for t in recorded.tensors
                                                    if t.numeric]
    assert checks and all(check.right for check in checks)
    assert not [e for e in recorded.events if e.kind == "forward" and e.op is None]


def test_lesson_7_has_a_grid_of_time_and_layers() -> None:
    recorded = tape(SCRIPTS[6])
    assert recorded.frames == 4
    joins = [op for op in recorded.ops if "temporal skip" in op.roles]
    assert {op.module for op in joins} >= {"identity3.0", "identity3.1", "identity3.2", "conv3.0"}
    assert all(op.shifts[op.roles.index("temporal skip")] == 1 for op in joins)


def links() -> list[tuple[str, int, str, str]]:
    """Rows of the README that link a step: page, step, kind of step, op."""
    row = re.compile(r"^\| \[step (\d+)\]\(pages/(\w+)\.html#step=(\d+)\S*\) \| (\w+) "
                     r"\| `?(\w+)`? \|", re.MULTILINE)
    found = []
    for shown, page, step, kind, op in row.findall((LESSONS / "README.md").read_text("utf-8")):
        assert shown == step
        found.append((page, int(step), kind, op))
    return found


def test_the_readme_links_steps_of_every_lesson() -> None:
    text = (LESSONS / "README.md").read_text("utf-8")
    assert len(links()) == len(re.findall(r"\(pages/\w+\.html#", text))
    assert {page for page, *_ in links()} == {script.stem for script in SCRIPTS}
    for name in re.findall(r"\]\((?!pages/)([^)#]+)\)", text):
        assert (LESSONS / name).exists(), name


@pytest.mark.parametrize(("page", "step", "kind", "op"), links())
def test_a_linked_step_is_what_the_readme_says(page: str, step: int, kind: str, op: str) -> None:
    recorded = tape(LESSONS / f"{page}.py")
    event = recorded.events[step - 1]  # the page counts from 1
    meets = any(piece.before is not None for piece in event.pieces)
    assert kind == ("meeting" if meets else event.kind)
    if event.op is not None:
        assert op == recorded.ops[event.op].op


def test_pages_are_made_and_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pages = module("make_pages")
    monkeypatch.setattr(make_pages, "PAGES", tmp_path / "pages")
    recorded = {script: tape(script) for script in SCRIPTS}
    monkeypatch.setattr(make_pages, "record", recorded.get)
    monkeypatch.setattr(sys, "argv", ["make_pages.py"])
    with contextlib.redirect_stdout(io.StringIO()):
        make_pages.main()
    index = (tmp_path / "pages" / "index.html").read_text("utf-8")
    for script in SCRIPTS:
        assert f'href="{script.stem}.html"' in index
        page = (tmp_path / "pages" / f"{script.stem}.html").read_text("utf-8")
        assert make_pages.title(script) in page.replace("&#x27;", "'")


# The exercises

RIGHT = {script.stem: LESSONS / "answers" / script.name for script in SCRIPTS}
NAMES = [(lesson, name) for lesson, checks in module("checks").CHECKS.items() for name in checks]


def verdict(lesson: int, name: str, function: Callable[..., Any] | None) -> str:
    holder = ModuleType("learner")
    if function is not None:
        setattr(holder, name, function)
    check = module("check")
    return check.verdict(module("checks").CHECKS[lesson][name], holder, name)


def answers(lesson: int) -> ModuleType:
    (path,) = (LESSONS / "answers").glob(f"{lesson:02}_*.py")
    return module("check").load(path)


@each_lesson
def test_model_answers_are_right_and_empty_ones_are_not(script: Path) -> None:
    verdicts = module("check").verdicts
    lesson = int(script.stem[:2])
    filled = verdicts(lesson, LESSONS / "answers")
    assert 2 <= len(filled) <= 4 and set(filled.values()) == {"right"}, filled
    unfilled = verdicts(lesson, LESSONS / "exercises")
    assert "right" not in unfilled.values()
    # (In "walk" there is a bug to find: it is there, and wrong.)
    assert {name for name, text in unfilled.items() if text != "not yet"} <= {"walk"}


@each_lesson
def test_exercises_and_answers_have_the_same_functions(script: Path) -> None:
    def functions(folder: str) -> dict[str, list[str]]:
        tree = ast.parse((LESSONS / folder / script.name).read_text("utf-8"))
        return {node.name: [a.arg for a in node.args.args] for node in tree.body
                if isinstance(node, ast.FunctionDef)}

    asked, answered = functions("exercises"), functions("answers")
    assert asked == answered
    assert list(asked) == list(module("checks").CHECKS[int(script.stem[:2])])


def shifted(grad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A wrong `unbroadcast`: it forgets the lengths of 1."""
    return grad.sum(axis=tuple(range(grad.ndim - len(shape))))


def norm_without(*terms: str) -> Callable[..., Any]:
    """A batch norm's backward that lacks some of its terms."""
    def backward(z: np.ndarray, gamma: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, ...]:
        sigma = z.std(axis=0)
        zhat = (z - z.mean(axis=0)) / sigma
        dz = g.copy()
        if "mean" not in terms:
            dz -= g.mean(axis=0)
        if "slope" not in terms:
            dz -= zhat * (g * zhat).mean(axis=0)
        if "scale" not in terms:
            dz *= gamma / sigma
        return dz, (g * zhat).sum(axis=0), g.sum(axis=0)
    return backward


def overlapping(x: np.ndarray, w: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A wrong convolution backward: a pixel keeps the last piece alone."""
    dx, dw = np.zeros(len(x)), np.zeros(len(w))
    for i in range(len(g)):
        for a in range(len(w)):
            dx[i + a] = w[a] * g[i]
            dw[a] += x[i + a] * g[i]
    return dx, dw


def last_piece(tape: Any, values: Any, root: str) -> dict[str, float]:
    return {root: 1.0}


WRONG: list[tuple[int, str, Callable[..., Any], str]] = [
    (1, "predict", lambda: (4, 8), "a factor"),
    (1, "predict", lambda: (-8, -16), "the sign"),
    (1, "predict", lambda: 8, "return 2 results"),
    (1, "predict", lambda: (16, 8), "dL/dw: a factor"),
    (1, "difference", lambda f, x, h=1e-4: (f(x + h) - f(x)) / h, "to one side"),
    (1, "difference", lambda f, x, h=1e-4: (f(x + h) - f(x - h)) / h, "a factor"),
    (1, "step", lambda w, v, b, n, t, r: (w, v), "the new w"),
    (1, "step", lambda w, v, b, n, t, r: (w + 2 * r * (w * n + v * b - t) * n,
                                          v + 2 * r * (w * n + v * b - t) * b), "the new w"),
    (2, "predict", lambda: (-4, -8, -12), "by before: the sign"),
    (2, "predict", lambda: (-4, 8, -4), "dL/dw"),
    (2, "backward", lambda w, b, n, t: 2 * (w * n - w * b - t) * (n - b), "dL/dw for w"),
    (2, "walk", last_piece, "dy/da"),
    (3, "predict", lambda: ([6, -2], [4]), "a factor"),
    (3, "predict", lambda: ([[1, -1], [2, 0]], [2]), "shape"),
    (3, "unbroadcast", lambda g, shape: g, "shape"),
    (3, "unbroadcast", shifted, "shape"),
    (3, "centre_backward", lambda g: g, "two places"),
    (3, "centre_backward", lambda g: g - g.mean(axis=0), "dL/dx"),
    (3, "hunt", lambda: "add", "two names"),
    (3, "hunt", lambda: ("subtract", "broadcast"), "not where"),
    (3, "hunt", lambda: ("add", "no-accumulation"), "in another way"),
    (4, "predict", lambda: ([5, 8], [1, 2, 2]), "dL/dx: 1 of 3"),
    (4, "backward", overlapping, "dL/dx"),
    (4, "backward", lambda x, w, g: (np.convolve(g, w[::-1]), np.correlate(x, g, "valid")),
     "dL/dx"),
    (4, "padded_backward", lambda x, w, g, p: (np.convolve(g, w), np.correlate(np.pad(x, p), g)),
     "with a padding of 1"),
    (4, "hunt", lambda: ("conv2d", "same-frame"), "in another way"),
    (5, "predict", lambda: [0, 0, 0, 1], "2 of 4"),
    (5, "predict", lambda: [-0.25, -0.25, -0.25, 0.75], "that is not it"),
    (5, "backward", norm_without("mean", "slope"), "Σ dL/dz of"),
    (5, "backward", norm_without("slope"), "Σ dL/dz · ẑ"),
    (5, "backward", norm_without("scale"), "dL/dz: that is not it"),
    (5, "cotangents", lambda: ([1, 1, 1, 1], [1, 0, 0, 0]), "may be equal"),
    (5, "cotangents", lambda: ([1, 0, 0, 0], [1, 0, 0, 0]), "the first"),
    (5, "cotangents", lambda: ([1, -1, 0, 0], [1, 0, 1, 0]), "the second"),
    (5, "hunt", lambda: ("batch_norm", "broadcast"), "in another way"),
    (6, "predict", lambda: (0.125, 0.125), "without: the sign"),
    (6, "predict", lambda: (1.5, -0.125), "with the skip"),
    (6, "paths", lambda n, w: [w**k for k in range(n + 1)], "2 blocks"),
    (6, "paths", lambda n, w: [(1 + w) ** n], "shape"),
    (6, "backward", lambda x, W, g: ((g * (x @ W > 0)) @ W.T, x.T @ (g * (x @ W > 0))),
     "one of the two paths"),
    (6, "backward", lambda x, W, g: (g, x.T @ (g * (x @ W > 0))), "only what comes by the skip"),
    (6, "backward", lambda x, W, g: (g + g @ W.T, x.T @ g), "dL/dx"),
    (6, "hunt", lambda: ("add", "broadcast"), "not where"),
    (7, "predict", lambda: ([0.0625] * 5, [1] * 5), "elements are wrong"),
    (7, "predict", lambda: ([0.0625, 0.125, 0.25, 0.5, 1], [1] * 5), "elements are wrong"),
    (7, "temporal_weight_gradient", lambda x, e: x.T @ e, "same frame"),
    (7, "temporal_weight_gradient", lambda x, e: x[1:].T @ e[1:], "same frame"),
    (7, "temporal_weight_gradient", lambda x, e: e[1:].T @ x[:-1], "dL/dW_s"),
    (7, "input_gradient", lambda W, W_s, e: e + e @ W.T + e @ W_s.T, "dL/dx"),
    (7, "input_gradient", lambda W, W_s, e: e + e @ W.T, "dL/dx"),
    (7, "hunt", lambda: ("conv2d", "padding"), "in another way"),
]


@pytest.mark.parametrize(("lesson", "name", "wrong", "hint"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(
        lesson: int, name: str, wrong: Callable[..., Any], hint: str) -> None:
    text = verdict(lesson, name, wrong)
    assert hint in text and text != "right" and "\n" not in text


@pytest.mark.parametrize(("lesson", "name"), NAMES)
def test_no_exercise_takes_anything(lesson: int, name: str) -> None:
    """Neither nothing, nor NaN, nor zeros of the right shape, nor what raises."""
    assert (lesson, name) in {(n, exercise) for n, exercise, *_ in WRONG}
    right = getattr(answers(lesson), name)

    def blown(value: Any, by: float) -> Any:
        if isinstance(value, dict):
            return {key: blown(item, by) for key, item in value.items()}
        if isinstance(value, tuple):
            return tuple(blown(item, by) for item in value)
        return value if isinstance(value, str) else np.asarray(value, float) * by

    assert verdict(lesson, name, None).startswith("not yet")
    assert verdict(lesson, name, lambda *a: None) != "right"
    assert "ZeroDivisionError" in verdict(lesson, name, lambda *a: 1 / 0)
    if name != "hunt":
        for by in (0.0, np.nan) if name == "cotangents" else (0.0, np.nan, 1.001):
            assert verdict(lesson, name, lambda *a: blown(right(*a), by)) != "right"  # noqa: B023


def test_the_command_says_a_line_for_each_exercise(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["check.py", "1"])
    assert module("check").main() == 1
    assert capsys.readouterr().out == "1.1 predict: not yet\n1.2 difference: not yet\n" \
                                      "1.3 step: not yet\n"
    monkeypatch.setattr(sys, "argv", ["check.py", "1", "--folder", str(LESSONS / "answers")])
    assert module("check").main() == 0
    assert capsys.readouterr().out == "1.1 predict: right\n1.2 difference: right\n1.3 step: right\n"


def test_hunts_cover_the_bugs() -> None:
    hunts = module("hunt").HUNTS
    assert set(hunts.values()) == set(trace.BUGS)
    with contextlib.redirect_stdout(io.StringIO()):
        for program in module("hunt").PROGRAMS.values():
            program()
    assert all(bug in (module("hunt").__doc__ or "") for bug in trace.BUGS)


def test_a_hunt_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module("hunt"), "PAGES", tmp_path / "pages")
    monkeypatch.setattr(sys, "argv", ["hunt.py", "4"])
    module("hunt").main()
    page = Path(capsys.readouterr().out.strip())
    assert page.name == "hunt_04.html" and "Hunt 4" in page.read_text("utf-8")


@pytest.mark.parametrize("command", [["07_time.py"], ["check.py", "3", "--folder",
                                                      str(LESSONS / "answers")]])
def test_commands_run_as_the_readme_gives_them(command: list[str]) -> None:
    script, *options = command
    root = LESSONS.parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, f"docs/lessons/{script}", *options], cwd=root,
                          env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
