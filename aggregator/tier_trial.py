"""One book under two sets of tiers: what a change of them does to requirements, liquidations and bad debt.

Both books hold the same positions over the same scenarios; only the tables `margin_tiers` and `collateral_tiers` of
their snapshots differ, so every difference is that of the tiers. Amounts are USD at today's prices of the accounts'
units.

Expected bad debt is the mean of what accounts owe beyond their equity when they are closed: today if they are
liquidatable today, else after the step of a path in which the venue first liquidates them, else at the horizon. Without
paths nothing is closed between today and the horizon. What forced sales do to prices is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from .batch import PortfolioArrays, bucketed
from .engine import Cube, map_bucket, native_of_bucket
from .errors import DataError, Failure, FailureReason
from .margin import NativeMargin, is_liquidated, liquidated, scenario_margin
from .portfolio import Book, PackedPortfolio, pack_book
from .risk import tile_sum
from .snapshot import Snapshot
from .tier_paths import PricedPaths, path_outcomes


class TrialRow(NamedTuple):
    """One portfolio, or one venue of it, before and after; None where an account's figures are not finite.

    `venue` is empty for all venues together. `p_liquidation` is the probability that some account of the row is
    liquidatable at the horizon, `p_path` that it is on the way there (None without paths). `accounts_liquidated` become
    liquidatable today by the change alone; `value_liquidated_usd` is their gross notional, `equity_liquidated_usd`
    their equity.
    """

    portfolio_id: str
    venue: str
    complete: bool
    accounts: int
    initial_before_usd: float | None
    initial_after_usd: float | None
    maintenance_before_usd: float | None
    maintenance_after_usd: float | None
    p_liquidation_before: float | None
    p_liquidation_after: float | None
    p_path_before: float | None
    p_path_after: float | None
    bad_debt_before_usd: float | None
    bad_debt_after_usd: float | None
    liquidatable_before: int | None
    liquidatable_after: int | None
    accounts_liquidated: tuple[str, ...]
    value_liquidated_usd: float
    equity_liquidated_usd: float


def with_rows(
    snapshots: Mapping[str, Snapshot], table: str, rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Snapshot]:
    """The snapshots with other rows of `table`, by snapshot name; one that is not named keeps its own.

    Their content hash stays that of what was read.
    """
    return {
        name: snapshot
        if name not in rows
        else replace(snapshot, tables={**snapshot.tables, table: tuple(dict(row) for row in rows[name])})
        for name, snapshot in snapshots.items()
    }


def repacked(
    before: Book,
    snapshots: Mapping[str, Snapshot],
    portfolios: Mapping[str, Sequence[str]],
    *,
    as_of: datetime,
    missing: frozenset[str] = frozenset(),
) -> Book:
    """The book of snapshots that differ from those of `before` in their tiers alone.

    Raises DataError when an account that was computed cannot be packed under the new tiers.
    """
    after, _ = pack_book(snapshots, portfolios, as_of=as_of, missing=missing)
    for old, new in zip(before.portfolios, after.portfolios, strict=True):
        lost = sorted({a.account_id for a in old.accounts} - {a.account_id for a in new.accounts})
        if lost:
            message = f"accounts cannot be computed under the recommended tiers: {', '.join(lost)}"
            raise DataError(Failure(FailureReason.CALCULATION, message, subject=old.portfolio_id))
    return after


def trial_rows(
    before: Book,
    after: Book,
    factors: Sequence[str],
    cube: Cube,
    *,
    paths: PricedPaths | None = None,
    devices: int,
) -> list[TrialRow]:
    """Every portfolio and every venue of it under both books; `cube` and `paths` are over the rows of `before`.

    Sorted by portfolio, its row over all venues first. Portfolios without a complete account have no row.
    """
    venues = sorted({info.venue for portfolio in before.portfolios for info in portfolio.accounts})
    old, new = (_figures(book.portfolios, factors, cube, paths, venues, devices) for book in (before, after))
    rows = []
    for portfolio, one, other in zip(before.portfolios, old, new, strict=True):
        if one is None or other is None:
            continue
        rows.append(_row(portfolio, "", range(len(portfolio.accounts)), one, other, place=len(venues)))
        for place, venue in enumerate(venues):
            members = [number for number, info in enumerate(portfolio.accounts) if info.venue == venue]
            if members:
                rows.append(_row(portfolio, venue, members, one, other, place=place))
    return rows


class _Member(NamedTuple):
    rows: PortfolioArrays
    native: NativeMargin
    of_venue: Bool[Array, "V A"]
    """Accounts of each venue; the last row is all accounts."""


class _Figures(NamedTuple):
    """Of one portfolio; money in each account's unit."""

    native: NativeMargin
    finite: Bool[Array, " A"]
    p_liquidation: Float[Array, " V"]
    bad_debt: Float[Array, " A"]
    """Along the paths where there are any, else at the horizon."""
    p_path: Float[Array, " V"] | None


