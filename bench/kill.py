"""Whether a training run that is killed again and again ends as one that nobody disturbed.

    python -m bench.kill --kills 300                 # of runs of one process and of two, in turn
    python -m bench.kill --kills 300 --processes 2

A small network is trained on drawn figures, with a checkpoint after every update that finds the one
before written. It is killed (SIGKILL: no process can prepare for it) at a random moment, three of
four times while it makes updates, else between its start and its end; half of the times as soon
after that as a file is being written. It is gone on with until it is complete (pictures are not
drawn); then the next run begins, until there were as many kills as asked for. Of several processes
one is killed: a rank, the launcher, or one of the helpers that these have started; or all are, as
by a power cut. All that the run had started must have ended within 30 s.

After every kill each .json, .npz and .safetensors file under its final name must be whole,
metrics.jsonl must have every update that the checkpoint has, and what goes on must go on from that
checkpoint. Each complete run must have the parameters, the optimiser's state, the best model, the
losses of all updates and the result of the undisturbed one, bit for bit.

Exit status: 0 it does, 1 it does not, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from tensorlite import distributed

OPTIONS = ("--width", "4", "--image-size", "32", "--batch", "12", "--holdout", "0.3", "--epochs",
           "2", "--threads", "1", "--save-seconds", "0")
ORPHANS_END = 30.0  # seconds after a process was killed within which the others must have ended
HANGS = 300.0  # seconds that an undisturbed run may take
MARK = "RECRES_KILL"  # in the environment of all that a run starts
ALL = "all at once"
TIMES = ("data_time", "compute_time", "frames_per_second")  # of a line of metrics.jsonl


@dataclass
class Counts:
    """What was done. kills: by what was killed; writing: those that left a file half written, under
    its temporary name; midst: those after the first update was saved and before the last was."""

    kills: Counter[str] = field(default_factory=Counter)
    writing: int = 0
    midst: int = 0
    runs: int = 0
    files: int = 0


class Killer:
    """Trains in folders below `work`, on the figures in `root`, by so many processes."""

    def __init__(self, work: Path, root: Path, processes: int, seed: int) -> None:
        self.work, self.root, self.launcher = work, root, [sys.executable]
        if processes > 1:
            mpiexec = distributed.mpiexec()
            if mpiexec is None:
                raise InputError("no mpiexec: pip install 'recres[distributed]'")
            self.launcher = [mpiexec, "-n", str(processes), sys.executable]
        self.random, self.counts = random.Random(seed), Counts()
        self.whole = work / "undisturbed"
        # Drawing takes longer than training here: a matplotlib that cannot be imported spares it.
        (work / "path").mkdir(parents=True)
        (work / "path" / "matplotlib.py").write_text("raise ImportError\n")
        path = os.pathsep.join(filter(None, [str(work / "path"), os.environ.get("PYTHONPATH")]))
        self.mark = secrets.token_hex(8)
        self.environment = os.environ | {"PYTHONPATH": path, MARK: self.mark}
        began = time.monotonic()
        self._started(self.whole, False)
        self.seconds = time.monotonic() - began
        self.updates = saved_updates(self.whole)
        self.training = sum(line["data_time"] + line["compute_time"]
                            for line in read_metrics(self.whole / "metrics.jsonl"))
        found = read_json(self.whole / "config.json")["options"]["processes"]
        if found != processes:
            raise RunFailed(f"{self.whole}: was trained by {found} processes, not {processes}")

    def run(self, name: str, kills: int, deadline: float, progress: Any) -> None:
        """One run to its end, with at most so many kills, none after the deadline."""
        folder, counts = self.work / name, self.counts
        while not self._started(folder, kills > 0 and time.monotonic() < deadline):
            kills -= 1
            counts.writing += any(folder.glob(".tmp-*"))
            counts.files += check_folder(folder)
            counts.midst += 0 < saved_updates(folder) < self.updates
            progress.update()
        counts.files += check_folder(folder)
        compare(self.whole, folder)
        counts.runs += 1

    def _started(self, folder: Path, to_kill: bool) -> bool:
        """Begin a run or go on with it; False if it was killed, True if it is complete."""
        how = ("--resume", str(folder)) if (folder / "config.json").exists() else (
            "--out", str(folder), "--root", str(self.root), *OPTIONS)
        before, logged = saved_updates(folder), log_size(folder)
        said, errors = self.work / "said", self.work / "errors"
        complete = (folder / "result.json").exists()
        with open(said, "w") as out, open(errors, "w") as err:
            process = subprocess.Popen([*self.launcher, "-m", "recres.train", *how], stdout=out,
                                       stderr=err, env=self.environment)
        try:
            killed = to_kill and self._kill(process, folder, logged)
            if not killed:
                try:
                    status = process.wait(timeout=HANGS)
                except subprocess.TimeoutExpired:
                    raise RunFailed(f"{folder}: not complete after {HANGS:.0f} s") from None
                if status != 0:
                    raise RunFailed(f"{folder}: exit status {status}: {errors.read_text()}")
                self._wait(process, folder, "the end")
        finally:
            for pid in (process.pid, *self._all(process)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        check_resumed(folder, said.read_text(), before, must=not (killed or complete))
        return not killed

    def _kill(self, process: subprocess.Popen[bytes], folder: Path, logged: int) -> bool:
        """Kill it at a moment of its life; False where it ended by itself before that."""
        span = self.seconds
        if self.random.random() < 0.75:
            span = self.training
            while process.poll() is None and log_size(folder) == logged:
                time.sleep(0.002)
        moment = time.monotonic() + self.random.uniform(0, span)
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(min(0.01, max(0.0, moment - time.monotonic())))
        if self.random.random() < 0.5:
            while process.poll() is None and time.monotonic() < moment + 1 \
                    and not any(folder.glob(".tmp-*")):
                time.sleep(0.0005)
        everyone = self._all(process)
        if process.poll() is not None or not everyone:
            return False
        kinds = sorted(set(everyone.values()))
        what = self.random.choice([*kinds, ALL] if len(kinds) > 1 else kinds)
        for pid, kind in everyone.items():
            if what in (kind, ALL):
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    os.kill(pid, signal.SIGKILL)
        self._wait(process, folder, f"a kill ({what})")
        if process.returncode == 0:  # it was done
            return False
        self.counts.kills[what] += 1
        return True

    def _wait(self, process: subprocess.Popen[bytes], folder: Path, end: str) -> None:
        """Wait until nothing of a run is left."""
        limit = time.monotonic() + ORPHANS_END
        while process.poll() is None or self._all(process):
            if time.monotonic() > limit:
                raise RunFailed(f"{folder}: {ORPHANS_END:.0f} s after {end} there was still: "
                                f"{', '.join(self._all(process).values())}")
            time.sleep(0.005)

    def _all(self, process: subprocess.Popen[bytes]) -> dict[int, str]:
        """The processes of a run that have not ended, and what each of them is."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or is not ours
                given, words = ((folder / name).read_text(errors="replace").split("\0")
                                for name in ("environ", "cmdline"))
                if f"{MARK}={self.mark}" not in given:
                    continue
                if words[0] == sys.executable and "recres.train" in words:
                    ranks = [word for word in given if word.startswith("PMI_RANK=")]
                    kind = f"rank {ranks[0].partition('=')[2] if ranks else 0}"
                else:
                    kind = "launcher" if int(folder.name) == process.pid else "helper"
                found[int(folder.name)] = kind
        return found


