"""Ctrl-C and SIGTERM: at once, or after the piece of work that must not be cut in two."""

from __future__ import annotations

import os
import signal

import pytest

from recres import train
from recres.commands import Interrupted, Interrupts
from tests.recres.stops import PLACES, act_at
from tests.recres.test_distributed_training import errors, run
from tests.recres.test_trainer import assert_same_run
from tests.recres.test_workers import children


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_at_once_and_the_former_handlers_come_back(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="how to go on"), Interrupts("how to go on"):
        signal.raise_signal(number)
        pytest.fail("not at once")
    assert signal.getsignal(number) is before


def test_deferred(capsys):
    with Interrupts() as interrupts:
        with interrupts.deferred():
            signal.raise_signal(signal.SIGINT)
            done = True
        assert done and interrupts.requested
        assert "finishing the update" in capsys.readouterr().err
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)


def test_a_second_signal_does_not_wait():
    with Interrupts() as interrupts, pytest.raises(Interrupted), interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("waited")


def test_at_once_within_what_is_deferred(capsys):
    """Also where a signal came before; and afterwards it is put off again."""
    with Interrupts("how") as interrupts, interrupts.deferred():
        with pytest.raises(Interrupted, match="how"), interrupts.at_once():
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("put off")
        assert interrupts.requested
        with pytest.raises(Interrupted, match="how"), interrupts.at_once():
            pytest.fail("forgotten")
        interrupts.requested = False
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.requested


@pytest.mark.parametrize("place", PLACES)
def test_a_run_stops_wherever_it_is_and_goes_on(trained, tiny, tmp_path, monkeypatch, capsys,
                                                place):
    folder, before = tmp_path / "run", children()
    more = {"features": ["--freeze", "block2"], "workers": ["--workers", "1"]}.get(place, [])
    with monkeypatch.context() as patch:
        act_at(place, lambda: os.kill(os.getpid(), signal.SIGTERM), patch.setattr)
        assert train.main(["--out", str(folder), *tiny, *more]) == 130
    *_, line = capsys.readouterr().err.splitlines()
    assert line == f"stopped; to go on: python -m recres.train --resume {folder}"
    assert len(children() - before) <= 1  # multiprocessing's own tracker
    assert not (folder / "result.json").exists()
    assert train.main(["--resume", str(folder), *(["--workers", "0"] if "--workers" in more
                                                  else [])]) == 0
    if "--freeze" not in more:
        assert_same_run(folder, trained)


@pytest.mark.parametrize(("who", "place"), [
    ("1", "reading"), ("all", "evaluation"), ("0", "last save"), ("all", "best"),
    ("all", "testing")])
def test_several_processes_stop_wherever_they_are(tiny, tmp_path, who, place):
    folder, ranks = tmp_path / "run", tmp_path / "ranks"
    ranks.mkdir()
    ended, _ = run(2, f"at:{who}:{place}", "--out", str(folder), *tiny, RANKS=str(ranks))
    assert ended.returncode == 130 and not errors(ended), ended.stderr
    assert ("Abort" in ended.stderr) == (place != "last save" and who != "all")
    resume = f"mpiexec -n 2 python -m recres.train --resume {folder}"
    assert [line for line in ended.stderr.splitlines() if resume in line] == [
        f"rank 1 of 2 was asked to stop, and all stop; go on with: {resume}" if who == "1"
        else f"stopped; to go on: {resume}"]
    assert not (folder / "result.json").exists()
    assert not any(os.path.exists(f"/proc/{rank.read_text()}") for rank in ranks.iterdir())
