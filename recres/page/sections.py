"""What the page says of a run, section by section, and how it puts several side by side."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from recres import summary
from recres.config import RECURRENT_ONLY, Config
from recres.datasets import figures
from recres.page.chart import Line, line_chart
from recres.page.differences import differences
from recres.page.film import Film
from recres.page.markup import Html, el, join
from recres.scores import SavedScores

WORST = 15  # classes whose error is shown at once; the others unfold
MATRIX = 1000  # with more classes the confusion matrix is left out: nobody could read it
NUMBERED = 40  # with more classes the cells of the confusion matrix are small
DARK = 0.8  # share from which a cell's number is set in the other colour
MISTAKES = 10  # confusions listed in words
# Options that are told elsewhere, or say only where and by how many.
PLACES = ("data", "root", "threads", "workers", "store")
RESULTS = ("video error", "± (binomial)", "chunk error", "test videos", "best epoch", "training")
STAGE_ORDER = ("stem", "block1", "block2", "block3", "block4")


@dataclass(frozen=True)
class Shown:
    """All that is read of a run. about: of config.json what is not options. result, scores: None
    where the run is not complete. updates, evaluations: the lines of metrics.jsonl."""

    name: str
    path: Path
    config: Config
    about: Mapping[str, Any]
    result: Mapping[str, Any] | None
    scores: SavedScores | None
    updates: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]


def describe(config: Config) -> str:
    """What was trained, in a sentence."""
    network = f"ResNet-{config.depth}, width {config.width}"
    if config.truncate != "none":
        network += f", ended after {config.truncate}"
    if config.features is not None:
        network = f"{network}, frozen: features after {config.features}"
        network += ", Z-normalised" if config.z_norm else ""
    frames = "1 frame" if config.context == 1 else f"{config.context} frames"
    if config.model in ("gru", "lstm"):
        what = f"A {config.model.upper()} over a video's frames and a linear classifier ({network})"
    elif config.model == "avgpool":
        what = f"Average pooling over frames and a linear classifier ({network})"
    elif config.skip == "none" or config.context == 1:
        what = f"A residual network without a temporal skip ({network}; chunks of {frames})"
    else:
        one = config.context == 2 or config.skip == "pure_temporal"
        skips = (f"a temporal skip ({config.skip}) at {config.position}" if one else
                 f"temporal skips ({config.skip}), the deepest at {config.position}")
        what = f"A recurrent residual network ({network}) with {skips}, in chunks of {frames}"
    seen = {"frames": "", "flow": " of optical flow", "dynamic": " of dynamic images"}
    return f"{what}; trained on {config.data}{seen[config.input]}, split {config.split}, with " \
           f"seed {config.seed}."


def state(run: Shown) -> str:
    """Whether the run is complete, and how far it has come if not."""
    if run.result is not None:
        return "complete"
    if not run.updates:
        return "not complete: nothing was trained yet"
    last, config = run.updates[-1], run.config
    if config.updates:
        return f"not complete: after update {last.get('update')} of {config.updates}"
    return (f"not complete: after update {last.get('update')}, in epoch {last.get('epoch')} of "
            f"{config.epochs}")


def no_scores(run: Shown) -> str:
    """Why nothing is known of single videos."""
    return ("Known when the run is complete." if run.result is None else
            f"There is no scores.npz in {run.path}.")


def run_section(run: Shown, films: Sequence[Film] | str, ident: str) -> Html:
    """Everything about a run. films: of examples, or why there are none."""
    return el(
        "article", el("h2", run.name), el("p", describe(run.config), class_="lead"),
        None if run.result is not None else el("p", state(run), class_="warning"),
        el("section", el("h3", "Errors on the test side"), _errors(run)),
        el("section", el("h3", "Protocol and options"), _protocol(run)),
        el("section", el("h3", "Errors per class"), _per_class(run)),
        el("section", el("h3", "Confusion matrix"), _confusion(run)),
        el("section", el("h3", "Training"), _curves(run)),
        el("section", el("h3", "Examples"), _examples(films)),
        el("section", el("h3", "Differences from the paper"), _differences(run)),
        id=ident)


def deviation(error: float, videos: int) -> float:
    """The binomial standard error of a share of `videos` videos."""
    return math.sqrt(error * (1 - error) / videos)


def _errors(run: Shown) -> Html:
    result = run.result
    if result is None:
        return el("p", "There are none yet: the test side is used once, at the end.")
    counts = result.get("counts") or {}
    videos, chunks = counts.get("test_videos"), counts.get("test_chunks")
    error = result["video_error"]
    spread = f", standard error {deviation(error, videos):.3f} (binomial)" if videos else ""
    rows = [("Video error", error,
             f"{round(error * videos)} of {videos} videos wrong{spread}" if videos else ""),
            ("Chunk error", result.get("chunk_error"), f"of {chunks} chunks" if chunks else ""),
            ("Pair error", result.get("pair_error"), "neither the class nor its reverse"),
            ("Within pair", result.get("within_pair_error"), "taken for its reverse, pair right"),
            ("Reversed", result.get("reversed_becomes_partner"),
             "of the right ones become their reverse when played backwards")]
    tiles = [el("div", el("dt", name), el("dd", el("b", f"{value:.4f}"), el("span", text)))
             for name, value, text in rows if value is not None]
    best = result.get("best") or {}
    chosen = f"Tested: epoch {best['epoch']}, " + (
        f"the best on held-out groups (video error there {best['video_error']:.4f})."
        if "video_error" in best else "the last.") if "epoch" in best else None
    return join(el("dl", tiles, class_="tiles"), el("p", chosen, class_="note") if chosen else None)


def _protocol(run: Shown) -> Html:
    config, about, result = run.config, run.about, run.result or {}
    counts = result.get("counts") or {}
    sides = [f"{counts[f'{side}_videos']} videos {text}" for side, text in
             (("train", "to train on"), ("holdout", "held out"), ("test", "to test on"))
             if counts.get(f"{side}_videos")]
    changed = changed_options(config)
    seconds = result.get("training_seconds")
    environment = about.get("environment") or {}
    command = about.get("command")
    rows: list[tuple[str, Any]] = [
        ("Protocol", result.get("protocol") or summary.protocol(config)),
        ("Data", f"{config.data}, split {config.split}"
         + (f": {', '.join(sides)}" if sides else "")),
        ("Folder", el("code", config.root)),
        ("Skipped", _skipped(result.get("skipped") or {})),
        ("Options that differ from the defaults",
         [join(el("code", option(name, value)), " ") for name, value in changed.items()]
         or "none"),
        ("Command", el("code", shlex.join(map(str, command)))
         if isinstance(command, list) else None),
        ("Begun", about.get("started")),
        ("Training took", None if seconds is None else duration(seconds)),
        ("Machine", f"{config.device}, {summary.count(config.threads, 'thread')}; "
         f"{summary.PRECISIONS.get(config.precision, config.precision)}"),
        ("Environment", ", ".join(f"{k} {v}" for k, v in environment.items()) or None),
    ]
    everything = [el("tr", el("th", flag(f.name), scope="row"),
                     el("td", _value(getattr(config, f.name))),
                     el("td", _value(f.metadata["defaults"][config.data])))
                  for f in fields(config)]
    head = el("tr", [el("th", text, scope="col") for text in ("option", "value", "default")])
    return join(
        el("dl", [[el("dt", name), el("dd", text)] for name, text in rows if text is not None],
           class_="facts"),
        el("details", el("summary", f"All {len(everything)} options"),
           scrolled(el("table", el("thead", head), el("tbody", everything)), "All options")))


def _skipped(skipped: Mapping[str, Any]) -> Html | None:
    if not skipped:
        return None
    return el("details", el("summary", f"{len(skipped)} videos that could not be read"),
              el("ul", [el("li", str(why)) for why in skipped.values()]))


def changed_options(config: Config) -> dict[str, Any]:
    """The options that are not at their defaults, and what they are."""
    return {f.name: value for f in fields(config) if f.name not in PLACES
            and (value := getattr(config, f.name)) is not None
            and value != f.metadata["defaults"][config.data]}


def flag(name: str) -> str:
    """An option as it is written on the command line."""
    return "--" + name.replace("_", "-")


def option(name: str, value: Any) -> str:
    """An option with its value, as on the command line."""
    return flag(name) if value is True else f"{flag(name)} {_value(value)}"


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """A time as it is said."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def scrolled(content: Html, label: str) -> Html:
    """Something wide, which scrolls by itself where the page is narrower."""
    return el("div", content, class_="scroll", role="region", aria_label=label, tabindex=0)


