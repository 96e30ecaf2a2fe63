"""The embedded data set: what the files are, and that only time tells the two of a pair apart."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from recres.datasets import figures
from recres.datasets.figures import scene
from recres.datasets.figures.__main__ import main
from recres.errors import InputError

SMALL = {"clips_per_group": 1, "groups": 4, "progress": False}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set: four groups, one clip of each action."""
    root = tmp_path_factory.mktemp("data") / "figures"
    figures.generate(root, seed=3, **SMALL)
    return root


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def decode(path: Path) -> np.ndarray:
    video, found = cv2.VideoCapture(str(path)), []
    while True:
        there, frame = video.read()
        if not there:
            return np.stack(found)[..., ::-1]
        found.append(frame)


def test_same_seed_same_bytes_whatever_the_workers(small: Path, tmp_path: Path) -> None:
    figures.generate(tmp_path / "again", seed=3, workers=3, **SMALL)
    assert digests(tmp_path / "again") == digests(small)
    figures.generate(tmp_path / "other", seed=4, **SMALL)
    other, here = digests(tmp_path / "other"), digests(small)
    assert other.keys() == here.keys()
    assert all(other[name] != here[name] for name in here if name.endswith(".avi"))


def test_layout_and_lists(small: Path) -> None:
    lists = small / "ucfTrainTestlist"
    lines = (lists / "classInd.txt").read_text().splitlines()
    assert lines == [f"{i} {name}" for i, name in enumerate(figures.CLASSES, 1)]
    assert len(figures.CLASSES) == 2 * len(figures.PAIRS) >= 8
    videos = {p.relative_to(small / "UCF-101").as_posix() for p in small.rglob("*.avi")}
    assert len(videos) == 4 * len(figures.CLASSES)
    tested = []
    for split in (1, 2, 3):
        train = (lists / f"trainlist{split:02d}.txt").read_text().splitlines()
        test = (lists / f"testlist{split:02d}.txt").read_text().splitlines()
        assert {line.split()[0] for line in train} | set(test) == videos
        assert len(train) + len(test) == len(videos)
        for line in train:
            entry, label = line.split()
            assert figures.CLASSES[int(label) - 1] == entry.split("/")[0]
        groups = {re.search(r"_g(\d+)_", line)[1] for line in test}  # type: ignore[index]
        assert groups.isdisjoint(re.search(r"_g(\d+)_", line)[1] for line in train)  # type: ignore[index]
        tested.append(groups)
    assert tested == [{"01"}, {"02"}, {"03"}]


def test_the_default_tests_the_groups_that_ucf101_tests(tmp_path: Path) -> None:
    clips = [("SitDown", group, 1) for group in range(1, 26)]
    figures._write_lists(tmp_path / "lists", clips, 25)
    for split, first in ((1, 1), (2, 8), (3, 15)):
        test = (tmp_path / "lists" / f"testlist{split:02d}.txt").read_text()
        groups = [int(group) for group in re.findall(r"_g(\d+)_", test)]
        assert groups == list(range(first, first + 7))


def test_read_gives_the_split_with_its_pairs(small: Path) -> None:
    split = figures.read(small, 2)
    assert split.name == "figures" and split.number == 2 and split.pairs == figures.PAIRS
    assert split.classes == figures.CLASSES
    assert {video.group for video in split.test} == {"g02"}
    assert {video.group for video in split.train} == {"g01", "g03", "g04"}


def test_files_hold_the_frames(small: Path) -> None:
    for action in figures.CLASSES:
        path = small / "UCF-101" / action / f"v_{action}_g02_c01.avi"
        shown = figures.frames(action, 2, 1, seed=3)
        found = decode(path)
        assert found.shape == shown.shape == (figures.LENGTH, figures.SIZE, figures.SIZE, 3)
        assert np.abs(found.astype(int) - shown).mean() < 8


