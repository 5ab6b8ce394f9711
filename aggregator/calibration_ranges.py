"""Ranges of the figures of a calibration: wide ones that no market has left, so that a slip of the pen is refused.

2.4 for 2.4 %, a spread in basis points, a hazard a million times too large would otherwise be computed with, and come
out as a requirement. The ranges are no opinion: a daily standard deviation of 1 is a volatility of 1,900 % a year.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

LARGEST_PEG_STD = 0.25
"""A daily standard deviation of a peg beyond this is a slip of the pen."""


def within(low: float, high: float, unit: str, *, above: bool = False) -> Any:
    """Refuses a figure outside low..high (`low` itself too, if `above`); the sentence says it, the range, the unit."""
    words = f"above {low:g} and at most {high:,.10g}" if above else f"{low:,.10g}..{high:,.10g}"

    def check(value: float) -> float:
        if not low <= value <= high or (above and value == low):
            raise ValueError(f"{value:,.10g} is beyond any market; expected {words}, {unit}")
        return value

    return AfterValidator(check)


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Correlation = Annotated[float, within(-1.0, 1.0, "a correlation")]
Nu = Annotated[float, within(2.0, 10_000.0, "degrees of freedom (a variance needs more than 2)", above=True)]
DailyStd = Annotated[float, within(0.0, 1.0, "a standard deviation of log moves a day, 0.05 for 5 %", above=True)]
PegStd = Annotated[
    float, within(0.0, LARGEST_PEG_STD, "a standard deviation of a peg a day, 0.001 for 0.1 %", above=True)
]
LogMove = Annotated[float, within(-3.0, 3.0, "a log move, -0.5 for about -39 %")]
JumpStd = Annotated[float, within(0.0, 3.0, "a standard deviation of log moves")]
PerYear = Annotated[float, within(0.0, 365.0, "events a year of 365 days")]
PerDay = Annotated[float, within(0.0, 50.0, "a rate of decay a day")]
Multiple = Annotated[float, within(-50.0, 50.0, "a multiple of a move")]
BetaShape = Annotated[float, within(0.0, 1_000.0, "a parameter of a beta law", above=True)]
FundingRate = Annotated[float, within(-1.0, 1.0, "a share of notional an interval, 0.0001 for 0.01 %")]
Gap = Annotated[float, within(0.0, 1.0, "a share of the price, 0.002 for 0.2 %")]
