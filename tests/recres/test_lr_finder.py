"""The range test for a learning rate."""

from __future__ import annotations

import builtins
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from recres import lr_finder
from recres.commands import RunFailed
from recres.lr_finder import range_test, rates
from recres.trainer import Trainer


def losses(monkeypatch, values):
    """The range test sees these losses."""
    monkeypatch.setattr(lr_finder, "_updates", lambda trainer, planned: iter(values))


def test_rates_rise_by_one_factor():
    found = rates(1e-4, 1.0, 5)
    assert found == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def test_the_suggestion_is_a_tenth_of_the_best_rate(monkeypatch):
    """A loss that falls from 1e-4 on and rises from 1e-2 on; the average lags by a little."""
    planned = rates(1e-6, 1.0, 300)
    x = np.log10(planned)
    losses(monkeypatch, (2 - np.clip((x + 4) / 2, 0, 1) + 3 * np.clip(x + 2, 0, None)).tolist())
    found = range_test(None, planned)
    assert 1e-2 <= found.best < 2.5e-2 and found.suggested == pytest.approx(found.best / 10)
    assert found.diverged is not None and 0.1 < found.diverged < 1
    assert len(found.rates) == len(found.losses) == len(found.smoothed) < 300
    assert found.rates == planned[: len(found.rates)]


def test_the_average_is_corrected_for_its_start(monkeypatch):
    losses(monkeypatch, [2.0] * 12 + [1.0] * 8)
    found = range_test(None, rates(1e-3, 1, 20))
    assert found.smoothed[:12] == pytest.approx([2.0] * 12)
    assert found.smoothed[12] == pytest.approx(2 - 0.1 / (1 - 0.9**13)) and found.diverged is None


def test_it_ends_where_the_loss_is_not_finite(monkeypatch):
    planned = rates(1e-3, 1, 40)
    losses(monkeypatch, [3 - 0.05 * i for i in range(20)] + [math.nan, 0.0])
    found = range_test(None, planned)
    assert len(found.losses) == 20 and found.diverged == planned[19]
    losses(monkeypatch, [1.0, math.inf])
    with pytest.raises(RunFailed, match="not finite after 1 updates, at the rate 0.0012"):
        range_test(None, planned)


def test_a_loss_that_never_falls_suggests_nothing(monkeypatch):
    losses(monkeypatch, [1 + 0.01 * i for i in range(40)])
    with pytest.raises(RunFailed, match="does not fall at any rate from 0.001 to"):
        range_test(None, rates(1e-3, 1, 40))


@pytest.fixture
def options(tiny) -> list[str]:
    return [value for value in tiny[:-4]] + ["--threads", "1"]  # without --epochs


def test_each_update_is_made_at_its_rate(options, figures_root, tmp_path, monkeypatch, capsys):
    """And on new chunks, epoch after epoch; nothing but the two files appears."""
    seen, batches = [], []
    accumulate = Trainer.accumulate

    def accumulates(self, inputs, batch, size):
        if batches:
            seen.append(self.optimizer.lr)
        batches.append([chunk.number for chunk in batch])
        accumulate(self, inputs, batch, size)
        return 3 - 0.01 * len(batches)

    monkeypatch.setattr(Trainer, "accumulate", accumulates)
    monkeypatch.chdir(tmp_path)
    before = sorted(figures_root.rglob("*"))
    assert lr_finder.main([*options, "--steps", "12", "--from", "1e-5", "--to", "1e-2"]) == 0
    assert seen == pytest.approx(rates(1e-5, 1e-2, 12)[: len(seen)]) and len(seen) >= 10
    assert sorted(sum(batches[:4], [])) == sorted(sum(batches[4:8], []))
    assert batches[:4] != batches[4:8]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lr_finder.json", "lr_finder.png"]
    assert sorted(figures_root.rglob("*")) == before
    found = json.loads(Path("lr_finder.json").read_text())
    assert found["options"]["width"] == 4 and len(found["losses"]) >= 11
    assert (tmp_path / "lr_finder.png").read_bytes()[:4] == b"\x89PNG"
    assert f"--lr {found['suggested']:.2g}" in capsys.readouterr().out


def test_without_matplotlib_there_is_no_picture(options, tmp_path, monkeypatch, capsys):
    importing = builtins.__import__

    def imports(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return importing(name, *rest)

    monkeypatch.setattr(Trainer, "accumulate", lambda *_: next(falling))
    falling = iter(3 - 0.01 * i for i in range(12))
    monkeypatch.setattr(builtins, "__import__", imports)
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    assert lr_finder.main([*options, "--steps", "12", "--from", "1e-5", "--to", "1e-2", "--out",
                           str(tmp_path / "x.json")]) == 0
    assert "not drawn" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_what_cannot_be(options, tmp_path, capsys):
    for arguments, text in ((["--lr", "0.1"], "--lr 0.1: is what the range test looks for"),
                            (["--from", "1", "--to", "0.1"], "expected 0 < from < to"),
                            (["--to", "inf"], "expected 0 < from < to"),
                            (["--steps", "9"], "expected at least 10"),
                            (["--out", str(tmp_path / "no" / "x.json")], "in a folder that is"),
                            (["--out", str(tmp_path / "x.png")], "expected a .json file")):
        assert lr_finder.main([*options, *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert text in line
