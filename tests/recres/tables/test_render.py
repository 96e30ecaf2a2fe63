"""Tables: means and differences worked out by hand from runs and score files, and what is shown."""

from __future__ import annotations

import csv as csv_format
import io
import json
import sys

import numpy as np
import pytest

from recres.scores import SavedScores, write_scores
from recres.tables import render
from recres.tables.results import Entry, Row, RunResult, Table, group

CLASSES = ("Run", "Walk")
GROUPS, CLIPS = 6, 2  # of each class
NAMES = tuple(f"v_{c}_g{g:02d}_c{i:02d}" for c in CLASSES for g in range(GROUPS)
              for i in range(CLIPS))
VIDEOS = len(NAMES)


def complete(folder, cell, seed, wrong, split=1, chunk_error=0.5, names=NAMES):
    """A complete run whose score file has these places wrong."""
    labels = np.array([CLASSES.index(name.split("_")[1]) for name in names])
    right = ~np.isin(np.arange(len(names)), wrong)
    answers = np.where(right, labels, 1 - labels)
    posteriors = np.where(answers[:, None] == np.arange(2), 0.75, 0.25)
    path = folder / f"{cell}-split{split}-seed{seed}.npz"
    write_scores(path, SavedScores(names, labels, posteriors, np.ones(len(names), int), CLASSES),
                 CLASSES, "figures", split)
    return RunResult(cell, seed, split, str(folder / f"{cell}-{split}-{seed}"), "complete",
                     video_error=float((~right).mean()), chunk_error=chunk_error, seconds=10.0,
                     scores=str(path))


def failed(cell, seed=0, reason="RunFailed: the loss is not finite at update 17"):
    return RunResult(cell, seed, 1, "runs/x", "failed", reason=reason)


def missing(cell, seed=0):
    return RunResult(cell, seed, 1, "runs/x", "missing")


ABOUT = {"data": "ucf101", "classes": 10, "videos": VIDEOS, "budget": "15m", "weights": None}


def table(*rows, about=ABOUT, columns=("error",)):
    return Table(3, "Type of the temporal skip", about, ["type"], list(columns), list(rows))


def row(name, *runs, paper=None, reference=False, note=""):
    return Row({"type": name}, [Entry("error", paper, list(runs))], reference, note)


def entry(made, place, column=0):
    return made.summary["rows"][place]["entries"][column]


@pytest.fixture
def two(tmp_path):
    """conv is wrong on four, five and nine of 24 videos, the control on these and three more."""
    return table(
        row("conv", complete(tmp_path, "conv", 0, range(4)),
            complete(tmp_path, "conv", 1, range(5), chunk_error=0.25),
            complete(tmp_path, "conv", 2, range(9)), paper=0.219),
        row("none", *(complete(tmp_path, "none", seed, range(12)) for seed in range(3)),
            reference=True, note="the control that the paper lacks"))


def test_mean_and_deviation_over_seeds(two):
    found = entry(two, 0)
    assert found["video_error"] == pytest.approx(6 / 24)
    assert found["video_error_deviation"] == pytest.approx(np.sqrt(7) / 24)
    assert found["ours_minus_paper"] == pytest.approx(0.25 - 0.219)
    assert found["chunk_error"] == pytest.approx(1.25 / 3)
    assert found["by_seed"] == pytest.approx({"0": 4 / 24, "1": 5 / 24, "2": 9 / 24})
    assert entry(two, 1)["video_error_deviation"] == 0
    assert entry(two, 1)["ours_minus_paper"] is None and entry(two, 1)["difference"] is None


def test_the_difference_is_paired_by_video(two):
    found = entry(two, 0)["difference"]
    assert found["mean"] == pytest.approx((6 - 12) / 24)
    assert found["deviation"] == pytest.approx(np.sqrt(7) / 24)
    assert found["number_of_videos"] == 24 and found["number_of_groups"] == 12
    low, high = found["videos"]
    assert low < found["mean"] < high < 0
    # Both know the same videos: that noise is gone from the difference.
    a, b = np.mean([np.arange(24) < wrong for wrong in (4, 5, 9)], axis=0), np.arange(24) < 12
    unpaired = 1.96 * np.sqrt((a.var() + b.var()) / 24)
    assert high - low < 0.75 * 2 * unpaired
    assert found["groups"][0] < low
    # and Student's t over three seeds: 4.303 standard errors
    reach = 4.3027 * np.sqrt(7) / 24 / np.sqrt(3)
    assert found["seeds"] == pytest.approx([-0.25 - reach, -0.25 + reach], abs=1e-5)
    assert found["verdict"] == "not detectable"  # with three seeds that differ so


