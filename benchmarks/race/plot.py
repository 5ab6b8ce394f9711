"""The race as one SVG: time over the engine's, and growth of time; no library, equal input gives equal bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from aggregator.report_charts import BLUE, GRID, INK, ORANGE, QUIET, SKY

_WIDTH, _ROW, _LEFT, _RIGHT = 760, 20, 285, 70
_PANEL, _PANEL_HEIGHT = 170, 150
_COLORS = {"kernel": BLUE, "end_to_end": ORANGE}


def race_plot(results: Sequence[dict[str, Any]], growth: Sequence[dict[str, Any]]) -> str:
    """Markup of the figure: every ratio on a logarithmic axis with 1 marked, then one panel per axis of growth."""
    bars, height = _bars(results)
    panels, below = _panels(growth, height + 30)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {below}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="{INK}">'
        f"<title>Time of every contender over the engine's, and growth of time with size</title>"
        f"{bars}{panels}</svg>\n"
    )


def _bars(results: Sequence[dict[str, Any]]) -> tuple[str, float]:
    rows = [(result["book"], ratio) for result in results for ratio in result["ratios"]]
    parts = ['<text x="8" y="18" font-weight="600">Time over the engine\'s (above 1: the engine is faster)</text>']
    if not rows:
        return parts[0], 24
    values = [ratio["ratio"] for _, ratio in rows]
    low = math.floor(math.log10(min(*values, 1.0)))
    high = max(math.ceil(math.log10(max(*values, 1.0))), low + 1)
    top = 34.0

    def across(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log10(value) - low) / (high - low)

    bottom = top + _ROW * len(rows)
    for power in range(low, high + 1):
        x = across(10.0**power)
        strong = QUIET if power == 0 else GRID
        parts.append(f'<line x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}" stroke="{strong}"/>')
        parts.append(_text(x, bottom + 14, f"{10.0**power:g}×", QUIET, "middle"))
    for number, (book, ratio) in enumerate(rows):
        y = top + _ROW * number
        left, right = sorted((across(1.0), across(ratio["ratio"])))
        label = f"{book} · {ratio['peer']} · {ratio['stage'].replace('_', ' ')}"
        parts.append(_text(_LEFT - 8, y + 14, label, INK, "end"))
        parts.append(
            f'<rect x="{left:.1f}" y="{y + 4:.1f}" width="{max(right - left, 1.0):.1f}" height="{_ROW - 8}" '
            f'fill="{_COLORS[ratio["stage"]]}"/>'
        )
        parts.append(_text(right + 5, y + 14, f"{ratio['ratio']:.3g}×", INK, "start"))
    return "".join(parts), bottom + 24


def _panels(growth: Sequence[dict[str, Any]], top: float) -> tuple[str, float]:
    axes = list(dict.fromkeys(entry["axis"] for entry in growth))
    if not axes:
        return "", top
    names = list(dict.fromkeys(entry["contender"] for entry in growth))
    parts = [f'<text x="8" y="{top:.1f}" font-weight="600">Seconds against size, both logarithmic, with slopes</text>']
    for number, axis in enumerate(axes):
        entries = [entry for entry in growth if entry["axis"] == axis]
        parts.append(_panel(axis, entries, names, 8 + number * (_PANEL + 14), top + 14))
    for number, name in enumerate(names):
        x, y = 8 + 140 * number, top + _PANEL_HEIGHT + 14 + 16 * (len(names) + 2)
        parts.append(f'<rect x="{x}" y="{y - 9:.1f}" width="10" height="10" fill="{_line_color(number)}"/>')
        parts.append(_text(x + 15, y, name, INK, "start"))
    return "".join(parts), top + _PANEL_HEIGHT + 26 + 16 * (len(names) + 2)


def _panel(axis: str, entries: Sequence[dict[str, Any]], names: Sequence[str], left: float, top: float) -> str:
    sizes = [size for entry in entries for size in entry["sizes"]]
    seconds = [second for entry in entries for second in entry["wall_best_s"]]
    spans = [(math.log(min(v)), max(math.log(max(v)) - math.log(min(v)), 1e-9)) for v in (sizes, seconds)]
    parts = [
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{_PANEL}" height="{_PANEL_HEIGHT}" fill="none" stroke="{GRID}"/>'
    ]
    for entry in entries:
        color = _line_color(names.index(entry["contender"]))
        points = [
            (
                left + 10 + (_PANEL - 20) * (math.log(size) - spans[0][0]) / spans[0][1],
                top + _PANEL_HEIGHT - 10 - (_PANEL_HEIGHT - 20) * (math.log(second) - spans[1][0]) / spans[1][1],
            )
            for size, second in zip(entry["sizes"], entry["wall_best_s"], strict=True)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in points]
    below = top + _PANEL_HEIGHT + 14
    parts.append(_text(left, below, f"{axis}: {min(sizes):g} to {max(sizes):g}", QUIET, "start"))
    for number, entry in enumerate(entries):
        parts.append(_text(left, below + 15 * (number + 1), f"{entry['contender']} {entry['slope']:.2f}", INK, "start"))
    return "".join(parts)


def _line_color(number: int) -> str:
    return (BLUE, ORANGE, SKY, QUIET)[number % 4]


def _text(x: float, y: float, words: str, color: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}">{escape(words)}</text>'
