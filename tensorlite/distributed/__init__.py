"""Several processes that train one network together: data parallelism over MPI and NCCL.

Each process (a rank) computes the gradients of its share of an update's chunks, weighted so that
the sum over ranks is the gradient of the mean loss. `GradientSums` forms that sum bucket by bucket
while the backward walk goes on, `NormPool` lets batch norms normalise by the statistics of all
ranks, and `Processes` is what else ranks say to each other. All ranks then make the same update of
the same parameters; nothing is sent after it, and `Processes.check_equal` looks now and then
whether that still holds.

On the CPU sums are MPI's; on GPUs they are NCCL's, through CuPy, a card a process.
"""

from tensorlite.distributed.errors import Diverged, Missing
from tensorlite.distributed.gradients import GradientSums
from tensorlite.distributed.norms import NormPool, average_statistics, pool_of
from tensorlite.distributed.processes import (
    MPIProcesses,
    Processes,
    launched,
    mpiexec,
    start,
)

__all__ = [
    "Diverged",
    "GradientSums",
    "MPIProcesses",
    "Missing",
    "NormPool",
    "Processes",
    "average_statistics",
    "launched",
    "mpiexec",
    "pool_of",
    "start",
]
