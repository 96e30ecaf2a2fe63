"""The files that a run goes on from: what was written comes back, and nothing else does."""

from __future__ import annotations

import json

import numpy as np
import pytest

from recres import checkpoint
from recres.errors import InputError
from tensorlite import Tensor, nn, optim
from tensorlite.io import FormatError, load_safetensors, save_safetensors

ARRAYS = {"model/w": np.arange(6, dtype=np.float32).reshape(2, 3), "optimizer/step": np.array(7),
          "model/none": np.zeros((0, 3)), "model/mask": np.array([True, False])}
PROGRESS = {"format": checkpoint.FORMAT,
            "progress": '{"epoch": 1, "done": 2, "update": 9, "seconds": 0.5, "best": null}'}


@pytest.fixture
def path(tmp_path):
    """A small checkpoint."""
    checkpoint.write(tmp_path / "c.safetensors", ARRAYS, PROGRESS)
    return tmp_path / "c.safetensors"


def test_what_was_written_comes_back(path):
    arrays, metadata = checkpoint.read(path)
    assert metadata == PROGRESS
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()
    assert checkpoint.read_checkpoint(path)[1] == checkpoint.Progress(1, 2, 9, 0.5)


@pytest.mark.parametrize("dtype", [np.float16, ">f4", np.uint8, np.float64])
def test_the_digest_is_of_what_is_read_back(tmp_path, dtype):
    array = np.arange(12).astype(dtype).reshape(3, 4).T  # not as it lies in memory
    checkpoint.write(tmp_path / "a.safetensors", {"a": array}, {})
    assert np.array_equal(checkpoint.read(tmp_path / "a.safetensors")[0]["a"], array)


@pytest.mark.parametrize("about", [PROGRESS, {"format": checkpoint.MODEL_FORMAT, "classes": "[]"}])
def test_a_byte_that_was_altered_is_found(path, about):
    """Wherever it is; from an altered space after the header everything is read as it was."""
    checkpoint.write(path, ARRAYS, about)
    data, harmless = path.read_bytes(), 0
    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= (0x01, 0x20, 0xff)[position % 3]
        path.write_bytes(altered)
        try:
            arrays, metadata = checkpoint.read(path)
        except FormatError:
            continue
        harmless += 1
        assert metadata == about
        assert all(arrays[n].tobytes() == ARRAYS[n].tobytes() for n in ARRAYS)
        assert all(arrays[n].dtype == ARRAYS[n].dtype for n in ARRAYS)
    assert harmless < 8


def test_a_truncated_file_is_found(path):
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match="c.safetensors: "):
            checkpoint.read(path)


@pytest.mark.parametrize("change", [{"model/w": ARRAYS["model/w"].astype(np.int32)},
                                    {"model/w": ARRAYS["model/w"].reshape(3, 2)},
                                    {"model/v": np.zeros(1)}, {"optimizer/step": np.array(8)}])
def test_other_arrays_have_another_digest(change):
    one, other = (checkpoint.digest(arrays, PROGRESS) for arrays in (ARRAYS, ARRAYS | change))
    assert one != other != checkpoint.digest(ARRAYS | change, {"format": checkpoint.FORMAT})


def test_one_of_an_older_version_is_read_without_a_digest(path):
    metadata = PROGRESS | {"format": "recres-checkpoint-1"}
    save_safetensors(path, ARRAYS, metadata)
    arrays, progress = checkpoint.read_checkpoint(path)
    assert progress.update == 9 and arrays.keys() == ARRAYS.keys()


def test_one_of_a_newer_version_is_refused_by_name(path):
    checkpoint.write(path, ARRAYS, {"format": "recres-checkpoint-3", "other": "things"})
    with pytest.raises(InputError, match=r"c.safetensors: its format is recres-checkpoint-3, and "
                                         r"this version .* none after recres-checkpoint-2$"):
        checkpoint.read_checkpoint(path)


