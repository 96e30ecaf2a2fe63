"""Module: names and their order, sharing, buffers, state, modes, and the errors of each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite import Tensor
from tensorlite.nn import BatchNorm2d, Linear, Module, ModuleList, Parameter, ReLU, Sequential


class Unit(Module):
    """A linear map followed by a norm."""

    def __init__(self, cin: int, cout: int) -> None:
        self.conv1 = Linear(cin, cout, bias=False, rng=1)
        self.norm1 = BatchNorm2d(cout)


class Network(Module):
    """Nested modules, a parameter of its own, and a parameter and a module reached twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Parameter(np.float32([2.0]))
        self.block = Sequential(Unit(3, 4), Unit(4, 4))
        self.shared = self.block[0]
        self.tied = self.scale
        self.fc = Linear(4, 2, rng=2)


NAMES = [
    "scale",
    "block.0.conv1.weight",
    "block.0.norm1.gamma",
    "block.0.norm1.beta",
    "block.1.conv1.weight",
    "block.1.norm1.gamma",
    "block.1.norm1.beta",
    "fc.weight",
    "fc.bias",
]
BUFFERS = [f"block.{i}.norm1.running_{what}" for i in (0, 1) for what in ("mean", "var")]


def test_names_follow_the_attributes_and_shared_parts_come_once():
    network = Network()
    assert [name for name, _ in network.named_parameters()] == NAMES
    assert [name for name, _ in network.named_buffers()] == BUFFERS
    assert list(network.state_dict()) == NAMES + BUFFERS
    assert [id(p) for p in network.parameters()] == [id(p) for _, p in network.named_parameters()]
    assert [name for name, _ in network.named_modules()][:4] == [
        "",
        "block",
        "block.0",
        "block.0.conv1",
    ]
    assert dict(network.named_parameters())["block.1.conv1.weight"] is network.block[1].conv1.weight


def test_a_cycle_of_modules_is_walked_once():
    child = ReLU()
    child.parent = parent = Sequential(child)
    assert [name for name, _ in parent.named_modules()] == ["", "0"]


@given(st.recursive(st.none(), lambda children: st.lists(children, max_size=3), max_leaves=12))
def test_every_leaf_of_any_tree_is_named_by_its_path(tree):
    def build(node):
        if node is None:
            return Linear(1, 1, bias=False, rng=0)
        return ModuleList(build(child) for child in node)

    def paths(node, path=()):
        if node is None:
            return [".".join((*path, "weight"))]
        return [p for i, child in enumerate(node) for p in paths(child, (*path, str(i)))]

    assert [name for name, _ in build(tree).named_parameters()] == paths(tree)


def test_module_list_and_sequential():
    first, second = Linear(2, 3, rng=0), Linear(3, 1, rng=1)
    row = ModuleList([first]).append(second)
    assert len(row) == 2 and list(row) == [first, second] and row[-1] is second
    with pytest.raises(IndexError):
        row[2]
    with pytest.raises(TypeError, match="ModuleList: expected a Module, got int"):
        ModuleList([3])
    with pytest.raises(NotImplementedError, match="ModuleList defines no forward"):
        row(Tensor(np.ones((1, 2), np.float32)))
    x = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    hidden = np.maximum(x @ first.weight.data + first.bias.data, 0)
    expected = hidden @ second.weight.data + second.bias.data
    result = Sequential(first, ReLU(), second)(Tensor(x))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_parts_that_would_have_no_name_are_refused():
    module = Module()
    with pytest.raises(TypeError, match="Module.layers: .* inside a list .* use ModuleList"):
        module.layers = [ReLU()]
    module.weight = Parameter(np.ones(2, np.float32))
    with pytest.raises(TypeError, match="Module.weight is a Parameter, got ndarray"):
        module.weight = np.zeros(2, np.float32)
    module.weight = Parameter(np.zeros(2, np.float32))
    module.weight = None
    assert list(module.parameters()) == []


def test_buffers_are_kept_by_reference_and_never_trained():
    module, running = Module(), np.zeros(3)
    module.register_buffer("running", running)
    assert module.running is running
    assert list(module.parameters()) == []
    module.running = np.ones(3)
    np.testing.assert_array_equal(dict(module.named_buffers())["running"], 1)
    with pytest.raises(ValueError, match="Module: attribute 'training' is already taken"):
        module.register_buffer("training", running)
    with pytest.raises(ValueError, match="'a.b' cannot be an attribute's name"):
        module.register_buffer("a.b", running)
    with pytest.raises(TypeError, match="Module.mean: expected an array, got list"):
        module.register_buffer("mean", [0.0])
    assert Module._buffers == ()


