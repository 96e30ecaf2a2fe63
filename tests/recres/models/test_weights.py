"""Pre-trained weights find their place from every naming, and what does not belong is refused."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

import tensorlite.io as tio
from recres.errors import InputError
from recres.models import average_pooling, recurrent_resnet, resnet18, resnet34, resnet50, resnet101
from recres.models.weights import load_pretrained

WIDTH = 4
RNG = np.random.default_rng(5)
SHARED_FILE = "resnet50_conv1-4.npz"


def small(make=resnet50, classes=3, **options):
    return make(classes=classes, width=WIDTH, rng=0, **options)


def random_state(model) -> dict[str, np.ndarray]:
    """Arrays that a model like this one might have learned; variances are positive."""
    return {
        name: RNG.uniform(0.5, 1.5, array.shape).astype("f4")
        for name, array in model.state_dict().items()
    }


def torch_named(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state of ours in torchvision's names and layout, its counters and all."""
    named = {}
    for name, array in state.items():
        for ours, theirs in {
            "block": "layer",
            "shortcut.conv.": "downsample.0.",
            "shortcut.norm.": "downsample.1.",
            "norm": "bn",
            "gamma": "weight",
            "beta": "bias",
        }.items():
            name = name.replace(ours, theirs)
        if name.endswith("running_var"):
            named[name.replace("running_var", "num_batches_tracked")] = np.array(7)
        named[name] = array.transpose((3, 2, 0, 1)) if array.ndim == 4 else array.T
    return named


def keras_named(state: dict[str, np.ndarray], form: str) -> dict[str, np.ndarray]:
    """A state of ours in one of Keras' namings, every convolution with a bias."""
    named = {}
    letters = "abcdefghijklmnopqrstuvwxyz"
    for name, array in state.items():
        unit, _, leaf = name.rpartition(".")
        conv_like = unit.replace("norm", "conv")
        part = "bn" if "norm" in unit else "conv"
        if match := re.match(r"block(\d)\.(\d+)\.(?:conv(\d)|shortcut)", conv_like):
            stage, block, place = int(match[1]) + 1, int(match[2]), int(match[3] or 0)
            branch = ("1", "2a", "2b", "2c")[place]
            layer = {
                "npz": f"conv{stage}_block{block + 1}_{place}",
                "new": f"conv{stage}_block{block + 1}_{place}_{part}",
                "old": f"{'bn' if part == 'bn' else 'res'}{stage}{letters[block]}_branch{branch}",
            }[form]
        elif unit == "fc":
            layer = {"npz": "predictions", "new": "predictions", "old": "fc1000"}[form]
        else:
            layer = {"npz": "conv1", "new": f"conv1_{part}", "old": "conv1"}[form]
            if form == "old" and part == "bn":
                layer = "bn_conv1"
        terms = {
            "npz": {"running_mean": "mean", "running_var": "var"},
            "new": {
                "weight": "kernel",
                "running_mean": "moving_mean",
                "running_var": "moving_variance",
            },
            "old": {"weight": "W", "bias": "b", "running_var": "running_std"},
        }[form]
        term = terms.get(leaf, leaf)
        if form == "npz" and array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        if form == "npz" and array.ndim == 2:
            array = array.T
        path = {"npz": term, "new": f"{layer}/{term}:0", "old": f"{layer}_{term}_1:0"}[form]
        named[f"{layer}/{path}"] = array
        if leaf == "weight" and unit != "fc":
            bias = {"npz": "bias", "new": f"{layer}/bias:0", "old": f"{layer}_b_1:0"}[form]
            outputs = state[name].shape[-1]
            named[f"{layer}/{bias}"] = RNG.uniform(-1, 1, outputs).astype("f4")
    return named


def write(path, arrays):
    if path.suffix == ".safetensors":
        tio.save_safetensors(path, arrays, {"format": "pt"})
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return path


def quiet(_: str) -> None:
    pass


def assert_refused(model, path, *words: str) -> None:
    """One line that names the file and every one of `words`; the model is as it was."""
    before = model.state_dict()
    with pytest.raises(InputError) as caught:
        load_pretrained(model, path, quiet)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    for word in words:
        assert word in message, message
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("make", [resnet18, resnet50])
def test_torchvision_names(tmp_path, make):
    model = small(make, version="v1.5")
    state = random_state(model)
    path = write(tmp_path / "net.safetensors", torch_named(state))
    report = load_pretrained(model, path, quiet)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)
    assert (report.version, report.input_convention, report.eps) == ("v1.5", "torch", 1e-5)
    assert set(report.loaded) == set(state)
    assert report.initialised == report.unused == ()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("zip_form", [False, True])