def saved_updates(folder: Path) -> int:
    """Of how many updates the newest checkpoint is; 0 where there is none."""
    newest = folder / NEWEST
    return checkpoint.read_checkpoint(newest)[1].update if newest.exists() else 0


def log_size(folder: Path) -> int:
    """Bytes of what is logged of a run's updates."""
    path = folder / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def check_resumed(folder: Path, said: str, saved: int, must: bool) -> None:
    """RunFailed unless a run went on from the checkpoint, which was of so many updates; `must`: it
    has come as far as to say so."""
    found = re.search(r"^resumed +after update (\d+),", said, re.MULTILINE)
    at = int(found[1]) if found else 0 if must else saved
    if at != saved or saved_updates(folder) < saved:
        raise RunFailed(f"{folder}: went on after update {at}, but the checkpoint had {saved}")


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
    for kind in ("update", "evaluation"):
        lines = [[{key: value for key, value in line.items() if key not in TIMES}
                  for line in read_metrics(folder / "metrics.jsonl", kind)]
                 for folder in (whole, other)]
        if lines[0] != lines[1]:
            raise RunFailed(f"{other / 'metrics.jsonl'}: has another {kind} than the "
                            "undisturbed run's")


def kill(options: argparse.Namespace) -> int:
    """Do what the command line says."""
    if options.kills < 0 or min(options.processes) < 1:
        raise InputError("--kills, --processes: expected at least 0 and 1")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="recres-kill-", ignore_cleanup_errors=True) as folder:
        root = options.root or Path(folder) / "figures"
        if options.root is None:
            figures.generate(root, clips_per_group=1, groups=4, progress=False)
        for turn, processes in enumerate(options.processes):
            share = len(range(turn, options.kills, len(options.processes)))
            deadline = began + options.budget * (turn + 1) / len(options.processes)
            print(_killed(Path(folder) / f"{turn}", root, processes, share, deadline,
                          options.seed))
    return 0


def _killed(work: Path, root: Path, processes: int, kills: int, deadline: float,
            seed: int) -> str:
    """Kill runs of so many processes; what there is to say of it."""
    began = time.monotonic()
    killer = Killer(work, root, processes, seed)
    counts = killer.counts
    with bar(f"killing, processes: {processes}", "kill", kills) as progress:
        while counts.kills.total() < kills and time.monotonic() < deadline:
            killer.run(f"run-{counts.runs + 1}", kills - counts.kills.total(), deadline, progress)
    done = counts.kills.total()
    what = ", ".join(f"{name} {count}" for name, count in sorted(counts.kills.items())) or "none"
    return (f"{done} kills{'' if done == kills else f' (of {kills}: the time was over)'} of "
            f"{processes}-process runs in {time.monotonic() - began:.0f} s ({what}; {counts.midst} "
            f"between the first and the last update, {counts.writing} while a file was being "
            "written): every resume succeeded, from the last checkpoint, "
            f"{counts.runs} runs ended bit-equal to the undisturbed one, all {counts.files} files "
            "looked at were whole")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser("bench.kill", "Kill training runs at random moments, go on with them, and "
                    "compare what comes out with an undisturbed run.", "")
    parser.add_argument("--kills", metavar="N", type=int, default=300,
                        help="how many in all (default: 300)")
    parser.add_argument("--processes", metavar="N", type=int, nargs="+", default=[1, 2],
                        help="processes of a run; of several numbers each has its share of the "
                        "kills (default: 1 2)")
    parser.add_argument("--budget", metavar="SECONDS", type=float, default=3600.0,
                        help="kill no more after this time (default: 3600)")
    parser.add_argument("--root", metavar="DIR", type=Path,
                        help="drawn figures that are there already (default: draw a few)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the moments")
    return run(parser, kill, argv)


if __name__ == "__main__":
    sys.exit(main())
