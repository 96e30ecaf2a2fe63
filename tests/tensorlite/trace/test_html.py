"""The page as a file: whole, self-contained, and safe whatever the tape says."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib import resources

import pytest

from tensorlite.trace.page import SCRIPTS, STYLES, html
from tensorlite.trace.tape import Tape

from .made_tape import made_tape

VOID = {"meta", "link", "input", "br"}
LOADING = {"src", "srcset", "href", "data", "action", "poster", "xlink:href"}


class Reader(HTMLParser):
    """Reads a page: its elements with their attributes and text. Every element must end."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data


@pytest.fixture(scope="module")
def page() -> str:
    return html(made_tape())


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    return Reader(page)


def test_every_element_ends_and_ids_are_unique(page, read):
    assert page.startswith("<!doctype html>")
    assert read.open == []
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {"graph", "outline", "panels", "slider", "tape"} <= set(ids)


def test_the_page_loads_nothing(page, read):
    for tag, attributes in read.elements:
        for name in LOADING & attributes.keys():
            assert (attributes[name] or "").startswith("data:"), (tag, attributes)
    for text in read.texts["style"]:
        assert "@import" not in text
        assert all(target.startswith("data:") for target in re.findall(r"url\(([^)]*)", text))
    policy = next(a["content"] for tag, a in read.elements if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_the_tape_can_be_read_back(read):
    expected = json.loads(json.dumps(made_tape().as_dict()))
    texts = iter(read.texts["script"])
    scripts = [(a, next(texts)) for tag, a in read.elements if tag == "script"]
    [text] = [text for attributes, text in scripts if attributes.get("id") == "tape"]
    assert json.loads(text) == expected
    assert len(scripts) == 1 + len(SCRIPTS)
    assert all(text.strip() for _, text in scripts)


@pytest.mark.parametrize("nasty", ["</script><script>alert(1)</script>", "<!-- <script>",
                                   "{{tape}}", "\\1 & \"quotes' \u2028", "]]>"])
def test_text_of_the_program_cannot_get_out_of_its_place(nasty):
    tape = Tape(title=nasty, notes=[nasty], sources={nasty: [nasty]})
    read = Reader(html(tape))
    assert read.open == []
    assert read.texts["title"] == [nasty]
    assert read.texts["h1"] == [nasty]
    assert len(read.texts["script"]) == 1 + len(SCRIPTS)
    data = next(json.loads(text) for text in read.texts["script"] if text.startswith("{"))
    assert data["notes"] == [nasty] and data["sources"] == {nasty: [nasty]}


def test_licences_of_the_libraries_are_in_the_page(read):
    [text] = [text for text in read.texts["pre"] if text.strip()]
    assert text.count("Permission is hereby granted") == 2
    for holder in ("Cytoscape", "Chris Pettitt"):
        assert holder in text


def test_each_file_of_the_page_is_used():
    folder = resources.files("tensorlite.trace.page")
    names = {file.name for file in folder.iterdir() if file.name.endswith((".js", ".css"))}
    names |= {f"vendor/{file.name}" for file in (folder / "vendor").iterdir()
              if file.name.endswith(".js")}
    assert names == {*SCRIPTS, *STYLES}


def test_a_script_ends_where_it_ends(read):
    """No script holds what a browser takes for the end of one, or for a start of a comment."""
    for text in read.texts["script"]:
        assert not re.search(r"<(/script|!--)", text, re.IGNORECASE)


def test_an_empty_tape_makes_a_page():
    assert Reader(html(Tape())).texts["title"] == ["Gradient flow"]


def test_what_is_not_finite_is_refused():
    tape = made_tape()
    tape.events[-1].grad.norm = float("nan")
    with pytest.raises(ValueError):
        html(tape)


def test_the_file_is_written_whole(tmp_path):
    made_tape().save_html(tmp_path / "flow.html")
    assert (tmp_path / "flow.html").read_text("utf-8") == html(made_tape())
