"""How the actors look: bodies, faces, hair, clothes and the things they handle, drawn as strokes.

A figure is a list of parts; a part is a few strokes (rounded lines, polygons or dots) that are
painted together. Parts are painted from the farthest to the nearest, frame by frame.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from recres.datasets.figures.pose import SIDES, Array, Body, Pose, Style, box_size, draw_body, seat
from recres.datasets.figures.scene import SHIFT, Colour, Image, fixed, hsv, shade


class Look(NamedTuple):
    """An actor: body, colours and clothes."""

    body: Body
    girth: float
    skin: Colour
    hair: Colour
    hair_style: str
    beard: bool
    top: Colour
    trim: Colour
    pattern: str
    long_sleeves: bool
    bottom: Colour
    bottom_style: str
    shoes: Colour


class View(NamedTuple):
    """Where the camera sees the actor: height in pixels, the feet's place, the direction."""

    scale: float
    x: Array  # (n,) pixels
    y: float
    yaw: float  # radians; 0 looks into the camera
    pitch: float = 0.16  # the camera looks down a little


class Stroke(NamedTuple):
    """A rounded line, polygon or dot over n frames; its outline, if any, is painted first."""

    points: NDArray[np.int32]  # (n, k, 2), fixed point
    colour: Colour
    width: int
    closed: bool = False
    outline: Colour | None = None


class Part(NamedTuple):
    """Strokes painted together, at a depth per frame (n,): larger is nearer."""

    depth: Array
    strokes: list[Stroke]


SKINS = (
    (0.055, 0.22, 0.98),
    (0.06, 0.32, 0.93),
    (0.065, 0.42, 0.82),
    (0.06, 0.5, 0.66),
    (0.055, 0.52, 0.52),
    (0.05, 0.52, 0.4),
)
HAIRS = (
    (0.08, 0.6, 0.16),
    (0.07, 0.65, 0.28),
    (0.06, 0.7, 0.42),
    (0.11, 0.6, 0.82),
    (0.04, 0.75, 0.62),
    (0.1, 0.06, 0.72),
)
HAIR_STYLES = ("short", "long", "bun", "tail", "curly", "hat", "bald")
FURNITURE = ("chair", "stool", "bench", "cushion")


def draw_look(rng: np.random.Generator) -> Look:
    """A random actor."""
    style = str(rng.choice(HAIR_STYLES, p=(0.26, 0.18, 0.14, 0.14, 0.12, 0.1, 0.06)))
    hue = rng.random()
    bottom_hue = rng.choice([0.6, 0.62, 0.08, rng.random()])
    top = hsv(hue, rng.uniform(0.35, 0.85), rng.uniform(0.6, 0.98))
    return Look(
        body=draw_body(rng),
        girth=rng.uniform(0.042, 0.062),
        skin=hsv(*SKINS[rng.integers(len(SKINS))]),
        hair=hsv(*HAIRS[rng.integers(len(HAIRS))]),
        hair_style=style,
        beard=style in ("short", "bald", "hat") and bool(rng.random() < 0.35),
        top=top,
        trim=hsv(hue + rng.uniform(0.3, 0.7), rng.uniform(0.1, 0.7), rng.uniform(0.75, 1.0)),
        pattern=str(rng.choice(["plain", "stripes", "band", "buttons"])),
        long_sleeves=bool(rng.random() < 0.5),
        bottom=hsv(bottom_hue, rng.uniform(0.25, 0.65), rng.uniform(0.28, 0.7)),
        bottom_style=str(rng.choice(["trousers", "shorts", "skirt"], p=(0.55, 0.22, 0.23))),
        shoes=hsv(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.25, 0.95)),
    )


class Camera:
    """Turns points of the actor's space into pixels and depths."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.cosine, self.sine = np.cos(view.yaw), np.sin(view.yaw)

    def depth(self, points: Array) -> Array:
        """Depth (…) of points (…, 3): larger is nearer."""
        return points[..., 2] * self.cosine - points[..., 0] * self.sine

    def pixels(self, points: Array) -> NDArray[np.int32]:
        """Fixed-point pixels (n, k, 2) of points (n, k, 3)."""
        view = self.view
        across = points[..., 0] * self.cosine + points[..., 2] * self.sine
        down = points[..., 1] * np.cos(view.pitch) - self.depth(points) * np.sin(view.pitch)
        x = view.x[:, None] + view.scale * across
        return fixed(np.stack([x, view.y - view.scale * down], -1))

    def stroke(
        self, points: Array, colour: Colour, width: float, closed: bool = False, edge: bool = True
    ) -> Stroke:
        """A stroke through points (n, k, 3), width a fraction of the actor's height."""
        thick = max(1, round(width * self.view.scale))
        outline = shade(colour, 0.5) if edge else None
        return Stroke(self.pixels(points), colour, thick, closed, outline)


