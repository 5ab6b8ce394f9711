"""From base rates to a ladder: brackets of notional with a maintenance and an initial rate each.

A base rate says what a small position loses over a horizon; a ladder says what a position of any size must post until
it is sold. With T(N) the days that selling N takes, T_m the least days of the maintenance level, a(.) the base rate:

    needed(N) = N (a(max(T_m, T(N))) + cost(N))         per side, the larger of the sides counts

The maintenance rates are marginal (each holds for the slice of the notional inside its bracket, as venues and the
canonical `margin_tiers` have it), so that a flat rate per bracket would charge too little: rate k is the slope that
brings the requirement at the bracket's cap to what is needed there, and never less than the slope before it. Between
caps the charge is a chord above `needed`, which is convex: T and the impact grow at least linearly and like a square
root. The initial rate holds for the whole notional of a position in the bracket, as leverage does.

Rates scale over horizons with the square root of time in log-returns, so that a margin is that of compounded losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aggregator.errors import ConfigurationError, DataError, Failure, FailureReason, nearest_name
from aggregator.factors import MarketSize

from .close_out import close_out_terms
from .market_history import Side
from .tier_policy import BPS, GovernancePolicy, TierLevel

LONG_TANGENT = 3.0
"""Log loss (a loss of 95 %) from which a long rate is that of a requirement linear in notional, see `_simple_loss`."""

LARGEST_LOG_LOSS = 300.0
"""Of a short position: beyond it floats overflow."""


class BaseRates(NamedTuple):
    """Forecast of one asset and side for a small position, whatever model made it.

    `levels` [L] rise within (0, 1), `horizons_days` [H] rise; `margin` and `shortfall` [H, L] are fractions of
    notional: the loss over the horizon exceeds `margin` with probability 1 - level, and is `shortfall` on average then.
    """

    side: Side
    levels: tuple[float, ...]
    horizons_days: tuple[float, ...]
    margin: np.ndarray
    shortfall: np.ndarray


class Tier(NamedTuple):
    """One bracket: positions above `notional_floor` up to `notional_cap` (USD; None: no cap), rates in bps.

    The maintenance rate is marginal, the initial rate holds for the whole notional.
    """

    notional_floor: float
    notional_cap: float | None
    maintenance_bps: int
    initial_bps: int

    @property
    def largest_leverage(self) -> float:
        """Notional per unit of initial margin."""
        return BPS / self.initial_bps


class Ladder(NamedTuple):
    """The tiers of one market, from the smallest notional on; `require_ladder` says what holds."""

    market: str
    tiers: tuple[Tier, ...]


def require_ladder(ladder: Ladder) -> None:
    """Raises ConfigurationError naming market and tier unless floors rise from 0 to the next tier's without a gap,
    rates are positive and do not fall, and every initial rate is at least the maintenance rate.
    """
    if not ladder.tiers:
        raise ConfigurationError(f"tiers of {ladder.market}: there are none")
    floor, maintenance, initial = 0.0, 0, 0
    for number, tier in enumerate(ladder.tiers, start=1):
        where = f"tier {number} of {ladder.market}"
        last = number == len(ladder.tiers)
        if tier.notional_floor != floor:
            raise ConfigurationError(f"{where} begins at {tier.notional_floor}; expected {floor}")
        if tier.notional_cap is None and not last:
            raise ConfigurationError(f"{where} has no cap and is not the last")
        # written so that NaN fails
        if tier.notional_cap is not None and not tier.notional_cap > tier.notional_floor:
            raise ConfigurationError(f"{where} ends at {tier.notional_cap}, not above {tier.notional_floor}")
        if tier.maintenance_bps <= 0 or tier.maintenance_bps < maintenance or tier.initial_bps < initial:
            raise ConfigurationError(f"{where}: its rates are not positive or fall below those of the tier before it")
        if tier.initial_bps < tier.maintenance_bps:
            raise ConfigurationError(
                f"{where}: initial rate {tier.initial_bps} bps is below maintenance rate {tier.maintenance_bps} bps"
            )
        floor = tier.notional_floor if tier.notional_cap is None else tier.notional_cap
        maintenance, initial = tier.maintenance_bps, tier.initial_bps


def build_ladder(
    market: str,
    sides: Sequence[BaseRates],
    size: MarketSize,
    caps: Sequence[float],
    policy: GovernancePolicy,
    *,
    last_is_open: bool = False,
) -> Ladder:
    """The ladder over brackets that end at `caps` (USD, rising); one of `sides`, or both for a ladder of either side.

    With `last_is_open` the last bracket has no upper end; its rates are those needed at its cap. Rates are rounded up
    to the grid of the policy and kept within its bounds; the initial rate is at least the maintenance rate. Raises
    ConfigurationError for wrong caps and as `require_rates`, and DataError for a market without volume.
    """
    ends = checked_caps(market, caps)
    maintenance = marginal_rates(ends, needed_rates(market, sides, size, ends, policy.ladder.maintenance, policy))
    initial = needed_rates(market, sides, size, ends, policy.ladder.initial, policy)
    tiers = []
    floor, low = 0.0, 0
    for end, slope, whole in zip(ends.tolist(), maintenance.tolist(), initial.tolist(), strict=True):
        rate = _within(policy, policy.rounding.up(slope))
        low = max(low, rate, _within(policy, policy.rounding.up(whole)))
        tiers.append(Tier(floor, end, rate, low))
        floor = end
    if last_is_open:
        tiers[-1] = tiers[-1]._replace(notional_cap=None)
    return Ladder(market, tuple(tiers))


def needed_rates(
    market: str,
    sides: Sequence[BaseRates],
    size: MarketSize,
    notional: np.ndarray,
    level: TierLevel,
    policy: GovernancePolicy,
) -> np.ndarray:
    """What positions of `notional` [K] (USD) need, each as a fraction of its whole notional; rises with notional."""
    if not sides or len({rates.side for rates in sides}) != len(sides):
        raise ConfigurationError(f"rates of {market}: expected one or both sides, each once")
    terms = close_out_terms(market, notional, size, policy.close_out)
    days = np.maximum(terms.days, level.least_days)
    of_sides = [rates_over(market, rates, level=level, days=days) for rates in sides]
    return np.max(of_sides, axis=0) + terms.cost_rate


def marginal_rates(caps: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Rates [K] of the slices up to each cap whose sums at every cap are at least caps * needed [K], and do not fall.

    The smallest such sums: at each cap what is needed, or what the rate before it makes of the slice.
    """
    rates = np.zeros(len(caps))
    total = floor = rate = 0.0
    for place, cap in enumerate(caps.tolist()):
        rate = max(rate, (cap * float(needed[place]) - total) / (cap - floor))
        total += rate * (cap - floor)
        rates[place], floor = rate, cap
    return rates


