"""The page that steps through a recorded program: one HTML file that needs nothing else.

The template, the style sheets and the scripts lie beside this file and are put together as they
are; the tape goes in as JSON. Whoever opens the page needs no network, and the page forbids itself
any (its Content-Security-Policy).
"""

from __future__ import annotations

import html as markup
import json
import re
from importlib import resources

from ..tape import Tape

STYLES = ("page.css", "graph.css")
SCRIPTS = ("vendor/dagre.min.js", "vendor/cytoscape.min.js", "store.js", "views.js", "layout.js",
           "labels.js", "look.js", "graph.js", "outline.js", "check.js", "step.js", "arrays.js",
           "grid.js", "ledger.js", "controls.js")


def html(tape: Tape) -> str:
    """The text of the page for `tape`."""
    parts = {
        "title": markup.escape(tape.title),
        "style": "\n".join(_text(name) for name in STYLES),
        "licences": markup.escape("\n\n".join(_licences())),
        "tape": _json(tape),
        "scripts": "\n".join(f"<script>\n{_script(_text(name))}\n</script>" for name in SCRIPTS),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _text("template.html"))


def _json(tape: Tape) -> str:
    """The tape as JSON without the character that could end the element which holds it."""
    text = json.dumps(tape.as_dict(), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _script(text: str) -> str:
    """A script in which no string ends the element that holds it."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", text, flags=re.IGNORECASE)


def _text(name: str) -> str:
    path = resources.files(__package__).joinpath(name)
    return path.read_text("utf-8") if path.is_file() else ""


def _licences() -> list[str]:
    """The licences of the libraries that the page carries."""
    folder = resources.files(__package__).joinpath("vendor")
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return [file.read_text("utf-8") for file in files if file.name.endswith(".LICENSE")]
