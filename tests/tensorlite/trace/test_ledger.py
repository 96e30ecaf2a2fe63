"""The ledger: its parts are those of the paths that they name, and add up to the whole gradient."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from recres.models import recurrent_resnet
from tensorlite.autograd import Function
from tensorlite.gradcheck import numerical_gradient
from tensorlite.trace import labels, ledger

RESIDUAL, SPATIAL, TEMPORAL = "residual branch", "spatial skip", "temporal skip"
ROUNDING = 1e-12  # of the gradient's largest element, in float64


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The arrays are small."""
    before = tl.get_num_threads()
    tl.set_num_threads(1)
    yield
    tl.set_num_threads(before)


class Ledgers(tl.Observer):
    """Follows the frames of a program's tensors, and has ledgers made as backward begins."""

    def __init__(self, names, marks=None):
        self.names, self.labels, self.found = names, {} if marks is None else marks, []

    def forward(self, node, output):
        marks, _ = labels.follow(node, output, [None if t is None else self.labels.get(t)
                                                for t in node.inputs])
        if marks is not None:
            self.labels[output] = marks

    def start(self, root, grad, nodes):
        self.found += ledger.ledgers(root, grad, nodes, self.names, self.labels.get,
                                     lambda node: ("block", node.rank))


def observed(program, names, marks=None, grad=None):
    """The ledgers of program(), and the gradients that its backward leaves."""
    observer = Ledgers(names, marks)
    with tl.observe(observer), tl.unfused():
        program().backward(grad)
    return observer.found, {name: t.grad for t, name in names.items()}


def check_sums(found, grads):
    """Every parameter's parts and rest add up to the gradient that backward left."""
    assert found
    for record in found:
        assert record.parameters
        for name, entry in record.parameters.items():
            whole, where = grads[name], entry["where"]
            largest = np.abs(whole).max()
            assert largest > 0 and entry["error"] <= ROUNDING
            np.testing.assert_allclose(entry["whole"]["values"], whole.reshape(-1)[where], rtol=0,
                                       atol=ROUNDING * largest)
            assert entry["whole"]["norm"] == pytest.approx(np.linalg.norm(whole), rel=ROUNDING)
            assert entry["every"] == (whole.size <= ledger.SHOWN)
            shown = np.abs(whole.reshape(-1)[where])
            assert len(shown) == min(whole.size, ledger.SHOWN)
            assert shown.min() >= np.sort(np.abs(whole), axis=None)[-len(shown)]  # the largest
            pieces = [*entry["parts"], entry["rest"]]
            total = np.sum([piece["values"] for piece in pieces], axis=0)
            np.testing.assert_allclose(total, entry["whole"]["values"], rtol=0,
                                       atol=ROUNDING * largest)
            assert sum(piece["share"] for piece in pieces) == pytest.approx(1, abs=1e-11)
            assert len(entry["parts"]) == len(record.parts)
            assert {len(piece["values"]) for piece in pieces} == {len(where)}


def network(skip, context, position="block4", readout="last", seed=0, frozen=False, **options):
    model = recurrent_resnet(18, classes=3, width=2, skip=skip, context=context, readout=readout,
                             position=position, rng=seed, **options).to(dtype=np.float64)
    rng = np.random.default_rng(seed)
    for module in model.modules():
        if hasattr(module, "gamma"):
            module.gamma.data = rng.uniform(0.5, 1.5, module.c)
            module.beta.data = rng.uniform(-0.5, 0.5, module.c)
            module.freeze(frozen)
    return model


def of_network(model, batch=3, side=16):
    rng = np.random.default_rng(7)
    x = tl.Tensor(rng.standard_normal((batch, model.context, side, side, 3)))
    names = {p: name for name, p in model.named_parameters()}
    return observed(lambda: tl.cross_entropy(model(x), rng.integers(0, 3, batch)), names,
                    {x: labels.along_axis(x.shape, 1)})


def frames_by_role(record):
    return {role: [p["frame"] for p in record.parts if p["role"] == role]
            for role in (RESIDUAL, SPATIAL, TEMPORAL)}


@pytest.mark.parametrize("skip", ["identity", "conv", "conv_nonlinear"])
@pytest.mark.parametrize("context, readout", [(2, "last"), (3, "mean"), (5, "last")])
def test_recurrent_networks(skip, context, readout):
    found, grads = of_network(network(skip, context, readout=readout))
    check_sums(found, grads)
    assert len(found) == 8  # one for each block
    assert [record.op for record in found] == sorted(record.op for record in found)
    everything, first = list(range(context)), 8 - (context - 1)
    for number, record in enumerate(found):
        gone = min(max(0, number - first + 1), context - 1) if readout == "last" else 0
        kept = everything[gone:]
        brought = [] if number < first else everything[max(0, gone - 1) : -1]
        assert frames_by_role(record) == {RESIDUAL: kept, SPATIAL: kept, TEMPORAL: brought}
        assert all(p["norm"] > 0 for p in record.parts)