def rates_over(market: str, rates: BaseRates, *, level: TierLevel, days: np.ndarray) -> np.ndarray:
    """Base rates of one side at the level's measure over `days` [K] > 0; never fall with level or horizon.

    Every forecast horizon is scaled to the days by the square root of time, in log-returns, and the largest counts.
    Rates that cross (a lower one at a higher level or a longer horizon) are raised to the lower one's. Raises
    ConfigurationError for a level that is not forecast and for rates as `require_rates` says.
    """
    require_rates(market, rates)
    if level.level not in rates.levels:
        raise ConfigurationError(f"rates of {market}: level {level.level} is not among {list(rates.levels)}")
    table = rates.margin if level.measure == "quantile" else np.maximum(rates.shortfall, rates.margin)
    log_loss = -np.log1p(-table) if rates.side == "long" else np.log1p(table)
    rising = np.maximum.accumulate(np.maximum.accumulate(log_loss, axis=0), axis=1)
    of_level = rising[:, rates.levels.index(level.level)]
    scaled = of_level[:, None] * np.sqrt(np.asarray(days)[None, :] / np.asarray(rates.horizons_days)[:, None])
    return _simple_loss(np.max(scaled, axis=0), rates.side)


def require_rates(market: str, rates: BaseRates) -> None:
    """Raises ConfigurationError naming the market for wrong shapes, levels or horizons, and DataError for a rate that
    is not finite and positive, a long one of 1 or more.
    """
    where = f"rates of {market}, {rates.side}"
    if rates.side not in ("long", "short"):
        raise ConfigurationError(f"rates of {market}: side {rates.side!r} is neither long nor short")
    for name, axis in (("levels", rates.levels), ("horizons_days", rates.horizons_days)):
        if not axis or list(axis) != sorted(set(axis)) or not axis[0] > 0.0 or not np.all(np.isfinite(axis)):
            raise ConfigurationError(f"{where}: {name} {list(axis)} are not positive and rising")
    if rates.levels[-1] >= 1.0:
        raise ConfigurationError(f"{where}: level {rates.levels[-1]} is not below 1")
    shape = (len(rates.horizons_days), len(rates.levels))
    for name, values in (("margin", rates.margin), ("shortfall", rates.shortfall)):
        if values.shape != shape:
            raise ConfigurationError(f"{where}: {name} has the shape {values.shape}, not {shape}")
        bad = ~(np.isfinite(values) & (values > 0.0))
        if rates.side == "long":
            bad |= ~(values < 1.0)
        if bad.any():
            h, p = np.argwhere(bad)[0]
            place = f"{rates.horizons_days[h]} days, level {rates.levels[p]}"
            message = f"{where}: {name} at {place} is {values[h, p]}"
            raise DataError(Failure(FailureReason.OUT_OF_RANGE, message, subject=market))


