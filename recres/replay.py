"""`python -m recres.replay DUMP`: make an update again that was not finite, and say where that
begins.

A run that met such an update has written down all that it was made from (`recres.guard`). Here it
is run once more while every op is recorded (`tensorlite.trace`), and the record is searched for the
first value that is not finite.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recres import build, commands, config
from recres.checkpoint import restore_model
from recres.config import Config
from recres.errors import InputError
from recres.files import read_json
from recres.guard import FORMAT, Batch, Found, again, shown
from recres.runs import refuse_own
from recres.summary import count
from tensorlite import nn, trace
from tensorlite.io import load_safetensors
from tensorlite.precision import PRECISIONS, using


class Dump(NamedTuple):
    """An update as it was written down: the file's facts, options, arrays by name, batches."""

    path: Path
    about: dict[str, Any]
    config: Config
    arrays: dict[str, np.ndarray]
    batches: list[Batch]


def parser() -> commands.Parser:
    """The command's arguments."""
    result = commands.Parser(
        "recres.replay", "Make an update again whose loss or gradient was not finite, and say "
        "where the first such value arises.", less_memory="--device cpu needs none there")
    result.add_argument("dump", metavar="DUMP", type=Path,
                        help="a run's nonfinite-<update>.json, or the .safetensors beside it")
    result.add_argument("--html", metavar="FILE", type=Path,
                        help="also write the page that steps through the update")
    for name, about in (("threads", {"metavar": "N", "type": int, "help": "threads to compute with "
                                     "(default: as the run did)"}),
                        ("device", {"help": "cpu, cuda or cuda:N (default: as the run did)"}),
                        ("precision", {"choices": PRECISIONS, "help": "how products are computed "
                                       "on cuda (default: as the run did; on the CPU float32)"})):
        result.add_argument(f"--{name}", **about)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 if the update is finite this time."""
    return commands.run(parser(), _replay, argv)


def _replay(args: argparse.Namespace) -> int:
    if args.html is not None:
        if args.html.is_dir() or not args.html.parent.is_dir():
            raise InputError(f"{args.html}: cannot be written there")
        refuse_own(args.html, "--html")
    dump = read(args.dump)
    if args.threads is None:
        args.threads = dump.config.threads
    options = config.override(dump.config, args)
    commands.use_machine(options.threads, options.device)
    about = dump.about
    print(f"{dump.path}: update {about['update']} of epoch {about['epoch']}: {about['what']}")
    with using(options.precision), np.errstate(all="ignore"):
        fused = again(_model(dump, options), dump.batches, about["chunks"], about["scale"])
        with trace.record(f"Update {about['update']}: {about['what']}") as tape:
            plain = again(_model(dump, options), dump.batches, about["chunks"], about["scale"])
    first = first_event(tape)
    for name, text in _lines(dump, options, fused, plain, first):
        print(f"{name:10}{text}")
    if args.html is not None:
        tape.notes += [f"Update {about['update']} made again from {dump.path.name}, with the plain "
                       "ops in place of the fused ones.", *([first] if first else [])]
        tape.save_html(args.html)
        print(f"{'page':10}{args.html}")
    return 1 if fused.finite and plain.finite else 0


def _lines(dump: Dump, options: Config, fused: Found, plain: Found,
           first: str | None) -> Iterator[tuple[str, str]]:
    """What is printed, by heading. fused: as the run computes; plain: with the plain ops in place
    of the fused ones, recorded; first: `first_event` of that."""
    machine = f"on {options.device}, {options.precision}, {count(options.threads, 'thread')}"
    if fused.finite:
        yield "again", f"the loss is {fused.loss:.6g} and every gradient is finite, {machine}"
    else:
        yield "again", f"the loss is {fused.loss}, {machine}"
    if fused.parameter is not None:
        yield "gradient", f"the first that is not finite is that of {fused.parameter}"
    if plain.finite and not fused.finite:
        yield "plain ops", "with the plain ops in place of the fused ones all is finite"
    elif fused.finite and not plain.finite:
        yield "plain ops", "but not with the plain ops in place of the fused ones"
    if not (fused.finite and plain.finite):
        bad = plain if fused.finite else fused
        batch = dump.about["batches"][bad.batches - 1]
        yield "files", shown(list(dict.fromkeys(Path(chunk["file"]).name for chunk in batch)))
    if first is not None:
        yield "first", first
    elif not plain.finite:
        yield "first", "beyond what was recorded"


def read(path: Path) -> Dump:
    """The update in a file that `recres.guard` wrote. InputError or FormatError if it is none."""
    path = path.with_suffix(".json") if path.suffix == ".safetensors" else path
    if path.is_dir():
        raise InputError(f"{path}: a folder, expected a run's nonfinite-<update>.json")
    about = read_json(path)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{path}: not an update that a run has written down")
    arrays, _ = load_safetensors(path.with_suffix(".safetensors"))
    try:
        options = Config.from_json(about["options"], str(path))
        batches = [_batch(arrays, i) for i in range(about["batches_kept"])]
        kept = {name: about[name] for name in ("update", "epoch", "what", "chunks", "scale",
                                               "classes", "batches")}
        if not _can_be(about, batches):
            raise InputError(f"{path}: has values that no update that was written down has")
    except (LookupError, TypeError) as error:
        raise InputError(f"{path}: not whole, {error} is not there") from None
    return Dump(path, kept, options, arrays, batches)


def _can_be(about: dict[str, Any], batches: list[Batch]) -> bool:
    """Whether what a file says of an update are values of the kinds that `recres.guard` writes."""
    classes, files = about["classes"], [[chunk["file"] for chunk in chunks]
                                        for chunks in about["batches"]]
    texts = [about["what"], *classes, *(file for each in files for file in each)]
    numbers = [about[name] for name in ("update", "epoch", "chunks")]
    return (isinstance(classes, list) and len(files) >= len(batches)
            and all(isinstance(text, str) for text in texts)
            and all(type(number) is int and number > 0 for number in numbers)
            and type(about["scale"]) in (int, float) and about["scale"] > 0
            and all(batch.inputs.dtype == np.float32 and batch.labels.dtype.kind == "i"
                    and batch.labels.shape == batch.inputs.shape[:1]
                    and (batch.labels >= 0).all() and (batch.labels < len(classes)).all()
                    for batch in batches))


def _batch(arrays: dict[str, np.ndarray], number: int) -> Batch:
    start = f"arguments/{number}/"
    arguments = {name.removeprefix(start): array for name, array in arrays.items()
                 if name.startswith(start)}
    return Batch(arrays[f"inputs/{number}"], arguments, arrays[f"labels/{number}"])


def _model(dump: Dump, options: Config) -> nn.Module:
    """The network as it was when the update began."""
    model = build.build_model(options, len(dump.about["classes"]))
    restore_model(dump.path, model, {name.removeprefix("model/"): array
                                     for name, array in dump.arrays.items()
                                     if name.startswith("model/")})
    return model.to(options.device)


def first_event(tape: trace.Tape) -> str | None:
    """Where the first value that is not finite arises, in words; None if all are finite."""
    for number, tensor in enumerate(tape.tensors):
        if tensor.op is None and tensor.value is not None and tensor.value.nonfinite:
            what = "the parameter" if tensor.kind == "parameter" else "the input"
            reader = next((op for op in tape.ops if number in op.inputs), None)
            where = f", read by {_op(reader)}" if reader is not None else ""
            return (f"{what} {tensor.name} {tuple(tensor.shape)} itself: {_count(tensor.value)}"
                    f"{where}")
    for step, event in enumerate(tape.events):
        if event.op is None:
            if event.grad is not None and event.grad.nonfinite:
                return f"step {step}: the gradient that backward begins with"
            continue
        op = tape.ops[event.op]
        if event.kind == "forward":
            made = tape.tensors[op.output].value
            if made is not None and made.nonfinite:
                return (f"step {step}, forwards: {_op(op)} makes {_count(made)}; of its inputs "
                        f"{_inputs(tape, op)}")
            continue
        for piece in event.pieces:
            for summary, how in ((piece.grad, "sends"), (piece.after, "adds up to")):
                if summary.nonfinite:
                    target = f"{op.slots[piece.slot]} ({tape.tensors[piece.tensor].name})"
                    arrived = f"{event.grad.norm:.4g}" if event.grad is not None else "unknown"
                    return (f"step {step}, backwards: {_op(op)} {how} {_count(summary)} in the "
                            f"gradient of {target}; that of its output has the norm {arrived}; "
                            f"of its inputs {_inputs(tape, op)}")
    return None


def _op(op: Any) -> str:
    """An op, its module and the line that asked for it."""
    module = "" if op.module is None else f" in {op.module or 'the model itself'}"
    kind = f" ({op.module_type})" if op.module_type else ""
    line = f", {op.source['file']}:{op.source['line']}" if op.source else ""
    return f"{op.op}{module}{kind}{line}"


def _count(summary: Any) -> str:
    size = int(np.prod(summary.shape, dtype=np.int64))
    return f"{summary.nonfinite} of {size} values not finite"


def _inputs(tape: trace.Tape, op: Any) -> str:
    """The largest magnitude in each input of an op."""
    parts = []
    for slot, number in zip(op.slots, op.inputs, strict=True):
        value = None if number is None else tape.tensors[number].value
        if value is not None and value.max is not None and value.min is not None:
            parts.append(f"|{slot}| <= {max(value.max, -value.min):.4g}")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
