"""The embedded data set: drawn people performing actions in time-reversed pairs.

Every action is the other one of its pair played backwards, so no single frame tells the two
apart: how a clip looks, how fast it is, how the camera and the background drift are drawn from
the same distributions for both, which are symmetric in time. A group is one actor in one set of
clothes at one place. Clips are real video files in UCF-101's layout, in an intra-frame codec, so
that a frame carries no trace of its neighbours.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from recres.datasets.figures import actor, pose, scene
from recres.errors import InputError
from recres.files import read_json
from recres.random import generator
from tensorlite.io import replacing

if TYPE_CHECKING:
    from recres.datasets import Split

VERSION = 1  # raised whenever the same seed would give other files
SIZE = 80  # pixels, square
FRAME_RATE = 12
FRAME_STEP = 5  # frames this far apart, a third of the movement, tell its direction
GROUPS = 25
CLIPS_PER_GROUP = 4  # of each class
# A whole number of steps, and an even number of sampled frames: sampling every FRAME_STEP-th frame
# and cutting into chunks of two then treats a clip and its reverse alike.
LENGTH = 1 + 3 * FRAME_STEP
PAIRS: tuple[tuple[str, str], ...] = (
    ("SitDown", "StandUp"),
    ("OpenArms", "CloseArms"),
    ("BowDown", "RiseUp"),
    ("LiftBox", "PlaceBox"),
    ("OpenUmbrella", "CloseUmbrella"),
)
CLASSES: tuple[str, ...] = tuple(sorted(name for pair in PAIRS for name in pair))

_MOVEMENTS = ("sit", "arms", "bow", "lift", "umbrella")
_YAWS = {"sit": (30, 62), "arms": (0, 22), "bow": (38, 75), "lift": (25, 62), "umbrella": (0, 25)}
_HEIGHTS = {"umbrella": 0.84}
_SUPERSAMPLING = 2
_QUALITY = 40  # of the JPEG frames, on OpenCV's scale
_LISTS = "ucfTrainTestlist"
_VIDEOS = "UCF-101"
_SETTINGS = "figures.json"


class Draw(NamedTuple):
    """Everything random about one clip; lengths are fractions of the picture's side."""

    u: pose.Array  # (n,) progress of the movement
    sway: pose.Array  # (n,) radians
    style: pose.Style
    yaw: float
    height: float
    x: float
    y: float
    start: float  # which part of the place is seen, in [0, 1]
    pan: pose.Array  # (n,) how far the ground and the actor have moved
    drift: pose.Array  # (n,) how far the backdrop has moved
    shimmer: pose.Array  # (n, 2) how far the spots of light have moved
    light: tuple[float, float, float]
    flip: bool
    seat: str
    prop: scene.Colour
    trim: scene.Colour


def movement_of(action: str) -> tuple[int, bool]:
    """The number of an action's pair, and whether it plays backwards.

    Raises ValueError for an action that is not in PAIRS.
    """
    for number, pair in enumerate(PAIRS):
        if action in pair:
            return number, action == pair[1]
    raise ValueError(f"action: {action!r}, expected one of {', '.join(CLASSES)}")


def draw(action: str, group: int, clip: int, seed: int = 0) -> Draw:
    """The random choices of one clip, of the same distribution for both actions of a pair.

    They describe the pair's movement forwards. Every quantity over time has a distribution
    that is symmetric under time reversal.
    """
    number, _ = movement_of(action)
    movement = _MOVEMENTS[number]
    rng = generator(seed, "figures", action, group, clip)
    before, after = rng.uniform(0.0, 2.5, 2)  # frames of rest
    time = np.arange(LENGTH, dtype=np.float64)
    progress = np.clip((time - before) / (LENGTH - 1 - before - after), 0, 1)
    softness = rng.uniform(0.1, 0.6)
    eased = progress**2 * (3 - 2 * progress)
    u = (1 - softness) * progress + softness * eased
    middle = time / (LENGTH - 1) - 0.5  # symmetric about the middle of the clip

    def wave(amplitude: float) -> pose.Array:
        phase, turns = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.5)
        return amplitude * np.sin(phase + 2 * np.pi * turns * middle)

    low, high = _YAWS[movement]
    height = rng.uniform(0.66, 0.76) * _HEIGHTS.get(movement, 1.0)
    yaw = float(np.radians(rng.uniform(low, high)) * rng.choice([-1, 1]))
    brightness = rng.uniform(0.88, 1.08)
    tint = rng.uniform(-0.04, 0.04)
    return Draw(
        u=u,
        sway=wave(0.025),
        style=pose.draw_style(rng),
        yaw=yaw,
        height=height,
        x=0.5 + rng.uniform(-0.05, 0.05) - 0.1 * np.sin(yaw) * (movement == "bow"),
        y=0.5 + height * 0.5 / _HEIGHTS.get(movement, 1.0) + rng.uniform(-0.02, 0.02),
        start=rng.uniform(0.0, 1.0),
        pan=rng.uniform(-0.06, 0.06) * middle + wave(0.008),
        drift=rng.uniform(-0.3, 0.3) * middle,
        shimmer=rng.uniform(-0.5, 0.5, 2) * middle[:, None],
        light=(brightness * (1 + tint), brightness, brightness * (1 - tint)),
        flip=bool(rng.random() < 0.5),
        seat=str(rng.choice(actor.FURNITURE)),
        prop=scene.hsv(rng.random(), rng.uniform(0.4, 0.8), rng.uniform(0.65, 0.95)),
        trim=scene.hsv(rng.random(), rng.uniform(0.05, 0.5), rng.uniform(0.8, 1.0)),
    )


