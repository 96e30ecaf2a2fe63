"""Several processes: the sums that they form are those of one process that has all of the batch."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tensorlite
from tensorlite import distributed
from tensorlite.device import require_cuda
from tests.tensorlite import ranks

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}  # of the norm


def mpiexec() -> str:
    """The launcher; skips the test where there is none, or no mpi4py, but not in CI."""
    found = distributed.mpiexec()
    if (found is None or find_spec("mpi4py") is None) and "CI" not in os.environ:
        pytest.skip("no mpiexec or no mpi4py: pip install 'recres[distributed]'")
    assert found is not None
    return found


@pytest.fixture(scope="module", params=[2, 3])
def together(request, tmp_path_factory) -> list[dict[str, np.ndarray]]:
    """What each of several processes got."""
    folder = tmp_path_factory.mktemp("ranks")
    run = subprocess.run(
        [mpiexec(), "-n", str(request.param), sys.executable, ranks.__file__, str(folder)],
        capture_output=True, text=True, timeout=60, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stderr
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(request.param)]


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """What one process gets for all."""
    before = tensorlite.get_num_threads()
    tensorlite.set_num_threads(1)
    found = {case: ranks.compute(distributed.Processes(), *case) for case in ranks.CASES}
    tensorlite.set_num_threads(before)
    return found


class World:
    """Of MPI, what one process alone needs to hear from itself."""

    IN_PLACE = MAX = None
    rank, size = 0, 1

    def Dup(self):
        return self

    def bcast(self, value):
        return value

    def Allreduce(self, _, array, op):
        pass

    def Iallreduce(self, _, array):
        return SimpleNamespace(Wait=lambda: None)

    Request = SimpleNamespace(Testall=lambda pending: None)

    def Allgather(self, mine, out):
        out[...] = mine


class OneOfOne(distributed.MPIProcesses):
    """One process that goes the way of several: on a GPU its sums are NCCL's, of one card."""

    def __init__(self) -> None:
        self.comm = self.MPI = World()


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize(("dtype", "norms"), ranks.CASES)
def test_sums_of_one_are_its_own(device, dtype, norms, alone):
    if device != "cpu":
        try:
            require_cuda(device)
        except RuntimeError as missing:
            pytest.skip(str(missing))
    found = ranks.compute(OneOfOne(), dtype, norms, device)
    assert found.keys() == alone[dtype, norms].keys()
    for name, array in alone[dtype, norms].items():
        if name != "early":
            error = np.linalg.norm(found[name] - array)
            assert error <= TOLERANCE[dtype] * np.linalg.norm(array), name
    assert norms != "frozen" or found["early"] > 0


@pytest.mark.parametrize(("dtype", "norms"), ranks.CASES)
def test_gradients_and_statistics_are_those_of_one_process(together, alone, dtype, norms):
    one, several = alone[dtype, norms], together[0]
    prefix = f"{dtype}/{norms}/"
    assert {n for n in one} == {n.removeprefix(prefix) for n in several if n.startswith(prefix)}
    assert not any("unused" in name for name in one)
    for kind in ("grad", "norm"):
        names = [name for name in one if name.startswith(kind)]
        assert names
        expected = np.concatenate([one[name].ravel() for name in names]).astype(np.float64)
        got = np.concatenate([several[prefix + name].ravel() for name in names])
        assert np.linalg.norm(got - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


def test_all_ranks_have_the_same_bits(together):
    for other in together[1:]:
        assert other.keys() == together[0].keys()
        for name, array in other.items():
            if "early" not in name and "own " not in name:
                assert array.tobytes() == together[0][name].tobytes(), name


def test_buckets_leave_while_backward_runs(together):
    for name, count in together[0].items():
        if name.endswith("early"):
            assert count > 1, name


def test_statistics_of_own_batches_are_averaged_by_their_weights(together):
    sizes = [len(part) for part in np.array_split(range(5), len(together))]
    for name in ("norm1.running_mean", "norm3.running_var"):
        expected = sum(size / 5 * rank[f"own/own {name}"].astype(np.float64)
                       for size, rank in zip(sizes, together, strict=True))
        assert np.array_equal(together[1][f"own/{name}"], expected.astype(np.float32))
        assert not np.array_equal(together[0][f"own/own {name}"], together[1][f"own/own {name}"])


def test_a_parameter_that_differs_by_a_bit_is_found(together):
    start = f"conv2.weight of rank {len(together) - 1} is not that of rank 0"
    for rank in together:
        assert str(rank["diverged"]).startswith(start)


def test_one_process_does_nothing_special(monkeypatch):
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    processes = distributed.start()
    assert (processes.rank, processes.size) == (0, 1)
    assert processes.total(2.5) == 2.5 and processes.share("x") == "x" and not processes.any(False)


def test_without_mpi4py(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert distributed.launched() == (1, 2)
    with pytest.raises(distributed.Missing, match=r"2 processes.* pip install 'recres\[distr"):
        distributed.start()
