"""What a run logs, as event files for TensorBoard (--tensorboard).

metrics.jsonl stays the run's own log, and the event files are made from it: those of a run that is
gone on with are written anew up to where it goes on, so that no step is there twice and none is
missing, whatever a killed process left.
They are written by the caller's own thread: tensorboardX's dies of a full disk, and then whoever
logs waits for it for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recres.errors import InputError
from recres.runs import read_metrics

FOLDER = "tensorboard"  # in the run's
FLUSH_SECONDS = 10
UPDATE = {"loss": "training/loss", "learning_rate": "training/learning_rate",
          "gradient_norm": "gradient/norm", "loss_scale": "training/loss_scale",
          "data_time": "time/data", "compute_time": "time/compute",
          "frames_per_second": "time/frames_per_second"}
EVALUATION = {"training_loss": "epoch/training_loss", "loss": "holdout/loss",
              "video_error": "holdout/video_error", "chunk_error": "holdout/chunk_error"}


class Events:
    """The event files of the run in `folder`, written up to `update` and `epoch`, open for more.

    InputError where tensorboardX is not installed. Where they cannot be written any more, `error`
    says why, and no more is written.
    """

    def __init__(self, folder: Path, update: int, epoch: int) -> None:
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event
            from tensorboardX.summary import scalar
        except ImportError:
            raise InputError("--tensorboard: needs tensorboardX (pip install "
                             "'recres[tensorboard]')") from None
        log = folder / "metrics.jsonl"
        lines = [line for line in read_metrics(log) if line["update"] <= update]
        lines += [line for line in read_metrics(log, "evaluation") if line["epoch"] <= epoch]
        lines.sort(key=lambda line: (line["update"], line["kind"] == "evaluation"))
        for stale in (folder / FOLDER).glob("events.out.tfevents.*"):
            stale.unlink()
        self.error: OSError | None = None
        self._event, self._scalar = Event, scalar
        (folder / FOLDER).mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / FOLDER / "events"))
        # The log says how long each update took, not when it was.
        moment = time.time() - sum(map(_seconds, lines))
        for line in lines:
            moment += _seconds(line)
            self._write(line, moment)
        self._flush()

    def add(self, line: Mapping[str, Any]) -> None:
        """Take over a line of the log."""
        if self.error is None:
            try:
                self._write(line, time.time())
                if time.monotonic() - self._flushed > FLUSH_SECONDS:
                    self._flush()
            except OSError as error:
                self.error = error

    def close(self) -> None:
        """Write what is left, and close the file."""
        try:
            self._writer.close()
        except OSError as error:
            self.error = error

    def _write(self, line: Mapping[str, Any], moment: float) -> None:
        for name, value in scalars(line):
            self._writer.write_event(self._event(wall_time=moment, step=line["update"],
                                                 summary=self._scalar(name, value)))

    def _flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()


def scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What TensorBoard is to show of a line of the log: tags and values."""
    names = {"update": UPDATE, "evaluation": EVALUATION}.get(line["kind"], {})
    for key, name in names.items():
        if line.get(key) is not None:
            yield name, line[key]
    for stage, value in line.get("gradient_norms", {}).items():
        yield f"gradient/{stage}", value


def _seconds(line: Mapping[str, Any]) -> float:
    return line.get("data_time", 0.0) + line.get("compute_time", 0.0)
