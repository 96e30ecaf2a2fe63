"""What several processes bring: `python -m bench.scaling` measures 1 and 2 of one thread each.

Weak scaling: each process has a batch of the same size, so an update of N has N times the chunks,
and with perfect scaling it takes as long. Beside the processes that train together stand as many
that train apart, each for itself: what these lose against one is the machine's (memory, caches,
clock), and only what is lost beyond that is the price of being together. Ways take turns, and
medians over all updates are printed.

`--estimate` prints what the model below says of GPUs, which cannot be tried here: a calculation.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import tensorlite
from bench.cpu import heading
from recres.models import recurrent_resnet
from tensorlite import Tensor, cross_entropy, distributed, nn, optim

# Name: depth, width, image size, chunks of 2 frames a process, timed updates of a turn.
NETWORKS = {"rrn18": (18, 16, 64, 32, 12), "rrn50": (50, 64, 112, 4, 5)}
WAYS = ((1, "alone"), (2, "apart"), (2, "own norms"), (2, "no overlap"), (2, "sync norms"))
TURNS = 3


def build(name: str) -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """A network, a batch and its labels."""
    depth, width, size, chunks, _ = NETWORKS[name]
    rng = np.random.default_rng(0)
    model = recurrent_resnet(depth, classes=101, context=2, width=width, skip="identity",
                             position="block4", rng=rng)
    images = rng.standard_normal((chunks, 2, size, size, 3)).astype(np.float32)
    return model.train(), images, rng.integers(101, size=chunks)


def update(processes: distributed.Processes, name: str, way: str) -> Callable[[], float]:
    """A function that makes an update, and says how long it waited for sums after backward."""
    model, images, labels = build(name)
    optimizer = optim.Adam(model.named_parameters(), lr=1e-4)
    together = processes if way not in ("alone", "apart") else distributed.Processes()
    gradients = distributed.GradientSums(together, optimizer.params.values())
    pool = distributed.pool_of(together if way == "sync norms" else distributed.Processes(), images)
    size = len(labels) * together.size

    def run() -> float:
        optimizer.zero_grad()
        with pool, gradients.sent(way != "no overlap"):
            loss = cross_entropy(model(Tensor(images)), labels, reduction="sum") * (1 / size)
            loss.backward()
        began = time.perf_counter()
        gradients.finish()
        waited = time.perf_counter() - began
        if way != "sync norms":
            distributed.average_statistics(together, model, 1 / together.size)
        optimizer.guarded_step()
        return waited

    return run


def rank(name: str, way: str) -> None:
    """One process of a way; rank 0 prints the seconds of its updates and their waits."""
    tensorlite.set_num_threads(1)
    processes = distributed.start()
    run, updates, seconds, waits = update(processes, name, way), NETWORKS[name][-1], [], []
    for number in range(updates + 1):
        processes.wait()
        began = time.perf_counter()
        waited = run()
        if number:  # the first finds its buffers
            seconds.append(time.perf_counter() - began)
            waits.append(waited)
    every = processes.share((seconds, waits))
    if processes.rank == 0:
        print(json.dumps(every), flush=True)
    processes.end(0)


def measure(names: list[str]) -> None:
    """Every way in turn, as a table."""
    launcher = distributed.mpiexec()
    if launcher is None:
        sys.exit("error: no mpiexec: pip install 'recres[distributed]'")
    print(heading(1, [f"tensorlite {tensorlite.__version__}", f"load {os.getloadavg()[0]:.1f}"]))
    print("\n| network | processes | seconds an update | of it waiting for sums | chunks/s "
          "| efficiency | against apart |\n|---|---|---|---|---|---|---|")
    for name in names:
        found: dict[tuple[int, str], tuple[list[float], list[float]]] = {}
        for _ in range(TURNS):
            for n, way in WAYS:
                text = subprocess.run(
                    [launcher, "-n", str(n), sys.executable, "-m", "bench.scaling", "--only", name,
                     "--way", way], check=True, capture_output=True, text=True, timeout=300).stdout
                seconds, waits = json.loads(text.splitlines()[-1])
                both = found.setdefault((n, way), ([], []))
                both[0].extend(seconds)
                both[1].extend(waits)
        one = statistics.median(found[WAYS[0]][0])
        apart = statistics.median(found[WAYS[1]][0])
        for (n, way), (seconds, waits) in found.items():
            took = statistics.median(seconds)
            against = f"{apart / took:.2f}" if n > 1 else ""
            print(f"| {name} | {n}, {way} | {took:.3f} ({min(seconds):.3f}–{max(seconds):.3f}) "
                  f"| {statistics.median(waits):.4f} | {n * NETWORKS[name][3] / took:.1f} "
                  f"| {one / took:.2f} | {against} |")


class Links(NamedTuple):
    """What a GPU's links are assumed to do: bytes/s that a ring gets out of them in one direction,
    and seconds a step of a ring costs whatever it carries."""

    nvlink: float = 0.8 * 450e9  # NVLink 4: 450 GB/s a direction; 0.8 of it
    nvlink_step: float = 3e-6
    infiniband: float = 0.8 * 50e9  # an NDR adapter a GPU: 400 Gbit/s; 0.8 of it
    infiniband_step: float = 8e-6
    host_step: float = 10e-6  # of an exchange of a few bytes between hosts' processes, by MPI


NODE = 8  # GPUs that NVLink joins
FRAME_FLOPS = 3 * 2 * 4.09e9  # ResNet-50 at 224 x 224: 4.09 G multiply-adds; backward is twice that
BACKWARD = 2 / 3  # of an update's computing
CHANNELS, NORMS = 26560, 53  # of ResNet-50's batch norms


def ring(n: int, nbytes: float, bandwidth: float, step: float) -> float:
    """Seconds of a ring all-reduce: 2 (n - 1) steps, each of an n-th of the bytes."""
    return 2 * (n - 1) * (nbytes / n / bandwidth + step)


def all_reduce(n: int, nbytes: float, links: Links) -> float:
    """Seconds over n GPUs: within nodes reduce-scatter and all-gather, which are a ring together,
    and between nodes a ring of every GPU with its counterparts, on its part."""
    near = min(n, NODE)
    return (ring(near, nbytes, links.nvlink, links.nvlink_step)
            + ring(n // near, nbytes / near, links.infiniband, links.infiniband_step))


def gather(n: int, nbytes: float, links: Links) -> float:
    """Seconds of a ring all-gather in which everyone gives nbytes, at its slowest link's pace."""
    step, bandwidth = ((links.nvlink_step, links.nvlink) if n <= NODE
                       else (links.infiniband_step, links.infiniband))
    return (n - 1) * (step + nbytes / bandwidth)


