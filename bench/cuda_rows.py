"""The rows of `bench.cuda`: those of the CPU in GPU sizes, each in the precisions that a GPU has.

Variants of PyTorch are words joined by underscores: the layout (nchw, channels_last), then autocast
or half (all weights in 16 bits), fused (norms folded into convolutions), compiled (torch.compile).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.rows import CONVOLUTIONS, OURS, Row, Side, Tolerance, conv, gru, network, norm_relu

PRECISIONS = ("float16", "tf32", "float32")
BATCH = 64

# The largest difference allowed between two sides that compute in a precision, of outputs and of
# gradients (see `Tolerance`): about twice what the rounding of operands made of float32, computed
# on a CPU. TF32 may be rounded to the nearest or cut off: sums of 64 to 200000 products then differ
# by 1e-3. Results of 16 bits are rounded again, to 4e-4 each.
LAYER = {
    "float32": Tolerance(5e-5, 5e-5),
    "tf32": Tolerance(2e-3, 2e-3),
    "float16": Tolerance(2e-3, 2e-3),
}
# A state that goes through 19 steps: cut off 2.8e-3, rounded 1.6e-3.
GRU = {**LAYER, "tf32": Tolerance(5e-3, 5e-3), "float16": Tolerance(5e-3, 5e-3)}
# Logits of ResNet-50: TF32 cut off 3.5e-3, float16 4e-4.
INFERENCE = {**LAYER, "tf32": Tolerance(1e-2, 1e-2)}
# Logits and running statistics of ResNet-50: 4e-3. A value on the other side of a ReLU's zero takes
# its gradient along (see bench.rows): lengths of gradients differed by 0.22 at the most.
TRAINING = {
    "float32": Tolerance(5e-5, 5e-2, euclidean=True),
    "tf32": Tolerance(1e-2, 4e-1, euclidean=True),
    "float16": Tolerance(1e-2, 4e-1, euclidean=True),
}


def variants(job: str, phase: str, precision: str) -> tuple[str, ...]:
    """In what ways PyTorch does a row."""
    if job == "gru":
        return ("cudnn",)
    if job != "network":
        return ("nchw", "channels_last")
    if phase == "train":
        kind = "_autocast" if precision == "float16" else ""
        return f"nchw{kind}", f"channels_last{kind}", f"channels_last{kind}_compiled"
    half = "_half" if precision == "float16" else ""
    folded = f"channels_last{half}_fused"
    plain = ("nchw_autocast", "channels_last_autocast") if half else ("nchw", "channels_last")
    return *plain, folded, f"{folded}_compiled"


def in_precision(row: Row, precision: str) -> Row:
    """A row computed in a precision, which its name says."""
    layer = GRU if row.job == "gru" else LAYER
    kinds = {"train": TRAINING, "infer": INFERENCE}.get(row.phase, layer)
    sides = tuple(Side("pytorch", name) for name in variants(row.job, row.phase, precision))
    return replace(row, name=f"{row.name}_{precision}", precision=precision, sides=(OURS, *sides),
                   tolerance=kinds[precision], cost=40 if row.job == "network" else 2)


def all_rows() -> Iterator[Row]:
    """Networks first; then layers, neighbours computing with the same arrays."""
    networks = [
        network("resnet50_train_b64", "train", 50, 64),
        network("rrn50_train_b32x2", "train", 50, 32, context=2),
        network("resnet50_infer_b64", "infer", 50, 64),
        network("resnet50_train_b256", "train", 50, 256),
        network("resnet50_infer_b256", "infer", 50, 256),
        network("resnet18_train_b64", "train", 18, 64),
    ]
    for precision in PRECISIONS:
        for row in networks:
            yield in_precision(row, precision)
    for precision in PRECISIONS:
        yield in_precision(gru("gru128_32x19x2048", 32, 19, 2048, 128), precision)
    for size, cin, cout, kernel, stride in CONVOLUTIONS:
        for phase in ("forward", "backward"):
            row = conv(f"conv_{size}x{size}_{cin}_{cout}_k{kernel}_s{stride}_{phase}", size, cin,
                       cout, kernel, stride, phase, (), BATCH)
            for precision in PRECISIONS:
                yield in_precision(row, precision)
    for size, channels in ((112, 64), (56, 256)):
        for precision in ("float16", "float32"):  # it has no product that TF32 could round
            for phase in ("forward", "backward"):
                yield in_precision(norm_relu(size, channels, phase, BATCH), precision)


ROWS = tuple(all_rows())