@pytest.mark.parametrize("skip, position, context", [
    ("identity", "block1", 2), ("identity", "mid_block4", 3), ("conv", "block2", 3),
    ("conv", "mid_block4", 2)])
def test_positions(skip, position, context):
    """Also where the block with the temporal skip projects its input."""
    model = network(skip, context, position)
    found, grads = of_network(model)
    check_sums(found, grads)
    temporal = [i for i, record in enumerate(found) if frames_by_role(record)[TEMPORAL]]
    blocks = [name for name, _ in model.residual_blocks()]
    assert [blocks[i] for i in temporal] == list(model.recurrent)


@pytest.mark.parametrize("readout", ["last", "mean"])
def test_a_purely_temporal_skip(readout):
    """The block's outputs are summed frame by frame: a joint each, each with its own ledger."""
    found, grads = of_network(network("pure_temporal", 3, readout=readout))
    check_sums(found, grads)
    last = [frames_by_role(record) for record in found[7:]]
    assert last == [{RESIDUAL: [t], SPATIAL: [t], TEMPORAL: [t - 1] if t else []}
                    for t in range(3)]
    # What reaches the block's weights by other frames is the rest.
    for t, record in enumerate(found[7:]):
        entry = record.parameters["block4.1.conv2.weight"]
        alone = readout == "last" and t == 2  # all comes by the last frame's sum
        assert (entry["rest"]["norm"] > 0.01 * entry["whole"]["norm"]) is not alone
        assert alone or entry["rest"]["norm"] > 0


def test_frozen_norms_and_truncated_networks():
    found, grads = of_network(network("conv", 2, "block3", frozen=True, truncate="block3"))
    check_sums(found, grads)
    assert len(found) == 6


def test_only_parameters_before_the_joint():
    model = network("identity", 2, "block2")
    found, _ = of_network(model)
    blocks = [name for name, _ in model.residual_blocks()]
    for number, record in enumerate(found):
        modules = {name.rpartition(".")[0].rpartition(".")[0] for name in record.parameters}
        assert modules - {""} - {f"{b}.shortcut" for b in blocks} == set(blocks[: number + 1])
        assert "fc.weight" not in record.parameters


# One block against differences of the program in which all other paths keep the values they have.

def one_block(skip, norm, frames, left_out):
    """A program with one block. Its parameters by name, and ``program(live)``: live is "all",
    "rest" (the block's sum keeps its value), or the (role, frame) of the one path that is open."""
    rng = np.random.default_rng(3)
    chunks, channels = 2, 2
    x = rng.standard_normal((chunks * frames, 5, 5, channels))
    shapes = {"enter": (3, 3, 2, 2), "branch": (3, 3, 2, 2), "projection": (1, 1, 2, 2),
              "carry": (1, 1, 2, 2), "gamma": (2,), "beta": (2,), "leave": (2, 3)}
    used = {"identity": {"enter", "branch"}, "projected": {"enter", "branch", "projection"},
            "conv": {"enter", "branch", "carry"}}
    values = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    labelled = np.tile(np.arange(frames), chunks)
    marks = {None: labelled, 0: labelled[labelled > 0], -1: labelled[labelled < frames - 1]}
    cached = {}
    targets = rng.integers(0, 3, chunks)

    def normal(z, parameters):
        if norm is None:
            return z
        running = np.zeros(2), np.ones(2)
        return tl.batch_norm(z, parameters["gamma"], parameters["beta"], *running, mode=norm)

    def without(t, which):
        parts = t.reshape(chunks, frames, *t.shape[1:])
        kept = parts[:, 1:] if which == 0 else parts[:, :-1]
        return kept.reshape(-1, *t.shape[1:])

    def kept(term, role, marked, live):
        if live == "all":
            cached[role] = term.data.copy()
            return term
        open_ = np.zeros(marked.shape, bool) if live == "rest" or live[0] != role else (
            marked == live[1])
        return tl.Tensor(np.where(open_[:, None, None, None], term.data, cached[role]))

    def program(parameters, live="all", seen=None):
        h = tl.tanh(normal(tl.conv2d(tl.Tensor(x), parameters["enter"], padding=1), parameters))
        skipped = h if skip != "projected" else normal(tl.conv2d(h, parameters["projection"]),
                                                       parameters)
        now = without(h, 0) if left_out else h
        residual = normal(tl.conv2d(now, parameters["branch"], padding=1), parameters)
        before, brought = skipped, marks[None]
        if skip == "conv":
            before, brought = normal(tl.conv2d(without(h, -1), parameters["carry"]),
                                     parameters), marks[-1]
        spatial = without(skipped, 0) if left_out else skipped
        here = marks[0] if left_out else marks[None]
        terms = []
        for term, role, marked in ((residual, RESIDUAL, here), (spatial, SPATIAL, here),
                                   (before, TEMPORAL, brought)):
            terms.append(kept(term, role, marked, live))
            if seen is not None:
                seen[term] = marked
        y = tl.block_join(*terms, frames=frames, first_left_out=left_out)
        y = tl.global_avg_pool(y).reshape(chunks, -1, channels).mean(axis=1)
        loss = tl.cross_entropy(y @ parameters["leave"], targets)
        return loss + (h * h).mean() * 0.3 if live in ("all", "rest") else loss  # round the joint

    names = {"enter", "branch", "leave"} | used[skip] | ({"gamma", "beta"} if norm else set())
    return {name: values[name] for name in sorted(names)}, program


