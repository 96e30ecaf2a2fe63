"""Runs whose checkpoint is damaged, or whose folder cannot be written to any more."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recres import checkpoint, checkpoints, train
from recres.checkpoint import DIGEST
from recres.checkpoints import BEST, NEWEST
from recres.files import read_json, write_json
from recres.runs import MetricsLog, read_metrics
from recres.trainer import Trainer
from tensorlite.io import load_safetensors, save_safetensors


def assert_same_run(one: Path, two: Path) -> None:
    """Bit-equal checkpoints and best models, equal losses and results."""
    for name in (NEWEST, BEST):
        a, b = (checkpoint.read(folder / name)[0] for folder in (one, two))
        assert a.keys() == b.keys()
        assert all(a[key].tobytes() == b[key].tobytes() for key in a), name
    for kind in ("update", "evaluation"):
        losses = [[(line["loss"], line["update"], line.get("training_loss"))
                   for line in read_metrics(folder / "metrics.jsonl", kind)]
                  for folder in (one, two)]
        assert losses[0] == losses[1] and losses[0]
    results = [{k: v for k, v in read_json(folder / "result.json").items() if "seconds" not in k}
               for folder in (one, two)]
    assert results[0] == results[1]


def one_line(text: str) -> str:
    (line,) = text.strip().splitlines()
    return line


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The system's temporary folder, for the time of a test, and the user's; memory is none."""
    folder = tmp_path / "temporary files"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(checkpoints, "MEMORY", tmp_path / "none")
    return folder


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk that can be full; the test is skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def refuse(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, after: int,
           number: int = errno.ENOSPC) -> None:
    """From the `after`-th time on, files called `name` cannot be written below `folder`."""
    original, times = checkpoint.save_safetensors, []

    def save(path, *arguments):
        if folder in Path(path).parents and Path(path).name.endswith(name):
            times.append(path)
            if len(times) > after:
                raise OSError(number, os.strerror(number), str(path))
        original(path, *arguments)

    monkeypatch.setattr(checkpoint, "save_safetensors", save)


def go_on_as_told(message: str) -> int:
    """Do what the message says, word for word."""
    move, _, resume = re.search(r"go on with: (.*)$", message)[1].rpartition(" && ")
    if move:
        assert subprocess.run(["sh", "-c", move], check=False).returncode == 0
    words = shlex.split(resume)
    assert words[:3] == ["python", "-m", "recres.train"]
    return train.main(words[3:])


@pytest.mark.parametrize("name, after, number", [
    (NEWEST, 3, errno.ENOSPC), (NEWEST, 0, errno.EROFS), (BEST, 0, errno.EACCES)])
def test_what_cannot_be_written_is_saved_elsewhere(trained, tiny, tmp_path, temporary, monkeypatch,
                                                   capsys, name, after, number):
    folder = tmp_path / "the run"
    with monkeypatch.context() as patch:
        refuse(patch, folder, name, after, number)
        assert train.main(["--out", str(folder), *tiny, "--save-seconds", "0"]) == 1
    line = one_line(capsys.readouterr().err)
    assert line.startswith(f"error: {folder}: cannot be written: {os.strerror(number)}; the state "
                           "after update ")
    (place,) = temporary.iterdir()
    saved = checkpoint.read_checkpoint(place / NEWEST)[1]
    assert f"after update {saved.update} is saved in {place}; " in line
    assert saved.update == len(read_metrics(folder / "metrics.jsonl")) >= 1
    assert (place / BEST).exists() == (name == BEST)
    assert go_on_as_told(line) == 0
    assert_same_run(folder, trained)


