"""Damage to files, as chance and as malice do it: bytes → other bytes, drawn from a generator.

`bytes_` knows no format. The others keep up a format's outer layer (lengths, checksums, archives),
so that what is behind it is reached as well.
"""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

NUMBERS = (0, 1, -1, 2**15, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 10**9, 30000)
TEXTS = ("", "\0", "a\nb", "../../../etc/passwd", "/etc/passwd", "..", ".", "C:\\x", "x" * 5000,
         "\u202e\u0660", "\ud800", "ſK\u212a", "nan", "%n%s", "$(touch canary)", "`touch canary`",
         "9" * 5000)


def bytes_(data: bytes, rng: random.Random) -> bytes:
    """One to four of: a bit, a number, a cut, a repetition, an insertion, the rest of the file."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        if rng.random() < 0.4:
            at = min(at, rng.randrange(256))  # headers are where it hurts
        stop = at + rng.choice((1, 2, 4, 8, 64))
        match rng.randrange(9):
            case 0 | 1 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 2 | 3:
                number, size = rng.choice(NUMBERS), rng.choice((2, 4, 8))
                order = rng.choice(("little", "big"))
                out[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, order)
            case 4:
                del out[at:stop]
            case 5:
                out[at:at] = out[at:stop] * rng.choice((1, 2, 50))
            case 6:
                out[at:at] = rng.randbytes(stop - at)
            case 7:
                out[at:at] = rng.choice(TEXTS).encode(errors="surrogatepass")
            case 8 if rng.random() < 0.4:
                del out[at:]
    return bytes(out)


def value(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value that nobody expects."""
    kind = rng.randrange(9)
    if kind < 2:
        return rng.choice(NUMBERS) * rng.choice((1, 1, 2**70))
    if kind < 4:
        return rng.choice(TEXTS)
    if kind == 4:
        return rng.choice((0.5, -0.0, 1e308, float("nan"), float("inf"), -1e-300))
    if kind == 5 or depth > 3:
        return rng.choice((None, True, False))
    count = rng.choice((0, 1, 3))
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(count)]
    return {rng.choice(TEXTS): value(rng, depth + 1) for _ in range(count)}


def json_(data: bytes, rng: random.Random) -> bytes:
    """A document with an entry changed, added, dropped or there twice; or one of hostile form."""
    if rng.random() < 0.2:
        return bytes_(data, rng)
    if rng.random() < 0.05:
        return rng.choice((b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"NaN", b"null", b"[]",
                           b'"\\ud800"', b"\xef\xbb\xbf{}", b"-", b"1e999999", b"\x00", b"{}"))
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):  # a line that is damaged already
        return bytes_(data, rng)
    place, holders = document, []
    while isinstance(place, (dict, list)) and place and (not holders or rng.random() < 0.7):
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        holders.append((place, key))
        place = place[key]
    if not holders:
        return json.dumps(value(rng)).encode()
    holder, key = holders[-1]
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = value(rng)
        case 2:
            text = json.dumps(document)
            return text.replace("{", '{"' + str(key) + '": ' + json.dumps(value(rng)) + ", ",
                                1).encode()
        case _:
            holder[key] = value(rng)
    return json.dumps(document).encode()


def lines_of(each: Mutation) -> Mutation:
    """Mutates a line or two, or their order and number."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        lines = data.split(b"\n")
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.randrange(len(lines))
            match rng.randrange(8):
                case 0:
                    lines.insert(at, rng.choice(lines))
                case 1 if len(lines) > 1:
                    del lines[at]
                case 2:
                    rng.shuffle(lines)
                case _ if lines[at]:
                    lines[at] = each(lines[at], rng)
        return b"\n".join(lines)

    return mutate


def words(line: bytes, rng: random.Random) -> bytes:
    """A line of a list: a part of a word is another text, or its number another number."""
    if rng.random() < 0.3:
        return bytes_(line, rng)
    parts = line.replace(b"/", b" / ").replace(b"_", b" _ ").split(b" ")
    at = rng.randrange(len(parts))
    stem = parts[at].rstrip(b"0123456789")
    if stem != parts[at] and rng.random() < 0.5:
        parts[at] = stem + rng.choice((b"", b"0", b"-1", b"1" * 5000, b"\xd9\xa3"))
    else:
        parts[at] = rng.choice((*TEXTS, "1", "-1")).encode(errors="surrogatepass")
    return b" ".join(parts).replace(b" / ", b"/").replace(b" _ ", b"_")


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header as JSON, its length put right; one time in three the bytes."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.33 or length > len(data):
        return bytes_(data, rng)
    header = json_(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def archive(member: Mutation) -> Mutation:
    """A zip archive: a member's content by `member` and packed afresh, its name, a second one of
    its name, one that unpacks to much more, sizes that lie; one time in five the bytes."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.2:
            return bytes_(data, rng)
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            members = [(info.filename, source.read(info)) for info in source.infolist()]
        at, method = rng.randrange(len(members)), rng.choice((zipfile.ZIP_STORED,) * 3
                                                            + (zipfile.ZIP_DEFLATED,))
        name, content = members[at]
        kind = rng.randrange(12)
        if kind == 0:
            members[at] = (rng.choice(TEXTS).encode(errors="replace").decode(), content)
        elif kind == 1:
            members.append((name, member(content, rng)))
        elif kind == 2:
            del members[at]
        elif kind == 3 and rng.random() < 0.1:
            members[at], method = (name, content + bytes(2**24)), zipfile.ZIP_DEFLATED
        else:
            members[at] = (name, member(content, rng))
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as target:
            for name, content in members:
                target.writestr(zipfile.ZipInfo(name or "-"), content, method)
        packed = bytearray(out.getvalue())
        if kind == 4:  # what the directory says of a member's sizes and place
            entry = packed.find(b"PK\x01\x02")
            offset = entry + rng.choice((16, 20, 24, 42))
            struct.pack_into("<I", packed, offset, rng.choice(NUMBERS) % 2**32)
        return bytes(packed)

    return mutate


