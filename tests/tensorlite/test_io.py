"""Files in and out: what is read is what was written, and a hostile or damaged file is one line."""

from __future__ import annotations

import collections
import hashlib
import io
import json
import pickle
import struct
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tensorlite.io as tio
from tensorlite.io import limits, replacing
from tensorlite.io.torch_pickle import decode

RNG = np.random.default_rng(7)


# Pickles put together by hand, so that no test of the reader needs PyTorch


def text(string: str) -> bytes:
    data = string.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return b"I%d\n" % value


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def storage(key: str, size: int, kind: str = "FloatStorage", view: bytes = b"") -> bytes:
    kind_global = f"ctorch\n{kind}\n".encode()
    return tuple_of(
        text("storage"), kind_global, text(key), text("cpu"), number(size), view
    ) + b"Q"


def tensor(source: bytes, offset: int, shape: tuple, strides: tuple) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + tuple_of(
        source,
        number(offset),
        tuple_of(*map(number, shape)),
        tuple_of(*map(number, strides)),
        b"\x89",
        b"ccollections\nOrderedDict\n)R",
    ) + b"R"


def mapping(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(k.replace("__", ".")) + v for k, v in entries.items()) + b"u"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def zipped(pickled: bytes, storages=None, byteorder=None, method=zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        file.writestr("net/data.pkl", pickled)
        if byteorder is not None:
            file.writestr("net/byteorder", byteorder)
        for key, data in (storages or {}).items():
            file.writestr(f"net/data/{key}", data)
    return out.getvalue()


def legacy(pickled: bytes, storages: dict[str, np.ndarray] | None = None) -> bytes:
    magic = 0x1950A86A20F9469CFC6C
    data = b"".join(pickle.dumps(part, 2) for part in (magic, 1001, {"little_endian": True}))
    data += pickled + pickle.dumps(list(storages or {}), 2)
    for array in (storages or {}).values():
        data += struct.pack("<q", array.size) + array.tobytes()
    return data


def saved(folder: Path, data: bytes, name: str = "net.pth") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def refusal(path: Path) -> str:
    """The message of the FormatError, which is one line and starts with the file's name."""
    with pytest.raises(tio.FormatError) as caught:
        tio.load_arrays(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500
    return message.removeprefix(str(path))


# safetensors


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"])
def test_safetensors_keeps_numbers_types_and_shapes(tmp_path, dtype):
    arrays = {
        name: (RNG.normal(size=shape) * 50).astype(dtype)
        for name, shape in {"scalar": (), "none": (0, 3), "w": (2, 3, 4)}.items()
    }
    arrays["not contiguous"] = arrays["w"].T
    arrays["every other"] = arrays["w"][:, ::2]
    arrays["big-endian"] = arrays["w"].astype(np.dtype(dtype).newbyteorder(">"))
    path = tmp_path / "a.safetensors"
    tio.save_safetensors(path, arrays, {"version": "v1", "note": "two\nlines, ünïcode"})
    loaded, metadata = tio.load_safetensors(path)
    assert metadata == {"version": "v1", "note": "two\nlines, ünïcode"}
    assert loaded.keys() == arrays.keys() == tio.load_arrays(path).keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == np.dtype(dtype) and loaded[name].shape == array.shape
        np.testing.assert_array_equal(loaded[name], array)


def test_a_saved_file_has_the_permissions_of_any_other(tmp_path):
    tio.save_safetensors(tmp_path / "a.safetensors", {"w": np.ones(3)})
    usual = saved(tmp_path, b"", "usual")
    assert (tmp_path / "a.safetensors").stat().st_mode == usual.stat().st_mode


def test_safetensors_without_metadata(tmp_path):
    tio.save_safetensors(tmp_path / "a.safetensors", {})
    assert tio.load_safetensors(tmp_path / "a.safetensors") == ({}, {})


def test_sixteen_bit_safetensors_come_as_float32(tmp_path):
    half = np.array([1.5, -2.0, 65504.0], np.float16)
    upper = np.array([0x3FC0, 0xC000, 0x7F80], np.uint16)  # 1.5, -2, inf in bfloat16
    header = json.dumps(
        {
            "h": {"dtype": "F16", "shape": [3], "data_offsets": [0, 6]},
            "b": {"dtype": "BF16", "shape": [3, 1], "data_offsets": [6, 12]},
        }
    ).encode()
    data = struct.pack("<Q", len(header)) + header + half.tobytes() + upper.tobytes()
    loaded = tio.load_arrays(saved(tmp_path, data, "a.safetensors"))
    assert loaded["h"].dtype == loaded["b"].dtype == np.float32
    np.testing.assert_array_equal(loaded["h"], [1.5, -2, 65504])
    np.testing.assert_array_equal(loaded["b"], [[1.5], [-2], [np.inf]])


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    tio.save_safetensors(path, {"w": np.ones(3)})
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        tio.save_safetensors(path, {"w": np.zeros(3)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arrays", "metadata", "named"),
    [
        ({"w": np.zeros(1)}, {"epoch": 3}, "epoch"),
        ({"w": np.array(["a"])}, None, "'w'.*<U1"),
        ({"w": np.zeros(1, np.longdouble)}, None, "'w'"),
        ({3: np.zeros(1)}, None, "3"),
    ],
)
def test_what_safetensors_cannot_hold_is_named(tmp_path, arrays, metadata, named):
    with pytest.raises(TypeError, match=named):
        tio.save_safetensors(tmp_path / "a.safetensors", arrays, metadata)
    assert not list(tmp_path.iterdir())


def test_a_name_that_safetensors_keeps_for_itself_is_refused(tmp_path):
    with pytest.raises(ValueError, match="arrays: the name '__metadata__'"):
        tio.save_safetensors(tmp_path / "a.safetensors", {"__metadata__": np.zeros(1)})
    assert not any(tmp_path.iterdir())


# .npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    arrays = {
        "conv1/weight": RNG.normal(size=(2, 3)).astype("f4"),
        "fortran": np.asfortranarray(RNG.normal(size=(3, 4))),
        "big-endian": np.arange(3, dtype=">i4"),
        "scalar": np.float64(3),
        "none": np.zeros((0, 2)),
    }
    save(tmp_path / "a.npz", half=np.float16([1.5, 2]), **arrays)
    loaded = tio.load_arrays(tmp_path / "a.npz")
    assert loaded.pop("half").dtype == np.float32
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].shape == np.shape(array)


class Bomb:
    """Unpickled by Python's own unpickler, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_npz_of_pickled_objects_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "ran"
    np.savez(tmp_path / "a.npz", w=np.array([Bomb(trace)], dtype=object))
    assert "object" in refusal(tmp_path / "a.npz")
    assert not trace.exists()


def npy(header: str, data: bytes = b"") -> bytes:
    padded = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + data


def header(descr: str, shape: str) -> str:
    return f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(
    "header",
    [
        header("<f4", "(1000000000000,)"),
        header("<f4", "(4611686018427387904, 4611686018427387904)"),
        header("<f4", "(-1,)"),
        header("<f4", "(1,)"),
        header("|V0", "(4,)"),
        header("<f4", "(" * 4000),
    ],
)
def test_npy_headers_that_lie(tmp_path, header):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("w.npy", npy(header, bytes(8)))
    refusal(saved(tmp_path, out.getvalue(), "a.npz"))


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", w=np.zeros(2**18))
    assert tio.load_arrays(tmp_path / "a.npz")["w"].size == 2**18
    monkeypatch.setattr(limits, "ROOM", 2**20)
    assert "unpack" in refusal(tmp_path / "a.npz")


# .pth


@pytest.mark.parametrize("form", ["zip", "deflated", "legacy"])
def test_pth_strides_and_shared_storages(tmp_path, form):
    numbers = np.arange(12, dtype="<f4")
    body = mapping(
        plain=tensor(storage("0", 12), 0, (3, 4), (4, 1)),
        transposed=tensor(storage("0", 12), 0, (4, 3), (1, 4)),
        part=tensor(storage("0", 12), 5, (2, 2), (4, 2)),
        scalar=tensor(storage("0", 12), 11, (), ()),
        none=tensor(storage("0", 12), 0, (0, 4), (4, 1)),
        parameter=b"ctorch._utils\n_rebuild_parameter\n"
        + tuple_of(tensor(storage("1", 2, "LongStorage"), 0, (2,), (1,)), b"\x88", b"N")
        + b"R",
    )
    storages = {"0": numbers, "1": np.array([3, -4], "<i8")}
    if form == "legacy":
        data = legacy(program(body), storages)
    else:
        method = zipfile.ZIP_DEFLATED if form == "deflated" else zipfile.ZIP_STORED
        raw = {key: array.tobytes() for key, array in storages.items()}
        data = zipped(program(body), raw, method=method)
    loaded = tio.load_arrays(saved(tmp_path, data))
    grid = numbers.reshape(3, 4)
    np.testing.assert_array_equal(loaded["plain"], grid)
    np.testing.assert_array_equal(loaded["transposed"], grid.T)
    np.testing.assert_array_equal(loaded["part"], [[5, 7], [9, 11]])
    assert loaded["scalar"].shape == () and loaded["scalar"] == 11
    assert loaded["none"].shape == (0, 4)
    np.testing.assert_array_equal(loaded["parameter"], [3, -4])


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("FloatStorage", "f4", "f4"),
        ("DoubleStorage", "f8", "f8"),
        ("HalfStorage", "f2", "f4"),
        ("BFloat16Storage", "u2", "f4"),
        ("LongStorage", "i8", "i8"),
        ("IntStorage", "i4", "i4"),
        ("ShortStorage", "i2", "i2"),
        ("CharStorage", "i1", "i1"),
        ("ByteStorage", "u1", "u1"),
        ("BoolStorage", "u1", "?"),
    ],
)
@pytest.mark.parametrize("order", ["little", "big"])
def test_pth_storage_types_in_both_byte_orders(tmp_path, kind, dtype, expected, order):
    values = np.array([0, 1, 5], dtype)
    if kind == "BFloat16Storage":
        values = (np.array([0, 1, 5], "f4").view("u4") >> 16).astype("u2")
    raw = values.astype(values.dtype.newbyteorder(order)).tobytes()
    body = program(mapping(w=tensor(storage("0", 3, kind), 0, (3,), (1,))))
    w = tio.load_arrays(saved(tmp_path, zipped(body, {"0": raw}, order)))["w"]
    assert w.dtype == np.dtype(expected) and w.dtype.isnative
    np.testing.assert_array_equal(w, np.array([0, 1, 5]).astype(expected))


def test_pth_nested_in_a_checkpoint(tmp_path):
    one = tensor(storage("0", 2), 0, (2,), (1,))
    ignored = b"cargparse\nNamespace\n)\x81" + mapping(lr=text("0.1")) + b"b"
    body = mapping(
        epoch=number(3),
        args=ignored,
        optimizer=mapping(state=one),
        state_dict=mapping(module__conv1__weight=one, module__steps=number(4)),
    )
    data = zipped(program(body), {"0": np.float32([1, 2]).tobytes()})
    loaded = tio.load_arrays(saved(tmp_path, data))
    assert list(loaded) == ["conv1.weight"]
    np.testing.assert_array_equal(loaded["conv1.weight"], [1, 2])


def test_pth_from_python_2(tmp_path):
    one = tensor(storage("0", 2), 0, (2,), (1,)).replace(b"_tensor_v2", b"_tensor")
    pairs = b"](](U\x01w" + one + b"ee"
    body = b"ccollections\nOrderedDict\n" + tuple_of(pairs) + b"R"
    loaded = tio.load_arrays(saved(tmp_path, legacy(program(body), {"0": np.float32([1, 2])})))
    np.testing.assert_array_equal(loaded["w"], [1, 2])


@pytest.mark.parametrize(("metadata", "said"), [
    ({"": {"about": {"version": "v1"}}}, {"version": "v1"}),
    ({"": {"about": {"version": "v1", "depth": 50, 7: "seven"}}}, {"version": "v1"}),
    ({"": {"about": "v1"}}, {}), ({"": [1]}, {}), ({"": {"version": 1}}, {}), ("v1", {}),
])
def test_what_a_pth_says_of_itself(tmp_path, metadata, said):
    torch = pytest.importorskip("torch")
    state = collections.OrderedDict(w=torch.ones(2))
    state._metadata = metadata
    torch.save(state, tmp_path / "a.pth")
    arrays, about = tio.load_pth(tmp_path / "a.pth")
    assert list(arrays) == ["w"] and about == said


def hostile(trace: Path) -> dict[str, tuple[bytes, str]]:
    """Programs that Python's unpickler would run, and what the refusal must name."""
    command = text(f"touch {trace}")
    good = tensor(storage("0", 2), 0, (2,), (1,))
    return {
        "reduce": (b"cos\nsystem\n" + tuple_of(command) + b"R", "os.system"),
        "stack global": (text("builtins") + text("eval") + b"\x93", "builtins.eval"),
        "dotted": (text("torch") + text("serialization.os.system") + b"\x93", "os.system"),
        "not called": (b"cos\nsystem\n", "os.system"),
        "storage loader": (
            b"ctorch.storage\n_load_from_bytes\n" + tuple_of(b"C\x01x") + b"R",
            "torch.storage._load_from_bytes",
        ),
        "nested": (
            mapping(w=good, optimizer=mapping(x=b"cposix\nsystem\n" + tuple_of(command) + b"R")),
            "posix.system",
        ),
        "inst": (b"(" + command + b"ios\nsystem\n", "os system"),
        "obj": (b"(cos\nsystem\n" + command + b"o", "os.system"),
        "newobj": (b"csubprocess\nPopen\n" + tuple_of(command) + b"\x81", "subprocess.Popen"),
        "newobj_ex": (b"ccollections\nOrderedDict\n)}\x92", "NEWOBJ_EX"),
        "extension": (b"\x82\x01", "EXT1"),
        "extension 4": (b"\x84\x01\x00\x00\x00", "EXT4"),
        "build on a tensor": (good + mapping(shape=number(3)) + b"b", "_Tensor"),
        "build on a global": (b"ctorch\nSize\n" + mapping(a=number(3)) + b"b", "_Global"),
        "text persistent id": (b"Pfile\n", "PERSID"),
        "storage type called": (b"ctorch\nFloatStorage\n" + tuple_of(number(9)) + b"R", "Float"),
        "text called": (text("os.system") + tuple_of(command) + b"R", "str"),
        "whole module": (b"ctorchvision.models.resnet\nResNet\n)\x81}b", "resnet.ResNet"),
        "out-of-band buffer": (b"\x97", "NEXT_BUFFER"),
    }


@pytest.mark.parametrize("form", [zipped, legacy, lambda pickled: pickled])
@pytest.mark.parametrize("case", hostile(Path("x")))
def test_hostile_pickles_are_refused_by_name_and_not_run(tmp_path, case, form):
    trace = tmp_path / "ran"
    body, named = hostile(trace)[case]
    assert named in refusal(saved(tmp_path, form(program(body))))
    assert not trace.exists()


def test_a_refusal_shows_no_control_characters(tmp_path):
    body = text("os\n\x1b[2J") + text("system" * 1000) + b"\x93"
    assert refusal(saved(tmp_path, zipped(program(body)))).isprintable()
    header = json.dumps({"w": {"dtype": "\x1b[2J", "shape": [], "data_offsets": [0, 0]}}).encode()
    data = struct.pack("<Q", len(header)) + header
    message = refusal(saved(tmp_path, data, "a.safetensors"))
    assert message.isprintable() and "[2J" in message


@pytest.mark.parametrize(
    "case",
    [
        tensor(storage("0", 4), 0, (5,), (1,)),
        tensor(storage("0", 4), 4, (1,), (1,)),
        tensor(storage("0", 4), -1, (1,), (1,)),
        tensor(storage("0", 4), 0, (-1,), (1,)),
        tensor(storage("0", 4), 3, (2,), (-1,)),
        tensor(storage("0", 4), 0, (2, 2), (3, 1)),
        tensor(storage("0", 4), 0, (2,), (1, 1)),
        tensor(storage("0", 4), 0, (10**12,), (0,)),
        tensor(storage("0", 4), 0, (1,) * 40, (1,) * 40),
        tensor(storage("0", 4), 0, (0, 2**62, 2**62), (1, 1, 1)),
        tensor(storage("0", 4), 10**30, (1,), (1,)),
        tensor(storage("0", 5), 0, (4,), (1,)),
        tensor(storage("0", 10**15), 0, (4,), (1,)),
        tensor(storage("0", -4), 0, (0,), (1,)),
        tensor(storage("0", 4, "DoubleStorage"), 0, (1,), (1,)),
        tensor(storage("other", 4), 0, (4,), (1,)),
        tensor(storage("../../data.pkl", 4), 0, (4,), (1,)),
        tensor(storage("0", 4, view=tuple_of(text("1"), number(0), number(2))), 0, (2,), (1,)),
        tensor(text("0"), 0, (4,), (1,)),
    ],
)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_tensor_never_reaches_outside_its_storage(tmp_path, case, form):
    body = program(mapping(w=case))
    values = np.zeros(4, "f4")
    data = zipped(body, {"0": values.tobytes()}) if form == "zip" else legacy(body, {"0": values})
    refusal(saved(tmp_path, data))


@pytest.mark.parametrize("size", [-1, 5, 2**62, -(2**63)])
def test_legacy_storage_sizes_that_lie(tmp_path, size):
    body = program(mapping(w=tensor(storage("0", 4), 0, (4,), (1,))))
    data = bytearray(legacy(body, {"0": np.zeros(4, "f4")}))
    data[-24:-16] = struct.pack("<q", size)
    refusal(saved(tmp_path, bytes(data)))


def test_bombs_of_a_few_bytes_take_no_time(tmp_path):
    tower = b")" + b"q\x00h\x00\x86" * 64  # ((…, …), (…, …)): 2^64 leaves, to whoever counts them
    many = b"](" + (b"](" + text("w") + b"Ne") * 20_000 + b"eq\x010"
    again = (b"ccollections\nOrderedDict\nh\x01\x85R0") * 20_000
    bombs = [b"}" + tower + b"Ns", tower, mapping(w=tower), many + again + b"}"]
    started = time.monotonic()
    for bomb in bombs:
        refusal(saved(tmp_path, zipped(program(bomb))))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"](e", "list"),
        (b"}", "no tensors"),
        (mapping(epoch=number(1), state_dict=mapping(x=number(2))), "no tensors"),
        (b"}(" + tuple_of(number(1)) + b"Nu", "key"),
        (b"0", "damaged"),
        (b"h\x07", "damaged"),
    ],
)
def test_pickles_that_are_no_state_dict(tmp_path, body, named):
    assert named in refusal(saved(tmp_path, zipped(program(body))))


