"""The market as a forecaster saw it: every figure that a forecast of day t may use, and nothing after it.

Row t of an array [dates, ...] belongs to the day of `dates[t]` and is known at its end; row t of an array
[dates + 1, ...] is known at the beginning of that day. A forecast of day t reads rows before t of the former and rows
up to t of the latter. Changes are daily log-changes, volatilities of factors daily, implied volatilities annual.
Factors are named as in `scenarios`: prices first, then implied volatilities.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import ndtri

from .errors import ConfigurationError
from .history import BURN_IN_DAYS, MAXIMUM_AGE_DAYS, MINIMUM_DAYS, VolatilityRule, ewma_volatility
from .history_tables import IMPLIED_VOL_SERIES, ReturnPanel

DAYS_PER_YEAR = 365.0

_DAY_US = 86_400_000_000
_FILL_STREAM, _RULE_STREAM, _REALISED_STREAM = 1, 2, 3


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """What happened, day by day, and the draws that stand in where nothing was recorded.

    `changes` [dates, factors] has NaN where missing; `realised` is the same with the changes of implied volatility
    that were not recorded drawn from the rule. `volatility` [dates + 1, factors] is the filter of
    `history.ewma_volatility`, `residuals` [dates, factors] are changes over it. `implied` [dates + 1, factors] are
    implied volatilities, NaN for prices, and `recorded` [dates + 1, factors] says which of them were observed; the
    others are the annual volatility of the price. `uniforms` and `normals` [dates, factors] fill gaps, `rule_normals`
    [dates, factors] drive implied volatilities without a history.
    """

    dates: np.ndarray
    factors: tuple[str, ...]
    anchors: tuple[int, ...]
    changes: np.ndarray
    realised: np.ndarray
    volatility: np.ndarray
    residuals: np.ndarray
    implied: np.ndarray
    recorded: np.ndarray
    rules: Mapping[str, VolatilityRule]
    uniforms: np.ndarray
    normals: np.ndarray
    rule_normals: np.ndarray

    @property
    def prices(self) -> int:
        """Number of price factors; they are the first ones."""
        return sum(name.startswith("price:") for name in self.factors)

    @property
    def first(self) -> int:
        """The first day on which every anchor has a residual."""
        usable = np.isfinite(self.residuals[:, list(self.anchors)]).all(axis=1)
        return int(np.argmax(usable)) if usable.any() else len(self.dates)


def build_market(
    panel: ReturnPanel,
    implied_changes: Mapping[str, np.ndarray],
    implied_levels: Mapping[str, np.ndarray],
    rules: Mapping[str, VolatilityRule],
    *,
    decay: float,
    floor_fraction: float,
    seed: int,
) -> Market:
    """A `Market` of the assets of `panel` and the implied volatilities that have an entry in `rules`.

    `implied_changes` and `implied_levels` hold [dates] per underlying where there is a series (levels annual, as a
    fraction, at the end of the day). Draws come from counter-based streams of `seed`, one number per day of the
    calendar and factor: neither the length of the history nor another factor changes them. Raises ConfigurationError
    for a rule of an underlying that the panel lacks.
    """
    for name in rules:
        if name not in panel.assets:
            raise ConfigurationError(
                f"the implied volatility of {name} moves with its price, which is not in the panel"
            )
    names = tuple(f"price:{asset}" for asset in panel.assets) + tuple(f"vol:{asset}" for asset in rules)
    dates, count = len(panel.dates), len(panel.assets)
    changes = np.full((dates, len(names)), np.nan)
    changes[:, :count] = panel.returns
    implied = np.full((dates + 1, len(names)), np.nan)
    recorded = np.zeros((dates + 1, len(names)), dtype=bool)
    for column, asset in enumerate(rules, start=count):
        if asset in implied_changes:
            changes[:, column] = implied_changes[asset]
        if asset in implied_levels:
            implied[1:, column] = implied_levels[asset]
        recorded[:, column] = np.isfinite(implied[:, column])
    volatility = ewma_volatility(changes, decay=decay, floor_fraction=floor_fraction)
    with np.errstate(invalid="ignore", divide="ignore"):
        residuals = np.where(volatility[:-1] > 0.0, changes / volatility[:-1], np.nan)

    days = panel.dates.astype("datetime64[D]").astype(np.int64)
    realised = changes.copy()
    realised_normals = _daily_normals(seed, _REALISED_STREAM, days, names)
    for column, (asset, rule) in enumerate(rules.items(), start=count):
        price = panel.assets.index(asset)
        gaps = np.isnan(changes[:, column])
        moves = rule.beta * panel.returns[:, price] + rule.eta * realised_normals[:, column]
        realised[gaps, column] = moves[gaps]
        stand_in = volatility[:, price] * math.sqrt(DAYS_PER_YEAR)
        implied[:, column] = np.where(recorded[:, column], implied[:, column], stand_in)
    return Market(
        dates=panel.dates,
        factors=names,
        anchors=panel.anchors,
        changes=changes,
        realised=realised,
        volatility=volatility,
        residuals=residuals,
        implied=implied,
        recorded=recorded,
        rules={f"vol:{asset}": rule for asset, rule in rules.items()},
        uniforms=_daily_draws(seed, _FILL_STREAM, days, names),
        normals=_daily_normals(seed, _FILL_STREAM, days, names),
        rule_normals=_daily_normals(seed, _RULE_STREAM, days, names),
    )


def implied_levels(
    table: pa.Table, underlyings: Sequence[str], *, dates: np.ndarray, series: str = IMPLIED_VOL_SERIES
) -> dict[str, np.ndarray]:
    """Annual implied volatility [dates] at the end of each day, as a fraction, from a series in per cent.

    NaN where there is no row, or no positive number, or more than one row of the day
    (`history_tables.implied_vol_changes` reports those rows as failures). Underlyings without a row are absent.
    """
    positions = dates.astype("datetime64[D]").astype(np.int64)
    levels = {}
    for asset in underlyings:
        wanted = pc.and_(
            pc.equal(pc.cast(table["asset"], pa.string()), asset),
            pc.equal(pc.cast(table["series"], pa.string()), series),
        )
        rows = table.filter(wanted)
        if not rows.num_rows:
            continue
        opened = pc.cast(pc.cast(rows["ts"], pa.timestamp("us", tz="UTC")), pa.int64()).to_numpy()
        values = pc.cast(rows["value"], pa.float64()).to_numpy()
        days, count = np.unique(opened // _DAY_US, return_counts=True)
        once = np.isin(opened // _DAY_US, days[count == 1]) & (opened % _DAY_US == 0)
        usable = once & np.isfinite(values) & (values > 0.0)
        found = dict(zip((opened[usable] // _DAY_US).tolist(), values[usable].tolist(), strict=True))
        levels[asset] = np.array([found.get(int(day), math.nan) for day in positions]) / 100.0
    return levels


def has_history(market: Market, t: int, column: int) -> bool:
    """Whether a factor has a history of its own before day t, by the rule of `history.factor_history`.

    A series that never moved has none: there is no volatility to scale by.
    """
    if column in market.anchors:
        return True
    if not market.volatility[t, column] > 0.0:
        return False
    present = np.flatnonzero(np.isfinite(market.changes[:t, column]))
    if len(present) < max(MINIMUM_DAYS, BURN_IN_DAYS + 1):
        return False
    age = int((market.dates[t - 1] - market.dates[present[-1]]).astype(np.int64))
    return age <= MAXIMUM_AGE_DAYS


def filled_residuals(market: Market, t: int, volatility: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """Residuals [days, factors] of the days from `market.first` to t - 1 with every gap filled by the product's rules.

    A price takes its loadings on the anchors' residuals of the date plus one of its own residuals, an implied
    volatility its rule on the move of its price; loadings and own residuals are those known before day t. `volatility`
    [factors] is that of day t, `residuals` [dates, factors] those of the filter in use. Columns without a history of
    their own (`has_history`) are NaN. Mirrors `generators.filtered_historical`, which draws other numbers.
    """
    begin = market.first
    table = residuals[begin:t].copy()
    anchor_residuals = table[:, list(market.anchors)]
    prices = market.prices
    for column in range(table.shape[1]):
        if not has_history(market, t, column):
            table[:, column] = np.nan
            continue
        gaps = np.isnan(table[:, column])
        if not gaps.any():
            continue
        if column < prices:
            present = ~gaps
            loadings = np.linalg.lstsq(anchor_residuals[present], table[present, column], rcond=None)[0]
            own = table[present, column] - (anchor_residuals[present] * loadings).sum(axis=1)
            chosen = np.minimum((market.uniforms[begin:t][gaps, column] * len(own)).astype(np.int64), len(own) - 1)
            filled = np.zeros(len(chosen))
            for anchor, loading in enumerate(loadings):
                filled = filled + loading * anchor_residuals[gaps, anchor]
            table[gaps, column] = filled + own[chosen]
        else:
            rule = market.rules[market.factors[column]]
            price = market.factors.index(rule.underlying)
            move = volatility[price] * table[gaps, price]
            change = rule.beta * move + rule.eta * market.normals[begin:t][gaps, column]
            table[gaps, column] = change / volatility[column]
    return table


def _daily_draws(seed: int, stream: int, days: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Uniforms [days, names]: entry d of the counter-based stream of a name belongs to day d since 1970."""
    if days[0] < 0:
        raise ConfigurationError("dates before 1970 have no stream")
    columns = []
    for name in names:
        key = (stream << 32) | zlib.crc32(name.encode())
        columns.append(np.random.Generator(np.random.Philox(key=[seed, key])).random(int(days[-1]) + 1)[days])
    return np.stack(columns, axis=1)


def _daily_normals(seed: int, stream: int, days: np.ndarray, names: Sequence[str]) -> np.ndarray:
    uniforms = _daily_draws(seed, stream, days, [f"normal {name}" for name in names])
    return ndtri(np.maximum(uniforms, np.finfo(np.float64).tiny))