@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("norm, skip, frames", [
    (None, "identity", 2), ("train", "identity", 3), ("train", "projected", 2),
    ("frozen", "projected", 3), ("train", "conv", 3)])
def test_each_part_is_the_derivative_along_its_path(skip, norm, frames, left_out):
    values, program = one_block(skip, norm, frames, left_out)
    tensors = {name: tl.Tensor(value, requires_grad=True) for name, value in values.items()}
    marks = {}
    found, grads = observed(lambda: program(tensors, seen=marks),
                            {t: name for name, t in tensors.items()}, marks)
    (record,) = found
    check_sums(found, grads)
    now, before = range(left_out, frames), range(frames - 1)
    expected = [(RESIDUAL, t) for t in now] + [(SPATIAL, t) for t in now] + [
        (TEMPORAL, t) for t in before]
    assert [(p["role"], p["frame"]) for p in record.parts] == expected
    assert "leave" not in record.parameters
    constants = {name: tl.Tensor(value) for name, value in values.items()}
    for name, entry in record.parameters.items():
        for live, part in zip([*expected, "rest"], [*entry["parts"], entry["rest"]], strict=True):
            numeric = numerical_gradient(lambda live=live: program(constants, live).item(),
                                         values[name], entry["where"][:3])
            np.testing.assert_allclose(part["values"][:3], numeric, rtol=1e-7, atol=1e-9,
                                       err_msg=f"{name} by {live}")
    open_to_all = [p["norm"] for p in record.parameters["enter"]["parts"]]
    assert min(open_to_all) > 0 and record.parameters["enter"]["rest"]["norm"] > 0


@given(seed=st.integers(0, 2**31), chunks=st.integers(1, 3), frames=st.integers(1, 4),
       left_out=st.booleans(), skip_whole=st.booleans(), before_whole=st.booleans(),
       same=st.booleans())
def test_any_join(seed, chunks, frames, left_out, skip_whole, before_whole, same):
    """Terms of whole or live frames, leaves themselves, one tensor perhaps in two parts."""
    left_out = left_out and frames > 1
    rng = np.random.default_rng(seed)
    kept = frames - left_out
    counts = [kept, frames if skip_whole else kept, frames if before_whole else frames - 1]
    terms = [tl.Tensor(rng.standard_normal((chunks * n, 1, 2, 2)), requires_grad=True)
             for n in counts[: 3 if frames > 1 else 2]]
    if same and skip_whole and before_whole and frames > 1:
        terms[2] = terms[1]
    grad = rng.standard_normal((chunks * kept, 1, 2, 2))
    names = {t: str(i) for i, t in enumerate(terms)}
    found, grads = observed(lambda: tl.block_join(*terms, frames=frames, first_left_out=left_out)
                            * 2.0, names, grad=grad)
    (record,) = found
    for name, entry in record.parameters.items():
        assert entry["error"] <= ROUNDING and entry["rest"]["norm"] == 0
        assert entry["whole"]["norm"] == np.linalg.norm(grads[name])
        assert sum(p["share"] for p in entry["parts"]) == pytest.approx(1, abs=ROUNDING)
    assert {p["role"] for p in record.parts} <= {RESIDUAL, SPATIAL, TEMPORAL}


def small():
    """Two blocks that share one weight: its tensor, the input and the program."""
    rng = np.random.default_rng(0)
    x = tl.Tensor(rng.standard_normal((4, 3, 3, 2)), requires_grad=True)
    w = tl.Tensor(rng.standard_normal((3, 3, 2, 2)), requires_grad=True)

    def program():
        y = tl.block_join(tl.conv2d(x, w, padding=1), x, x, frames=2)
        y = tl.block_join(tl.conv2d(y, w, padding=1), y)
        return (y * y).mean()

    return x, w, program


