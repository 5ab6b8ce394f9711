"""A venue's real, dated tiers against what was needed: which asset and tier is over- or under-margined, and how often a
loss went through each tier's maintenance and initial rate.

Rates are those of a position as large as the tier allows: the maintenance margin of all its slices over its notional
(the stated rate where the snapshot has no brackets), and the initial rate of the tier, 1 / largest leverage.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aggregator.errors import ConfigurationError, nearest_name

from .market_history import Loss, Side, Windows, losses
from .tier_ladder import Ladder, Tier, initial_margin, maintenance_margin, require_ladder
from .tier_policy import BPS

Verdict = Literal["under", "adequate", "over"]

COVERAGE = pa.schema(
    [
        pa.field("asset", pa.string()),
        pa.field("tier", pa.int64(), metadata={"unit": "1 is the smallest notional"}),
        pa.field("side", pa.string(), metadata={"values": "long, short"}),
        pa.field("level", pa.string(), metadata={"values": "maintenance, initial"}),
        pa.field("windows", pa.int64(), metadata={"unit": "windows with a known loss and a tier in force"}),
        pa.field("breaches", pa.int64(), metadata={"unit": "windows whose loss is above the rate"}),
        pa.field("coverage", pa.float64(), metadata={"unit": "share of windows"}),
        pa.field("mean_rate", pa.float64(), metadata={"unit": "fraction of notional"}),
        pa.field("mean_excess", pa.float64(), metadata={"unit": "fraction of notional, over all windows"}),
    ],
    metadata={"schema": "tier_coverage", "version": "1"},
)


class TierVerdict(NamedTuple):
    """One tier at its cap (USD): margins that the venue asks and that are needed, in bps of the notional, and ratio."""

    market: str
    tier: int
    notional: float
    level: Literal["maintenance", "initial"]
    asked_bps: float
    needed_bps: float
    verdict: Verdict


def venue_ladders(tiers: pa.Table, snapshot: np.datetime64, *, quote: str) -> dict[str, Ladder]:
    """The ladders of a snapshot by asset; maintenance rates rounded to whole bps, initial ones up.

    Raises ConfigurationError for an unknown snapshot or quote, one that states no brackets, and tiers that contradict
    each other (`require_ladder`).
    """
    taken = _rows(tiers, quote)
    at = taken.filter(
        pc.equal(taken["snapshot"], pa.scalar(snapshot.astype("datetime64[us]").item(), pa.timestamp("us")))
    )
    if not at.num_rows:
        raise ConfigurationError(f"exchange tiers: no snapshot of {snapshot} for {quote}")
    by_asset: dict[str, list[Tier]] = {}
    for row in at.sort_by([("asset", "ascending"), ("tier", "ascending")]).to_pylist():
        if row["max_notional"] is None:
            raise ConfigurationError(
                f"exchange tiers: the snapshot of {snapshot} states no brackets for {row['asset']}"
            )
        rate = round(row["maintenance_margin_rate"] * BPS)
        initial = int(np.ceil(round(BPS / row["max_leverage"], 6)))
        by_asset.setdefault(row["asset"], []).append(Tier(row["min_notional"], row["max_notional"], rate, initial))
    ladders = {asset: Ladder(asset, tuple(rows)) for asset, rows in by_asset.items()}
    for ladder in ladders.values():
        require_ladder(ladder)
    return ladders


def compare_ladders(venue: Ladder, needed: Ladder, *, tolerance: float = 0.2) -> tuple[TierVerdict, ...]:
    """Every tier of the venue at its cap against a ladder over the same brackets (`tier_ladder.build_ladder`).

    `adequate` is within `tolerance` of what is needed, as a fraction of it. A last tier without a cap is compared at
    its floor. Raises ConfigurationError for other brackets.
    """
    if [tier.notional_floor for tier in venue.tiers] != [tier.notional_floor for tier in needed.tiers]:
        raise ConfigurationError(f"tiers of {venue.market}: the ladder to compare with has other brackets")
    verdicts = []
    for number, tier in enumerate(venue.tiers, start=1):
        notional = tier.notional_floor if tier.notional_cap is None else tier.notional_cap
        if notional <= 0.0:
            raise ConfigurationError(f"tiers of {venue.market}: a single tier without a cap has no size to compare at")
        for level, margin in (("maintenance", maintenance_margin), ("initial", initial_margin)):
            asked, least = (margin(ladder, notional) / notional * BPS for ladder in (venue, needed))
            verdict: Verdict = "adequate"
            if asked < least * (1.0 - tolerance):
                verdict = "under"
            elif asked > least * (1.0 + tolerance):
                verdict = "over"
            verdicts.append(TierVerdict(venue.market, number, notional, level, asked, least, verdict))  # type: ignore[arg-type]
    return tuple(verdicts)


def tier_coverage(tiers: pa.Table, windows: Windows, *, loss: Loss, quote: str) -> pa.Table:
    """How often losses over the windows stayed within each tier (`COVERAGE`), in order of asset, tier, side, level.

    A window meets the tiers of the last snapshot dated at or before its opening; an asset that a snapshot does not list
    has none until it is listed again. Assets that only one of the two tables knows are left out. Raises
    ConfigurationError for an unknown quote and when nothing is left.
    """
    taken = _rows(tiers, quote)
    dates = pc.unique(taken["snapshot"]).to_numpy().astype("datetime64[us]")
    dates.sort()
    in_force = np.searchsorted(dates, windows.opening.astype("datetime64[us]"), side="right") - 1
    rates = _rates_by_asset(taken, dates)
    of_side = {side: losses(windows, side, loss) for side in _SIDES}
    rows = []
    for column, asset in enumerate(windows.assets):
        # before the first snapshot nothing is known to be in force
        by_snapshot = rates.get(asset)
        if by_snapshot is None:
            continue
        for tier in range(by_snapshot.shape[1]):
            for side in _SIDES:
                for level, name in enumerate(_LEVELS):
                    rate = np.where(in_force >= 0, by_snapshot[in_force, tier, level], np.nan)
                    row = _coverage(rate, of_side[side][:, column])
                    if row["windows"]:
                        rows.append({"asset": asset, "tier": tier + 1, "side": side, "level": name, **row})
    if not rows:
        raise ConfigurationError("exchange tiers and market history have no asset and window in common")
    return pa.Table.from_pylist(rows, schema=COVERAGE)


_SIDES: tuple[Side, ...] = ("long", "short")
_LEVELS = ("maintenance", "initial")


def _rows(tiers: pa.Table, quote: str) -> pa.Table:
    known = pc.unique(tiers["quote"]).to_pylist()
    if quote not in known:
        raise ConfigurationError(f"exchange tiers: quote {quote!r} is unknown{nearest_name(quote, known)}")
    return tiers.filter(pc.equal(tiers["quote"], quote))


def _rates_by_asset(taken: pa.Table, dates: np.ndarray) -> dict[str, np.ndarray]:
    """Maintenance and initial rates [snapshots, tiers, 2] of each asset; NaN where a snapshot has no such tier."""
    ordered = taken.sort_by([("asset", "ascending"), ("snapshot", "ascending"), ("tier", "ascending")])
    assets = np.array(ordered["asset"].to_pylist(), dtype=object)
    snapshot = np.searchsorted(dates, ordered["snapshot"].to_numpy().astype("datetime64[us]"))
    tier = ordered["tier"].to_numpy()
    floor, cap, maintenance, leverage = (
        ordered[name].to_numpy(zero_copy_only=False)
        for name in ("min_notional", "max_notional", "maintenance_margin_rate", "max_leverage")
    )
    found = {}
    for asset in sorted(set(assets.tolist())):
        rows = np.flatnonzero(assets == asset)
        if tier[rows].min() < 1:
            raise ConfigurationError(f"exchange tiers: {asset} has a tier below 1")
        table = np.full((len(dates), int(tier[rows].max()), 2), np.nan)
        total = 0.0
        for row in rows.tolist():
            if tier[row] == 1:
                total = 0.0
            total += maintenance[row] * (cap[row] - floor[row])
            of_slices = total / cap[row]
            rate = of_slices if np.isfinite(of_slices) else maintenance[row]
            table[snapshot[row], tier[row] - 1] = rate, 1.0 / leverage[row]
        found[asset] = table
    return found


def _coverage(rate: np.ndarray, loss: np.ndarray) -> dict[str, float | int]:
    known = np.isfinite(rate) & np.isfinite(loss)
    count = int(np.sum(known))
    if not count:
        return {"windows": 0}
    excess = np.maximum(loss[known] - rate[known], 0.0)
    breaches = int(np.sum(excess > 0.0))
    return {
        "windows": count,
        "breaches": breaches,
        "coverage": 1.0 - breaches / count,
        "mean_rate": float(np.mean(rate[known])),
        "mean_excess": float(np.mean(excess)),
    }