def test_a_file_that_pytorch_saved(tmp_path, nested, zip_form):
    torch = pytest.importorskip("torch")
    model = small(version="v1.5")
    state = random_state(model)
    saved = {
        name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in torch_named(state).items()
    }
    if nested:
        saved = {"epoch": 3, "state_dict": {f"module.{name}": t for name, t in saved.items()}}
    path = tmp_path / "net.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=zip_form)
    load_pretrained(model, path, quiet)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


@pytest.mark.parametrize("form", ["npz", "new", "old"])
def test_keras_names_with_biases_and_eps(tmp_path, form):
    model = small(version="v1")
    state = random_state(model)
    named = keras_named(state, form)
    path = write(tmp_path / ("net.npz" if form == "npz" else "net.h5"), named)
    report = load_pretrained(model, path, quiet)
    assert (report.version, report.input_convention, report.eps) == ("v1", "caffe", 1.001e-5)
    assert report.initialised == report.unused == ()
    loaded = model.state_dict()
    biases = {  # in the order of the convolutions
        name.rpartition("/")[0].split("/")[0]: array
        for name, array in named.items()
        if re.search(r"(/bias|_b_1)(:0)?$", name) and not name.startswith(("pred", "fc"))
    }
    convolutions = [name for name in state if "conv" in name]
    assert len(biases) == len(convolutions) == 53
    for (_, bias), conv in zip(biases.items(), convolutions, strict=True):
        np.testing.assert_array_equal(loaded[conv], state[conv], err_msg=conv)
        # the norm of x + bias in the source is the norm of x here
        norm = conv.removesuffix(".weight").replace("conv", "norm")
        source = {leaf: state[f"{norm}.{leaf}"].astype("f8") for leaf in STATISTICS}
        here = {leaf: loaded[f"{norm}.{leaf}"].astype("f8") for leaf in STATISTICS}
        x = RNG.normal(size=(9, len(bias)))
        np.testing.assert_allclose(
            normalised(x, here, 1e-5), normalised(x + bias, source, 1.001e-5), rtol=0, atol=2e-6
        )
    for name in ("fc.weight", "fc.bias"):
        np.testing.assert_array_equal(loaded[name], state[name])


STATISTICS = ("gamma", "beta", "running_mean", "running_var")


def normalised(x, norm, eps):
    centred = (x - norm["running_mean"]) / np.sqrt(norm["running_var"] + eps)
    return norm["gamma"] * centred + norm["beta"]


def test_the_sources_eps_reaches_a_dead_channel(tmp_path):
    model = small()
    state = random_state(model)
    state["norm1.running_var"][:] = 0
    load_pretrained(model, write(tmp_path / "net.npz", keras_named(state, "npz")), quiet)
    variance = model.state_dict()["norm1.running_var"] + model.norm1.eps
    np.testing.assert_allclose(variance, 1.001e-5, rtol=1e-6)


def test_caffes_names_of_deep_stages(tmp_path):
    model = small(resnet101)
    state = random_state(model)
    named = {}
    for name, array in keras_named(state, "old").items():  # a, b, c … as a, b1, b2 …
        rename = r"(res|bn)4([b-z])_", lambda m: f"{m[1]}4b{ord(m[2]) - ord('a')}_"
        named[re.sub(*rename, name)] = array
    assert "res4b22_branch2a/res4b22_branch2a_W_1:0" in named
    load_pretrained(model, write(tmp_path / "net.npz", named), quiet)
    np.testing.assert_array_equal(
        model.state_dict()["block3.22.conv1.weight"], state["block3.22.conv1.weight"]
    )


@pytest.mark.parametrize("metadata", [None, {"version": "v1", "input_convention": "caffe"}])
def test_a_checkpoint_of_ours(tmp_path, metadata):
    trained = small(recurrent_resnet, depth=50, skip="conv")
    state = random_state(trained)
    tio.save_safetensors(tmp_path / "checkpoint.safetensors", state, metadata)
    model = small(recurrent_resnet, depth=50, skip="conv")
    report = load_pretrained(model, tmp_path / "checkpoint.safetensors", quiet)
    assert report.version == "v1" and report.eps is None
    assert report.input_convention == (metadata and "caffe")
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)
    if metadata:
        other = small(recurrent_resnet, depth=50, version="v1.5")
        assert_refused(other, tmp_path / "checkpoint.safetensors", "v1", "'v1.5'")


