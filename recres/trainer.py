"""The training loop: updates, held-out evaluations, checkpoints.

What an update does is determined by the parameters and by (seed, epoch, chunk); what is saved is
saved between updates. So a run that is killed goes on from its last checkpoint through the same
updates again, and ends with the same bits. Where the folder cannot be written to, the run ends
after the update, and what it holds in memory is put elsewhere.

On a GPU the host runs ahead: while an update is computed, the next batch is copied there and the
gradients of the next update queued, and only then is it asked how the update before went: if that
one failed, the parameters are still as it had them.

Several processes make the updates together (`recres.together`): rank 0 has a `Trainer`, the others
have a `Follower`, which writes nothing.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from recres import checkpoint
from recres.checkpoint import Progress
from recres.checkpoints import NEWEST, Checkpoints, NotWritten, State, has_best
from recres.commands import Interrupted, Interrupts, RunFailed
from recres.config import Config
from recres.evaluation import chunk_labels, score
from recres.guard import Guard
from recres.loader import Chunk, Loader, Videos, plan_epoch, prefetch, updates_an_epoch
from recres.metrics import Scores
from recres.runs import MetricsLog, Run, read_metrics
from recres.tensorboard import Events
from recres.together import Together
from recres.waiting import Waiting, hint
from tensorlite import Tensor, cross_entropy, nn, optim
from tensorlite.device import array_module
from tensorlite.distributed import Processes
from tensorlite.transfer import Uploads, read_later

NORMS_LOGGED = 200  # updates of a run, at most, whose gradient norms are logged stage by stage


class _Update(NamedTuple):
    """An update that was queued: its line of the log as far as it is known, what else there will be
    to know, when it began and how long it waited for data, and its batches."""

    line: dict[str, Any]
    loss: Callable[[], Any]
    norms: Callable[[], dict[str, float]]
    outcome: Callable[[], optim.Outcome]
    began: float
    waited: float
    batches: Sequence[Sequence[Chunk]]


class Trainer:
    """Trains `model` on the training side of `videos`, into the folder of `run`.

    loader: makes the inputs, and says what else `model` takes with them.
    about: what the saved model carries as metadata. log: gets the line of each epoch. `progress`
    says how far training has come. processes: those that train together.
    """

    def __init__(self, model: nn.Module, loader: Loader, videos: Videos, run: Run,
                 about: dict[str, str], interrupts: Interrupts,
                 log: Callable[[str], object] = print,
                 processes: Processes | None = None) -> None:
        self.model, self.loader, self.videos, self.run = model, loader, videos, run
        self.config, self.about, self.interrupts, self.log = run.config, about, interrupts, log
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.optimizer = optim.Adam(trained, lr=self.config.lr)
        self.scaler = optim.LossScaler() if self.config.precision == "float16" else None
        self.uploads = Uploads(self._device)
        # Whether the host runs ahead of the updates: not where one may have to be taken back.
        self.ahead = self.uploads.device != "cpu" and self.config.on_nonfinite == "stop"
        self._pending: _Update | None = None
        self._settled = 0.0  # when the update before was done
        self.chunks = videos.chunks("train")
        self.updates = total_updates(len(self.chunks), self.config)
        self.an_epoch = updates_an_epoch(len(self.chunks), self.config)
        self.epochs = -(-self.updates // self.an_epoch)
        self.schedule = make_schedule(self.config.schedule, self.config.lr, self.updates)
        self._stages = parameters_by_stage(trained)
        self.metrics: MetricsLog | None = None
        self.events: Events | None = None
        self._bar: Any = None
        self.processes = processes or Processes()
        self.together = Together(self.processes, model, self.optimizer, self.config)
        self.progress, self._saved = Progress(), time.monotonic()
        self._open()
        self.progress = self.together.begin(self.progress, self.scaler)
        self.guard = Guard(self)
        cores = len(os.sched_getaffinity(0)) // self.processes.local_size
        self.waiting = Waiting(hint(self.config, cores))

    def _open(self) -> None:
        """Take up the newest checkpoint, or write the first."""
        newest = self.run.path / NEWEST
        written = None
        if newest.is_file():
            self.progress = checkpoint.load(newest, self.model, self.optimizer, self.scaler)
            written = self.progress.update
            self._see_to_best()
        self.checkpoints = Checkpoints(self.run.path, self.config.keep, written, self.processes)
        if not newest.is_file():
            self.save()  # before anything is trained: the start need not be read again

    def _see_to_best(self) -> None:
        """Look for another best model where the one so far is not there."""
        progress = self.progress
        if progress.best and not has_best(self.run.path, progress.best["epoch"], self.log):
            progress.best = None
            if progress.epoch == self.epochs:  # all but the evaluation of the last is done
                progress.epoch, progress.done = self.epochs - 1, self.an_epoch

    @np.errstate(all="ignore")  # what is not finite is found out and said below
    def train(self) -> None:
        """Go on to the last epoch. Raises Interrupted, with everything saved, when asked to stop,
        and RunFailed where the loss is no longer finite or the folder cannot be written to."""
        self.metrics = MetricsLog(self.run.path / "metrics.jsonl")
        self.metrics.extend(self.progress.unlogged)
        if self.config.tensorboard:
            self.events = Events(self.run.path, self.progress.update, self.progress.epoch)
        try:
            self._epochs()
            self._check(wait=True)
        except NotWritten as error:
            raise self._rescue(error) from error
        except (Exception, Interrupted) as ended:
            try:
                self._check(wait=True)
            except NotWritten as error:
                raise self._rescue(error, ended) from error
            raise
        finally:
            self.checkpoints.close()
            self.metrics.close()
            if self.events is not None:
                self.events.close()

    def _epochs(self) -> None:
        with self.interrupts.deferred():
            while self.progress.epoch < self.epochs:
                self._epoch()
            self._heed_interrupts()
        if self.interrupts.requested:  # after the last look that all took
            raise Interrupted(self.interrupts.hint)

    def record(self, line: dict[str, Any]) -> None:
        """Add a line to the log."""
        assert self.metrics is not None
        self.metrics.append(line)
        if self.events is not None:
            self.events.add(line)

    def save(self) -> None:
        """Have the checkpoint written, while training goes on."""
        self._settle()
        self._check()
        self.checkpoints.save(*self._snapshot(),
                              before=self.metrics.sync if self.metrics else lambda: None)
        self._saved = time.monotonic()

    def _snapshot(self) -> State:
        self.progress.unlogged = list(self.metrics.unwritten) if self.metrics else []
        return State(*checkpoint.snapshot(self.model, self.optimizer, self.progress, self.scaler),
                     self.progress.update)

    def _rescue(self, error: NotWritten, ended: BaseException | None = None) -> RunFailed:
        """See `Checkpoints.rescue`; `ended`: what ends training anyway."""
        state = None
        if ended is None:
            try:
                self._settle()
                state = self._snapshot()
            except Exception as failed:  # in an update, by which the norms' statistics are spoilt
                ended = failed
        return self.checkpoints.rescue(state, self.progress.update, error,
                                       None if isinstance(ended, Interrupted) else ended)

    def _check(self, wait: bool = False) -> None:
        """NotWritten if something could not be; `wait` for what is being written."""
        (self.checkpoints.wait if wait else self.checkpoints.check)()
        for log in (self.metrics, self.events):
            if log is not None and log.error is not None:
                raise NotWritten from log.error

    def _epoch(self) -> None:
        progress = self.progress
        left = self.updates - self.an_epoch * progress.epoch
        updates = plan_epoch(self.chunks, self.config, progress.epoch)[progress.done : left]
        batches = [batch for update in updates for batch in self.together.share(update)]
        frames = self.config.context * sum(map(len, batches))
        load = lambda batch: self.uploads.send(  # noqa: E731
            self.loader.load(batch or self._borrowed, progress.epoch))
        self.model.train()
        with (prefetch(self.loader, load, batches) as inputs,
              tqdm(total=frames, unit="frame", unit_scale=True, leave=False,
                   disable=True if self.processes.rank else None,
                   desc=f"epoch {progress.epoch + 1}/{self.epochs}") as self._bar):
            for update in updates:
                self._update(update, inputs)
                self.interrupts.updated()
                self._check()
                self._heed_interrupts()
                self._save_now_and_then()
        self.save()
        with self.interrupts.at_once():  # it may take long, and nothing of it is needed
            self._evaluate()
            self.processes.wait()
        progress.epoch, progress.done = progress.epoch + 1, 0
        self._heed_interrupts()
        self.save()

    def _heed_interrupts(self) -> None:
        """Interrupted, with everything saved, if any process was asked to stop."""
        if self.processes.any(self.interrupts.requested):
            self.save()
            self._check(wait=True)
            raise Interrupted(self.interrupts.hint)

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved > self.config.save_seconds \
                and not self.checkpoints.busy:
            self.save()

    def _update(self, batches: Sequence[Sequence[Chunk]], inputs: Iterator[Any]) -> None:
        """One step of the optimiser, on the mean loss over all chunks of `batches`, of which this
        process computes its share."""
        progress, size = self.progress, sum(map(len, batches))
        mine, may_send = self.together.share(batches), self.together.may_send(batches)
        batches = self.together.shares(batches)
        began, waited, loss = time.perf_counter(), 0.0, self._nothing
        self.guard.begin()
        self.optimizer.zero_grad()
        for batch in mine:
            asked = time.perf_counter()
            array = self.uploads.take(next(inputs))
            waited += time.perf_counter() - asked
            with self.together.walk(last=may_send and batch is mine[-1]):
                loss = loss + self.accumulate(array, batch, size)
            self._bar.update(len(batch) * self.config.context)
        loss = self.together.combine(loss, sum(map(len, mine)) / size)
        self._settle()  # before the parameters move on: if that one failed, they are as it had them
        self.optimizer.lr = self.schedule(progress.update)
        line = {"kind": "update", "update": progress.update + 1, "epoch": progress.epoch + 1,
                "loss": None, "learning_rate": self.optimizer.lr, "gradient_norm": None,
                "chunks": size}
        if self.ahead or math.isfinite(loss):
            logged = progress.update % -(-self.updates // NORMS_LOGGED) == 0
            norms = optim.grad_norms_later(self._stages if logged else {})
            outcome = self.optimizer.guarded_step(self.config.clip_norm, self.scaler)
            reading = read_later(loss) if self.ahead else lambda: loss
            self._pending = _Update(line, reading, norms, outcome, began, waited, batches)
        else:
            scale = 1.0 if self.scaler is None else self.scaler.scale
            self._failed(line, f"the loss is {loss}", batches, scale)
        progress.update, progress.done = progress.update + 1, progress.done + 1
        self.together.check(progress.update)
        if not self.ahead:
            self._settle()

    def _settle(self) -> None:
        """Wait for the update that is under way, and log it."""
        if self._pending is None:
            return
        (line, reading, norms, outcome, began, waited, batches), self._pending = self._pending, None
        loss, by_stage, (norm, skipped, scale) = float(reading()), norms(), outcome()
        now = time.perf_counter()
        seconds, self._settled = now - max(began, self._settled), now
        bad_gradient = skipped and (self.scaler is None or scale < 1)
        if bad_gradient or not math.isfinite(loss):
            bad = f"gradient's norm is {norm}" if math.isfinite(loss) else f"loss is {loss}"
            self._failed(line, f"the {bad}", batches, scale)
            return
        self.guard.passed()
        line |= {"loss": loss, "gradient_norm": None if skipped else norm}
        if by_stage and not skipped:
            line["gradient_norms"] = {name: value / scale for name, value in by_stage.items()}
        if self.scaler is not None:
            line |= {"loss_scale": scale, "skipped": skipped}
        waited = min(waited, seconds)
        self.progress.seconds += seconds
        self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self.record({
            **line, "data_time": round(waited, 6), "compute_time": round(seconds - waited, 6),
            "frames_per_second": round(line["chunks"] * self.config.context / seconds, 3)})
        if text := self.waiting.update(line["epoch"], waited, seconds - waited):
            self.log(text)

    def _failed(self, line: dict[str, Any], what: str, batches: Sequence[Sequence[Chunk]],
                scale: float = 1.0) -> None:
        """See `Guard.failed`; where the update is left out, all processes leave it out."""
        self.guard.failed(line, what, batches, scale)
        self.together.leave_out()

    def accumulate(self, inputs: Any, batch: Sequence[Chunk], size: int) -> Any:
        """Add the gradients of a batch's share of the mean loss over `size` chunks; that share, as
        a number, or, where the host runs ahead, an array."""
        if not batch:
            return self.together.go_along(lambda: self._logits(inputs, self._borrowed))
        logits = self._logits(inputs, batch)
        labels = chunk_labels(self.videos, batch)
        loss = cross_entropy(logits, labels, reduction="sum") * (1 / size)
        value = loss.data if self.ahead else float(loss.item())
        if self.ahead or math.isfinite(value) or not self.together.alone:  # others may wait in it
            if self.scaler is None:
                loss.backward()
            else:
                self.scaler.backward(loss)
        return value

    def _logits(self, inputs: Any, batch: Sequence[Chunk]) -> Tensor:
        return self.model(Tensor(inputs, device=self._device), **self.loader.arguments(batch))

    @property
    def _nothing(self) -> Any:
        """What losses are added to: see `accumulate`."""
        first = next(self.model.parameters()).data
        return array_module(first).zeros((), np.float32) if self.ahead else 0.0

    @property
    def _borrowed(self) -> list[Chunk]:
        """What a process computes on that has no chunk of a batch but has to go along."""
        return self.chunks[:1]

    @property
    def _device(self) -> str:
        return next(self.model.parameters()).device

    def _evaluate(self) -> None:
        """Evaluate on the held-out groups, if there are any."""
        self._evaluated(score(self.model, self.loader, self.videos, "holdout",
                              processes=self.processes)
                        if self.videos.sides["holdout"] else None)

    def _evaluated(self, scores: Scores | None) -> None:
        """Log an epoch and what came out; keep the model if it is the best so far."""
        progress, epoch = self.progress, self.progress.epoch + 1
        lines = [line for line in read_metrics(self.run.path / "metrics.jsonl")
                 if line["epoch"] == epoch]
        if not lines:
            raise RunFailed(f"epoch {epoch}: all its updates were left out")
        chunks = sum(line["chunks"] for line in lines)
        loss = sum(line["loss"] * line["chunks"] for line in lines) / chunks
        text = f"epoch {epoch:3}/{self.epochs}  loss {loss:.4f}"
        found: dict[str, Any] = {"epoch": epoch, "update": progress.update, "training_loss": loss}
        best = True
        if scores is not None:
            if not math.isfinite(scores.loss):
                raise RunFailed(f"epoch {epoch}: the held-out loss is {scores.loss}")
            found |= {"video_error": scores.video_error, "chunk_error": scores.chunk_error,
                      "loss": scores.loss}
            best = progress.best is None or _rank(found) < _rank(progress.best)
            text += (f"  held-out: video error {scores.video_error:.3f}, loss {scores.loss:.4f}"
                     f"{' *' if best else '  '}")
        self.record({"kind": "evaluation", "side": "holdout", "best": best, **found})
        if best:
            self.checkpoints.save_best(self.model.state_dict(), {**self.about, "epoch": str(epoch)})
            progress.best = found
        seconds = sum(line["data_time"] + line["compute_time"] for line in lines)
        rate = chunks * self.config.context / seconds
        self.log(f"{text}  {seconds:.1f} s, {rate:.0f} frames/s")


class Follower(Trainer):
    """The trainer of every process but that of rank 0: it makes the same updates and its part of
    the evaluations, and writes nothing."""

    def _open(self) -> None:
        pass

    @np.errstate(all="ignore")
    def train(self) -> None:
        """Make the updates with the others."""
        self._epochs()

    def record(self, line: dict[str, Any]) -> None:
        """Nothing: rank 0 does."""

    def save(self) -> None:
        """See how the update under way went, as rank 0 does where it saves."""
        self._settle()

    def _check(self, wait: bool = False) -> None:
        pass

    def _save_now_and_then(self) -> None:
        pass

    def _failed(self, line: dict[str, Any], what: str, batches: Sequence[Sequence[Chunk]],
                scale: float = 1.0) -> None:
        self.together.leave_out()  # if rank 0 does: otherwise it ends the run

    def _evaluated(self, scores: Scores | None) -> None:
        pass


def _rank(evaluation: dict[str, Any]) -> tuple[float, float]:
    """Smaller is better: video error first, then loss."""
    return evaluation["video_error"], evaluation["loss"]


def total_updates(n_chunks: int, config: Config) -> int:
    """How many updates a run on `n_chunks` chunks makes in all."""
    return config.updates or config.epochs * updates_an_epoch(n_chunks, config)


def parameters_by_stage(named: Iterable[tuple[str, Tensor]]) -> dict[str, list[Tensor]]:
    """Parameters by the part of the network that they are in: "stem", "block1", … "fc"."""
    stages: dict[str, list[Tensor]] = {}
    for name, parameter in named:
        part = name.partition(".")[0]
        stages.setdefault("stem" if part in ("conv1", "norm1") else part, []).append(parameter)
    return stages


def make_schedule(kind: str, lr: float, updates: int) -> Callable[[int], float]:
    """The learning rate at each update, counted from 0; cosine rises over the first twentieth of
    the updates and falls to zero over the others."""
    if kind == "cosine":
        return optim.Cosine(lr, updates, warmup=updates // 20)
    return optim.Constant(lr)
