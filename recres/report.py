"""`python -m recres.report RUN...`: one HTML page about one run, or several side by side.

The page stands alone: styles, charts and pictures are inside, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import tensorlite
from recres import commands
from recres.config import Config
from recres.datasets import figures, ucf101
from recres.errors import InputError
from recres.page import film, sections
from recres.page.markup import Html, el, join
from recres.page.sections import Shown
from recres.run_files import check_about, check_evaluations, check_result, check_updates
from recres.runs import Run, read_metrics, refuse_own
from recres.scores import read_scores
from tensorlite.io import one_line, replacing

# Nothing outside the page may be asked for, whatever should get into it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def parser() -> commands.Parser:
    """The command's arguments."""
    result = commands.Parser("recres.report", "Make an HTML page about a run, or about several, "
                             "which are compared.", less_memory="fewer runs need less")
    result.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run")
    result.add_argument("--out", metavar="FILE", type=Path, help="the page (default: report.html, "
                        "in the folder of the run, or, of several, here)")
    result.add_argument("--root", metavar="DIR", help="folder of the data set, to show examples "
                        "from (default: each run's)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return commands.run(parser(), _report, argv)


def _report(args: argparse.Namespace) -> int:
    if len({path.resolve() for path in args.runs}) < len(args.runs):
        raise InputError("a run was given twice")
    out = args.out or Path("report.html" if len(args.runs) > 1 else args.runs[0] / "report.html")
    runs = [read_run(path) for path in args.runs]
    if not out.parent.is_dir() or out.is_dir():
        raise InputError(f"--out {out}: expected a file in a folder that is there")
    refuse_own(out, "--out")
    films = []
    with commands.bar("reading videos", "run", len(runs)) as shown:
        for run in runs:
            films.append(read_films(run, args.root))
            shown.update()
    data = page(_distinct(runs), films).encode(errors="backslashreplace")  # (names of folders)
    with replacing(out) as beside:
        beside.write_bytes(data)
    print(one_line(f"{'written':12} {out} ({len(data) / 1e6:.1f} MB)"))
    return 0


def read_run(path: Path) -> Shown:
    """What the page needs of the run in a folder. InputError where that cannot be read."""
    run = Run.open(path)
    check_about(run.about, path / "config.json")
    result = run.result
    if result is not None:
        check_result(result, path / "result.json")
    scores = None
    if result is not None and (path / "scores.npz").is_file():
        scores = read_scores(path / "scores.npz")
    log = path / "metrics.jsonl"
    updates, evaluations = read_metrics(log), read_metrics(log, "evaluation")
    check_updates(updates, log)
    check_evaluations(evaluations, log)
    return Shown(path.resolve().name, path, run.config, run.about, result, scores, updates,
                 evaluations)


def read_films(run: Shown, root: str | None = None) -> list[film.Film] | str:
    """Film strips of some test videos, from the data set in `root` if that is given; or, in a
    sentence, why there are none."""
    scores = run.scores
    if scores is None:
        return sections.no_scores(run)
    root = root or run.config.root
    try:
        paths = _test_videos(run.config, root)
    except InputError as error:
        return f"The videos are not where they were, and cannot be shown: {error}"
    return [film.film(scores.names[i], paths.get(scores.names[i]), int(scores.labels[i]),
                      scores.posteriors[i], scores.classes, run.config)
            for i in film.choose(scores.labels, scores.posteriors)]


def _test_videos(config: Config, root: str) -> dict[str, Path]:
    """The files of the test side by name. Unlike `build.read_split`, makes none."""
    read = ucf101.read if config.data == "ucf101" else figures.read
    return {video.name: video.path for video in read(root, config.split).test}


def _distinct(runs: Sequence[Shown]) -> list[Shown]:
    """The runs, called by their paths where folders of different places have one name."""
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else replace(run, name=str(run.path))
            for run in runs]


def page(runs: Sequence[Shown], films: Sequence[Sequence[film.Film] | str]) -> str:
    """The whole page, as text."""
    several = len(runs) > 1
    title = f"{len(runs)} training runs" if several else "A training run"
    idents = [f"run-{i + 1}" for i in range(len(runs))]
    links = [el("a", "Comparison", href="#comparison")] if several else []
    links += [el("a", run.name, href=f"#{ident}")
              for run, ident in zip(runs, idents, strict=True)]
    articles = [sections.run_section(*each) for each in zip(runs, films, idents, strict=True)]
    style = files("recres.page").joinpath("page.css").read_text("utf-8")
    head = el("head", el("meta", charset="utf-8"),
              el("meta", http_equiv="Content-Security-Policy", content=POLICY),
              el("meta", name="viewport", content="width=device-width, initial-scale=1"),
              el("meta", name="color-scheme", content="light dark"),
              el("title", f"{title}: {', '.join(run.name for run in runs)}"),
              el("style", Html(style)))
    body = el("body",
              el("header", el("h1", title),
                 el("nav", links, aria_label="Runs") if several else None),
              el("main", sections.comparison(runs, idents) if several else None, articles),
              el("footer", el("p", "Made by recres.report from the files of the "
                              f"{'runs' if several else 'run'}; tensorlite "
                              f"{tensorlite.__version__}.")))
    return join(Html("<!DOCTYPE html>\n"), el("html", head, body, lang="en"), "\n")


if __name__ == "__main__":
    sys.exit(main())
