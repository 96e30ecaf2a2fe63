"""The GPU's join of a block's terms, run by the emulator, against the CPU kernels in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.kernels import cpu
from tensorlite.kernels.contract import Prologue, Term
from tensorlite.kernels.cuda import join
from tensorlite.kernels.cuda.launch import sums_dtype
from tests.cuda_on_cpu.emulator import SCHEDULES
from tests.tensorlite.campaign import examples

from .row_cases import DTYPES, assert_near, cramped, misaligned, orders, vectors_of, wide


@pytest.fixture(autouse=True, scope="module")
def needs_the_emulator(schedules):
    pass


activations = st.sampled_from([None, "norm", "relu"])


@st.composite
def joins(draw):
    """What `block_join` may ask for, a residual, a skip and perhaps what a frame passes on, with or
    without the first frame of each chunk; and other shifts of the last one."""
    frames, left_out = draw(st.integers(1, 4)), draw(st.booleans())
    if frames == 1:
        left_out = False
    kept = frames - left_out
    terms = [(kept, 0, draw(activations))]
    count = draw(st.sampled_from([kept, frames]))
    terms.append((count, kept - count, draw(activations)))
    if draw(st.booleans()):
        count = draw(st.sampled_from([frames, max(1, frames - 1)]))
        offset = draw(st.sampled_from([1 - left_out, -1, 0, 2]))
        terms.append((count, offset, draw(activations)))
    return dict(
        seed=draw(st.integers(0, 2**31)),
        terms=terms[:draw(st.integers(1, 3))],
        chunks=draw(st.integers(1, 3)),
        shape=draw(st.sampled_from([(1, 1, 3), (2, 3, 8), (3, 1, 5), (2, 2, 36), (1, 2, 264)])),
        dtype=draw(st.sampled_from(DTYPES)),
        layout=draw(st.sampled_from(["plain", "strided", "transposed"])),
        blocks=draw(st.sampled_from([1, 3, 2048])),
    )


def made(make_array, seed, terms, chunks, shape, dtype, layout, **_):
    """The terms, and the means of their norms. All are small multiples of 1/8, so that every
    precision agrees on where a term's relu cuts, also at exactly zero."""
    def round_(a):
        return (np.round(a * 4) / 8).astype(a.dtype)

    result, means = [], []
    for i, (frames, offset, kind) in enumerate(terms):
        z = round_(make_array(seed + i, (chunks * frames, *shape), dtype, layout))
        scale, shift, mean = vectors_of(make_array, seed + 10 + 3 * i, shape, dtype, 3)
        activation = None if kind is None else Prologue(round_(scale), round_(shift),
                                                        kind == "relu")
        result.append(Term(z, activation, offset))
        means.append(None if kind is None else mean)
    return result, means


def wide_terms(terms):
    return [Term(wide(z)[0], a and Prologue(*wide(a.scale, a.shift), a.relu), offset)
            for z, a, offset in terms]


def magnitude(terms, chunks):
    """The sum of the absolute values of what is added up for each element."""
    return cpu.join_forward([
        Term(abs(z), a and Prologue(abs(a.scale), abs(a.shift), False), offset)
        for z, a, offset in wide_terms(terms)], chunks)


@examples(25)
@given(joins())
def test_forward(make_array, case):
    terms, _ = made(make_array, **case)
    with cramped(join, case["blocks"]):
        y = join.join_forward(terms, case["chunks"])
    assert y.dtype == case["dtype"]
    assert_near(y, cpu.join_forward(wide_terms(terms), case["chunks"]),
                magnitude(terms, case["chunks"]))


@examples(10)
@given(joins())
def test_forward_of_any_numbers(make_array, case):
    """Not multiples of 1/8, whose sums are exact."""
    terms, _ = made(make_array, **case)
    terms = [Term(make_array(case["seed"] + i, t.value.shape, case["dtype"], "plain"),
                  t.activation and t.activation._replace(scale=t.activation.scale * 1.1), t.offset)
             for i, t in enumerate(terms)]
    with cramped(join, case["blocks"]):
        y = join.join_forward(terms, case["chunks"])
    assert_near(y, cpu.join_forward(wide_terms(terms), case["chunks"]),
                magnitude(terms, case["chunks"]))


