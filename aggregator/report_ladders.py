"""Ladders of margin tiers before and after as an inline SVG: rates over notional, both on logarithmic axes.

The band is what positions of each size need on average of their whole notional, between two levels of the forecast; the
steps are the rates of each tier. Notional in USD, rates as fractions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from .report_charts import BLUE, GRID, INK, NO_BREAK, ORANGE, QUIET
from .report_charts import _line as line
from .report_charts import _number as number
from .report_charts import _svg as drawing
from .report_charts import _text as text_at
from .report_charts import _tick as tick

_WIDTH, _HEIGHT = 560.0, 268.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 14.0, 10.0, 62.0
_BAND = "#cfe3f1"
_RATE_TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Bracket(NamedTuple):
    """One tier: positions from `floor` to `cap` (None: no cap), its maintenance and initial rate."""

    floor: float
    cap: float | None
    maintenance: float
    initial: float


class BandPoint(NamedTuple):
    """What a position of `notional` needs at the lower and at the higher level."""

    notional: float
    low: float
    high: float


class LadderView(NamedTuple):
    """A market's tiers in force, those recommended and those that the forecast asks for; brackets are the same."""

    market: str
    before: tuple[Bracket, ...]
    after: tuple[Bracket, ...]
    wish: tuple[Bracket, ...]
    band: tuple[BandPoint, ...]
    band_label: str


def ladder_lines(view: LadderView, *, initial: bool = False) -> Markup:
    """The maintenance (or initial) rates of a market: in force dashed, recommended bold, asked for dotted."""
    ladders = (view.before, view.after, view.wish)
    rates = [bracket.initial if initial else bracket.maintenance for ladder in ladders for bracket in ladder]
    band = () if initial else view.band
    rates += [rate for point in band for rate in (point.low, point.high)]
    first, last = _span(view.before)
    low = max(tick for tick in (*_RATE_TICKS, 0.0001) if tick <= max(min(rates), 0.0001))
    high = min((tick for tick in _RATE_TICKS if tick >= max(rates)), default=1.0)
    high = high if high > low else 1.0
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x(notional: float) -> float:
        share = math.log(min(max(notional, first), last) / first) / math.log(last / first)
        return _LEFT + share * (right - _LEFT)

    def y(rate: float) -> float:
        share = math.log(min(max(rate, low), high) / low) / math.log(high / low)
        return bottom - share * (bottom - _TOP)

    parts = _grid(first, last, low, high, x, y, bottom=bottom, right=right)
    if band:
        corners = [(x(point.notional), y(point.high)) for point in band]
        corners += [(x(point.notional), y(point.low)) for point in reversed(band)]
        parts.append(Markup('<polygon points="{}" fill="{}"/>').format(_points(corners), _BAND))
    for ladder, color, dash, width in (
        (view.wish, ORANGE, "1.5 3", 1.5),
        (view.before, INK, "5 3", 1.5),
        (view.after, BLUE, "", 2.5),
    ):
        parts.append(_steps(ladder, x, y, last, color=color, dash=dash, width=width, initial=initial))
    parts += _legend(view.band_label if band else "")
    what = "initial" if initial else "maintenance"
    title = f"{what} rates of {view.market} by notional, in force and recommended"
    return drawing(parts, _WIDTH, _HEIGHT, title)


def _span(brackets: Sequence[Bracket]) -> tuple[float, float]:
    """First and last notional of the axis: a tenth of the first bracket's end to the last one's."""
    ends = [bracket.cap for bracket in brackets if bracket.cap is not None]
    if not ends:
        return 1_000.0, 1_000_000.0
    last = ends[-1] if brackets[-1].cap is not None else 4.0 * brackets[-1].floor
    return ends[0] / 10.0, last


def _grid(
    first: float,
    last: float,
    low: float,
    high: float,
    x: Callable[[float], float],
    y: Callable[[float], float],
    *,
    bottom: float,
    right: float,
) -> list[Markup]:
    parts = []
    for rate in _RATE_TICKS:
        if low <= rate <= high:
            parts.append(line(_LEFT, y(rate), right, y(rate), GRID))
            parts.append(
                text_at(_LEFT - 6, y(rate) + 4, f"{rate * 100:g}{NO_BREAK}%", anchor="end", color=QUIET, size=11)
            )
    for power in range(math.ceil(math.log10(first)), math.floor(math.log10(last)) + 1):
        place = x(10.0**power)
        parts.append(line(place, _TOP, place, bottom, GRID))
        parts.append(text_at(place, bottom + 15, tick(10.0**power), anchor="middle", color=QUIET, size=11))
    parts.append(text_at(right, bottom + 30, "notional, USD", anchor="end", color=QUIET, size=11))
    return parts


def _steps(
    ladder: Sequence[Bracket],
    x: Callable[[float], float],
    y: Callable[[float], float],
    last: float,
    *,
    color: str,
    dash: str,
    width: float,
    initial: bool,
) -> Markup:
    corners: list[tuple[float, float]] = []
    for bracket in ladder:
        height = y(bracket.initial if initial else bracket.maintenance)
        corners += [(x(bracket.floor), height), (x(last if bracket.cap is None else bracket.cap), height)]
    dashes = Markup(' stroke-dasharray="{}"').format(dash) if dash else Markup("")
    return Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="{}"{}/>').format(
        _points(corners), color, width, dashes
    )


def _legend(band_label: str) -> list[Markup]:
    parts, place, height = [], _LEFT, _HEIGHT - 10
    entries = [("in force", INK, "5 3"), ("recommended", BLUE, ""), ("asked for", ORANGE, "1.5 3")]
    for label, color, dash in entries:
        dashes = Markup(' stroke-dasharray="{}"').format(dash) if dash else Markup("")
        parts.append(
            Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{}" stroke-width="2"{}/>').format(
                number(place), number(height - 4), number(place + 22), number(height - 4), color, dashes
            )
        )
        parts.append(text_at(place + 27, height, label, color=QUIET, size=11))
        place += 46 + 7.0 * len(label)
    if band_label:
        box = Markup('<rect x="{}" y="{}" width="22" height="9" fill="{}"/>')
        parts.append(box.format(number(place), number(height - 9), _BAND))
        parts.append(text_at(place + 27, height, band_label, color=QUIET, size=11))
    return parts


def _points(corners: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{number(x)},{number(y)}" for x, y in corners)
