"""Lesson 1, by hand: which way did it go?

All seven lessons work on one problem: to say from two frames which way something moves. Here a
frame is a single number, the brightness of one pixel. The score s should be 1 when the pixel became
brighter and −1 when it became darker:

    s = w · now + v · before     two weights, to be learned
    d = s − target               how far off the score is
    L = d · d                    the loss

A gradient dL/dw says how much L changes for each unit by which w changes. We find it from the last
line to the first. A product sends back to each factor the gradient times the other factor; a sum
sends it on to each term as it is. In L = d · d the same d stands twice, so that two pieces come
back to it; where pieces meet they add:

    dL/dd = d + d
    dL/ds = dL/dd
    dL/dw = dL/ds · now,   dL/dv = dL/ds · before
"""

import tensorlite as tl

before, now, target = 1.0, 3.0, 1.0  # it became brighter
w, v = 1.0, 0.0  # weights to start from

# Forward.
s = w * now + v * before
d = s - target
L = d * d
print(s, d, L)  # 3.0 2.0 4.0

# Backward.
dL_dd = d + d
dL_ds = dL_dd
dL_dw, dL_dv = dL_ds * now, dL_ds * before
print(dL_dd, dL_ds, dL_dw, dL_dv)  # 4.0 4.0 12.0 4.0


# Is that true? Ask the loss itself: move w a little, both ways.
def loss(w, v, before, now, target):
    return (w * now + v * before - target) ** 2


h = 0.001
rise = loss(w + h, v, before, now, target) - loss(w - h, v, before, now, target)
print(round(rise / (2 * h), 6))  # 12.0

# The same by the engine, which does what we did.
tw, tv = tl.Tensor(w, requires_grad=True), tl.Tensor(v, requires_grad=True)
d = tw * now + tv * before - target
(d * d).backward()
print(tw.grad, tv.grad)  # 12.0 4.0

# What a gradient is for: a step against it. The loss is gone, and the weights have found out to
# compare: `now` counts for the answer, `before` against it.
w, v = w - 0.05 * dL_dw, v - 0.05 * dL_dv
print(f"{w:.1f} {v:.1f} {loss(w, v, before, now, target):.3f}")  # 0.4 -0.2 0.000
print(f"{w * 1.0 + v * 3.0:.1f}")  # -0.2  ← from 3 down to 1: never seen, and the sign is right
