"""Makes the lessons' pages: python docs/lessons/make_pages.py [NUMBER...]

Runs each lesson within `trace.record(check=True)` and writes pages/01_by_hand.html, …, which step
through what the script did, and pages/index.html, which links them.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import html
import io
import runpy
from pathlib import Path

from tensorlite import trace

HERE = Path(__file__).resolve().parent
PAGES = HERE / "pages"
INDEX = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Lessons</title>
<meta name="viewport" content="width=device-width">
<style>body {{ font: 20px/1.5 system-ui, sans-serif; max-width: 40em; margin: 2em auto; }}
:root {{ color-scheme: light dark; }} li {{ margin: .5em 0; }}</style>
<h1>The gradient flow, in seven lessons</h1>
<ol>
{items}
</ol>
</html>
"""


def lessons() -> list[Path]:
    """The lessons' scripts, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def title(script: Path) -> str:
    """The first line of a script's docstring."""
    text = ast.get_docstring(ast.parse(script.read_text("utf-8"))) or script.stem
    return text.partition("\n")[0].rstrip(".")


def record(script: Path) -> trace.Tape:
    """What a lesson does, with derivatives by differences; what it prints is not shown."""
    with (contextlib.redirect_stdout(io.StringIO()),
          trace.record(title(script), check=True) as tape):
        runpy.run_path(str(script), run_name="__main__")
    return tape


def index(scripts: list[Path]) -> str:
    """The page that links the lessons' pages."""
    items = [f'<li><a href="{s.stem}.html">{html.escape(title(s).partition(", ")[2])}</a></li>'
             for s in scripts]
    return INDEX.format(items="\n".join(items))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the lessons' pages.")
    parser.add_argument("numbers", type=int, nargs="*", help="lessons to make; all by default")
    numbers = parser.parse_args().numbers
    PAGES.mkdir(exist_ok=True)
    for script in lessons():
        if not numbers or int(script.stem[:2]) in numbers:
            record(script).save_html(PAGES / f"{script.stem}.html")
            print(PAGES / f"{script.stem}.html")
    (PAGES / "index.html").write_text(index(lessons()), "utf-8")
    print(PAGES / "index.html")


if __name__ == "__main__":
    main()
