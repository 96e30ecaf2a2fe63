"""Zip archives that may be hostile: what .npz and .pth files are made of.

What an archive claims to unpack to is bounded before anything is unpacked, and a member is read
only as far as it claims.
"""

from __future__ import annotations

import io
import zipfile

from tensorlite.io import limits


def open_archive(data: bytes) -> zipfile.ZipFile:
    """Open the zip archive in `data`. Raises ValueError where it unpacks to more than is sane."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    for info in archive.infolist():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"member {info.filename!r} is compressed by an unknown method")
    check_expansion(sum(info.file_size for info in archive.infolist()), len(data))
    return archive


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Unpack one member; its checksum is verified. Raises ValueError where it is cut short."""
    member = archive.read(info)
    if len(member) != info.file_size:
        raise ValueError(f"member {info.filename!r} is cut short")
    return member


def check_expansion(unpacked: int, packed: int) -> None:
    """Raise ValueError where `packed` bytes on disk claim an implausible `unpacked` bytes."""
    if unpacked > limits.ROOM + limits.RATIO * packed:
        raise ValueError(f"{packed} bytes claim to unpack to {unpacked}")
