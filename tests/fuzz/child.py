"""Feeds damaged files to one reader, in a process that may die of it: python -m tests.fuzz.child.

Case n of a reader and a seed is always the same file. The process has bounds of memory and time. It
writes the number of the case that it is at into a file, and at the end what went wrong as JSON.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

MEMORY = 1536 << 20  # bytes of address space that reading may take, beyond what the process has
RESIDENT = 700 << 20  # … and of memory in use
SECONDS = 20  # wall time of one case, after which the process ends
SLOW = 4  # seconds of processor time that no case may take
FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.",
             "pickle.find_class", "ctypes.dlopen", "pty.spawn", "os.remove", "shutil.rmtree")


class Watch:
    """Notes what a case must not do: run or connect to anything, open files out of its folder."""

    def __init__(self, folder: Path) -> None:
        self.on, self.seen = False, list[str]()
        self._free = tuple(map(os.path.realpath, (folder, sys.prefix, sys.base_prefix,
                                                  Path(__file__).parents[2], "/proc")))
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "os.remove" and os.path.basename(arguments[0]).startswith(".tmp-"):
            return  # of `tensorlite.io.replacing`, its own
        if event.startswith(FORBIDDEN):
            self.seen.append(f"{event}{arguments!r}"[:200])
        elif event == "open" and isinstance(arguments[0], str | bytes):
            self.on = False  # what follows opens nothing, but may ask
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not path.startswith(self._free):
                self.seen.append(f"open {path}"[:200])
            self.on = True


def judge(reader: Any, folder: Path, watch: Watch) -> str | None:
    """Read the scene; what is wrong with that, None where it is as it should be."""
    from tests.fuzz.readers import ERRORS

    watch.seen.clear()
    began = time.process_time()
    try:
        watch.on = True
        try:
            result = reader.read(folder)
        finally:
            watch.on = False
        reader.check(folder, result)
    except ERRORS as error:
        text = str(error)
        if len(text.splitlines()) != 1 or len(text) > 2000 or not text.isprintable() \
                or "MemoryError" in text:
            return f"not one line, too long, or of memory: {text[:200]!r}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{Path(f.filename).name}:{f.lineno}" for f in frames[-4:]]
        return f"{type(error).__name__}: {str(error)[:150]} at {' > '.join(places)}"
    if os.path.exists("canary"):
        os.unlink("canary")
        return "code in the file was run"
    if watch.seen:
        return f"it did {watch.seen[0]}"
    if time.process_time() - began > SLOW:
        return f"took {time.process_time() - began:.1f} s"
    return None


def run(name: str, seed: int, first: int, count: int, folder: Path, at: Path) -> dict[str, Any]:
    """Cases first, first + 1, … of a reader; the failures and what the worst of them cost."""
    from tests.fuzz import mutate
    from tests.fuzz.readers import READERS

    reader = READERS[name]
    scene = folder / "scene"
    shutil.rmtree(scene, ignore_errors=True)
    scene.mkdir(parents=True)
    os.chdir(folder)
    contents = {path: path.read_bytes() for path in reader.make(scene)}
    watch = Watch(scene)
    if why := judge(reader, scene, watch):  # also loads what is loaded late
        raise SystemExit(f"{name}: the valid files are refused or read wrongly: {why}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    failures, slowest = [], 0.0
    with open(at, "wb", buffering=0) as progress:
        for case in range(first, first + count):
            os.pwrite(progress.fileno(), b"%12d" % case, 0)
            rng = random.Random(f"{name}/{seed}/{case}")
            path = rng.choice(sorted(contents))
            if rng.random() < 0.03:
                how = mutate.place(path, rng)
            else:
                how = "damaged"
                path.write_bytes(reader.mutation(path)(contents[path], rng))
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            began = time.monotonic()
            why = judge(reader, scene, watch)
            faulthandler.cancel_dump_traceback_later()
            slowest = max(slowest, time.monotonic() - began)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
            if why is None and grown > RESIDENT:
                why, before = f"took {grown >> 20} MiB", before + grown
            if why is not None:
                failures.append({"case": case, "file": path.name, "how": how, "why": why})
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
            path.write_bytes(contents[path])
    return {"failures": failures, "slowest": round(slowest, 2), "grown": grown >> 20}


def main() -> None:
    """Run the cases that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True, help="to work in")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    folder = args.folder.resolve()
    result = run(args.reader, args.seed, args.first, args.count, folder, folder / "at")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
