"""Where the actors perform: places painted once, and the small drawing tools everything shares.

A place is a backdrop and a ground, both wider than the picture, so that a clip can look at any
part of them and let them drift.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

SHIFT = 4  # binary digits after the point in OpenCV's fixed-point coordinates
BREADTH = 2.5  # width of a place in picture widths


class Place(NamedTuple):
    """A painted place: backdrop (horizon, width, 3) and ground (size - horizon, width, 3).

    lights (2 size, 2 size, 3) are spots of light and shade that move over both.
    """

    kind: str
    backdrop: Image
    ground: Image
    lights: Image
    furniture: Colour


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """An RGB colour, 0 to 255, from hue (any number, in turns), saturation and value in [0, 1]."""
    red, green, blue = colorsys.hsv_to_rgb(
        hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor < 1) or lighter (up to 2: white)."""
    if factor <= 1:
        return tuple(round(c * factor) for c in colour)  # type: ignore[return-value]
    return tuple(round(c + (255 - c) * (factor - 1)) for c in colour)  # type: ignore[return-value]


def fixed(points: object) -> NDArray[np.int32]:
    """Coordinates in pixels as OpenCV's fixed-point numbers."""
    return np.rint(np.asarray(points, dtype=np.float64) * (1 << SHIFT)).astype(np.int32)


def polygon(image: Image, points: object, colour: Colour) -> None:
    """Fill a polygon given in pixels."""
    cv2.fillPoly(image, [fixed(points)], colour, cv2.LINE_AA, SHIFT)


def disc(
    image: Image, centre: Sequence[float], radius: float | tuple[float, float], colour: Colour
) -> None:
    """Fill a circle, or an upright ellipse of two radii, given in pixels."""
    radii = radius if isinstance(radius, tuple) else (radius, radius)
    x, y = (int(v) for v in fixed(centre))
    a, b = (int(v) for v in fixed(radii))
    cv2.ellipse(image, (x, y), (a, b), 0, 0, 360, colour, -1, cv2.LINE_AA, SHIFT)


