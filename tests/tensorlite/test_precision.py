"""Mixed precision: what is cast and what is not, on the CUDA kernels' emulator."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import tensorlite as tl
from recres.models import recurrent_resnet
from tensorlite import Tensor, kernels, nn, optim, precision
from tensorlite.kernels import cuda
from tensorlite.kernels.cuda import precision as switches
from tensorlite.kernels.cuda.launch import running_on
from tests.cuda_on_cpu.emulator import Emulator, require_compiler

EPS = 2.0**-11  # half the distance of float16 numbers around 1


@pytest.fixture
def emulated(monkeypatch):
    """Arrays are taken for a GPU's, and the kernels for them are emulated."""
    require_compiler()
    monkeypatch.setattr(kernels, "of", lambda array: cuda)
    with running_on(Emulator()):
        yield


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def rounded(array):
    return array.astype(np.float16).astype(np.float64)


def parameters(**shapes):
    return {name: nn.Parameter(normal(*shape, seed=i) / 2)
            for i, (name, shape) in enumerate(shapes.items())}


def in_float64(function, x, params, grad):
    """The output and the gradients of x and of the parameters, products of operands as float16
    has them, everything else in float64, on the CPU."""
    before, kernels.of = kernels.of, lambda array: kernels.cpu
    try:
        x = Tensor(rounded(x), requires_grad=True)
        params = {name: nn.Parameter(rounded(p.data) if p.ndim > 1 else p.data.astype(np.float64))
                  for name, p in params.items()}
        y = function(x, **params)
        y.backward(grad.astype(np.float64))
        return y.numpy(), x.grad, {name: p.grad for name, p in params.items()}
    finally:
        kernels.of = before