@examples(25)
@given(joins(), orders)
def test_backward(make_array, case, schedule):
    chunks, dtype = case["chunks"], case["dtype"]
    terms, means = made(make_array, **case)
    y = cpu.join_forward(wide_terms(terms), chunks).astype(dtype)
    grad = make_array(case["seed"] + 30, y.shape, dtype, case["layout"])
    with cramped(join, case["blocks"], schedule):
        results = join.join_backward(grad, y, terms, means, chunks)
        again = join.join_backward(grad, y, terms, means, chunks)
    expected = cpu.join_backward(*wide(grad, y), wide_terms(terms),
                                 [None if m is None else wide(m)[0] for m in means], chunks)
    for (dx, sums), (same, same_sums), (dx64, sums64), term, mean in zip(
            results, again, expected, terms, means, strict=True):
        assert dx.dtype == dtype and np.array_equal(dx, dx64) and np.array_equal(dx, same)
        assert (sums is None) == (sums64 is None) == (same_sums is None) == (mean is None)
        if sums is None:
            continue
        g, z, m = wide(dx, term.value, mean)
        axes = (0, 1, 2)
        assert sums.grad.dtype == sums.grad_centred.dtype == sums_dtype(dtype)
        assert_near(sums.grad, sums64.grad, abs(g).sum(axes))
        assert_near(sums.grad_centred, sums64.grad_centred,
                    (abs(g) * (abs(z) + abs(m))).sum(axes))
        assert all(np.array_equal(a, b) for a, b in zip(sums, same_sums, strict=True))
    ids, ids64 = ([[a is b for b, _ in r] for a, _ in r] for r in (results, expected))
    assert ids == ids64  # the same terms share an array


def test_the_order_of_threads_changes_nothing(make_array):
    case = dict(seed=0, terms=[(3, 0, "relu"), (4, -1, "norm"), (3, 0, "relu")], chunks=2,
                shape=(3, 5, 40), dtype="float32", layout="plain")
    terms, means = made(make_array, **case)
    results = []
    for schedule in SCHEDULES:
        with cramped(join, 5, schedule):
            y = join.join_forward(terms, 2)
            grads = join.join_backward(terms[0].value, y, terms, means, 2)
        results.append([y, *(dx for dx, _ in grads), *(s for _, sums in grads for s in sums)])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_numbers(dtype):
    """NaN stays NaN, as a value and where it is the gradient; infinite gradients are cut to zero
    by the outer relu and by a term's own."""
    odd = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1, -1], dtype)
    a, g = (m.reshape(-1, 1, 1, 7) for m in np.meshgrid(odd, odd))
    ones, zeros = np.ones(7, sums_dtype(dtype)), np.zeros(7, sums_dtype(dtype))
    terms = [Term(a, None, 0), Term(a, Prologue(ones, zeros, True), 0)]
    means = [None, zeros]
    with cramped(join), np.errstate(invalid="ignore"):
        y = join.join_forward(terms, 1)
        np.testing.assert_array_equal(y, cpu.join_forward(wide_terms(terms), 1))
        for above in (y, np.ones_like(y)):
            ours = join.join_backward(g, above, terms, means, 1)
            theirs = cpu.join_backward(*wide(g, above), wide_terms(terms), means, 1)
            for (dx, _), (dx64, _) in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(dx, dx64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 3, 0)])
def test_empty(shape, dtype):
    x, vector = np.zeros(shape, dtype), np.zeros(shape[-1], sums_dtype(dtype))
    terms = [Term(x, None, 0), Term(x, Prologue(vector, vector, False), 0)]
    with cramped(join):
        y = join.join_forward(terms, 2)
        (dx, none), (dz, sums) = join.join_backward(x, y, terms, [None, vector], 2)
    assert none is None and all(a.shape == shape and a.dtype == x.dtype for a in (y, dx, dz))
    assert all(s.shape == vector.shape and s.dtype == vector.dtype and not s.any() for s in sums)


@pytest.mark.parametrize("count", [0, 4])
def test_another_number_of_terms(count):
    terms = [Term(np.zeros((1, 1, 1, 1), np.float32), None, 0)] * count
    with pytest.raises(ValueError, match=f"terms: got {count}"):
        join.join_forward(terms, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_that_vectors_do_not_fit(dtype, make_array):
    """The width follows from the addresses too: the emulator refuses misaligned vectors."""
    x, g = (make_array(i, (2, 2, 2, 8), dtype, "plain") for i in range(2))
    vectors = vectors_of(make_array, 2, x.shape, dtype, 2)
    results = []
    for first in (x, misaligned(x)):
        terms = [Term(first, None, 0), Term(x, Prologue(*vectors, True), 0)]
        with cramped(join):
            y = join.join_forward(terms, 1)
            (dx, _), (dz, sums) = join.join_backward(g, y, terms, [None, vectors[0]], 1)
        results.append([y, dx, dz])
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
