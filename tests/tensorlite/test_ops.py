"""What holds for every op, checked for each row of the table in `op_cases`."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite import Tensor, ops
from tensorlite.device import array_module

from .op_cases import CASES, Call, OpCase

every_op = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])

LAYOUTS = ("C", "Fortran", "reversed", "every second")


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """A copy of `array` in another arrangement of memory."""
    if layout == "Fortran" or not array.ndim:
        return np.array(array, order="F")
    if layout == "reversed":
        turned = (slice(None, None, -1),) * array.ndim
        return array[turned].copy()[turned]
    if layout == "every second":
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    return array.copy()


def place(arrays: list[np.ndarray], device: str) -> list[Tensor]:
    return [Tensor(a, requires_grad=True, device=device) for a in arrays]


def gradients(call: Call, tensors: list[Tensor], seed: int = 0) -> list[np.ndarray]:
    """Run `call` and its backward with a random cotangent; the output, then every gradient."""
    output = call.run(*tensors)
    cotangent = np.random.default_rng(seed).standard_normal(output.shape)
    output.backward(Tensor(cotangent.astype(output.dtype), device=output.device))
    return [output.numpy(), *(Tensor(t.grad).numpy() for t in tensors)]


@every_op
@given(data=st.data())
def test_forward_equals_the_reference(case: OpCase, device: str, data: st.DataObject):
    call = data.draw(case.calls)
    expected = np.asarray(call.reference(*call.inputs))
    output = call.run(*place(call.inputs, device))
    assert output.dtype == np.float64
    assert output.shape == expected.shape
    np.testing.assert_allclose(output.numpy(), expected, rtol=1e-11, atol=1e-12)


@every_op
@given(data=st.data())
def test_gradients_equal_central_differences(case: OpCase, device: str, data: st.DataObject):
    call = data.draw(case.calls)

    def run(*tensors: Tensor) -> Tensor:
        return call.run(*(t.to(device) for t in tensors)).to("cpu")

    tl.gradcheck(run, call.inputs, rtol=1e-6, samples=25, seed=data.draw(st.integers(0, 99)))


@every_op
@given(data=st.data())
def test_float32_equals_float64_to_rounding(case: OpCase, device: str, data: st.DataObject):
    call = data.draw(case.calls)
    singles = [a.astype(np.float32) for a in call.inputs]
    coarse = gradients(call, place(singles, device))
    fine = gradients(call, place([a.astype(np.float64) for a in singles], device))
    for single, double in zip(coarse, fine, strict=True):
        assert single.dtype == np.float32
        # A dot product of the lengths drawn here is good to a few dozen roundings of its largest
        # term; the terms are of the order of 10.
        bound = 100 * np.finfo(np.float32).eps * max(1, np.abs(double).max(initial=0))
        np.testing.assert_allclose(single, double, rtol=0, atol=bound)


@every_op
@given(data=st.data(), layout=st.sampled_from(LAYOUTS))
def test_layout_of_the_inputs_does_not_matter(case: OpCase, device: str, data: st.DataObject,
                                              layout: str):
    call = data.draw(case.calls)
    plain = gradients(call, place(call.inputs, device))
    other = gradients(call, place([laid_out(a, layout) for a in call.inputs], device))
    for expected, value in zip(plain, other, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-11, atol=1e-12)


@every_op
@given(data=st.data())
def test_arguments_are_left_alone_and_gradients_share_no_memory(case: OpCase, device: str,
                                                                data: st.DataObject):
    call = data.draw(case.calls)
    tensors = place(call.inputs, device)
    before = [np.array(t.numpy()) for t in tensors]
    output = call.run(*tensors)
    xp = array_module(output.data)
    cotangent = xp.asarray(np.random.default_rng(0).standard_normal(output.shape))
    kept = cotangent.copy()
    output.backward(cotangent)
    assert (cotangent == kept).all()
    for t, values in zip(tensors, before, strict=True):
        np.testing.assert_array_equal(t.numpy(), values)
        assert t.grad.shape == t.shape
        assert t.grad.dtype == t.dtype
    arrays = [cotangent, output.data, *(t.grad for t in tensors)]
    for a, b in combinations(arrays, 2):
        assert not xp.shares_memory(a, b)
    for t in tensors:
        assert not xp.shares_memory(t.data, t.grad)
        assert t.grad.flags.writeable


@every_op
@given(data=st.data())
def test_only_wanted_gradients_are_computed(case: OpCase, device: str, data: st.DataObject):
    call = data.draw(case.calls)
    expected = gradients(call, place(call.inputs, device))
    wanted = data.draw(st.integers(0, len(call.inputs) - 1))
    tensors = [Tensor(a, requires_grad=i == wanted, device=device)
               for i, a in enumerate(call.inputs)]
    output = call.run(*tensors)
    cotangent = np.random.default_rng(0).standard_normal(output.shape)
    output.backward(Tensor(cotangent, device=output.device))
    for i, t in enumerate(tensors):
        if i == wanted:
            np.testing.assert_allclose(Tensor(t.grad).numpy(), expected[1 + i],
                                       rtol=1e-11, atol=1e-12)
        else:
            assert t.grad is None


# What stands for several ops is compared with them (test_ops_fused), and what rounds has no central
# differences (test_precision).
ELSEWHERE = ("tensorlite.ops.fused", "tensorlite.ops.casting")


def all_functions(base: type = tl.Function) -> set[type]:
    return {f for sub in base.__subclasses__() for f in {sub, *all_functions(sub)}
            if f.__module__.startswith("tensorlite.ops.") and f.__module__ not in ELSEWHERE}


def test_every_function_is_in_the_table():
    assert {case.function for case in CASES} == all_functions()


def test_every_public_op_is_in_the_table():
    simple = {name for name in ops.__all__
              if getattr(ops, name).__module__ not in ELSEWHERE}
    assert {case.name for case in CASES} == simple
    assert len(CASES) == len(simple)
    for name in set(ops.__all__) - {"to_device"}:
        assert getattr(tl, name) is getattr(ops, name)


@every_op
@given(data=st.data())
def test_a_row_applies_the_function_it_names(case: OpCase, data: st.DataObject):
    seen = []

    class Record(tl.Observer):
        def forward(self, node, output):
            seen.append(node.function)

    call = data.draw(case.calls)
    with tl.observe(Record()):
        call.run(*(Tensor(a) for a in call.inputs))
    assert case.function in seen
