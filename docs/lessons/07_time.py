"""Lesson 7, time: the recurrent residual block, and why the identity skip keeps its gradient.

A film has more frames than two. A recurrent residual block also adds what came in a frame earlier,

    y_t = relu(F(x_t) + x_t + S(x_{t−1})),   S(x_0) = 0

and the answer is read from the last frame, T. x_t stands in three places, two at its own time and
one a frame later. With e_t = dL/dy_t where the relu's gate is open, 0 where it is closed,

    dL/dx_t = (1 + F′) e_t + S′ e_{t+1}

Write Z for "a frame later": a block is the bracket (1 + F′ + S′ Z), and L blocks are a product of L
brackets. The frame k before the last gets what stands at Zᵏ; for scalars, with all gates open,

    C(L, k) (1 + F′)ᴸ⁻ᵏ S′ᵏ        C(L, k): the choices of the k blocks that pass it on in time

T − 1 blocks are the fewest that reach the first frame, by one path: S in each of them. It gets S′
to the power T − 1. For S(x) = W_s x with |W_s| < 1 that dies out, for the identity it is 1.
"""

import numpy as np

import tensorlite as tl
from tensorlite import nn, trace


class Block(nn.Module):
    def __init__(self, skip, w, w_s):
        self.skip = skip
        self.W, self.W_s = (nn.Parameter(np.full((1, 1, 1, 1), n)) for n in (w, w_s))

    def forward(self, x):
        before = x if self.skip == "identity" else None
        if self.skip == "conv":
            before = tl.conv2d(x, self.W_s)
        return tl.block_join(tl.conv2d(x, self.W), x, before, frames=len(x))


def gradient(skip, frames=4, blocks=3, w=0.5, w_s=0.5):
    """dL/dx as (frame, pixel), L the sum of the last frame's features; frame t lights pixel t."""
    images = 0.25 + 0.75 * np.eye(frames)  # a row of pixels each
    x = tl.Tensor(images.reshape(frames, 1, frames, 1), requires_grad=True)
    network = nn.Sequential()  # of one part, which has a name in the page
    part = nn.Sequential(*(Block(skip, w, w_s) for _ in range(blocks)))
    setattr(network, f"{skip}{blocks}", part)
    network(trace.frames(x, axis=0))[-1:].sum().backward()
    return x.grad.reshape(frames, frames)


print(gradient("none")[:, 0])  # [0.    0.    0.    3.375]  ← (1 + 0.5)³ = 3.375: lesson 6
print(gradient("conv")[:, 0])  # [0.125 1.125 3.375 3.375]  ← first frame: 0.5³ = 0.125
print(gradient("identity")[:, 0])  # [1.    4.5   6.75  3.375]
brackets = np.polynomial.Polynomial([1 + 0.5, 1.0]) ** 3  # (1 + F′ + Z)³: last frame first
print(brackets.coef)  # [3.375 6.75  4.5   1.   ]
print(0.5**9, 1.0**9, 2.0**9)  # 0.001953125 1.0 512.0  ← the first of ten frames, by W_s

# Its limits. Too few blocks do not reach back; and at F′ = -3 the relu opens only at the pixel that
# the light has left: a detector of motion, and where its gate is closed nothing passes.
print(gradient("identity", blocks=2)[:, 0])  # [0.   1.   3.   2.25]
print(gradient("identity", frames=2, blocks=1, w=-3.0).tolist())  # [[1.0, 0.0], [-2.0, 0.0]]
