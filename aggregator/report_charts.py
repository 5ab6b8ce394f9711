"""Charts of the report as inline SVG: pure functions from numbers to markup, no script, no style sheet of their own.

Every chart scales with the width that it is given (`viewBox`), names itself (`role="img"` and a title), writes its
values as text beside the marks, and tells gain from loss by sign and position, never by color alone. Colors follow the
palette of Okabe and Ito (2008, "Color Universal Design"), which stays apart for color-blind readers and in gray print.
Text that comes from data is escaped; numbers are written with a fixed count of digits, so that equal input gives equal
bytes. Amounts are in USD, losses positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from markupsafe import Markup

INK = "#1f2933"
QUIET = "#5f6c7a"
GRID = "#dfe4ea"
NEUTRAL = "#8b98a7"
BLUE = "#0072b2"
SKY = "#7fb8da"
ORANGE = "#d55e00"
WHITE = "#ffffff"

_WIDTH = 480.0
_LETTER = 6.4  # about the width of a letter at size 11; browsers differ in their fonts
NO_BREAK = "\u00a0"
MINUS = "−"


class LadderStep(NamedTuple):
    """One rung: its bar and, where there is one, the second mark; None where the figure does not exist.

    `error` is the standard error of the value, drawn as a whisker of one to each side.
    """

    label: str
    value: float | None
    second: float | None = None
    second_label: str = ""
    emphasis: bool = False
    error: float | None = None


class WaterfallStep(NamedTuple):
    """One step: a `change` floats from the running total, a `total` stands on zero and restarts the running total.

    A change that is not known is None: it is written as n/a and moves nothing.
    """

    label: str
    amount: float | None
    kind: Literal["change", "total"] = "change"


class HeatCell(NamedTuple):
    """The colored figure of a cell and the quiet one below it."""

    value: float
    note: float


def compact(amount: float) -> str:
    """`amount` in three significant digits with k, M, bn or tn: 1.24 M, −310 k, 0.52; below 0.005 it is 0."""
    if amount == 0 or not math.isfinite(amount):
        return "0" if amount == 0 else str(amount)
    exponent = math.floor(math.log10(abs(amount)))
    rounded = round(amount, 2 - exponent)
    exponent = math.floor(math.log10(abs(rounded)))  # 999.9 became 1000
    scale, unit = next(
        ((scale, unit) for scale, unit in ((12, "tn"), (9, "bn"), (6, "M"), (3, "k")) if exponent >= scale), (0, "")
    )
    decimals = min(2, max(0, 2 - (exponent - scale)))
    text = f"{abs(rounded) / 10.0**scale:,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        return "0"
    return f"{MINUS if amount < 0 else ''}{text}{NO_BREAK if unit else ''}{unit}"


def _tick(value: float) -> str:
    """`compact` without trailing zeros, for round numbers on an axis."""
    number, space, unit = compact(value).partition(NO_BREAK)
    return (number.rstrip("0").rstrip(".") if "." in number else number) + space + unit


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) inside [low, high]; [low] for an empty range."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def ladder_chart(steps: Sequence[LadderStep], *, title: str) -> Markup:
    """Horizontal bars from zero, one per step, each with its figure, and a diamond at the second figure."""
    with_errors = any(step.error is not None for step in steps)
    left, right, row, top = 148.0, 136.0 if with_errors else 104.0, 36.0, 6.0
    numbers = [number for step in steps for number in (step.value, step.second) if number is not None]
    numbers += [step.value + step.error for step in steps if step.value is not None and step.error is not None]
    low, high = _range_with_zero(numbers)
    height = top + row * len(steps) + 38
    span = _WIDTH - left - right

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * span

    parts = _value_axis(low, high, x, top=top, bottom=top + row * len(steps), label="USD")
    for index, step in enumerate(steps):
        middle = top + row * (index + 0.5)
        parts.append(_text(left - 10, middle + 4, _shortened(step.label, 23), anchor="end", bold=step.emphasis))
        if step.value is None:
            parts.append(_text(x(0.0) + 8, middle + 4, "n/a", color=QUIET))
        else:
            color = BLUE if step.emphasis else NEUTRAL
            parts.append(_bar(x(0.0), x(step.value), middle - 9, 18, color, f"{step.label}: USD {compact(step.value)}"))
            figure = compact(step.value)
            if step.error is not None:
                figure += f" ± {compact(step.error)}"
                parts += _whisker(x(step.value - step.error), x(step.value + step.error), middle)
            above = 1 if step.second is not None else -4
            parts.append(_text(_WIDTH - right + 10, middle - above, figure, bold=True))
        if step.second is not None:
            parts.append(_diamond(x(step.second), middle, f"{step.second_label}: USD {compact(step.second)}"))
            note = f"◆ {step.second_label} {compact(step.second)}"
            parts.append(_text(_WIDTH - right + 10, middle + 13, note, color=QUIET, size=10))
    return _svg(parts, _WIDTH, height, title)


def waterfall_chart(
    steps: Sequence[WaterfallStep], *, title: str, rise: str = BLUE, fall: str = ORANGE, row: float = 25.0
) -> Markup:
    """Horizontal floating bars: each change starts where the one before ended, totals stand on zero.

    `rise` and `fall` are the colors of changes up and down: what rises may be wealth or a burden. `row` is the height
    of a step.
    """
    left, right, top = 158.0, 66.0, 6.0
    spans: list[tuple[float, float]] = []
    running = 0.0
    for step in steps:
        start = 0.0 if step.kind == "total" else running
        running = start + (step.amount or 0.0)
        spans.append((start, running))
    low, high = _range_with_zero([end for span in spans for end in span])
    height = top + row * len(steps) + 38
    width = _WIDTH - left - right

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * width

    parts = _value_axis(low, high, x, top=top, bottom=top + row * len(steps), label="USD")
    for index, (step, (start, end)) in enumerate(zip(steps, spans, strict=True)):
        y = top + row * index
        amount, is_total = step.amount or 0.0, step.kind == "total"
        color = (INK if amount >= 0 else ORANGE) if is_total else (rise if amount >= 0 else fall)
        signed = compact(amount) if is_total or amount <= 0 else f"+{compact(amount)}"
        parts.append(_text(left - 10, y + row / 2 + 4, _shortened(step.label, 21), anchor="end", bold=is_total))
        if amount != 0:
            parts.append(_bar(x(start), x(end), y + 5, row - 10, color, f"{step.label}: USD {signed}"))
        figure, ink = ("n/a", QUIET) if step.amount is None else (signed, INK)
        parts.append(_text(_WIDTH - right + 10, y + row / 2 + 4, figure, bold=is_total, color=ink))
        if index + 1 < len(steps) and steps[index + 1].kind == "change":
            parts.append(_line(x(end), y + row - 5, x(end), y + row + 5, QUIET, dashed=True))
    return _svg(parts, _WIDTH, height, title)


def histogram_chart(
    bins: Sequence[tuple[float, float, float]],
    lines: Sequence[tuple[str, float]],
    *,
    title: str,
    tail_from: float | None = None,
    only_tail: bool = False,
) -> Markup:
    """Loss distribution from (from, to, probability) bins with labeled vertical `lines`; losses to the right.

    Bins whose middle lies beyond `tail_from` are drawn in orange; `only_tail` shows these alone, on a scale of
    their own.
    Bars carry probability per width relative to the narrowest bin, so that unequal bins do not mislead.
    """
    shown = [b for b in bins if b[1] > b[0]]
    if only_tail and tail_from is not None:
        shown = [b for b in shown if _is_tail(b, tail_from)]
    left, right, band, base, foot = 46.0, 14.0, 14.0, 160.0, 42.0
    top = 10 + band * len(lines)
    bottom = top + base
    if not shown:
        return _svg([_text(_WIDTH / 2, 40, "no scenario losses", anchor="middle", color=QUIET)], _WIDTH, 80, title)
    narrowest = min(to - start for start, to, _ in shown)
    heights = [probability * narrowest / (to - start) for start, to, probability in shown]
    tallest = max(heights) or 1.0
    low = min(b[0] for b in shown)
    high = max(b[1] for b in shown)
    if only_tail:
        low = min([low, *(value for _, value in lines)])
    high = max([high, *(value for _, value in lines if value < high + (high - low))])

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (_WIDTH - left - right)

    parts: list[Markup] = []
    for tick in nice_ticks(0.0, tallest, 4):
        y = bottom - tick / tallest * base
        parts.append(_line(left, y, _WIDTH - right, y, GRID))
        parts.append(_text(left - 8, y + 4, _percent_tick(tick, tallest), anchor="end", color=QUIET, size=11))
    for part, height in zip(shown, heights, strict=True):
        start, to, probability = part
        color = ORANGE if _is_tail(part, tail_from) else SKY
        tip = f"loss USD {compact(start)} to {compact(to)}: {probability:.3%}"
        tall = height / tallest * base
        gap = 0.5 if x(to) - x(start) > 2 else 0.0
        parts.append(_box(x(start), bottom - tall, x(to) - x(start) - gap, tall, color, tip))
    parts.append(_line(left, bottom, _WIDTH - right, bottom, QUIET))
    if low < 0 < high:
        parts.append(_line(x(0.0), top, x(0.0), bottom, QUIET))
    for tick in nice_ticks(low, high, 6):
        parts.append(_text(x(tick), bottom + 15, _tick(tick), anchor="middle", color=QUIET, size=11))
    parts.append(_text((left + _WIDTH - right) / 2, bottom + 33, "USD", anchor="middle", color=QUIET, size=11))
    parts.append(_text(_WIDTH - right, bottom + 33, "loss →", anchor="end", color=QUIET, size=11))
    if low < 0:
        parts.append(_text(left, bottom + 33, "← profit", color=QUIET, size=11))
    labeled = [(value, f"{label}: {compact(value)}", label) for label, value in lines if low <= value <= high]
    # Every line starts at its own label and every label points away from the lines that start above it.
    to_the_left = any(x(value) + 5 + _LETTER * len(text) > _WIDTH for value, text, _ in labeled)
    for index, (value, text, label) in enumerate(sorted(labeled, reverse=to_the_left)):
        y = 10 + band * index
        parts.append(_line(x(value), y - 2, x(value), bottom, INK, dashed=label.startswith("VaR")))
        anchor, gap = ("end", -5) if to_the_left else ("start", 5)
        parts.append(_text(x(value) + gap, y + 8, text, anchor=anchor, size=11))
    return _svg(parts, _WIDTH, bottom + foot, title)


def heat_map(
    rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[HeatCell | None]], *, title: str
) -> Markup:
    """A grid of figures: orange adds risk, blue takes it away, the depth is the share of the largest figure.

    `cells[i][j]` belongs to rows[i] and columns[j]; None leaves the cell empty. The last row and the last column are
    taken as totals: they are set apart and not colored.
    """
    left, top, wide, tall = 138.0, 30.0, 78.0, 40.0
    width = left + wide * len(columns) + 6
    height = top + tall * len(rows) + 6
    inner = [cell for row in cells[:-1] for cell in row[:-1] if cell is not None]
    largest = max((abs(cell.value) for cell in inner), default=0.0) or 1.0
    parts: list[Markup] = []
    for j, column in enumerate(columns):
        bold = j == len(columns) - 1
        parts.append(_text(left + wide * (j + 0.5), top - 9, _shortened(column, 10), anchor="middle", bold=bold))
    for i, row in enumerate(rows):
        bold_row = i == len(rows) - 1
        parts.append(_text(left - 10, top + tall * (i + 0.5) + 4, _shortened(row, 17), anchor="end", bold=bold_row))
        for j, column in enumerate(columns):
            cell = cells[i][j]
            is_total = bold_row or j == len(columns) - 1
            x, y = left + wide * j, top + tall * i
            if cell is None:
                parts.append(_box(x + 1, y + 1, wide - 2, tall - 2, "#f7f8fa", f"{row}, {column}: none"))
                continue
            depth = 0.0 if is_total else min(1.0, abs(cell.value) / largest)
            fill = "#eef1f4" if is_total else _mixed(ORANGE if cell.value > 0 else BLUE, depth)
            ink = WHITE if depth > 0.62 else INK
            tip = f"{row}, {column}: ES USD {compact(cell.value)}, value USD {compact(cell.note)}"
            parts.append(_box(x + 1, y + 1, wide - 2, tall - 2, fill, tip))
            parts.append(
                _text(x + wide / 2, y + 18, compact(cell.value), anchor="middle", color=ink, bold=True, size=12)
            )
            parts.append(_text(x + wide / 2, y + 32, compact(cell.note), anchor="middle", color=ink, size=10))
    return _svg(parts, width, height, title, natural_width=True)


# -- marks ---------------------------------------------------------------------------------------------------------


def _range_with_zero(numbers: Sequence[float]) -> tuple[float, float]:
    low, high = min([0.0, *numbers]), max([0.0, *numbers])
    return (low, high) if high > low else (0.0, 1.0)


def _value_axis(
    low: float, high: float, x: Callable[[float], float], *, top: float, bottom: float, label: str
) -> list[Markup]:
    parts: list[Markup] = []
    for tick in nice_ticks(low, high, 4):
        parts.append(_line(x(tick), top, x(tick), bottom, QUIET if tick == 0 else GRID))
        parts.append(_text(x(tick), bottom + 16, _tick(tick), anchor="middle", color=QUIET, size=11))
    parts.append(_text((x(low) + x(high)) / 2, bottom + 32, label, anchor="middle", color=QUIET, size=11))
    return parts


def _is_tail(part: tuple[float, float, float], tail_from: float | None) -> bool:
    return tail_from is not None and (part[0] + part[1]) / 2 >= tail_from


def _percent_tick(share: float, largest: float) -> str:
    decimals = max(0, min(6, 1 - math.floor(math.log10(largest * 100)))) if largest > 0 else 0
    return f"{share * 100:.{decimals}f} %"


def _mixed(color: str, depth: float) -> str:
    """`color` over white at `depth` between 0 (nearly white) and 1 (full)."""
    strength = 0.08 + 0.92 * depth
    channels = [int(color[k : k + 2], 16) for k in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - (255 - channel) * strength):02x}" for channel in channels)


def _shortened(text: str, length: int) -> str:
    """`text` with its middle cut out when it is longer than `length` characters; begin and end tell names apart."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"


