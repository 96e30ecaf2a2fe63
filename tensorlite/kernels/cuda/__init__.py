"""The kernels for NVIDIA GPUs, with the names and signatures of `kernels.cpu`.

The kernels themselves are CUDA C++ in ``src/``; the modules here launch them. `compiler` turns a
source into machine code, `launch` runs it on arrays. Nothing here imports CuPy before it is given
CuPy's arrays, so the package can be listed, compiled and emulated on any machine.
"""

from tensorlite.kernels.cuda import (
    convolution,
    elementwise,
    join,
    loss,
    normalisation,
    optimizer,
    pooling,
    recurrence,
)
from tensorlite.kernels.cuda.compiler import Kernel
from tensorlite.kernels.cuda.convolution import conv2d_backward, conv2d_forward, matmul2d
from tensorlite.kernels.cuda.elementwise import (
    accumulate,
    affine,
    cast,
    column_sums,
    relu_backward,
    relu_forward,
    temporal_skip_backward,
    temporal_skip_forward,
)
from tensorlite.kernels.cuda.join import join_backward, join_forward
from tensorlite.kernels.cuda.loss import (
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from tensorlite.kernels.cuda.normalisation import (
    moments,
    norm_backward,
    norm_backward_sums,
    norm_grad_vectors,
    norm_vectors,
)
from tensorlite.kernels.cuda.pooling import (
    avg_pool2d_backward,
    avg_pool2d_forward,
    global_avg_pool_backward,
    global_avg_pool_forward,
    max_pool2d_backward,
    max_pool2d_forward,
)
from tensorlite.kernels.cuda.recurrence import gru_backward, gru_forward

__all__ = [
    "accumulate",
    "affine",
    "all_kernels",
    "avg_pool2d_backward",
    "avg_pool2d_forward",
    "cast",
    "column_sums",
    "conv2d_backward",
    "conv2d_forward",
    "global_avg_pool_backward",
    "global_avg_pool_forward",
    "gru_backward",
    "gru_forward",
    "join_backward",
    "join_forward",
    "matmul2d",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "moments",
    "norm_backward",
    "norm_backward_sums",
    "norm_grad_vectors",
    "norm_vectors",
    "relu_backward",
    "relu_forward",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "temporal_skip_backward",
    "temporal_skip_forward",
]

FAMILIES = (convolution, elementwise, join, loss, normalisation, optimizer, pooling, recurrence)


def all_kernels() -> list[Kernel]:
    """Every kernel that a launcher of this package may launch, once."""
    return list(dict.fromkeys(kernel for family in FAMILIES for kernel in family.kernels()))
