"""Answers to the exercises of lesson 5."""


def predict():
    # ẑ = (−1, −1, 1, 1), mean g = 1/4, mean(g ẑ) = 1/4, γ/σ = 1.
    return [0, 0, -0.5, 0.5]


def backward(z, gamma, g):
    sigma = z.std(axis=0)
    zhat = (z - z.mean(axis=0)) / sigma
    dz = gamma / sigma * (g - g.mean(axis=0) - zhat * (g * zhat).mean(axis=0))
    return dz, (g * zhat).sum(axis=0), g.sum(axis=0)


def cotangents():
    # What lacks is ẑ · mean(g ẑ): nothing, where g has no part along ẑ.
    return [1, -1, 0, 0], [1, 0, 0, 0]


def hunt():
    return "batch_norm", "norm-means"
