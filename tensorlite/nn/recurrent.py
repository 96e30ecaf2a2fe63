"""Recurrent layers: from a sequence of inputs to the sequence of their states.

Sequences of a batch are padded to one length; `lengths` says where each really ends. What lies past
an end changes nothing, and the states there are zero.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from tensorlite.device import array_module
from tensorlite.nn import init
from tensorlite.nn.layers import count
from tensorlite.nn.module import Module, Parameter
from tensorlite.ops import cast, gru, linear, sigmoid, stack, tanh
from tensorlite.ops.arguments import check_lengths
from tensorlite.tensor import Tensor


class GRU(Module):
    """A gated recurrent unit over padded sequences; Cho et al. (2014), PyTorch's variant.

    Weights w_ih (cin, 3·hidden), w_hh (hidden, 3·hidden) and biases b_ih, b_hh (3·hidden), with
    the gates in the order reset, update, new; all start uniform in ±1/sqrt(hidden).
    """

    def __init__(
        self, cin: int, hidden: int, rng: np.random.Generator | int | None = None
    ) -> None:
        self.cin, self.hidden = count("GRU", "cin", cin), count("GRU", "hidden", hidden)
        draws, bound = np.random.default_rng(rng), 1 / math.sqrt(hidden)
        self.w_ih = Parameter(init.uniform((cin, 3 * hidden), draws, -bound, bound))
        self.w_hh = Parameter(init.uniform((hidden, 3 * hidden), draws, -bound, bound))
        self.b_ih = Parameter(init.uniform((3 * hidden,), draws, -bound, bound))
        self.b_hh = Parameter(init.uniform((3 * hidden,), draws, -bound, bound))

    def forward(
        self, x: Tensor, lengths: np.ndarray | None = None, h0: Tensor | None = None
    ) -> Tensor:
        """x (B, T, cin) -> hidden states (B, T, hidden).

        `lengths` (B,) counts the frames of each sequence (all T without it); h0 (B, hidden)
        starts the state (zeros without it).
        """
        return gru(x, lengths, self.w_ih, self.w_hh, self.b_ih, self.b_hh, h0)

    def describe(self) -> str:
        return f"{self.cin}, {self.hidden}"


class LSTM(Module):
    """Long short-term memory over padded sequences, composed of the engine's simple ops.

    Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al. (2000), PyTorch's variant:

        i_t = σ(x_t W_ii + b_ii + h_{t-1} W_hi + b_hi)      input gate
        f_t = σ(x_t W_if + b_if + h_{t-1} W_hf + b_hf)      forget gate
        g_t = tanh(x_t W_ig + b_ig + h_{t-1} W_hg + b_hg)   new content
        o_t = σ(x_t W_io + b_io + h_{t-1} W_ho + b_ho)      output gate
        c_t = f_t c_{t-1} + i_t g_t
        h_t = o_t tanh(c_t)

    Weights w_ih (cin, 4·hidden), w_hh (hidden, 4·hidden) and biases b_ih, b_hh (4·hidden), with the
    gates in the order i, f, g, o; all start uniform in ±1/sqrt(hidden), except that the biases of
    the forget gate add up to 1 (b_if = 1, b_hf = 0), so that at first the cell remembers.
    """

    def __init__(
        self, cin: int, hidden: int, rng: np.random.Generator | int | None = None
    ) -> None:
        self.cin, self.hidden = count("LSTM", "cin", cin), count("LSTM", "hidden", hidden)
        draws, bound = np.random.default_rng(rng), 1 / math.sqrt(hidden)
        self.w_ih = Parameter(init.uniform((cin, 4 * hidden), draws, -bound, bound))
        self.w_hh = Parameter(init.uniform((hidden, 4 * hidden), draws, -bound, bound))
        self.b_ih = Parameter(init.uniform((4 * hidden,), draws, -bound, bound))
        self.b_hh = Parameter(init.uniform((4 * hidden,), draws, -bound, bound))
        self.b_ih.data[hidden : 2 * hidden] = 1
        self.b_hh.data[hidden : 2 * hidden] = 0

    def forward(
        self,
        x: Tensor,
        lengths: np.ndarray | None = None,
        h0: Tensor | None = None,
        c0: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, cin) -> hidden states (B, T, hidden).

        `lengths` (B,) counts the frames of each sequence (all T without it); h0 and c0 (B, hidden)
        start the state and the cell (zeros without them).
        """
        if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != self.cin:
            raise ValueError(f"x: expected shape (B, T >= 1, {self.cin}), got {x.shape}")
        batch, steps, _ = x.shape
        hidden = self.hidden
        live = np.arange(steps) < check_lengths(lengths, batch, steps)[:, None]
        # Not one product for all steps: taking steps out of it would cost a gradient of all of it
        # each, which is quadratic in T.
        inputs = (linear(x[:, t], self.w_ih, self.b_ih) for t in range(steps))
        first = next(inputs)
        h, c = (self._start(name, state, first) for name, state in (("h0", h0), ("c0", c0)))
        states = []
        for given in itertools.chain([first], inputs):
            gates = given + linear(h, self.w_hh, self.b_hh)
            i, f, g, o = (gates[:, k * hidden : (k + 1) * hidden] for k in range(4))
            c = sigmoid(f) * c + sigmoid(i) * tanh(g)
            h = sigmoid(o) * tanh(c)
            states.append(h)
        out = stack(states, axis=1)
        # Time runs one way: the steps past an end, which go on here, reach nothing that is kept.
        return out * Tensor(live[:, :, None], device=out.device, dtype=out.dtype)

    def _start(self, name: str, given: Tensor | None, inputs: Tensor) -> Tensor:
        """A state before the first step, of the device and dtype of `inputs`."""
        shape = (len(inputs), self.hidden)
        if given is None:
            return Tensor(array_module(inputs.data).zeros(shape, inputs.dtype))
        if given.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {given.shape}")
        return cast(given, inputs.dtype)

    def describe(self) -> str:
        return f"{self.cin}, {self.hidden}"
