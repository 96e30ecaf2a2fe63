"""Video files to RGB frames, with OpenCV; every way in which a file can be bad has its line.

The frame count in a header is never believed: a file is decoded to its end. What must not happen
is that a damaged file passes silently for a short one, so a file that ends before the size it
declares is refused, as is one that yields no frame at all.

FFmpeg goes by what is in a file, whatever its name: it also plays lists of other files. Only files
that begin as one of `_CONTAINERS` does are shown to it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from recres import limits
from recres.errors import InputError
from recres.video.sample import sample_indices

# A damaged file makes FFmpeg and OpenCV write lines of their own on stderr. What went wrong is
# said once, by VideoError. FFmpeg's level is read when the first video is opened; one that the
# user has set is left alone.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


NO_VIDEO, STILL_IMAGE = "not a video that OpenCV can open", "a still image, not a video"

# How files of video begin, from the given byte on. All text is absent: lists of files are texts.
_CONTAINERS = (
    (0, b"RIFF"),  # AVI
    *((4, kind) for kind in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")),  # MP4
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska, WebM
    (0, b"FLV\x01"),
    (0, b"OggS"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # ASF, WMV
    (0, b"\x06\x0e\x2b\x34"),  # MXF
    (0, b"\x00\x00\x01"),  # MPEG program or elementary stream
    (0, b"\x00\x00\x00\x01"),  # raw H.264 or H.265
    (0, b"GIF8"),
)
_TRANSPORT = (188, 192)  # bytes of a packet of an MPEG transport stream, each beginning with 0x47


class VideoError(InputError):
    """A video cannot be used. Attributes: path, reason; the message is `path: reason`."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:  # a process that decodes for another may raise it
        return VideoError, (os.fspath(self.path), self.reason), self.__dict__


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
    indices = sample_indices(total, step, context)
    check_bytes(path, len(indices), frames[0].nbytes)  # the last one may be there many times
    return read_frames(path)[list(indices)]


def iter_frames(path: str | os.PathLike[str], step: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, frame) for frames 0, step, 2·step, …; a frame is (H, W, 3) uint8 RGB.

    Holds one frame at a time, for videos of any length. Raises VideoError as `read_frames`.
    """
    for index, frame in _decode(path, step):
        if frame is not None:
            yield index, frame


def _read(path: str | os.PathLike[str], step: int) -> tuple[np.ndarray, int]:
    """The sampled frames and the number of frames in the file."""
    frames, total = list[np.ndarray](), 0
    for index, frame in _decode(path, step):
        total = index + 1
        if frame is not None:
            frames.append(frame)
            check_bytes(path, len(frames), frame.nbytes)
    return _stack(frames), total


def _stack(frames: list[np.ndarray]) -> np.ndarray:
    """The frames as one array. The list is empty afterwards: each is let go as it is copied, so
    that they are in memory once, not twice. (From the end, where memory can be given back.)"""
    result = np.empty((len(frames), *frames[0].shape), frames[0].dtype)
    while frames:
        result[len(frames) - 1] = frames[-1]
        frames.pop()
    return result


def check_bytes(path: str | os.PathLike[str], count: int, nbytes: int) -> None:
    """Raise VideoError for more frames of so many bytes than may be in memory together."""
    if count * nbytes > limits.VIDEO_BYTES:
        raise VideoError(path, f"too large: {count} frames have {count * nbytes} bytes, more than "
                               f"the {limits.VIDEO_BYTES} of recres.limits.VIDEO_BYTES")


def _decode(path: str | os.PathLike[str], step: int) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yield (index, RGB frame, or None where the index is no multiple of step) for all frames."""
    if step < 1:
        raise ValueError(f"step is {step}, expected at least 1")
    check_file(path)
    # An absolute path, for FFmpeg would read "name:rest" as a protocol. One thread: several
    # workers decoding a video each are twice as fast as FFmpeg's own threads (measured on UCF-101
    # clips, 2 cores), and what a damaged file yields does not depend on timing.
    capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        if not capture.isOpened():
            raise VideoError(path, NO_VIDEO)
        shape, index = None, 0
        _check_size(path, capture)  # before the memory of a frame is taken
        while capture.grab():
            _check_size(path, capture)
            if index >= limits.VIDEO_FRAMES:
                raise VideoError(path, f"more than the {limits.VIDEO_FRAMES} frames of "
                                       "recres.limits.VIDEO_FRAMES")
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
            raise VideoError(path, STILL_IMAGE)
    except cv2.error as error:
        raise VideoError(path, f"corrupt: OpenCV says {error.err}") from error
    finally:
        capture.release()


