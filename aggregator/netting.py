"""Exact netting: everything of an account that is linear in one row of the cube becomes one coefficient.

A requirement by notional tiers is `sum step_k (N - f_k)+ + jump_k [N > f_k]`. Over a given set of scenarios the
notional N of a position moves between a least and a largest value; a floor below the least is always passed and one
above the largest never, so both are linear, whatever the rates do from tier to tier. Only a floor in between needs the
bracket in every scenario: that floor alone stays as a **hinge**. So what is netted is exact for this set of scenarios,
and has to be netted anew for another one.

Everything is in USD; today's figures are float64, what scenarios add to them is float32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .book_columns import BookColumns, Legs

# Changes of rows are float32: a floor this close (relative) to the range of the notional counts as inside.
_MARGIN = 1e-5
# Above it sums of float32 over the accounts of a portfolio could overflow.
_LARGEST = 1e34
_LEAST_NORMAL = np.finfo(np.float32).tiny


class Rows(NamedTuple):
    """Netted coefficients [rows], sorted by account and row of the cube: USD per unit of change of the row."""

    account: np.ndarray
    row: np.ndarray
    market: np.ndarray
    headroom: np.ndarray


class Hinges(NamedTuple):
    """Requirements [hinges] that depend on a floor, already times the trigger, sorted by account.

    `slope * max(distance + n dN - f dS, 0) + jump * (1 + dS) * [distance + n dN - f dS > 0]` less the same today, with
    dN, dS the changes of the notional's and the settlement asset's rows; `distance`, n, f and the jump in USD today.
    """

    account: np.ndarray
    notional_row: np.ndarray
    settlement_row: np.ndarray
    notional: np.ndarray
    floor: np.ndarray
    distance: np.ndarray
    slope: np.ndarray
    jump: np.ndarray


class NettedBook(NamedTuple):
    """A book for one set of scenarios: rows and hinges, and every account's figures today in USD.

    `headroom` is equity as the venue counts it less trigger times requirement; `limit` is the change of it below which
    the venue liquidates (-inf where it never does), float32, rounded so that a float32 change decides as in float64.
    An account that is not `finite` has a figure that is no finite number, today or in float32 in some scenario: it has
    no rows and no hinges, and its figures mean nothing.
    """

    rows: Rows
    hinges: Hinges
    equity: np.ndarray
    headroom: np.ndarray
    requirement: np.ndarray
    limit: np.ndarray
    finite: np.ndarray


def netted_book(book: BookColumns, today: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> NettedBook:
    """The book netted for the scenarios in which the rows of the cube change by `lowest` to `highest` [rows].

    `today` are the rows' values. Legs come in an order of their own content (`book_columns`), so neither the order of
    the tables nor the other portfolios change a bit of a sum.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found at the end
        return _netted(book, today, lowest, highest)