@pytest.mark.parametrize(
    ("make", "stays"),
    [
        (recurrent_resnet, {"block4.1.temporal", "block4.2.temporal"}),
        (average_pooling, set()),
    ],
)
def test_models_for_video_take_an_image_networks_weights(tmp_path, make, stays):
    options = {"skip": "conv_nonlinear"} if stays else {}
    state = random_state(small())
    path = write(tmp_path / "net.npz", keras_named(state, "npz"))
    model = small(make, depth=50, context=3, **options)
    before = model.state_dict()
    report = load_pretrained(model, path, quiet)
    assert set(report.loaded) == set(state)
    assert {name.split(".conv.")[0].split(".norm.")[0] for name in report.initialised} == stays
    for name in report.initialised:
        np.testing.assert_array_equal(model.state_dict()[name], before[name])


def test_basic_blocks_have_no_version(tmp_path):
    for version in ("v1", "v1.5"):
        model = small(resnet34, version=version)
        state = random_state(model)
        load_pretrained(model, write(tmp_path / "t.npz", torch_named(state)), quiet)
        np.testing.assert_array_equal(
            model.state_dict()["block4.2.conv2.weight"], state["block4.2.conv2.weight"]
        )


def test_weights_of_the_other_version_are_refused(tmp_path):
    state = random_state(small())
    keras = write(tmp_path / "k.npz", keras_named(state, "npz"))
    torch = write(tmp_path / "t.npz", torch_named(state))
    assert_refused(small(version="v1.5"), keras, "Keras", "v1", "'v1.5'")
    assert_refused(small(version="v1"), torch, "torchvision", "v1.5", "'v1'")


def test_a_classifier_of_other_classes_stays_and_is_listed(tmp_path):
    state = random_state(small(classes=10))
    model = small(classes=3, version="v1.5")
    before = model.state_dict()
    said: list[str] = []
    path = write(tmp_path / "t.npz", torch_named(state))
    report = load_pretrained(model, path, said.append)
    assert set(report.initialised) == {"fc.weight", "fc.bias"}
    assert set(report.unused) == {"fc.weight", "fc.bias"}
    np.testing.assert_array_equal(model.state_dict()["fc.weight"], before["fc.weight"])
    text = "\n".join(said)
    assert str(path) in text and "ResNet v1.5, torch input" in text
    assert "loaded: conv1, block1–block4 (265 arrays)" in text
    assert "stayed initialised: fc (2 arrays)" in text
    assert "not used from the file: fc" in text


def test_absent_parts_stay_and_norms_go_with_their_convolution(tmp_path):
    named = keras_named(random_state(small()), "npz")
    for layer in ("conv5_block1_2", "conv5_block3_3", "conv4_block1_0"):
        del named[f"{layer}/weight"], named[f"{layer}/bias"]
    named = {k: v for k, v in named.items() if not k.startswith(("predictions", "conv5_block2"))}
    model = small()
    before = model.state_dict()
    report = load_pretrained(model, write(tmp_path / "k.npz", named), quiet)
    after = model.state_dict()
    for norm in ("block4.0.norm2", "block4.2.norm3", "block3.0.shortcut.norm", "block4.1.norm1"):
        for statistic in STATISTICS:
            assert f"{norm}.{statistic}" in report.initialised
            np.testing.assert_array_equal(
                after[f"{norm}.{statistic}"], before[f"{norm}.{statistic}"]
            )
    assert "conv5_block1_2/gamma" in report.unused and len(report.unused) == 12
    text = str(report)
    assert "loaded: conv1, block1–block2, block3.0.conv1–block3.0.conv3, block3.1–block3.5" in text
    stayed = "block3.0.shortcut, block4.0.conv2, block4.1, block4.2.conv3, fc"
    assert f"stayed initialised: {stayed}" in text


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"conv1.0.weight": np.zeros((2, 3, 3, 3))}, ["plain ResNet", "conv1.0.weight"]),
        ({"layer1.0.se.fc1.weight": np.zeros((2, 3, 1, 1))}, ["layer1.0.se.fc1.weight"]),
        ({"layer2.0.downsample.2.bias": np.zeros(3)}, ["layer2.0.downsample.2.bias"]),
        ({"layer1.0.conv2.weight": np.zeros((4, 1, 3, 3))}, ["layer1.0.conv2", "(3, 3, 1, 4)"]),
        ({"fc.weight": np.zeros((3, 5))}, ["fc.weight", "(5, 3)"]),
        ({"fc.bias": np.zeros(4)}, ["fc.bias", "(4,)"]),
        ({"bn1.bias": np.full(4, np.nan)}, ["bn1.bias", "finite"]),
        ({"bn1.bias": np.full(4, 1e300)}, ["bn1.bias", "finite"]),
        ({"layer1.0.bn1.running_var": np.full(4, -1.0)}, ["layer1.0.bn1.running_var", "variance"]),
        ({"layer3.6.conv1.weight": np.zeros((16, 64, 1, 1))}, ["7 residual blocks", "block3", "6"]),
    ],
)
def test_another_network_is_refused_by_name(tmp_path, extra, words):
    named = {**torch_named(random_state(small())), **extra}
    assert_refused(small(version="v1.5"), write(tmp_path / "t.npz", named), *words)


