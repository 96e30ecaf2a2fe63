"""Lesson 5, batch norm: what one clip asks for, the others pay.

At night the detector of lesson 4 stayed below its threshold. A batch norm measures what the
detector found, z, in standard deviations from the batch's mean, so that a film at a tenth of the
brightness gives the same answer:

    ẑ_n = (z_n − μ) / σ,   μ = mean z,   σ² = mean (z − μ)²,   y = γ ẑ + β

Here z has one value for each of m clips (under the root goes a small ε; here it is 0). With
g = dL/dy:

    dL/dβ = Σ g,   dL/dγ = Σ g ẑ,   dL/dz = γ/σ (g − mean g − ẑ · mean(g ẑ))

μ and σ are made of all clips, so each clip is met by pieces from all. The two means are what is
left of that. Why these: add the same c to every z, or stretch all z by a factor about their mean,
and y does not change; so L does not, and the gradient has no part in these two directions:

    Σ dL/dz = 0        Σ dL/dz · ẑ = 0        (the latter up to ε / (σ² + ε), where ε is not 0)
"""

import numpy as np

import tensorlite as tl


def norm(z, mode="train"):
    running_mean, running_var = np.full(1, 3.0), np.full(1, 4.0)  # for mode "eval"
    return tl.batch_norm(z, gamma, beta, running_mean, running_var, mode=mode, eps=0.0)


values = np.array([[1.0], [1.0], [5.0], [5.0]])  # four clips, one channel: mean 3, σ 2
z = tl.Tensor(values, requires_grad=True)
gamma, beta = (tl.Tensor(np.array([v]), requires_grad=True) for v in (2.0, 0.0))
print(norm(z).data.ravel())  # [-2. -2.  2.  2.]
print(norm(z * 0.1).data.ravel().round(9))  # [-2. -2.  2.  2.]  ← at night

# Only the first clip's score matters to this loss: g = (1, 0, 0, 0).
g = np.array([[1.0], [0.0], [0.0], [0.0]])
y = norm(z)
(y * g).sum().backward()
print(beta.grad, gamma.grad)  # [1.] [-1.]
print(z.grad.ravel())  # [ 0.5 -0.5  0.   0. ]

# By hand. The second clip, at which the loss does not look, is pushed the other way.
zhat = (values - 3.0) / 2.0
mean_g, mean_along_zhat = g.mean(), zhat * (g * zhat).mean()
print(mean_g, mean_along_zhat.ravel())  # 0.25 [ 0.25  0.25 -0.25 -0.25]
by_hand = 2.0 / 2.0 * (g - mean_g - mean_along_zhat)
print(by_hand.ravel(), by_hand.sum(), (by_hand * zhat).sum())  # [ 0.5 -0.5  0.   0. ] 0.0 0.0

# With the statistics kept from training, μ and σ are constants, and each clip is on its own.
z.zero_grad()
(norm(z, "eval") * g).sum().backward()
print(z.grad.ravel())  # [1. 0. 0. 0.]

# A test that sums y (g all ones) shows nothing: Σ y = m β whatever z is, so that dL/dz = 0, and a
# backward with a wrong factor, or without its last term, passes.
z.zero_grad()
norm(z).sum().backward()
print(abs(z.grad).max())  # 0.0
