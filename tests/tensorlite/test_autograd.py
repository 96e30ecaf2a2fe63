"""The tape and the walk: gradients that meet, deep graphs, what is kept and what is let go."""

from __future__ import annotations

import gc
import threading
import types
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Function, Node, Observer, Step, Tensor, no_grad, observe, walk


def leaf(*values: float, dtype: type = np.float64) -> Tensor:
    return Tensor(np.array(values, dtype), requires_grad=True)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Without the garbage collector: what is freed is freed because nothing refers to it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Double(Function):
    """2 x, as a user would write it."""

    @staticmethod
    def forward(ctx: Node, x: np.ndarray) -> np.ndarray:
        return 2 * x

    @staticmethod
    def backward(ctx: Node, grad: np.ndarray) -> np.ndarray:
        return 2 * grad


# Structure


def test_a_result_used_twice_twice_over():
    a = leaf(1.0, 3.0)
    b = a + a
    c = b + b
    c.backward(np.array([1.0, 10.0]))
    np.testing.assert_array_equal(a.grad, [4.0, 40.0])


def test_paths_of_different_length_meet():
    a = leaf(2.0)
    b = a * a
    c = b * a + b + a  # a^3 + a^2 + a
    c.backward()
    np.testing.assert_array_equal(a.grad, [3 * 4 + 2 * 2 + 1])


def test_an_input_given_twice_to_one_op():
    a = leaf(3.0, -2.0)
    (a * a).sum().backward()
    np.testing.assert_array_equal(a.grad, [6.0, -4.0])


@pytest.mark.parametrize("length", [5000, 50_000])
def test_long_chain(length: int):
    a = leaf(1.0)
    b = a
    for _ in range(length):
        b = b + 1.0
    b.backward()
    np.testing.assert_array_equal(a.grad, [1.0])


def test_a_long_chain_that_is_never_walked_can_be_dropped():
    b = leaf(1.0)
    for _ in range(50_000):
        b = b * 1.0
    del b  # a recursive release would overflow the stack here


def test_a_ladder_of_many_paths_is_walked_once_a_node():
    a = leaf(1.0)
    b = a
    for _ in range(60):
        b = b + b  # 2^60 paths
    assert len(list(walk(b))) == 60
    np.testing.assert_array_equal(a.grad, [2.0**60])


