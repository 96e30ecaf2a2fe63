"""Files from outside, damaged by chance and by malice: a clean error of one line, or what is right.

Each reader runs in a process of its own, with bounds of time and memory, which is started again
where it dies. What was found is kept in `test_corpus.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.conftest import COUNTS
from tests.fuzz.readers import READERS

ROOT = Path(__file__).parents[2]
DEATHS = 3  # of a reader's process, after which it is given up


def feed(name: str, seed: int, count: int, folder: Path) -> list[str]:
    """What went wrong in cases 0 to `count` - 1 of a reader."""
    wrong: list[str] = []
    first = deaths = 0
    again = f"python -m tests.fuzz.child {name} --seed {seed} --folder /tmp/fuzz --first"
    while first < count and deaths < DEATHS:
        command = [sys.executable, "-m", "tests.fuzz.child", name, "--seed", str(seed), "--first",
                   str(first), "--count", str(count - first), "--folder", str(folder)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace",
                              env=os.environ | threads | {"PYTHONPATH": str(ROOT)})
        if done.returncode == 0:
            result = json.loads(done.stdout.splitlines()[-1])
            wrong += [f"{again} {one['case']}  # {one['file']} {one['how']}: {one['why']}"
                      for one in result["failures"]]
            return wrong
        deaths += 1
        at = int((folder / "at").read_bytes()) if (folder / "at").exists() else -1
        why = "\n".join(done.stderr.splitlines()[-12:])
        wrong.append(f"{again} {at}  # died with status {done.returncode}: {why}")
        if at < 0:
            return wrong
        first = at + 1
    return wrong


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, tmp_path):
    if name == "h5":
        pytest.importorskip("h5py")
    count = READERS[name].cases
    wrong = feed(name, 0, count, tmp_path)
    COUNTS[name] = count
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files(name, tmp_path):
    if name == "h5":
        pytest.importorskip("h5py")
    count = 10 * READERS[name].cases
    wrong = feed(name, 1 + int.from_bytes(os.urandom(4)), count, tmp_path)
    COUNTS[f"{name} (long)"] = count
    assert not wrong, "\n".join(wrong[:20])


def test_there_are_enough_cases():
    assert sum(reader.cases for reader in READERS.values()) >= 20_000


def test_the_watch_sees_what_is_forbidden(tmp_path):
    """A reader that runs, opens or remembers what it must not is found out."""
    script = """
import sys, os, pathlib, pickle
sys.path.insert(0, {root!r})
from tests.fuzz import child, readers
folder = pathlib.Path({folder!r}); (folder / "scene").mkdir(); os.chdir(folder)
watch = child.Watch(folder / "scene")
def bad(what):
    return readers.Reader("bad", 1, None, lambda scene: what(), None)
def boom(): raise readers.InputError("a") from None
def two(): raise KeyError("x")
def grow(): raise readers.FormatError("damaged (MemoryError())")
for what in (lambda: os.system("true"), lambda: open("/etc/hostname"), two, grow,
             lambda: open("canary", "w").close()):
    assert child.judge(bad(what), folder / "scene", watch), what
assert child.judge(bad(boom), folder / "scene", watch) is None
"""
    subprocess.run([sys.executable, "-c", script.format(root=str(ROOT), folder=str(tmp_path))],
                   check=True, timeout=60)