def test_a_difference_that_all_three_intervals_show(tmp_path):
    made = table(row("a", *(complete(tmp_path, "a", seed, range(2 + seed)) for seed in (0, 1))),
                 row("b", *(complete(tmp_path, "b", seed, range(14 + seed)) for seed in (0, 1)),
                     reference=True))
    found = entry(made, 0)["difference"]
    assert found["seeds"] == [-0.5, -0.5] and found["verdict"] == "lower"
    swapped = table(Row({"type": "b"}, made.rows[1].entries),
                    Row({"type": "a"}, made.rows[0].entries, True))
    assert entry(swapped, 0)["difference"]["verdict"] == "higher"
    assert "lower" in render.text(made) and "one seed" not in render.text(made)


def test_a_small_difference_is_not_detectable(tmp_path):
    made = table(row("a", complete(tmp_path, "a", 0, [0, 1, 2])),
                 row("b", complete(tmp_path, "b", 0, [2, 3]), reference=True))
    found = entry(made, 0)["difference"]
    assert found["mean"] == pytest.approx(1 / 24) and found["verdict"] == "not detectable"
    assert found["deviation"] is None and found["seeds"] is None
    assert "not detectable, one seed" in render.text(made)


def test_clips_of_a_group_are_drawn_together(tmp_path):
    whole_groups = [0, 1, 4, 5, 8, 9, 12, 13]
    made = table(row("a", complete(tmp_path, "a", 0, whole_groups)),
                 row("b", complete(tmp_path, "b", 0, [2, 3]), reference=True))
    found = entry(made, 0)["difference"]
    widths = [high - low for low, high in (found["videos"], found["groups"])]
    assert widths[1] > 1.2 * widths[0]  # expected: √2 = 1.41
    assert group("v_Run_g01_c02") == group("v_Run_g01_c07") != group("v_Walk_g01_c02")
    assert group("holiday") == "holiday"
    assert group("v_Bow_g01_c02", "figures") == group("v_Lift_g01_c03", "figures")  # one actor


def test_further_pairs_are_compared_too(tmp_path):
    """The same numbers as with the other row as the reference."""
    a, b, c = (row(name, *(complete(tmp_path, name, seed, range(n + seed)) for seed in (0, 1)),
                   reference=name == "c") for name, n in (("a", 2), ("b", 9), ("c", 14)))
    made = Table(3, "t", ABOUT, ["type"], ["error"], [a, b, c], [(0, 1)])
    (pair,) = made.summary["further"]
    other = table(Row(a.label, a.entries), Row(b.label, b.entries, True))
    assert (pair["row"], pair["from"]) == ("a", "b")
    assert pair["difference"] == entry(other, 0)["difference"]
    assert "Further differences" in render.text(made)
    assert "| a | b | -0.292 |" in render.markdown(made)
    assert "Further" not in render.text(table(a, b, c))


def test_several_splits_are_averaged_before_seeds(tmp_path):
    runs = [complete(tmp_path, "a", 0, range(6), split=1), complete(tmp_path, "a", 0, [], split=2),
            complete(tmp_path, "a", 1, range(12), split=1),
            complete(tmp_path, "a", 1, range(12), split=2)]
    made = table(row("a", *runs), row("b", complete(tmp_path, "b", 0, [0], split=1),
                                      complete(tmp_path, "b", 0, [1], split=2), reference=True))
    found = entry(made, 0)
    assert found["by_seed"] == pytest.approx({"0": 0.125, "1": 0.5})
    assert found["video_error"] == pytest.approx(0.3125) and found["splits"] == [1, 2]
    assert found["difference"]["number_of_videos"] == 48  # a name in two splits is two videos
    assert found["difference"]["mean"] == pytest.approx(0.3125 - 1 / 24)
    # a seed that lacks a split does not count, and neither does its difference
    part = table(row("a", *runs[:3], RunResult("a", 1, 2, "runs/x", "missing")))
    assert entry(part, 0)["by_seed"] == pytest.approx({"0": 0.125})
    assert "0.125 (1 of 2 seeds)" in render.text(part)
    assert "1 of 4 runs not complete yet" in render.text(part)