def test_modes_reach_every_module():
    network = Network()
    assert all(module.training for module in network.modules())
    assert network.eval() is network
    assert not any(module.training for module in network.modules())
    assert all(module.training for module in network.train().modules())
    network.block.requires_grad_(False)
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert trained == ["scale", "fc.weight", "fc.bias"]


def test_zero_grad_forgets_every_gradient():
    layer = Linear(2, 1, rng=0)
    layer(Tensor(np.ones((3, 2), np.float32))).sum().backward()
    assert layer.weight.grad is not None
    layer.zero_grad()
    assert layer.weight.grad is None and layer.bias.grad is None


def test_state_is_copied_out_and_in():
    source, target = Network(), Network()
    for array in (*(p.data for p in source.parameters()), *dict(source.named_buffers()).values()):
        array[...] = np.random.default_rng(array.size).standard_normal(array.shape)
    state = source.state_dict()
    weight, running = target.fc.weight.data, target.block[0].norm1.running_var
    report = target.load_state_dict(state)
    assert report.missing == () and report.unexpected == ()
    assert target.fc.weight.data is weight and target.block[0].norm1.running_var is running
    for name, array in target.state_dict().items():
        np.testing.assert_array_equal(array, state[name], strict=True)
    state["fc.weight"][...] = 7
    assert not (source.fc.weight.data == 7).any() and not (target.fc.weight.data == 7).any()


def test_loading_refuses_by_name_and_changes_nothing():
    network = Network()
    before = network.state_dict()

    def refused(message, **changes):
        state = {name: array + 1 for name, array in before.items()} | changes
        state = {name: array for name, array in state.items() if array is not None}
        with pytest.raises(ValueError, match=message) as caught:
            network.load_state_dict(state)
        assert "\n" not in str(caught.value)
        for name, array in network.state_dict().items():
            np.testing.assert_array_equal(array, before[name])

    refused(r"Network: fc.weight has shape \(2, 4\), expected \(4, 2\)",
            **{"fc.weight": np.ones((2, 4))})
    refused(r"Network: names 1 missing \(fc.bias\)$", **{"fc.bias": None})
    refused(r"Network: names 1 unexpected \(fc.extra\)$", **{"fc.extra": np.ones(2)})
    refused(r"1 missing \(fc.bias\) and 1 unexpected \(bias\)",
            **{"fc.bias": None, "bias": np.ones(2)})
    refused(r"5 missing \(scale, .*, …\)", **dict.fromkeys(NAMES[:5]))
    refused("scale has dtype complex128, expected float32", scale=np.ones(1, complex))


@pytest.mark.parametrize(
    ("value", "kind"), [([1.0, 2.0], "list"), (None, "NoneType"), ("torch", "torch.Tensor")]
)
def test_loading_what_is_no_array_is_refused_by_name(value, kind: str):
    if value == "torch":
        value = pytest.importorskip("torch").ones(2)
    layer = Linear(2, 2, rng=0)
    before = layer.state_dict()
    with pytest.raises(ValueError, match=f"^state of Linear: bias is a {kind}, expected an array"):
        layer.load_state_dict({"weight": np.ones((2, 2)), "bias": value})
    np.testing.assert_array_equal(layer.weight.data, before["weight"])


def test_loading_loosely_reports_what_it_passed_over():
    network = Network()
    bias = network.fc.bias.data.copy()
    state = {"fc.weight": np.full((4, 2), 3.0), "other": np.ones(2)}
    report = network.load_state_dict(state, strict=False)
    assert report.unexpected == ("other",)
    assert set(report.missing) == set(NAMES + BUFFERS) - {"fc.weight"}
    assert (network.fc.weight.data == 3).all() and network.fc.weight.dtype == np.float32
    np.testing.assert_array_equal(network.fc.bias.data, bias)
    with pytest.raises(ValueError, match="fc.bias has shape"):
        network.load_state_dict({"fc.bias": np.ones(3)}, strict=False)


def test_to_changes_the_dtype_of_parameters_and_buffers():
    network = Network().to(dtype=np.float64)
    assert {array.dtype for array in network.state_dict().values()} == {np.dtype(np.float64)}
    assert network.block[0].norm1.running_mean.dtype == np.float64
    assert network.to("cpu") is network
    with pytest.raises(ValueError, match="device"):
        network.to("gpu")


def test_repr_is_a_tree():
    assert repr(Sequential(Unit(3, 4), ReLU())) == (
        "Sequential(\n"
        "  (0): Unit(\n"
        "    (conv1): Linear(3, 4, bias=False)\n"
        "    (norm1): BatchNorm2d(4, momentum=0.1, eps=1e-05)\n"
        "  )\n"
        "  (1): ReLU()\n"
        ")"
    )