def maintenance_margin(ladder: Ladder, notional: float) -> float:
    """Maintenance margin in USD of a position of `notional` >= 0 by the ladder's marginal rates."""
    if not notional >= 0.0:
        raise ConfigurationError(f"notional of {ladder.market} is {notional}; expected a number of 0 or more")
    total = 0.0
    for number, tier in enumerate(ladder.tiers, start=1):
        is_last = number == len(ladder.tiers)
        end = notional if is_last or tier.notional_cap is None else min(notional, tier.notional_cap)
        total += max(0.0, end - tier.notional_floor) * tier.maintenance_bps / BPS
    return total


def initial_margin(ladder: Ladder, notional: float) -> float:
    """Initial margin in USD of a position of `notional` >= 0: the whole of it at the rate of its bracket."""
    if not notional >= 0.0:
        raise ConfigurationError(f"notional of {ladder.market} is {notional}; expected a number of 0 or more")
    rate = ladder.tiers[0].initial_bps
    for tier in ladder.tiers:
        if tier.notional_floor < notional:
            rate = tier.initial_bps
    return notional * rate / BPS


# ---- canonical tables -----------------------------------------------------------------------------------------------


def ladders_of(margin_tiers: pa.Table, rule_set: str) -> dict[str, Ladder]:
    """The ladders of a rule set in a canonical `margin_tiers` table, by market; rates rounded to whole bps, up.

    Raises ConfigurationError for an unknown rule set, a tier that is there twice or missing, and for tiers that
    `require_ladder` refuses.
    """
    known = pc.unique(margin_tiers["rule_set"]).to_pylist()
    if rule_set not in known:
        raise ConfigurationError(f"rule set {rule_set!r} has no margin tiers{nearest_name(rule_set, known)}")
    by_market: dict[str, dict[int, dict[str, object]]] = {}
    for row in margin_tiers.filter(pc.equal(margin_tiers["rule_set"], rule_set)).to_pylist():
        tiers = by_market.setdefault(row["market"], {})
        if row["tier"] in tiers:
            raise ConfigurationError(f"tier {row['tier']} of {row['market']} in {rule_set} is there twice")
        tiers[row["tier"]] = row
    ladders = {}
    for market, tiers in sorted(by_market.items()):
        if sorted(tiers) != list(range(1, len(tiers) + 1)):
            raise ConfigurationError(f"tiers of {market} in {rule_set} are {sorted(tiers)}; expected 1, 2, ...")
        rows = [tiers[number] for number in sorted(tiers)]
        ends = [row["notional_floor"] for row in rows[1:]] + [rows[-1]["notional_cap"]]
        ladder = Ladder(market, tuple(_tier(row, end) for row, end in zip(rows, ends, strict=True)))
        require_ladder(ladder)
        ladders[market] = ladder
    return ladders


