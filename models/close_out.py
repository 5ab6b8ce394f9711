"""How long and at what cost a market takes a position of a given size, and the brackets of notional that follow.

Sizes and volumes in USD, volatility daily, rates fractions of notional. The figures come from the functions of the
engine's own requirement, so that a ladder and the requirement agree on what a forced sale costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aggregator.add_ons import close_out, liquidity_cost
from aggregator.errors import DataError, Failure, FailureReason
from aggregator.factors import MarketSize

from .tier_policy import CloseOutRules

PREFERRED = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Leading figures of bracket caps: at most a quarter apart, so that a cap stands still while volume wanders."""

VOLUME_DAYS = (7, 90)
"""A market is as liquid as its typical day of the last week or quarter, whichever is worse."""

_BUCKET = 16


class CloseOutTerms(NamedTuple):
    """Of positions [K]: days to sell each at the pace of the rules, and cost as a fraction of notional."""

    days: np.ndarray
    cost_rate: np.ndarray


def trailing_volume(daily_volume: np.ndarray, *, days: Sequence[int] = VOLUME_DAYS) -> float:
    """Volume of a typical day: the smallest of the medians over the last `days` of [T] daily volumes, oldest first.

    A median, so that a day of panic does not count as liquidity. NaN (an unknown day) is left out; NaN is the result
    when the shortest window knows no day, and 0 when most of its days had no trade: a halted market. Raises DataError
    for a negative or infinite volume.
    """
    volume = np.asarray(daily_volume, dtype=np.float64)
    if np.any(volume < 0.0) or np.any(np.isinf(volume)):
        raise DataError(Failure(FailureReason.OUT_OF_RANGE, "a daily volume is negative or infinite"))
    windows = [volume[-count:][np.isfinite(volume[-count:])] for count in sorted(days)]
    if not len(windows[0]):
        return math.nan
    return float(min(np.median(window) for window in windows))


def require_liquid(market: str, size: MarketSize) -> None:
    """Raises DataError naming the market when its liquidity is unknown or, halted, not there."""
    for name, value in zip(size._fields, size, strict=True):
        if math.isnan(value):
            _refuse(FailureReason.MISSING_MARK, market, f"{name} of {market} is not known")
        if value < 0.0 or math.isinf(value):
            _refuse(FailureReason.OUT_OF_RANGE, market, f"{name} of {market} is {value}")
    if size.daily_volume == 0.0:
        message = (
            f"{market} does not trade: what selling a position takes cannot be measured, its tiers stay as they are"
        )
        _refuse(FailureReason.MISSING_MARK, market, message)


def bracket_caps(
    market: str, size: MarketSize, rules: CloseOutRules, *, depth: float | None = None
) -> tuple[float, ...]:
    """Rising upper ends of the brackets, USD, rounded down to preferred figures; the last is the position limit.

    Each is what the pace of the rules sells in one of `bracket_days`. `depth` (USD that the book takes at once, where
    known) bounds the first. Caps below `least_bracket_usd` and equal ones fall together, so that a thin market has
    fewer brackets, down to a single one. Raises DataError for a market without volume and a depth that is not positive.
    """
    require_liquid(market, size)
    if depth is not None and not (depth > 0.0 and math.isfinite(depth)):
        _refuse(FailureReason.OUT_OF_RANGE, market, f"depth of {market} is {depth}")
    pace = rules.participation * size.daily_volume
    wanted = [pace * days for days in rules.bracket_days]
    if depth is not None:
        wanted[0] = min(wanted[0], depth)
    return tuple(sorted({max(rules.least_bracket_usd, _preferred(cap)) for cap in wanted}))


def close_out_terms(market: str, notional: np.ndarray, size: MarketSize, rules: CloseOutRules) -> CloseOutTerms:
    """Days and cost of selling each of `notional` [K] > 0 at once in the market of `size`; both rise with notional.

    Raises DataError for a notional that is not positive and finite and for a market without volume.
    """
    require_liquid(market, size)
    sizes = np.asarray(notional, dtype=np.float64)
    if not np.all(np.isfinite(sizes) & (sizes > 0.0)):
        _refuse(FailureReason.OUT_OF_RANGE, market, f"a notional of {market} is not positive and finite")
    # ladders have any number of brackets; the engine's functions are compiled for few shapes
    padded = np.pad(sizes, (0, -len(sizes) % _BUCKET), constant_values=1.0)
    # the least margin period belongs to the level of a tier, not to the sale
    sale = close_out(padded, size.daily_volume, participation=rules.participation, least_days=0.0)
    cost = liquidity_cost(padded, size.daily_volume, daily_vol=size.daily_vol, spread=size.spread, impact=rules.impact)
    count = len(sizes)
    return CloseOutTerms(np.asarray(sale.liquidation_days)[:count], np.asarray(cost.amount)[:count] / sizes)


def _preferred(cap: float) -> float:
    exponent = math.floor(math.log10(cap))
    leading = cap / 10.0**exponent
    # one bit below a power of ten the quotient may round to 10, or a preferred figure be missed by its last bit
    return max((figure for figure in PREFERRED if figure <= leading * (1.0 + 1e-12)), default=1.0) * 10.0**exponent


def _refuse(reason: FailureReason, market: str, message: str) -> None:
    raise DataError(Failure(reason, message, subject=market))