def npy(data: bytes, rng: random.Random) -> bytes:
    """An .npy: another header over the same numbers."""
    if rng.random() < 0.4 or not data.startswith(b"\x93NUMPY"):
        return bytes_(data, rng)
    types = ("<f4", "<f8", "|O", "<U4", "<U1000000000", "|V8", "<i8", "<c16", "<M8[s]", "|S3",
             "<f16", "|b1", ">f4", "f2, f2", "<U0")
    shapes = ("()", "(3,)", "(0,)", "(-1,)", "(2**40,)", f"({2**62}, {2**62})", "(1099511627776,)",
              "(0, 9223372036854775807)", "(1,) * 70", "(True,)", "3", "(" * 200 + ")" * 200)
    header = (f"{{'descr': '{rng.choice(types)}', 'fortran_order': {rng.choice(('True', 'False'))},"
              f" 'shape': {rng.choice(shapes)}, }}\n").encode()
    start = 10 + int.from_bytes(data[8:10], "little")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data[start:]


def evil(rng: random.Random, canary: str = "canary") -> bytes:
    """A pickle that would write a file if anyone ran it."""
    command = f"touch {canary}".encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    module, name = rng.choice(((b"os", b"system"), (b"posix", b"system"), (b"nt", b"system"),
                               (b"builtins", b"eval"), (b"subprocess", b"getoutput"),
                               (b"__builtin__", b"exec"), (b"runpy", b"_run_code")))
    short = b"\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name
    return rng.choice((
        b"c" + module + b"\n" + name + b"\n" + text + b"\x85R.",
        b"\x80\x04" + short + b"\x93" + text + b"\x85R.",
        b"(" + text + b"i" + module + b"\n" + name + b"\n.",
        b"(c" + module + b"\n" + name + b"\n" + text + b"o.",
        b"\x80\x02c" + module + b"\n" + name + b"\n" + text + b"\x85\x81.",
        b"ccopyreg\n_reconstructor\n(c" + module + b"\n" + name + b"\nc__builtin__\nobject\nNtR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(c" + module + b"\n" + name + b"\n" + text
        + b"\x85RtR.",
        b"ccollections\nOrderedDict\n)R}" + text + b"c" + module + b"\n" + name + b"\nsb.",
        b"\x82\x01.", b"Pos.system\n.", text + b"Q.",
    ))


def pickle_(data: bytes, rng: random.Random) -> bytes:
    """A pickle: its bytes, some of its code doubled, or something hostile in place or in front."""
    kind = rng.randrange(10)
    if kind == 0:
        return evil(rng)
    if kind == 1:
        return evil(rng)[:-1] + data
    if kind == 2:
        at = rng.randrange(len(data))
        return data[:at] + evil(rng)[:-1] + data[at:]
    if kind == 3:  # deep or wide, in few bytes
        return rng.choice((b"(" * 50_000, b"]" + b"\x85" * 50_000 + b".", b"}" * 50_000 + b".",
                           b"]q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b".",
                           b"I" + b"9" * 6000 + b"\n.", b"L" + b"9" * 6000 + b"L\n.",
                           b"\x8b\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"\x95" + b"\xff" * 8))
    return bytes_(data, rng)


def video(data: bytes, rng: random.Random) -> bytes:
    """A video: an AVI's sizes in its headers, its declared length put right after a cut; bytes."""
    out = bytearray(data)
    kind = rng.randrange(6)
    if data[:4] == b"RIFF" and kind < 4:
        if kind == 0:  # of the stream: width and height
            at = data.find(b"strf")
            if at > 0:
                struct.pack_into("<ii", out, at + 12, *(rng.choice(NUMBERS[3:]) % 2**31
                                                        for _ in range(2)))
        elif kind == 1:  # of the file: a frame's time, counts of frames and streams, sizes
            at = data.find(b"avih") + 8 + 4 * rng.randrange(10)
            struct.pack_into("<I", out, at, rng.choice(NUMBERS) % 2**32)
        elif kind == 2:  # the length of a chunk
            places = [i for tag in (b"LIST", b"00dc", b"idx1", b"strh", b"strf", b"JUNK")
                      for i in [data.find(tag, rng.randrange(len(data)))] if i >= 0]
            if places:
                struct.pack_into("<I", out, rng.choice(places) + 4, rng.choice(NUMBERS) % 2**32)
        else:  # cut off or pieced together, and saying so
            at = rng.randrange(len(out))
            out[at:] = out[rng.randrange(len(out)) :] if rng.random() < 0.3 else b""
            if len(out) >= 8:
                struct.pack_into("<I", out, 4, len(out) - 8)
    if rng.random() < 0.8 or out == data:
        out[8:] = bytes_(bytes(out[8:]), rng)
        if data[:4] == b"RIFF" and len(out) >= 8:  # as long as it says, else it is not looked at
            struct.pack_into("<I", out, 4, min(len(out) - 8, 2**32 - 2))
    return bytes(out)


def place(path: Path, rng: random.Random) -> str:
    """Put something in place of the file that is no regular file, or none of its size."""
    kind = rng.choice(("absent", "empty", "folder", "loop", "device", "pipe", "huge", "dangling"))
    path.unlink()
    match kind:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case "dangling":
            path.symlink_to("nowhere")
        case "device":
            path.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(path)
        case "huge":  # takes no room on disk
            with open(path, "wb") as file:
                file.truncate(2**40)
    return kind