def _per_class(run: Shown) -> Html:
    if run.result is None:
        return el("p", "Known when the run is complete.")
    rows = sorted(run.result["per_class"].items(), key=lambda i: (-i[1]["video_error"], i[0]))
    mean = sum(row["video_error"] for _, row in rows) / max(1, len(rows))
    note = f"Video error of each class, worst first. The mean over the classes is {mean:.4f}."
    rest = rows[WORST:]
    return join(
        el("p", note, class_="note"), _bars(rows[:WORST]),
        el("details", el("summary", f"The other {len(rest)} classes"), _bars(rest)) if rest
        else None)


def _bars(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Html:
    head = el("tr", el("th", "class", scope="col"), el("th", "videos", scope="col", class_="n"),
              el("th", "wrong", scope="col", class_="n"),
              el("th", "video error", scope="col", colspan=2))
    body = []
    for name, row in rows:
        error, videos = row["video_error"], row["videos"]
        bar = el("span", class_="bar", style=f"width:{100 * error:.1f}%")
        body.append(el("tr", el("th", name, scope="row"), el("td", videos, class_="n"),
                       el("td", round(error * videos), class_="n"),
                       el("td", f"{error:.3f}", class_="n"),
                       el("td", el("div", bar, class_="track"), class_="wide",
                          aria_hidden="true")))
    return el("table", el("thead", head), el("tbody", body), class_="bars")


def _class_order(config: Config, classes: Sequence[str]) -> list[int]:
    """Classes of the figures pair by pair, others as they are."""
    paired = [name for pair in figures.PAIRS for name in pair] if config.data == "figures" else []
    return sorted(range(len(classes)), key=lambda i: (
        paired.index(classes[i]) if classes[i] in paired else len(paired), i))


def _confusion(run: Shown) -> Html:
    if run.scores is None:
        return el("p", no_scores(run))
    scores = run.scores
    if len(scores.classes) > MATRIX:
        return el("p", f"Not drawn: of {len(scores.classes)} classes, more than {MATRIX}.")
    order = _class_order(run.config, scores.classes)
    table = np.zeros((len(order), len(order)), np.int64)
    np.add.at(table, (scores.labels, scores.answers), 1)
    names = [scores.classes[i] for i in order]
    table = table[np.ix_(order, order)]
    small = len(names) > NUMBERED
    head = el("tr", el("th", "true class ↓  answer →", scope="col", class_="corner"),
              [el("th", el("span", name), scope="col") for name in names],
              el("th", el("span", "videos"), scope="col", class_="sum"))
    body = [el("tr", el("th", name, scope="row"),
               [_cell(int(n), int(counts.sum()), names, i, j) for j, n in enumerate(counts)],
               el("td", int(counts.sum()), class_="sum"))
            for i, (name, counts) in enumerate(zip(names, table, strict=True))]
    caption = ("Numbers of test videos: row the true class, column the answer; a cell's shade is "
               "its share of the row, blank is none.")
    wrong = sorted(((int(table[i, j]), i, j) for i, j in zip(*np.nonzero(table), strict=True)
                    if i != j), key=lambda item: (-item[0], item[1], item[2]))
    listed = [el("li", f"{names[i]} → {names[j]}: {n} of {int(table[i].sum())}")
              for n, i, j in wrong[:MISTAKES]]
    return join(
        el("p", caption, class_="note"),
        scrolled(el("table", el("thead", head), el("tbody", body),
                    class_="confusion small" if small else "confusion"), "Confusion matrix"),
        [el("h4", "Most frequent mistakes (true class → answer)"),
         el("ol", listed, class_="columns")] if listed else
        el("p", "No video was named wrongly."))


def _cell(n: int, total: int, names: Sequence[str], row: int, column: int) -> Html:
    right = "right" if row == column else None
    if n == 0:
        return el("td", class_=right)
    share = n / total
    classes = [right, "dark" if share > DARK else None]
    return el("td", n, class_=" ".join(filter(None, classes)) or None, style=f"--s:{share:.2f}",
              title=f"{names[row]} → {names[column]}: {n} of {total}")


def _curves(run: Shown) -> Html:
    updates, evaluations = run.updates, run.evaluations
    at = [line["update"] for line in updates]
    epochs = [line["update"] for line in evaluations if "update" in line]
    held = [line for line in evaluations if "video_error" in line and "update" in line]
    held_at = [line["update"] for line in held]
    each = f" ({round(epochs[-1] / len(epochs))} an epoch)" if epochs else ""
    x_label = f"update{each}"
    best = next((line for line in reversed(held) if line.get("best")), None)
    loss = line_chart("Loss", x_label, "cross-entropy", [
        Line("update", at, [line.get("loss") for line in updates], faint=True),
        Line("mean of the epoch", epochs, [line.get("training_loss") for line in evaluations
                                           if "update" in line], 0, marked=True),
        Line("held-out groups", held_at, [line.get("loss") for line in held], 1, marked=True)])
    error = line_chart("Error on held-out groups", x_label, "error", [
        Line("video error", held_at, [line["video_error"] for line in held], 1, marked=True),
        Line("chunk error", held_at, [line.get("chunk_error") for line in held], 0, marked=True)],
        mark=best and (best["update"], best["video_error"], f"best: epoch {best['epoch']}"))
    rate = line_chart("Learning rate", x_label, "learning rate", [
        Line("Adam", at, [line.get("learning_rate") for line in updates], 0)])
    return el("div", loss, error, rate, _gradients(updates, at, x_label), class_="charts")


def _gradients(updates: Sequence[Mapping[str, Any]], at: Sequence[float], x_label: str) -> Html:
    """Gradient norms by block where they were logged, the whole one otherwise."""
    whole = Line("all parameters", at, [line.get("gradient_norm") for line in updates], faint=True)
    measured = [line for line in updates if line.get("gradient_norms")]
    names = dict.fromkeys(name for line in measured for name in line["gradient_norms"])
    order = [name for name in STAGE_ORDER if name in names]
    order += [name for name in names if name not in STAGE_ORDER]
    blocks = [Line(name, [line["update"] for line in measured],
                   [line["gradient_norms"].get(name) for line in measured], i)
              for i, name in enumerate(order)]
    title = "Gradient norm by block" if blocks else "Gradient norm"
    return line_chart(title, x_label, "norm (logarithmic)", [whole, *blocks], log=True)


def _examples(films: Sequence[Film] | str) -> Html:
    if isinstance(films, str):
        return el("p", films)
    parts = []
    for right, title in ((False, "Wrong: the videos with the most confident wrong answers"),
                         (True, "Right: the videos whose confidence is nearest the median of all "
                                "that were named rightly")):
        mine = [film for film in films if film.right is right]
        if mine:
            parts += [el("h4", title), el("div", [_film(film) for film in mine], class_="films")]
    note = ("Sampled frames of each video in order of time, cut to the square that the network "
            "sees when it is tested. Confidence is the video's posterior of the answer.")
    return join(el("p", note, class_="note"), parts)


def _film(film: Film) -> Html:
    said = [el("b", film.name), el("br"), f"true class {film.truth}"]
    said += ([f", answered with {film.confidence:.3f}"] if film.right else
             [f" ({film.truth_posterior:.3f}) → answer ", el("b", film.answer),
              f" ({film.confidence:.3f})"])
    if film.strip is None:
        return el("figure", el("p", f"Cannot be shown: {film.problem}", class_="warning"),
                  el("figcaption", said), class_="film")
    strip = film.strip
    said.append(f"; {strip.shown} of {strip.sampled} sampled frames")
    return el("figure", el("img", src=strip.uri, width=strip.width, height=strip.height,
                           alt=f"{strip.shown} frames of {film.name}: {film.truth}"),
              el("figcaption", said), class_="film")


def _differences(run: Shown) -> Html:
    classes = None if run.scores is None else len(run.scores.classes)
    rows = differences(run.config, run.about, classes)
    differs = [row for row in rows if row.paper]
    decided = [row for row in rows if not row.paper]
    head = el("tr", el("th", scope="col"), el("th", "the paper", scope="col"),
              el("th", "this run", scope="col"))
    table = el("table", el("thead", head), el("tbody", [
        el("tr", el("th", row.what, scope="row"), el("td", row.paper), el("td", row.here))
        for row in differs]), class_="text")
    return join(
        table, el("h4", "Decided here, where the paper does not say"),
        el("dl", [[el("dt", row.what), el("dd", row.here)] for row in decided], class_="facts"))


def comparison(runs: Sequence[Shown], idents: Sequence[str]) -> Html:
    """Several runs side by side: options that differ, errors, times, and their curves."""
    names = [f.name for f in fields(Config) if f.name not in ("model", "root", "threads", "store")
             and _differs(f.name, [run.config for run in runs])]
    body = [el("tr", _row(run, ident, names)) for run, ident in zip(runs, idents, strict=True)]
    head = el("tr", [el("th", text, scope="col") for text in ("run", "--model", *map(flag, names))],
              [el("th", text, scope="col", class_="n") for text in RESULTS])
    warning = None
    tested = {frozenset(run.scores.names) for run in runs if run.scores is not None}
    if len(tested) > 1:
        warning = el("p", "These runs were not tested on the same videos: their errors cannot be "
                     "compared as they stand.", class_="warning")
    curves = [
        _overlay(runs, "Training loss", "cross-entropy, epoch's mean", "training_loss"),
        _overlay(runs, "Held-out loss", "cross-entropy", "loss"),
        _overlay(runs, "Video error on held-out groups", "video error", "video_error"),
        _overlay(runs, "Chunk error on held-out groups", "chunk error", "chunk_error")]
    return el("section", el("h2", "Comparison"), warning,
              scrolled(el("table", el("thead", head), el("tbody", body), class_="compare"),
                       "Comparison of the runs"),
              el("div", curves, class_="charts"), id="comparison")


def _differs(name: str, configs: Sequence[Config]) -> bool:
    """Whether an option differs among those to which it means something."""
    if name == "flow_length":
        configs = [config for config in configs if config.input == "flow"]
    values = {getattr(config, name) for config in configs}
    return len(values - {None} if name in RECURRENT_ONLY else values) > 1


def _row(run: Shown, ident: str, names: Sequence[str]) -> list[Html]:
    result = run.result or {}
    error, videos = result.get("video_error"), (result.get("counts") or {}).get("test_videos")
    chunk, seconds = result.get("chunk_error"), result.get("training_seconds")
    cells = [run.config.model, *(_value(getattr(run.config, name)) for name in names)]
    if run.result is None:
        numbers = [el("td", state(run), colspan=len(RESULTS))]
    else:
        spread = deviation(error, videos) if videos and error is not None else None
        epoch = (result.get("best") or {}).get("epoch")
        numbers = [el("td", text, class_="n") for text in (
            _error(error), "–" if spread is None else f"{spread:.3f}", _error(chunk),
            _value(videos), _value(epoch), "–" if seconds is None else duration(seconds))]
    return [el("th", el("a", run.name, href=f"#{ident}"), scope="row"),
            *(el("td", text) for text in cells), *numbers]


def _error(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _overlay(runs: Sequence[Shown], title: str, y_label: str, key: str) -> Html:
    lines = []
    for i, run in enumerate(runs):
        found = [line for line in run.evaluations if key in line]
        lines.append(Line(run.name, [line["epoch"] for line in found],
                          [line[key] for line in found], i, marked=True))
    return line_chart(title, "epoch", y_label, lines)
