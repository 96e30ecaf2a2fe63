"""Frames as they come from a camera, or from a video played as if it were one.

A camera goes on whether or not anybody keeps up with it: a thread takes its frames, and those that
wait too long are dropped, so that what is seen is always of now.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterator

import cv2
import numpy as np

from recres.errors import InputError
from recres.video.decode import iter_frames

WAITING = 4  # frames, at most, between the camera and who looks at them
PATIENCE = 10.0  # seconds without a frame after which a camera is given up


class Camera:
    """Frames (H, W, 3) uint8 RGB of the camera with index `what`, or of the video of that name; as
    a context manager. InputError where it cannot be opened.

    Attributes: rate, frames a second as the camera or file says, 25 where it does not; dropped,
    frames that nobody had time for; shown, its name in messages; stalled, whether it was given up.
    """

    def __init__(self, what: str) -> None:
        self.shown = f"--camera {what}"
        self.dropped, self.rate, self.stalled = 0, 25.0, False
        self._path = None if what.isdecimal() else what
        if self._path is None and len(what) > 9:
            raise InputError(f"{self.shown}: no camera has such a number")  # (nor has C's int)
        self._frames: queue.Queue[tuple[int, np.ndarray] | None] = queue.Queue(WAITING)
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        if self._path is not None and not os.path.exists(what):
            raise InputError(f"{self.shown}: expected a camera's number or a file, there is no "
                             "such file")
        source = int(what) if self._path is None else os.path.abspath(what)
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            self._capture.release()
            raise InputError(f"{self.shown}: no camera that OpenCV can open" if self._path is None
                             else f"{self.shown}: not a video that OpenCV can open")
        found = self._capture.get(cv2.CAP_PROP_FPS)
        if 0 < found < 1000:
            self.rate = found
        if self._path is not None:
            self._capture.release()

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(2)  # (a camera that hangs is left behind)
        if self._thread is None or not self._thread.is_alive():
            self._capture.release()

    def frames(self) -> Iterator[tuple[int, np.ndarray]]:
        """Its frames with their numbers, those that were dropped counted, until there are no more.

        Nothing of a file is dropped. InputError where a camera gives nothing at all; one that gives
        none for PATIENCE seconds is given up.
        """
        if self._path is not None:
            yield from iter_frames(self._path)
            return
        self._thread = threading.Thread(target=self._take, name="camera", daemon=True)
        self._thread.start()
        count = 0
        while (found := self._next()) is not None:
            count += 1
            yield found[0], cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB)
        if not count:
            raise InputError(f"{self.shown}: it was opened, but gives no frame")

    def _next(self) -> tuple[int, np.ndarray] | None:
        """The next frame, None where there is no more."""
        try:
            return self._frames.get(timeout=PATIENCE)
        except queue.Empty:
            self.stalled = True
            return None

    def _take(self) -> None:
        """Take frames from the camera, in the thread."""
        going, number = True, -1
        while going and not self._end.is_set():
            going, frame = self._capture.read()
            number += 1
            item = (number, frame) if going else None
            while not self._end.is_set():
                try:
                    self._frames.put(item, block=not going, timeout=0.1)
                    break
                except queue.Full:
                    if going:  # the oldest gives way
                        with contextlib.suppress(queue.Empty):
                            self._frames.get_nowait()
                            self.dropped += 1