def _check_size(path: str | os.PathLike[str], capture: cv2.VideoCapture) -> None:
    _refuse_size(path, int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
                 int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))


def _refuse_size(path: str | os.PathLike[str], width: int, height: int) -> None:
    if width * height > limits.VIDEO_PIXELS:
        raise VideoError(path, f"frames of {width}x{height} pixels, more than the "
                               f"{limits.VIDEO_PIXELS} of recres.limits.VIDEO_PIXELS")


def _too_long_chunk(file: BinaryIO, head: bytes, size: int) -> tuple[str, int] | None:
    """Name and length of an AVI's outermost part that would reach past its end: FFmpeg takes as
    much memory for some of them before it reads."""
    end = min(size, int.from_bytes(head[4:8], "little") + 8) if head[:4] == b"RIFF" else 0
    at = 12
    for _ in range(100):  # there are about five
        if at + 8 > end:
            break
        file.seek(at)
        name, length = file.read(4), int.from_bytes(file.read(4), "little")
        at += 8 + length + length % 2
        if at - length % 2 > end:
            return ascii(name)[2:-1], length
    return None


def _is_container(head: bytes) -> bool:
    return any(head.startswith(magic, at) for at, magic in _CONTAINERS) or any(
        head[at : at + 1] == head[at + size : at + size + 1] == b"G"
        for size in _TRANSPORT for at in (0, 4))


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise VideoError for what can be told from the beginning of a file, without decoding."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise VideoError(path, "a folder, expected a video file")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            raise VideoError(path, "not a regular file")
        with open(path, "rb") as file:
            head = file.read(4096)
            size = file.seek(0, os.SEEK_END)
            long = _too_long_chunk(file, head, size)
    except (FileNotFoundError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, VideoError):
            raise
        raise VideoError(path, "no such file") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise VideoError(path, reason[:1].lower() + reason[1:]) from error
    if size == 0:
        raise VideoError(path, "empty (0 bytes)")
    if size > limits.VIDEO_FILE_BYTES:
        raise VideoError(path, f"{size} bytes, more than the {limits.VIDEO_FILE_BYTES} of "
                               "recres.limits.VIDEO_FILE_BYTES")
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:  # OpenCV 5.0 ends the process on such a name
        raise VideoError(ascii(os.fspath(path)), "the name is not valid UTF-8") from None
    if not _is_container(head):
        still = cv2.haveImageReader(os.path.abspath(path))
        raise VideoError(path, STILL_IMAGE if still else NO_VIDEO)
    # FFmpeg plays a file that was cut off up to the cut, without a word. AVI files, such as
    # UCF-101's, say how long they are (all ones: their writer could not go back and say so).
    if head[:4] == b"RIFF" and head[4:8] != b"\xff\xff\xff\xff":
        declared = int.from_bytes(head[4:8], "little") + 8
        if declared > size:
            raise VideoError(path, f"cut short: {size} bytes of {declared}")
        if long is not None:
            raise VideoError(path, f"corrupt: its part {long[0]!r} claims {long[1]} bytes")
        # Opening the file, FFmpeg takes memory for a frame of the size that an AVI declares (of
        # whatever file, at most for 2^28 pixels, its own bound).
        stream = head.find(b"strf", head.find(b"vids") + 1)
        if stream > 0 and len(head) >= stream + 20:
            _refuse_size(path, *(abs(int.from_bytes(head[at : at + 4], "little", signed=True))
                                 for at in (stream + 12, stream + 16)))