def box(image: Image, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
    """Fill an upright rectangle given in pixels."""
    polygon(image, [(left, top), (right, top), (right, bottom), (left, bottom)], colour)


def line(image: Image, points: object, colour: Colour, width: float) -> None:
    """Draw a polyline with round ends, given in pixels."""
    cv2.polylines(image, [fixed(points)], False, colour, max(1, round(width)), cv2.LINE_AA, SHIFT)


def gradient(height: int, width: int, top: Colour, bottom: Colour) -> Image:
    """A surface that fades from one colour to another."""
    share = np.linspace(0, 1, height)[:, None, None]
    column = np.asarray(top) * (1 - share) + np.asarray(bottom) * share
    return np.ascontiguousarray(np.broadcast_to(np.rint(column), (height, width, 3)), np.uint8)


def cloudiness(
    rng: np.random.Generator, height: int, width: int, cells: Sequence[int]
) -> NDArray[np.float32]:
    """Smooth noise of mean about 0 and range about 1; cells lists how many blobs fit a height."""
    total = np.zeros((height, width), np.float32)
    for octave, count in enumerate(cells):
        shape = (count + 1, max(2, count * width // height + 1))
        grid = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
        smooth = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        total += smooth * 0.7**octave
    return total


def textured(image: Image, noise: NDArray[np.float32], strength: float) -> Image:
    """The image made lighter and darker by noise; strength 0.1 is a tenth of the brightness."""
    return np.clip(image * (1 + strength * noise[..., None]), 0, 255).astype(np.uint8)


def paint(kind: str, rng: np.random.Generator, size: int) -> Place:
    """A place of one of KINDS for pictures of size x size pixels.

    Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r}, expected one of {', '.join(KINDS)}")
    horizon = round(size * rng.uniform(0.6, 0.7))
    width = round(size * BREADTH)
    backdrop, ground = KINDS[kind](rng, horizon, size - horizon, width, size)
    haze = backdrop.mean((0, 1)) * 0.4 + 255 * 0.6  # what is far is pale, the actor stands out
    backdrop = np.rint(backdrop * 0.68 + haze * 0.32).astype(np.uint8)
    furniture = hsv(rng.uniform(0.03, 0.12), rng.uniform(0.3, 0.6), rng.uniform(0.35, 0.75))
    if rng.random() < 0.4:
        furniture = hsv(rng.random(), rng.uniform(0.25, 0.55), rng.uniform(0.5, 0.85))
    spots = cloudiness(rng, 2 * size, 2 * size, (11, 24))
    tone = np.clip(245 + 20 * spots, 0, 255).astype(np.uint8)
    return Place(kind, backdrop, ground, np.repeat(tone[..., None], 3, -1), furniture)


def _soft(rng: np.random.Generator, hue: float | None = None) -> Colour:
    """A light, muted colour for large surfaces."""
    hue = rng.random() if hue is None else hue
    return hsv(hue, rng.uniform(0.12, 0.32), rng.uniform(0.72, 0.92))


def _room(rng: np.random.Generator, horizon: int, depth: int, width: int, size: int) -> tuple:
    """A papered wall with pictures, windows and a floor of boards or tiles."""
    wall = _soft(rng)
    back = gradient(horizon, width, wall, shade(wall, 0.93))
    stripes = rng.random() < 0.5
    step = size * rng.uniform(0.09, 0.16)
    for i, x in enumerate(np.arange(0, width, step)):
        if stripes:
            box(back, x, 0, x + step / 2, horizon, shade(wall, 0.93))
        else:
            for j, y in enumerate(np.arange(step / 2, horizon, step)):
                tone = shade(wall, 0.85 + 0.3 * (i % 2))
                disc(back, (x + step / 2 * (j % 2), y), step * 0.14, tone)
    x = size * rng.uniform(0.05, 0.2)
    frame = hsv(0.09, rng.uniform(0.1, 0.6), rng.uniform(0.45, 0.95))
    while x < width - size * 0.3:
        top, broad = size * rng.uniform(0.1, 0.18), size * rng.uniform(0.14, 0.26)
        high = size * rng.uniform(0.16, 0.26)
        box(back, x, top, x + broad, top + high, frame)
        edge = size * 0.018
        inner = (x + edge, top + edge, x + broad - edge, top + high - edge)
        if rng.random() < 0.5:  # a window
            box(back, *inner, hsv(0.56, rng.uniform(0.15, 0.4), 0.97))
            line(back, [(x + broad / 2, top), (x + broad / 2, top + high)], frame, edge)
            line(back, [(x, top + high / 2), (x + broad, top + high / 2)], frame, edge)
        else:  # a picture of hills
            box(back, *inner, _soft(rng))
            sun = (x + broad * 0.65, top + high * 0.4)
            disc(back, sun, broad * 0.12, hsv(rng.random(), 0.5, 0.9))
            summit = (x + broad * 0.35, top + high * 0.5)
            hill = [(inner[0], inner[3]), summit, (inner[2], inner[3])]
            polygon(back, hill, hsv(rng.random(), 0.4, 0.65))
        x += broad + size * rng.uniform(0.15, 0.4)
    box(back, 0, horizon - size * 0.03, width, horizon, shade(frame, 0.85))
    floor = hsv(rng.uniform(0.04, 0.12), rng.uniform(0.25, 0.5), rng.uniform(0.5, 0.8))
    ground = gradient(depth, width, shade(floor, 0.85), floor)
    rows = [depth * share for share in (0.0, 0.2, 0.48, 0.9, 1.4)]
    for i, (top, bottom) in enumerate(zip(rows, rows[1:], strict=False)):
        line(ground, [(0, top), (width, top)], shade(floor, 0.75), size * 0.008)
        for x in np.arange(rng.uniform(0, 0.2) * size, width, size * rng.uniform(0.35, 0.5)):
            drift = (x - width / 2) * 0.06
            line(ground, [(x, top), (x + drift, bottom)], shade(floor, 0.75), size * 0.008)
        if i % 2 and rng.random() < 0.3:
            box(ground, 0, top, width, bottom, shade(floor, 0.9))
    return back, ground


def _park(rng: np.random.Generator, horizon: int, depth: int, width: int, size: int) -> tuple:
    """Sky, hills, round trees and a meadow with flowers."""
    sky = hsv(rng.uniform(0.5, 0.62), rng.uniform(0.2, 0.45), rng.uniform(0.88, 0.98))
    if rng.random() < 0.25:  # evening
        sky = hsv(rng.uniform(0.02, 0.1), rng.uniform(0.2, 0.35), 0.97)
    back = gradient(horizon, width, sky, shade(sky, 1.5))
    _clouds(rng, back, size, horizon * 0.45)
    green = rng.uniform(0.2, 0.38)
    _hills(rng, back, hsv(green + 0.06, 0.25, 0.72), horizon * 0.62, size)
    for x in np.sort(rng.uniform(0, width, 9)):
        leaf = hsv(green + rng.uniform(-0.08, 0.03), rng.uniform(0.35, 0.6), rng.uniform(0.45, 0.7))
        _tree(rng, back, x, horizon, size * rng.uniform(0.3, 0.5), leaf)
    grass = hsv(green, rng.uniform(0.35, 0.55), rng.uniform(0.6, 0.78))
    ground = gradient(depth, width, shade(grass, 0.88), grass)
    ground = textured(ground, cloudiness(rng, depth, width, (4, 12)), 0.12)
    petal = hsv(rng.random(), 0.45, 0.97)
    for x, y in rng.uniform(0, 1, (70, 2)):
        at = (x * width, y * depth)
        line(ground, [at, (at[0], at[1] - size * 0.02)], shade(grass, 0.75), size * 0.008)
        if x * 7 % 1 < 0.4:
            disc(ground, (at[0], at[1] - size * 0.02), size * 0.01, petal)
    return back, ground


def _beach(rng: np.random.Generator, horizon: int, depth: int, width: int, size: int) -> tuple:
    """Sky, sea with sails and waves, and sand."""
    sky = hsv(rng.uniform(0.5, 0.6), rng.uniform(0.12, 0.4), 0.97)
    if rng.random() < 0.35:  # sunset
        sky = hsv(rng.uniform(0.0, 0.12), rng.uniform(0.2, 0.4), 0.97)
    back = gradient(horizon, width, sky, shade(sky, 1.6))
    disc(back, (rng.uniform(0.2, 0.8) * width, horizon * 0.25), size * 0.07, hsv(0.14, 0.3, 1.0))
    _clouds(rng, back, size, horizon * 0.35)
    water = hsv(rng.uniform(0.47, 0.6), rng.uniform(0.35, 0.6), rng.uniform(0.6, 0.82))
    shore = horizon * rng.uniform(0.5, 0.62)
    box(back, 0, shore, width, horizon, water)
    for _ in range(4):
        x, tall = rng.uniform(0, width), size * rng.uniform(0.09, 0.16)
        sail = shade(hsv(rng.random(), 0.5, 0.95), 1.3)
        polygon(back, [(x, shore - tall), (x, shore), (x + tall * 0.55, shore)], sail)
        box(back, x - tall * 0.3, shore, x + tall * 0.6, shore + tall * 0.16, hsv(0.05, 0.5, 0.4))
    for x, y in rng.uniform(0, 1, (60, 2)):
        a = (x * width, shore + (horizon - shore) * (0.1 + 0.8 * y))
        length = size * 0.05 * (0.4 + y)
        line(back, [a, (a[0] + length, a[1])], shade(water, 1.35), size * 0.009)
    sand = hsv(rng.uniform(0.08, 0.13), rng.uniform(0.2, 0.4), rng.uniform(0.82, 0.95))
    ground = gradient(depth, width, shade(sand, 0.93), sand)
    ground = textured(ground, cloudiness(rng, depth, width, (5, 20)), 0.08)
    foam = [(x, depth * 0.06 * (1 + np.sin(x / size * 19))) for x in range(0, width + 4, 4)]
    line(ground, foam, shade(water, 1.7), size * 0.03)
    for x, y in rng.uniform(0, 1, (40, 2)):
        at = (x * width, depth * (0.2 + 0.8 * y))
        disc(ground, at, size * 0.009, shade(sand, 0.8 if x * 5 % 1 < 0.6 else 1.6))
    return back, ground


def _street(rng: np.random.Generator, horizon: int, depth: int, width: int, size: int) -> tuple:
    """Houses with windows and doors along a pavement."""
    sky = hsv(rng.uniform(0.53, 0.62), rng.uniform(0.1, 0.35), rng.uniform(0.85, 0.98))
    back = gradient(horizon, width, sky, shade(sky, 1.4))
    _clouds(rng, back, size, horizon * 0.3)
    x = -size * rng.uniform(0, 0.2)
    while x < width:
        broad, tall = size * rng.uniform(0.3, 0.5), horizon * rng.uniform(0.62, 0.95)
        wall = hsv(
            rng.choice([0.02, 0.06, 0.1, 0.13, 0.55]),
            rng.uniform(0.12, 0.42),
            rng.uniform(0.62, 0.9),
        )
        top = horizon - tall
        if rng.random() < 0.6:
            roof = [(x - 1, top), (x + broad / 2, top - size * 0.1), (x + broad + 1, top)]
            polygon(back, roof, hsv(0.03, rng.uniform(0.2, 0.5), rng.uniform(0.4, 0.6)))
        box(back, x, top, x + broad, horizon, wall)
        pane = hsv(rng.choice([0.13, 0.57]), rng.uniform(0.1, 0.4), rng.uniform(0.55, 0.98))
        columns = int(rng.integers(2, 4))
        gap = broad / columns
        for column in range(columns):
            for y in np.arange(top + size * 0.05, horizon - size * 0.17, size * 0.15):
                left, low = x + gap * (column + 0.25), y + size * 0.09
                box(back, left - 1, y - 1, left + gap * 0.5 + 1, low + 1, shade(wall, 1.5))
                box(back, left, y, left + gap * 0.5, low, pane)
        door = x + gap * (rng.integers(0, columns) + 0.22)
        wood = hsv(rng.random(), 0.4, 0.5)
        box(back, door, horizon - size * 0.15, door + gap * 0.56, horizon, wood)
        x += broad
    stone = hsv(rng.uniform(0.05, 0.65), rng.uniform(0.03, 0.12), rng.uniform(0.6, 0.8))
    ground = gradient(depth, width, shade(stone, 0.9), stone)
    ground = textured(ground, cloudiness(rng, depth, width, (3, 10)), 0.06)
    joint = shade(stone, 0.8)
    for top, bottom in (
        (0.0, 0.3 * depth),
        (0.3 * depth, 0.75 * depth),
        (0.75 * depth, 1.3 * depth),
    ):
        line(ground, [(0, top), (width, top)], joint, size * 0.008)
        for x in np.arange(rng.uniform(0, 0.2) * size, width, size * 0.24):
            slant = (x - width / 2) * 0.05
            line(ground, [(x, top), (x + slant, bottom)], joint, size * 0.008)
    return back, ground


def _stage(rng: np.random.Generator, horizon: int, depth: int, width: int, size: int) -> tuple:
    """A theatre: curtains in folds, a garland of lamps, and boards."""
    cloth = hsv(rng.random(), rng.uniform(0.3, 0.5), rng.uniform(0.55, 0.8))
    x = np.arange(width) / size
    fold = rng.uniform(5, 8)
    folds = 0.85 + 0.15 * np.sin(2 * np.pi * fold * (x + 0.05 * np.sin(2 * np.pi * 0.7 * x)))
    column = np.asarray(cloth) * folds[:, None]
    back = np.ascontiguousarray(np.broadcast_to(np.rint(column), (horizon, width, 3)), np.uint8)
    hem = hsv(0.13, rng.uniform(0.3, 0.6), 0.85)
    box(back, 0, horizon - size * 0.04, width, horizon, hem)
    swag = rng.uniform(0.3, 0.45) * size
    for left in np.arange(-swag, width + swag, swag):
        arc = [(left + swag * s, size * (0.05 + 0.32 * s * (1 - s))) for s in np.linspace(0, 1, 9)]
        line(back, arc, shade(cloth, 0.6), size * 0.012)
        for i, lamp in enumerate(arc[1:-1]):
            disc(back, lamp, size * 0.018, hsv(0.13 + 0.3 * (i % 3), 0.3, 1.0))
    boards = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.3, 0.5), rng.uniform(0.5, 0.75))
    ground = gradient(depth, width, shade(boards, 0.8), boards)
    for left in np.arange(0, width, size * 0.12):
        slant = (left - width / 2) * 0.25
        line(ground, [(left, 0), (left + slant, depth)], shade(boards, 0.75), size * 0.01)
    return back, ground


def _winter(rng: np.random.Generator, horizon: int, depth: int, width: int, size: int) -> tuple:
    """Mountains, firs and snow."""
    sky = hsv(rng.uniform(0.52, 0.75), rng.uniform(0.15, 0.35), rng.uniform(0.8, 0.95))
    back = gradient(horizon, width, sky, shade(sky, 1.6))
    rock = hsv(rng.uniform(0.55, 0.75), rng.uniform(0.12, 0.3), rng.uniform(0.55, 0.72))
    x = -size * 0.2
    while x < width:
        broad, tall = size * rng.uniform(0.5, 0.9), horizon * rng.uniform(0.55, 0.8)
        peak = (x + broad / 2, horizon - tall)
        polygon(back, [(x, horizon), peak, (x + broad, horizon)], rock)
        half, low = broad * 0.15, peak[1] + tall * 0.3
        cap = [(peak[0] - half, low), peak, (peak[0] + half, low), (peak[0], low - tall * 0.1)]
        polygon(back, cap, (250, 250, 252))
        x += broad * rng.uniform(0.5, 0.8)
    fir = hsv(rng.uniform(0.33, 0.48), rng.uniform(0.25, 0.5), rng.uniform(0.35, 0.55))
    for x in np.sort(rng.uniform(0, width, 12)):
        tall = size * rng.uniform(0.2, 0.4)
        for layer in (0.0, 0.25, 0.5):
            base = horizon - tall * layer
            half = tall * 0.26 * (1 - layer)
            tip = (x, base - tall * 0.5)
            polygon(back, [(x - half, base), tip, (x + half, base)], shade(fir, 1 + 0.25 * layer))
            white = [
                (x - half * 0.35, base - tall * 0.3),
                tip,
                (x + half * 0.35, base - tall * 0.3),
            ]
            polygon(back, white, (238, 242, 246))
    snow = hsv(rng.uniform(0.55, 0.7), rng.uniform(0.02, 0.08), rng.uniform(0.88, 0.97))
    ground = gradient(depth, width, shade(snow, 0.93), snow)
    ground = textured(ground, cloudiness(rng, depth, width, (3, 9)), 0.07)
    return back, ground


def _clouds(rng: np.random.Generator, image: Image, size: int, lowest: float) -> None:
    for _ in range(6):
        x, y = rng.uniform(0, image.shape[1]), rng.uniform(0.1, 1) * lowest
        for dx in (-0.06, 0.0, 0.07):
            radii = (size * rng.uniform(0.05, 0.09), size * rng.uniform(0.025, 0.045))
            disc(image, (x + dx * size, y + abs(dx) * size * 0.2), radii, (250, 250, 250))


def _hills(
    rng: np.random.Generator, image: Image, colour: Colour, height: float, size: int
) -> None:
    phase, step = rng.uniform(0, 6), 4
    x = np.arange(0, image.shape[1] + step, step)
    y = height + size * (0.05 * np.sin(x / size * 4 + phase) + 0.02 * np.sin(x / size * 11))
    bottom = [(image.shape[1] + step, image.shape[0] + 2), (0, image.shape[0] + 2)]
    polygon(image, [*zip(x, y, strict=True), *bottom], colour)


def _tree(
    rng: np.random.Generator, image: Image, x: float, ground: float, tall: float, leaf: Colour
) -> None:
    trunk = hsv(0.07, 0.4, 0.42)
    line(image, [(x, ground), (x, ground - tall * 0.6)], trunk, tall * 0.1)
    for dx, dy, radius in ((-0.17, 0.55, 0.2), (0.17, 0.55, 0.2), (0.0, 0.75, 0.25)):
        radius *= rng.uniform(0.85, 1.15)
        disc(image, (x + dx * tall, ground - dy * tall), radius * tall, leaf)
    disc(image, (x - 0.06 * tall, ground - 0.8 * tall), 0.1 * tall, shade(leaf, 1.2))


KINDS: dict[str, Callable[..., tuple]] = {
    "room": _room,
    "park": _park,
    "beach": _beach,
    "street": _street,
    "stage": _stage,
    "winter": _winter,
}
