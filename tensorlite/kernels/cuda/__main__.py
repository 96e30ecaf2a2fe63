"""``python -m tensorlite.kernels.cuda``: list the kernels, compile them, print what they use.

No GPU is needed. Every kernel is compiled for each of the architectures it can run on, and the
table shows registers a thread, static shared memory a block and bytes spilled a thread.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from tensorlite.kernels.cuda import all_kernels
from tensorlite.kernels.cuda.compiler import CompileError, Kernel, Usage, usage

ARCHITECTURES = (75, 80, 90, 100)


def main(arguments: list[str] | None = None) -> int:
    """Compile and print; 1 where a kernel fails to compile or a hot one spills, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m tensorlite.kernels.cuda",
        description="List the CUDA kernels, compile them and show what they use. Needs no GPU.")
    parser.add_argument("--arch", metavar="LIST", default=",".join(map(str, ARCHITECTURES)),
                        help="compute capabilities times ten (default: %(default)s)")
    parser.add_argument("--only", metavar="NAME", default="", help="kernels whose name has this")
    parser.add_argument("--list", action="store_true", help="only list them, compile nothing")
    args = parser.parse_args(arguments)
    try:
        archs = [int(part) for part in args.arch.split(",")]
    except ValueError:
        parser.error(f"--arch: expected numbers such as 80,90, got {args.arch!r}")
    chosen = [kernel for kernel in all_kernels() if args.only in str(kernel)]
    if not chosen:
        parser.error(f"--only {args.only}: no such kernel; see --list")
    if args.list:
        for kernel in chosen:
            hot = "hot" if kernel.hot else ""
            print(f"{kernel.source:20} sm_{kernel.least}+ {hot:4}{kernel}")
        print(f"{len(chosen)} kernels")
        return 0
    return _compile(chosen, archs)


def _compile(kernels: list[Kernel], archs: list[int]) -> int:
    jobs = [(kernel, arch) for kernel in kernels for arch in archs if arch >= kernel.least]
    found: dict[tuple[Kernel, int], Usage | CompileError] = {}

    def work(job: tuple[Kernel, int]) -> Usage | CompileError:
        try:
            return usage(*job)
        except CompileError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = tqdm(pool.map(work, jobs), total=len(jobs), unit="kernel", desc="compiling",
                       disable=not sys.stderr.isatty(), leave=False)
        found.update(zip(jobs, results, strict=True))
    print(f"{'registers, shared bytes, spilled bytes':44}"
          + "".join(f"{f'sm_{arch}':>17}" for arch in archs))
    failed: list[str] = []
    for kernel in kernels:
        cells = []
        for arch in archs:
            result = found.get((kernel, arch))
            if result is None:
                cells.append("-")
            elif isinstance(result, CompileError):
                cells.append("failed")
                failed.append(str(result))
            else:
                cells.append(f"{result.registers:4} {result.shared:6} {result.spills:4}")
                if kernel.hot and result.spills:
                    failed.append(f"{kernel}: spills {result.spills} bytes on sm_{arch}")
        label = str(kernel)
        print(f"{label:44}" + "".join(f"{cell:>17}" for cell in cells) if len(label) < 44
              else f"{label}\n{'':44}" + "".join(f"{cell:>17}" for cell in cells))
    print(f"{len(jobs)} compiled, {len(failed)} failed")
    for reason in failed:
        print(reason, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
