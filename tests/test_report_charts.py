"""Numbers as the report writes them, and its charts in proportion."""

import re
from collections.abc import Sequence

import numpy as np
import pytest

from aggregator import report_charts
from aggregator.report_charts import (
    HeatCell,
    LadderStep,
    WaterfallStep,
    compact,
    heat_map,
    histogram_chart,
    ladder_chart,
    nice_ticks,
    waterfall_chart,
)
from aggregator.report_words import (
    counted,
    difference,
    full,
    full_with_error,
    native,
    percent,
    ratio,
    words,
    words_with_error,
)
from tests.report_samples import HOSTILE, Page

# Coordinates are written with one decimal.
COORDINATE = 0.051


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (0.004, "0"),
        (-0.004, "0"),
        (0.05, "0.05"),
        (9.999, "10.0"),
        (812.4, "812"),
        (999.9, "1.00\u00a0k"),
        (-310_000.0, "−310\u00a0k"),
        (1_236_000.0, "1.24\u00a0M"),
        (999_999.0, "1.00\u00a0M"),
        (12_345_678.0, "12.3\u00a0M"),
        (4.5e9, "4.50\u00a0bn"),
        (-1.2e15, "−1,200\u00a0tn"),
    ],
)
def test_compact_amounts(amount: float, text: str) -> None:
    assert compact(amount) == text


def test_full_figures() -> None:
    assert full(1234567.4) == "1,234,567"
    assert full(-1234.5, 2) == "−1,234.50"
    assert full(-0.2) == "0"
    assert full(None) == '<span class="na">n/a</span>'
    assert percent(0.0) == "0.00 %"
    assert percent(0.00001) == "< 0.01 %"
    assert percent(-0.00001) == "> −0.01 %"
    assert percent(-0.25, 1) == "−25.0 %"
    assert native(0.012345678) == "0.012346"
    assert native(-250.0) == "−250.00"
    assert ratio(1.0500001) == "1.050"
    assert ratio(2.0**256) == "> 1,000,000"
    assert difference(0.0, 5.0) == "0 %"
    assert difference(1e-9, 1e-3) == "0.0001 %"
    assert difference(-1e-8, 1.0) == "< 0.0001 %"
    assert difference(-0.02, -2.0) == "−1.0000 %"
    assert difference(0.5, 0.0) == "0.500000"
    assert difference(0.5, None) == '<span class="na">n/a</span>'


def test_figures_with_their_error() -> None:
    assert words_with_error(124_946.4, 12_347.6) == "USD\u00a0125\u00a0k\u00a0±\u00a012.3\u00a0k"
    assert words_with_error(124_946.4, None) == words(124_946.4)
    assert full_with_error(124_946.4, 12_347.6) == "124,946\u00a0±\u00a012,348"
    assert full_with_error(1.5, 0.25, 2) == "1.50\u00a0±\u00a00.25"
    assert full_with_error(1.5, None, 2) == "1.50"
    assert full_with_error(None, 1.0) == full(None) == words_with_error(None, 1.0)
    assert full(float("inf")) == words(float("inf")) == "unbounded"
    assert percent(float("nan")) == full(None)
    assert counted(1, "account") == "1 account"
    assert counted(1200, "account") == "1,200 accounts"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2e6, 7.7e6), (0.0, 999.0), (1e-4, 3e-4), (-5.0, -1.0)])
