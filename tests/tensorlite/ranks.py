"""What test_distributed lets several processes compute: python ranks.py FOLDER writes there what
each of them got."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import tensorlite
from tensorlite import Tensor, cross_entropy, distributed, nn, ops
from tensorlite.device import to_device
from tensorlite.nn import conv_norm
from tensorlite.ops.fused import value_of

IMAGES, CLASSES = 7, 4
BATCHES = ((0, 1, 2, 3, 4), (5, 6))  # of an update; of the second one of 3 ranks has nothing
CASES = [(dtype, norms) for dtype in ("float32", "float64")
         for norms in ("frozen", "synchronised", "synchronised unfused")]


class Net(nn.Module):
    """Two fused norms, an ordinary one, and a layer that is not used."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.unused = nn.Linear(3, 3, rng=rng)
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, rng=rng), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 6, 3, padding=1, rng=rng), nn.BatchNorm2d(6)
        self.norm3 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, CLASSES, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        x = conv_norm(x, self.conv1, self.norm1, relu=True)
        x = value_of(conv_norm(x, self.conv2, self.norm2, relu=True))
        return self.fc(ops.relu(self.norm3(x)).mean((1, 2)))


def make(dtype: str, norms: str) -> Net:
    """A network whose running statistics are not those of a beginner."""
    net, rng = Net().to(dtype=dtype), np.random.default_rng(6)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean[...] = rng.normal(size=module.c) * 0.1
            module.running_var[...] = rng.uniform(0.5, 2, module.c)
            module.gamma.data = rng.uniform(0.5, 2, module.c).astype(dtype)
            module.freeze(norms == "frozen")
    return net.train()


def compute(processes: distributed.Processes, dtype: str, norms: str,
            device: str = "cpu") -> dict[str, np.ndarray]:
    """Gradients of an update and running statistics after it, by name; in "early", how many
    buckets were on their way before backward had ended."""
    rng = np.random.default_rng(7)
    images = to_device(rng.normal(size=(IMAGES, 6, 6, 3)).astype(dtype), device)
    labels = rng.integers(CLASSES, size=IMAGES)
    net = make(dtype, norms).to(device)
    gradients = distributed.GradientSums(processes, net.parameters(), bucket_bytes=512)
    shared = processes if norms.startswith("sync") else distributed.Processes()
    pool = distributed.pool_of(shared, images)
    early = 0

    def backward(mine: np.ndarray) -> None:
        loss = cross_entropy(net(Tensor(images[mine])), labels[mine], reduction="sum")
        (loss * (1 / IMAGES)).backward()

    for batch in BATCHES:
        mine = np.array_split(batch, processes.size)[processes.rank]
        with pool, gradients.sent(batch is BATCHES[-1] and len(mine) > 0):
            if len(mine):
                backward(mine)
            elif isinstance(pool, distributed.NormPool):
                before = [p.grad for p in net.parameters()]
                with pool.idle():
                    backward(np.array(batch[:1]))
                for parameter, grad in zip(net.parameters(), before, strict=True):
                    parameter.grad = grad
        early = getattr(gradients, "_sent", 0)
    gradients.finish()
    found = {f"grad {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    found = {name: to_device(array, "cpu")
             for name, array in (found | dict(net.named_buffers())).items()}
    return found | {"early": np.array(early)}


def local_statistics(processes: distributed.Processes) -> dict[str, np.ndarray]:
    """Running statistics after an update where each rank's norms go by its own batch."""
    rng = np.random.default_rng(8)
    images = rng.normal(size=(5, 6, 6, 3)).astype("float32")
    mine = np.array_split(range(5), processes.size)[processes.rank]
    net = make("float32", "own")
    net(Tensor(images[mine]))
    before = {f"own {name}": buffer.copy() for name, buffer in net.named_buffers()}
    distributed.average_statistics(processes, net, len(mine) / 5)
    return before | dict(net.named_buffers())


def main(folder: Path) -> None:
    tensorlite.set_num_threads(1)
    processes = distributed.start()
    results = {}
    for dtype, norms in CASES:
        if norms.endswith("unfused"):
            with tensorlite.unfused():
                found = compute(processes, dtype, norms)
        else:
            found = compute(processes, dtype, norms)
        results |= {f"{dtype}/{norms}/{name}": array for name, array in found.items()}
    results |= {f"own/{name}": a for name, a in local_statistics(processes).items()}
    net = make("float32", "frozen")
    processes.check_equal(net)
    if processes.rank == processes.size - 1:
        net.conv2.weight.data[0, 0, 0, 0] = np.nextafter(net.conv2.weight.data[0, 0, 0, 0], 9)
    try:
        processes.check_equal(net)
    except distributed.Diverged as error:
        results["diverged"] = np.array(str(error))
    processes.share_arrays({"weight": net.conv2.weight.data})
    processes.check_equal(net)
    np.savez(folder / f"{processes.rank}.npz", **results)
    processes.share("done")
    processes.end(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