def test_nothing_is_dropped(tmp_path):
    made = table(row("done", complete(tmp_path, "done", 0, [0]), complete(tmp_path, "done", 1, []),
                     missing("done", 2)),
                 row("broken", failed("broken"), failed("broken", 1), paper=0.3),
                 row("waits", missing("waits")),
                 row("half", complete(tmp_path, "half", 0, [0]), failed("half", 1)),
                 row("paper only", paper=0.1))
    for shown in (render.text(made), render.markdown(made)):
        lines = {line.strip("| ").split("  ")[0].split(" |")[0]: line
                 for line in shown.splitlines()}
        assert "0.021 ± 0.029 (2 of 3 seeds)" in lines["done"]
        assert "failed: RunFailed: the loss is not finite" in lines["broken"]
        assert "0.300" in lines["broken"]
        assert lines["waits"].replace("|", " ").split()[1:] == ["-", "-", "-"]
        assert "0.042 (1 of 2 seeds)" in lines["half"]
        assert lines["paper only"].replace("|", " ").split()[2:] == ["0.100", "-", "-"]
        for note in ("broken: failed: RunFailed: the loss is not finite at update 17 (broken, "
                     "split 1, seed 0; broken, split 1, seed 1)",
                     "waits: 1 of 1 runs not complete yet", "update 17 (half, split 1, seed 1)"):
            assert note in " ".join(shown.split())
    statuses = [run["status"] for line in json.loads(render.to_json(made))["rows"]
                for run in line["entries"][0]["runs"]]
    assert statuses.count("failed") == 3 and statuses.count("missing") == 2


def test_the_heading_says_whether_the_papers_numbers_compare(two):
    for shown in (render.text(two), render.markdown(two)):
        assert "The paper's numbers are of UCF-101 with its 101 classes, ours of ucf101 with 10" \
            in shown
        assert "information, not a comparison" in " ".join(shown.split())
    seven = table(*two.rows, about={"data": "ucf101", "classes": 7})
    assert "ours of ucf101 with 7 classes" in render.markdown(seven)
    whole = table(*two.rows, about={"data": "ucf101", "classes": 101})
    assert whole.comparable and whole.caveat == ""
    for shown in (render.text(whole), render.markdown(whole)):
        assert "not a comparison" not in shown


def test_text_is_aligned_and_fits(two):
    shown = render.text(two)
    assert max(map(len, shown.splitlines())) <= render.WIDTH
    rule = next(line for line in shown.splitlines() if line.startswith("--"))
    lines = shown.splitlines()
    first = lines.index(rule)
    assert lines[first + 1].split()[:2] == ["conv", "0.219"]
    assert "0.250 ± 0.110" in lines[first + 1] and "+0.031" in lines[first + 1]
    assert len(lines[first + 1]) == len(rule) == len(lines[first - 1])
    assert "weights" not in shown and "budget         15m" in shown
    assert "none: the control that the paper lacks" in shown


def two_columns(tmp_path):
    def line(features, runs, paper, **more):
        return Row({"features": features, "model": "GRU"}, [
            Entry(column, number, found)
            for column, number, found in zip(("with Z-norm", "without"), paper, runs, strict=True)],
            **more)

    return Table(1, "Frozen | features", ABOUT, ["features", "model"], ["with Z-norm", "without"], [
        line("block4", ([complete(tmp_path, "z4", 0, [0, 1])], [failed("w4", reason="a | b\n<c>")]),
             (0.236, 0.237)),
        line("block3", ([complete(tmp_path, "z3", 0, [2])], [complete(tmp_path, "w3", 0, [3])]),
             (0.309, 0.313), reference=True)])


def test_two_columns_and_what_markdown_must_escape(tmp_path):
    made = two_columns(tmp_path)
    lines = render.markdown(made).splitlines()
    heading = next(line for line in lines if line.startswith("| features"))
    for line in lines[lines.index(heading):][:4]:
        assert line.replace("\\|", "").count("|") == 9
    assert "failed: a \\| b &lt;c>" in render.markdown(made)
    lines = render.text(made).splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("--"))
    assert lines[rule - 2].split() == ["with", "Z-norm", "without"]
    assert lines[rule - 1].split() == ["features", "model", *["paper", "ours", "ours", "-",
                                                             "paper"] * 2]
    # the columns' names stand where their first numbers do
    assert lines[rule - 2].index("without") <= lines[rule + 1].index("0.237")
    assert entry(made, 0)["difference"]["mean"] == pytest.approx(1 / 24)
    assert entry(made, 0, 1)["difference"] is None


