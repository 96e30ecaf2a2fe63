"""Every reader of files from outside: how a valid scene is made, what of it is damaged, what reads
it, and what may come of that.

A reader makes its scene once in a folder of its own. Its files are damaged one at a time and put
back; `read` then reads the scene as a command would.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from recres import build, checkpoint, evaluate, replay, report, scores
from recres.config import Config, resolve
from recres.data_check import Found, Problem, check_data_set, check_store
from recres.datasets import Split, figures, ucf101
from recres.errors import InputError
from recres.feature_store import StoreFiles
from recres.files import read_json, write_json
from recres.guard import FORMAT
from recres.loader import Videos
from recres.models import resnet18
from recres.models.weights import load_pretrained
from recres.page.markup import VOID
from recres.runs import Run, read_metrics
from recres.tables import render
from recres.tables.results import Entry, Row, Table
from recres.tables.runner import read_plan, read_result
from recres.video.decode import sample_video
from recres.video.frame_index import Settings
from recres.video.frame_store import FrameStore, FrameStoreWriter, encode_video
from tensorlite import nn
from tensorlite.io import FormatError, load_arrays, save_safetensors
from tensorlite.optim import Adam
from tests.fuzz import mutate

CLASSES = ("Walk", "Run", "Wave")
ERRORS = (InputError, FormatError)


@dataclass(frozen=True)
class Reader:
    """make(folder) → the files to damage; read(folder) → what was read; check(folder, it) asserts
    that this is a correct result. cases: how many in the default profile, by what they cost."""

    name: str
    cases: int
    make: Callable[[Path], Sequence[Path]]
    read: Callable[[Path], Any]
    mutation: Callable[[Path], mutate.Mutation]
    check: Callable[[Path, Any], None] = lambda folder, result: None


# Arrays

def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a": rng.random((3, 4), np.float32), "b.c": np.arange(6).reshape(2, 3),
            "h": np.arange(5, dtype=np.float16), "flag": np.array([True, False])}


def _check_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    assert all(isinstance(name, str) for name in arrays)
    assert all(array.dtype.kind in "biuf" for array in arrays.values())
    assert sum(np.array(array).nbytes for array in arrays.values()) < 2**25


def _npz(folder: Path) -> Sequence[Path]:
    np.savez(folder / "arrays.npz", **_arrays())
    return [folder / "arrays.npz"]


def _safetensors(folder: Path) -> Sequence[Path]:
    save_safetensors(folder / "arrays.safetensors", _arrays(), {"format": "x", "note": "é"})
    return [folder / "arrays.safetensors"]


def _pth(name: str) -> Callable[[Path], Sequence[Path]]:
    def make(folder: Path) -> Sequence[Path]:
        shutil.copy(Path(__file__).parent / "seeds" / name, folder)
        return [folder / name]

    return make


def _legacy(data: bytes, rng: Any) -> bytes:
    return (mutate.pickle_ if rng.random() < 0.7 else mutate.bytes_)(data, rng)


def _h5(folder: Path) -> Sequence[Path]:
    import h5py

    with h5py.File(folder / "arrays.h5", "w") as file:
        group = file.create_group("model_weights/conv1/conv1")
        for name, array in _arrays().items():
            group.create_dataset(f"{name}:0", data=array)
        group.create_dataset("packed", data=np.zeros((64, 8), "f4"), chunks=(16, 8),
                             compression="gzip")
        file.attrs["layer_names"] = [b"conv1"]
        group["again"] = h5py.SoftLink("/model_weights/conv1")
    return [folder / "arrays.h5"]


# Weights, checkpoints, runs

def _options(**values: Any) -> Config:
    return resolve({"threads": 1, "root": "nowhere", "width": 2, "image_size": 32} | values)


@cache
def _network() -> Any:
    return resnet18(classes=3, width=2, rng=0)


def _weights(folder: Path) -> Sequence[Path]:
    state = _network().state_dict()
    torch_names = {}
    for name, array in state.items():
        for ours, theirs in (("block", "layer"), ("shortcut.conv.", "downsample.0."),
                             ("shortcut.norm.", "downsample.1."), ("norm", "bn"),
                             ("gamma", "weight"), ("beta", "bias")):
            name = name.replace(ours, theirs)
        torch_names[name] = array.transpose((3, 2, 0, 1)) if array.ndim == 4 else array.T
    np.savez(folder / "weights.npz", **torch_names)
    return [folder / "weights.npz"]


def _read_weights(folder: Path) -> Any:
    return load_pretrained(resnet18(classes=3, width=2, rng=0), folder / "weights.npz",
                           log=lambda text: None)


@cache
def _trainee() -> tuple[nn.Module, Any]:
    model = nn.Linear(3, 2, rng=0)
    return model, Adam(list(model.parameters()), lr=0.1)


def _checkpoint(folder: Path) -> Sequence[Path]:
    checkpoint.save(folder / "checkpoint.safetensors", *_trainee(),
                    checkpoint.Progress(1, 2, 3, 4.5, {"epoch": 1, "video_error": 0.5}))
    return [folder / "checkpoint.safetensors"]


def _read_checkpoint(folder: Path) -> checkpoint.Progress:
    return checkpoint.load(folder / "checkpoint.safetensors", *_trainee())


def _check_progress(folder: Path, progress: checkpoint.Progress) -> None:
    counters = (progress.epoch, progress.done, progress.update)
    assert all(type(n) is int and n >= 0 for n in counters), counters
    assert type(progress.seconds) in (int, float) and progress.seconds >= 0
    assert progress.best is None or isinstance(progress.best, dict)


def _run(folder: Path) -> Sequence[Path]:
    config = _options()
    with Run.create(folder / "run", config, {"started": "2026-01-01", "argv": ["x"]}) as run:
        pass
    model = build.build_model(config, len(CLASSES))
    checkpoint.save_model(run.path / "best.safetensors", model, {
        "classes": json.dumps(CLASSES), "options": json.dumps(config.to_json()),
        "input_convention": "torch", "format": "recres-model-1"})
    lines = [{"kind": "update", "update": i, "epoch": 0, "loss": 2 / (i + 1)} for i in range(6)]
    lines += [{"kind": "evaluation", "epoch": i, "video_error": 0.5} for i in range(3)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return [run.path / name for name in ("config.json", "best.safetensors", "metrics.jsonl")]


def _one_of_run(name: str) -> Callable[[Path], Sequence[Path]]:
    return lambda folder: [path for path in _run(folder) if path.name == name]


def _check_run(folder: Path, run: Run) -> None:
    again = Config.from_json(run.config.to_json(), "itself")
    assert again == run.config or "nan" in repr(again).lower()


def _read_model(folder: Path) -> Any:
    run = Run(folder / "run", _options(), {})
    trained = evaluate._trained_on(run.path / "best.safetensors")
    return build.open_model(run, run.config), trained


def _check_model(folder: Path, result: Any) -> None:
    (_, classes, convention), _ = result
    assert all(isinstance(name, str) for name in classes) and isinstance(convention, str)


def _read_metrics(folder: Path) -> Any:
    log = folder / "run" / "metrics.jsonl"
    return read_metrics(log) + read_metrics(log, "evaluation")


def _scores(folder: Path) -> Sequence[Path]:
    posteriors = np.random.default_rng(1).dirichlet(np.ones(3), 4)
    scores.write_scores(folder / "scores.npz", scores.SavedScores(
        ("v1", "v2", "v3", "é"), np.array([0, 1, 2, 0]), posteriors, np.array([1, 2, 3, 4]),
        CLASSES), CLASSES, "figures", 1)
    return [folder / "scores.npz"]


def _check_scores(folder: Path, found: scores.SavedScores) -> None:
    assert found.posteriors.shape == (len(found.names), len(found.classes))
    assert np.isfinite(found.posteriors).all() and 0 <= found.video_error <= 1
    assert all(isinstance(name, str) for name in (*found.names, *found.classes, found.data))
    "".join((*found.names, *found.classes)).encode()  # texts that can be printed


HOSTILE = '<script>alert("1")</script>&"\'<img src=http://x/>|`'


def _shown(folder: Path) -> Sequence[Path]:
    _lists(folder)
    with Run.create(folder / "run", _options(root=str(folder), data="ucf101"), {
            "started": HOSTILE, "command": ["x", HOSTILE], "environment": {HOSTILE: HOSTILE},
            "model": {"weights": {"source": "recres", "initialised": ["fc.weight"]},
                      "temporal_convolutions": HOSTILE}}) as run:
        pass
    names, classes = ("v_Walk_g01_c01", f"{HOSTILE}2", "v3"), (HOSTILE, "Run", "Wave")
    posteriors = np.array([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6], [0.1, 0.2, 0.7]])
    scores.write_scores(run.path / "scores.npz", scores.SavedScores(
        names, np.array([0, 1, 2]), posteriors, np.array([1, 2, 3]), classes), classes, "ucf101", 1)
    write_json(run.path / "result.json", {
        "video_error": 1 / 3, "chunk_error": 0.5, "pair_error": 0.5, "protocol": HOSTILE,
        "per_class": {name: {"videos": 1, "video_error": 0.5} for name in classes},
        "best": {"epoch": 2, "video_error": 0.25}, "training_seconds": 12.5,
        "counts": {"test_videos": 3, "test_chunks": 6}, "skipped": {"v9": HOSTILE}})
    lines = [{"kind": "update", "update": i, "epoch": i // 2, "loss": 2 / (i + 1),
              "learning_rate": 0.1, "gradient_norm": 3.5, "gradient_norms": {HOSTILE: i, "fc": 2.0}}
             for i in range(4)]
    lines += [{"kind": "evaluation", "epoch": i, "update": 2 * i, "loss": 1.5, "best": not i,
               "training_loss": 2.5, "video_error": 0.5, "chunk_error": 0.25} for i in range(2)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return [run.path / name for name in ("config.json", "result.json", "metrics.jsonl",
                                         "scores.npz")]


def _read_page(folder: Path) -> str:
    run = report.read_run(folder / "run")
    return report.page([run, run], 2 * [report.read_films(run, str(folder))])


class _Tags(HTMLParser):
    """All that a page may have: no scripts, nothing from elsewhere, every tag closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.feed(page)
        self.close()
        assert not self.inside

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script" and not any(name.startswith("on") for name, _ in attrs), tag
        for name, value in attrs:
            assert name not in ("src", "href") or (value or "").startswith(("data:image/", "#"))
        if tag not in VOID:
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag, tag


