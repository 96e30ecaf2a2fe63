"""Places of a run at which somebody may ask for its end, for tests that do so at each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recres import checkpoint, feature_store, train, trainer
from recres.trainer import Trainer
from recres.video.source import FrameSource
from recres.workers import WorkerLoader


def _saving(last: bool) -> Callable[[Trainer], bool]:
    return lambda job: (job.progress.epoch == job.epochs) if last else job.progress.update > 1


# What is called there, and whether it is that call. After "saving" nothing of a run is lost.
PLACES: dict[str, tuple[Any, str, Callable[[Any], bool]]] = {
    "reading": (FrameSource, "_count", lambda _: True),
    "features": (feature_store.StoreFiles, "append", lambda _: True),
    "workers": (WorkerLoader, "_start", lambda _: True),
    "saving": (Trainer, "save", _saving(last=False)),
    "evaluation": (trainer, "score", lambda _: True),
    "last save": (Trainer, "save", _saving(last=True)),
    "best": (checkpoint, "load_model", lambda _: True),
    "testing": (train, "assess", lambda _: True),
    "drawing": (train, "_draw", lambda _: True)}


def act_at(place: str, act: Callable[[], object], setattr: Callable[..., None] = setattr) -> None:
    """Let `act` be called at a place, once; `setattr` puts it there."""
    where, name, is_it = PLACES[place]
    original, done = getattr(where, name), []

    def acts(first: Any, *rest: Any, **named: Any) -> Any:
        if not done and is_it(first):
            done.append(True)
            act()
        return original(first, *rest, **named)

    setattr(where, name, acts)
