"""Ctrl-C and SIGTERM: at once, or after the piece of work that must not be cut in two."""

from __future__ import annotations

import signal

import pytest

from recres.commands import Interrupted, Interrupts


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