def _check_page(folder: Path, page: str) -> None:
    _Tags(page)
    assert len(page) < 2**22


def _tables(folder: Path) -> Sequence[Path]:
    _, result, _, found = _shown(folder)
    write_json(folder / "run" / "plan.json", {
        "options": {"lr": 0.1}, "budget": 3.5, "updates": 7, "seconds": {"a": 1.5, "b": 2.5}})
    return [result, found, folder / "run" / "plan.json"]


def _read_tables(folder: Path) -> Any:
    plan = read_plan(folder / "run" / "plan.json")
    runs = [read_result(folder / "run", ("a", seed, 1)) for seed in (0, 1)]
    rows = [Row({"model": name}, [Entry("error", 0.5, runs)], name == "a") for name in "ab"]
    table = Table(1, "t", {"data": "ucf101", "classes": 3}, ["model"], ["error"], rows)
    return render.text(table), render.markdown(table), render.csv(table), plan


# Data sets

def _lists(folder: Path) -> Sequence[Path]:
    lists: dict[str, list[str]] = {"classInd": [], "trainlist01": [], "testlist01": []}
    for number, name in enumerate(CLASSES, start=1):
        lists["classInd"].append(f"{number} {name}")
        (folder / "UCF-101" / name).mkdir(parents=True, exist_ok=True)
        for group in range(1, 4):
            entry = f"{name}/v_{name}_g{group:02d}_c01.avi"
            (folder / "UCF-101" / entry).touch()
            side = "testlist01" if group == 1 else "trainlist01"
            lists[side].append(entry if group == 1 else f"{entry} {number}")
    (folder / "ucfTrainTestlist").mkdir(exist_ok=True)
    paths = [folder / "ucfTrainTestlist" / f"{name}.txt" for name in lists]
    for path, lines in zip(paths, lists.values(), strict=True):
        path.write_text("\n".join(lines) + "\n")
    return paths


