"""Lesson 6, the residual skip: a path on which nothing is lost.

A detector of two pixels sees a light that moves by one. For faster lights one detector is put on
top of the other, f after f, and the gradient at the bottom of n of them is a product of n slopes:
below 1 they shrink it to nothing. A residual block lets its input pass beside f:

    y = x + f(x)        dy/dx = 1 + f′

x stands in two places, so at x two paths meet: from the skip comes g = dL/dy as it is, from the
branch f′ · g, and they add. Of n blocks, multiplied out,

    (1 + f′)ⁿ = 1 + n f′ + … + f′ⁿ

each block offers a choice of two paths, all choices are summed, and the 1 in front is the path of
skips alone: however small f′ becomes, that piece of the gradient arrives whole.
"""

import numpy as np

import tensorlite as tl


def slope(w, blocks, skip):
    """dy/dx at x = 1 of `blocks` times f(x) = w · x, with or without the skip."""
    x = y = tl.Tensor(np.array(1.0), requires_grad=True)
    for _ in range(blocks):
        y = y + w * y if skip else w * y
    y.backward()
    return x.grad.item()


print(slope(0.5, 1, skip=True))  # 1.5  ← 1 by the skip, 0.5 by the branch
print(slope(0.5, 3, skip=True))  # 3.375  ← 1 + 3 · 0.5 + 3 · 0.25 + 0.125 = 3.375: eight paths
print(slope(0.5, 10, skip=False))  # 0.0009765625
print(slope(0.01, 10, skip=False) < 1e-19, round(slope(0.01, 10, skip=True), 3))  # True 1.105

# It is no insurance: slopes above 0 make it grow, and at f′ = -1 the branch cancels the skip.
print(round(slope(0.5, 10, skip=True), 2), slope(-1.0, 10, skip=True))  # 57.67 0.0


# The same with what we have: a convolution that keeps the row's length, and the block's relu.
def row_gradient(blocks, skip):
    x = y = tl.Tensor(np.array([1.0, 2.0, 1.0]).reshape(1, 1, 3, 1), requires_grad=True)
    W = tl.Tensor(np.array([0.125, 0.25, 0.125]).reshape(1, 3, 1, 1))
    for _ in range(blocks):
        f = tl.conv2d(y, W, padding=(0, 1))
        y = tl.block_join(f, y) if skip else f.relu()  # block_join: relu(f + y)
    y[:, :, 1].sum().backward()  # the score is what arrives at the pixel in the middle
    return x.grad.ravel()


print(row_gradient(1, skip=False))  # [0.125 0.25  0.125]
print(row_gradient(1, skip=True))  # [0.125 1.25  0.125]
print(row_gradient(8, skip=False).round(5))  # [0.00039 0.00055 0.00039]
print(row_gradient(8, skip=True).round(2))  # [5.45 9.47 5.45]