def _netted(book: BookColumns, today: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> NettedBook:
    legs, accounts = book.legs, book.accounts
    slope, constant, hinges, at_hinges = _tiers(book, lowest, highest)
    requirement = legs.requirement + np.bincount(book.tiers.notional_leg, weights=slope, minlength=len(legs.row))
    requirement += np.bincount(book.tiers.settlement_leg, weights=constant, minlength=len(legs.row))
    trigger = accounts.trigger[legs.account]
    headroom = legs.equity - trigger * requirement
    count, value = len(accounts.trigger), today[legs.row]

    def of_accounts(account: np.ndarray, amount: np.ndarray) -> np.ndarray:
        return np.bincount(account, weights=amount, minlength=count)

    required = of_accounts(legs.account, requirement * value)
    of_hinges = of_accounts(hinges.account, at_hinges)
    room = of_accounts(legs.account, headroom * value) - of_hinges
    # A hinge carries its account's trigger.
    required = required + of_hinges / np.where(accounts.trigger > 0, accounts.trigger, 1.0)
    rows = _summed(legs, headroom)
    equity = of_accounts(legs.account, legs.market * value)
    # At least 1, so that a coefficient beyond float32 counts where its row stands still: there it would be no number.
    most = np.maximum(np.maximum(np.abs(lowest), np.abs(highest)), 1.0)
    size = of_accounts(rows.account, (np.abs(rows.market) + np.abs(rows.headroom)) * most[rows.row])
    size = size + of_accounts(hinges.account, _largest(hinges, most)) + np.abs(equity) + np.abs(room) + np.abs(required)
    # Not "at or above": NaN is not below the largest number either.
    finite = size < _LARGEST
    if not finite.all():
        rows = Rows(*(column[finite[rows.account]] for column in rows))
        hinges = Hinges(*(column[finite[hinges.account]] for column in hinges))
        equity, room, required = (np.where(finite, figure, 0.0) for figure in (equity, room, required))
    return NettedBook(rows, hinges, equity, room, required, _limits(book, room, required), finite)


def _largest(hinges: Hinges, most: np.ndarray) -> np.ndarray:
    """A bound of what each hinge computes in any scenario."""
    moved = hinges.notional * most[hinges.notional_row] + np.abs(hinges.floor) * most[hinges.settlement_row]
    settled = 1.0 + most[hinges.settlement_row]
    return (1.0 + np.abs(hinges.slope)) * (moved + np.abs(hinges.distance)) + np.abs(hinges.jump) * settled


def _summed(legs: Legs, headroom: np.ndarray) -> Rows:
    """One row for each account and row of the cube but the constant; those that cancel are left out."""
    if not len(legs.account):
        none = np.zeros(0)
        return Rows(legs.account, legs.row, none, none)
    differs = (legs.account[1:] != legs.account[:-1]) | (legs.row[1:] != legs.row[:-1])
    first = np.flatnonzero(np.concatenate([[True], differs]))
    market, room = np.add.reduceat(legs.market, first), np.add.reduceat(headroom, first)
    account, row = legs.account[first], legs.row[first]
    there = (row > 0) & ((market != 0) | (room != 0))
    return Rows(account[there], row[there], market[there], room[there])


def _tiers(
    book: BookColumns, lowest: np.ndarray, highest: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Hinges, np.ndarray]:
    """What every entry requires linearly, per unit of its notional's row and of its settlement asset's; the hinges, and
    what each hinge requires today.
    """
    entries, tables = book.tiers, book.tables
    table, usd = entries.table, entries.settlement_usd
    low = entries.notional * (1.0 + lowest[entries.ratio_row] - _MARGIN)
    high = entries.notional * (1.0 + highest[entries.ratio_row] + _MARGIN)
    # Floors ascend, so those passed are the first ones: their sums are kept by how many they are.
    real = (tables.step != 0) | (tables.jump != 0)
    floor = np.where(real, tables.floor, np.inf)
    passed, reached = _floors_below(floor, table, low), _floors_below(floor, table, high)
    one_more = np.zeros((len(floor), 1))
    steps = np.concatenate([one_more, np.cumsum(np.where(real, tables.step, 0.0), axis=1)], axis=1)
    at_floor = np.where(real, tables.jump - tables.step * tables.floor, 0.0)
    constants = np.concatenate([one_more, np.cumsum(at_floor, axis=1)], axis=1)
    hinges, at_hinges = _hinges(book, floor, passed, reached)
    return steps[table, passed] * entries.notional * usd, constants[table, passed] * usd, hinges, at_hinges


def _floors_below(floor: np.ndarray, table: np.ndarray, value: np.ndarray) -> np.ndarray:
    """How many leading tiers of its table each value is above, those without effect among them included."""
    out = np.zeros(len(table), np.int64)
    for tier in range(floor.shape[1]):
        out[value > floor[table, tier]] = tier + 1
    return out


def _hinges(book: BookColumns, floor: np.ndarray, passed: np.ndarray, reached: np.ndarray) -> tuple[Hinges, np.ndarray]:
    """The floors between, and what each requires today; in the order of the entries and of their tiers."""
    entries, tables = book.tiers, book.tables
    some = np.flatnonzero(reached > passed)
    tier = np.arange(floor.shape[1])
    number, of_tier = np.nonzero(
        (tier >= passed[some, None]) & (tier < reached[some, None]) & np.isfinite(floor[entries.table[some]])
    )
    entry = some[number]
    table, usd = entries.table[entry], entries.settlement_usd[entry]
    trigger = book.accounts.trigger[entries.account[entry]]
    n, f = entries.notional[entry] * usd, tables.floor[table, of_tier] * usd
    hinges = Hinges(
        entries.account[entry],
        entries.notional_row[entry],
        entries.settlement_row[entry],
        n,
        f,
        n - f,
        trigger * tables.step[table, of_tier],
        trigger * tables.jump[table, of_tier] * usd,
    )
    at_hinges = hinges.slope * np.maximum(hinges.distance, 0.0) + np.where(hinges.distance > 0, hinges.jump, 0.0)
    return hinges, at_hinges


def _limits(book: BookColumns, room: np.ndarray, requirement: np.ndarray) -> np.ndarray:
    """The float32 number below which a change of the headroom liquidates; see `margin.is_liquidated`."""
    accounts = book.accounts
    required = requirement > 0
    below = _rounded_up(-room)
    at_or_below = np.nextafter(-_rounded_up(room), np.float32(np.inf), dtype=np.float32)
    # Devices take numbers below the least normal one for zero: a change of zero has to be below the limit.
    at_or_below = np.where((at_or_below > 0) & (at_or_below < _LEAST_NORMAL), _LEAST_NORMAL, at_or_below)
    limit = np.where(required & accounts.at_or_below, at_or_below, below)
    return np.where(~required & accounts.needs_requirement, np.float32(-np.inf), limit).astype(np.float32)


def _rounded_up(values: np.ndarray) -> np.ndarray:
    """The smallest float32 that is not below each float64."""
    single = values.astype(np.float32)
    return np.where(single < values, np.nextafter(single, np.float32(np.inf), dtype=np.float32), single)
