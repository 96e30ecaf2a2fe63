"""The job that `python -m recres.train` does without an argument, and its control. Minutes long."""

from __future__ import annotations

import pytest

from recres import train
from recres.files import read_json


@pytest.mark.long
def test_two_frames_tell_what_one_cannot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--out", "rrn"]) == 0
    assert train.main(["--out", "avgpool", "--model", "avgpool"]) == 0
    recurrent, control = (read_json(tmp_path / name / "result.json") for name in ("rrn", "avgpool"))
    assert recurrent["video_error"] <= 0.10
    assert recurrent["reversed_becomes_partner"] >= 0.9
    assert control["pair_error"] <= 0.05
    assert control["video_error"] >= 0.35
    assert control["reversed_becomes_partner"] == 0
