"""Processes that load: the same bits as without them, what goes wrong in them, and their end."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recres import build, config, train, workers
from recres.datasets import figures
from recres.errors import InputError
from recres.loader import Chunk, FrameLoader, Videos, plan_epoch
from recres.rehearsal import Enough, opened
from recres.runs import read_json, read_metrics
from recres.video import source as sources
from recres.video.decode import VideoError
from recres.video.frame_index import Settings
from recres.video.frame_store import FrameStore, FrameStoreWriter, encode_video
from recres.video.prefetch import Prefetcher
from recres.video.source import FrameSource
from recres.workers import PLACES, WorkerDied, WorkerLoader
from tests.recres.test_trainer import assert_same_run

_count = sources._count
ROOT = Path(__file__).resolve().parents[2]


def options(root, **values):
    return config.resolve({"root": str(root), "image_size": 32, "holdout": 0.3, "threads": 1,
                           "batch": 12, **values})


@pytest.fixture(scope="module")
def frames(figures_root):
    chosen = options(figures_root)
    videos = Videos(figures.read(figures_root), chosen)
    return videos, FrameLoader(videos.source, chosen, "torch")


@pytest.fixture
def scanned(frames, monkeypatch):
    """Commands do not count the frames again."""
    videos = frames[0]
    monkeypatch.setattr(build, "scan_videos",
                        lambda chosen, *_: Videos(videos.split, chosen, videos.found))


def children(pid: int | str = "self") -> set[int]:
    """The processes that a process has started, without those that have ended."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            found |= set(map(int, (task / "children").read_text().split()))
    return {child for child in found if alive(child)}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(happened, seconds: float = 20.0) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < seconds
        time.sleep(0.01)
    return time.monotonic() - began


def dies_at_the_second(job) -> int | VideoError:
    """In place of counting a video's frames."""
    if job[0].name == "second.avi":
        os.kill(os.getpid(), signal.SIGKILL)
    return _count(job)


def test_a_video_that_crashes_the_decoder_is_one_that_cannot_be_used(frames, tmp_path,
                                                                     monkeypatch):
    """While the videos of a run are read, where it has workers."""
    listed = list(frames[0].source.videos[:3])
    listed[1] = listed[1]._replace(path=tmp_path / "second.avi")
    monkeypatch.setattr(sources, "_count", dies_at_the_second)
    source = FrameSource(listed, 5, 2, 0)
    counts = source.scan(1, skip_bad=True, apart=True)
    assert counts[0] == frames[0].counts[0] and counts[2] == frames[0].counts[2]
    assert str(counts[1]) == f"{listed[1].path}: the decoder crashes on it"


def everything(loader, videos):
    """All batches of two epochs in their order, and what evaluation looks at."""
    jobs = [(batch, epoch, False) for epoch in (0, 1)
            for update in plan_epoch(videos.chunks("train"), videos.config, epoch)
            for batch in update]
    jobs += [(videos.chunks("test"), None, backwards) for backwards in (False, True)]
    with Prefetcher(lambda job: loader.load(*job), jobs, loader.in_flight) as results:
        return list(results)


@pytest.mark.parametrize("count", [1, 3])
def test_the_same_bits_at_any_number_of_workers(frames, count):
    videos, loader = frames
    expected = everything(loader, videos)
    with WorkerLoader(loader, count, 12) as several:
        found = everything(several, videos)
        assert several.arguments(videos.chunks("test")) == {}
        assert several.load([]).shape == (0, 2, 32, 32, 3)
    assert [a.shape for a in found] == [a.shape for a in expected]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("max_bytes", [0, 10**9])
def test_the_same_bits_from_a_store(frames, figures_root, tmp_path, max_bytes):
    videos, loader = frames
    chosen = options(figures_root)
    source = FrameSource(videos.source.videos, chosen.frame_step, chosen.context, max_bytes,
                         store=made_store(tmp_path / "s", videos.source.videos, chosen, "raw"))
    with WorkerLoader(FrameLoader(source, chosen, "torch"), 2, 12) as two:
        for found, expected in zip(everything(two, videos), everything(loader, videos),
                                   strict=True):
            assert found.tobytes() == expected.tobytes()


def made_store(folder, videos, chosen, codec):
    settings = Settings(chosen.frame_step, 4, None, codec, 90 if codec == "jpeg" else None)
    with FrameStoreWriter(folder, settings) as to:
        for video in videos:
            to.add(*encode_video(video, settings))
    return FrameStore(folder)