def paint_part(canvas: Image, part: Part, t: int, edge: int) -> None:
    """Paint the strokes of a part as they are in frame t; outlines stand out by edge pixels."""
    for stroke in part.strokes:
        if stroke.outline is not None:
            _paint(canvas, stroke, t, stroke.outline, stroke.width + 2 * edge)
    for stroke in part.strokes:
        _paint(canvas, stroke, t, stroke.colour, stroke.width)


def _paint(canvas: Image, stroke: Stroke, t: int, colour: Colour, width: int) -> None:
    points = stroke.points[t]
    if len(points) == 1:
        radius = width << (SHIFT - 1)
        x, y = points[0].tolist()
        cv2.circle(canvas, (x, y), radius, colour, -1, cv2.LINE_AA, SHIFT)
        return
    if stroke.closed:
        cv2.fillPoly(canvas, [points], colour, cv2.LINE_AA, SHIFT)
    cv2.polylines(canvas, [points], stroke.closed, colour, width, cv2.LINE_AA, SHIFT)


def person(camera: Camera, look: Look, pose: Pose) -> list[Part]:
    """The actor in a pose."""
    return [
        *_legs(camera, look, pose),
        *_trunk(camera, look, pose),
        *_arms(camera, look, pose),
        *_head(camera, look, pose),
    ]


def _join(*points: Array) -> Array:
    return np.stack(points, 1)


def _legs(camera: Camera, look: Look, pose: Pose) -> list[Part]:
    parts = []
    bare = look.bottom_style != "trousers"
    width = 0.088 + 0.5 * (look.girth - 0.05)
    for i in (0, 1):
        hip, knee, ankle = pose.hips[:, i], pose.knees[:, i], pose.ankles[:, i]
        toe = ankle + np.array([0.012 * SIDES[i], -0.012, 0.075])
        depth = camera.depth(_join(hip, knee, knee, ankle)).mean(1) - 0.02
        strokes = [
            camera.stroke(_join(ankle, toe), look.shoes, 0.055),
            camera.stroke(
                _join(hip, knee, ankle),
                look.skin if bare else look.bottom,
                width * (0.8 if bare else 1),
            ),
        ]
        if look.bottom_style == "shorts":
            strokes.append(
                camera.stroke(_join(hip, hip + 0.8 * (knee - hip)), look.bottom, width * 1.1)
            )
        parts.append(Part(depth, strokes))
    if look.bottom_style == "skirt":
        flare = np.array([[-0.045, 0.0, 0.0], [0.045, 0.0, 0.0]])
        hem = pose.hips + 0.88 * (pose.knees - pose.hips) + flare
        outline = _join(pose.hips[:, 0], pose.hips[:, 1], hem[:, 1], hem[:, 0])
        depth = camera.depth(_join(*pose.knees.swapaxes(0, 1), *pose.hips.swapaxes(0, 1))).max(1)
        parts.append(Part(depth - 0.02, [camera.stroke(outline, look.bottom, 0.07, closed=True)]))
    return parts


def _trunk(camera: Camera, look: Look, pose: Pose) -> list[Part]:
    centre = pose.shoulders.mean(1)
    middle = pose.hips.mean(1)
    width = 2 * look.girth + 0.02
    narrow = np.array(1 - (look.girth + 0.008) / look.body.shoulder_width)
    shoulders = centre[:, None] + (pose.shoulders - centre[:, None]) * narrow
    shoulders = shoulders - 0.35 * width * (centre - middle)[:, None]
    hips = middle[:, None] + (pose.hips - middle[:, None]) * 0.75
    corners = _join(shoulders[:, 0], shoulders[:, 1], hips[:, 1], hips[:, 0])
    depth = camera.depth(_join(centre, middle)).mean(1)
    neck = camera.stroke(_join(centre, pose.head), look.skin, 0.062)
    strokes = [neck, camera.stroke(corners, look.top, width, closed=True)]
    levels = {"plain": (), "stripes": (0.18, 0.45, 0.72), "band": (0.35,), "buttons": ()}
    for level in levels[look.pattern]:
        across = shoulders + level * (hips - shoulders)
        thick = 0.045 if look.pattern == "stripes" else 0.075
        out = 0.25 * (across[:, 1] - across[:, 0])
        band = _join(across[:, 0] - out, across[:, 1] + out)
        strokes.append(camera.stroke(band, look.trim, thick, edge=False))
    if look.pattern == "buttons":
        forward = look.girth * 1.1 * pose.face
        for level in (0.15, 0.45, 0.75):
            at = centre + level * (middle - centre) + forward
            strokes.append(camera.stroke(at[:, None], look.trim, 0.024, edge=False))
    return [Part(depth, strokes)]


