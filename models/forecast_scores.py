"""The score of forecasts against a market history: groups of assets, both sides and each, crises, comparisons, as text.

All models of a table are judged on their common rows. Groups are made by rules, because the assets of another history
are not known here: perpetuals; spot assets without a perpetual, of which the pegged and the others (delisted and
collapsed coins, mostly) are also shown apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from .forecast_comparison import Comparison, compare
from .forecast_metrics import Metrics, Rows, constant_pinball, fissler_ziegel, metrics, pinball
from .forecast_panel import SIDES, ForecastPanel, forecast_panel
from .forecast_table import HOURS
from .market_history import PERP, SPOT, MarketHistory, Windows

LEAST_ROWS = 100
"""Common rows on each side from which an asset counts."""

PEGGED_MOVE = 0.006
"""Median absolute return of a day below which an asset is pegged (or gold)."""

REGIME_DAYS = 30
AGAINST = ("COMBO4", "GARCH-t")
"""Models that the others are compared with, where the table has them; else the first by name."""

CRISES: Mapping[str, tuple[str, str]] = {
    "2020-03-12": ("2020-03-08", "2020-03-20"),
    "2021-05-19": ("2021-05-12", "2021-05-24"),
    "2022-05/06": ("2022-05-05", "2022-06-20"),
    "2022-11 FTX": ("2022-11-05", "2022-11-15"),
}
"""First and last day of the windows in which crises are looked at."""


class GroupScore(NamedTuple):
    """Metrics of every model on the common rows of a group and side (`both`, `long`, `short`)."""

    group: str
    side: str
    assets: tuple[str, ...]
    rows: int
    first: np.datetime64
    last: np.datetime64
    metrics: Mapping[str, Metrics]
    comparisons: tuple[Comparison, ...]


class CrisisScore(NamedTuple):
    """Long side of the perpetuals: coverage, uncovered loss over posted margin, first mean margin, highest over it."""

    crisis: str
    model: str
    cover: float
    uncovered: float
    first_margin: float
    highest: float


class ScoreTable(NamedTuple):
    """Everything about one forecast table; `missing` is the share of rows that a model lacks."""

    horizon: str
    level: float
    loss: str
    missing: Mapping[str, float]
    unknown_losses: int
    groups: tuple[GroupScore, ...]
    crises: tuple[CrisisScore, ...]


def score(
    forecasts: pa.Table,
    history: MarketHistory,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    against: Sequence[str] = AGAINST,
) -> ScoreTable:
    """Scores of all models in a table of one horizon, level and kind of loss; errors as in `forecast_panel`.

    `groups` names the assets of each group instead of the rules; a group without an asset of `LEAST_ROWS` common rows
    on each side is left out.
    """
    panel = forecast_panel(forecasts, history)
    common = panel.common()
    members = asset_groups(panel.windows) if groups is None else {name: tuple(found) for name, found in groups.items()}
    regime = _trailing_deviation(panel.windows)
    found = []
    for group, assets in members.items():
        columns = _columns(panel, common, assets)
        for side in ("both", *SIDES) if len(columns) else ():
            found.append(_group_score(panel, common, group, side, columns, regime, against))
    perps = _columns(panel, common, members.get("perps", ()))
    return ScoreTable(
        panel.windows.horizon,
        panel.level,
        panel.loss_kind,
        panel.missing,
        panel.unknown_losses,
        tuple(found),
        tuple(_crises(panel, common, perps)) if len(perps) else (),
    )


def asset_groups(panel: Windows) -> dict[str, tuple[str, ...]]:
    """Assets of `perps` (any perp window), `spot` (none), and of the latter `pegged` and `delisted` (the others)."""
    per_day = 24 // HOURS[panel.horizon]
    groups: dict[str, list[str]] = {"perps": [], "spot": [], "delisted": [], "pegged": []}
    for column, asset in enumerate(panel.assets):
        if (panel.market[:, column] == PERP).any():
            groups["perps"].append(asset)
        elif (panel.market[:, column] == SPOT).any():
            moves = np.abs(panel.simple_return[:, column])
            moves = moves[np.isfinite(moves)]
            still = len(moves) and float(np.median(moves)) * np.sqrt(per_day) < PEGGED_MOVE
            groups["spot"].append(asset)
            groups["pegged" if still else "delisted"].append(asset)
    return {name: tuple(found) for name, found in groups.items()}


def _columns(panel: ForecastPanel, common: np.ndarray, assets: Sequence[str]) -> np.ndarray:
    enough = common.sum(axis=0).min(axis=1) >= LEAST_ROWS
    return np.flatnonzero(enough & np.isin(panel.windows.assets, list(assets)))


def _group_score(
    panel: ForecastPanel,
    common: np.ndarray,
    group: str,
    side: str,
    columns: np.ndarray,
    deviation: np.ndarray,
    against: Sequence[str],
) -> GroupScore:
    sides = slice(None) if side == "both" else slice(SIDES.index(side), SIDES.index(side) + 1)

    def flat(values: np.ndarray) -> np.ndarray:
        return np.where(common, values, np.nan)[:, columns, sides].reshape(len(values), -1)

    loss = flat(panel.loss)
    there = np.isfinite(loss)
    with_rows = there.any(axis=1)
    rows = Rows(loss, _terciles(deviation, with_rows), panel.level, 24 // HOURS[panel.windows.horizon])
    scale = constant_pinball(loss, panel.level)
    results: dict[str, Metrics] = {}
    losses: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for number, model in enumerate(panel.models):
        margin, shortfall = flat(panel.margin[number]), flat(panel.shortfall[number])
        results[model] = metrics(rows, margin, shortfall)
        scaled = np.where(there, pinball(loss, margin, panel.level) / scale, np.nan)
        losses[model] = scaled, fissler_ziegel(loss, margin, shortfall, panel.level)
    known = [name for name in against if name in panel.models] or list(panel.models[:1])
    comparisons = tuple(
        compare((model, base), (losses[model][0], losses[base][0]), (losses[model][1], losses[base][1]))
        for base in known
        for model in panel.models
        if model != base
    )
    openings = panel.windows.opening[with_rows]
    assets = tuple(panel.windows.assets[column] for column in columns)
    return GroupScore(group, side, assets, int(there.sum()), openings[0], openings[-1], results, comparisons)


def _trailing_deviation(panel: Windows) -> np.ndarray:
    """Standard deviation of the median return of the perpetuals (of all assets without any) over the 30 days before."""
    perps = (panel.market == PERP).any(axis=0)
    returns = panel.simple_return[:, perps if perps.any() else slice(None)]
    there = np.isfinite(returns).any(axis=1)
    median = np.full(len(returns), np.nan)
    median[there] = np.nanmedian(returns[there], axis=1)
    length = REGIME_DAYS * 24 // HOURS[panel.horizon]
    found = np.full(len(median), np.nan)
    for end in range(length, len(median)):
        window = median[end - length : end]
        if np.isfinite(window).sum() >= length // 2:
            found[end] = np.nanstd(window)
    return found


def _terciles(deviation: np.ndarray, with_rows: np.ndarray) -> np.ndarray:
    regime = np.full(len(deviation), -1)
    known = np.isfinite(deviation)
    if (known & with_rows).any():
        bounds = np.quantile(deviation[known & with_rows], [1.0 / 3.0, 2.0 / 3.0])
        regime[known] = np.searchsorted(bounds, deviation[known], side="left")
    return regime


def _crises(panel: ForecastPanel, common: np.ndarray, columns: np.ndarray) -> list[CrisisScore]:
    found = []
    long = SIDES.index("long")
    for crisis, (first, last) in CRISES.items():
        days = panel.windows.opening.astype("datetime64[D]")
        inside = (days >= np.datetime64(first, "D")) & (days <= np.datetime64(last, "D"))
        there = common[inside][:, columns, long]
        there = there[there.any(axis=1)]
        if not len(there):
            continue
        kept = np.flatnonzero(inside)[common[inside][:, columns, long].any(axis=1)]
        loss = panel.loss[kept][:, columns, long]
        for number, model in enumerate(panel.models):
            margin = panel.margin[number][kept][:, columns, long]
            excess = np.maximum(loss - margin, 0.0)[there]
            daily = np.where(there, margin, 0.0).sum(axis=1) / there.sum(axis=1)
            found.append(
                CrisisScore(
                    crisis,
                    model,
                    1.0 - float(np.mean(excess > 0.0)),
                    float(excess.sum() / margin[there].sum()),
                    float(daily[0]),
                    float(daily.max() / daily[0]),
                )
            )
    return found


# ---- text ----------------------------------------------------------------------------------------------------------

HEADINGS = {"m_cov": "m@cov"}
FORMATS = {
    **dict.fromkeys(("cover", "cov_lo", "cov_md", "cov_hi", "pin_n", "margin", "m_cov"), ".4f"),
    **dict.fromkeys(("kup_ok", "chr_ok", "cc_ok", "pin_bp", "breach", "p2t30", "p2t", "up5", "green"), ".2f"),
    **dict.fromkeys(("fz0", "dlog"), ".3f"),
    "clus": ".1f",
}


def scores_text(table: ScoreTable) -> str:
    """The whole table as text, models in order of pin_n, best first; a dash where nothing can be said."""
    lines = [f"horizon {table.horizon}, level {table.level:g}, loss {table.loss}"]
    lacking = {model: share for model, share in table.missing.items() if share > 0.0}
    lines.append("missing rows: " + (", ".join(f"{model} {share:.2%}" for model, share in lacking.items()) or "none"))
    if table.unknown_losses:
        lines.append(f"{table.unknown_losses} forecasts met no known loss")
    if not table.groups:
        lines.append(f"nothing to score: no asset has {LEAST_ROWS} common rows on each side")
    for group in table.groups:
        span = f"{group.first.astype('datetime64[D]')} .. {group.last.astype('datetime64[D]')}"
        lines += ["", f"{group.group}, {group.side}: {group.rows} common rows, {len(group.assets)} assets, {span}"]
        ranked = sorted(group.metrics, key=lambda model, found=group.metrics: found[model].pin_n)  # type: ignore[misc]
        header = ["model", *(HEADINGS.get(name, name) for name in Metrics._fields)]
        body = [[model, *_cells(group.metrics[model])] for model in ranked]
        lines += _aligned([header, *body])
        lines += _aligned(
            [
                ["model", "against", "pinball", "DM t", "p", "FZ0 t"],
                *(
                    [c.model, c.against, f"{c.relative:+.2%}", f"{c.t:+.2f}", f"{c.p_value:.4f}", f"{c.fz0_t:+.2f}"]
                    for c in sorted(group.comparisons, key=lambda c: (c.against, c.relative))
                ),
            ]
        )
    if table.crises:
        lines += ["", "crises, long side of the perpetuals"]
        header = ["crisis", "model", "cov", "exc/m", "m0", "max/m0"]
        body = [
            [c.crisis, c.model, *(f"{value:.3f}" for value in (c.cover, c.uncovered, c.first_margin, c.highest))]
            for c in table.crises
        ]
        lines += _aligned([header, *body])
    return "\n".join(lines) + "\n"


def _cells(found: Metrics) -> list[str]:
    return [
        "-" if np.isnan(value) else format(value, FORMATS[name])
        for name, value in zip(Metrics._fields, found, strict=True)
    ]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