@pytest.mark.parametrize("values", [
    {"augment_per_frame": True, "colour_jitter": 0.5},
    {"sampling": "segments", "context": 3},
    {"context": 1, "codec": "jpeg"},
    {"input": "flow", "flow_length": 3},
    {"input": "dynamic"},
], ids=lambda values: "-".join(values))
def test_the_same_bits_whatever_is_loaded(figures_root, tmp_path, values):
    values, codec = dict(values), values.get("codec")
    values.pop("codec", None)
    chosen = options(figures_root, **values)
    split = figures.read(figures_root)
    split = split._replace(train=split.train[::6], test=split.test[:2])
    chosen = replace(chosen, holdout=0.0)
    listed = (*split.train, *split.test)
    store = made_store(tmp_path / "s", listed, chosen, codec) if codec else None
    source = FrameSource(listed, chosen.frame_step, chosen.context, 10**8, chosen.input,
                         chosen.flow_length, store)
    videos = Videos(split, chosen, source=source)
    loader = FrameLoader(source, chosen, "caffe")
    jobs = [(videos.chunks("train")[::3], 4, False), (videos.chunks("test")[:3], None, True)]
    with WorkerLoader(loader, 2, 12) as two:
        for job in jobs:
            assert two.load(*job).tobytes() == loader.load(*job).tobytes()


def test_what_is_wrong_with_a_store_is_said_in_the_same_words(frames, figures_root, tmp_path):
    listed, chosen = frames[0].source.videos[:4], options(figures_root)
    store = made_store(tmp_path / "s", listed, chosen, "jpeg")
    shard = store.shard(0)
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    loader = FrameLoader(FrameSource(listed, chosen.frame_step, 2, 0, store=store), chosen, "torch")
    with WorkerLoader(loader, 1, 12) as one:
        words = []
        for each in (loader, one):
            with pytest.raises(InputError, match="are damaged: CRC-32") as caught:
                each.load([Chunk(0, 3, 0)], 0)
            words.append(str(caught.value))
    assert words[0] == words[1]


def test_each_worker_has_its_part_of_the_memory(frames):
    source = frames[0].source
    part = pickle.loads(pickle.dumps(source.part(3)))
    assert source._kept and not part._kept
    assert part.max_bytes == source.max_bytes // 3
    np.testing.assert_array_equal(part.frames(3), source.frames(3))


@pytest.mark.parametrize("room", [True, False])
def test_a_worker_takes_the_chunks_of_another_only_where_videos_are_not_kept(
        frames, figures_root, monkeypatch, room):
    """Which would all have to be decoded again. All chunks are of videos of the first worker."""
    videos, chosen = frames[0], options(figures_root)
    source = FrameSource(videos.source.videos, chosen.frame_step, chosen.context, 10**9 * room)
    loader = FrameLoader(source, chosen, "torch")
    send, did = workers._Worker.send, []

    def sends(self, wanted):
        did.append(self.process.name)
        send(self, wanted)

    monkeypatch.setattr(workers._Worker, "send", sends)
    chunks = [chunk for chunk in videos.chunks("train") if chunk.video % 2 == 0][:12]
    with WorkerLoader(loader, 2, 12) as two:
        two.load([*chunks[:1], *videos.chunks("test")[1:2]])  # both are up
        did.clear()
        assert two.load(chunks, 0).tobytes() == loader.load(chunks, 0).tobytes()
    assert set(did) == ({"loader-0"} if room else {"loader-0", "loader-1"})


def test_no_more_is_under_way_than_there_are_places(frames, monkeypatch):
    """However many calls wait at once, and whatever of them is for which worker."""
    videos, loader = frames
    send, most, seen = workers._Worker.send, [], {}

    def sends(self, wanted):
        send(self, wanted)
        most.append(len(self.sent))
        for _, _, (chunk, *_) in self.sent.values():
            assert seen.setdefault(chunk.video, self) is self  # which has it in memory
        assert len(set(self.sent) | set(self.free)) == PLACES

    monkeypatch.setattr(workers._Worker, "send", sends)
    chunks = videos.chunks("train")
    with WorkerLoader(loader, 2, 12) as two, \
            Prefetcher(lambda some: two.load(some, 0), [chunks] * 6, 6, 6) as results:
        expected = loader.load(chunks, 0)
        assert all(result.tobytes() == expected.tobytes() for result in results)
    assert max(most) == PLACES


