"""Market history as dense panels: windows with returns and losses, 4-hour bars, context known as of a time.

Times are UTC and stand for the OPENING of a bar or window, which covers [opening, opening + width); prices are quote
units per base unit; losses and returns are fractions of the price at the opening of the window. Axes: T openings,
A assets (sorted by name). NaN is a value that is not known, never zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aggregator.errors import ConfigurationError, nearest_name

from .market_files import HOUR, PRICES, WIDTHS, MarketHistory, microseconds, read_market

__all__ = [
    "NOTHING", "PERP", "SPOT", "FourHourPanel", "Horizon", "Loss", "MarketHistory", "Side", "Windows",
    "bars_4h_panel", "context_series", "losses", "read_market", "windows",
]  # fmt: skip

Horizon = Literal["1d", "8h"]
Side = Literal["long", "short"]
Loss = Literal["close", "adverse"]

NOTHING, SPOT, PERP = 0, 1, 2

LARGEST_GAP = 48 * HOUR
"""A return over a longer distance between two openings is no return of a window."""

LEAST_SPOT_SHARE = 0.75
"""Share of the hours of a window that spot bars must cover; of perpetuals every bar must be there."""

WICK = 0.30
"""`high` and `low` count up to this log distance beyond open and close of the finest bar that is there (4 hours for
perpetuals, 1 hour for spot, a day where only days are known): a few prints go to a hundredth of the price."""

ADVERSE_WICK = 0.75
"""Adverse losses count further, for positions were liquidated there: up to this log distance beyond open and close of
the window. The published scores of adverse losses are met with it, and neither with 0.5 nor without a bound."""


class LowFault(NamedTuple):
    """A recorded low at which the asset was never worth anything like it; every window that holds it has no low."""

    asset: str
    market: str
    day: str
    source: str


LOW_FAULTS = (
    LowFault("LINK", "spot", "2020-03-12", "low 0.0001 in the hour from 10:00, body 2.47 to 3.06; market README"),
    LowFault("DASH", "perp", "2020-04-14", "low 0.10 in the 4 hours from 04:00, body 72.6 to 74.2; market README"),
)

KNOWN_AFTER = {
    "funding_8h": 0,
    "funding_daily_mean": 24 * HOUR,
    "dvol_close": 24 * HOUR,
    "fear_greed": 24 * HOUR,
}
"""Time after its stamp from which a value of a context series is known: values of a day when the day is over."""

CONTEXT_AGE = 72 * HOUR
"""A context value is used up to this long after it became known."""


class Windows(NamedTuple):
    """Dense panel of consecutive windows; every array but `opening` is [T, A].

    `market` is `NOTHING`, `SPOT` or `PERP`: spot until the first window with a perp return, perp from then on. `close`
    is the price at the END of the window. `simple_return` is close over the close before in the same market, minus 1:
    NaN over more than 2 days between openings and where either window has too few bars. `adverse_long` and
    `adverse_short` are the worst losses inside the window against the close before, from highs and lows that are
    clipped at `ADVERSE_WICK`, not at `WICK` as `high` and `low` are.
    `quote_volume` is NaN where the source has none (spot).
    """

    horizon: Horizon
    opening: np.ndarray
    assets: tuple[str, ...]
    market: np.ndarray
    close: np.ndarray
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    simple_return: np.ndarray
    adverse_long: np.ndarray
    adverse_short: np.ndarray
    volume: np.ndarray
    quote_volume: np.ndarray


class FourHourPanel(NamedTuple):
    """Dense panel of 4-hour bars, every array but `opening` [T4, A]; markets, clipping and NaN as in `Windows`."""

    opening: np.ndarray
    assets: tuple[str, ...]
    market: np.ndarray
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    quote_volume: np.ndarray


class _Bars(NamedTuple):
    """Bars of one market, sorted by asset (code into a list of names) and opening (microseconds); [N] each."""

    asset: np.ndarray
    opening: np.ndarray
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    quote_volume: np.ndarray
    bars: np.ndarray
    highest: np.ndarray
    lowest: np.ndarray


class _Panel(NamedTuple):
    """A panel, the close [T, A] of the window before in the same market (NaN if too far away), recorded extremes."""

    dense: FourHourPanel
    reference: np.ndarray
    highest: np.ndarray
    lowest: np.ndarray


# ---- panels --------------------------------------------------------------------------------------------------------


def windows(history: MarketHistory, horizon: Horizon, *, until: np.datetime64 | None = None) -> Windows:
    """The panel of all spot and perp assets over the windows that end at or before `until` (default: all).

    Windows are built from 4-hour bars (perp) and 1-hour bars (spot); a day that these lack comes from the daily file.
    Raises ConfigurationError for an unknown horizon and when no window is left.
    """
    if horizon not in ("1d", "8h"):
        raise ConfigurationError(f"horizon {horizon!r}: expected '1d' or '8h'")
    panel, reference, highest, lowest = _panel(history, WIDTHS[horizon], _asset_names(history), until)
    top, bottom = np.maximum(panel.open, panel.close), np.minimum(panel.open, panel.close)
    highest = np.minimum(highest, top * np.exp(ADVERSE_WICK))
    lowest = np.maximum(lowest, bottom * np.exp(-ADVERSE_WICK))
    return Windows(
        horizon,
        panel.opening,
        panel.assets,
        panel.market,
        panel.close,
        panel.open,
        panel.high,
        panel.low,
        panel.close / reference - 1.0,
        1.0 - lowest / reference,
        highest / reference - 1.0,
        panel.volume,
        panel.quote_volume,
    )


def bars_4h_panel(
    history: MarketHistory, assets: Sequence[str], *, until: np.datetime64 | None = None
) -> FourHourPanel:
    """4-hour bars of `assets` (in that order); an asset without any has NaN only.

    A history of daily bars alone has one row, of NaN, at the first of them. Other errors as in `windows`.
    """
    if not (history.bars_4h.num_rows or history.bars_1h.num_rows):
        first = np.array([microseconds(history.bars_1d["ts"]).min()]).astype("datetime64[us]")
        nothing = np.full((1, len(assets)), np.nan)
        unknown = dict.fromkeys((*PRICES, "volume", "quote_volume"), nothing)
        return FourHourPanel(first, tuple(assets), np.full((1, len(assets)), NOTHING, dtype=np.int8), **unknown)
    return _panel(history, WIDTHS["4h"], tuple(assets), until).dense


def losses(windows: Windows, side: Side, loss: Loss) -> np.ndarray:
    """Losses [T, A] of holding one unit of notional through each window; positive is a loss, NaN is unknown.

    `close` is -r (long) or r (short) of the simple return; `adverse` the worst point inside the window.
    """
    table = {
        ("long", "close"): -windows.simple_return,
        ("short", "close"): windows.simple_return,
        ("long", "adverse"): windows.adverse_long,
        ("short", "adverse"): windows.adverse_short,
    }
    if (side, loss) not in table:
        raise ConfigurationError(f"side {side!r}, loss {loss!r}: expected long or short, close or adverse")
    return table[side, loss]


def context_series(history: MarketHistory, asset: str, series: str, opening: np.ndarray) -> np.ndarray:
    """The last value of a context series that was known strictly before each of `opening` [T] (datetime64, any order).

    Values of a day (funding_daily_mean, dvol_close, fear_greed) are known when the day is over, so that midnight sees
    the day that just ended; funding_8h before, not at, its stamp. NaN where nothing was known in the last 3 days, and
    without a context file. Raises ConfigurationError for an unknown series.
    """
    if series not in KNOWN_AFTER:
        raise ConfigurationError(f"context series {series!r} is unknown{nearest_name(series, KNOWN_AFTER)}")
    result = np.full(len(opening), np.nan)
    if history.context is None:
        return result
    found = history.context.filter((pc.field("asset") == asset) & (pc.field("series") == series))
    if not found.num_rows:
        return result
    delay = KNOWN_AFTER[series]
    stamps = microseconds(found["ts"])
    # the value of a day is complete at its last microsecond: strictly before midnight
    known = stamps + max(delay - 1, 0)
    at = np.asarray(opening, dtype="datetime64[us]").astype(np.int64)
    last = np.searchsorted(known, at, side="left") - 1
    fresh = (last >= 0) & (at - known[last] <= CONTEXT_AGE)
    result[fresh] = found["value"].to_numpy()[last[fresh]]
    return result


def _panel(history: MarketHistory, width: int, assets: tuple[str, ...], until: np.datetime64 | None) -> _Panel:
    limit = np.iinfo(np.int64).max if until is None else int(until.astype("datetime64[us]").astype(np.int64))
    perp, spot = (_windows_of(history, market, assets, width, limit) for market in ("perp", "spot"))
    if not len(perp.opening) + len(spot.opening):
        raise ConfigurationError(f"no complete window of {width // HOUR} hours in the market history")
    # The first perp window has no return yet, so that spot serves one window longer and no return is lost or crosses.
    first_perp = np.full(len(assets), np.iinfo(np.int64).max)
    returns = np.isfinite(_close_before(perp))
    np.minimum.at(first_perp, perp.asset[returns], perp.opening[returns])
    # Where no spot window came before, the first perp window serves as well: spot that is listed later changes nothing.
    earliest = np.full((2, len(assets)), np.iinfo(np.int64).max)
    for row, bars in zip(earliest, (perp, spot), strict=True):
        np.minimum.at(row, bars.asset, bars.opening)
    first_perp[earliest[0] < earliest[1]] = 0

    every = np.concatenate([perp.opening, spot.opening])
    opening = np.arange(every.min(), every.max() + width, width)
    market = np.zeros((len(opening), len(assets)), dtype=np.int8)
    filled = {name: np.full(market.shape, np.nan) for name in (*PRICES, "volume", "quote_volume")}
    reference, highest, lowest = (np.full(market.shape, np.nan) for _ in range(3))
    for key, bars in ((SPOT, spot), (PERP, perp)):
        before = _close_before(bars)
        serves = (bars.opening >= first_perp[bars.asset]) == (key == PERP)
        at = (bars.opening[serves] - opening[0]) // width, bars.asset[serves]
        market[at] = key
        for table, column in ((reference, before), (highest, bars.highest), (lowest, bars.lowest)):
            table[at] = column[serves]
        for name, values in filled.items():
            values[at] = getattr(bars, name)[serves]
    return _Panel(FourHourPanel(opening.astype("datetime64[us]"), assets, market, **filled), reference, highest, lowest)


def _asset_names(history: MarketHistory) -> tuple[str, ...]:
    names: set[str] = set()
    for table in (history.bars_4h, history.bars_1h, history.bars_1d):
        of_market = pc.is_in(table["market"].cast(pa.string()), value_set=pa.array(["spot", "perp"]))
        names.update(pc.unique(table["asset"].filter(of_market)).to_pylist())
    return tuple(sorted(names))


def _windows_of(history: MarketHistory, market: str, assets: tuple[str, ...], width: int, limit: int) -> _Bars:
    """Windows with enough bars that end by `limit`; a day comes from the daily file where finer bars have none."""
    interval = "4h" if market == "perp" else "1h"
    table = history.bars_4h if market == "perp" else history.bars_1h
    least = width // WIDTHS[interval]
    if market == "spot":
        least = int(np.ceil(LEAST_SPOT_SHARE * least))
    built = _aggregate(_clip(_bars_of(table, market, assets), market, assets), width)
    if width == WIDTHS["1d"]:
        days = _clip(_bars_of(history.bars_1d, market, assets), market, assets)
        missing = ~np.isin(_key(days), _key(built))
        built = _Bars(*(np.concatenate([a, b[missing]]) for a, b in zip(built, days, strict=True)))
        built = _select(built, np.lexsort((built.opening, built.asset)))
    return _select(built, (built.bars >= least) & (built.opening <= limit - width))


def _key(bars: _Bars) -> np.ndarray:
    return bars.asset * 10**9 + bars.opening // HOUR


def _bars_of(table: pa.Table, market: str, assets: tuple[str, ...]) -> _Bars:
    table = table.filter(pc.equal(table["market"].cast(pa.string()), market))
    encoded = table["asset"].combine_chunks()
    place = {name: code for code, name in enumerate(assets)}
    codes = np.array([place.get(name, -1) for name in encoded.dictionary.to_pylist()], dtype=np.int64)
    asset = codes[encoded.indices.to_numpy()] if table.num_rows else np.zeros(0, dtype=np.int64)
    opening = microseconds(table["ts"])
    order = np.lexsort((opening, asset))
    order = order[asset[order] >= 0]
    names = (*PRICES, "volume", "quote_vol", "nbars", "high", "low")
    columns = (table[name].to_numpy(zero_copy_only=False)[order] for name in names)
    return _Bars(asset[order], opening[order], *columns)


def _select(bars: _Bars, keep: np.ndarray) -> _Bars:
    return _Bars(*(column[keep] for column in bars))


def _clip(bars: _Bars, market: str, assets: tuple[str, ...]) -> _Bars:
    faulty = np.zeros(len(bars.opening), dtype=bool)
    high = np.minimum(bars.high, np.maximum(bars.open, bars.close) * np.exp(WICK))
    low = np.maximum(bars.low, np.minimum(bars.open, bars.close) * np.exp(-WICK))
    for fault in LOW_FAULTS:
        if fault.market == market and fault.asset in assets:
            day = int(np.datetime64(fault.day, "us").astype(np.int64))
            on_day = bars.opening // WIDTHS["1d"] * WIDTHS["1d"] == day
            faulty |= (bars.asset == assets.index(fault.asset)) & on_day & (bars.low < low)
    return bars._replace(high=high, low=np.where(faulty, np.nan, low), lowest=np.where(faulty, np.nan, bars.lowest))


def _aggregate(bars: _Bars, width: int) -> _Bars:
    """Bars joined into windows of `width`; `bars` is their number, NaN in one makes the window's figure NaN."""
    if not len(bars.opening):
        return bars
    opening = bars.opening // width * width
    new = np.ones(len(opening), dtype=bool)
    new[1:] = (np.diff(opening) != 0) | (np.diff(bars.asset) != 0)
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(opening)) - 1
    return _Bars(
        bars.asset[first],
        opening[first],
        bars.open[first],
        np.maximum.reduceat(bars.high, first),
        np.minimum.reduceat(bars.low, first),
        bars.close[last],
        np.add.reduceat(bars.volume, first),
        np.add.reduceat(bars.quote_volume, first),
        last - first + 1,
        np.maximum.reduceat(bars.highest, first),
        np.minimum.reduceat(bars.lowest, first),
    )


def _close_before(bars: _Bars) -> np.ndarray:
    """The close of the window before each [N], at most `LARGEST_GAP` between the two openings; else NaN."""
    result = np.full(len(bars.opening), np.nan)
    joined = (np.diff(bars.asset) == 0) & (np.diff(bars.opening) <= LARGEST_GAP)
    result[1:][joined] = bars.close[:-1][joined]
    return result