def _read_lists(folder: Path) -> tuple[Split, Split]:
    return ucf101.read(folder, check_files=False), ucf101.read(folder)


def _check_lists(folder: Path, splits: tuple[Split, Split]) -> None:
    root = (folder / "UCF-101").resolve()
    for split in splits:
        for video in (*split.train, *split.test):
            assert video.path.resolve().is_relative_to(root), video
            assert "\0" not in str(video.path) and 0 <= video.label < len(split.classes)
    assert all(video.path.is_file() for video in (*splits[1].train, *splits[1].test))


def _figures(folder: Path) -> Sequence[Path]:
    _lists(folder)
    write_json(folder / "figures.json", figures._settings(0, 1, 3))
    return [folder / "figures.json"]


def _read_figures(folder: Path) -> Any:
    return build.read_split(_options(root=str(folder)), log=lambda text: None)


def _videos_json(folder: Path) -> Sequence[Path]:
    _lists(folder)
    split = ucf101.read(folder)
    write_json(folder / "videos.json", {v.name: 7 for v in (*split.train, *split.test)})
    return [folder / "videos.json"]


def _read_videos_json(folder: Path) -> Videos:
    config = _options(root=str(folder), data="ucf101", holdout=0.3)
    return Videos(ucf101.read(folder), config, read_json(folder / "videos.json"))


