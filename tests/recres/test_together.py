"""What one of several processes does in an update, without the others; and what is written down of
an update that several made."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from recres import commands, config, replay, train
from recres.commands import Interrupted, RunFailed, bar
from recres.errors import InputError
from recres.guard import Guard
from recres.loader import Chunk
from recres.runs import read_metrics
from recres.together import Together, choose_card, own_device
from tensorlite import Tensor, distributed, nn, optim
from tensorlite.distributed import Processes
from tests.recres.test_distributed_training import errors, run
from tests.recres.test_trainer import open_trainer


class Three(Processes):
    """The first of three, of which the others have nothing to add."""

    size = 3


def together(processes: Processes, **values) -> Together:
    model = nn.Linear(2, 2, rng=np.random.default_rng(0))
    options = config.resolve({"root": "x", "processes": processes.size, **values})
    return Together(processes, model, optim.Adam(model.named_parameters()), options)


def chunks(*sizes: int) -> list[list[Chunk]]:
    return [[Chunk(i, i, 0) for i in range(size)] for size in sizes]


def test_the_loss_of_a_process_counts_on_any_device(monkeypatch):
    """A number stays one where the host does not run ahead, on a GPU as well."""
    monkeypatch.setattr(Tensor, "device", "cuda:0")
    assert together(Three()).combine(0.75, 0.5) == 0.75


def test_without_a_chunk_the_loss_is_what_the_others_have(figures_root, tmp_path, monkeypatch):
    """An array where the host runs ahead, a number where it does not: sums are of one kind."""
    job = open_trainer(tmp_path / "run", figures_root)
    monkeypatch.setattr(job.together, "share", lambda batches: [])
    kinds = []

    def combine(loss, weight):
        kinds.append(loss)
        raise StopIteration

    monkeypatch.setattr(job.together, "combine", combine)
    for job.ahead in (False, True):
        with pytest.raises(StopIteration):
            job._update([job.chunks[:2]], iter(()))
    assert isinstance(kinds[0], float)
    assert isinstance(kinds[1], np.ndarray) and kinds[1].dtype == np.float32
    job.run.unlock()


def test_what_is_written_down_is_what_norms_went_by():
    update = chunks(4, 2)
    assert together(Processes()).shares(update) == update
    cut = together(Three()).shares(update)
    assert [len(batch) for batch in cut] == [2, 1, 1, 1, 1]
    assert sorted(sum(cut, [])) == sorted(sum(update, []))
    assert together(Three(), sync_norm=True).shares(update) == update


def test_gradients_are_sent_early_by_all_or_by_none():
    whole, norms = together(Three()), together(Three(), sync_norm=True)
    assert whole.may_send(chunks(3, 2)) and norms.may_send(chunks(2, 3))
    assert not norms.may_send(chunks(3, 2))


def test_a_loss_that_is_not_finite_is_written_down_with_its_scale(figures_root, tmp_path,
                                                                  monkeypatch):
    job = open_trainer(tmp_path / "run", figures_root)
    job.scaler, job._bar = optim.LossScaler(512.0), bar("", "")
    scales = []
    monkeypatch.setattr(Guard, "failed", lambda self, line, what, batches, scale=1.0:
                        scales.append(scale))
    monkeypatch.setattr(job, "accumulate", lambda *_: float("nan"))
    job._update([job.chunks[:2]], iter([np.zeros(1)]))
    assert scales == [512.0]
    job.run.unlock()


def test_a_process_that_alone_is_asked_to_stop_says_so(monkeypatch, capsys):
    """Outside training, where it cannot agree with the others."""
    def interrupted(job):
        raise Interrupted("interrupted")

    monkeypatch.setattr(train.Job, "do", interrupted)
    one = Three()
    one.rank = 1
    monkeypatch.setattr(one, "share", lambda _: ("x", config.resolve({"root": "x"}), {}, None, {}))
    for alone in (True, False):
        monkeypatch.setattr(one, "all_end", lambda alone=alone: not alone)
        assert commands.run(train.parser(), lambda _: train._follow(one), []) == 130
        said = capsys.readouterr().err.split("\n")
        assert ("rank 1 of 3 was asked to stop, and all stop; go on with: mpiexec -n 3 python -m "
                "recres.train --resume x" in said) == alone


@pytest.mark.parametrize("nccl", [None, SimpleNamespace(available=False)])
def test_without_nccl_the_run_says_what_it_lacks(nccl, monkeypatch):
    """Where CuPy has no such module, or an empty one."""
    like = SimpleNamespace(device=SimpleNamespace(id=0))
    monkeypatch.setattr(distributed.sums, "require_cuda", lambda device: None)
    monkeypatch.setattr(distributed.gradients, "MPIProcesses", Three)
    monkeypatch.setattr(Three, "sums", lambda *_: distributed.sums.NcclSums(None, None, like),
                        raising=False)
    monkeypatch.setattr(Three, "comm", None, raising=False)
    monkeypatch.setattr(Three, "MPI", SimpleNamespace(MAX=0, IN_PLACE=0), raising=False)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cupy.cuda", SimpleNamespace(nccl=nccl))
    with pytest.raises(RunFailed, match="processes on GPUs need NCCL, .* --device cpu"):
        together(Three())


def test_an_update_of_two_processes_is_replayed(trained, tiny, tmp_path, capsys):
    """It was spoilt in the run alone; replayed, it has the loss of the update, with synchronised
    norms that of one process with the whole batch."""
    folder = tmp_path / "run"
    ended, _ = run(2, "nan:2", "--out", str(folder), *tiny, "--batch", "6", "--sync-norm")
    (line,) = errors(ended)
    assert "run again, it was finite" in line
    assert replay.main([str(folder / "nonfinite-2.json")]) == 1
    (again,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("again")]
    loss = float(again.split()[4])
    expected = read_metrics(trained / "metrics.jsonl")[1]["loss"]
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("device", "local_rank", "local_size", "cards", "expected"), [
    ("cuda", 0, 2, 2, "cuda:0"), ("cuda", 1, 2, 2, "cuda:1"), ("cuda", 1, 2, 8, "cuda:1"),
    ("cuda", 0, 2, 1, "cuda:0"), ("cuda", 1, 2, 1, "cuda:0"), ("cuda:0", 3, 4, 1, "cuda:0"),
    ("cuda", 0, 1, 8, "cuda:0"), ("cuda:5", 0, 1, 8, "cuda:5"),
    ("cuda:1", 0, 2, 2, "--device cuda:1: is one card, and 2 processes"),
    ("cuda:0", 1, 2, 2, "--device cuda:0: is one card, and 2 processes"),
    ("cuda:1", 1, 2, 1, "--device cuda:1: is one card, and 2 processes"),
    ("cuda", 2, 4, 3, "4 processes on this machine need a card each, and they see 3")])
def test_the_card_of_a_process(device, local_rank, local_size, cards, expected):
    if expected.startswith("cuda"):
        assert choose_card(device, local_rank, local_size, cards) == expected
    else:
        with pytest.raises(InputError, match=expected):
            choose_card(device, local_rank, local_size, cards)


class Neighbours(Processes):
    """One of two on a machine; `cards` is what the other says of its card."""

    def __init__(self, local_rank: int, cards: str) -> None:
        self.rank = self.local_rank = local_rank
        self.size = self.local_size = 2
        self.other = cards

    def neighbours(self, value):
        return [value, self.other] if self.local_rank == 0 else [self.other, value]


def test_one_card_that_all_see_is_not_each_its_own(monkeypatch):
    monkeypatch.setattr("recres.together.visible_cards", lambda: ["0000:1b:00.0"])
    for rank in (0, 1):
        assert own_device("cuda", Neighbours(rank, "0000:3d:00.0")) == "cuda:0"
        with pytest.raises(InputError, match="^--device cuda: 2 processes .*and 2 see the same one "
                                             r"alone \(0000:1b:00.0\)"):
            own_device("cuda", Neighbours(rank, "0000:1b:00.0"))
        assert own_device("cpu", Neighbours(rank, "")) == "cpu"
    monkeypatch.setattr("recres.together.visible_cards", lambda: ["0000:1b:00.0", "0000:3d:00.0"])
    assert own_device("cuda", Neighbours(1, "0000:1b:00.0")) == "cuda:1"
    assert own_device("cuda:1", Processes()) == "cuda:1"


def test_processes_on_a_gpu_without_cupy_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(InputError, match="^--device 'cuda:0': CuPy is not installed"):
        own_device("cuda", Neighbours(0, ""))
