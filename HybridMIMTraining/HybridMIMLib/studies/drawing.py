"""Curves as SVG, which stands inside a page and needs no picture file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean

from HybridMIMLib.studies.curves import Point

COLORS = ("#555555", "#2a6fb0", "#d9822b", "#3a9d5d", "#b0413e", "#7b52ab", "#8c6d31", "#17a2b8")
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 760, 320, 52, 12, 230, 40


def draw_curves(runs: Mapping[str, Sequence[Sequence[Point]]]) -> str:
    """Validation Dice by step: a thick line is the mean over the seeds of an arm, thin ones are its seeds.

    Args:
        runs: points of each seed, by name of the arm.
    """
    everything = [point for seeds in runs.values() for points in seeds for point in points]
    if not everything:
        return ""
    most = max(point.step for point in everything)
    low, high = min(point.dice for point in everything), max(point.dice for point in everything)
    low, high = max(low - 0.02, 0.0), min(high + 0.02, 1.0)

    def place(step: float, dice: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / most
        y = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (dice - low) / max(high - low, 1e-9))
        return round(x, 1), round(y, 1)

    parts = _axes(most, low, high, place(0, low), place(most, high))
    for number, (name, seeds) in enumerate(runs.items()):
        color = COLORS[number % len(COLORS)]
        dashes = "" if number < len(COLORS) else ' stroke-dasharray="6 3"'
        parts += [_line([place(p.step, p.dice) for p in points], color, 0.8, 0.35, dashes) for points in seeds]
        mean = [place(step, dice) for step, dice in mean_curve(seeds)]
        parts.append(_line(mean, color, 2.4, 1, dashes))
        y = _TOP + 14 + 18 * number
        parts.append(_line([(_WIDTH - _RIGHT + 12, y - 4), (_WIDTH - _RIGHT + 34, y - 4)], color, 2.4, 1, dashes))
        parts.append(f'<text x="{_WIDTH - _RIGHT + 40}" y="{y}">{escape(name)}</text>')
    height = max(_HEIGHT, _TOP + 18 * len(runs) + 20)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" '
        'style="max-width:100%;height:auto;font:12px system-ui,sans-serif">' + "".join(parts) + "</svg>"
    )


def mean_curve(seeds: Sequence[Sequence[Point]]) -> list[tuple[int, float]]:
    """(step, mean Dice) at the steps that every seed was validated at."""
    by_step = [{point.step: point.dice for point in points} for points in seeds if points]
    if not by_step:
        return []
    common = set(by_step[0]).intersection(*by_step[1:])
    return [(step, fmean(one[step] for one in by_step)) for step in sorted(common)]


def _axes(most: int, low: float, high: float, corner: tuple[float, float], end: tuple[float, float]) -> list[str]:
    (left, bottom), (right, top) = corner, end
    parts = [f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#888"/>']
    for part in range(5):
        y = bottom + (top - bottom) * part / 4
        x = left + (right - left) * part / 4
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#eee"/>')
        parts.append(
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{low + (high - low) * part / 4:.2f}</text>'
        )
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{round(most * part / 4)}</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 32}" text-anchor="middle">step</text>')
    return parts


def _line(places: Sequence[tuple[float, float]], color: str, width: float, opacity: float, dashes: str) -> str:
    text = " ".join(f"{x},{y}" for x, y in places)
    return (
        f'<polyline points="{text}" fill="none" stroke="{color}" stroke-width="{width}" opacity="{opacity}"{dashes}/>'
    )
