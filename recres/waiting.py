"""Notices where data is what the step waits for, and says what would help."""

from __future__ import annotations

from collections import deque

from recres.config import Config

UPDATES, SECONDS = 20, 10.0  # the updates that are looked at: so many, or as many as take so long
FEWEST = 3
TOO_MUCH = 0.25  # of their time


class Waiting:
    """Fed with the times of each update; what there is to say of them, at most once an epoch.

    hint: what would help.
    """

    def __init__(self, hint: str = "") -> None:
        self._hint = hint
        self._epoch, self._said = 0, False
        self._window: deque[tuple[float, float]] = deque()

    def update(self, epoch: int, data: float, compute: float) -> str | None:
        """An update of an epoch (from 1) waited `data` seconds and computed for the others: a line
        where the last ones have waited too much. The first of an epoch always waits."""
        if epoch != self._epoch:
            self._epoch, self._said = epoch, False
            self._window.clear()
            return None
        self._window.append((data, compute))
        if len(self._window) > UPDATES:
            self._window.popleft()
        waited, whole = sum(d for d, _ in self._window), sum(map(sum, self._window))
        enough = len(self._window) >= UPDATES or (len(self._window) >= FEWEST and whole >= SECONDS)
        if self._said or not enough or waited <= TOO_MUCH * whole:
            return None
        self._said = True
        return f"epoch {epoch}: {waited / whole:.0%} of the time is waiting for data{self._hint}"


def hint(config: Config, cores: int) -> str:
    """What would make data come sooner, of what these options do not do already; cores: that this
    process may use."""
    if config.features or config.freeze != "none":  # features from a disk
        return ""
    helps = []
    more = min(cores, 2 * config.workers or 4)
    if more > max(config.workers, 1):
        helps.append(f"--workers {more}")
    if config.frames is None and config.input == "frames":
        helps.append("a store of frames (recres.data prepare, --frames)")
    return f"; {', or '.join(helps)}, would help" if len(helps) > 1 else (
        f"; {helps[0]} would help" if helps else "")