def test_a_shared_weight_and_a_tensor_without_frames():
    x, w, program = small()
    found, grads = observed(program, {x: "x", w: "w"}, {x: np.asarray([0, 1, 0, 1])})
    check_sums(found, grads)
    first, second = found
    assert first.parameters["w"]["rest"]["norm"] > 0  # by the second block's own branch
    assert first.parameters["x"]["rest"]["norm"] == second.parameters["w"]["rest"]["norm"] == 0
    found, _ = observed(program, {x: "x", w: "w"})
    assert [(p["role"], p["frame"]) for p in found[0].parts] == [
        (RESIDUAL, None), (SPATIAL, None), (TEMPORAL, None)]


def test_nothing_is_left_behind():
    x, w, program = small()
    with tl.unfused():
        loss = program()
    nodes, called = walked(loss), []
    w.grad = kept = np.ones(w.shape)
    w.register_hook(called.append)
    loss.register_hook(called.append)

    class Count(tl.Observer):
        def accumulate(self, *_):
            raise AssertionError("walks of the ledger are nobody else's")

        backward = deposit = start = accumulate

    with tl.observe(Count()):
        found = ledger.ledgers(loss, np.ones(()), nodes, {w: "w"}, lambda t: None,
                               lambda node: ("", 0))
    assert len(found) == 2 and not called
    assert w.grad is kept and x.grad is None and (kept == 1).all()
    loss.backward()
    assert len(called) == 2 and x.grad is not None
    np.testing.assert_allclose((w.grad - 1).reshape(-1)[found[0].parameters["w"]["where"]],
                               found[0].parameters["w"]["whole"]["values"], rtol=1e-12)


def walked(root):
    """The nodes of a walk from `root`, none released."""
    grads = {}
    seen = []
    for step in tl.walk(root, retain_graph=True):
        seen.append(step.node)
        for leaf in step.node.inputs:
            if leaf is not None and leaf.node is None and leaf not in grads:
                grads[leaf] = leaf.grad
    for leaf in grads:
        leaf.grad = None
    return seen


class Clipped(Function):
    """x; whose backward is not linear."""

    @staticmethod
    def forward(ctx, x):
        return x.copy()

    @staticmethod
    def backward(ctx, grad):
        return np.clip(grad, -1e-3, 1e-3)


def test_a_backward_that_is_not_linear_shows():
    rng = np.random.default_rng(0)
    x = tl.Tensor(rng.standard_normal((2, 3, 3, 2)), requires_grad=True)

    def program():
        y = Clipped.apply(x)
        return (tl.block_join(y * 3.0, y) ** 2.0).sum()

    found, _ = observed(program, {x: "x"})
    assert found[0].parameters["x"]["error"] > 0.1


def test_float32_is_added_up_in_float64():
    model = network("identity", 2).to(dtype=np.float32)
    x = tl.Tensor(np.random.default_rng(1).standard_normal((3, 2, 32, 32, 3)).astype(np.float32))
    names = {p: name for name, p in model.named_parameters()}
    found, _ = observed(lambda: tl.cross_entropy(model(x), np.asarray([0, 1, 2])), names,
                        {x: labels.along_axis(x.shape, 1)})
    errors = [e["error"] for record in found for e in record.parameters.values()]
    assert ROUNDING < max(errors) < 1e-3


def test_what_is_not_finite_is_null():
    x, w, program = small()
    found, _ = observed(program, {w: "w"}, grad=np.asarray(np.nan))
    entry = found[-1].parameters["w"]
    assert entry["error"] is None and entry["whole"]["values"] == [None] * ledger.SHOWN
    json.dumps(entry, allow_nan=False)


def test_a_sum_without_names_and_a_fused_one():
    rng = np.random.default_rng(0)
    x, y = (tl.Tensor(rng.standard_normal((4, 2, 2, 1)), requires_grad=True) for _ in range(2))
    found, _ = observed(lambda: (tl.temporal_skip(y, x, 2) ** 2.0).sum(), {x: "x", y: "y"})
    assert [p["role"] for p in found[0].parts] == [ledger.UNNAMED, TEMPORAL]
    assert ledger.find_joints(walked(tl.block_join(x, y).sum())) == []


def test_progress_and_the_choice_of_joints():
    x, w, program = small()
    with tl.unfused():
        loss = program()
    nodes, told = walked(loss), []
    joints = ledger.find_joints(nodes)
    assert [node.rank for node in joints] == sorted((n.rank for n in joints), reverse=True)
    found = ledger.ledgers(loss, np.ones(()), nodes, {w: "w"}, lambda t: None,
                           lambda node: ("", node.rank), joints[:1],
                           lambda *done: told.append(done))
    assert [record.op for record in found] == [joints[0].rank]
    assert told == [(0, 1), (1, 1)]