@lru_cache(maxsize=64)
def _cast(seed: int, group: int, size: int) -> tuple[actor.Look, scene.Place]:
    """The actor and the place of a group, the place for pictures of a size in pixels."""
    look = actor.draw_look(generator(seed, "figures", "actor", group))
    kinds = list(scene.KINDS)
    rng = generator(seed, "figures", "place", group)
    return look, scene.paint(kinds[group % len(kinds)], rng, size)


def frames(
    action: str, group: int, clip: int, seed: int = 0, size: int = SIZE
) -> NDArray[np.uint8]:
    """The frames of one clip as they are before compression: (n, size, size, 3) RGB.

    Raises ValueError for an action that is not in PAIRS.
    """
    number, backwards = movement_of(action)
    drawn = draw(action, group, clip, seed)
    shown = render(_MOVEMENTS[number], drawn, seed, group, size)
    return shown[::-1] if backwards else shown


def render(
    movement: str, drawn: Draw, seed: int, group: int, size: int = SIZE
) -> NDArray[np.uint8]:
    """A movement played forwards by a group's actor at its place: (n, size, size, 3) RGB."""
    wide = size * _SUPERSAMPLING
    look, place = _cast(seed, group, wide)
    camera, skeleton = _film(movement, drawn, look.body, wide)
    parts = actor.person(camera, look, skeleton)
    if movement == "sit":
        parts += actor.seat_part(camera, look, drawn.style, drawn.seat, place.furniture)
    elif movement == "lift":
        parts += actor.carried_box(camera, drawn.style, skeleton, drawn.prop, drawn.trim)
    elif movement == "umbrella":
        parts += actor.umbrella(camera, skeleton, drawn.u, drawn.prop, drawn.trim)
    order = np.argsort(np.stack([part.depth for part in parts]), axis=0, kind="stable")
    backgrounds = _backgrounds(drawn, place, camera.view, wide)
    shown = np.empty((len(drawn.u), size, size, 3), np.uint8)
    tables = [np.clip(np.arange(256) * gain, 0, 255).astype(np.uint8) for gain in drawn.light]
    table = np.stack(tables, -1)[None]
    edge = max(1, round(wide * 0.006))
    for t, canvas in enumerate(backgrounds):
        for index in order[:, t]:
            actor.paint_part(canvas, parts[index], t, edge)
        small = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
        cv2.LUT(small, table, dst=shown[t])
    return np.ascontiguousarray(shown[:, :, ::-1]) if drawn.flip else shown


def _film(movement: str, drawn: Draw, body: pose.Body, wide: int) -> tuple[actor.Camera, pose.Pose]:
    """Where the camera stands, for pictures of wide pixels, and the poses before it."""
    view = actor.View(
        scale=drawn.height * wide,
        x=np.rint((drawn.x + drawn.pan) * wide),  # whole pixels, as the ground moves
        y=drawn.y * wide,
        yaw=drawn.yaw,
    )
    return actor.Camera(view), pose.pose(movement, body, drawn.style, drawn.u, drawn.sway)