def _arms(camera: Camera, look: Look, pose: Pose) -> list[Part]:
    parts = []
    for i in (0, 1):
        shoulder, elbow, hand = pose.shoulders[:, i], pose.elbows[:, i], pose.hands[:, i]
        shoulder = shoulder + 0.12 * (pose.hips[:, i] - shoulder)
        depth = camera.depth(_join(shoulder, elbow, hand)).mean(1) + 0.025
        arm = 0.07
        strokes = [
            camera.stroke(_join(shoulder, elbow, hand), look.skin, arm * 0.82),
            camera.stroke(hand[:, None], look.skin, 0.082),
        ]
        if look.long_sleeves:
            wrist = elbow + 0.82 * (hand - elbow)
            strokes.append(camera.stroke(_join(shoulder, elbow, wrist), look.top, arm))
        else:
            half = shoulder + 0.65 * (elbow - shoulder)
            strokes.append(camera.stroke(_join(shoulder, half), look.top, arm * 1.12))
        parts.append(Part(depth, strokes))
    return parts


def _head(camera: Camera, look: Look, pose: Pose) -> list[Part]:
    r, face, up = look.body.head, pose.face, pose.crown
    side = np.cross(up, face)
    down = np.array([0.0, -1.0, 0.0])

    def at(forward: float, upward: float, sideways: float = 0.0, sag: float = 0.0) -> Array:
        return pose.head + r * (forward * face + upward * up + sideways * side + sag * down)

    def dot(place: Array, radius: float, colour: Colour, edge: bool = False) -> Stroke:
        return camera.stroke(place[:, None], colour, 2 * r * radius, edge=edge)

    depth = camera.depth(pose.head) + 0.05
    parts = []
    strokes = [dot(at(0, 0), 1.0, look.skin, edge=True)]
    style = look.hair_style
    if style == "hat":
        strokes.append(dot(at(-0.12, 1.3), 0.3, look.top, edge=True))
        strokes.append(dot(at(-0.12, 0.3), 1.0, look.trim, edge=True))
    elif style != "bald":
        strokes.append(dot(at(-0.2, 0.16), 0.98, look.hair, edge=True))
    if style == "curly":
        for forward, upward, sideways in (
            (0.1, 0.9, 0.45),
            (0.1, 0.9, -0.45),
            (-0.6, 0.7, 0.3),
            (-0.6, 0.5, -0.7),
            (-0.5, 0.4, 0.8),
            (-0.9, 0.1, 0.0),
        ):
            strokes.insert(0, dot(at(forward, upward, sideways), 0.45, look.hair, edge=True))
    if style == "bun":
        strokes.insert(0, dot(at(-0.45, 1.1), 0.42, look.hair, edge=True))
    if style == "long":
        curtain = _join(at(-0.35, 0.2), at(-0.55, 0.0, sag=0.7), at(-0.6, 0.0, sag=1.5))
        hair = camera.stroke(curtain, look.hair, 1.55 * r)
        parts.append(Part(camera.depth(curtain).mean(1) - 0.05, [hair]))
    if style == "tail":
        tail = _join(at(-0.85, 0.4), at(-1.25, 0.2, sag=0.3), at(-1.3, 0.0, sag=1.2))
        hair = camera.stroke(tail, look.hair, 0.45 * r)
        parts.append(Part(camera.depth(tail).mean(1), [hair]))
    strokes.append(dot(at(0.28, -0.16), 0.8, look.skin))
    if look.beard:
        strokes.append(dot(at(0.4, -0.62), 0.48, look.hair))
        strokes.append(dot(at(0.5, -0.25), 0.42, look.skin))
    if style == "hat":
        brim = _join(at(0.42, 0.42, 0.55), at(0.6, 0.46), at(0.42, 0.42, -0.55))
        strokes.append(camera.stroke(brim, shade(look.trim, 0.8), 0.28 * r, edge=False))
    ink = (45, 32, 32)
    for sideways in (-0.36, 0.36):
        strokes.append(dot(at(0.85, 0.02, sideways), 0.13, ink))
    smile = _join(at(0.8, -0.4, -0.25), at(0.85, -0.5), at(0.8, -0.4, 0.25))
    strokes.append(camera.stroke(smile, shade(look.skin, 0.5), 0.1 * r, edge=False))
    return [*parts, Part(depth, strokes)]


