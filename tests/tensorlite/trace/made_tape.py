"""A tape made by hand: a small recurrent residual network over four frames, its numbers drawn.

It holds all that a page can show: meetings, partial sums, checks that pass and one that fails, a
sum that is wrong, pictures of each kind, a ledger. Gradients are random, but their sums are sums.
"""

from __future__ import annotations

import base64

import numpy as np

from tensorlite.trace.tape import (
    Check,
    Event,
    Ledger,
    OpRecord,
    Picture,
    Piece,
    Summary,
    Tape,
    TensorRecord,
)

FRAMES = 4
SOURCE = """def forward(model, x):
    x = relu(model.stem(x))
    y = relu(model.conv1(x))
    y = model.conv2(y)
    y = temporal_skip(y + x, x, FRAMES)
    return model.fc(relu(y))
""".splitlines()


def made_tape() -> Tape:
    """The tape described above; the same at each call."""
    return _Maker().tape


class _Maker:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.arrays: list[np.ndarray] = []
        self.tape = tape = Tape(title="A small recurrent residual network", frames=FRAMES,
                                sources={"model.py": SOURCE}, versions={"tensorlite": "0"})
        frames = list(range(FRAMES))
        x = self.tensor("x", "constant", (4, 12, 12, 3), frames)
        stem_w = self.tensor("stem.weight", "parameter", (3, 3, 3, 2))
        w1 = self.tensor("block1.0.conv1.weight", "parameter", (3, 3, 2, 2))
        w2 = self.tensor("block1.0.conv2.weight", "parameter", (3, 3, 2, 2))
        fc_w = self.tensor("fc.weight", "parameter", (2, 3))
        fc_b = self.tensor("fc.bias", "parameter", (3,))
        maps = (4, 12, 12, 2)
        h = self.op("conv2d", "stem", [x, stem_w], maps, frames, line=2)
        h = self.op("relu", "stem", [h], maps, frames, line=2)
        y = self.op("conv2d", "block1.0.conv1", [h, w1], maps, frames, line=3)
        y = self.op("relu", "block1.0", [y], maps, frames, line=3)
        y = self.op("conv2d", "block1.0.conv2", [y, w2], maps, frames, line=4)
        y = self.op("add", "block1.0", [y, h], maps, frames, line=5,
                    roles=["residual branch", "spatial skip"])
        y = self.op("temporal_skip", "block1.0", [y, h], maps, frames, line=5,
                    roles=[None, "temporal skip"], shifts=[0, 1])
        join = len(tape.ops) - 1
        y = self.op("relu", "block1.0", [y], maps, frames, line=6)
        y = self.op("global_avg_pool", None, [y], (4, 2), frames, line=6)
        y = self.op("linear", "fc", [y, fc_w, fc_b], (4, 3), frames, line=6)
        loss = self.op("sum", None, [y], (), None, line=6)
        self.backward(loss)
        self.spoil()
        self.ledger(join, w1)

    def tensor(self, name: str, kind: str, shape: tuple[int, ...],
               frames: list[int] | None = None, op: int | None = None) -> int:
        array = self.rng.standard_normal(shape)
        self.arrays.append(array)
        self.tape.tensors.append(TensorRecord(
            name, kind, list(shape), "float32", kind != "constant", op, frames,
            self.summary(array, frames, "rgb" if kind == "constant" else None)))
        return len(self.arrays) - 1

    def op(self, name: str, module: str | None, inputs: list[int], shape: tuple[int, ...],
           frames: list[int] | None, *, line: int, roles: list[str | None] | None = None,
           shifts: list[int] | None = None) -> int:
        tape, number = self.tape, len(self.tape.ops)
        output = self.tensor(f"%{len(self.arrays)}", "result", shape, frames, number)
        saved = [{"shape": tape.tensors[t].shape, "dtype": "float32",
                  "bytes": self.arrays[t].size * 4} for t in inputs]
        tape.ops.append(OpRecord(
            op=name, slots=["x", "weight", "bias"][: len(inputs)], inputs=list(inputs),
            output=output, options={"padding": 1} if name == "conv2d" else {},
            forward=f"out = {name}(…)", backward=f"d(inputs) of {name}, from grad",
            roles=roles or [None] * len(inputs), shifts=shifts or [0] * len(inputs),
            frames=frames, module=module,
            module_type=None if module is None else "Conv2d" if "conv" in module else "BasicBlock",
            source={"file": "model.py", "line": line, "text": SOURCE[line - 1].strip(),
                    "function": "forward"},
            saved=saved, saved_bytes=sum(kept["bytes"] for kept in saved), recorded=True))
        tape.events.append(Event("forward", op=number))
        return output

    def backward(self, loss: int) -> None:
        tape = self.tape
        sums: dict[int, np.ndarray] = {loss: np.ones(())}
        tape.events.append(Event("start", tensor=loss, grad=self.summary(sums[loss], None)))
        for number in reversed(range(len(tape.ops))):
            op, pieces = tape.ops[number], []
            for slot, t in enumerate(op.inputs):
                record = tape.tensors[t]
                if not record.requires_grad:
                    continue
                grad = self.rng.standard_normal(record.shape) * 10.0 ** self.rng.integers(-3, 1)
                before = sums.get(t)
                sums[t] = grad if before is None else before + grad
                pieces.append(Piece(
                    slot, t, self.summary(grad, record.frames),
                    None if before is None else self.summary(before, record.frames),
                    self.summary(sums[t], record.frames), record.op is None,
                    check=self.check(grad)))
            tape.events.append(Event("backward", op=number, pieces=pieces,
                                     grad=self.summary(sums[op.output], op.frames)))
        for t, grad in sums.items():
            tape.tensors[t].grad = self.summary(grad, tape.tensors[t].frames)
            tape.tensors[t].numeric = self.check(grad)

    def spoil(self) -> None:
        """Make one check fail, and one sum wrong."""
        backward = [event for event in self.tape.events if event.kind == "backward"]
        conv2 = next(e for e in backward if self.tape.ops[e.op].module == "block1.0.conv2")
        check = conv2.pieces[1].check
        check.numeric = [2 * v for v in check.analytic]
        check.worst, check.right = 1e4, False
        meeting = [e for e in backward if any(p.before for p in e.pieces)][-1]
        next(piece for piece in meeting.pieces if piece.before).sum_right = False

    def ledger(self, join: int, parameter: int) -> None:
        record = self.tape.tensors[parameter]
        roles = ("residual branch", "spatial skip", "temporal skip")
        parts = [{"role": role, "frame": t, "norm": 1.0 + t} for role in roles
                 for t in range(FRAMES - (role == "temporal skip"))]
        rows = self.rng.standard_normal((len(parts) + 1, self.arrays[parameter].size))
        whole = rows.sum(0)
        where = [0, 5, 17, 35]

        def entry(row: np.ndarray) -> dict:
            return {"norm": float(np.linalg.norm(row)), "values": row[where].tolist(),
                    "share": float(row @ whole / (whole @ whole))}

        self.tape.tensors[parameter].grad = self.summary(whole.reshape(record.shape), None)
        self.tape.ledgers.append(Ledger("block1.0", join, parts, {record.name: {
            "shape": record.shape, "where": where, "every": False,
            "whole": {"norm": float(np.linalg.norm(whole)), "values": whole[where].tolist()},
            "run": {"norm": float(np.linalg.norm(whole)), "values": whole[where].tolist()},
            "parts": [entry(row) for row in rows[:-1]], "rest": entry(rows[-1]), "error": 3e-16}}))

    def check(self, grad: np.ndarray) -> Check:
        flat = grad.reshape(-1)
        where = list(range(0, flat.size, max(1, flat.size // 24)))[:24]
        analytic = flat[where].tolist()
        along = float(flat.sum())
        return Check(where, len(where) == flat.size, analytic, [v * (1 + 1e-7) for v in analytic],
                     [True] * len(where), {"analytic": along, "numeric": along}, 1e-2, True)

    def summary(self, array: np.ndarray, frames: list[int] | None,
                kind: str | None = None) -> Summary:
        out = Summary(list(array.shape), "float32", float(np.sqrt((array**2).sum())),
                      float(array.min()), float(array.max()), float(array.mean()))
        if frames:
            out.frame_norms = [float(np.linalg.norm(array[t])) for t in frames]
        if array.size <= 72:
            out.values = array.reshape(-1).tolist()
        else:
            counts, edges = np.histogram(array, 20)
            out.histogram = {"low": float(edges[0]), "high": float(edges[-1]),
                             "counts": counts.tolist(), "of": array.size}
            if array.ndim == 4 and frames:
                planes = array if kind == "rgb" else array.mean(-1)
                out.picture = Picture(kind or "maps", *array.shape[1:3], how="as it is" if kind else
                                      "mean over 2 channels", planes=[
                    {"title": f"frame {t}", "frame": t,
                     "data": base64.b64encode(planes[t].astype("<f4").tobytes()).decode()}
                    for t in frames])
        return out
