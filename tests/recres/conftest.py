"""Small real videos, written on the fly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

WriteVideo = Callable[..., Path]


@pytest.fixture
def write_video() -> WriteVideo:
    """write_video(path, frames, fps=25): (n, H, W, 3) uint8 RGB as motion JPEG; gives the path."""
    import recres.video  # noqa: F401 -- before cv2
    import cv2  # isort: skip

    def write(path: Path, frames: np.ndarray, fps: float = 25) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = frames.shape[1:3]
        fourcc = cv2.VideoWriter.fourcc(*"MJPG")
        writer = cv2.VideoWriter(str(path), fourcc, fps, (width, height))
        assert writer.isOpened()
        for frame in frames:
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        writer.release()
        return path

    return write


@pytest.fixture
def numbered() -> Callable[..., np.ndarray]:
    """numbered(n, height=32, width=48): n grey frames, frame i of level 6·i + 3: see `number`."""

    def frames(n: int, height: int = 32, width: int = 48) -> np.ndarray:
        assert n <= 42
        levels = (6 * np.arange(n) + 3).astype(np.uint8)
        return np.broadcast_to(levels[:, None, None, None], (n, height, width, 3)).copy()

    return frames


@pytest.fixture
def number() -> Callable[[np.ndarray], list[int]]:
    """number(frames): which frames of `numbered` these are, by their mean level."""
    return lambda frames: [int(frame.mean() // 6) for frame in frames]


@pytest.fixture(scope="session")
def figures_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small figures data set: 10 classes, 4 groups (one of them to test on), 40 clips."""
    from recres.datasets import figures

    root = tmp_path_factory.mktemp("data") / "figures"
    figures.generate(root, clips_per_group=1, groups=4, progress=False)
    return root


@pytest.fixture(scope="session")
def tiny(figures_root: Path) -> list[str]:
    """Options of `recres.train` for a network and a job as small as they get, on figures_root."""
    return ["--root", str(figures_root), "--width", "4", "--image-size", "32", "--batch", "12",
            "--holdout", "0.3", "--epochs", "2", "--threads", "1"]


@pytest.fixture(scope="session")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete run; not to be written to."""
    from recres import train

    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert train.main(["--out", str(folder), *tiny]) == 0
    return folder


@pytest.fixture(autouse=True)
def _same_threads():
    """Commands set the number of threads for good; each test starts with the number there was."""
    import tensorlite

    before = tensorlite.get_num_threads()
    yield
    tensorlite.set_num_threads(before)