def test_two_convolutions_into_and_out_of_one_node():
    inputs = [draw(2, 5, 5, 2), *(draw(3, 3, 2, 2, seed=s) for s in range(1, 5))]

    def network(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        join = tl.conv2d(x, a, padding=1) + tl.conv2d(x, b, padding=1)
        return tl.conv2d(join, c, padding=1) * tl.conv2d(join, d, padding=1)

    tl.gradcheck(network, inputs, samples=20)


def test_a_branch_that_does_not_reach_the_loss_gets_nothing():
    a, b = leaf(1.0), leaf(2.0)
    unused = a * b
    (a * 3.0).backward()
    assert b.grad is None
    assert unused.grad is None
    np.testing.assert_array_equal(a.grad, [3.0])


def test_only_what_requires_a_gradient_is_recorded():
    a, constant = leaf(1.0), Tensor(np.array([2.0]))
    assert (constant * constant).node is None
    product = a * constant
    assert product.requires_grad
    assert product.node.needs == (True, False)
    product.backward()
    assert constant.grad is None


def test_gradients_add_up_over_backwards():
    a = leaf(1.0, 2.0)
    for _ in range(3):
        (a * 2.0).sum().backward()
    np.testing.assert_array_equal(a.grad, [6.0, 6.0])
    a.zero_grad()
    assert a.grad is None


def test_backward_from_a_leaf():
    a = leaf(1.0, 2.0)
    a.backward(np.array([3.0, 4.0]))
    np.testing.assert_array_equal(a.grad, [3.0, 4.0])


def test_gradient_has_the_dtype_of_its_tensor():
    a, b = leaf(1.0, dtype=np.float32), leaf(2.0, dtype=np.float64)
    product = a * b
    assert product.dtype == np.float64
    product.backward()
    assert (a.grad.dtype, b.grad.dtype) == (np.float32, np.float64)


def test_scalars_stay_arrays_on_the_way_back():
    seen = []
    a = Tensor(np.array(3.0), requires_grad=True)
    b = (a * 2.0).relu()
    b.register_hook(lambda grad: seen.append(grad))
    (b * 2.0 + b * b).backward()
    assert isinstance(seen[0], np.ndarray)
    assert isinstance(a.grad, np.ndarray)
    assert a.grad == (2 + 12) * 2


# The walk


def test_walk_yields_steps_in_reverse_order_with_what_came_in_and_went_out():
    a, b = leaf(2.0), leaf(5.0)
    product = a * b
    total = product + a
    steps = walk(total)
    assert isinstance(steps, types.GeneratorType)
    assert a.grad is None  # nothing happens before the first step is asked for
    first, second = list(steps)
    assert isinstance(first, Step)
    assert (first.node.name, second.node.name) == ("add", "multiply")
    np.testing.assert_array_equal(first.grad, [1.0])
    assert [g.tolist() for g in first.outgoing] == [[1.0], [1.0]]
    np.testing.assert_array_equal(second.grad, [1.0])
    assert [g.tolist() for g in second.outgoing] == [[5.0], [2.0]]
    np.testing.assert_array_equal(a.grad, [6.0])


def test_steps_can_be_kept():
    """What a step shows is not changed by later ones, nor by what is done to the gradients."""
    a = leaf(3.0)
    square = a * a  # both outgoing gradients go to one leaf
    steps = list(walk(square * square))
    assert [g.tolist() for g in steps[1].outgoing] == [[54.0], [54.0]]
    assert [g.tolist() for g in steps[0].outgoing] == [[9.0], [9.0]]
    a.grad *= 0
    assert [g.tolist() for g in steps[1].outgoing] == [[54.0], [54.0]]


def test_walk_equals_backward():
    grads = []
    for run in (lambda y: y.backward(), lambda y: list(walk(y))):
        a = Tensor(draw(3, 4), requires_grad=True)
        b = tl.tanh(a) * a
        run((b @ b.transpose() + b.sum()).mean())
        grads.append(a.grad)
    np.testing.assert_array_equal(*grads)


def test_step_has_none_where_no_gradient_is_wanted():
    (step,) = walk(leaf(2.0) * Tensor(np.array([3.0])))
    assert step.outgoing[1] is None


def test_ranks_grow_along_the_program():
    a = leaf(1.0)
    b = a * 2.0
    c = b + a
    assert b.node.rank < c.node.rank
    assert c.node.inputs == (b, a)
    assert repr(b.node) == f"<multiply #{b.node.rank}>"


def test_walk_may_be_left_half_way():
    a = leaf(1.0)
    b = a * 2.0 * 3.0
    for _step in walk(b, retain_graph=True):
        break
    assert a.grad is None
    b.backward()
    np.testing.assert_array_equal(a.grad, [6.0])


# Letting go


def test_graph_is_freed_by_backward(no_gc):
    a = Tensor(draw(4, 4), requires_grad=True)
    hidden = (a * 2.0).exp()
    loss = hidden.sum()
    tensor, node = weakref.ref(hidden), weakref.ref(hidden.node)
    array = weakref.ref(hidden.data)  # saved by exp
    del hidden
    assert tensor() is not None  # the tape holds it
    loss.backward()
    assert (tensor(), node(), array()) == (None, None, None)
    assert a.grad.shape == (4, 4)


def test_graph_is_freed_without_backward(no_gc):
    a = Tensor(draw(4), requires_grad=True)
    hidden = a.exp()
    array, loss = weakref.ref(hidden.data), (hidden * hidden).sum()
    del hidden, loss
    assert array() is None


def test_saved_arrays_are_released_as_the_walk_passes(no_gc):
    a = Tensor(draw(4), requires_grad=True)
    first = a.exp()
    second = first.exp()
    loss = second.sum()
    arrays = weakref.ref(first.data), weakref.ref(second.data)
    del first, second
    alive = []
    for step in walk(loss):
        alive.append((step.node.name, *(array() is not None for array in arrays)))
    # As a step of exp is shown what it saved is there; one step later it is gone.
    assert alive == [("sum", True, True), ("exp", True, True), ("exp", True, False)]
    del step
    assert [array() for array in arrays] == [None, None]


def test_retained_graph_can_be_walked_again():
    a = leaf(2.0, 3.0)
    loss = (a * a).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    np.testing.assert_array_equal(a.grad, [8.0, 12.0])
    with pytest.raises(RuntimeError, match="sum: backward has already passed this node"):
        loss.backward()


def test_second_backward_through_a_shared_part_names_its_op():
    a = leaf(2.0)
    shared = a.exp()
    one, two = shared * 2.0, shared * 3.0
    one.backward()
    with pytest.raises(RuntimeError, match=r"exp: .*retain_graph=True"):
        two.backward()


# What was saved must not change


@pytest.mark.parametrize("size", [1, 10, 100_000])
@pytest.mark.parametrize("write", ["assign", "raw"])
def test_saved_array_changed_in_place_names_the_op(size: int, write: str):
    a = Tensor(np.ones(size), requires_grad=True)
    b = Tensor(np.full(size, 2.0), requires_grad=True)
    product = (a * b).sum()
    if write == "assign":
        b.data += 1.0
    else:
        b.data[...] = 3.0
    with pytest.raises(RuntimeError, match=rf"^multiply: an array of shape \({size},\).* in place"):
        product.backward()


def test_saved_view_of_a_large_array_is_watched_too():
    a = Tensor(np.ones((200, 300)), requires_grad=True)
    product = (a.transpose() * 2.0).exp().sum()
    product.node.inputs[0].data[...] = 0
    with pytest.raises(RuntimeError, match=r"^exp: "):
        product.backward()


def test_replaced_array_does_not_disturb_backward():
    a, b = leaf(1.0), leaf(2.0)
    product = a * b
    b.data = b.data + 1.0  # another array: the saved one is as it was
    product.backward()
    np.testing.assert_array_equal(a.grad, [2.0])


def test_change_after_backward_is_allowed():
    a = leaf(1.0)
    (a * a).backward()
    a.data += 1.0
    (a * a).backward()
    np.testing.assert_array_equal(a.grad, [2.0 + 4.0])


def test_index_keeps_its_own_copy_of_the_key():
    a, key = leaf(1.0, 2.0, 3.0), np.array([0, 0])
    taken = a[key].sum()
    key[:] = 2
    taken.backward()
    np.testing.assert_array_equal(a.grad, [2.0, 0.0, 0.0])


# Hooks


def test_tensor_hook_sees_the_complete_gradient_once():
    seen = []
    a = leaf(2.0)
    a.register_hook(lambda grad: seen.append(grad.copy()))
    (a * a + a).backward()
    assert [s.tolist() for s in seen] == [[5.0]]


def test_hook_of_an_intermediate_result_sees_the_complete_gradient_once():
    seen = []
    a = leaf(2.0)
    b = a * 3.0
    b.register_hook(lambda grad: seen.append(grad.copy()))
    (b * 2.0 + b * 5.0).backward()
    assert [s.tolist() for s in seen] == [[7.0]]
    np.testing.assert_array_equal(a.grad, [21.0])


def test_node_hook():
    a = leaf(2.0)
    b = a * 3.0
    b.node.hooks.append(lambda grad: grad * 10)
    (b + b).backward()
    np.testing.assert_array_equal(a.grad, [60.0])


def test_hooks_replace_the_gradient_in_turn():
    a = leaf(1.0)
    a.register_hook(lambda grad: grad + 1)
    a.register_hook(lambda grad: grad * 10)
    (a * 1.0).backward()
    np.testing.assert_array_equal(a.grad, [20.0])


def test_hook_can_be_removed():
    a = leaf(1.0)
    remove = a.register_hook(lambda grad: grad * 100)
    remove()
    remove()  # a second time does nothing
    (a * 1.0).backward()
    np.testing.assert_array_equal(a.grad, [1.0])


def test_hook_may_keep_or_return_what_it_is_shown():
    kept = []
    shown = np.array([7.0])
    a, b = leaf(1.0), leaf(1.0)
    a.register_hook(lambda grad: kept.append(grad))
    b.register_hook(lambda grad: shown)
    (a * 2.0 + a * 3.0 + b).backward()
    a.grad *= 0
    b.grad *= 0
    assert (kept[0].tolist(), shown.tolist()) == ([5.0], [7.0])


def test_hook_that_returns_another_shape_is_refused():
    a = leaf(1.0, 2.0)
    a.register_hook(lambda grad: grad.sum(keepdims=True))
    with pytest.raises(ValueError, match=r"hook: expected a gradient of shape \(2,\), got \(1,\)"):
        (a * 1.0).sum().backward()


def test_hook_needs_a_gradient_to_wait_for():
    with pytest.raises(RuntimeError, match="register_hook: this tensor does not require"):
        Tensor([1.0]).register_hook(print)


def test_retain_grad_keeps_the_gradient_of_an_intermediate_result():
    a = leaf(2.0)
    b = a * 3.0
    b.retain_grad()
    (b * b).backward()
    np.testing.assert_array_equal(b.grad, [12.0])


# Observers


class Record(Observer):
    def __init__(self) -> None:
        self.forwards: list[tuple[str, bool]] = []
        self.sums: list[tuple] = []

    def forward(self, node: Node, output: Tensor) -> None:
        self.forwards.append((node.name, node.recording))

    def accumulate(self, target, before, grad, after) -> None:
        self.sums.append((target, before, grad, after))


def test_observer_is_told_of_every_op():
    a = leaf(1.0)
    with observe(Record()) as record:
        (a * 2.0).exp()
        with no_grad():
            a + a
    a - a
    assert record.forwards == [("multiply", True), ("exp", True), ("add", False)]


def test_observer_is_told_of_every_addition():
    a = leaf(2.0)
    with observe(Record()) as record:
        b = a * 1.0
        (b * 3.0 + b * 4.0 + b * 5.0).backward()
    node = next(t for t, *_ in record.sums if isinstance(t, Node) and t.name == "multiply"
                and len([s for s in record.sums if s[0] is t]) == 3)
    sums = [tuple(None if g is None else g.tolist() for g in rest)
            for target, *rest in record.sums if target is node]
    assert sums == [(None, [5.0], [5.0]), ([5.0], [4.0], [9.0]), ([9.0], [3.0], [12.0])]
    assert [s[3].tolist() for s in record.sums if s[0] is a] == [[12.0]]


def test_observers_nest_and_change_nothing():
    grads = []
    for observers in ([], [Record(), Record()]):
        a = Tensor(draw(5), requires_grad=True)
        if observers:
            with observe(observers[0]), observe(observers[1]):
                (a * a + a.exp() * a).sum().backward()
            assert observers[0].forwards == observers[1].forwards
        else:
            (a * a + a.exp() * a).sum().backward()
        grads.append(a.grad)
    np.testing.assert_array_equal(*grads)


def test_observation_ends_with_an_exception():
    with pytest.raises(ZeroDivisionError), observe(Record()) as record:
        raise ZeroDivisionError
    leaf(1.0) * 2.0
    assert record.forwards == []


# Aliasing


def test_leaves_never_share_a_gradient():
    a, b, c = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(5.0, 6.0)
    cotangent = np.ones(2)
    (a + b + c).backward(cotangent)  # add passes one array on to all
    arrays = [cotangent, a.grad, b.grad, c.grad]
    for i, first in enumerate(arrays):
        for second in arrays[i + 1:]:
            assert not np.shares_memory(first, second)
    a.grad += 100.0
    np.testing.assert_array_equal([b.grad, c.grad, cotangent], np.ones((3, 2)))


def test_a_gradient_passed_on_as_it_came_is_copied():
    a, cotangent = leaf(1.0, 2.0), np.ones(2)
    (a + 1.0).backward(cotangent)
    assert not np.shares_memory(a.grad, cotangent)


def test_one_new_array_as_the_gradient_of_two_inputs():
    class DoubleSum(Function):
        @staticmethod
        def forward(ctx: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return 2 * (a + b)

        @staticmethod
        def backward(ctx: Node, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            both = 2 * grad
            return both, both

    a, b = leaf(1.0), leaf(2.0)
    (DoubleSum.apply(a * 1.0, b) + b * 5.0).backward()
    assert (a.grad.tolist(), b.grad.tolist()) == ([2.0], [7.0])
    c, d = leaf(1.0), leaf(2.0)
    DoubleSum.apply(c, d).backward()
    assert not np.shares_memory(c.grad, d.grad)


def test_gradient_of_a_view_is_an_array_of_its_own():
    a = leaf(1.0, 2.0, 3.0, 4.0)
    cotangent = np.ones((2, 2))
    a.reshape(2, 2).transpose().backward(cotangent)
    assert not np.shares_memory(a.grad, cotangent)
    assert a.grad.flags.writeable
    b = leaf(1.0, 2.0)
    b.sum().backward()  # a broadcast on the way
    b.grad[0] = 5.0
    np.testing.assert_array_equal(b.grad, [5.0, 1.0])


def test_a_saved_array_that_comes_out_as_gradient_stays_as_it_is():
    class First(Function):
        """x · w for a row of w: hands the very array that it saved back as a gradient."""

        @staticmethod
        def forward(ctx: Node, x: np.ndarray, w: np.ndarray) -> np.ndarray:
            ctx.save(x, w)
            return np.asarray((x * w).sum())

        @staticmethod
        def backward(ctx: Node, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            x, w = ctx.saved
            return w, x

    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    (First.apply(x, w) + (x * 2.0).sum()).backward()
    np.testing.assert_array_equal(x.grad, [5.0, 6.0])
    np.testing.assert_array_equal(w.data, [3.0, 4.0])
    assert not np.shares_memory(w.grad, x.data)


# Not recording


def test_no_grad():
    a = leaf(1.0)
    with no_grad():
        b = a * 2.0
    assert not b.requires_grad
    assert b.node is None
    assert (a * 2.0).requires_grad


def test_no_grad_nests_and_ends_with_an_exception():
    a = leaf(1.0)
    with no_grad():
        with no_grad():
            pass
        assert not (a * 2.0).requires_grad
        with pytest.raises(ZeroDivisionError), no_grad():
            raise ZeroDivisionError
        assert not (a * 2.0).requires_grad
    assert (a * 2.0).requires_grad


def test_no_grad_decorates():
    @no_grad()
    def double(x: Tensor) -> Tensor:
        return x * 2.0

    a = leaf(1.0)
    assert not double(a).requires_grad
    assert not double(a).requires_grad
    assert (a * 2.0).requires_grad


def test_no_grad_keeps_nothing(no_gc):
    a = leaf(1.0)
    with no_grad():
        hidden = a * 2.0
        array = weakref.ref(hidden.data)
        result = hidden.exp()
        del hidden
    assert array() is None
    assert result.shape == (1,)


def test_no_grad_and_observers_are_of_one_thread():
    a, recorded = leaf(1.0), []

    def other() -> None:
        recorded.append((a * 2.0).requires_grad)

    with no_grad(), observe(Record()) as record:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert recorded == [True]
    assert record.forwards == []


def test_threads_walk_their_own_graphs():
    results = {}

    def work(k: int) -> None:
        a = leaf(float(k))
        b = a
        for _ in range(300):
            b = b + a
        b.backward()
        results[k] = a.grad.tolist()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == dict.fromkeys(range(4), [301.0])


# Functions of one's own


def test_custom_function():
    a = leaf(1.0, 2.0)
    result = Double.apply(a)
    assert result.node.name == "double"
    (result * result).sum().backward()
    np.testing.assert_array_equal(a.grad, [8.0, 16.0])
    tl.gradcheck(Double.apply, [draw(3)])


def test_custom_function_with_options_and_an_optional_input():
    class Affine(Function):
        name = "my_affine"

        @staticmethod
        def forward(ctx: Node, x, shift, *, factor: float):
            ctx.factor = factor
            return factor * x if shift is None else factor * x + shift

        @staticmethod
        def backward(ctx: Node, grad):
            return ctx.factor * grad, grad

    a, b = leaf(1.0), leaf(5.0)
    result = Affine.apply(a, None, factor=3.0)
    assert result.node.name == "my_affine"
    assert result.node.options == {"factor": 3.0}
    result.backward()
    Affine.apply(a, b, factor=2.0).backward()
    assert (a.grad.tolist(), b.grad.tolist()) == ([5.0], [1.0])


def test_none_stands_for_no_gradient():
    class Pick(Function):
        @staticmethod
        def forward(ctx: Node, a, b):
            return a + 0 * b

        @staticmethod
        def backward(ctx: Node, grad):
            return grad, None

    a, b = leaf(1.0), leaf(2.0)
    (Pick.apply(a, b) + Pick.apply(b * 1.0, a)).backward()
    assert (a.grad.tolist(), b.grad.tolist()) == ([1.0], [1.0])


def test_nothing_flows_past_a_none():
    class Stop(Function):
        @staticmethod
        def forward(ctx: Node, x):
            return x.copy()

        @staticmethod
        def backward(ctx: Node, grad):
            return None

    a = leaf(2.0)
    (Stop.apply(a * a) + a).backward()
    np.testing.assert_array_equal(a.grad, [1.0])


def broken(result) -> type[Function]:
    class Broken(Function):
        @staticmethod
        def forward(ctx: Node, a, b):
            return a + b

        @staticmethod
        def backward(ctx: Node, grad):
            return result(grad)

    return Broken


def test_wrong_number_of_gradients():
    total = broken(lambda grad: grad).apply(leaf(1.0), leaf(2.0))
    with pytest.raises(RuntimeError, match="broken: backward returned 1 gradients for 2 inputs"):
        total.backward()


def test_wrong_shape_of_a_gradient():
    total = broken(lambda grad: (grad, grad[None])).apply(leaf(1.0), leaf(2.0))
    with pytest.raises(RuntimeError, match=r"broken: backward returned a gradient of shape \(1, 1\)"
                                           r" for an input of shape \(1,\)"):
        total.backward()


@pytest.mark.parametrize("result", [[1.0], 2.0])
def test_no_array_as_a_gradient(result):
    with pytest.raises(RuntimeError, match=r"broken: backward returned <class '(list|float)'> for "
                                           r"an input of shape \(1,\)"):
        broken(lambda grad: (grad, result)).apply(leaf(1.0), leaf(2.0)).backward()


# Errors


def test_nothing_to_differentiate():
    with pytest.raises(RuntimeError, match="does not depend on a tensor that requires_grad"):
        Tensor([1.0]).backward()
    with no_grad():
        product = leaf(1.0) * 2.0
    with pytest.raises(RuntimeError, match="does not depend on a tensor that requires_grad"):
        product.backward()


def test_a_leaf_that_became_one_of_integers_is_refused():
    x = Tensor([1, 2, 3])
    x.requires_grad = True
    total = (x * 0.5).sum()
    with pytest.raises(TypeError, match="requires_grad: only a floating-point .* is int64"):
        total.backward()
    assert x.grad is None


def test_backward_from_many_elements_needs_a_gradient():
    with pytest.raises(ValueError, match=r"grad: needed .* from a tensor of shape \(2, 1\)"):
        Tensor(np.ones((2, 1)), requires_grad=True).backward()


def test_backward_with_a_gradient_of_another_shape():
    with pytest.raises(ValueError, match=r"grad: expected the shape \(2,\) .*, got \(3,\)"):
        leaf(1.0, 2.0).backward(np.ones(3))
