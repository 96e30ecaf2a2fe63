"""Video files to RGB frames, with OpenCV; every way in which a file can be bad has its line.

The frame count in a header is never believed: a file is decoded to its end. What must not happen
is that a damaged file passes silently for a short one, so a file that ends before the size it
declares is refused, as is one that yields no frame at all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from recres.errors import InputError
from recres.video.sample import sample_indices

# A damaged file makes FFmpeg and OpenCV write lines of their own on stderr. What went wrong is
# said once, by VideoError. FFmpeg's level is read when the first video is opened; one that the
# user has set is left alone.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class VideoError(InputError):
    """A video cannot be used. Attributes: path, reason; the message is `path: reason`."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = Path(path)
        self.reason = reason


def read_frames(path: str | os.PathLike[str], step: int = 1) -> np.ndarray:
    """Frames 0, step, 2·step, … of a video as (n, H, W, 3) uint8 RGB, decoded to the end.

    Raises VideoError, one line with path and reason, when the file is missing, unreadable, empty,
    no video, cut short or damaged so that nothing can be decoded, or when its frames change size.
    """
    return _read(path, step)[0]


def sample_video(path: str | os.PathLike[str], step: int, context: int) -> np.ndarray:
    """The sampled frames of a video, (n, H, W, 3) uint8 RGB with n >= context.

    Which frames these are is said by `sample.sample_indices`. Raises VideoError as `read_frames`.
    """
    frames, total = _read(path, step)
    if len(frames) >= context:
        return frames
    # How many frames there are is only known now. The file is short: reading it again is cheap.
    return read_frames(path)[list(sample_indices(total, step, context))]


def iter_frames(path: str | os.PathLike[str], step: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, frame) for frames 0, step, 2·step, …; a frame is (H, W, 3) uint8 RGB.

    Holds one frame at a time, for videos of any length. Raises VideoError as `read_frames`.
    """
    for index, frame in _decode(path, step):
        if frame is not None:
            yield index, frame


def _read(path: str | os.PathLike[str], step: int) -> tuple[np.ndarray, int]:
    """The sampled frames and the number of frames in the file."""
    frames, total = [], 0
    for index, frame in _decode(path, step):
        total = index + 1
        if frame is not None:
            frames.append(frame)
    return np.stack(frames), total


def _decode(path: str | os.PathLike[str], step: int) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yield (index, RGB frame, or None where the index is no multiple of step) for all frames."""
    if step < 1:
        raise ValueError(f"step is {step}, expected at least 1")
    _check_file(path)
    # An absolute path, for FFmpeg would read "name:rest" as a protocol. One thread: several
    # workers decoding a video each are twice as fast as FFmpeg's own threads (measured on UCF-101
    # clips, 2 cores), and what a damaged file yields does not depend on timing.
    capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        if not capture.isOpened():
            raise VideoError(path, "not a video that OpenCV can open")
        shape, index = None, 0
        while capture.grab():
            frame = None
            if index % step == 0:
                ok, frame = capture.retrieve()
                if not ok:
                    raise VideoError(path, f"corrupt: frame {index} cannot be decoded")
                if shape is None:
                    shape = frame.shape
                if frame.shape != shape:
                    raise VideoError(
                        path,
                        f"frames change size: frame {index} is {frame.shape[1]}x{frame.shape[0]}, "
                        f"the first is {shape[1]}x{shape[0]}",
                    )
                frame = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            yield index, frame
            index += 1
        if index == 0:
            raise VideoError(path, "corrupt: no frame can be decoded")
        if index == 1 and cv2.haveImageReader(os.path.abspath(path)):
            raise VideoError(path, "a still image, not a video")
    except cv2.error as error:
        raise VideoError(path, f"corrupt: OpenCV says {error.err}") from error
    finally:
        capture.release()


def _check_file(path: str | os.PathLike[str]) -> None:
    """Raise VideoError for what can be told without decoding."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise VideoError(path, "a folder, expected a video file")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            raise VideoError(path, "not a regular file")
        with open(path, "rb") as file:
            head = file.read(8)
            size = file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise VideoError(path, "no such file") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise VideoError(path, reason[:1].lower() + reason[1:]) from error
    if size == 0:
        raise VideoError(path, "empty (0 bytes)")
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:  # OpenCV 5.0 ends the process on such a name
        raise VideoError(ascii(os.fspath(path)), "the name is not valid UTF-8") from None
    # FFmpeg plays a file that was cut off up to the cut, without a word. AVI files, such as
    # UCF-101's, say how long they are (all ones: their writer could not go back and say so).
    if head[:4] == b"RIFF" and head[4:] != b"\xff\xff\xff\xff":
        declared = int.from_bytes(head[4:], "little") + 8
        if declared > size:
            raise VideoError(path, f"cut short: {size} bytes of {declared}")