@pytest.mark.parametrize("last", [False, True])
def test_lines_that_cannot_be_written_are_not_lost(trained, tiny, tmp_path, temporary, monkeypatch,
                                                   capsys, last):
    """The log is full before the checkpoints are; `last`: at the last evaluation."""
    folder, original = tmp_path / "run", MetricsLog.append
    at = len(read_metrics(trained / "metrics.jsonl")) if last else 3

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            if len(data) > 20:
                return self.file.write(data[:20])  # as much as there is room for
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name):
            return getattr(self.file, name)

    def append(self, line):
        if line["update"] == at and (line["kind"] == "evaluation") == last:
            self._file = Full(self._file)
        original(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "append", append)
        assert train.main(["--out", str(folder), *tiny]) == 1
    line = one_line(capsys.readouterr().err)
    assert f"cannot be written: No space left on device; the state after update {at} is" in line
    assert len(read_metrics(folder / "metrics.jsonl")) == (at if last else 2)
    assert go_on_as_told(line) == 0
    assert_same_run(folder, trained)


def test_what_is_lost_is_said_where_nothing_can_be_written(trained, tiny, tmp_path, monkeypatch,
                                                           temporary, capsys):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        refuse(patch, tmp_path, NEWEST, 3)
        assert train.main(["--out", str(folder), *tiny, "--save-seconds", "0"]) == 1
    line = one_line(capsys.readouterr().err)
    kept = checkpoint.read_checkpoint(folder / NEWEST)[1].update
    tried = ", nor ".join([f"{re.escape(str(temporary))}: No space left on device"] * 2)
    assert re.search(rf"; nor can {tried}; lost is what came after update {kept}, up to update "
                     r"\d+; when", line)
    assert not any(temporary.iterdir())
    assert go_on_as_told(line) == 0
    assert_same_run(folder, trained)


@pytest.mark.parametrize("takes", ["home", "memory"])
def test_other_places_are_tried_in_turn(trained, tiny, tmp_path, temporary, monkeypatch, capsys,
                                        takes):
    """The folder for temporary files, the user's own, and memory, of which the line warns."""
    folder, home, memory = (tmp_path / name for name in ("run", "home", "memory"))
    memory.mkdir()
    if takes == "home":
        home.mkdir()
    with monkeypatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setattr(checkpoints, "MEMORY", memory)
        refuse(patch, temporary, NEWEST, 0)
        refuse(patch, folder, NEWEST, 3)
        assert train.main(["--out", str(folder), *tiny, "--save-seconds", "0"]) == 1
    line = one_line(capsys.readouterr().err)
    (place,) = (home if takes == "home" else memory).iterdir()
    warned = ", which is memory, and gone when the machine ends" if takes == "memory" else ""
    assert f" is saved in {place}{warned}; when there is room" in line and "nor can" not in line
    assert not any(temporary.iterdir())
    assert go_on_as_told(line) == 0
    assert_same_run(folder, trained)


@pytest.mark.parametrize("ahead", [True, False])
def test_an_update_that_fails_when_the_disk_is_full_does_not_take_the_state_with_it(
        trained, tiny, tmp_path, temporary, monkeypatch, capsys, ahead):
    """It has spoilt the state of now; but that of the checkpoint which could not be written is
    whole. Whether how it went is asked when that is known (`ahead`), or it ends training itself."""
    folder = tmp_path / "run"
    save, accumulate, training = Trainer.save, Trainer.accumulate, Trainer.train

    def saves(self):
        save(self)
        self.checkpoints.close()

    def fails(self, inputs, batch, size):
        full = self.checkpoints._error is not None
        return accumulate(self, inputs * np.nan if full else inputs, batch, size)

    def train_ahead(self):
        self.ahead = ahead
        training(self)

    with monkeypatch.context() as patch:
        for name, function in (("save", saves), ("accumulate", fails), ("train", train_ahead)):
            patch.setattr(Trainer, name, function)
        refuse(patch, folder, NEWEST, 3)
        assert train.main(["--out", str(folder), *tiny, "--save-seconds", "0"]) == 1
    line = one_line(capsys.readouterr().err)
    (place,) = temporary.iterdir()
    saved = checkpoint.read_checkpoint(place / NEWEST)[1].update
    assert saved == checkpoint.read_checkpoint(folder / NEWEST)[1].update + 1
    assert (f"cannot be written: No space left on device; and update {saved + 1}: the loss is nan; "
            in line)
    assert f"; the state after update {saved} is saved in {place}; when there is room" in line
    assert go_on_as_told(line) == 0
    assert_same_run(folder, trained)


