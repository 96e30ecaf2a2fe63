"""Lesson 4, convolution: one detector, laid on every place.

In lesson 3 each pixel had to learn for itself. A convolution lays the same few weights on every
place i of the row. A pair of frames is now an image of one row with two channels c, before and now:

    z_ik = Σ_a Σ_c x_{i+a, c} W_ack + b_k,   y = relu(z),   s = Σ_i y_i0 − Σ_i y_i1

Detector k = 0 looks for "before here, now one to the right", k = 1 for the mirror image. W is used
at every place i, a pixel by every place that covers it; the pieces add. With e = dL/dz:

    dL/dW_ack = Σ_i x_{i+a, c} e_ik          summed over places: e times what the detector lay on
    dL/dx_jc  = Σ_a Σ_k W_ack e_{j−a, k}     summed over the places that covered pixel j
"""

import numpy as np

import tensorlite as tl


def clip(start, step, brightness=1.0):
    """A light that moves by `step` pixels, (1, 1, 6, 2): one clip, one row, before and now."""
    x = np.zeros((1, 1, 6, 2), np.float32)
    x[0, 0, start, 0] = x[0, 0, start + step, 1] = brightness
    return tl.Tensor(x, requires_grad=True)


def score(x):
    y = tl.conv2d(x, W, b).relu()
    return y, (y * np.array([1, -1], np.float32)).sum()


rightward, leftward = np.eye(2), np.eye(2)[::-1]  # [place a, channel c]
W = tl.Tensor(np.stack([rightward, leftward], -1)[None].astype(np.float32), requires_grad=True)
b = tl.Tensor([-0.5, -0.5], requires_grad=True)

x = clip(1, +1)  # from pixel 1 to pixel 2, target 1
y, s = score(x)
d = s - 1.0
(d * d).backward()
print(y.data[0, 0, :, 0], y.data[0, 0, :, 1])  # [0.  1.5 0.  0.  0. ] [0.5 0.  0.5 0.  0. ]
print(s.item())  # 0.5  ← 1.5 - (0.5 + 0.5) = 0.5: d is -0.5, and dL/ds is -1
print(b.grad)  # [-1.  2.]  ← one gate is open in y_0, two in y_1, which enters with a minus
print(W.grad[0, :, :, 0].tolist())  # [[-1.0, 0.0], [0.0, -1.0]]  ← from one place
print(W.grad[0, :, :, 1].tolist())  # [[0.0, 1.0], [1.0, 0.0]]  ← from two places, one entry each
print(x.grad[0, 0, :, 0].tolist())  # [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]  ← at pixel 1: -1 + 1 = 0
print(x.grad[0, 0, :, 1].tolist())  # [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]  ← at pixel 2: -1 + 1 = 0

# The same way back, target -1. Its gradients add to what .grad holds: in W the clips cancel, and
# both ask for a higher threshold, that is a lower b. One step makes each detector an "and".
d = score(clip(2, -1))[1] - (-1.0)
(d * d).backward()
print(b.grad, abs(W.grad).max())  # [1. 1.] 0.0
b.data = b.data - 0.5 * b.grad
print(b.data, [score(clip(*at))[1].item() for at in ((1, +1), (2, -1))])  # [-1. -1.] [1.0, -1.0]
print([score(clip(*at))[1].item() for at in ((3, +1), (5, -1))])  # [1.0, -1.0]  ← never seen there
print(score(clip(1, +1, brightness=0.4))[1].item())  # 0.0  ← at night no gate opens: lesson 5
