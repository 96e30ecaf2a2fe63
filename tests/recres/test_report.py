"""The page about runs: it says what the files say, stands alone, and comes of damaged runs too."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from recres import config, report
from recres.page import film, sections
from recres.page.chart import LEFT, RIGHT, WIDTH, Line, line_chart, log_ticks, ticks
from recres.page.differences import differences
from recres.page.markup import VOID, Html, el, join
from recres.page.sections import changed_options, describe

HOSTILE = '<script>alert("1")</script>&"\'<img src=http://x/>'


class Page(HTMLParser):
    """A page read back: `text` without tags and styles, `tags` with their attributes. Fails where
    a tag is left open or closed twice."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is there twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.parts.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def make(out: Path, *arguments: object) -> Page:
    assert report.main([*map(str, arguments), "--out", str(out)]) == 0
    return Page(out.read_text(encoding="utf-8"))


def one_line(error: str) -> str:
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A run that may be written to, without its large files."""
    shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def page(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return make(tmp_path_factory.mktemp("page") / "page.html", trained)


def change(run: Path, file: str, **values: object) -> None:
    """Change some values of a JSON file of a run."""
    path = run / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_page_says_what_the_result_says(page, trained):
    result = json.loads((trained / "result.json").read_text())
    videos, error = result["counts"]["test_videos"], result["video_error"]
    assert f"Video error {error:.4f} {round(error * videos)} of {videos} videos wrong" in page.text
    assert f"Chunk error {result['chunk_error']:.4f} of {result['counts']['test_chunks']}" \
        in page.text
    for name, row in result["per_class"].items():
        wrong = round(row["video_error"] * row["videos"])
        assert f"{name} {row['videos']} {wrong} {row['video_error']:.3f}" in page.text
    assert result["protocol"] in page.text
    assert "--width 4" in page.text and "not complete" not in page.text


def test_the_worst_class_comes_first(copy, tmp_path):
    names = json.loads((copy / "result.json").read_text())["per_class"]
    rows = {name: {"videos": 10, "video_error": (3 * i + 2) % 7 / 10}
            for i, name in enumerate(sorted(names))}
    change(copy, "result.json", per_class=rows)
    order = sorted(rows, key=lambda name: (-rows[name]["video_error"], name))
    page = make(tmp_path / "page.html", copy)
    section = page.text[page.text.index("Errors per class") : page.text.index("Confusion matrix")]
    assert [name for name in re.findall(r"\w+", section) if name in rows] == order


def test_the_confusion_matrix_counts_the_videos(page, trained):
    with np.load(trained / "scores.npz") as scores:
        labels, answers = scores["labels"], scores["posteriors"].argmax(axis=1)
        classes = scores["classes"]
    for label, answer in set(zip(labels.tolist(), answers.tolist(), strict=True)):
        n = int(((labels == label) & (answers == answer)).sum())
        total = int((labels == label).sum())
        title = f"{classes[label]} → {classes[answer]}: {n} of {total}"
        assert [a for a in page.named("td") if a.get("title") == title]
    counted = [a["title"] for a in page.named("td") if a.get("title")]
    assert sum(int(t.split(": ")[1].split()[0]) for t in counted) == len(labels)


def test_the_page_stands_alone(page, trained):
    assert not page.named("script") and not page.named("link")
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#"))
    style = (Path(report.__file__).parent / "page" / "page.css").read_text()
    assert "url(" not in style and "@import" not in style
    (policy,) = [a["content"] for a in page.named("meta") if "http-equiv" in a]
    assert policy is not None and policy.startswith("default-src 'none'")


def test_every_picture_has_a_text(page):
    assert page.named("img") and all(a["alt"] for a in page.named("img"))
    for attributes in page.named("svg"):
        assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_there_is_a_film_of_right_and_of_wrong_videos(page, trained):
    with np.load(trained / "scores.npz") as scores:
        chosen = film.choose(scores["labels"], scores["posteriors"])
        names = scores["names"]
    assert len(page.named("img")) == len(chosen)
    for video in chosen:
        assert str(names[video]) in page.text


def test_the_wrong_ones_shown_are_the_most_confident_the_right_ones_average():
    confidence = np.linspace(0.55, 0.95, 40)
    posteriors = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.array([0, 1] * 20)
    chosen = film.choose(labels, posteriors)
    assert chosen[:6] == [39, 37, 35, 33, 31, 29]
    assert chosen[6:] == [24, 22, 20, 18, 16, 14]  # of 38, 36, ..., 0
    assert film.choose(labels[:2], posteriors[:2]) == [1, 0]


def test_a_strip_shows_the_frames_in_order(numbered, number):
    strip = film.make_strip(numbered(30))
    assert (strip.shown, strip.sampled) == (film.FRAMES, 30)
    data = base64.b64decode(strip.uri.partition(",")[2])
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[:2] == (strip.height, strip.width)
    step = film.SIDE + film.GAP
    shown = [picture[:, i * step + 4 : i * step + film.SIDE - 4] for i in range(strip.shown)]
    assert number(np.stack(shown)) == [0, 4, 8, 12, 17, 21, 25, 29]


def test_text_from_outside_stays_text(copy, tmp_path):
    with np.load(copy / "scores.npz") as scores:
        arrays = dict(scores)
    arrays["classes"] = np.array([HOSTILE, *arrays["classes"][1:]])
    arrays["names"] = np.array([f"{name}{HOSTILE}" for name in arrays["names"]])
    np.savez(copy / "scores.npz", **arrays)
    rows = json.loads((copy / "result.json").read_text())["per_class"]
    change(copy, "result.json", per_class={HOSTILE: rows.popitem()[1], **rows}, protocol=HOSTILE,
           skipped={"v": HOSTILE})
    change(copy, "config.json", command=["python", HOSTILE], environment={HOSTILE: HOSTILE},
           started=HOSTILE)
    page = make(tmp_path / "page.html", copy)
    assert not page.named("script")
    assert all(a["src"].startswith("data:") for a in page.named("img"))
    assert page.text.count(" ".join(HOSTILE.split())) >= 6


def test_a_run_that_is_not_complete(copy, tmp_path):
    (copy / "result.json").unlink()
    (copy / "scores.npz").unlink()
    log = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text("\n".join(log[:3]) + '\n{"kind": "upda')
    page = make(tmp_path / "page.html", copy)
    assert "not complete: after update 3, in epoch 1 of 2" in page.text
    assert not re.search(r"Video error \d", page.text)
    (copy / "metrics.jsonl").unlink()
    page = make(tmp_path / "page.html", copy)
    assert "not complete: nothing was trained yet" in page.text
    assert "Nothing was logged of this." in page.text


def test_a_complete_run_without_its_scores(copy, tmp_path):
    (copy / "scores.npz").unlink()
    page = make(tmp_path / "page.html", copy)
    assert page.text.count(f"There is no scores.npz in {copy}.") == 2
    assert re.search(r"Video error \d", page.text)


def test_several_runs_are_compared(trained, copy, tmp_path):
    options = json.loads((copy / "config.json").read_text())["options"]
    change(copy, "config.json", options=options | {"lr": 0.125, "clip_norm": 3.0})
    change(copy, "result.json", video_error=0.4321)
    page = make(tmp_path / "page.html", trained, copy)
    table = page.text[page.text.index("Comparison run") : page.text.index("Training loss")]
    assert "--lr --clip-norm video error" in table  # and nothing that is the same in both
    assert "trained rrn 0.002 –" in table and "copy rrn 0.125 3 0.4321" in table
    assert "not tested on the same videos" not in page.text
    assert [a["id"] for a in page.named("article")] == ["run-1", "run-2"]
    targets = {a["id"] for _, a in page.tags if "id" in a}
    assert {str(a["href"])[1:] for a in page.named("a")} == targets


def test_runs_with_other_test_videos_are_not_passed_off_as_comparable(trained, copy, tmp_path):
    with np.load(copy / "scores.npz") as scores:
        arrays = dict(scores)
    arrays["names"] = np.array(["another", *arrays["names"][1:]])
    np.savez(copy / "scores.npz", **arrays)
    page = make(tmp_path / "page.html", trained, copy)
    assert "not tested on the same videos" in page.text


def test_runs_of_one_name_are_told_apart(trained, copy, tmp_path):
    (tmp_path / "other").mkdir()
    twin = shutil.copytree(copy, tmp_path / "other" / copy.name)
    page = make(tmp_path / "page.html", copy, twin)
    assert str(copy) in page.text and str(twin) in page.text


def test_videos_that_were_moved_are_said_to_be_missing(copy, figures_root, tmp_path):
    options = json.loads((copy / "config.json").read_text())["options"]
    change(copy, "config.json", options=options | {"root": str(tmp_path / "gone")})
    page = make(tmp_path / "page.html", copy)
    assert "The videos are not where they were" in page.text and not page.named("img")
    assert not (tmp_path / "gone").exists()  # nothing was made there
    page = make(tmp_path / "page.html", copy, "--root", figures_root)
    assert "not where they were" not in page.text and page.named("img")


def test_a_video_that_cannot_be_read_is_named(trained, monkeypatch, tmp_path):
    def unreadable(path, step, context):
        raise film.VideoError(path, "empty (0 bytes)")

    monkeypatch.setattr(film, "sample_video", unreadable)
    page = make(tmp_path / "page.html", trained)
    assert "Cannot be shown" in page.text and "empty (0 bytes)" in page.text
    assert not page.named("img")


def test_gradient_norms_by_block_are_drawn_where_they_were_logged(copy, tmp_path):
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines = [{key: line[key] for key in line if key != "gradient_norms"} for line in lines]
    (copy / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = make(tmp_path / "page.html", copy)
    assert "Gradient norm by block" not in page.text and "all parameters" in page.text
    for i, line in enumerate(lines):
        if line["kind"] == "update" and i % 2 == 0:
            line["gradient_norms"] = {"fc": 2.0, "block4": 0.5}
    (copy / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = make(tmp_path / "page.html", copy)
    assert "Gradient norm by block" in page.text
    assert "all parameters block4 fc" in page.text  # in the order of the network


@pytest.mark.parametrize("damage", [
    lambda run: shutil.rmtree(run),
    lambda run: (run / "config.json").write_text("{"),
    lambda run: (run / "result.json").write_text("[1]"),
    lambda run: (run / "result.json").write_text('{"video_error": "x", "per_class": {}}'),
    lambda run: (run / "scores.npz").write_bytes(b"PK"),
    lambda run: np.savez(run / "scores.npz", names=["v"], labels=[3], posteriors=[[1.0]],
                         classes=["A"]),
])
def test_what_is_no_run_is_refused_in_one_line(damage, copy, tmp_path, capsys):
    damage(copy)
    assert report.main([str(copy), "--out", str(tmp_path / "page.html")]) == 2
    assert str(copy) in one_line(capsys.readouterr().err)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(("file", "values", "why"), [
    ("result.json", {"chunk_error": "x"}, "result.json: chunk_error is x, expected a number from"),
    ("result.json", {"video_error": float("nan")}, "video_error is nan, expected a number from 0"),
    ("result.json", {"counts": {"test_videos": -1}}, "counts: test_videos is -1, expected a count"),
    ("result.json", {"per_class": {HOSTILE: {"videos": 3}}}, "video_error is None, expected a"),
    ("result.json", {"best": {"epoch": [1]}}, "best: epoch is a list, expected a count"),
    ("result.json", {"training_seconds": 1e999}, "training_seconds is inf, expected a time"),
    ("result.json", {"protocol": ["x" * 1000]}, "protocol is a list, expected a text"),
    ("config.json", {"environment": "x"}, "config.json: environment is x, expected an object"),
    ("config.json", {"command": ["x", 3]}, "command is a list, expected a list of texts"),
    ("config.json", {"model": {"weights": "y" * 1000}}, "weights is " + 60 * "y" + "…, expected"),
])
def test_values_that_no_run_writes_are_named(file, values, why, copy, tmp_path, capsys):
    """TypeError, ValueError, KeyError, AttributeError."""
    change(copy, file, **values)
    assert report.main([str(copy), "--out", str(tmp_path / "page.html")]) == 2
    assert why in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(("line", "why"), [
    ({"kind": "update", "update": 1, "loss": "x"}, "update 1: loss is x, expected a number"),
    ({"kind": "update", "update": -1}, "update -1: update is -1, expected a count"),
    ({"kind": "update", "update": 10**400}, "expected a count"),
    ({"kind": "update", "update": 1, "loss": 5e-324}, "loss is 5e-324, expected a number"),
    ({"kind": "update", "update": 1, "gradient_norms": {"a": []}}, "a is a list, expected a num"),
    ({"kind": "update", "update": 1, "gradient_norms": {f"p{i}": 1 for i in range(101)}},
     "update 1: gradients of more than 100 parts"),
    ({"kind": "evaluation", "epoch": 1, "update": None}, "epoch 1: update is None, expected"),
    ({"kind": "evaluation", "epoch": 1, "video_error": 3}, "video_error is 3, expected a number"),
])
def test_lines_that_no_run_logs_are_named(line, why, copy, tmp_path, capsys):
    with open(copy / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    assert report.main([str(copy), "--out", str(tmp_path / "page.html")]) == 2
    assert why in one_line(capsys.readouterr().err)


def test_a_matrix_of_very_many_classes_is_not_drawn(trained, monkeypatch, tmp_path):
    """It has the square of them: terabytes, of a small file."""
    monkeypatch.setattr(sections, "MATRIX", 3)
    page = make(tmp_path / "page.html", trained)
    assert "classes, more than 3." in page.text and "Most frequent mistakes" not in page.text


def test_a_folder_whose_name_is_no_text(copy, tmp_path, capfd):
    """UnicodeEncodeError."""
    run = copy.rename(tmp_path / os.fsdecode(b"run\xff"))
    assert "run\\udcff" in make(tmp_path / "page.html", run).text


def test_what_cannot_be_written_or_is_given_twice_is_refused(trained, tmp_path, capsys):
    assert report.main([str(trained), "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert "--out" in one_line(capsys.readouterr().err)
    assert report.main([str(trained), str(trained / "..") + f"/{trained.name}"]) == 2
    assert "twice" in one_line(capsys.readouterr().err)


def test_the_page_of_a_run_lies_in_its_folder(copy, monkeypatch, trained, tmp_path):
    assert report.main([str(copy)]) == 0
    assert (copy / "report.html").is_file()
    monkeypatch.chdir(tmp_path)
    assert report.main([str(copy), str(trained)]) == 0
    assert (tmp_path / "report.html").is_file()
    assert not [path for path in copy.iterdir() if path.name.startswith(".tmp")]


# What is said of the options.

PAPER = {"data": "ucf101", "root": "/data", "update_fraction": 0.01}


def test_the_papers_own_options_are_no_difference():
    settings = replace(config.resolve(PAPER), weights="/w/resnet50.h5")
    about = {"model": {"weights": {"initialised": ["fc.weight", "fc.bias"]}}}
    rows = differences(settings, about, 101)
    assert [row.what for row in rows if row.paper] == ["non-linearity"]
    assert "first frame of a chunk" in [row.what for row in rows]


@pytest.mark.parametrize("change, what, here", [
    ({"frame_step": 5}, "frames", "one in 5"),
    ({"backbone": "resnet18"}, "backbone", "ResNet-18"),
    ({"version": "v1.5"}, "stride", "3×3"),
    ({"truncate": "block3", "position": "block3"}, "depth", "block3"),
    ({"skip": "none"}, "temporal skip", "control"),
    ({"skip": "pure_temporal"}, "temporal skip", "unit-weight"),
    ({"context": 4}, "context", "T = 4"),
    ({"update_fraction": None}, "update", "every batch of 16"),
    ({"update_fraction": 0.05}, "update", "5 %"),
    ({"weights": None}, "weights", "at random"),
    ({"input": "flow"}, "input", "optical flow"),
    ({"sampling": "segments"}, "chunks", "equal parts"),
    ({"chunks_per_video": 3}, "chunks trained on", "at most 3"),
    ({"model": "lstm", "features": "block3", "skip": None}, "model", "LSTM"),
    ({"features": "block1", "model": "gru"}, "features", "block1"),
    ({"model": "avgpool", "skip": None}, "baseline", "trained"),
])
def test_each_departure_from_the_paper_is_listed(change, what, here):
    settings = replace(config.resolve(PAPER), weights="/w/resnet50.h5")
    rows = differences(replace(settings, **change), {}, 101)
    assert [row for row in rows if row.what == what and row.paper and here in row.here]


def test_which_recurrent_gradient_a_run_used_is_said():
    settings = replace(config.resolve(PAPER), skip="conv")
    for kind, text in (("correct", "the right one"), ("same-frame", "wrong on purpose")):
        rows = differences(replace(settings, recurrent_gradient=kind), {})
        assert [row for row in rows if row.what == "gradient of W_s" and text in row.here]
    assert "gradient of W_s" not in [row.what for row in
                                     differences(replace(settings, skip="identity"), {})]


def test_layers_without_pretrained_weights_are_named():
    settings = replace(config.resolve(PAPER), weights="/w/cut.npz")
    about = {"model": {"weights": {"initialised": [
        "block4.0.conv1.weight", "block4.1.temporal.conv.weight", "fc.weight"]}}}
    (row,) = [row for row in differences(settings, about, 101) if row.what == "weights"]
    assert row.here == "drawn at random: block4"


def test_only_options_off_their_defaults_are_shown_first():
    settings = config.resolve({"root": "/data", "lr": 0.5, "z_norm": False})
    assert changed_options(settings) == {"lr": 0.5}
    assert changed_options(config.resolve({"data": "ucf101", "root": "/data"})) == {}


@pytest.mark.parametrize("change, words", [
    ({}, "temporal skip (identity) at block4, in chunks of 2 frames"),
    ({"context": 3}, "temporal skips (identity), the deepest at block4"),
    ({"skip": "none"}, "without a temporal skip"),
    ({"model": "avgpool"}, "Average pooling"),
    ({"model": "gru", "features": "block3", "z_norm": True},
     "A GRU over a video's frames and a linear classifier (ResNet-18, width 16, frozen: features "
     "after block3, Z-normalised)"),
])
def test_a_run_is_described_in_a_sentence(change, words):
    text = describe(replace(config.resolve({"root": "/data"}), **change))
    assert words in text and text.endswith(".") and "seed 0" in text


# Charts and markup.

@pytest.mark.parametrize("low, high", [(0, 1), (0, 0.0021), (0, 152), (-3, 17), (5, 5), (0, 0)])
def test_ticks_are_few_and_cover_the_values(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 10
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    assert all(tick == int(tick) for tick in ticks(0, max(high, 1), whole=True))


@pytest.mark.parametrize("low, high", [(0.3, 0.9), (1, 1), (0.02, 40), (1e-9, 1e9), (1, 10)])
def test_logarithmic_ticks_are_few_and_reach_the_values(low, high):
    found = log_ticks(low, high)
    assert 2 <= len(found) <= 11 and found == sorted(found)
    assert found[0] <= low * 1.001 and found[-1] >= high * 0.999


def points(chart: str) -> list[tuple[float, float]]:
    """The points of the one line of a chart, in pixels."""
    (path,) = re.findall(r'<path d="([^"]*)" class="line c0"', chart.split("<ul")[0])
    return [tuple(map(float, pair.split())) for pair in re.split("[ML]", path) if pair]


def test_a_line_is_drawn_to_scale():
    chart = line_chart("t", "x", "y", [Line("a", [0, 5, 10], [0.0, 2.0, 1.0])])
    (x0, y0), (x1, y1), (x2, y2) = points(chart)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 > y2 > y1 and y0 - y2 == pytest.approx((y0 - y1) / 2, abs=0.2)
    decades = points(line_chart("t", "x", "y", [Line("a", [0, 1, 2], [1.0, 10.0, 100.0])],
                                log=True))
    assert decades[0][1] - decades[1][1] == pytest.approx(decades[1][1] - decades[2][1], abs=0.2)


def test_what_cannot_be_drawn_leaves_a_gap():
    line = Line("a", range(5), [1.0, 2.0, None, 3.0, 4.0])
    assert len(re.findall("M", re.findall(r'd="(M[^"]*L[^"]*)"', line_chart(
        "t", "x", "y", [line]))[0])) == 2
    empty = line_chart("t", "x", "y", [Line("a", [1, 2], [0.0, -1.0])], log=True)
    assert "Nothing was logged of this." in empty
    assert "nan" not in line_chart("t", "x", "y", [Line("a", [1, 2], [float("nan"), 1.0])])


def test_a_long_line_is_thinned_and_keeps_its_peak():
    y = np.ones(5001)
    y[1234], y[4321] = 50.0, 0.5
    chart = line_chart("t", "x", "y", [Line("a", range(5001), list(y))])
    found = points(chart)
    assert len(found) < 1000 and len(found) == len(set(found))
    assert [found[0][0], found[-1][0]] == [LEFT, WIDTH - RIGHT] and ">5000</text>" in chart
    heights = [height for _, height in found]
    assert heights.count(min(heights)) == 1 and heights.count(max(heights)) == 1


def test_markup_escapes_all_but_markup():
    assert el("p", "<b>", Html("<br>"), None, ["&", 3], class_="a\"b", aria_hidden="true",
              hidden=True, title=None) == \
        '<p class="a&quot;b" aria-hidden="true" hidden>&lt;b&gt;<br>&amp;3</p>'
    assert join("<", el("img", alt="")) == '&lt;<img alt="">'