def _outcome(member: _Member, cube: Cube) -> _Figures:
    margin = scenario_margin(
        member.rows, cube.today, cube.change, cube.shocks, cube.rows, horizon_years=cube.horizon_years
    )
    gone = liquidated(member.rows, margin)
    weights, real = cube.weights, cube.weights > 0
    total = tile_sum(weights)

    def probability(accounts: Bool[Array, " A"]) -> Array:
        event = jnp.any(gone & accounts[:, None], axis=0)
        return tile_sum(jnp.where(event, weights, 0.0)) / total

    owed = jnp.where(real[None, :], jnp.maximum(-margin.equity, 0.0), 0.0)
    finite = jnp.ones(member.native.equity.shape, bool)
    for figures in member.native:
        finite = finite & jnp.isfinite(figures)
    for in_scenarios in margin:
        # the bound of the engine: float32 holds the changes
        inside = jnp.abs(in_scenarios) < np.finfo(np.float32).max
        finite = finite & jnp.all(inside | ~real[None, :], axis=1)
    return _Figures(
        member.native, finite, lax.map(probability, member.of_venue), tile_sum(weights[None, :] * owed), None
    )


def _figures(
    portfolios: Sequence[PackedPortfolio],
    factors: Sequence[str],
    cube: Cube,
    paths: PricedPaths | None,
    venues: Sequence[str],
    devices: int,
) -> list[_Figures | None]:
    plain = Cube(cube.rows, cube.today, cube.change, cube.shocks, cube.weights, cube.horizon_years)
    out: list[_Figures | None] = [None] * len(portfolios)
    for bucket in bucketed(portfolios, factors, multiple=devices, most_buckets=_MOST_BUCKETS):
        arrays = bucket.arrays
        of_venue: Any = np.zeros((arrays.trigger.shape[0], len(venues) + 1, arrays.trigger.shape[1]), dtype=bool)
        for place, position in enumerate(bucket.members):
            for number, info in enumerate(portfolios[position].accounts):
                of_venue[place, venues.index(info.venue), number] = True
                of_venue[place, -1, number] = True
        count = len(bucket.members)
        native = native_of_bucket(arrays, cube.rows, factors=cube.shocks.shape[1], devices=devices, count=count)
        found = jax.device_get(map_bucket(_Member(arrays, native, of_venue), plain, _outcome, devices, count))
        if paths is not None:
            walked = path_outcomes(bucket, native, of_venue, paths, devices=devices)
            found = found._replace(
                finite=found.finite & walked.finite, bad_debt=walked.bad_debt, p_path=walked.p_liquidation
            )
        for place, position in enumerate(bucket.members):
            out[position] = jax.tree.map(lambda leaf, place=place: np.asarray(leaf[place]), found)
    return out


_MOST_BUCKETS = 6


class _Side(NamedTuple):
    """One row under one set of tiers."""

    initial: float | None
    maintenance: float | None
    p_liquidation: float | None
    p_path: float | None
    bad_debt: float | None
    liquidatable: tuple[str, ...] | None


def _row(
    portfolio: PackedPortfolio, venue: str, members: Sequence[int], old: _Figures, new: _Figures, *, place: int
) -> TrialRow:
    before, after = (_side(portfolio, members, figures, place) for figures in (old, new))
    liquidated_now = tuple(sorted(set(after.liquidatable or ()) - set(before.liquidatable or ())))
    lines = [n for n, line in enumerate(portfolio.lines) if line.account_id in liquidated_now]
    known = before.liquidatable is not None and after.liquidatable is not None
    left_out = portfolio.accounts_left_out
    if venue:
        left_out = [account for account in left_out if account.partition(":")[0] == venue]
    return TrialRow(
        portfolio.portfolio_id,
        venue,
        not left_out and known,
        len(members),
        before.initial,
        after.initial,
        before.maintenance,
        after.maintenance,
        before.p_liquidation,
        after.p_liquidation,
        before.p_path,
        after.p_path,
        before.bad_debt,
        after.bad_debt,
        None if before.liquidatable is None else len(before.liquidatable),
        None if after.liquidatable is None else len(after.liquidatable),
        liquidated_now if known else (),
        math.fsum(portfolio.lines[n].gross_usd for n in lines) if known else 0.0,
        math.fsum(portfolio.line_equity[n] for n in lines) if known else 0.0,
    )


def _side(portfolio: PackedPortfolio, members: Sequence[int], figures: _Figures, place: int) -> _Side:
    if not all(bool(figures.finite[number]) for number in members):
        return _Side(None, None, None, None, None, None)
    initial, maintenance, owed, gone = [], [], [], []
    for number in members:
        info = portfolio.accounts[number]
        equity, needed = float(figures.native.equity[number]), float(figures.native.maintenance[number])
        initial.append(float(figures.native.initial[number]) * info.unit_price_usd)
        maintenance.append(needed * info.unit_price_usd)
        closed = is_liquidated(
            equity,
            needed,
            trigger=info.trigger,
            at_or_below=info.at_or_below,
            needs_requirement=info.needs_requirement,
        )
        owes = max(-equity, 0.0) if closed else float(figures.bad_debt[number])
        owed.append(owes * info.unit_price_usd)
        if closed:
            gone.append(info.account_id)
    return _Side(
        math.fsum(initial),
        math.fsum(maintenance),
        float(figures.p_liquidation[place]),
        None if figures.p_path is None else float(figures.p_path[place]),
        math.fsum(owed),
        tuple(sorted(gone)),
    )
