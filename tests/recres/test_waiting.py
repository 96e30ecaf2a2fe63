"""When data is what the step waits for, and what is said then."""

from __future__ import annotations

import pytest

from recres import config
from recres.waiting import SECONDS, UPDATES, Waiting, hint


def said(waiting, updates):
    """The numbers of the updates at which something is said, and what."""
    lines = [waiting.update(*update) for update in updates]
    return [(number, line) for number, line in enumerate(lines) if line is not None]


def test_once_an_epoch_and_not_for_its_first_update():
    slow = [(epoch, 0.043, 0.057) for epoch in (2, 3) for _ in range(3 * UPDATES)]
    text = "of the time is waiting for data; x would help"
    assert said(Waiting("; x would help"), slow) == [
        (UPDATES, f"epoch 2: 43% {text}"), (4 * UPDATES, f"epoch 3: 43% {text}")]
    assert said(Waiting(), [(1, 100.0, 1.0)] + [(1, 0.01, 0.09)] * 60) == []


def test_a_quarter_of_the_time_may_be_waiting():
    assert said(Waiting(), [(1, 0.025, 0.075)] * 100) == []
    assert said(Waiting(), [(1, 0.026, 0.074)] * 100)[0] == (
        UPDATES, "epoch 1: 26% of the time is waiting for data")


def test_what_was_long_ago_does_not_count():
    good, bad = (1, 0.0, 0.01), (1, 0.01, 0.0)
    assert said(Waiting(), [good] * 200 + [bad] * 5) == []
    assert said(Waiting(), [good] * 200 + [bad] * 6)[0][0] == 205


def test_few_long_updates_are_enough():
    assert said(Waiting(), [(1, SECONDS / 4, SECONDS / 4)] * 4)[0][0] == 3
    assert said(Waiting(), [(1, SECONDS, SECONDS)] * 3) == []
    assert said(Waiting(), [(1, SECONDS, SECONDS)] * 4)[0][0] == 3
    assert said(Waiting(), [(1, 0.1, 0.1)] * UPDATES) == []


@pytest.mark.parametrize(("values", "cores", "text"), [
    ({}, 8, "; --workers 4, or a store of frames (recres.data prepare, --frames), would help"),
    ({"workers": 4}, 8,
     "; --workers 8, or a store of frames (recres.data prepare, --frames), would help"),
    ({"frames": "/store"}, 2, "; --workers 2 would help"),
    ({"frames": "/store", "workers": 2}, 2, ""),
    ({}, 1, "; a store of frames (recres.data prepare, --frames) would help"),
    ({"input": "flow", "workers": 6}, 8, "; --workers 8 would help"),
    ({"freeze": "block2"}, 8, ""),
])
def test_what_would_help(values, cores, text):
    assert hint(config.resolve(values), cores) == text


def test_training_says_it(tiny, tmp_path, monkeypatch, capsys):
    from recres import train, waiting

    monkeypatch.setattr(waiting, "UPDATES", 2)
    monkeypatch.setattr(waiting, "TOO_MUCH", -1.0)
    assert train.main(["--out", str(tmp_path / "run"), *tiny, "--epochs", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "waiting for data" in line]
    assert [line.split(":")[0] for line in lines] == ["epoch 1"]
