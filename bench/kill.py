"""Whether a training run that is killed again and again ends as one that nobody disturbed.

    python -m bench.kill --kills 300
    python -m bench.kill --kills 300 --processes 2

A small network is trained on drawn figures, with a checkpoint after every update that finds the one
before written. It is killed (SIGKILL: no process can prepare for it) at a random moment between its
start and its end, half of the times as soon after that as a file is being written, and gone on
with, until it is complete (pictures are not drawn); then the next run begins, until there were as
many kills as asked for.
Of several processes it is one drawn at random that is killed; the others must have ended within
30 s.

After every kill each .json, .npz and .safetensors file under its final name must be whole, and
metrics.jsonl must have every update that the checkpoint has. Each complete run must have the
parameters, the optimiser's state, the best model and the result of the undisturbed one, bit for
bit.

Exit status: 0 it does, 1 it does not, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recres import checkpoint
from recres.checkpoints import BEST, NEWEST
from recres.commands import Parser, RunFailed, bar, run
from recres.datasets import figures
from recres.errors import InputError
from recres.files import read_json
from recres.runs import read_metrics

OPTIONS = ("--width", "4", "--image-size", "32", "--batch", "12", "--holdout", "0.3", "--epochs",
           "2", "--threads", "1", "--save-seconds", "0")
ORPHANS_END = 30.0  # seconds after a process was killed within which the others must have ended
HANGS = 300.0  # seconds that an undisturbed run may take


@dataclass
class Counts:
    """What was done. writing: kills that left a file half written, under its temporary name."""

    kills: int = 0
    writing: int = 0
    runs: int = 0
    files: int = 0


class Killer:
    """Trains in folders below `work`, on the figures in `root`, each process started by `launcher`
    and Python."""

    def __init__(self, work: Path, root: Path, launcher: Sequence[str], seed: int) -> None:
        self.work, self.root, self.launcher = work, root, launcher
        self.random, self.counts = random.Random(seed), Counts()
        self.whole = work / "undisturbed"
        # Drawing takes longer than training here: a matplotlib that cannot be imported spares it.
        (work / "path").mkdir()
        (work / "path" / "matplotlib.py").write_text("raise ImportError\n")
        path = os.pathsep.join(filter(None, [str(work / "path"), os.environ.get("PYTHONPATH")]))
        self.environment = os.environ | {"PYTHONPATH": path}
        began = time.monotonic()
        self._started(self.whole, False)
        self.seconds = time.monotonic() - began

    def run(self, name: str, kills: int, deadline: float, progress: Any) -> None:
        """One run to its end, with at most so many kills, none after the deadline."""
        folder = self.work / name
        while not self._started(folder, kills > 0 and time.monotonic() < deadline):
            kills -= 1
            self.counts.kills += 1
            self.counts.writing += any(folder.glob(".tmp-*"))
            self.counts.files += check_folder(folder)
            progress.update()
        self.counts.files += check_folder(folder)
        compare(self.whole, folder)
        self.counts.runs += 1

    def _started(self, folder: Path, to_kill: bool) -> bool:
        """Begin a run or go on with it; False if it was killed, True if it is complete."""
        how = ("--resume", str(folder)) if (folder / "config.json").exists() else (
            "--out", str(folder), "--root", str(self.root), *OPTIONS)
        process = subprocess.Popen(
            [*self.launcher, sys.executable, "-m", "recres.train", *how],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=self.environment)
        try:
            if to_kill and self._kill(process, folder):
                return False
            try:
                _, said = process.communicate(timeout=HANGS)
            except subprocess.TimeoutExpired:
                raise RunFailed(f"{folder}: not complete after {HANGS:.0f} s") from None
            if process.returncode != 0:
                raise RunFailed(f"{folder}: exit status {process.returncode}: {said}")
            return True
        finally:
            for pid in self._ranks(folder) if self.launcher else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()
            process.communicate()

    def _kill(self, process: subprocess.Popen[str], folder: Path) -> bool:
        """Kill it at a moment of its life; False where it ended by itself before that."""
        moment = time.monotonic() + self.random.uniform(0, self.seconds)
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(min(0.01, max(0.0, moment - time.monotonic())))
        if self.random.random() < 0.5:
            while process.poll() is None and time.monotonic() < moment + 1 \
                    and not any(folder.glob(".tmp-*")):
                time.sleep(0.0005)
        victims = [process.pid] if not self.launcher else self._ranks(folder)
        if process.poll() is not None or not victims:
            return False
        os.kill(self.random.choice(victims), signal.SIGKILL)
        limit = time.monotonic() + ORPHANS_END
        while process.poll() is None or (self.launcher and self._ranks(folder)):
            if time.monotonic() > limit:
                raise RunFailed(f"{folder}: the others went on for {ORPHANS_END:.0f} s after one "
                                "of the processes was killed")
            time.sleep(0.005)
        return True

    def _ranks(self, folder: Path) -> list[int]:
        """The processes that train into `folder`, their launcher not among them."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_text(errors="replace").split("\0")
            except OSError:  # it has ended
                continue
            if words[0] == sys.executable and "recres.train" in words and str(folder) in words:
                found.append(int(path.parent.name))
        return found