def _check_videos(folder: Path, videos: Videos) -> None:
    assert all(count >= 1 for count in videos.counts.values()) and videos.chunks("train")


def _feature_store(folder: Path) -> Sequence[Path]:
    path = folder / "block3-pooled"
    path.mkdir()
    write_json(path / "about.json", {"format": "recres-features-1", "stage": "block3",
                                     "shape": [4], "mirror": True, "weights": None})
    for name in ("features.f16", "videos.jsonl"):
        (path / name).touch()
    files = StoreFiles(path)
    for i in range(3):
        files.append(f"v{i}", 100 + i, np.arange(2 * 3 * 4).reshape(2, 3, 4) + i)
    return [path / name for name in ("about.json", "videos.jsonl", "features.f16")]


def _read_features(folder: Path) -> dict[Any, np.ndarray]:
    files = StoreFiles(folder / "block3-pooled")
    return {key: files.video(key) for key in files.lines}


def _check_features(folder: Path, found: dict[Any, np.ndarray]) -> None:
    assert all(values.size == values.nbytes // 2 < 10_000 for values in found.values())


def write_clip(path: Path, codec: str, frames: int = 12) -> Path:
    """A small video, 48×32, each frame of another grey."""
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 25, (48, 32))
    assert writer.isOpened()
    for i in range(frames):
        writer.write(np.full((32, 48, 3), i * 20, np.uint8))
    writer.release()
    return path


def _frame_store(folder: Path) -> Sequence[Path]:
    _lists(folder)
    split = ucf101.read(folder)
    for video in split.test:
        write_clip(video.path, "MJPG")
    with FrameStoreWriter(folder / "store", Settings(2, 2)) as writer:
        for video in split.test:
            writer.add(*encode_video(video, writer.settings))
    return sorted(path for path in (folder / "store").iterdir() if path.name != "lock")