def exposed(n: int, nbytes: float, backward: float, links: Links) -> float:
    """Seconds that sums go on after backward: buckets come evenly over it, and go one by one.
    (Really the last stage's, more than half of all bytes, come in its first part.)"""
    buckets = math.ceil(nbytes / distributed.gradients.BUCKET_BYTES)
    done = 0.0
    for number in range(1, buckets + 1):
        done = max(done, backward * number / buckets) + all_reduce(n, nbytes / buckets, links)
    return done - backward


def estimate(links: Links) -> None:
    """The table of the estimate."""
    depth, _, _, _, _ = NETWORKS["rrn50"]
    model = recurrent_resnet(depth, classes=101, context=2, width=64, skip="identity",
                             position="block4", rng=0)
    nbytes = 4.0 * sum(p.size for p in model.parameters())
    frames = 32  # 16 chunks of 2
    print(f"ResNet-50, {nbytes / 1e6:.1f} MB of gradients, {frames} frames of 224 x 224 a GPU "
          "and update\n\n| assumed TFLOP/s | computing, ms | GPUs | one all-reduce, ms "
          "| after backward, ms | host, ms | efficiency | sync norms, ms | efficiency |\n"
          + "|---" * 9 + "|")
    for rate in (20e12, 60e12, 150e12):
        computing = frames * FRAME_FLOPS / rate
        for n in (8, 64):
            after = exposed(n, nbytes, BACKWARD * computing, links)
            host = 4 * math.ceil(math.log2(n)) * links.host_step  # flags, found, stop, loss
            # Forward and backward: a gather of two float64 a channel; forward also a count.
            norms = (2 * NORMS * gather(n, 0, links) + gather(n, 2 * 16 * CHANNELS, links)
                     - gather(n, 0, links)
                     + NORMS * math.ceil(math.log2(n)) * links.host_step)
            own, sync = (computing / (computing + after + host + extra) for extra in (0.0, norms))
            print(f"| {rate / 1e12:.0f} | {1e3 * computing:.1f} | {n} "
                  f"| {1e3 * all_reduce(n, nbytes, links):.2f} | {1e3 * after:.2f} "
                  f"| {1e3 * host:.2f} | {own:.3f} | {1e3 * norms:.1f} | {sync:.3f} |")


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--only", choices=NETWORKS, action="append", help="measure this network")
    parser.add_argument("--estimate", action="store_true", help="print the estimate for GPUs")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    if options.way:
        rank(options.only[0], options.way)
    elif options.estimate:
        estimate(Links())
    else:
        measure(options.only or list(NETWORKS))


if __name__ == "__main__":
    main()