def _number(value: float) -> str:
    text = f"{value:.1f}"
    return "0.0" if text == "-0.0" else text


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", color: str = INK, size: int = 12, bold: bool = False
) -> Markup:
    weight = Markup(' font-weight="600"') if bold else Markup("")
    return Markup('<text x="{}" y="{}" text-anchor="{}" fill="{}" font-size="{}"{}>{}</text>').format(
        _number(x), _number(y), anchor, color, size, weight, text
    )


def _line(x1: float, y1: float, x2: float, y2: float, color: str, *, dashed: bool = False) -> Markup:
    dash = Markup(' stroke-dasharray="4 3"') if dashed else Markup("")
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{}"{}/>').format(
        _number(x1), _number(y1), _number(x2), _number(y2), color, dash
    )


def _box(x: float, y: float, width: float, height: float, color: str, tip: str) -> Markup:
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="{}"><title>{}</title></rect>').format(
        _number(x), _number(y), _number(max(width, 0.0)), _number(max(height, 0.0)), color, tip
    )


def _bar(start: float, end: float, y: float, height: float, color: str, tip: str) -> Markup:
    """A horizontal bar between two x positions, at least 1.5 units wide so that a small figure is still seen."""
    return _box(min(start, end), y, max(abs(end - start), 1.5), height, color, tip)


def _whisker(start: float, end: float, y: float) -> list[Markup]:
    """A horizontal interval with a stroke at both ends."""
    return [
        _line(start, y, end, y, INK),
        _line(start, y - 4, start, y + 4, INK),
        _line(end, y - 4, end, y + 4, INK),
    ]


def _diamond(x: float, y: float, tip: str) -> Markup:
    points = " ".join(f"{_number(x + dx)},{_number(y + dy)}" for dx, dy in ((0, -7), (5, 0), (0, 7), (-5, 0)))
    return Markup('<polygon points="{}" fill="{}" stroke="{}"><title>{}</title></polygon>').format(
        points, INK, WHITE, tip
    )


def _svg(parts: Sequence[Markup], width: float, height: float, title: str, *, natural_width: bool = False) -> Markup:
    # the page decides whether a chart of this natural width is scaled down or scrolled
    style = Markup(' style="--natural:{}px"').format(_number(width)) if natural_width else Markup("")
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"{}><title>{}</title>{}</svg>').format(
        _number(width), _number(height), title, style, title, Markup("").join(parts)
    )
