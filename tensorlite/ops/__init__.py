"""The ops: every differentiable function of the engine, a file for each family.

Each is a `Function`, its forward and backward side by side with the formula, and a public function
that checks its arguments in the caller's terms. Ops are the same on every device: they use the
array module of their input, and `kernels.of` where an array module would be too slow.
"""

from .casting import cast
from .convolution import conv2d
from .elementwise import (
    add,
    divide,
    dropout,
    exp,
    log,
    multiply,
    negative,
    power,
    relu,
    sigmoid,
    subtract,
    tanh,
)
from .fused import block_join, conv_norm
from .linear import linear, matmul
from .loss import cross_entropy, log_softmax, softmax
from .normalisation import batch_norm
from .pooling import avg_pool2d, global_avg_pool, max_pool2d
from .recurrence import gru, temporal_skip
from .reduction import max, mean, sum
from .shape import concatenate, index, pad, reshape, stack, to_device, transpose

__all__ = [
    "add",
    "avg_pool2d",
    "batch_norm",
    "block_join",
    "cast",
    "concatenate",
    "conv2d",
    "conv_norm",
    "cross_entropy",
    "divide",
    "dropout",
    "exp",
    "global_avg_pool",
    "gru",
    "index",
    "linear",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "max_pool2d",
    "mean",
    "multiply",
    "negative",
    "pad",
    "power",
    "relu",
    "reshape",
    "sigmoid",
    "softmax",
    "stack",
    "subtract",
    "sum",
    "tanh",
    "temporal_skip",
    "to_device",
    "transpose",
]