def _read_frame_store(folder: Path) -> Any:
    FrameStore(folder / "store").require(2, 2)
    return _read_all(folder)


def _read_all(folder: Path) -> list[int]:
    store = FrameStore(folder / "store")
    videos = ucf101.read(folder).test
    store.match(videos)
    return [zlib.crc32(store.frames(video, store.settings.context)) for video in videos]


def _refused(read: Callable[[], Any]) -> bool:
    try:
        read()
    except InputError:
        return True
    return False


def _check_checked_lists(folder: Path, found: Found) -> None:
    """What reading refuses, checking finds. (The videos are empty files.)"""
    problems = [problem for problem in found.problems if problem.kind != "corrupt"]
    assert problems or not _refused(lambda: ucf101.read(folder)), "nothing is found"


def _check_store(folder: Path) -> list[Problem]:
    return check_store(FrameStore(folder / "store", tolerant=True), folder)


def _check_checked_store(folder: Path, problems: list[Problem]) -> None:
    # (the store has the test side alone: six videos are missing)
    whole = [problem.kind for problem in problems] == 6 * ["missing"]
    assert not whole or not _refused(lambda: _read_all(folder)), "nothing is found"


def _prepare(folder: Path, repair: bool = False) -> None:
    """As `recres.data prepare`; the store is put back as it was. Repaired it is without fault."""
    store, videos = folder / "store", ucf101.read(folder).test
    before = {path: path.read_bytes() for path in store.iterdir()
              if not path.is_symlink() and path.is_file() and path.stat().st_size < 2**20}
    try:
        with FrameStoreWriter(store, Settings(2, 2), repair=repair) as writer:
            for video in writer.missing(videos):
                writer.add(*encode_video(video, writer.settings))
            assert writer.missing(videos) == []
        FrameStore(store).match(videos)
        assert not repair or not _refused(lambda: _read_all(folder)), "it is not repaired"
    finally:
        for path in store.glob("frames-*.bin"):
            if path not in before and path.is_file():
                path.replace(folder / "made")
        for path, content in before.items():
            path.write_bytes(content)


def _nonfinite(folder: Path) -> Sequence[Path]:
    model, config = _network(), _options(model="avgpool")
    arrays = {f"model/{name}": array for name, array in model.state_dict().items()}
    arrays |= {"inputs/0": np.zeros((1, 2, 32, 32, 3), np.float32), "labels/0": np.array([1]),
               "optimizer/lr": np.array(0.1)}
    path = folder / "nonfinite-3.json"
    save_safetensors(path.with_suffix(".safetensors"), arrays, {"format": FORMAT})
    write_json(path, {
        "format": FORMAT, "update": 3, "epoch": 1, "what": "the loss is nan", "parameter": None,
        "again": True, "chunks": 1, "scale": 1.0, "learning_rate": 0.1,
        "batches": [[{"file": "v.avi", "number": 0, "start": 0}]], "batches_kept": 1,
        "classes": CLASSES, "options": config.to_json()})
    return [path, path.with_suffix(".safetensors")]


def _check_dump(folder: Path, dump: replay.Dump) -> None:
    about = dump.about
    assert all(type(about[name]) is int for name in ("update", "epoch", "chunks"))
    assert about["scale"] > 0 and isinstance(about["what"], str)
    assert all(isinstance(name, str) for name in about["classes"])
    assert all(isinstance(chunk["file"], str) for batch in about["batches"] for chunk in batch)
    assert len(dump.batches) <= len(about["batches"])


# Videos

def _clip(codec: str, suffix: str) -> Callable[[Path], Sequence[Path]]:
    return lambda folder: [write_clip(folder / f"clip{suffix}", codec)]


def _check_frames(folder: Path, frames: np.ndarray) -> None:
    assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3
    assert len(frames) >= 2 and frames.nbytes < 2**28


