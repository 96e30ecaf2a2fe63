"""python -m recres.datasets.figures: make the embedded data set, or a picture of it, by hand."""

from __future__ import annotations

import argparse
import sys

from recres.commands import refused_several
from recres.datasets import figures


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for bad input, named in one line."""
    parser = argparse.ArgumentParser(prog="python -m recres.datasets.figures", description=__doc__)
    parser.add_argument("--out", metavar="DIR", help="make the data set in this folder")
    parser.add_argument("--sheet", metavar="PNG", help="draw frames of every action as a picture")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument(
        "--clips-per-group", type=int, default=figures.CLIPS_PER_GROUP, help="of each class"
    )
    parser.add_argument("--groups", type=int, default=figures.GROUPS)
    if (refused := refused_several(parser.prog)) is not None:
        return refused
    options = parser.parse_args(arguments)
    if options.out is None and options.sheet is None:
        parser.error("nothing to do: give --out DIR or --sheet PNG")
    try:
        if options.out is not None:
            figures.generate(options.out, options.seed, options.clips_per_group, options.groups)
        if options.sheet is not None:
            figures.contact_sheet(options.sheet, options.seed)
    except (ValueError, OSError) as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