def test_csv_has_every_entry_and_both_errors(tmp_path, two):
    lines = list(csv_format.DictReader(io.StringIO(render.csv(two))))
    assert [line["type"] for line in lines] == ["conv", "none"]
    assert float(lines[0]["video_error"]) == pytest.approx(0.25)
    assert float(lines[0]["chunk_error"]) == pytest.approx(1.25 / 3)
    assert lines[0]["verdict"] == "not detectable" and float(lines[0]["high_groups"]) < 0
    assert float(lines[0]["low_seeds"]) < -0.25 < 0 < float(lines[0]["high_seeds"])
    assert lines[1]["paper"] == "" and lines[1]["reference"] == "1"
    made = list(csv_format.DictReader(io.StringIO(render.csv(two_columns(tmp_path)))))
    assert len(made) == 4 and made[1]["failed"] == "w4, split 1, seed 0: a | b\n<c>"


def test_json_is_all_that_is_shown(two):
    found = json.loads(render.to_json(two))
    assert found == json.loads(json.dumps(two.summary))
    assert found["reference"] == {"type": "none"} and found["comparable_with_paper"] is False
    assert found["rows"][0]["entries"][0]["runs"][1]["chunk_error"] == 0.25


def other_names(tmp_path):
    return complete(tmp_path, "other", 0, [0], names=(*NAMES[:-1], "v_Walk_g99_c01"))


def without_file(tmp_path):
    run = complete(tmp_path, "gone", 0, [0])
    (tmp_path / "gone-split1-seed0.npz").unlink()
    return run


def of_another_run(tmp_path):
    run = complete(tmp_path, "a", 0, [0])
    complete(tmp_path, "a", 0, [0, 1])
    return run


@pytest.mark.parametrize(("make", "reason"), [
    (other_names, "other test videos: v_Walk_g05_c01 of split 1 is in one of them only"),
    (without_file, "gone-split1-seed0.npz: no such file"),
    (of_another_run, "video error 0.0833, the run's result says 0.0417"),
])
def test_scores_that_cannot_be_compared_leave_the_rest(tmp_path, make, reason):
    made = table(row("a", make(tmp_path)),
                 row("b", complete(tmp_path, "b", 0, [2, 3]), reference=True))
    assert reason in entry(made, 0)["difference"]["reason"]
    assert entry(made, 0)["video_error"] == pytest.approx(1 / 24)
    assert "no difference: " in render.text(made) and "see below" in render.markdown(made)


def test_write(tmp_path, two):
    import cv2

    folder = tmp_path / "new" / "folder"
    names = render.write(two, folder)
    assert names == ["table-3.md", "table-3.json", "table-3.csv", "table-3.png"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert (folder / "table-3.md").read_text() == render.markdown(two)
    drawn = cv2.imread(str(folder / "table-3.png"))
    assert drawn is not None and min(drawn.shape[:2]) > 200 and drawn.std() > 5


def test_write_without_matplotlib(tmp_path, two, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert render.write(two, tmp_path / "out") == ["table-3.md", "table-3.json", "table-3.csv"]


def test_a_table_with_nothing_done_can_be_shown(tmp_path):
    made = table(row("a", missing("a")), row("b", reference=True))
    assert "Differences" not in render.text(made)
    assert len(render.write(made, tmp_path / "out")) == 4


@pytest.mark.parametrize(("change", "reason"), [
    ({"rows": [Row({"kind": "a"}, [])]}, r"row a: labels \['kind'\], expected \['type'\]"),
    ({"rows": [Row({"type": "a"}, [Entry("both")])]}, r"row a: columns \['both'\], expected"),
    ({"rows": [Row({"type": "a"}, [Entry("error"), Entry("error")])]}, "row a: columns"),
    ({"rows": [Row({"type": name}, [], reference=True) for name in "ab"]}, "more than one"),
])
def test_a_table_that_contradicts_itself(change, reason):
    with pytest.raises(ValueError, match=reason):
        Table(**({"number": 3, "title": "", "about": {}, "label_columns": ["type"],
                  "columns": ["error"]} | change))


def test_a_complete_run_has_an_error():
    with pytest.raises(ValueError, match="runs/x: complete, but without a video error"):
        RunResult("a", 0, 1, "runs/x", "complete")