def _backgrounds(
    drawn: Draw, place: scene.Place, view: actor.View, wide: int
) -> Iterator[scene.Image]:
    """One canvas per frame: backdrop, ground and drifting spots of light."""
    horizon, breadth = place.backdrop.shape[:2]
    room = breadth - wide
    reach = np.abs(drawn.drift).max() + np.abs(drawn.pan).max()
    margin = int(np.ceil(reach * wide)) + 1
    left = margin + drawn.start * (room - 2 * margin)
    near = np.rint(left - np.rint((drawn.x + drawn.pan) * wide) + drawn.x * wide).astype(int)
    far = np.rint(left + drawn.drift * wide).astype(int)
    ground = place.ground.copy()
    shadow = (int(left + drawn.x * wide), int(view.y - horizon + 0.005 * wide))
    radii = (int(0.2 * view.scale), int(0.045 * view.scale))
    soft = cv2.ellipse(np.full(ground.shape[:2], 255, np.uint8), shadow, radii, 0, 0, 360, 150, -1)
    soft = cv2.blur(soft, (1 + wide // 24, 1 + wide // 48))
    cv2.multiply(ground, cv2.merge([soft, soft, soft]), dst=ground, scale=1 / 255)
    move = np.rint((0.5 + drawn.shimmer) * wide).astype(int)
    for t in range(len(near)):
        canvas = np.empty((wide, wide, 3), np.uint8)
        canvas[:horizon] = place.backdrop[:, far[t] : far[t] + wide]
        canvas[horizon:] = ground[:, near[t] : near[t] + wide]
        down, across = move[t]
        light = place.lights[down : down + wide, across : across + wide]
        cv2.multiply(canvas, light, dst=canvas, scale=1 / 245)
        yield canvas


def write_clip(path: Path, shown: NDArray[np.uint8]) -> None:
    """Write frames (n, H, W, 3) RGB as a motion-JPEG file: every frame is coded by itself."""
    height, width = shown.shape[1:3]
    codec = cv2.VideoWriter.fourcc(*"MJPG")
    # OpenCV's own writer: the same bytes whether or not OpenCV was built with ffmpeg.
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, codec, FRAME_RATE, (width, height))
    if not writer.isOpened():
        raise OSError(f"{path}: OpenCV cannot write motion JPEG here")
    writer.set(cv2.VIDEOWRITER_PROP_QUALITY, _QUALITY)
    for frame in shown:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def generate(
    root: str | os.PathLike[str],
    seed: int = 0,
    clips_per_group: int = CLIPS_PER_GROUP,
    groups: int = GROUPS,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Make the data set in a folder root that is absent or empty.

    clips_per_group counts per class. The folder appears when it is complete. The same seed and
    numbers give the same bytes, whatever the workers (by default as many as there are cores).
    Raises InputError when root holds something or cannot be written, ValueError for numbers that
    make no data set.
    """
    for name, value, least in (("clips_per_group", clips_per_group, 1), ("groups", groups, 3)):
        if value < least:
            raise ValueError(f"{name}: {value}, expected at least {least}")
    root = Path(root)
    _refuse_occupied(root)
    partial = root.absolute().parent / f".tmp-{root.name}-{os.getpid()}"
    _remove_stale(root)
    try:
        _fill(partial, seed, clips_per_group, groups, workers or _cores(), progress)
        if root.exists():
            root.rmdir()  # empty: not every system renames onto a folder
        os.replace(partial, root)
    except OSError as error:
        raise InputError(f"{root}: the figures cannot be written there: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_stale(root: Path) -> None:
    """Remove what processes that were killed left of making `root`."""
    for partial in root.absolute().parent.glob(f".tmp-{root.name}-*"):
        process = partial.name.rpartition("-")[2]
        try:
            os.kill(int(process), 0)  # signal 0 only asks whether it is there
            alive = int(process) != os.getpid()
        except PermissionError:
            alive = True
        except (ProcessLookupError, ValueError):
            alive = False
        if not alive:
            shutil.rmtree(partial, ignore_errors=True)


def _fill(
    root: Path, seed: int, clips_per_group: int, groups: int, workers: int, progress: bool
) -> None:
    """Write videos, lists and settings."""
    for action in CLASSES:
        (root / _VIDEOS / action).mkdir(parents=True)
    # By groups, so that a place is painted once and used while it is at hand.
    jobs = [
        (action, group, clip)
        for group in range(1, groups + 1)
        for action in CLASSES
        for clip in range(1, clips_per_group + 1)
    ]

    def make(job: tuple[str, int, int]) -> None:
        write_clip(root / _VIDEOS / _entry(*job), frames(*job, seed=seed))

    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(jobs), desc="drawing", unit="clip", disable=not progress) as bar,
    ):
        try:
            for _ in pool.map(make, jobs):
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _write_lists(root / _LISTS, sorted(jobs), groups)
    settings = _settings(seed, clips_per_group, groups)
    (root / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def _entry(action: str, group: int, clip: int) -> str:
    return f"{action}/v_{action}_g{group:02d}_c{clip:02d}.avi"


def _write_lists(folder: Path, clips: list[tuple[str, int, int]], groups: int) -> None:
    """The official lists: split s tests the s-th 7 of 25 groups (or that share of fewer)."""
    folder.mkdir()
    label = {action: number for number, action in enumerate(CLASSES, 1)}
    classes = "".join(f"{number} {action}\n" for action, number in label.items())
    (folder / "classInd.txt").write_text(classes)
    share = max(1, groups * 7 // 25)
    for split in (1, 2, 3):
        tested = range(1 + (split - 1) * share, 1 + split * share)
        test = [_entry(*clip) for clip in clips if clip[1] in tested]
        train = [f"{_entry(*clip)} {label[clip[0]]}" for clip in clips if clip[1] not in tested]
        (folder / f"testlist{split:02d}.txt").write_text("\n".join(test) + "\n")
        (folder / f"trainlist{split:02d}.txt").write_text("\n".join(train) + "\n")


def _settings(seed: int, clips_per_group: int, groups: int) -> dict[str, int | str]:
    return {
        "data": "figures",
        "version": VERSION,
        "seed": seed,
        "groups": groups,
        "clips_per_group": clips_per_group,
        "size": SIZE,
        "frames": LENGTH,
        "frame_rate": FRAME_RATE,
    }


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _refuse_occupied(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: a file, expected a folder for the figures")
    if root.is_dir() and any(root.iterdir()):
        raise InputError(f"{root}: holds something already, expected an absent or empty folder")


def ensure(
    root: str | os.PathLike[str],
    seed: int = 0,
    clips_per_group: int = CLIPS_PER_GROUP,
    groups: int = GROUPS,
    workers: int | None = None,
    progress: bool = True,
    log: Callable[[str], object] = print,
) -> None:
    """Make the data set in root unless it is there already; log gets a line when it is made.

    Raises InputError when root holds something else, or figures of another version, seed or size.
    """
    root = Path(root)
    wanted = _settings(seed, clips_per_group, groups)
    if not (root / _SETTINGS).is_file():
        _refuse_occupied(root)
        count = len(CLASSES) * groups * clips_per_group
        log(f"{root}: making the embedded data set, {count} clips of {len(CLASSES)} actions")
        generate(root, seed, clips_per_group, groups, workers, progress)
        return
    try:
        found = read_json(root / _SETTINGS)
        different = [key for key in wanted if found.get(key) != wanted[key]]
    except (InputError, AttributeError) as error:
        raise InputError(f"{root / _SETTINGS}: not the settings of a data set: {error}") from error
    if different:
        here = ", ".join(f"{key} {found.get(key)}" for key in different)
        expected = ", ".join(f"{key} {wanted[key]}" for key in different)
        raise InputError(
            f"{root}: figures with {here}, expected {expected}: name another folder or remove it"
        )


def read(root: str | os.PathLike[str], split: int = 1) -> Split:
    """A split of the data set in root; raises InputError as recres.datasets.ucf101.read does."""
    from recres.datasets import ucf101

    return ucf101.read(root, split, name="figures")._replace(pairs=PAIRS)


def contact_sheet(
    path: str | os.PathLike[str], seed: int = 0, columns: int = 6, size: int = 104
) -> None:
    """Draw every action as a strip of frames, the two of a pair side by side, as a PNG."""
    gap, title = size // 8, size // 5
    rows = []
    for number, pair in enumerate(PAIRS):
        strips = []
        for side, action in enumerate(pair):
            shown = frames(action, 1 + (5 * number + 3 * side) % GROUPS, 1, seed, size)
            chosen = np.rint(np.linspace(0, len(shown) - 1, columns)).astype(int)
            strip = np.concatenate(list(shown[chosen]), axis=1)
            head = np.full((title, strip.shape[1], 3), 255, np.uint8)
            cv2.putText(
                head,
                action,
                (2, title - 6),
                cv2.FONT_HERSHEY_SIMPLEX,
                size / 230,
                (60, 60, 60),
                1,
                cv2.LINE_AA,
            )
            strips.append(np.concatenate([head, strip]))
        between = np.full((len(strips[0]), gap, 3), 255, np.uint8)
        rows.append(np.concatenate([strips[0], between, strips[1]], axis=1))
    sheet = cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)
    with replacing(Path(path)) as beside:
        beside.write_bytes(cv2.imencode(".png", sheet)[1].tobytes())