def check_folder(folder: Path) -> int:
    """RunFailed unless every file of the run is whole; how many were looked at."""
    count = 0
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".tmp-") or path.suffix not in (".json", ".npz", ".safetensors"):
            continue
        count += 1
        try:
            if path.suffix == ".json":
                read_json(path)
            elif path.suffix == ".safetensors":
                checkpoint.read(path)
            else:
                with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                    for name in archive:
                        archive[name]
        except Exception as error:
            raise RunFailed(f"half written: {path}: {error}") from error
    if (folder / NEWEST).exists():
        _, progress = checkpoint.read_checkpoint(folder / NEWEST)
        logged = [line["update"] for line in read_metrics(folder / "metrics.jsonl")]
        if logged[:progress.update] != list(range(1, progress.update + 1)):
            raise RunFailed(f"{folder / 'metrics.jsonl'}: lacks lines of the {progress.update} "
                            "updates that the checkpoint has")
    return count


def compare(whole: Path, other: Path) -> None:
    """RunFailed unless two complete runs ended alike, bit for bit."""
    for name in (NEWEST, BEST):
        a, b = (checkpoint.read(folder / name)[0] for folder in (whole, other))
        if a.keys() != b.keys():
            raise RunFailed(f"{other / name}: has other arrays than {whole / name}")
        if wrong := [key for key in a if a[key].tobytes() != b[key].tobytes()]:
            raise RunFailed(f"{other / name}: {len(wrong)} of {len(a)} arrays differ from the "
                            f"undisturbed run's, {wrong[0]} first")
    results = [{key: value for key, value in read_json(folder / "result.json").items()
                if "seconds" not in key} for folder in (whole, other)]
    if results[0] != results[1]:
        raise RunFailed(f"{other / 'result.json'}: is another result than the undisturbed run's")


def kill(options: argparse.Namespace) -> int:
    """Do what the command line says."""
    if options.kills < 0 or options.processes < 1:
        raise InputError("--kills, --processes: expected at least 0 and 1")
    several = f"mpiexec -n {options.processes}" if options.processes > 1 else ""
    launcher = shlex.split(options.launcher if options.launcher is not None else several)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="recres-kill-", ignore_cleanup_errors=True) as work:
        root = options.root or Path(work) / "figures"
        if options.root is None:
            figures.generate(root, clips_per_group=1, groups=4, progress=False)
        killer = Killer(Path(work), root, launcher, options.seed)
        counts, deadline = killer.counts, began + options.budget
        with bar("killing", "kill", options.kills) as progress:
            while counts.kills < options.kills and time.monotonic() < deadline:
                killer.run(f"run-{counts.runs + 1}", options.kills - counts.kills, deadline,
                           progress)
    print(f"{counts.kills} kills ({counts.writing} while a file was being written) of "
          f"{options.processes}-process runs in {time.monotonic() - began:.0f} s: every resume "
          f"succeeded, {counts.runs} runs ended bit-equal to the undisturbed one, all "
          f"{counts.files} files looked at were whole")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser("bench.kill", "Kill training runs at random moments, go on with them, and "
                    "compare what comes out with an undisturbed run.", "")
    parser.add_argument("--kills", metavar="N", type=int, default=300,
                        help="how many (default: 300)")
    parser.add_argument("--processes", metavar="N", type=int, default=1,
                        help="processes of a run (default: 1)")
    parser.add_argument("--launcher", metavar="COMMAND", help="what starts them (default: mpiexec "
                        "-n N; nothing for one)")
    parser.add_argument("--budget", metavar="SECONDS", type=float, default=3600.0,
                        help="kill no more after this time (default: 3600)")
    parser.add_argument("--root", metavar="DIR", type=Path,
                        help="drawn figures that are there already (default: draw a few)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the moments")
    return run(parser, kill, argv)


if __name__ == "__main__":
    sys.exit(main())
