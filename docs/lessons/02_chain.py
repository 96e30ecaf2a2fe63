"""Lesson 2, a chain of scalars: the same detector looks at both frames.

In lesson 1 each frame had a weight of its own; a film of a thousand frames would need a thousand.
Now one detector h looks at every frame, with one weight w, and the score compares what it says:

    h(x) = relu(w · x)            relu(z) = z where z > 0, else 0
    s = h(now) − h(before)
    L = d · d,   d = s − target

This is a chain of functions, and the chain rule says: the slope of a chain is the product of the
slopes of its links. Walking back from L we carry the product so far and multiply by one link at a
time. The link relu is a gate: its slope is 1 where z > 0 (open) and 0 elsewhere (closed).

w stands in two places, once for each frame. Each place sends back a piece, and the pieces add:

    dL/dw = dL/dh_now · gate_now · now  +  dL/dh_before · gate_before · before

One weight, used at two times: this sum is all there is to "backpropagation through time".
"""

import tensorlite as tl

before, now, target = 1.0, 3.0, 1.0


def backward_by_hand(w):
    h_now, h_before = max(w * now, 0.0), max(w * before, 0.0)
    d = (h_now - h_before) - target
    dL_ds = 2 * d  # two pieces, d and d
    dL_dh_now, dL_dh_before = dL_ds, -dL_ds  # h_before enters with a minus
    piece_now = dL_dh_now * (h_now > 0) * now
    piece_before = dL_dh_before * (h_before > 0) * before
    return d * d, piece_now, piece_before, piece_now + piece_before


print(*backward_by_hand(2.0))  # 9.0 18.0 -6.0 12.0

# The engine, step by step: what comes in at each op, and what it sends to its inputs.
w = tl.Tensor(2.0, requires_grad=True)
h_now, h_before = (w * now).relu(), (w * before).relu()
d = (h_now - h_before) - target
for step in tl.walk(d * d):
    print(step.node.name, step.grad, "→", *(g for g in step.outgoing if g is not None))
# multiply 1.0 → 3.0 3.0
# subtract 6.0 → 6.0
# subtract 6.0 → 6.0 -6.0
# relu -6.0 → -6.0
# multiply -6.0 → -6.0
# relu 6.0 → 6.0
# multiply 6.0 → 18.0
print(w.grad)  # 12.0  ← -6 + 18: `before` came first, as its ops were applied last

# A detector that looks for darkness: both gates are closed, and it learns nothing at all.
loss, *_, dL_dw = backward_by_hand(-2.0)
print(loss, dL_dw)  # 1.0 0.0