@pytest.mark.parametrize("metadata, error, message", [
    ({"format": "pt"}, InputError, "not a checkpoint to go on from"),
    ({}, InputError, "not a checkpoint to go on from"),
    ({"format": checkpoint.FORMAT}, FormatError, "its counters cannot be read"),
    ({"format": checkpoint.FORMAT, "progress": "[1]"}, FormatError, "its counters cannot be read"),
    ({"format": checkpoint.FORMAT, "progress": json.dumps({"more": 1})}, FormatError, "counters"),
    ({"format": checkpoint.FORMAT, "progress": '{"update": "1"}'}, FormatError, "counters"),
    ({"format": checkpoint.FORMAT, "progress": '{"seconds": NaN}'}, FormatError, "counters"),
    ({"format": checkpoint.FORMAT, "progress": "[" * 10**5}, FormatError, "counters"),
])
def test_what_is_none(path, metadata, error, message):
    checkpoint.write(path, ARRAYS, metadata)
    with pytest.raises(error, match=message):
        checkpoint.read_checkpoint(path)


def test_one_without_the_digest_that_it_should_have_is_damaged(path):
    arrays, metadata = load_safetensors(path)
    del metadata[checkpoint.DIGEST]
    save_safetensors(path, arrays, metadata)
    with pytest.raises(FormatError, match="damaged: it lacks its sha256"):
        checkpoint.read(path)


ABOUT = {"classes": "[]", "epoch": "3"}


def test_a_saved_model_that_was_altered_is_refused(path):
    checkpoint.write_model(path, ARRAYS, ABOUT)
    assert checkpoint.load_model(path)[1] == ABOUT
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"epoch":"3"', b'"epoch":"4"'))
    assert path.read_bytes() != data
    with pytest.raises(FormatError, match="damaged: its sha256 is not that of what was written"):
        checkpoint.load_model(path)


def test_a_saved_model_of_a_newer_version_is_refused_by_name(path):
    checkpoint.write(path, ARRAYS, ABOUT | {"format": "recres-model-2"})
    with pytest.raises(InputError, match=r"format is recres-model-2, .* none after recres-model-1"):
        checkpoint.load_model(path)
    checkpoint.write(path, ARRAYS, ABOUT | {"format": "pt"})
    with pytest.raises(InputError, match="not a model saved by a run"):
        checkpoint.load_model(path)


# Files as the versions before wrote them, byte by byte, so that nothing of today's writer is in
# them: the number 1.5 as the parameter "w".
HEADERS = {
    "recres-checkpoint-1": {"format": "recres-checkpoint-1", "progress":
        '{"epoch": 1, "done": 2, "update": 9, "seconds": 0.5, "best": null}'},
    "recres-checkpoint-2": {"format": "recres-checkpoint-2", "progress":
        '{"epoch": 1, "done": 2, "update": 9, "seconds": 0.5, "best": null, "unlogged": []}',
        "sha256": "6164268a5a4ffe0675baf244444e2422cf5f2bf8fceb6c6241ed6910a8ecdde2"},
    "without": ABOUT,
    "without, with a digest": ABOUT | {
        "sha256": "214db178bedd02df3d7fa4859571c79113872d47fa6b92098c99afe8be1b4c96"},
    "recres-model-1": ABOUT | {
        "format": "recres-model-1",
        "sha256": "1784451eb1e6775f8d2ac4508309a0c81b7d9f1a055f498de59146e2def98041"},
}


@pytest.mark.parametrize("version", HEADERS)
def test_files_of_every_version_are_read(path, version):
    name = "model/w" if "checkpoint" in version else "w"
    header = json.dumps({"__metadata__": HEADERS[version],
                         name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\xc0\x3f")
    if "checkpoint" in version:
        arrays, progress = checkpoint.read_checkpoint(path)
        assert progress == checkpoint.Progress(1, 2, 9, 0.5)
    else:
        arrays, about = checkpoint.load_model(path)
        assert about == ABOUT
    assert list(arrays) == [name] and arrays[name].tolist() == [1.5]


def test_a_snapshot_is_not_changed_by_the_next_update():
    """It is written while training goes on."""
    model, scaler = nn.Linear(3, 2), optim.LossScaler()
    optimizer = optim.Adam(list(model.named_parameters()))

    def update() -> None:
        optimizer.zero_grad()
        model(Tensor(np.ones((4, 3), np.float32))).sum().backward()
        optimizer.step()

    update()
    arrays, _ = checkpoint.snapshot(model, optimizer, checkpoint.Progress(), scaler)
    before = {name: array.copy() for name, array in arrays.items()}
    update()
    after, _ = checkpoint.snapshot(model, optimizer, checkpoint.Progress(), scaler)
    assert all(np.array_equal(arrays[name], before[name]) for name in arrays)
    assert {name for name in arrays if np.array_equal(arrays[name], after[name])} <= {
        "optimizer/lr", "scaler/scale", "scaler/good_steps"}
