"""Draws the pictures of the sample data: ``python Resources/make_thumbnails.py``; both are our own drawings.

The first is a slice of a synthetic phantom with its labels. The second is a sketch of a hippocampus with its two
parts, drawn from formulas: no scan of the public data set is in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "HybridMIMTraining"))

from HybridMIMLib.data.phantom import CLASSES, make_phantom  # noqa: E402
from HybridMIMLib.data.survey import canonical_grid  # noqa: E402

FOLDER = REPOSITORY / "HybridMIMTraining" / "Resources" / "Icons"
SIZE = 128
Picture = npt.NDArray[np.uint8]


def phantom() -> Picture:
    """(SIZE, SIZE, 3) a slice with much of every organ, seen from below as radiologists do."""
    drawn = make_phantom(0, "labelled", 0)
    image, _ = canonical_grid(drawn.image, drawn.grid)
    labels, _ = canonical_grid(drawn.labels, drawn.grid)
    counts = [
        1000 * len(np.unique(labels[:, :, k])) + np.count_nonzero(labels[:, :, k]) for k in range(image.shape[2])
    ]
    k = int(np.argmax(counts))
    # Along R, A, S: right comes to the left of the picture, front to its top.
    grey = np.clip((image[::-1, ::-1, k].T.astype(float) + 200) / 500, 0, 1)
    return _coloured(grey, labels[::-1, ::-1, k].T, [np.array(one.color) for one in CLASSES])


def hippocampus() -> Picture:
    """(SIZE, SIZE, 3) a curved body in a head part and a tail part, on a smooth ground."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0 : 1 : SIZE * 1j, 0 : 1 : SIZE * 1j]
    coarse = random.normal(0, 1, (9, 9))
    ground = np.kron(coarse, np.ones((16, 16)))[:SIZE, :SIZE]
    for _ in range(24):
        ground = (
            ground + np.roll(ground, 1, 0) + np.roll(ground, -1, 0) + np.roll(ground, 1, 1) + np.roll(ground, -1, 1)
        ) / 5
    grey = 0.35 + 0.12 * ground / np.abs(ground).max() + random.normal(0, 0.015, ground.shape)
    along, labels = np.linspace(0, 1, 200), np.zeros((SIZE, SIZE), dtype=np.uint8)
    for t in along:
        cx, cy, radius = 0.2 + 0.6 * t, 0.62 - 0.32 * np.sin(np.pi * (0.15 + 0.7 * t)), 0.12 - 0.06 * t
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        labels[inside & (labels == 0)] = 1 if t < 0.45 else 2
    grey = np.clip(grey + 0.2 * (labels > 0), 0, 1)
    return _coloured(grey, labels, [np.array([0.9, 0.6, 0.2]), np.array([0.3, 0.6, 0.9])])


def _coloured(
    grey: npt.NDArray[np.float64], labels: npt.NDArray[np.uint8], colours: list[npt.NDArray[np.float64]]
) -> Picture:
    picture = np.repeat(grey[:, :, None], 3, axis=2)
    for label, colour in enumerate(colours, 1):
        where = labels == label
        picture[where] = 0.5 * picture[where] + 0.5 * colour
    rows = np.linspace(0, picture.shape[0] - 1, SIZE).round().astype(int)
    columns = np.linspace(0, picture.shape[1] - 1, SIZE).round().astype(int)
    return np.asarray(255 * picture[rows][:, columns], dtype=np.uint8)


def main() -> None:
    """Write both."""
    from matplotlib.image import imsave

    for name, picture in (("phantoms", phantom()), ("hippocampus", hippocampus())):
        imsave(FOLDER / f"Sample-{name}.png", picture)


if __name__ == "__main__":
    main()
