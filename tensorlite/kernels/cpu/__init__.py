"""The CPU kernels: NumPy arrays in, NumPy arrays out, parallel over a thread pool."""

from tensorlite.kernels.contract import Epilogue, GradSums, Mask, Moments, NormGrad, Prologue, Term
from tensorlite.kernels.cpu.convolution import conv2d_backward, conv2d_forward
from tensorlite.kernels.cpu.elementwise import (
    accumulate,
    affine,
    cast,
    column_sums,
    matmul2d,
    relu_backward,
    relu_forward,
    temporal_skip_backward,
    temporal_skip_forward,
)
from tensorlite.kernels.cpu.join import join_backward, join_forward
from tensorlite.kernels.cpu.loss import (
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from tensorlite.kernels.cpu.normalisation import (
    moments,
    norm_backward,
    norm_backward_sums,
    norm_grad_vectors,
    norm_vectors,
)
from tensorlite.kernels.cpu.pooling import (
    avg_pool2d_backward,
    avg_pool2d_forward,
    global_avg_pool_backward,
    global_avg_pool_forward,
    max_pool2d_backward,
    max_pool2d_forward,
)
from tensorlite.kernels.cpu.recurrence import gru_backward, gru_forward
from tensorlite.kernels.cpu.threads import get_num_threads, parallel_for, set_num_threads

__all__ = [
    "Epilogue",
    "GradSums",
    "Mask",
    "Moments",
    "NormGrad",
    "Prologue",
    "Term",
    "accumulate",
    "affine",
    "avg_pool2d_backward",
    "avg_pool2d_forward",
    "cast",
    "column_sums",
    "conv2d_backward",
    "conv2d_forward",
    "get_num_threads",
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
    "parallel_for",
    "relu_backward",
    "relu_forward",
    "set_num_threads",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "temporal_skip_backward",
    "temporal_skip_forward",
]
