"""The icons as PNG, from the SVG files beside them: ``make icons``.

Each is 128 x 128 pixels, as the Extensions Manager asks for; Slicer makes it smaller in its lists and menus, so a
drawing has to be told from the others at 24 pixels too. The drawings use a grid of 24 units for that.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6.QtCore import Qt
from PySide6.QtGui import QImage, QPainter
from PySide6.QtSvg import QSvgRenderer

REPOSITORY = Path(__file__).resolve().parents[1]
DRAWINGS = REPOSITORY / "Resources" / "Icons"
SIDE = 128

ICONS = {
    "HybridMIM": DRAWINGS / "HybridMIM.png",
    **{
        module: REPOSITORY / module / "Resources" / "Icons" / f"{module}.png"
        for module in ("HybridMIMTraining", "HybridMIMSegmentation")
    },
}
"""Where the PNG of each drawing lies: that of a module where its CMakeLists.txt lists it."""


def render(name: str, side: int = SIDE) -> QImage:
    """The drawing of that name, on a transparent square of so many pixels.

    Raises:
        ValueError: the file is no drawing.
    """
    drawing = QSvgRenderer(str(DRAWINGS / f"{name}.svg"))
    if not drawing.isValid():
        raise ValueError(f"{DRAWINGS / name}.svg is no drawing that Qt can read")
    image = QImage(side, side, QImage.Format.Format_ARGB32)
    image.fill(Qt.GlobalColor.transparent)
    painter = QPainter(image)
    drawing.render(painter)
    painter.end()
    return image


def main() -> int:
    """Write all of them."""
    for name, file in ICONS.items():
        if not render(name).save(str(file), "PNG"):
            print(f"{file} could not be written", file=sys.stderr)
            return 1
        print(file.relative_to(REPOSITORY))
    return 0


if __name__ == "__main__":
    sys.exit(main())
