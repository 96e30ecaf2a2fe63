"""How the actors move: a skeleton in three dimensions and the five movements it knows.

Each movement is a path of poses p(u), u from 0 to 1; played forwards it is the first action of a
pair, played backwards the second. Lengths are fractions of the actor's height. The actor stands
at the origin looking along +z, x points to the right of someone in front of the actor, y up.
Feet stay planted and hands reach targets: knees and elbows follow by inverse kinematics.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Body(NamedTuple):
    """Proportions of an actor, as fractions of the height."""

    hip_height: float
    hip_width: float  # between the hip joints
    torso: float  # hip to shoulder line
    shoulder_width: float
    neck: float  # shoulder line to the centre of the head
    head: float  # radius
    upper_arm: float
    forearm: float
    thigh: float
    shin: float


class Pose(NamedTuple):
    """A skeleton over n frames: points (n, 3); pairs of points (n, 2, 3), first the one at -x."""

    hips: Array
    shoulders: Array
    elbows: Array
    hands: Array
    knees: Array
    ankles: Array
    head: Array
    face: Array  # unit vector (n, 3) from the centre of the head towards the nose
    crown: Array  # unit vector (n, 3) towards the top of the head
    thing: Array  # what the hands hold: centre of the box, or top and grip of the umbrella


SIDES = np.array([-1.0, 1.0])


def draw_body(rng: np.random.Generator) -> Body:
    """Proportions of a random adult or child: long or short legs, broad or narrow, head large."""
    child = rng.random() < 0.25
    legs = rng.uniform(0.43, 0.46) if child else rng.uniform(0.455, 0.5)
    head = rng.uniform(0.105, 0.115) if child else rng.uniform(0.088, 0.1)
    neck = head + rng.uniform(0.025, 0.04)
    arm = rng.uniform(0.185, 0.205)
    return Body(
        hip_height=legs,
        hip_width=rng.uniform(0.1, 0.13),
        torso=1.0 - legs - neck - head,
        shoulder_width=rng.uniform(0.2, 0.25),
        neck=neck,
        head=head,
        upper_arm=arm,
        forearm=arm * rng.uniform(0.9, 1.0),
        thigh=legs * 0.52,
        shin=legs * 0.5,
    )


def _points(x: Array | float, y: Array | float, z: Array | float, n: int) -> Array:
    return np.stack([np.broadcast_to(v, (n,)) for v in (x, y, z)], -1).astype(np.float64)


def _unit(v: Array) -> Array:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def reach(root: Array, target: Array, first: float, second: float, bend: Array) -> tuple:
    """The joint between two bones, and where the second ends: (…, 3) each.

    The chain starts at root (…, 3) and points at target as far as the bones' lengths allow; the
    joint lies on the side of the vector bend.
    """
    way = target - root
    distance = np.linalg.norm(way, axis=-1, keepdims=True)
    direction = way / np.maximum(distance, 1e-9)
    distance = np.clip(distance, abs(first - second) + 1e-3, 0.999 * (first + second))
    along = (first**2 - second**2 + distance**2) / (2 * distance)
    side = bend - (bend * direction).sum(-1, keepdims=True) * direction
    side = side / np.maximum(np.linalg.norm(side, axis=-1, keepdims=True), 1e-9)
    joint = root + along * direction + np.sqrt(np.maximum(first**2 - along**2, 0)) * side
    return joint, root + distance * direction


class Style(NamedTuple):
    """What differs between two performances of one movement, each in [-1, 1]."""

    depth: float
    spread: float
    lean: float
    head: float


def draw_style(rng: np.random.Generator) -> Style:
    """A random manner of moving."""
    return Style(*rng.uniform(-1, 1, 4))


def pose(movement: str, body: Body, style: Style, u: Array, sway: Array) -> Pose:
    """The skeleton along a movement.

    movement names one of MOVEMENTS; u (n,) runs from 0 to 1; sway (n,) is a small sideways lean
    in radians. Seats and boxes stand where seat() and box_size() say.
    """
    return MOVEMENTS[movement](body, style, u, sway)


def seat(body: Body, style: Style) -> tuple[float, float]:
    """Height of the seat behind the actor, and its distance: where the hips come down."""
    return body.hip_height * (0.56 + 0.05 * style.depth), -0.2 - 0.02 * style.spread


def box_size(style: Style) -> tuple[float, float, float]:
    """Width, height and depth of the box to be lifted."""
    return 0.27 + 0.05 * style.spread, 0.2 + 0.04 * style.head, 0.2


def _trunk(body: Body, pelvis: Array, lean: Array, sway: Array, nod: Array) -> tuple:
    """Hips, shoulders, head, face and crown of a trunk bent forwards by lean radians."""
    n = len(pelvis)
    up = _unit(_points(np.sin(sway), np.cos(lean), np.sin(lean), n))
    across = _unit(_points(np.cos(sway), -np.sin(sway), 0.0, n))[:, None] * SIDES[:, None]
    hips = pelvis[:, None] + across * body.hip_width / 2
    top = pelvis + up * body.torso
    shoulders = top[:, None] + across * body.shoulder_width / 2
    tilt = lean * 0.8 + nod
    crown = _points(np.sin(sway) * 0.7, np.cos(tilt), np.sin(tilt), n)
    face = _points(0.0, -np.sin(tilt), np.cos(tilt), n)
    return hips, shoulders, top + _unit(crown) * body.neck, face, _unit(crown)


def _feet(body: Body, style: Style, n: int, z: float = 0.0) -> Array:
    """Ankles on the ground, a little apart."""
    apart = body.hip_width / 2 + 0.02 + 0.02 * style.spread
    ankle = _points(apart, 0.035, z, n)[:, None].repeat(2, 1)
    ankle[..., 0] *= SIDES
    return ankle


def _assemble(
    body: Body, trunk: tuple, ankles: Array, hands: Array, elbow_bend: Array, thing: Array
) -> Pose:
    """Arms and legs fitted to a trunk, the ground and the targets of the hands."""
    hips, shoulders, head, face, crown = trunk
    knee_bend = np.array([[-0.15, 0.0, 1.0], [0.15, 0.0, 1.0]])
    knees, ankles = reach(hips, ankles, body.thigh, body.shin, knee_bend)
    elbows, hands = reach(shoulders, hands, body.upper_arm, body.forearm, elbow_bend)
    return Pose(hips, shoulders, elbows, hands, knees, ankles, head, face, crown, thing)


def _hanging(body: Body, shoulders: Array, swing: float = 0.0) -> Array:
    """Hands of arms that hang down."""
    length = (body.upper_arm + body.forearm) * 0.97
    return shoulders + np.stack([0.05 * SIDES, [-length, -length], [swing + 0.03] * 2], -1)


BACKWARDS = np.array([[-0.3, 0.0, -1.0], [0.3, 0.0, -1.0]])
OUTWARDS = np.array([[-1.0, -0.6, -0.3], [1.0, -0.6, -0.3]])
DOWNWARDS = np.array([[-0.45, -1.0, -0.2], [0.45, -1.0, -0.2]])


def _sit(body: Body, style: Style, u: Array, sway: Array) -> Pose:
    """From standing before a seat to sitting on it, bending forwards on the way."""
    n = len(u)
    height, back = seat(body, style)
    low = height + 0.055
    pelvis = _points(
        0.0,
        body.hip_height + (low - body.hip_height) * (0.5 * u + 0.5 * u**2),
        back * np.sin(u * np.pi / 2),
        n,
    )
    lean = 0.04 + (0.6 + 0.15 * style.lean) * np.sin(np.pi * u) - 0.06 * u
    trunk = _trunk(body, pelvis, lean, sway, -0.25 * np.sin(np.pi * u) + 0.08 * style.head)
    ankles = _feet(body, style, n, 0.02)
    knees, _ = reach(trunk[0], ankles, body.thigh, body.shin, np.array([0.0, 0.0, 1.0]))
    on_knees = knees + np.array([0.0, 0.055, -0.03])
    share = np.clip(u * 1.3, 0, 1)[:, None, None]
    hands = (1 - share) * _hanging(body, trunk[1]) + share * on_knees
    return _assemble(body, trunk, ankles, hands, BACKWARDS, pelvis[:, None])


def _arms(body: Body, style: Style, u: Array, sway: Array) -> Pose:
    """From hands together before the chest to arms wide open; the hands part evenly."""
    n = len(u)
    pelvis = _points(0.0, body.hip_height - 0.004, 0.0, n)
    lean = 0.06 - 0.12 * u
    trunk = _trunk(body, pelvis, lean, sway, 0.14 - 0.26 * u + 0.05 * style.head)
    rise = np.radians(16 + 14 * style.spread)
    length = 0.98 * (body.upper_arm + body.forearm)
    apart = 0.02 + (body.shoulder_width / 2 + length * np.cos(rise)) * u
    hands = trunk[1].mean(1)[:, None] + np.stack(
        [
            apart[:, None] * SIDES,
            (-0.13 * (1 - u) + length * np.sin(rise) * u)[:, None] * [1, 1],
            (0.19 * np.cos(u * np.pi / 2) + 0.03 * style.depth)[:, None] * [1, 1],
        ],
        -1,
    )
    return _assemble(body, trunk, _feet(body, style, n), hands, OUTWARDS, pelvis[:, None])


def _bow(body: Body, style: Style, u: Array, sway: Array) -> Pose:
    """From upright to a deep bow, arms hanging."""
    n = len(u)
    pelvis = _points(0.0, body.hip_height - 0.015 * u, -0.1 * u, n)
    lean = 0.02 + (1.5 + 0.16 * style.lean) * u
    trunk = _trunk(body, pelvis, lean, sway, 0.15 * u * style.head)
    hands = _hanging(body, trunk[1], 0.08 * style.depth)
    return _assemble(body, trunk, _feet(body, style, n), hands, BACKWARDS, pelvis[:, None])


def _lift(body: Body, style: Style, u: Array, sway: Array) -> Pose:
    """From squatting, hands at a box on the ground, to standing with the box before the chest."""
    n = len(u)
    width, height, _ = box_size(style)
    low = body.hip_height * (0.58 + 0.05 * style.depth)
    pelvis = _points(0.0, low + (body.hip_height - low) * u, -0.13 * (1 - u), n)
    lean = (0.95 + 0.1 * style.lean) * (1 - u) ** 1.2 - 0.08 * u
    trunk = _trunk(body, pelvis, lean, sway, -0.3 * (1 - u) + 0.08 * style.head)
    carried = body.hip_height + body.torso * 0.5
    box = _points(
        0.0,
        height / 2 + (carried - height / 2) * (0.8 * u + 0.2 * u**2),
        0.27 - 0.05 * u + 0.05 * np.sin(np.pi * u),
        n,
    )
    hands = box[:, None] + np.stack([SIDES * width / 2, [-0.02] * 2, [0.0] * 2], -1)
    ankles = _feet(body, style, n)
    return _assemble(body, trunk, ankles, hands, BACKWARDS, box[:, None])


def _umbrella(body: Body, style: Style, u: Array, sway: Array) -> Pose:
    """From holding a furled umbrella to holding it open: the upper hand pushes the runner up."""
    n = len(u)
    pelvis = _points(0.0, body.hip_height - 0.004, 0.0, n)
    trunk = _trunk(body, pelvis, np.full(n, 0.0), sway, -0.2 * u + 0.06 * style.head)
    shoulder = body.hip_height + body.torso
    tilt = 0.2 + 0.12 * style.lean
    grip = _points(-0.1 - 0.03 * style.spread, shoulder - 0.17 + 0.05 * u, 0.2, n)
    axis = _points(-np.sin(tilt), np.cos(tilt), 0.0, n)
    top = grip + axis * 0.6
    hands = np.stack([grip, grip + axis * (0.1 + 0.2 * u)[:, None]], 1)
    ankles = _feet(body, style, n)
    return _assemble(body, trunk, ankles, hands, DOWNWARDS, np.stack([top, grip], 1))


MOVEMENTS = {"sit": _sit, "arms": _arms, "bow": _bow, "lift": _lift, "umbrella": _umbrella}