FUNCTIONS = {
    "linear": (tl.linear, (5, 7, 6), {"weight": (6, 3), "bias": (3,)}),
    "conv2d": (lambda x, **p: tl.conv2d(x, padding=1, **p), (2, 6, 5, 8),
               {"weight": (3, 3, 8, 4), "bias": (4,)}),
    "gru": (lambda x, **p: tl.gru(x, np.array([3, 4]), **p), (2, 4, 3),
            {"w_ih": (3, 15), "w_hh": (5, 15), "b_ih": (15,), "b_hh": (15,)}),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_products_are_those_of_float16_operands_summed_in_float32(emulated, name):
    function, shape, shapes = FUNCTIONS[name]
    x, params = normal(*shape), parameters(**shapes)
    tensor = Tensor(x, requires_grad=True)
    with tl.autocast("float16"):
        y = function(tensor, **params)
    assert y.dtype == np.float16
    grad = normal(*y.shape, seed=9).astype(np.float16)
    y.backward(grad)
    expected, dx, grads = in_float64(function, x, params, grad)
    scale = np.abs(expected).max()
    assert np.abs(y.numpy() - expected).max() <= 4 * EPS * scale
    assert tensor.grad.dtype == np.float32
    assert np.abs(tensor.grad - dx).max() <= 8 * EPS * np.abs(dx).max()
    for key, p in params.items():
        assert p.grad.dtype == p.dtype == np.float32, key
        assert np.abs(p.grad - grads[key]).max() <= 8 * EPS * np.abs(grads[key]).max(), key


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_gradients_of_weights_are_float32_all_the_way(emulated, name):
    """They exceed what float16 can hold, and have more digits than it has."""
    function, shape, shapes = FUNCTIONS[name]
    x, params = normal(*shape) * 100, parameters(**shapes)
    with tl.autocast():
        y = function(Tensor(x), **params)
    grad = (normal(*y.shape, seed=9) * 2000).astype(np.float16)
    y.backward(grad)
    _, _, grads = in_float64(function, x, params, grad)
    found, expected = params["weight"].grad, grads["weight"]
    assert np.abs(expected).max() > np.finfo(np.float16).max
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_norms_keep_their_vectors_in_float32(emulated, fused, mode):
    def block(x, w1, w2, g1, b1, g2, b2, dtype):
        mean, var = np.zeros(6, dtype), np.ones(6, dtype)
        options = {"running_mean": mean, "running_var": var, "mode": mode, "padding": 1}
        y = tl.conv_norm(x, w1, g1, b1, relu=True, **options)
        y = tl.block_join(tl.conv_norm(y, w2, g2, b2, **options), x)
        found.append((mean, var))
        return tl.global_avg_pool(y), y

    found = []
    x = normal(4, 8, 8, 6)
    params = parameters(w1=(3, 3, 6, 6), w2=(3, 3, 6, 6), g1=(6,), b1=(6,), g2=(6,), b2=(6,))
    tensor, grad = Tensor(x, requires_grad=True), normal(4, 6).astype(np.float16)

    def run():
        with tl.autocast():
            y, joined = block(tensor, **params, dtype=np.float32)
        y.backward(grad)
        return y, joined

    if fused:
        y, joined = run()
    else:
        with tl.unfused():
            y, joined = run()
    assert y.dtype == joined.dtype == np.float16
    expected, dx, grads = in_float64(lambda x, **p: block(x, **p, dtype=np.float64)[0], x, params,
                                     grad)
    assert np.abs(y.numpy() - expected).max() <= 8 * EPS * np.abs(expected).max()
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == np.float32 and np.abs(ours - theirs).max() <= 4 * EPS
    for got, right in [(tensor.grad, dx), *((p.grad, grads[name]) for name, p in params.items())]:
        assert got.dtype == np.float32
        # A relu close to zero may fall the other way.
        assert np.linalg.norm(got - right) <= 0.02 * np.linalg.norm(right)


@pytest.mark.parametrize("folded", [False, True])
def test_inference_folds_norms_in_float32(emulated, folded):
    layers = nn.Conv2d(8, 4, 3, padding=1, rng=0), nn.BatchNorm2d(4)
    layers[1].running_mean[:], layers[1].running_var[:] = normal(4), [1e-4, 0.1, 10, 1e3]
    for layer in layers:
        layer.fold() if folded else layer.eval()
    x = normal(2, 5, 5, 8)
    with tl.no_grad(), tl.autocast():
        for _ in range(2):
            y = tl.value_of(nn.conv_norm(Tensor(x), *layers, relu=True))
    assert y.dtype == np.float16
    kernels_of, kernels.of = kernels.of, lambda array: kernels.cpu
    with tl.no_grad():
        for layer in layers:
            layer.to(dtype=np.float64).eval()
        expected = tl.value_of(nn.conv_norm(Tensor(x.astype(np.float64)), *layers, relu=True))
    kernels.of = kernels_of
    bound = np.abs(expected.numpy()).max(axis=(0, 1, 2))
    assert (np.abs(y.numpy() - expected.numpy()) <= 8 * EPS * bound).all()


def test_a_loss_is_float32(emulated):
    logits, labels = Tensor(normal(4, 5), requires_grad=True), np.arange(4)
    with tl.autocast():
        y = tl.linear(logits, Tensor(np.eye(5, dtype=np.float32)))
        assert y.dtype == np.float16
        loss = tl.cross_entropy(y, labels)
        assert loss.dtype == tl.softmax(y).dtype == tl.log_softmax(y).dtype == np.float32
    expected = tl.cross_entropy(Tensor(logits.data.astype(np.float16).astype(np.float32)), labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert logits.grad.dtype == np.float32


def model_gradients(dtype, scale=None):
    """Of a recurrent network; its norms frozen, for the statistics of so few values are erratic."""
    model = recurrent_resnet(18, classes=5, width=4, skip="conv_nonlinear", rng=0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.freeze()
    scaler = optim.LossScaler(scale or 1.0)
    with tl.autocast(dtype):
        loss = tl.cross_entropy(model(Tensor(normal(3, 2, 32, 32, 3))), np.arange(3))
    scaler.backward(loss)
    return loss.item(), {n: p.grad / scaler.scale for n, p in model.named_parameters()}


def test_the_model_in_float16(emulated, monkeypatch):
    """Its gradients are those of float32, as near as the digits of float16 allow; of a small loss
    they are so only with loss scaling."""
    loss, grads = model_gradients("float16", 2.0**10)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "of", lambda array: kernels.cpu)
        expected, right = model_gradients("float32")
    assert loss == pytest.approx(expected, rel=2e-3)
    for name, grad in right.items():
        assert grads[name].dtype == np.float32
        assert np.linalg.norm(grads[name] - grad) <= 0.1 * np.linalg.norm(grad), name


def test_scaling_saves_gradients_that_float16_cannot_hold(emulated):
    found = []
    for scale in (1.0, 2.0**16):
        x = Tensor(normal(4, 4), requires_grad=True)
        with tl.autocast():
            y = tl.linear(x, Tensor(np.eye(4, dtype=np.float32)))
        optim.LossScaler(scale).backward((tl.cast(y, np.float32) * 1e-9).sum())
        found.append(x.grad / scale)
    assert not found[0].any()
    np.testing.assert_allclose(found[1], 1e-9, rtol=1e-3)


@np.errstate(invalid="ignore")  # NumPy's of infinite gradients
def losses(dtype, steps=25):
    rng = np.random.default_rng(0)
    layers = nn.Linear(6, 16, rng=rng), nn.Linear(16, 3, rng=rng)
    optimizer = optim.Adam([p for layer in layers for p in layer.parameters()], lr=0.03)
    scaler = optim.LossScaler(2.0**24) if dtype == "float16" else None
    x = rng.standard_normal((32, 6)).astype(np.float32)
    labels = (x[:, :3] + 0.5 * x[:, 3:]).argmax(axis=1)
    found, skipped = [], 0
    for _ in range(steps):
        optimizer.zero_grad()
        with tl.autocast(dtype):
            y = layers[1](layers[0](Tensor(x)).relu())
            loss = tl.cross_entropy(y, labels)
        scaler.backward(loss) if scaler else loss.backward()
        outcome = optimizer.guarded_step(scaler=scaler)()
        skipped += outcome.skipped
        if not outcome.skipped:
            found.append(loss.item())
    return np.array(found), skipped


def test_training_converges_as_in_float32(emulated):
    """The loss scale starts too high: the first steps are skipped, and the others as they were."""
    mixed, skipped = losses("float16")
    assert 1 <= skipped <= 8
    full, none = losses("float32", 25 - skipped)
    assert none == 0 and full[-1] < 0.5 * full[0]
    np.testing.assert_allclose(mixed, full, rtol=0.02)


def test_what_is_float64_stays_so(emulated):
    with tl.autocast():
        y = tl.linear(Tensor(np.ones((2, 3))), Tensor(np.ones((3, 4))))
    assert y.dtype == np.float64


def test_autocast_nests_and_is_of_its_thread():
    found = []
    assert precision.products_dtype() is None
    with tl.autocast():
        with tl.autocast("float32"):
            assert precision.products_dtype() is None
        assert precision.products_dtype() == np.float16
        thread = threading.Thread(target=lambda: found.append(precision.products_dtype()))
        thread.start()
        thread.join()
    assert found == [None] and precision.products_dtype() is None
    with pytest.raises(ValueError, match="dtype: expected 'float16' or 'float32', got 'int8'"), \
            tl.autocast("int8"):
        pass


def test_the_cpu_has_no_products_in_float16():
    x, weight = Tensor(normal(2, 3)), Tensor(normal(3, 4))
    with tl.autocast(), pytest.raises(ValueError, match="products in float16 need a CUDA device"):
        tl.linear(x, weight)


def test_using_sets_what_it_says_and_puts_it_back():
    for name in precision.PRECISIONS:
        with precision.using(name):
            assert switches.tf32() == (name == "tf32")
            assert (precision.products_dtype() == np.float16) == (name == "float16")
        assert not switches.tf32() and precision.products_dtype() is None
    with pytest.raises(ValueError, match="expected one of float32, tf32, float16, got 'half'"), \
            precision.using("half"):
        pass


def test_tf32_rounds_operands_where_it_is_allowed(emulated):
    a, b = normal(8, 16), normal(16, 8)
    exact = a.astype(np.float64) @ b
    errors = []
    for allowed in (False, True):
        tl.set_tf32(allowed)
        try:
            errors.append(np.abs(tl.matmul(Tensor(a), Tensor(b)).numpy() - exact).max())
        finally:
            tl.set_tf32(False)
    assert errors[0] < 1e-5 < 1e-4 < errors[1] < 1e-2


def test_cast_there_and_back():
    x = Tensor(np.array([1.0, 1 / 3, 1e6], np.float32), requires_grad=True)
    y = tl.cast(x, np.float64)
    np.testing.assert_array_equal(y.numpy(), x.data)
    (y * y).sum().backward()
    assert x.grad.dtype == np.float32
    np.testing.assert_allclose(x.grad, 2 * x.data, rtol=1e-6)
    assert tl.cast(x, "float32") is x
    with np.errstate(over="ignore"):
        assert np.isinf(tl.cast(x, np.float16).numpy()[2])
    with pytest.raises(TypeError, match="from one floating-point dtype to another"):
        tl.cast(x, np.int32)


def test_parameters_may_be_wider_than_activations_not_narrower():
    narrow, wide = Tensor(np.ones((2, 3), np.float16)), Tensor(np.ones((3, 3), np.float32))
    with pytest.raises(TypeError, match="weight: expected the dtype float32 of x, got float16"):
        tl.linear(wide, tl.cast(wide, np.float16))
    with pytest.raises(TypeError, match="weight: expected the dtype float16 of x, got float64"):
        tl.linear(narrow, tl.cast(wide, np.float64))