def test_half_a_norm_is_refused(tmp_path):
    named = torch_named(random_state(small()))
    del named["layer2.0.bn1.running_mean"]
    path = write(tmp_path / "t.npz", named)
    assert_refused(small(version="v1.5"), path, "block2.0.norm1", "running_mean")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"conv2_block1_preact_bn/gamma": np.zeros(4)}, ["ResNet v1", "conv2_block1_preact_bn"]),
        ({"conv1_conv/kernel": np.zeros((7, 7, 3, 4))}, ["conv1/weight", "conv1_conv/kernel"]),
        ({"conv1/bias": np.zeros(5)}, ["bias of conv1"]),
        ({"conv1/moving_median": np.zeros(4)}, ["conv1/moving_median"]),
    ],
)
def test_another_keras_network_is_refused(tmp_path, extra, words):
    named = {**keras_named(random_state(small()), "npz"), **extra}
    assert_refused(small(), write(tmp_path / "k.npz", named), *words)


def test_another_depth_is_refused(tmp_path):
    deep = write(tmp_path / "deep.npz", torch_named(random_state(small(resnet101))))
    assert_refused(small(version="v1.5"), deep, "another depth", "23", "block3", "6")
    flat = write(tmp_path / "flat.npz", torch_named(random_state(small())))
    assert_refused(small(resnet101, version="v1.5"), flat, "another depth", "6", "block3", "23")
    basic = write(tmp_path / "basic.npz", torch_named(random_state(small(resnet34))))
    assert_refused(small(version="v1.5"), basic, "layer1.0.conv1.weight", "(3, 3, 4, 4)")


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"weight": np.zeros(3)},
        {"dense_1/kernel": np.zeros((3, 3))},
        {"layer1.0.bn1.weight": np.zeros(4)},
    ],
)
def test_files_with_nothing_for_the_model(tmp_path, arrays):
    assert_refused(small(version="v1.5"), write(tmp_path / "a.npz", arrays))


def test_files_that_cannot_be_read(tmp_path):
    assert_refused(small(), tmp_path / "absent.pth", "no such file")
    (tmp_path / "a.pth").write_bytes(b"\x80\x02cos\nsystem\n.")
    assert_refused(small(), tmp_path / "a.pth", "os.system")
    assert_refused(small(), tmp_path / "a.ckpt", ".ckpt")


def test_the_hash_in_the_name_is_checked(tmp_path):
    model = small(version="v1.5")
    named = torch_named(random_state(model))
    path = write(tmp_path / "t.safetensors", named)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    good = path.rename(tmp_path / f"resnet50-{digest}.safetensors")
    load_pretrained(model, good, quiet)
    wrong = "00000000" if digest != "00000000" else "11111111"
    bad = good.rename(tmp_path / f"resnet50-{wrong}.safetensors")
    assert_refused(model, bad, "sha256", wrong)


def test_the_shared_weights_load_up_to_conv4(shared):
    path = shared / "weights" / SHARED_FILE
    if not path.exists():
        pytest.skip(f"{SHARED_FILE} is not beside the checkout")
    model = recurrent_resnet(50, classes=7, version="v1", rng=0)
    before = model.state_dict()
    report = load_pretrained(model, path, quiet)
    assert (report.version, report.input_convention) == ("v1", "caffe")
    complete = [n for n in before if n.startswith(("conv1", "norm1", "block1", "block2", "block3"))]
    first = [n for n in before if n.startswith(("block4.0.conv1", "block4.0.norm1"))]
    assert set(report.loaded) == {*complete, *first}
    after = model.state_dict()
    with np.load(path) as source:
        np.testing.assert_array_equal(
            after["block3.5.conv2.weight"], source["conv4_block6_2/weight"].transpose(2, 3, 1, 0)
        )
        np.testing.assert_array_equal(
            after["block2.0.shortcut.norm.running_mean"],
            source["conv3_block1_0/mean"] - source["conv3_block1_0/bias"],
        )
    for name in report.initialised:
        np.testing.assert_array_equal(after[name], before[name])
    with pytest.raises(InputError, match="v1.5"):
        load_pretrained(resnet50(7, version="v1.5"), path, quiet)