def test_every_frame_is_coded_by_itself(tmp_path: Path) -> None:
    """A reversed clip decodes to the reversed frames, bit for bit."""
    shown = figures.frames("SitDown", 1, 1)
    figures.write_clip(tmp_path / "forwards.avi", shown)
    figures.write_clip(tmp_path / "backwards.avi", np.ascontiguousarray(shown[::-1]))
    forwards, backwards = decode(tmp_path / "forwards.avi"), decode(tmp_path / "backwards.avi")
    assert np.array_equal(backwards, forwards[::-1])


@pytest.mark.parametrize("pair", figures.PAIRS)
def test_the_two_of_a_pair_are_each_other_backwards(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the same draws, one action is exactly the reversed frames of the other."""
    draw = figures.draw
    monkeypatch.setattr(figures, "draw", lambda action, *key: draw(pair[0], *key))
    first, second = (figures.frames(action, 5, 2) for action in pair)
    assert np.array_equal(second, first[::-1])
    assert not np.array_equal(second, first)


def test_the_two_of_a_pair_draw_independently() -> None:
    for first, second in figures.PAIRS:
        a, b = figures.draw(first, 5, 2), figures.draw(second, 5, 2)
        assert a.x != b.x and a.start != b.start and not np.array_equal(a.u, b.u)


def test_sampling_and_chunks_treat_a_clip_and_its_reverse_alike() -> None:
    sampled = range(0, figures.LENGTH, figures.FRAME_STEP)
    assert [figures.LENGTH - 1 - i for i in reversed(sampled)] == list(sampled)
    assert len(sampled) % 2 == 0


def test_movements_go_on_between_sampled_frames() -> None:
    """Two frames a step apart always differ by an eighth of the movement or more."""
    for action in figures.CLASSES:
        for clip in range(1, 40):
            u = figures.draw(action, 1, clip).u
            assert u[0] == 0 and u[-1] == 1 and (np.diff(u) >= 0).all()
            assert (u[figures.FRAME_STEP :] - u[: -figures.FRAME_STEP]).min() > 0.125


def test_nothing_but_the_movement_has_a_direction() -> None:
    """Backdrop, ground, light and sway move either way equally often, whatever the action."""
    draws = {
        action: [figures.draw(action, g, c) for g in range(1, 21) for c in range(1, 21)]
        for action in figures.CLASSES
    }
    for action, clips in draws.items():
        played = -1 if figures.movement_of(action)[1] else 1
        for name in ("drift", "pan", "sway", "shimmer"):
            values = np.stack([getattr(clip, name) for clip in clips]).reshape(len(clips), -1)
            sign = np.sign(values[:, -1] - values[:, 0]) * played
            # 400 fair coins: a mean beyond 4 standard errors has a chance of 6e-5
            assert abs(sign.mean()) < 0.2, (action, name)
        assert all(np.ptp(clip.drift) > 0 for clip in clips)


def test_single_frame_statistics_agree_within_a_pair() -> None:
    """Each pixel's mean over all frames is the same for both, within the error of the means."""
    for pair in figures.PAIRS:
        means = [
            np.stack(
                [
                    figures.frames(action, g, c, size=24).mean((0, 3))
                    for g in range(1, 7)
                    for c in range(1, 6)
                ]
            )
            for action in pair
        ]
        gap = means[0].mean(0) - means[1].mean(0)
        error = np.sqrt(sum(mean.var(0, ddof=1) / len(mean) for mean in means))
        # 576 correlated pixels; of a pair and another pair it is above 6
        assert np.abs(gap / error).max() < 5, pair


def test_a_group_is_an_actor_at_a_place() -> None:
    looks = [figures._cast(0, group, 96) for group in range(1, 26)]
    assert len({(look.top, look.bottom, look.body) for look, _ in looks}) == 25
    assert len({place.backdrop.tobytes() for _, place in looks}) == 25
    for split in range(3):  # each kind of place is seen in training and in testing
        test = looks[7 * split : 7 * split + 7]
        train = looks[: 7 * split] + looks[7 * split + 7 :]
        assert {place.kind for _, place in test} == {place.kind for _, place in train}


def test_the_actor_stays_in_the_picture() -> None:
    """Hands, feet and umbrella stay within the picture; body and knees within its middle 80 %."""
    wide = 1000
    for number, (action, _) in enumerate(figures.PAIRS):
        for group in range(1, 26):
            drawn = figures.draw(action, group, 1)
            body = figures._cast(0, group, 96)[0].body
            camera, found = figures._film(figures._MOVEMENTS[number], drawn, body, wide)
            inner = [found.hips, found.shoulders, found.knees, found.ankles, found.head[:, None]]
            core = camera.pixels(np.concatenate(inner, 1)) / (1 << scene.SHIFT) / wide
            assert core.min() > 0.1 and core.max() < 0.9, (action, group)
            outer = np.concatenate([found.hands, found.thing], 1)
            ends = camera.pixels(outer) / (1 << scene.SHIFT) / wide
            assert ends.min() > 0.02 and ends.max() < 0.98, (action, group)


def test_ensure_makes_it_once_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    root = tmp_path / "data" / "figures"
    figures.ensure(root, seed=1, log=said.append, **SMALL)
    assert len(said) == 1 and str(root) in said[0]
    before = digests(root)
    figures.ensure(root, seed=1, log=said.append, **SMALL)
    assert len(said) == 1 and digests(root) == before
    assert [path.name for path in root.parent.iterdir()] == ["figures"]  # nothing beside it


def test_ensure_refuses_another_version_or_seed(small: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"seed 3, expected seed 9") as caught:
        figures.ensure(small, seed=9, **SMALL)
    assert "\n" not in str(caught.value)
    settings = json.loads((small / "figures.json").read_text())
    (tmp_path / "figures.json").write_text(json.dumps(settings | {"version": 0}))
    with pytest.raises(InputError, match=f"version 0, expected version {figures.VERSION}"):
        figures.ensure(tmp_path, seed=3, **SMALL)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"figures"'])
def test_ensure_refuses_unreadable_settings(text: str, tmp_path: Path) -> None:
    (tmp_path / "figures.json").write_text(text)
    with pytest.raises(InputError, match="figures.json: not the settings"):
        figures.ensure(tmp_path, **SMALL)


def test_occupied_folders_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for make in (figures.ensure, figures.generate):
        with pytest.raises(InputError, match="holds something already"):
            make(tmp_path / "mine", **SMALL)
        with pytest.raises(InputError, match="a file, expected a folder"):
            make(tmp_path / "mine" / "thesis.txt", **SMALL)
        with pytest.raises(InputError, match="cannot be written"):
            make(tmp_path / "mine" / "thesis.txt" / "below", **SMALL)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    figures.generate(tmp_path / "empty", clips_per_group=1, groups=3, progress=False)
    assert (tmp_path / "empty" / "figures.json").is_file()


def test_nothing_is_left_of_an_interrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, shown: np.ndarray) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "write_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        figures.generate(tmp_path / "figures", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, os.getpid(), os.getppid()):
        (tmp_path / f".tmp-figures-{process}").mkdir()
    figures.generate(tmp_path / "figures", **SMALL)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"figures", f".tmp-figures-{os.getppid()}"}


def test_bad_numbers_and_names() -> None:
    with pytest.raises(ValueError, match="groups: 2, expected at least 3"):
        figures.generate("nowhere", groups=2)
    with pytest.raises(ValueError, match="clips_per_group: 0, expected at least 1"):
        figures.generate("nowhere", clips_per_group=0)
    with pytest.raises(ValueError, match="action: 'Fly', expected one of"):
        figures.frames("Fly", 1, 1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sheet = tmp_path / "set", tmp_path / "sheet.png"
    numbers = ["--groups", "3", "--clips-per-group", "1", "--seed", "2"]
    assert main(["--out", str(out), "--sheet", str(sheet), *numbers]) == 0
    assert figures.read(out).classes == figures.CLASSES
    picture = cv2.imread(str(sheet))
    assert picture.shape[1] > picture.shape[0] > 300 and picture.std() > 20
    capsys.readouterr()
    assert main(["--out", str(out), *numbers]) == 2
    assert capsys.readouterr().err.count("\n") == 1