def _loaded(name: str) -> Callable[[Path], Any]:
    return lambda folder: load_arrays(folder / name)


def _by_suffix(path: Path) -> mutate.Mutation:
    return {".json": mutate.json_, ".jsonl": mutate.lines_of(mutate.json_),
            ".safetensors": mutate.safetensors}.get(path.suffix, mutate.bytes_)


def _always(mutation: mutate.Mutation) -> Callable[[Path], mutate.Mutation]:
    return lambda path: mutation


_ANY, _JSON = _always(mutate.bytes_), _always(mutate.json_)
_TENSORS, _NPZ = _always(mutate.safetensors), _always(mutate.archive(mutate.npy))

READERS = {reader.name: reader for reader in (
    Reader("npz", 1300, _npz, _loaded("arrays.npz"), _NPZ, _check_arrays),
    Reader("safetensors", 1300, _safetensors, _loaded("arrays.safetensors"), _TENSORS,
           _check_arrays),
    Reader("pth", 1300, _pth("zip.pth"), _loaded("zip.pth"),
           _always(mutate.archive(mutate.pickle_)), _check_arrays),
    Reader("pth-legacy", 1300, _pth("legacy.pth"), _loaded("legacy.pth"), _always(_legacy),
           _check_arrays),
    Reader("h5", 1300, _h5, _loaded("arrays.h5"), _ANY, _check_arrays),
    Reader("weights", 300, _weights, _read_weights, _NPZ),
    Reader("checkpoint", 1500, _checkpoint, _read_checkpoint, _TENSORS, _check_progress),
    Reader("config", 1500, _one_of_run("config.json"), lambda folder: Run.open(folder / "run"),
           _JSON, _check_run),
    Reader("model", 1000, _one_of_run("best.safetensors"), _read_model, _TENSORS, _check_model),
    Reader("metrics", 1000, _one_of_run("metrics.jsonl"), _read_metrics,
           _always(mutate.lines_of(mutate.json_))),
    Reader("scores", 1300, _scores, lambda folder: scores.read_scores(folder / "scores.npz"),
           _NPZ, _check_scores),
    Reader("report", 400, _shown, _read_page,
           lambda path: _NPZ(path) if path.suffix == ".npz" else _by_suffix(path), _check_page),
    Reader("tables", 400, _tables, _read_tables,
           lambda path: _NPZ(path) if path.suffix == ".npz" else _by_suffix(path)),
    Reader("lists", 1300, _lists, _read_lists, _always(mutate.lines_of(mutate.words)),
           _check_lists),
    Reader("figures", 800, _figures, _read_figures, _JSON),
    Reader("videos", 1000, _videos_json, _read_videos_json, _JSON, _check_videos),
    Reader("features", 1300, _feature_store, _read_features, _by_suffix, _check_features),
    Reader("frames", 1300, _frame_store, _read_frame_store, _by_suffix),
    Reader("check-lists", 1000, _lists, check_data_set, _always(mutate.lines_of(mutate.words)),
           _check_checked_lists),
    Reader("check-store", 1000, _frame_store, _check_store, _by_suffix, _check_checked_store),
    Reader("prepare", 500, _frame_store, _prepare, _by_suffix),
    Reader("repair", 500, _frame_store, partial(_prepare, repair=True), _by_suffix),
    Reader("nonfinite", 1000, _nonfinite, lambda folder: replay.read(folder / "nonfinite-3.json"),
           _by_suffix, _check_dump),
    *(Reader(f"video-{name}", 1200, _clip(codec, suffix),
             lambda folder, suffix=suffix: sample_video(folder / f"clip{suffix}", 5, 2),
             _always(mutate.video), _check_frames)
      for name, codec, suffix in (("mjpeg", "MJPG", ".avi"), ("mpeg4", "XVID", ".avi"),
                                  ("mp4", "mp4v", ".mp4"), ("ffv1", "FFV1", ".avi"))),
)}
