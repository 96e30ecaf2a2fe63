"""Frames are followed through a program: checked against arrays that hold their own frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite import Tensor, nn, trace
from tensorlite.trace.tape import Tape

B, T = 2, 3


def frames_of(tape: Tape, name: str) -> list[int] | None:
    return next(t.frames for t in tape.tensors if t.name == name)


def last(tape: Tape) -> list[int] | None:
    return tape.tensors[tape.ops[-1].output].frames


def chunk() -> Tensor:
    """Chunks whose elements are their own frames."""
    values = np.arange(T, dtype=np.float64)[None, :, None, None, None]
    return Tensor(np.broadcast_to(values, (B, T, 4, 4, 5)).copy(), requires_grad=True)


KEYS = st.one_of(st.integers(-T, T - 1), st.just(slice(None)), st.just(slice(1, None)),
                 st.just(slice(None, -1)), st.just([0, 2]), st.just(slice(None, None, -1)))


@given(KEYS, st.sampled_from(["fold", "keep", "time first"]), st.booleans())
def test_the_labels_are_the_frames_that_the_elements_came_from(key, shape: str,
                                                               relu: bool) -> None:
    with trace.record() as tape:
        x = trace.frames(chunk())
        y = x[:, key]
        if shape == "fold":
            y = y.reshape(-1, *x.shape[2:])
        elif shape == "time first" and y.ndim == 5:
            y = y.transpose((1, 0, 2, 3, 4))
        if relu:
            y = y.relu()
    assert last(tape) == sorted(int(t) for t in np.unique(y.data))
    record = tape.tensors[tape.ops[-1].output].value
    assert record is not None and record.frame_norms is not None
    for t, norm in enumerate(record.frame_norms):
        part = y.data[y.data == t]
        assert norm == (pytest.approx(np.linalg.norm(part)) if part.size else None)


def test_parts_put_together_again() -> None:
    with trace.record() as tape:
        x = trace.frames(chunk())
        steps = [x[:, t] for t in range(T)]
        assert last(tape) == [2]
        stacked = tl.stack(steps[::-1], axis=1)
        assert last(tape) == [0, 1, 2]
        one = stacked[:, 0]
    assert last(tape) == [2] and (one.data == 2).all()


def test_a_loop_over_time_carries_its_state_one_frame_on() -> None:
    rng = np.random.default_rng(0)
    model = nn.LSTM(3, 4, rng)
    with trace.record() as tape:
        x = trace.frames(Tensor(rng.standard_normal((B, T, 3)).astype(np.float32)))
        model(x)
    # Of each step after the first, the two products with the step before arrive a frame late.
    late = [(op.op, op.frames) for op in tape.ops if 1 in op.shifts]
    assert late == [(name, [t]) for t in range(1, T) for name in ("add", "multiply")]
    assert last(tape) == [0, 1, 2]


def test_temporal_skips_come_from_the_frame_before() -> None:
    with trace.record() as tape:
        x = trace.frames(chunk()).reshape(B * T, 4, 4, 5)
        tl.block_join(x, x, x, frames=T)
        whole = tape.ops[-2]
        late = x.reshape(B, T, 4, 4, 5)[:, 1:].reshape(-1, 4, 4, 5)
        early = x.reshape(B, T, 4, 4, 5)[:, :-1].reshape(-1, 4, 4, 5)
        tl.block_join(late, late, early, frames=T, first_left_out=True)
    assert whole.op == "temporal_skip" and whole.shifts == [0, 1] and whole.frames == [0, 1, 2]
    assert whole.roles == [None, "temporal skip"]
    joined = tape.ops[-2]
    assert joined.op == "add" and joined.shifts == [0, 1] and joined.frames == [1, 2]
    assert tape.ops[-3].roles == ["residual branch", "spatial skip"]


def test_what_is_of_all_frames_has_no_frame() -> None:
    with trace.record() as tape:
        x = trace.frames(chunk())
        x.mean(axis=1)
        assert last(tape) is None
        x.mean(axis=(2, 3))
        assert last(tape) == [0, 1, 2]
        x[:, 1].mean(axis=0)
        assert last(tape) == [1]  # one frame only
        x.sum(axis=1, keepdims=True)
        assert last(tape) is None


def test_single_tensors_as_frames() -> None:
    with trace.record() as tape:
        inputs = [Tensor(np.float64(t), requires_grad=True) for t in range(T)]
        state = Tensor(np.float64(0))
        for t, x in enumerate(inputs):
            trace.frame(x, t)
            state = state + x
            if t:
                assert tape.ops[-1].shifts == [1, 0]
    assert tape.frames == T and last(tape) == [T - 1]


def test_marks_outside_a_recording_do_nothing_and_wrong_ones_are_refused() -> None:
    x = chunk()
    assert trace.frames(x) is x and trace.frame(x, 0) is x
    with pytest.raises(ValueError, match="axis: 5 is out of range for a tensor of shape"):
        trace.frames(x, axis=5)
    with pytest.raises(ValueError, match="t: expected an integer >= 0, got -1"):
        trace.frame(x, -1)


def test_an_input_of_fewer_axes_is_lined_up_with_the_last_ones() -> None:
    with trace.record() as tape:
        x = Tensor(np.ones((2, 2), np.float32))
        w = trace.frames(Tensor(np.ones(2, np.float32)), axis=0)
        (x + w)
    assert tape.tensors[tape.ops[0].output].frames is None