def test_a_full_disk(trained, tiny, small_disk, temporary, tmp_path, monkeypatch, capsys):
    """With the folder for temporary files on it too; what is saved at home goes on."""
    folder, original = small_disk / "run", MetricsLog.append
    (tmp_path / "home").mkdir()

    def append(self, line):
        if line["update"] == 3:
            with contextlib.suppress(OSError), open(small_disk / "filler", "wb", 0) as filler:
                while True:
                    filler.write(bytes(512))
        original(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "append", append)
        patch.setattr(tempfile, "tempdir", str(small_disk))
        patch.setenv("HOME", str(tmp_path / "home"))
        assert train.main(["--out", str(folder), *tiny, "--save-seconds", "0"]) == 1
    line = one_line(capsys.readouterr().err)
    (place,) = (tmp_path / "home").iterdir()
    assert f"{folder}: cannot be written: No space left on device; the state after update" in line
    assert f" is saved in {place};" in line
    assert {path.name for path in small_disk.iterdir()} == {"run", "filler"}
    (small_disk / "filler").unlink()
    assert go_on_as_told(line) == 0
    assert_same_run(folder, trained)


def test_files_that_may_not_grow(tiny, tmp_path):
    """Files may not grow beyond 100 kB: the checkpoint has no room, its file stays unwritten."""
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5)); " \
            "from recres import train; sys.exit(train.main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", limit, "--out", str(tmp_path / "run"), *tiny],
                          capture_output=True, text=True, check=False,
                          env=os.environ | {"HOME": str(tmp_path)})
    assert done.returncode == 1, done.stderr
    assert re.match(r"error: .*/run: cannot be written: File too large; nor can .*: File too "
                    r"large; lost is what came after update 0, up to update 1; when", done.stderr)
    assert one_line(done.stderr)
    assert not any((tmp_path / "run").glob("*.safetensors"))
    assert not any((tmp_path / "run").glob(".tmp-*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_folder_that_becomes_read_only(trained, tiny, tmp_path, temporary, monkeypatch, capsys):
    folder, original = tmp_path / "run", MetricsLog.append

    def append(self, line):
        original(self, line)
        if line["update"] == 2:
            folder.chmod(0o555)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "append", append)
        assert train.main(["--out", str(folder), *tiny, "--save-seconds", "0"]) == 1
    line = one_line(capsys.readouterr().err)
    assert "cannot be written: Permission denied; the state after update" in line
    assert train.main(["--resume", str(folder)]) == 1
    assert "Permission denied" in one_line(capsys.readouterr().err)
    folder.chmod(0o755)
    assert go_on_as_told(line) == 0
    assert_same_run(folder, trained)


def stopped(tiny: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was interrupted after its fourth update, with a checkpoint after most."""
    original = MetricsLog.append

    def append(self, line):
        original(self, line)
        if line["update"] == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "append", append)
        assert train.main(["--out", str(folder), *tiny, "--save-seconds", "0"]) == 130


def test_a_damaged_checkpoint_gives_way_to_the_one_before(trained, tiny, tmp_path, monkeypatch,
                                                          capsys):
    folder = tmp_path / "run"
    stopped(tiny, folder, monkeypatch)
    before = checkpoint.read_checkpoint(folder / "checkpoint-1.safetensors")[1].update
    assert before < 4
    data = bytearray((folder / NEWEST).read_bytes())
    data[-5] ^= 1
    (folder / NEWEST).write_bytes(data)
    capsys.readouterr()
    assert train.main(["--resume", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"{NEWEST}: damaged: its sha256 is not that of what was written: going on from the " \
           f"one before, checkpoint-1.safetensors, after update {before}\n" in said
    assert_same_run(folder, trained)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: os.truncate(path, 5000)])
def test_a_best_model_that_is_damaged_is_noticed_when_the_run_goes_on(trained, tmp_path, capsys,
                                                                      harm):
    """Even where all epochs are done: the last of them then stands for it."""
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "result.json").unlink()
    harm(folder / BEST)
    assert train.main(["--resume", str(folder)]) == 0
    assert f"damaged   {folder / BEST}: " in capsys.readouterr().out
    arrays, about = checkpoint.load_model(folder / BEST)
    newest = checkpoint.read_checkpoint(folder / NEWEST)
    assert about["epoch"] == "2" and newest[1].best["epoch"] == newest[1].epoch == 2
    assert all(newest[0][f"model/{name}"].tobytes() == arrays[name].tobytes() for name in arrays)
    assert read_json(folder / "result.json")["best"]["epoch"] == 2


def test_a_best_model_of_an_epoch_that_is_trained_again_is_not_taken_for_another(
        trained, tmp_path, monkeypatch, capsys):
    """As after the damage of a checkpoint, where the second time an epoch comes out otherwise."""
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "result.json").unlink()
    arrays, metadata = checkpoint.read(folder / NEWEST)
    progress = json.loads(metadata["progress"])
    progress["best"] |= {"epoch": 1, "video_error": -1.0}  # better than what is yet to come
    progress |= {"epoch": 1, "done": 4}
    checkpoint.write(folder / NEWEST, arrays, metadata | {"progress": json.dumps(progress)})
    model, about = checkpoint.load_model(folder / BEST)
    checkpoint.write_model(folder / BEST, model, about | {"epoch": "2"})
    assert train.main(["--resume", str(folder)]) == 0
    assert "damaged" not in capsys.readouterr().out
    about = checkpoint.load_model(folder / BEST)[1]
    best = checkpoint.read_checkpoint(folder / NEWEST)[1].best
    assert about["epoch"] == str(best["epoch"]) == "2"


def test_none_that_is_whole(tiny, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    stopped(tiny, folder, monkeypatch)
    for path in folder.glob("checkpoint*.safetensors"):
        os.truncate(path, 1000)
    capsys.readouterr()
    assert train.main(["--resume", str(folder)]) == 2
    line = one_line(capsys.readouterr().err)
    assert "checkpoint-1.safetensors: cannot be read" in line and "begun anew" in line


def test_a_run_made_before_goes_on(trained, tiny, tmp_path, monkeypatch):
    """Its files have format 1 and no digests, its options neither --keep nor --save-seconds."""
    folder = tmp_path / "run"
    stopped(tiny, folder, monkeypatch)
    (folder / "checkpoint-1.safetensors").unlink()
    for path in folder.glob("*.safetensors"):
        arrays, metadata = load_safetensors(path)
        del metadata[DIGEST]
        if path.name == NEWEST:
            metadata |= {"format": "recres-checkpoint-1",
                         "progress": metadata["progress"].replace(', "unlogged": []', "")}
            assert "unlogged" not in metadata["progress"]
        save_safetensors(path, arrays, metadata)
    about = read_json(folder / "config.json")
    for name in ("keep", "save_seconds"):
        del about["options"][name]
    write_json(folder / "config.json", about)
    assert train.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, trained)


def test_what_may_change_when_a_run_is_gone_on_with(trained, tiny, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    stopped(tiny, folder, monkeypatch)
    assert train.main(["--resume", str(folder), "--lr", "1"]) == 2
    assert "cannot change" in capsys.readouterr().err
    assert train.main(["--resume", str(folder), "--keep", "0"]) == 2
    assert "--keep 0: expected at least 1" in capsys.readouterr().err
    assert train.main(["--resume", str(folder), "--keep", "1", "--save-seconds", "5"]) == 0
    assert {p.name for p in folder.glob("checkpoint*")} == {NEWEST}
    options = read_json(folder / "config.json")["options"]
    assert (options["keep"], options["save_seconds"]) == (1, 5)
    assert_same_run(folder, trained)