def test_signals_to_all_processes_do_not_end_a_worker(frames):
    with WorkerLoader(frames[1], 1, 4) as one:
        for number in (signal.SIGINT, signal.SIGTERM):  # the first before it has begun
            os.kill(one._workers[0].process.pid, number)
            assert one.load(frames[0].chunks("test")[:1]).any()
        assert one.in_flight == 2
    assert frames[1].in_flight == 1


def test_a_video_error_comes_through_and_the_others_go_on(figures_root, tmp_path):
    split, chosen = figures.read(figures_root), options(figures_root)
    found = Videos(split, chosen).found
    gone = tmp_path / "gone.avi"
    bad = [split.train[0]._replace(path=gone), split.train[1]._replace(path=tmp_path)]
    split = split._replace(train=(*bad, *split.train[2:]))
    videos = Videos(split, chosen, found)
    chunks = [c for side in videos.sides for c in videos.chunks(side)]
    good = [c for c in chunks if c.video > 1][:3]
    first, second = (next(c for c in chunks if c.video == place) for place in (0, 1))
    with WorkerLoader(FrameLoader(videos.source, chosen, "torch"), 1, 12) as loader:
        with pytest.raises(VideoError) as caught:
            loader.load([*good, first, second, *good], 0)
        assert str(caught.value) == f"{gone}: no such file" and caught.value.path == gone
        assert any("Traceback" in note for note in caught.value.__notes__)
        assert loader.load(good).shape == (3, 2, 32, 32, 3)


def test_a_video_that_has_fewer_frames_than_when_they_were_counted(frames):
    videos, _ = frames
    name = videos.source.videos[videos.sides["train"][0]].name
    more = Videos(videos.split, videos.config, videos.found | {name: videos.found[name] + 40})
    chunks = [chunk for chunk in more.chunks("train")
              if chunk.video == videos.sides["train"][0]]
    loader = FrameLoader(more.source, videos.config, "torch")
    with WorkerLoader(loader, 1, 12) as working, \
            pytest.raises(VideoError, match=f"{name}.avi: has .* but had at least"):
        working.load(chunks)


def test_an_exception_that_cannot_be_sent_is_told():
    class Odd(Exception):
        pass

    assert repr(workers._to_send(Odd("why"))) == "RuntimeError('Odd: why')"
    same = workers._to_send(InputError("x"))
    assert isinstance(same, InputError)


def test_a_worker_that_dies_is_told_with_its_file_and_ends_all(frames, figures_root, tmp_path):
    """At once, in every call that waits, and the other worker is gone too."""
    videos, _ = frames
    chosen = options(figures_root)
    slow = tmp_path / "slow.avi"
    stuck = videos.sides["train"][0]
    listed = list(videos.source.videos)
    listed[stuck] = listed[stuck]._replace(path=slow)
    source = FrameSource(listed, chosen.frame_step, chosen.context, 10**9)
    loader = WorkerLoader(FrameLoader(source, chosen, "torch"), 2, 12)
    with loader:
        process = loader._workers[stuck % 2].process
        others = [c for c in videos.chunks("test") if c.video % 2 == stuck % 2][:1]
        loader.load(others)  # it is up
        os.kill(process.pid, signal.SIGSTOP)
        failed, calls = [], []

        def call():
            try:
                loader.load(videos.chunks("train"), 0)
            except WorkerDied as error:
                failed.append(str(error))

        for _ in range(3):
            calls.append(threading.Thread(target=call))
            calls[-1].start()
        wait_until(lambda: len(loader._workers[stuck % 2].sent) == PLACES)
        os.kill(process.pid, signal.SIGKILL)
        began = time.monotonic()
        for thread in calls:
            thread.join(10)
        assert time.monotonic() - began < 2
        assert len(set(failed)) == 1 and len(failed) == 3
        assert failed[0] == (f"loader process {process.pid} was killed by signal 9 (SIGKILL); it "
                             f"held {slow}")
        with pytest.raises(WorkerDied, match="SIGKILL"):
            loader.load(others)
        pids = [worker.process.pid for worker in loader._workers]
        wait_until(lambda: not any(map(alive, pids)), 2)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)  # nor as a zombie


