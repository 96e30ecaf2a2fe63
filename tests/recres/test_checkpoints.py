"""The checkpoints of a run: which are kept, when they are written, and what if one is damaged."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from recres import checkpoint
from recres.checkpoints import BEST, DAMAGED, NEWEST, Checkpoints, NotWritten, recover
from recres.errors import InputError
from tensorlite.io import FormatError


def state(update: int) -> tuple[checkpoint.Arrays, dict[str, str]]:
    return ({"model/w": np.full(4, update, np.float32)},
            {"format": checkpoint.FORMAT, "progress": f'{{"update": {update}}}'})


def save(folder: Path, keep: int, *updates: int) -> Checkpoints:
    writer = Checkpoints(folder, keep)
    for update in updates:
        writer.save(*state(update), update)
    writer.wait()
    return writer


def updates(folder: Path) -> dict[str, int]:
    """Every file in a folder, and of how many updates it is."""
    found = {path.name: checkpoint.read_checkpoint(path)[1].update for path in folder.iterdir()}
    return dict(sorted(found.items()))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("keep, expected", [
    (1, {NEWEST: 9}), (2, {"checkpoint-1.safetensors": 8, NEWEST: 9}),
    (4, {"checkpoint-1.safetensors": 8, "checkpoint-2.safetensors": 7,
         "checkpoint-3.safetensors": 6, NEWEST: 9})])
def test_the_newest_are_kept(tmp_path, keep, expected):
    assert save(tmp_path, keep, 1, 6, 7, 8, 9).written == 9
    assert updates(tmp_path) == expected


def test_fewer_are_kept_when_that_is_wished(tmp_path):
    save(tmp_path, 4, 1, 2, 3, 4)
    save(tmp_path, 2, 5)
    assert updates(tmp_path) == {"checkpoint-1.safetensors": 4, NEWEST: 5}
    save(tmp_path, 1, 6)
    assert updates(tmp_path) == {NEWEST: 6}


def test_without_links(tmp_path, monkeypatch):
    """On file systems that have none."""
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no")))
    save(tmp_path, 3, 1, 2, 3)
    assert updates(tmp_path) == {"checkpoint-1.safetensors": 2, "checkpoint-2.safetensors": 1,
                                 NEWEST: 3}


@pytest.mark.parametrize("harm", [cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_the_one_before_is_used_and_said_so(tmp_path, harm):
    save(tmp_path, 3, 1, 2, 3)
    harm(tmp_path / NEWEST)
    there = (tmp_path / NEWEST).exists()
    said: list[str] = []
    assert recover(tmp_path, said.append) == tmp_path / NEWEST
    (line,) = said
    assert "\n" not in line and str(tmp_path / NEWEST) in line
    assert line.endswith("going on from the one before, checkpoint-1.safetensors, after update 2")
    assert (tmp_path / DAMAGED).exists() == there
    (tmp_path / DAMAGED).unlink(missing_ok=True)
    assert updates(tmp_path) == {"checkpoint-2.safetensors": 1, NEWEST: 2}
    recover(tmp_path, said.append)
    assert len(said) == 1
    save(tmp_path, 3, 3)
    assert updates(tmp_path) == {"checkpoint-1.safetensors": 2, "checkpoint-2.safetensors": 1,
                                 NEWEST: 3}


def test_the_last_that_is_whole(tmp_path):
    save(tmp_path, 3, 1, 2, 3)
    for name in (NEWEST, "checkpoint-1.safetensors"):
        cut(tmp_path / name)
    said: list[str] = []
    recover(tmp_path, said.append)
    assert "checkpoint-2.safetensors, after update 1" in said[0] and said[0].count("read: ") == 2
    cut(tmp_path / NEWEST)
    (tmp_path / "checkpoint-2.safetensors").unlink(missing_ok=True)
    with pytest.raises(FormatError, match=r"checkpoint.safetensors: .*checkpoint-1.safetensors: "
                                          r".*no other .* is whole: it has to be begun anew"):
        recover(tmp_path, said.append)


def test_none_at_all(tmp_path):
    assert recover(tmp_path, pytest.fail) is None


def test_a_newer_one_is_refused_and_stays(tmp_path):
    save(tmp_path, 2, 1, 2)
    checkpoint.write(tmp_path / NEWEST, state(3)[0], {"format": "recres-checkpoint-3"})
    before = (tmp_path / NEWEST).read_bytes()
    with pytest.raises(InputError, match="recres-checkpoint-3"):
        recover(tmp_path, pytest.fail)
    assert (tmp_path / NEWEST).read_bytes() == before


@pytest.mark.parametrize("error, damaged", [
    (PermissionError(errno.EACCES, "Permission denied"), False),
    (OSError(errno.ESTALE, "Stale file handle"), False), (MemoryError(), False),
    (OSError(errno.EIO, "Input/output error"), True)])
def test_what_cannot_be_read_at_the_moment_is_not_damaged(tmp_path, monkeypatch, error, damaged):
    """Training that was done is not thrown away for it. A bad sector stays as it is."""
    save(tmp_path, 2, 1, 2)
    read_bytes, said = Path.read_bytes, []

    def reads(self):
        if self.name == NEWEST:
            raise error
        return read_bytes(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", reads)
        if damaged:
            recover(tmp_path, said.append)
        else:
            with pytest.raises(type(error)):
                recover(tmp_path, said.append)
    assert len(said) == damaged == (tmp_path / DAMAGED).exists()
    assert checkpoint.read_checkpoint(tmp_path / NEWEST)[1].update == 2 - damaged


def test_one_writer_at_a_time_while_the_caller_goes_on(tmp_path, monkeypatch):
    original, go, running, most = checkpoint.write, threading.Event(), [], []

    def write(*arguments):
        running.append(1)
        most.append(len(running))
        assert go.wait(10)
        original(*arguments)
        running.pop()

    monkeypatch.setattr(checkpoint, "write", write)
    writer = Checkpoints(tmp_path, 2)
    writer.save(*state(1), 1)  # comes back at once
    assert writer.busy and writer.written == 0 and not (tmp_path / NEWEST).exists()
    threading.Timer(0.05, go.set).start()
    writer.save_best(*state(2))
    writer.save(*state(3), 3)
    writer.wait()
    assert most == [1, 1, 1] and not writer.busy and writer.written == 3
    assert checkpoint.read(tmp_path / BEST)[0]["model/w"][0] == 2
    (tmp_path / BEST).unlink()
    assert updates(tmp_path) == {"checkpoint-1.safetensors": 1, NEWEST: 3}


def test_what_went_wrong_is_raised_later_and_the_ones_before_stay(tmp_path, monkeypatch):
    save(tmp_path, 2, 1, 2)
    writer = Checkpoints(tmp_path, 2, 2)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(full))
    writer.save(*state(3), 3)
    writer.close()
    with pytest.raises(NotWritten) as caught:
        writer.check()
    assert caught.value.__cause__ is full
    with pytest.raises(NotWritten):
        writer.save(*state(4), 4)
    assert writer.written == 2
    assert updates(tmp_path) == {"checkpoint-1.safetensors": 1, NEWEST: 2}
