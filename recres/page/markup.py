"""HTML as values: text that comes from outside cannot become markup, and every tag is closed."""

from __future__ import annotations

from html import escape
from typing import Any

VOID = frozenset(("br", "col", "hr", "img", "link", "meta"))


class Html(str):
    """Text that is markup already."""


def el(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. Children that are `Html` go in as they are, sequences child by child, None not at
    all, everything else as escaped text. In names of attributes `_` stands for `-`, and one at the
    end is dropped (`class_`); an attribute that is None is left out, True stands without value."""
    pairs = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            pairs.append(f" {key}")
        elif value is not None and value is not False:
            pairs.append(f' {key}="{escape(str(value))}"')
    start = f"<{name}{''.join(pairs)}>"
    return Html(start if name in VOID else f"{start}{join(*children)}</{name}>")


def join(*children: Any) -> Html:
    """Children as of `el`, one after the other."""
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(str(child))
        elif isinstance(child, list | tuple):
            parts.append(join(*child))
        elif child is not None:
            parts.append(escape(str(child)))
    return Html("".join(parts))