def test_an_error_while_starting_leaves_no_process(frames, monkeypatch):
    def fails(*_):
        raise OSError("no")

    def dies(_, __, pid):
        os.kill(pid, signal.SIGKILL)
        raise BrokenPipeError

    before = children()
    monkeypatch.setattr(workers.reduction, "send_handle", fails)
    with pytest.raises(OSError, match="^no$"):
        WorkerLoader(frames[1], 2, 12)
    monkeypatch.setattr(workers.reduction, "send_handle", dies)
    with WorkerLoader(frames[1], 2, 12) as loader:
        wait_until(lambda: loader._error is not None)
        with pytest.raises(WorkerDied, match="SIGKILL.*held no file"):
            loader.load(frames[0].chunks("test"))
    assert len(children() - before) <= 1  # multiprocessing's own tracker
    with pytest.raises(ValueError, match="workers is 0"):
        WorkerLoader(frames[1], 0, 12)


def never_reads(*_):
    """In place of a worker."""
    signal.pause()


def test_nothing_waits_until_workers_have_begun(frames, monkeypatch):
    """However long the list of videos is: they import for a second."""
    video = frames[0].source.videos[0]
    source = FrameSource([video._replace(name=f"{i:0500}") for i in range(4000)], 5, 2, 0)
    loader = FrameLoader(source, frames[1].config, "torch")
    assert len(pickle.dumps(loader)) > 2e6
    monkeypatch.setattr(workers, "_work", never_reads)
    made = []
    thread = threading.Thread(target=lambda: made.append(WorkerLoader(loader, 1, 12)), daemon=True)
    thread.start()
    thread.join(10)
    assert made
    made[0].close()


