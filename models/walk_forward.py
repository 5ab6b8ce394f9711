"""Walk-forward: networks refitted at fixed dates on everything before, each used until the next.

A refit sees the losses of windows that had ended `embargo_days` before its date, on all assets and both sides. Which
refits there are depends on the calendar alone, so a longer history adds refits and changes none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from aggregator.errors import ConfigurationError

from .checkpoint import SUFFIX, Header, read_checkpoint, read_header, rows_digest, write_checkpoint
from .classical_margin import SIDES, TailRates
from .features import HOURS, FeaturePanel, side_inputs, windows_per_day
from .features_market import CALENDAR
from .market_history import NOTHING, Loss, Side, Windows, losses
from .offset_windows import OffsetWindows
from .tier_model_settings import TierModelSettings, Training
from .training import Fit, Pairs, fit, forecast, input_moments, pooled_start, standardised

Progress = Callable[[str, int, int], None]
"""Told the stage, how much of it is done, and how much there is."""

DAY = np.timedelta64(1, "D")


class Rows(NamedTuple):
    """Rows of training sorted by time: `ended` [rows] datetime64, when the loss was known; `inputs` [rows, features] as
    they are; `scaled_loss` [rows] (float32) the loss over exp(anchor), `log_scale` [rows] (float32) the anchor;
    `before` [rows] (int32) the row of the same asset and side whose window ended where this one opened, -1 for none."""

    ended: np.ndarray
    inputs: np.ndarray
    scaled_loss: np.ndarray
    log_scale: np.ndarray
    before: np.ndarray


class Walked(NamedTuple):
    """`rates`, one set per way of taking the calendar; `rows` [openings]: what the fit in use was trained on, 0 for
    none."""

    rates: list[TailRates]
    rows: np.ndarray


class Refit(NamedTuple):
    """A fit and the number of rows that it saw."""

    fit: Fit
    rows: int


def refit_dates(opening: np.ndarray, months: int) -> np.ndarray:
    """datetime64[D]: the first day of every `months`-th month of the years, from the first opening to the last."""
    first, last = opening[0].astype("datetime64[Y]"), opening[-1].astype("datetime64[D]")
    dates = np.arange(first.astype("datetime64[M]"), last.astype("datetime64[M]") + 1, months).astype("datetime64[D]")
    return dates[(dates >= opening[0]) & (dates <= last)]


def training_rows(
    panel: FeaturePanel,
    windows: Windows,
    loss: Loss,
    training: Training,
    *,
    offsets: OffsetWindows | None = None,
    assets: frozenset[str] | None = None,
) -> Rows:
    """Every window, asset (of `assets`, all for None) and side whose loss is known and whose scale is no peg's.

    `offsets` adds days that begin at other hours.
    """
    parts = [_rows_of(panel, losses(windows, side, loss), side, training, assets=assets) for side in SIDES]
    if offsets is not None:
        if offsets.panel.names != panel.names:
            raise ValueError(f"offset windows have other inputs: {offsets.panel.names}")
        parts += [_rows_of(offsets.panel, offsets.losses(side), side, training, assets=assets) for side in SIDES]
    first = np.cumsum([0, *(len(part.ended) for part in parts)])
    parts = [
        part._replace(before=np.where(part.before >= 0, part.before + begin, -1))
        for part, begin in zip(parts, first, strict=False)
    ]
    joined = Rows(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    order = np.argsort(joined.ended, kind="stable")
    place = np.empty(len(order), dtype=np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    before = np.where(joined.before >= 0, place[joined.before], -1)
    joined = joined._replace(before=before.astype(np.int32))
    return Rows(*(values[order] for values in joined))


def _rows_of(
    panel: FeaturePanel, loss_of_side: np.ndarray, side: Side, training: Training, *, assets: frozenset[str] | None
) -> Rows:
    scale = np.exp(panel.anchor[:-1])
    wanted = np.isfinite(loss_of_side) & (scale * windows_per_day(panel.horizon) ** 0.5 >= training.smallest_volatility)
    if assets is not None:
        wanted &= np.isin(panel.assets, sorted(assets))[None, :]
    time, asset = np.nonzero(wanted)
    scaled = np.minimum(loss_of_side[time, asset] / scale[time, asset], training.largest_scaled_loss)
    width = np.timedelta64(HOURS[panel.horizon], "h")
    row = np.full(wanted.shape, -1)
    row[time, asset] = np.arange(len(time))
    # windows of a day may open every eight hours: the one before is the one that ended at the opening
    earlier = time - int(width // (panel.opening[1] - panel.opening[0]))
    return Rows(
        panel.opening[time] + width,
        side_inputs(panel, side, time, asset),
        scaled.astype(np.float32),
        panel.anchor[time, asset].astype(np.float32),
        np.where(earlier >= 0, row[np.maximum(earlier, 0), asset], -1),
    )


def fit_until(
    rows: Rows,
    panel: FeaturePanel,
    loss: Loss,
    settings: TierModelSettings,
    *,
    date: np.datetime64,
    checkpoint: Path | None = None,
    source: str = "",
    guard_log_factors: tuple[float, ...] = (),
) -> Refit | None:
    """The fit of a refit on `date`; None when fewer than `least_rows` rows had ended by then, less the embargo.

    With a `checkpoint` path, a fit that is there and was made of the same rows and settings is read instead of made,
    and what is made is written.
    """
    count = int(np.searchsorted(rows.ended, date - settings.walk_forward.embargo_days * DAY, side="right"))
    if count < settings.walk_forward.least_rows:
        return None
    header = Header(
        horizon=panel.horizon,
        loss=loss,
        inputs=panel.names,
        network=settings.network,
        training=settings.training,
        refit=str(date.astype("datetime64[D]")),
        rows=count,
        rows_sha256=rows_digest(*(values[:count] for values in rows[1:])),
        guard_log_factors=guard_log_factors,
    )
    if checkpoint is not None and checkpoint.exists():
        try:
            if read_header(checkpoint) == header:
                return Refit(read_checkpoint(checkpoint, inputs=panel.names)[1], count)
        except ConfigurationError:
            pass  # half written or of another program: fit again and replace it
    moments = input_moments(rows.inputs[:count])
    # rows that are never drawn fill up to a power of two, so that a longer history runs the same program
    spare = (1 << (len(rows.ended) - 1).bit_length()) - len(rows.ended)
    steady = np.array([name not in CALENDAR for name in panel.names], dtype=np.float32)
    made = fit(
        jnp.asarray(np.pad(standardised(rows.inputs, moments), ((0, spare), (0, 0)))),
        jnp.asarray(np.pad(rows.scaled_loss, (0, spare))),
        count,
        pairs=Pairs(
            jnp.asarray(np.pad(rows.log_scale, (0, spare))),
            jnp.asarray(np.pad(rows.before, (0, spare), constant_values=-1)),
            jnp.asarray(steady),
        ),
        moments=moments,
        start=pooled_start(rows.scaled_loss[:count], settings.network.levels),
        network=settings.network,
        training=settings.training,
    )
    if checkpoint is not None:
        write_checkpoint(checkpoint, header, made, source=source)
    return Refit(made, count)


def network_rates(
    panel: FeaturePanel,
    windows: Windows,
    loss: Loss,
    settings: TierModelSettings,
    *,
    start: np.datetime64,
    end: np.datetime64,
    with_calendar: tuple[bool, ...] = (True,),
    offsets: OffsetWindows | None = None,
    assets: frozenset[str] | None = None,
    checkpoints: Path | None = None,
    source: str = "",
    progress: Progress | None = None,
) -> Walked:
    """Rates of the networks at every opening of [start, end) in a market, one set per entry of `with_calendar`.

    NaN before the first refit, outside the period and where an asset has no window. `assets` limits the rows of
    training, not those of the forecast.
    """
    dates = refit_dates(panel.opening, settings.walk_forward.months)
    until = np.append(dates[1:], panel.opening[-1] + DAY)
    used = [(date, next_date) for date, next_date in zip(dates, until, strict=True) if next_date > start and date < end]
    rows = training_rows(panel, windows, loss, settings.training, offsets=offsets, assets=assets)
    shape = (*panel.anchor.shape, len(SIDES), len(settings.network.levels))
    seen = np.zeros(len(panel.opening))
    results = [TailRates(np.full(shape, np.nan), np.full(shape, np.nan)) for _ in with_calendar]
    there = np.concatenate([windows.market != NOTHING, np.ones((1, len(panel.assets)), dtype=bool)])
    for number, (date, next_date) in enumerate(used):
        if progress is not None:
            progress(f"refits of {panel.horizon} {loss}", number, len(used))
        checkpoint = None if checkpoints is None else checkpoints / f"{panel.horizon}_{loss}_{date}{SUFFIX}"
        made = fit_until(rows, panel, loss, settings, date=date, checkpoint=checkpoint, source=source)
        if made is None:
            continue
        inside = (panel.opening >= max(date, start)) & (panel.opening < min(next_date, end))
        seen[inside] = made.rows
        time, asset = np.nonzero(there & inside[:, None])
        for result, calendar in zip(results, with_calendar, strict=True):
            for place, side in enumerate(SIDES):
                rates = rates_of_fit(made.fit, panel, side, time, asset, with_calendar=calendar)
                result.log_margin[time, asset, place] = rates.log_margin
                result.log_shortfall[time, asset, place] = rates.log_shortfall
    if progress is not None:
        progress(f"refits of {panel.horizon} {loss}", len(used), len(used))
    return Walked(results, seen)


def rates_of_fit(
    made: Fit, panel: FeaturePanel, side: Side, time: np.ndarray, asset: np.ndarray, *, with_calendar: bool = True
) -> TailRates:
    """Rates of one fit [rows, levels] at times and assets [rows] of the panel."""
    inputs = side_inputs(panel, side, time, asset, with_calendar=with_calendar)
    relative = forecast(made.networks, standardised(inputs, made.moments))
    scale = panel.anchor[time, asset][:, None]
    return TailRates(relative.log_margin + scale, relative.log_shortfall + scale)
