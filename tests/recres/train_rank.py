"""recres.train as test_distributed_training starts it: python train_rank.py WHAT OPTIONS …, where
WHAT is "nothing", or "kill:N", "raise:N" or "stop:N" for what rank 1 does in its update N,
"loader:N": it kills its loader process,
"nan:N" for a loss of its that is not finite,
"sentinel:N": rank 0 then kills the process that says who has died, or
"full:N": from rank 0's checkpoint N on there is no room for one, or
"at:WHO:PLACE": where rank 0 comes to a place of `stops`, all, rank 0 or rank 1 are asked to stop.

Parameters are compared after every update, and every process has a part in every evaluation."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

from recres import checkpoint, evaluation, together, train
from tensorlite import distributed
from tests.recres.stops import act_at

together.CHECK_UPDATES = 1
evaluation.CHUNKS_AT_ONCE = 8
distributed.END_SECONDS = 1.0
what, _, number = sys.argv[1].partition(":")
combine, save_safetensors = together.Together.combine, checkpoint.save_safetensors
updates, checkpoints = [], []


def fails(self, loss, weight):
    updates.append(1)
    if "RANKS" in os.environ:
        for process in multiprocessing.active_children():
            (Path(os.environ["RANKS"]) / f"{self.processes.rank}-{process.name}").write_text(
                str(process.pid))
    if what == "sentinel" and self.processes.rank == 0 and len(updates) == int(number):
        (child,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        time.sleep(20)
    if self.processes.rank == 1 and number.isdecimal() and len(updates) == int(number):
        if what == "loader":
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "raise":
            raise ValueError("planted")
        if what == "stop":
            os.kill(os.getpid(), signal.SIGINT)
        if what == "nan":
            loss = float("nan")
    return combine(self, loss, weight)


def full(path, *arguments):
    assert distributed.launched()[0] == 0, "only rank 0 writes"
    if what == "full" and Path(path).name.endswith("checkpoint.safetensors") \
            and not Path(path).parent.name.startswith("recres-"):
        checkpoints.append(path)
        if len(checkpoints) >= int(number):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    save_safetensors(path, *arguments)


def ask(who):
    """Send Ctrl-C to processes that the launcher has started: a file in $RANKS for each says its
    number."""
    for file in sorted(Path(os.environ["RANKS"]).iterdir(), reverse=True):  # this one last
        if who in ("all", file.name):
            os.kill(int(file.read_text()), signal.SIGINT)


if __name__ == "__main__":  # not where a process that loads begins with this file
    if "RANKS" in os.environ:
        rank, _ = distributed.launched()
        (Path(os.environ["RANKS"]) / str(rank)).write_text(str(os.getpid()))
        who, _, place = number.partition(":")
        if what == "at" and rank == 0:
            act_at(place, lambda: ask(who))
    together.Together.combine, checkpoint.save_safetensors = fails, full
    sys.exit(train.main(sys.argv[2:]))
