"""tensorlite: a small automatic-differentiation engine on NumPy and CuPy.

    >>> import tensorlite as tl
    >>> x = tl.Tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> loss = (x * x).sum()
    >>> loss.backward()
    >>> x.grad
    array([2., 4., 6.], dtype=float32)

Images are (N, H, W, C), convolution weights (kh, kw, C_in / groups, C_out).
"""

from . import nn, optim
from .autograd import Function, Node, Step, walk
from .device import use_device
from .gradcheck import GradientError, gradcheck
from .kernels.cpu import get_num_threads, set_num_threads
from .ops import (
    add,
    avg_pool2d,
    batch_norm,
    block_join,
    cast,
    concatenate,
    conv2d,
    conv_norm,
    cross_entropy,
    divide,
    dropout,
    exp,
    global_avg_pool,
    gru,
    index,
    linear,
    log,
    log_softmax,
    matmul,
    max,
    max_pool2d,
    mean,
    multiply,
    negative,
    pad,
    power,
    relu,
    reshape,
    sigmoid,
    softmax,
    stack,
    subtract,
    sum,
    tanh,
    temporal_skip,
    transpose,
)
from .ops.fused import Activation, unfused, value_of
from .precision import autocast, set_tf32
from .recording import Observer, no_grad, observe
from .tensor import Tensor

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Function",
    "GradientError",
    "Node",
    "Observer",
    "Step",
    "Tensor",
    "add",
    "autocast",
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
    "get_num_threads",
    "global_avg_pool",
    "gradcheck",
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
    "nn",
    "no_grad",
    "observe",
    "optim",
    "pad",
    "power",
    "relu",
    "reshape",
    "set_num_threads",
    "set_tf32",
    "sigmoid",
    "softmax",
    "stack",
    "subtract",
    "sum",
    "tanh",
    "temporal_skip",
    "transpose",
    "unfused",
    "use_device",
    "value_of",
    "walk",
]
