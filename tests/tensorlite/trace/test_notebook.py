"""What tensors and tapes look like in a notebook: right numbers, escaped, nothing from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor, trace
from tensorlite.trace import notebook
from tensorlite.trace.tape import Tape

from .made_tape import made_tape

VOID = {"path"}  # closes itself


class Reader(HTMLParser):
    """Reads HTML, refusing what is not closed; keeps cells, elements and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def read(thing) -> Reader:
    text = thing._repr_html_() if isinstance(thing, Tensor) else notebook.tape_html(thing)
    assert not re.search(r"(src|href)=|@import|url\(|https?:", text.partition("srcdoc")[0])
    assert "prefers-color-scheme: dark" in text
    return Reader(text)


def test_a_small_tensor_with_its_gradient():
    w = Tensor([[1.0, -2.5], [3.0, 1 / 3]], requires_grad=True)
    (w * w).sum().backward()
    page = read(w)
    assert page.tables == [[["1", "-2.5"], ["3", "0.3333"]], [["2", "-5"], ["6", "0.6667"]]]
    assert "shape (2, 2), float32, cpu, requires_grad" in page.text
    assert "gradient" in page.text


def test_what_made_a_tensor_scalars_and_stacks():
    x = Tensor(2.0, requires_grad=True)
    assert "scalar, float32, cpu, made by exp" in read(x.exp()).text
    assert "7.389" in read(x.exp()).text
    assert read(Tensor(np.arange(4.0))).tables == [[["0", "1", "2", "3"]]]
    stack = read(Tensor(np.arange(8).reshape(2, 2, 2)))
    assert stack.tables == [[["0", "1"], ["2", "3"]], [["4", "5"], ["6", "7"]]]
    assert "empty" in read(Tensor(np.zeros((0, 3)))).text
    assert read(Tensor([np.nan, np.inf, 1.0])).tables == [[["NaN or ∞", "NaN or ∞", "1"]]]


def test_a_heat_map_of_a_larger_matrix():
    values = np.zeros((10, 12))
    values[0, 0], values[0, 1], values[9, 11] = 4.0, -4.0, 2.0
    page = read(Tensor(values))
    assert not page.tables
    assert f"norm 6, min -4, max 4, mean {2 / 120:.4g}" in page.text
    paths = [attributes for tag, attributes in page.elements if tag == "path"]
    assert len(paths) == 120
    assert [paths[k]["fill"] for k in (0, 1, 2, 119)] == ["#d55e00", "#0072b2", "#ffffff",
                                                        "#eaae80"]
    assert paths[119]["d"].startswith("M11 9")


def test_feature_maps_are_shown_as_a_few_planes():
    rng = np.random.default_rng(0)
    page = read(Tensor(rng.standard_normal((6, 8, 9, 4)).astype(np.float32)))
    planes = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(planes) == notebook.PLANES
    assert all(plane["aria-label"] for plane in planes)
    assert "mean over 4 channels" in page.text
    assert len(notebook.tensor_html(Tensor(rng.standard_normal((8, 112, 112, 3))))) < 500_000


def test_everything_is_escaped():
    x = Tensor(1.0, requires_grad=True)
    x.name = "<script>alert('x')</script>"
    page = read(x)
    assert "Tensor <script>alert('x')</script>" in page.text
    assert not any(tag == "script" for tag, _ in page.elements)
    tape = Tape(title='"><script>', notes=["<b>bold</b> & more"])
    page = read(tape)
    assert '"><script>' in page.text and "<b>bold</b> & more" in page.text


class Net(tl.nn.Module):
    def __init__(self) -> None:
        self.fc = tl.nn.Linear(2, 3, rng=np.random.default_rng(0))

    def forward(self, x):
        return self.fc(x).relu()


def test_a_tape_with_its_page():
    with trace.record("A <small> one") as tape:
        net = Net()
        net(Tensor([[1.0, 2.0]])).sum().backward()
    page = read(tape)
    assert "A <small> one" in page.text
    assert "3 steps forward, 3 backward, at 0 of which paths meet" in page.text
    table = page.tables[0]
    assert table[0] == ["module", "type", "ops", "‖∂ output‖", "‖∂ parameters‖"]
    norm = np.hypot(*(np.linalg.norm(p.grad) for p in net.parameters()))
    row = next(row for row in table if row[0] == "fc")
    assert row[1:3] == ["Linear", "1"] and row[4] == f"{norm:.4g}"
    frames = [attributes for tag, attributes in page.elements if tag == "iframe"]
    assert len(frames) == 1
    inside = frames[0]["srcdoc"]
    assert inside.lstrip().lower().startswith("<!doctype html>")
    assert 'id="tape"' in inside


def test_a_large_page_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(notebook, "EMBEDDED", 1000)
    page = read(made_tape())
    assert not any(tag == "iframe" for tag, _ in page.elements)
    assert 'tape.save_html("flow.html")' in page.text
    assert page.tables
