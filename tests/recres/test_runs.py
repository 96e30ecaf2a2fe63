"""The run's folder: who may write to it, and its log of metrics."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from recres import config
from recres.errors import InputError
from recres.files import read_json, write_json
from recres.runs import MetricsLog, Run, read_metrics

OPTIONS = config.resolve({})


def test_what_was_created_can_be_opened(tmp_path):
    with Run.create(tmp_path / "a" / "b", OPTIONS, {"started": "now"}):
        pass
    run = Run.open(tmp_path / "a" / "b")
    assert run.config == OPTIONS
    assert run.about == {"started": "now"}
    assert run.result is None


def test_options_that_change_are_written_down_and_others_stay(tmp_path):
    with Run.create(tmp_path / "run", OPTIONS, {"started": "now"}):
        pass
    with Run.open(tmp_path / "run") as run:
        before = (run.path / "config.json").stat().st_mtime_ns
        run.change(OPTIONS)
        assert (run.path / "config.json").stat().st_mtime_ns == before
        run.change(config.with_changes(OPTIONS, {"threads": OPTIONS.threads + 1}))
    again = Run.open(tmp_path / "run")
    assert again.config == run.config != OPTIONS
    assert again.about == {"started": "now"}


def test_a_run_from_before_an_option_is_opened_and_then_has_it(tmp_path):
    full = config.resolve({}).to_json()
    older = {name: value for name, value in full.items() if name != "threads"}
    write_json(tmp_path / "config.json", {"options": older, "started": "then"})
    with Run.open(tmp_path) as run:
        assert run.config.to_json() == full
        run.change(run.config)
    assert read_json(tmp_path / "config.json") == {"options": full, "started": "then"}


def test_a_new_run_needs_an_empty_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not empty \(it has notes.txt\)"):
        Run.create(tmp_path, OPTIONS, {})
    (tmp_path / "notes.txt").unlink()
    with Run.create(tmp_path, OPTIONS, {}):  # the lock left there is none of its contents
        pass
    with pytest.raises(InputError, match=f"go on with it by --resume {tmp_path}"):
        Run.create(tmp_path, OPTIONS, {})


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; from recres.runs import Run; "
         "r = Run.open(sys.argv[1]); r.lock(); print('held', flush=True); sys.stdin.read()",
         str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        write_json(tmp_path / "config.json", {"options": OPTIONS.to_json()})
        # written after the process was started, and before it is through with its imports
        assert holder.stdout.readline() == "held\n"
        with (pytest.raises(InputError, match=f"another process .{holder.pid}. is writing"),
              Run.open(tmp_path)):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with Run.open(tmp_path):  # the lock went with the process
        pass


def test_a_configuration_that_is_none_is_not_the_latest(tmp_path):
    """It ended the command."""
    for text in ("[]", "3"):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / "config.json").write_text(text)
        with pytest.raises(InputError, match="no run there to go on with"):
            Run.latest(tmp_path)


def test_the_latest_run_is_the_one_begun_last(tmp_path):
    for name, started in (("b", "2026-01-02T10:00:00"), ("a", "2026-01-03T10:00:00")):
        Run.create(tmp_path / name, OPTIONS, {"started": started}).unlock()
    assert Run.latest(tmp_path).path.name == "a"
    for name, text in (("c", "[]"), ("d", "{"), ("e", '{"started": "3", "options": 3}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    assert Run.latest(tmp_path).path.name == "a"
    with pytest.raises(InputError, match="no run there"):
        Run.latest(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '{"options": 3}'])
def test_a_config_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError) as caught:
        Run.open(tmp_path)
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_the_later_line_of_an_update_counts_and_torn_lines_do_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for number in (1, 2, 3):
        log.append({"kind": "update", "update": number, "loss": 1.0})
    log.append({"kind": "evaluation", "epoch": 1, "video_error": 0.5})
    log.close()
    with open(path, "a") as file:
        file.write('{"kind": "update", "update": 4, "lo')  # killed in the middle of a line
    assert [line["update"] for line in read_metrics(path)] == [1, 2, 3]
    log = MetricsLog(path)
    log.append({"kind": "update", "update": 3, "loss": 2.0})
    log.append({"kind": "update", "update": 4, "loss": 2.0})
    log.close()
    assert [(line["update"], line["loss"]) for line in read_metrics(path)] == [
        (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert len(read_metrics(path, "evaluation")) == 1
    assert len(path.read_text().splitlines()) == 7  # nothing is ever taken back


def test_lines_that_are_none_of_ours_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "update", "loss": 1}\n{"kind": "update", "update": [1]}\n'
                    '[' + '\n{"kind": "update", "update": 2}\n' + "[" * 10**5 + "\n3\n")
    assert read_metrics(path) == [{"kind": "update", "update": 2}]


def test_lines_that_do_not_fit_are_kept_and_come_before_the_next(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"kind": "update", "update": 1})

    class Full:
        def write(self, data):
            if len(data) > 5:
                return file.write(data[:5])
            raise OSError(errno.ENOSPC, "full")

    file, log._file = log._file, Full()
    for number in (2, 3):
        log.append({"kind": "update", "update": number})
    assert log.error is not None and log.error.errno == errno.ENOSPC
    assert [json.loads(line)["update"] for line in log.unwritten] == [2, 3]
    assert [line["update"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    log._file = file
    log.append({"kind": "update", "update": 4})
    log.close()
    assert not log.unwritten
    assert [line["update"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_no_log_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_lock_that_is_removed_while_it_is_asked_for_is_not_held(tmp_path, monkeypatch):
    """By a run that is discarded between the opening of the file and its locking: whoever asks
    next would make a new file, and hold that."""
    first, flock, asked = Run.create(tmp_path / "run", OPTIONS, {}), fcntl.flock, []

    def discards(descriptor, how):
        asked.append(descriptor)
        if len(asked) == 1:
            (tmp_path / "run" / "lock").unlink()
            first.unlock()
        flock(descriptor, how)

    second = Run.open(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", discards)
        second.lock()
    assert len(asked) == 2
    with pytest.raises(InputError, match=f"another process \\({os.getpid()}\\) is writing"):
        Run.open(tmp_path / "run").lock()
    second.unlock()