def cuboid(
    camera: Camera,
    centre: Array,
    size: tuple[float, float, float],
    colour: Colour,
    depth: Array,
    band: Colour | None = None,
) -> Part:
    """A box around centre (n, 3), of a width, height and depth; band runs round its middle."""
    half = np.asarray(size) / 2

    def face(*corners: tuple[float, float, float]) -> Array:
        return centre[:, None] + np.asarray(corners) * half

    s = -1.0 if camera.sine > 0 else 1.0  # which of the two sides shows
    sides = [
        (face((s, -1, -1), (s, 1, -1), (s, 1, 1), (s, -1, 1)), shade(colour, 0.78)),
        (face((-1, 1, -1), (1, 1, -1), (1, 1, 1), (-1, 1, 1)), shade(colour, 1.3)),
        (face((-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)), colour),
    ]
    strokes = [camera.stroke(points, tone, 0.012, closed=True) for points, tone in sides]
    if band is not None:
        strokes.append(
            camera.stroke(face((0, -1, 1), (0, 1, 1), (0, 1, -1)), band, 0.04, edge=False)
        )
    return Part(depth, strokes)


def furniture(
    camera: Camera, kind: str, height: float, at: tuple[float, float], colour: Colour
) -> list[Part]:
    """Something to sit on, of one of FURNITURE, its seat at a height around (x, z) = at."""
    n = len(camera.view.x)
    x, z = at
    wide = 0.34 if kind == "bench" else 0.16
    deep = 0.14

    def run(*points: tuple[float, float, float]) -> Array:
        return np.broadcast_to(np.asarray(points) + (x, 0, z), (n, len(points), 3))

    behind = camera.depth(run((0, 0, 0)))[:, 0] - 0.6
    if kind == "cushion":
        centre = run((0, height / 2, 0))[:, 0]
        return [cuboid(camera, centre, (2 * wide, height, 2 * deep), colour, behind)]
    strokes = []
    for pz in (-1, 1):
        for px in (-0.9, 0.9):
            leg = run((px * wide, 0, pz * deep * 0.9), (px * wide, height, pz * deep))
            strokes.append(camera.stroke(leg, shade(colour, 0.8 if pz < 0 else 1), 0.035))
    if kind in ("chair", "bench"):
        for px in (-1, 1):
            post = run((px * wide, height, -deep), (px * wide, height + 0.3, -deep - 0.03))
            strokes.append(camera.stroke(post, colour, 0.035))
        for y in (height + 0.135, height + 0.24):
            slat = run((-wide, y, -deep - 0.02), (wide, y, -deep - 0.02))
            strokes.append(camera.stroke(slat, shade(colour, 1.15), 0.06))
    corners = ((-wide, -deep), (wide, -deep), (wide, deep), (-wide, deep))
    board = run(*((px, height, pz) for px, pz in corners))
    strokes.append(camera.stroke(board, shade(colour, 1.1), 0.035, closed=True))
    return [Part(behind, strokes)]


def carried_box(
    camera: Camera, style: Style, pose: Pose, colour: Colour, band: Colour
) -> list[Part]:
    """The box in the actor's hands."""
    centre = pose.thing[:, 0]
    depth = camera.depth(centre) - 0.02
    return [cuboid(camera, centre, box_size(style), colour, depth, band)]


def seat_part(camera: Camera, look: Look, style: Style, kind: str, colour: Colour) -> list[Part]:
    """The seat behind the actor."""
    height, back = seat(look.body, style)
    return furniture(camera, kind, height, (0.0, back - 0.02), colour)


def umbrella(camera: Camera, pose: Pose, u: Array, colour: Colour, second: Colour) -> list[Part]:
    """The umbrella in the actor's hands, opened by u (n,) from 0, furled, to 1."""
    top, grip = pose.thing[:, 0], pose.thing[:, 1]
    axis = (top - grip) / np.linalg.norm(top - grip, axis=-1, keepdims=True)
    right = np.cross(axis, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    toward = np.cross(right, axis)
    ribs, length = 8, 0.43
    spread = np.radians(9 + 68 * u)[:, None]

    def on_rib(k: float, share: float, opening: Array) -> Array:
        turn = 2 * np.pi * (k + 0.5) / ribs
        radial = np.cos(turn) * right + np.sin(turn) * toward
        return top + share * length * (np.sin(opening) * radial - np.cos(opening) * axis)

    handle = grip - 0.1 * axis
    crook = handle + np.array([0.05, -0.01, 0.0])
    stick = [camera.stroke(_join(crook, handle, top + 0.04 * axis), (95, 70, 55), 0.022)]
    parts = [Part(camera.depth(grip) - 0.015, stick)]
    for k in range(ribs):
        panel = _join(
            top,
            on_rib(k, 0.55, spread * 1.12),
            on_rib(k, 1.0, spread),
            on_rib(k + 0.5, 0.93, spread * 0.97),
            on_rib(k + 1, 1.0, spread),
            on_rib(k + 1, 0.55, spread * 1.12),
        )
        away = np.sin(2 * np.pi * (k + 1) / ribs) < 0
        tone = shade(colour if k % 2 else second, 0.72 if away else 1.0)
        stroke = camera.stroke(panel, tone, 0.008, closed=True)
        parts.append(Part(camera.depth(panel).mean(1), [stroke]))
    return parts