def calls(loader, chunks, count):
    """Threads that load, and a list of what goes wrong in them."""
    errors = []

    def call():
        try:
            loader.load(chunks, 0)
        except Exception as error:
            errors.append(str(error))

    threads = [threading.Thread(target=call, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, errors


def test_closing_ends_calls_that_wait(frames, monkeypatch):
    """And what was answered in the same moment is let go (a thread's traceback fails the test)."""
    end = WorkerLoader._end

    def ends(self):
        if self._closing:
            wait_until(lambda: all(w.connection.poll() for w in self._workers if w.sent))
        end(self)

    with WorkerLoader(frames[1], 2, 12) as loader:
        loader.load(frames[0].chunks("test"))
        threads, errors = calls(loader, frames[0].chunks("train") * 3, 3)
        wait_until(lambda: all(worker.sent for worker in loader._workers))
        monkeypatch.setattr(WorkerLoader, "_end", ends)
        loader.close()
        for thread in threads:
            thread.join(10)
        assert len(errors) == 3 and "the loader was closed" in errors
        with pytest.raises(ValueError, match="is closed"):
            loader.load([])


def test_an_answer_that_cannot_be_read_ends_all(frames, monkeypatch):
    def receive(self):
        self.connection.recv_bytes()
        raise TypeError("what")

    monkeypatch.setattr(workers._Worker, "receive", receive)
    with WorkerLoader(frames[1], 1, 12) as loader:
        threads, errors = calls(loader, frames[0].chunks("test")[:1], 1)
        threads[0].join(10)
        file = frames[0].source.videos[frames[0].chunks("test")[0].video].path
        assert errors == [f"loader process {loader._workers[0].process.pid} cannot be understood "
                          f"(TypeError: what); it held {file}"]


def test_a_copy_of_the_process_does_not_end_its_workers(frames, monkeypatch):
    """A fork that ends as programs do calls what was registered for that."""
    with WorkerLoader(frames[1], 1, 12) as loader:
        with monkeypatch.context() as patch:
            patch.setattr(workers.os, "getpid", lambda: 1)
            loader.close()
        assert loader.load(frames[0].chunks("test")[:1]).any()


def test_nothing_is_left_of_loaders_that_were_closed(frames):
    """While the object is still there."""
    def left():
        shared = Path("/proc/self/maps").read_text().count("recres-")
        return len(os.listdir("/proc/self/fd")), threading.active_count(), shared

    gc.collect()  # what other tests' exceptions still hold, with the loaders that raised them
    shared_before = left()[2]
    loaders, found = [], []
    for _ in range(3):
        with WorkerLoader(frames[1], 1, 12) as loader:
            loader.load(frames[0].chunks("test")[:1])
            assert left()[2] == shared_before + 1
        loaders.append(loader)
        found.append(left())
    assert found[0] == found[1] == found[2] and found[0][2] == shared_before


SCRIPT = """
import sys
from recres import config
from recres.datasets import figures
from recres.loader import FrameLoader, Videos
from recres.workers import WorkerLoader

if __name__ == "__main__":
    chosen = config.resolve({"root": sys.argv[1], "image_size": 32})
    videos = Videos(figures.read(sys.argv[1]), chosen)
    loader = WorkerLoader(FrameLoader(videos.source, chosen, "torch"), 2, 12)
    loader.load(videos.chunks("test"))
    print(*(worker.process.pid for worker in loader._workers), flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "fails":
        raise KeyError("unexpected")
    while True:
        loader.load(videos.chunks("train"), 0)
"""


@pytest.mark.parametrize("how", ["killed", "fails"])
def test_workers_end_with_the_process_that_asked(figures_root, tmp_path, how):
    """Killed while they are at work; or ended by an exception, without anybody closing them."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, script, str(figures_root), how],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stdin and process.stdout
    pids = set(map(int, process.stdout.readline().split()))
    assert len(pids) == 2 and pids <= children(process.pid)
    process.stdin.write(b"\n")
    process.stdin.flush()
    if how == "killed":
        time.sleep(0.05)
        process.kill()
    process.wait(10)
    wait_until(lambda: not any(map(alive, pids)), 2)
    _, complaint = process.communicate()
    assert (b"KeyError" in complaint) == (how == "fails") and complaint.count(b"Traceback") <= 1


def test_a_run_that_is_killed_and_stopped_ends_as_if_it_had_not_been(tiny, trained, tmp_path):
    """By SIGKILL; by Ctrl-C, which a terminal sends to all processes of the group; and gone on with
    by another number of workers. No process is left behind."""
    folder = tmp_path / "run"
    arguments = ["--out", str(folder), *tiny, "--workers", "2", "--save-seconds", "0"]
    for number, least in ((signal.SIGKILL, 1), (signal.SIGINT, 3)):
        process = subprocess.Popen([sys.executable, "-m", "recres.train", *arguments],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   start_new_session=True)
        wait_until(lambda least=least: len(read_metrics(folder / "metrics.jsonl")) >= least, 30)
        started = children(process.pid)
        assert len(started) >= 2
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.kill()
        _, complaint = process.communicate(timeout=20)
        wait_until(lambda started=started: not any(map(alive, started)), 2)
        arguments = ["--resume", str(folder)]
    assert process.returncode == 130 and b"Traceback" not in complaint
    assert complaint.decode().strip().splitlines()[-1].startswith("stopped; to go on: python")
    assert read_json(folder / "config.json")["options"]["workers"] == 2
    assert train.main([*arguments, "--workers", "0"]) == 0
    assert read_json(folder / "config.json")["options"]["workers"] == 0
    assert_same_run(folder, trained)


def test_a_run_whose_worker_dies_says_how_to_go_on(tiny, trained, scanned, tmp_path, monkeypatch,
                                                   capsys):
    folder = tmp_path / "run"
    load, killed = WorkerLoader.load, []

    def loads(self, chunks, epoch=None, backwards=False):
        if epoch == 1 and not killed:
            killed.append(self._workers[0].process.pid)
            os.kill(killed[0], signal.SIGKILL)
        return load(self, chunks, epoch, backwards)

    monkeypatch.setattr(WorkerLoader, "load", loads)
    assert train.main(["--out", str(folder), *tiny, "--workers", "1"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: loader process {killed[0]} was killed by signal 9 (SIGKILL); "
                           "it held ")
    assert line.endswith("; to go on from the last checkpoint: python -m recres.train --resume "
                         f"{folder}")
    assert len(read_metrics(folder / "metrics.jsonl", "evaluation")) == 1
    assert train.main(["--resume", str(folder), "--workers", "0"]) == 0
    assert_same_run(folder, trained)


def test_a_rehearsal_ends_its_workers(figures_root, scanned):
    chosen = options(figures_root, width=4, workers=1)
    before = children()
    with opened(chosen, Enough(0.0)) as (job, trainer):
        assert isinstance(trainer.loader, WorkerLoader)
        assert len(children() - before) >= 1
        trainer.loader.load(trainer.chunks[:1])
        assert 20e6 < job.workers.peak_bytes < 2e9
        pid = job.workers._workers[0].process.pid
    assert not Path(f"/proc/{pid}").exists()
    assert job.workers.peak_bytes == 0


def test_what_workers_import_is_no_mpi_and_no_gpu():
    """Under mpiexec a worker must not take itself for a rank."""
    code = ("import sys, recres.train, recres.workers; "
            "sys.exit(any(name in sys.modules for name in ('mpi4py', 'cupy')))")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