def rates_in_table(margin_tiers: pa.Table, rule_set: str, ladders: Sequence[Ladder]) -> pa.Table:
    """The canonical table with the rates of `ladders` for those of `rule_set`; source `model` where they changed.

    A tier whose rates are the same in whole bps keeps its row to the last digit; deductions of a market that changes
    are those that continue the tier below. Raises ConfigurationError for a market or a bracket that the table lacks.
    """
    new = {ladder.market: ladder for ladder in ladders}
    old = ladders_of(margin_tiers, rule_set)
    for market, ladder in new.items():
        if market not in old:
            raise ConfigurationError(f"market {market!r} has no tiers in {rule_set}{nearest_name(market, old)}")
        floors = [tier.notional_floor for tier in ladder.tiers]
        if floors != [tier.notional_floor for tier in old[market].tiers]:
            raise ConfigurationError(f"tiers of {market} have other brackets than those of {rule_set}")
    rows = margin_tiers.to_pylist()
    for row in rows:
        if row["rule_set"] == rule_set and row["market"] in new:
            before, after = (tiers[row["market"]].tiers[row["tier"] - 1] for tiers in (old, new))
            for name in ("maintenance", "initial"):
                figure = getattr(after, f"{name}_bps")
                if figure != getattr(before, f"{name}_bps"):
                    row[f"{name}_rate"], row["source"] = Decimal(figure) / BPS, "model"
    _continue_deductions(rows, rule_set)
    return pa.Table.from_pylist(rows, schema=margin_tiers.schema)


def _continue_deductions(rows: list[dict[str, object]], rule_set: str) -> None:
    changed = {row["market"] for row in rows if row["rule_set"] == rule_set and row["source"] == "model"}
    for market in changed:
        rate = deduction = Decimal(0)
        of_market = [row for row in rows if row["rule_set"] == rule_set and row["market"] == market]
        for row in sorted(of_market, key=lambda row: _decimal(row["notional_floor"])):
            own = _decimal(row["maintenance_rate"])
            deduction += _decimal(row["notional_floor"]) * (own - rate)
            row["deduction"], rate = deduction.quantize(Decimal("1e-18")), own


def _simple_loss(log_loss: np.ndarray, side: Side) -> np.ndarray:
    """Losses as fractions of notional; rise with the log loss.

    With the log loss x growing like the root of the notional N, N (1 - e^-x) is convex up to x = 3 and concave beyond,
    where it is continued by its tangent: what is needed stays convex, and reaches 102.5 % of N instead of 100 %.
    """
    if side == "short":
        return np.expm1(np.minimum(log_loss, LARGEST_LOG_LOSS))
    slope = 0.5 * LONG_TANGENT * np.exp(-LONG_TANGENT)
    beyond = np.maximum(log_loss, LONG_TANGENT)
    return -np.expm1(-np.minimum(log_loss, LONG_TANGENT)) + slope * (1.0 - (LONG_TANGENT / beyond) ** 2)


def _tier(row: dict[str, object], end: object) -> Tier:
    maintenance, initial = (_ceil_bps(_decimal(row[f"{name}_rate"])) for name in ("maintenance", "initial"))
    cap = None if end is None else float(_decimal(end))
    return Tier(float(_decimal(row["notional_floor"])), cap, maintenance, initial)


def _ceil_bps(rate: Decimal) -> int:
    return math.ceil(rate * BPS)


def _decimal(value: object) -> Decimal:
    assert isinstance(value, Decimal)
    return value


def checked_caps(market: str, caps: Sequence[float]) -> np.ndarray:
    ends = np.asarray(caps, dtype=np.float64)
    if not len(ends) or not np.all(np.isfinite(ends)) or not ends[0] > 0.0 or np.any(np.diff(ends) <= 0.0):
        raise ConfigurationError(f"brackets of {market} end at {list(caps)}; expected positive rising amounts")
    return ends


def _within(policy: GovernancePolicy, bps: int) -> int:
    return min(max(bps, policy.rates.least), policy.rates.largest)
