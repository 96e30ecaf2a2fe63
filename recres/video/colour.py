"""Random changes of colour, for networks that shall not know an action by its clothes and place.

Drawn once per chunk, like the view: all frames of a chunk change alike, and what differs between
two of them is motion.
"""

from __future__ import annotations

import cv2
import numpy as np


def draw_matrix(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A random (3, 4) matrix: RGB and a one to RGB, in 0–255.

    Hues turn by up to strength · 180°, saturation is scaled by 1 ± 0.6 strength, contrast by
    1 ± 0.4 strength about mid grey, brightness shifts by up to 0.15 strength of the range; all
    uniform. Strength 0 is the identity.
    """
    angle = rng.uniform(-np.pi, np.pi) * strength
    saturation = 1 + rng.uniform(-0.6, 0.6) * strength
    contrast = 1 + rng.uniform(-0.4, 0.4) * strength
    brightness = rng.uniform(-0.15, 0.15) * strength * 255
    # A turn about the grey axis (1, 1, 1) (Rodrigues), then a scaling across it.
    grey = np.full((3, 3), 1 / 3)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * across
    matrix = contrast * (grey + saturation * turn)
    return np.column_stack([matrix, np.full(3, 127.5 * (1 - contrast) + brightness)])


def apply(frames: np.ndarray, matrix: np.ndarray) -> None:
    """Change the colours of frames (T, H, W, 3) uint8, in place, cutting off at 0 and 255."""
    for frame in frames:
        cv2.transform(frame, matrix, dst=frame)