def test_ticks_are_round_inside_and_even(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
    step = ticks[1] - ticks[0]
    assert np.allclose(np.diff(ticks), step, rtol=1e-9)
    mantissa = step / 10 ** np.floor(np.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-6
    assert nice_ticks(2.0, 2.0) == [2.0]


def _boxes(svg: str, colors: Sequence[str]) -> list[tuple[float, float, float, float]]:
    """(x, y, width, height) of the boxes of these colors."""
    found = re.findall(r'<rect x="([-\d.]+)" y="([-\d.]+)" width="([\d.]+)" height="([\d.]+)" fill="(#\w+)"', svg)
    return [tuple(float(part) for part in box[:4]) for box in found if box[4] in colors]  # type: ignore[misc]


ALL_COLORS = (report_charts.BLUE, report_charts.ORANGE, report_charts.NEUTRAL, report_charts.INK, report_charts.SKY)


def test_ladder_bars_are_in_proportion() -> None:
    svg = str(
        ladder_chart(
            [
                LadderStep("alone", 4e6, 5e6, "99.5 %"),
                LadderStep("native", None, None, "initial"),
                LadderStep(HOSTILE, 1e6, 2e6, "99.5 %", emphasis=True),
            ],
            title=HOSTILE,
        )
    )
    first, second = _boxes(svg, ALL_COLORS)
    assert first[0] == second[0]
    assert first[2] == pytest.approx(4 * second[2], abs=4 * COORDINATE)
    assert svg.count("<polygon") == 2
    assert ">n/a</text>" in svg
    assert "<script" not in svg
    assert Page(svg).errors == []


def test_a_whisker_is_one_error_to_each_side() -> None:
    svg = str(ladder_chart([LadderStep("a", 100.0), LadderStep("b", 80.0, 90.0, "99.5 %:", error=20.0)], title="t"))
    first, second = _boxes(svg, ALL_COLORS)
    unit = first[2] / 100.0
    lines = re.findall(r'<line x1="([-\d.]+)" y1="([-\d.]+)" x2="([-\d.]+)" y2="[-\d.]+" stroke="#1f2933"/>', svg)
    assert len(lines) == 3
    start, _, end = (float(part) for part in lines[0])
    assert start == pytest.approx(second[0] + 60.0 * unit, abs=2 * COORDINATE)
    assert end == pytest.approx(second[0] + 100.0 * unit, abs=2 * COORDINATE)
    assert "80.0 ± 20.0</text>" in svg
    assert svg.count("<polygon") == 1
    beyond = str(ladder_chart([LadderStep("b", 80.0, error=40.0)], title="t"))
    ends = [float(x) for x in re.findall(r'<line x1="[-\d.]+" y1="[-\d.]+" x2="([-\d.]+)"', beyond)]
    assert max(ends) <= 480.0


def test_small_steps_are_seen_and_nothing_is_not_drawn() -> None:
    steps = [WaterfallStep("base", 1e6, "total"), WaterfallStep("tiny", 1.0), WaterfallStep("nothing", 0.0)]
    svg = str(waterfall_chart(steps, title="t", rise=report_charts.ORANGE, fall=report_charts.BLUE))
    base, tiny = _boxes(svg, ALL_COLORS)
    assert tiny[2] >= 1.5
    assert base[0] + base[2] == pytest.approx(tiny[0], abs=2 * COORDINATE)
    assert len(_boxes(svg, (report_charts.ORANGE,))) == 1
    assert ">0</text>" in svg


def test_waterfall_steps_hang_together() -> None:
    svg = str(
        waterfall_chart(
            [
                WaterfallStep("a", 300.0),
                WaterfallStep("b", -100.0),
                WaterfallStep("c", 250.0),
                WaterfallStep("sum", 450.0, "total"),
                WaterfallStep("need", -600.0),
                WaterfallStep("left", -150.0, "total"),
            ],
            title="t",
        )
    )
    boxes = _boxes(svg, ALL_COLORS)
    assert len(boxes) == 6
    unit = boxes[0][2] / 300.0
    zero = boxes[0][0]
    spans = [(0, 300), (200, 300), (200, 450), (0, 450), (-150, 450), (-150, 0)]
    for box, (start, end) in zip(boxes, spans, strict=True):
        assert box[0] == pytest.approx(zero + start * unit, abs=2 * COORDINATE)
        assert box[2] == pytest.approx((end - start) * unit, abs=2 * COORDINATE)
    assert "+300" in svg
    assert "−600" in svg


def test_histogram_heights_are_probability_per_width() -> None:
    bins = [(-2.0, -1.0, 0.2), (-1.0, 0.0, 0.4), (0.0, 2.0, 0.4)]
    svg = str(histogram_chart(bins, [("VaR 99 %", 1.5), ("ES 99 %", 1.9)], title="t", tail_from=0.0))
    first, second, third = _boxes(svg, ALL_COLORS)
    assert second[3] == pytest.approx(2 * first[3], abs=2 * COORDINATE)
    assert third[3] == pytest.approx(first[3], abs=2 * COORDINATE), "twice the probability over twice the width"
    assert len(_boxes(svg, (report_charts.ORANGE,))) == 1
    assert "VaR 99 %" in svg
    assert svg.count("stroke-dasharray") == 1
    tail = str(histogram_chart(bins, [], title="t", tail_from=0.0, only_tail=True))
    assert len(_boxes(tail, ALL_COLORS)) == 1
    far_right = str(histogram_chart(bins, [("VaR 99 %", 1.8), ("ES 99 %", 1.99)], title="t", tail_from=0.0))
    labels = re.findall(r'text-anchor="(\w+)" fill="#1f2933" font-size="11">([^<]+)', far_right)
    assert labels == [("end", "ES 99 %: 1.99"), ("end", "VaR 99 %: 1.80")], "no label leaves the picture or is crossed"
    assert "no scenario losses" in histogram_chart([], [], title="t")


def test_heat_map_is_deep_where_the_figure_is_large() -> None:
    cells: list[list[HeatCell | None]] = [
        [HeatCell(100.0, 1e6), HeatCell(-100.0, -1e6), HeatCell(0.0, 0.0)],
        [HeatCell(1.0, 5.0), None, HeatCell(1.0, 5.0)],
        [HeatCell(101.0, 1e6), HeatCell(-100.0, -1e6), HeatCell(1.0, 5.0)],
    ]
    svg = str(heat_map(["v", "w", "total"], ["A", HOSTILE, "total"], cells, title="t"))
    fills = re.findall(r'<rect [^>]*fill="(#\w+)"', svg)
    assert len(fills) == 9
    assert fills[0] == report_charts.ORANGE
    assert fills[1] == report_charts.BLUE
    assert fills[2] == fills[6] == fills[8], "totals are not colored"
    assert sum(int(fills[3][k : k + 2], 16) for k in (1, 3, 5)) > 720, "a small figure is nearly white"
    assert "<script" not in svg


@pytest.mark.parametrize(
    "svg",
    [
        ladder_chart([LadderStep("a", 0.0, 0.0, "s")], title="t"),
        ladder_chart([], title="t"),
        ladder_chart([LadderStep("a", -1.0, -2.0, "s")], title="t"),
        waterfall_chart([], title="t"),
        waterfall_chart([WaterfallStep("a", 0.0, "total")], title="t"),
        histogram_chart([(0.0, 0.0, 1.0)], [], title="t"),
        histogram_chart([(0.0, 1.0, 0.0)], [("VaR", 40.0)], title="t"),
        heat_map([], [], [], title="t"),
    ],
)
def test_edge_cases_draw_something_sound(svg: str) -> None:
    page = Page(str(svg))
    assert page.errors == []
    assert page.tags[0][0] == "svg"
    assert page.tags[0][1]["role"] == "img"
    assert (page.tags[0][1]["viewbox"] or "").startswith("0 0 ")
    assert page.tags[1][0] == "title"
    assert "nan" not in str(svg)
