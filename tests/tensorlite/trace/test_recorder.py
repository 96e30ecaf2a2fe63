"""The tape says what the program did: ops, names, places, and every gradient as it was added."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Function, Tensor, nn, trace
from tensorlite.trace import recorder
from tensorlite.trace.tape import FORMAT, Event, Tape


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values, np.float64), requires_grad=True)


def ops(tape: Tape) -> list[str]:
    return [op.op for op in tape.ops]


def walked(tape: Tape) -> list[Event]:
    return [event for event in tape.events if event.kind == "backward"]


def record_of(tape: Tape, name: str):
    return next(t for t in tape.tensors if t.name == name)


def test_forwards_then_backwards_step_by_step() -> None:
    with trace.record("a title") as tape:
        x = leaf(3.0)
        y = x * x
        loss = (y + x).sum()
        loss.backward()
    assert tape.title == "a title" and ops(tape) == ["multiply", "add", "sum"]
    assert [event.kind for event in tape.events] == ["forward"] * 3 + ["start"] + ["backward"] * 3
    start = tape.events[3]
    assert tape.tensors[start.tensor].name == "loss" and start.grad.values == [1.0]
    of_sum, of_add, of_multiply = walked(tape)
    assert [tape.ops[e.op].op for e in walked(tape)] == ["sum", "add", "multiply"]
    assert of_sum.grad.values == [1.0] and len(of_sum.pieces) == 1
    # x + y: the sum over paths at x is not complete before x * x has sent its two pieces.
    into_y, into_x = of_add.pieces
    assert [tape.tensors[p.tensor].name for p in (into_y, into_x)] == ["y", "x"]
    assert into_x.before is None and not into_x.deposited and into_x.after.values == [1.0]
    first, second = of_multiply.pieces
    assert (first.before.values, first.grad.values, first.after.values) == ([1.0], [3.0], [4.0])
    assert (second.before.values, second.grad.values, second.after.values) == ([4.0], [3.0], [7.0])
    assert second.deposited and not first.deposited and first.sum_right and second.sum_right
    assert record_of(tape, "x").grad.values == [7.0] == x.grad.tolist()
    assert record_of(tape, "y").grad.values == [1.0]


def test_the_gradients_are_those_without_a_recording() -> None:
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, rng=0), nn.BatchNorm2d(4), nn.ReLU())
    x = rng.standard_normal((2, 6, 6, 3)).astype(np.float32)

    def gradients() -> list[np.ndarray]:
        model.zero_grad()
        (model(Tensor(x)) * Tensor(x[..., :1])).sum().backward()
        return [p.grad for p in model.parameters()]

    plain = gradients()
    with trace.record():
        traced = gradients()
    for a, b in zip(plain, traced, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_second_backward_adds_to_what_the_first_left() -> None:
    with trace.record() as tape:
        w = leaf(2.0)
        (w * 3.0).sum().backward()
        (w * 5.0).sum().backward()
    last = walked(tape)[-1].pieces[-1]
    assert last.deposited and last.held.values == [3.0] and last.after.values == [5.0]
    assert record_of(tape, "w").grad.values == [8.0]


def test_a_gradient_changed_by_a_hook_is_shown_as_it_went_on() -> None:
    with trace.record() as tape:
        x = leaf(1.0)
        y = x * 2.0
        y.register_hook(lambda grad: 10 * grad)
        y.sum().backward()
    step = walked(tape)[-1]
    assert step.grad.values == [10.0] and step.pieces[0].grad.values == [20.0]
    assert record_of(tape, "y").grad.values == [10.0]


def test_what_was_made_before_the_recording_is_walked_too() -> None:
    x = leaf(1.0, 2.0)
    y = x * x
    with trace.record() as tape:
        y.sum().backward()
    assert ops(tape) == ["sum", "multiply"]
    assert record_of(tape, "y").op == 1
    assert [tape.ops[e.op].op for e in walked(tape)] == ["sum", "multiply"]
    assert x.grad.tolist() == [2.0, 4.0]


def test_a_parameter_that_an_optimiser_has_moved_is_another_tensor() -> None:
    with trace.record() as tape:
        w = leaf(2.0)
        for _ in range(3):
            (w * w).sum().backward()
            w.data = w.data - 0.25 * w.grad
            w.zero_grad()
    values = {t.name: (t.value.values, t.grad.values) for t in tape.tensors if t.kind == "leaf"}
    assert values == {"w": ([2.0], [4.0]), "w (2)": ([1.0], [2.0]), "w (3)": ([0.5], [1.0])}


def test_a_long_program_is_recorded_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MOST_EVENTS", 10)
    with trace.record() as tape:
        for _ in range(9):
            w = leaf(2.0)
            (w * w).sum().backward()
    assert [e.kind for e in tape.events] == 2 * [*["forward"] * 2, "start", *["backward"] * 2]
    assert tape.notes == ["The program went on: only its first 10 steps were recorded."]
    assert w.grad.tolist() == [4.0]


def test_names_modules_and_lines() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            self.layers = nn.ModuleList([nn.Linear(2, 3, rng=0), nn.Linear(3, 1, rng=0)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x).relu()
            return x

    net = Net()
    with trace.record() as tape:
        given = [Tensor(np.ones((4, 2), np.float32)), leaf(1.0)]
        out = net(given[0])
        scaled = out * 2.0
        scaled = scaled * given[1].data
        scaled.sum().backward()
    assert [(op.op, op.module, op.module_type) for op in tape.ops[:4]] == [
        ("linear", "layers.0", "Linear"), ("relu", "", "Net"),
        ("linear", "layers.1", "Linear"), ("relu", "", "Net")]
    assert tape.ops[4].module is None and tape.ops[4].module_type is None
    names = [t.name for t in tape.tensors]
    assert "layers.0.weight" in names and "layers.1.bias" in names
    assert "given[0]" in names and "out" in names and "scaled" in names
    kinds = {t.name: t.kind for t in tape.tensors}
    assert kinds["layers.0.weight"] == "parameter" and kinds["given[0]"] == "constant"
    assert kinds["out"] == "result"
    source = tape.ops[0].source
    assert source is not None and source["text"] == "x = layer(x).relu()"
    assert source["function"] == "forward" and Path(source["file"]).name == Path(__file__).name
    assert tape.sources[source["file"]][source["line"] - 1].strip() == source["text"]
    assert not Path(source["file"]).is_absolute()


def test_what_is_kept_for_backward_and_how_large_it_is() -> None:
    with trace.record() as tape:
        x = Tensor(np.ones((5, 4), np.float32), requires_grad=True)
        x * x
        x.relu()
        with tl.no_grad():
            x * x
    assert [op.saved_bytes for op in tape.ops] == [160, 80, 0]
    assert [op.recorded for op in tape.ops] == [True, True, False]
    assert tape.ops[0].saved == [{"shape": [5, 4], "dtype": "float32", "bytes": 80}] * 2


def test_roles_and_options() -> None:
    x = Tensor(np.ones((1, 4, 4, 2)), requires_grad=True)
    weight = Tensor(np.ones((3, 3, 2, 2)))
    with trace.record() as tape:
        tl.block_join(tl.conv2d(x, weight, padding=1), x)
        x[:, 1:, ::2, [0, 1]]
    assert tape.ops[0].options == {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1],
                                   "groups": 1}
    assert tape.ops[1].roles == ["residual branch", "spatial skip"]
    json.dumps(tape.as_dict(), allow_nan=False)


def test_an_op_of_ones_own() -> None:
    class Cube(Function):
        """y = x³; dy/dx = 3 x²."""

        @staticmethod
        def forward(ctx, x):
            ctx.save(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved
            return 3 * x * x * grad

    with trace.record() as tape:
        Cube.apply(leaf(2.0)).sum().backward()
    assert ops(tape)[0] == "cube" and "x³" in tape.ops[0].forward
    assert walked(tape)[-1].pieces[0].grad.values == [12.0]


def test_nothing_of_the_program_is_kept_alive() -> None:
    with trace.record() as tape:
        x = leaf(*range(1000))
        y = x * x
        y.sum().backward()
        gone = [weakref.ref(y), weakref.ref(x)]
        del x, y
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert len(tape.events) == 5


def test_recordings_end_with_their_block_and_can_be_nested() -> None:
    x = leaf(1.0)
    with pytest.raises(RuntimeError, match="stop"), trace.record() as outer:
        x * 1.0
        with trace.record() as inner:
            x * 2.0
        x * 3.0
        raise RuntimeError("stop")
    x * 4.0
    assert len(outer.ops) == 3 and len(inner.ops) == 1
    y = tl.conv_norm(Tensor(np.ones((1, 2, 2, 1))), Tensor(np.ones((1, 1, 1, 1))),
                     *(Tensor(np.ones(1)) for _ in range(2)), np.zeros(1), np.ones(1))
    assert not isinstance(y, Tensor)  # fused again


def test_the_file_is_json_and_whole(tmp_path: Path) -> None:
    with trace.record() as tape:
        x = leaf(1.0, np.nan, np.inf)
        (x * x).sum().backward()
    tape.save_json(tmp_path / "tape.json")
    read = json.loads((tmp_path / "tape.json").read_text())
    assert read["format"] == FORMAT and set(read) == {"format", *vars(tape)}
    assert read["tensors"][0]["value"]["nonfinite"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["tape.json"]


def test_backward_from_a_leaf() -> None:
    with trace.record() as tape:
        x = leaf(1.0)
        x.backward()
    assert [event.kind for event in tape.events] == ["start"]
    assert record_of(tape, "x").grad.values == [1.0]


def test_a_backward_that_forgets_an_input() -> None:
    class Product(Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save(a, b)
            return a * b

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved[1], None

    with trace.record(check=True) as tape:
        Product.apply(leaf(2.0), leaf(3.0)).sum().backward()
    last = walked(tape)[-1]
    assert [piece.slot for piece in last.pieces] == [0] and last.pieces[0].check.right
    (missing,) = last.unsent
    assert missing.slot == 1 and missing.check.analytic == [0.0]
    assert missing.check.numeric == [pytest.approx(2.0)] and not missing.check.right