def test_zips_that_are_no_state_dict(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.zeros(2))
    (tmp_path / "a.npz").rename(tmp_path / "a.pth")
    assert "data.pkl" in refusal(tmp_path / "a.pth")
    body = program(mapping(w=tensor(storage("0", 1), 0, (1,), (1,))))
    assert "byte order" in refusal(saved(tmp_path, zipped(body, {"0": bytes(4)}, "middle")))
    lzma = zipped(body, {"0": bytes(4)}, method=zipfile.ZIP_LZMA)
    assert "compressed" in refusal(saved(tmp_path, lzma))


def test_a_damaged_zip_member_is_noticed(tmp_path):
    body = program(mapping(w=tensor(storage("0", 4), 0, (4,), (1,))))
    data = zipped(body, {"0": np.float32([1, 2, 3, 4.5]).tobytes()})
    assert "CRC" in refusal(saved(tmp_path, data.replace(b"\x00\x00\x90\x40", b"\x00\x00\x90\x41")))


@pytest.mark.parametrize(
    "options",
    [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}, {"pickle_protocol": 5}],
)
@pytest.mark.parametrize("nested", [False, True])
def test_what_pytorch_saves(tmp_path, options, nested):
    torch = pytest.importorskip("torch")
    shared = torch.randn(12)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = module.state_dict()  # an OrderedDict with _metadata, and an int64 counter
    state |= {
        "transposed": torch.randn(3, 4).t(),
        "slice": shared[2:9:3],
        "same storage": shared.reshape(3, 4)[:, 1],
        "half": torch.randn(5).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    saved_object = state
    if nested:
        saved_object = {
            "epoch": 3,
            "best": np.float64(0.25),
            "state_dict": {f"module.{name}": value for name, value in state.items()},
            "optimizer": torch.optim.Adam(module.parameters()).state_dict(),
        }
    torch.save(saved_object, tmp_path / "net.pt", **options)
    loaded = tio.load_arrays(tmp_path / "net.pt")
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        value = value.detach()
        value = value.float() if value.dtype in (torch.half, torch.bfloat16) else value
        np.testing.assert_array_equal(loaded[name], value.numpy())
        assert loaded[name].dtype == value.numpy().dtype and loaded[name].shape == value.shape


# .h5


def test_h5_names_of_old_and_new_keras(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["res2a_branch2a/res2a_branch2a_W_1:0"] = np.ones((1, 1, 2, 3), "f4")
        file["conv1_conv/conv1_conv/kernel:0"] = np.full((2, 3), 2.0)
        file["model_weights/fc1000/fc1000/bias:0"] = np.float16([3])
        file["layer_names"] = [b"conv1"]
        file["outside"] = h5py.ExternalLink("/etc/passwd", "/x")
    loaded = tio.load_arrays(tmp_path / "a.h5")
    assert loaded.keys() == {
        "res2a_branch2a/res2a_branch2a_W_1",
        "conv1_conv/kernel",
        "fc1000/bias",
    }
    assert loaded["conv1_conv/kernel"].dtype == np.float64
    assert loaded["fc1000/bias"].dtype == np.float32 and loaded["fc1000/bias"] == 3


def test_h5_that_reads_other_files_or_claims_too_much(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(8))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        outside = [(str(tmp_path / "secret"), 0, 8)]
        file.create_dataset("conv1/kernel", (2,), "f4", external=outside)
    assert "another file" in refusal(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("conv1/kernel", (2**40,), "f4", chunks=(1024,))
    assert "claim" in refusal(tmp_path / "b.h5")
    refusal(saved(tmp_path, b"\x89HDF\r\n\x1a\n" + bytes(50), "c.h5"))


def test_h5_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"a\.h5.*pip install h5py"):
        tio.load_arrays(tmp_path / "a.h5")


# Any file


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pth", "pt", "h5"])
def test_files_that_are_not_there_or_not_files(tmp_path, suffix):
    if suffix == "h5":
        pytest.importorskip("h5py")
    assert "no such file" in refusal(tmp_path / f"a.{suffix}")
    (tmp_path / f"b.{suffix}").mkdir()
    assert "not a file" in refusal(tmp_path / f"b.{suffix}")
    assert "empty" in refusal(saved(tmp_path, b"", f"c.{suffix}"))
    refusal(saved(tmp_path, b"<html>404 Not Found</html>\n" * 9, f"d.{suffix}"))
    refusal(saved(tmp_path, b"PK\x03\x04" * 20, f"e.{suffix}"))


def test_an_unknown_suffix_is_named(tmp_path):
    assert "'.ckpt'" in refusal(tmp_path / "a.ckpt")


def samples() -> dict[str, bytes]:
    """Small valid files of each form, and how to load them."""
    import safetensors.numpy

    body = program(
        mapping(
            w=tensor(storage("0", 4), 0, (2, 2), (1, 2)),
            h=tensor(storage("1", 2, "HalfStorage"), 0, (2,), (1,)),
        )
    )
    values = {"0": np.arange(4, dtype="<f4"), "1": np.arange(2, dtype="<f2")}
    npz = io.BytesIO()
    np.savez_compressed(npz, w=np.arange(4.0), b=np.arange(3, dtype="f2"))
    arrays = {"w": np.arange(4.0), "b": np.arange(3, dtype="f2")}
    return {
        "zip.pth": zipped(body, {k: v.tobytes() for k, v in values.items()}, "little"),
        "legacy.pth": legacy(body, values),
        "a.npz": npz.getvalue(),
        "a.safetensors": safetensors.numpy.save(arrays, {"a": "b"}),
        "pickle in zip.pth": body,
        "header in zip.npz": npy(header("<f4", "(2,)"), b"8" * 8),
    }


SAMPLES = samples()


def wrapped(name: str, data: bytes) -> bytes:
    """For the samples that a zip's checksum would guard: pack the damaged part afresh."""
    if name == "pickle in zip.pth":
        return zipped(data, {"0": bytes(16), "1": bytes(4)})
    if name == "header in zip.npz":
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as file:
            file.writestr("w.npy", data)
        return out.getvalue()
    return data


@st.composite
def damaged(draw) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(SAMPLES)))
    data = bytearray(SAMPLES[name])
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = start + draw(st.integers(0, 8))
        data[start:stop] = draw(
            st.one_of(
                st.binary(max_size=8),
                st.just(b""),
                st.just(data[start:stop] * 2),
                st.sampled_from([b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x00" * 8, b"9" * 8]),
            )
        )
    if draw(st.integers(0, 9)) == 0:
        del data[draw(st.integers(0, len(data))) :]
    return name, wrapped(name, bytes(data))


def arrays_or_one_line(folder: Path, name: str, data: bytes) -> None:
    path = saved(folder, data, name)
    try:
        arrays = tio.load_arrays(path)
    except tio.FormatError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert all(isinstance(array, np.ndarray) for array in arrays.values())
        # what a small file holds is small
        assert sum(array.nbytes for array in arrays.values()) <= 8 * len(data)
        assert all(np.array(array).shape == array.shape for array in arrays.values())


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_load(tmp_path, name):
    assert len(tio.load_arrays(saved(tmp_path, wrapped(name, SAMPLES[name]), name))) >= 1


@settings(max_examples=600, deadline=2000, suppress_health_check=list(HealthCheck))
@given(damaged())
def test_a_damaged_file_gives_arrays_or_one_line(tmp_path_factory, case):
    arrays_or_one_line(tmp_path_factory.getbasetemp(), *case)


@pytest.mark.long
@settings(max_examples=20_000, deadline=2000, suppress_health_check=list(HealthCheck))
@given(damaged())
def test_many_damaged_files(tmp_path_factory, case):
    arrays_or_one_line(tmp_path_factory.getbasetemp(), *case)


# Hashes in names, layouts


@pytest.mark.parametrize("name", ["resnet50-{}.pth", "resnet50_a1_0-{}.pth", "a-b-{}.safetensors"])
@pytest.mark.parametrize("digits", [8, 10, 64])
def test_the_hash_in_a_name(tmp_path, name, digits):
    data = b"weights"
    prefix = hashlib.sha256(data).hexdigest()[:digits]
    assert tio.check_file_hash(saved(tmp_path, data, name.format(prefix))) == prefix
    bad = saved(tmp_path, data + b".", name.format(prefix))
    with pytest.raises(tio.FormatError, match=f"promises {prefix}"):
        tio.check_file_hash(bad)


@pytest.mark.parametrize("name", ["net.pth", "resnet-50.pth", "resnet50-coco.pth", "0676ba61.pth"])
def test_names_without_a_hash(tmp_path, name):
    assert tio.check_file_hash(saved(tmp_path, b"weights", name)) is None


def test_layouts():
    weight = RNG.normal(size=(5, 4, 3, 2))
    ours = tio.from_oihw(weight)
    assert ours.shape == (3, 2, 4, 5) and ours.flags.c_contiguous
    assert ours[2, 1, 3, 4] == weight[4, 3, 2, 1]
    np.testing.assert_array_equal(tio.to_oihw(ours), weight)
    matrix = weight[:, :, 0, 0]
    np.testing.assert_array_equal(tio.from_oi(matrix), matrix.T)
    np.testing.assert_array_equal(tio.to_oi(tio.from_oi(matrix)), matrix)
    for helper in (tio.from_oi, tio.to_oi, tio.from_oihw, tio.to_oihw):
        with pytest.raises(ValueError, match=r"weight: shape \(3,\)"):
            helper(np.zeros(3))


def test_bytes_other_than_0_and_1_are_true():
    assert decode(b"\x00\x01\x02\xff", "?").tolist() == [False, True, True, True]


def test_two_writers_of_one_file_do_not_write_into_each_others(tmp_path):
    """Though they have the same number, as processes on two machines may; the last one stays."""
    path = tmp_path / "x.txt"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one, the longer")
        other.write_text("other")
    assert path.read_text() == "one, the longer" and len(list(tmp_path.iterdir())) == 1
