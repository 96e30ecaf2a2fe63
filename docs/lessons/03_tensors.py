"""Lesson 3, tensors and broadcasting: a row of pixels, several clips at once.

A light moves along a row of four pixels, to the right (target 1) or to the left (−1). A frame is a
row of numbers, and we look at several clips together. From each pixel's change D = now − before:

    s_n = Σ_p w_p D_np + b         the score of clip n: every pixel p has its weight
    L = 1/N Σ_n d_n²,   d_n = s_n − target_n

D has a row for each clip, w is one row, b one number: w and b are *broadcast*, that is repeated for
each clip. Repeating is using several times, and where a thing is used several times its pieces add:

    what was repeated forward is summed backward       dL/db = Σ_n g_n,   dL/dw_p = Σ_n g_n D_np
    what was summed forward is repeated backward       (each term gets the gradient of the sum)

with g_n = dL/ds_n = 2/N d_n. A gradient always has the shape of what it is the gradient of.
"""

import numpy as np

import tensorlite as tl

before = np.array([[1, 0, 0, 0], [0, 0, 2, 0]], np.float32)
now = np.array([[0, 1, 0, 0], [0, 2, 0, 0]], np.float32)
target = np.array([1, -1], np.float32)

D = tl.Tensor(now - before, requires_grad=True)
w = tl.Tensor([1.0, 3.0, 2.0, 1.0], requires_grad=True)
b = tl.Tensor([0.0], requires_grad=True)
print(D.data.tolist())  # [[-1.0, 1.0, 0.0, 0.0], [0.0, 2.0, -2.0, 0.0]]

product = w * D  # (4,) and (2, 4): w is repeated
s = product.sum(axis=1) + b  # (2,) and (1,): b is repeated
d = s - target
loss = (d * d).mean()
for t in (product, s, d):
    t.retain_grad()  # of results too, to look at
print(s.data, d.data, loss.item())  # [2. 2.] [1. 3.] 5.0

loss.backward()
print(d.grad, s.grad)  # [1. 3.] [1. 3.]  ← of two clips: 2/N is 1
print(product.grad.tolist())  # [[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0]]
print(b.grad)  # [4.]  ← 1 + 3: summed over the clips
print(w.grad)  # [-1.  7. -6.  0.]
print(D.grad.tolist())  # [[1.0, 3.0, 2.0, 1.0], [3.0, 9.0, 6.0, 3.0]]

# The pieces of dL/dw, clip by clip; the gradient is their sum.
pieces = s.grad[:, None] * D.data
print(pieces.tolist())  # [[-1.0, 1.0, 0.0, 0.0], [0.0, 6.0, -6.0, 0.0]]

# No light was ever at the fourth pixel: its weight has gradient 0 and learns nothing, however often
# the same motion is seen one pixel further left. That is what lesson 4 is for.
