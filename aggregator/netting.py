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
    """

    rows: Rows
    hinges: Hinges
    equity: np.ndarray
    headroom: np.ndarray
    requirement: np.ndarray
    limit: np.ndarray


def netted_book(book: BookColumns, today: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> NettedBook:
    """The book netted for the scenarios in which the rows of the cube change by `lowest` to `highest` [rows].

    `today` are the rows' values. Figures that are added are first sorted by what they are, so that neither the order of
    the tables nor the other portfolios change a bit.
    """
    linear, hinges, at_hinges = _tiers(book, lowest, highest)
    legs = Legs(*(np.concatenate(parts) for parts in zip(book.legs, linear, strict=True)))
    trigger = book.accounts.trigger[legs.account]
    headroom = legs.equity - trigger * legs.requirement
    order = np.lexsort((headroom, legs.market, legs.row, legs.account))
    legs, headroom = Legs(*(column[order] for column in legs)), headroom[order]
    count, value = len(book.accounts.trigger), today[legs.row]

    def of_accounts(account: np.ndarray, amount: np.ndarray) -> np.ndarray:
        return np.bincount(account, weights=amount, minlength=count)

    requirement = of_accounts(legs.account, legs.requirement * value)
    room = of_accounts(legs.account, headroom * value)
    by_order = np.lexsort((at_hinges, hinges.account))
    of_hinges = of_accounts(hinges.account[by_order], at_hinges[by_order])
    room = room - of_hinges
    # A hinge carries its account's trigger.
    requirement = requirement + of_hinges / np.where(book.accounts.trigger > 0, book.accounts.trigger, 1.0)
    rows = _summed(legs, headroom)
    limit = _limits(book, room, requirement)
    return NettedBook(rows, hinges, of_accounts(legs.account, legs.market * value), room, requirement, limit)


def _summed(legs: Legs, headroom: np.ndarray) -> Rows:
    """One row for each account and row of the cube but the constant; those that cancel are left out."""
    moving = legs.row > 0
    account, row = legs.account[moving], legs.row[moving]
    first = np.flatnonzero(np.concatenate([[True], (account[1:] != account[:-1]) | (row[1:] != row[:-1])]))
    if not len(account):
        none = np.zeros(0)
        return Rows(account, row, none, none)
    market = np.add.reduceat(legs.market[moving], first)
    room = np.add.reduceat(headroom[moving], first)
    there = (market != 0) | (room != 0)
    return Rows(account[first][there], row[first][there], market[there], room[there])


def _tiers(book: BookColumns, lowest: np.ndarray, highest: np.ndarray) -> tuple[Legs, Hinges, np.ndarray]:
    """(linear part as requirement legs, hinges, what each hinge requires today)."""
    entries, tables = book.tiers, book.tables
    step, jump = tables.step[entries.table], tables.jump[entries.table]
    floor, notional = tables.floor[entries.table], entries.notional[:, None]
    real = (step != 0) | (jump != 0)
    low = notional * (1.0 + lowest[entries.ratio_row] - _MARGIN)[:, None]
    high = notional * (1.0 + highest[entries.ratio_row] + _MARGIN)[:, None]
    passed = real & (low > floor)
    between = real & ~passed & (high > floor)
    usd = entries.settlement_usd
    slope = np.sum(np.where(passed, step, 0.0), axis=1)
    constant = np.sum(np.where(passed, jump - step * floor, 0.0), axis=1)
    zero = np.zeros(len(usd))
    linear = Legs(
        np.concatenate([entries.account] * 2),
        np.concatenate([entries.notional_row, entries.settlement_row]),
        np.concatenate([zero] * 2),
        np.concatenate([zero] * 2),
        np.concatenate([slope * entries.notional * usd, constant * usd]),
    )
    entry, tier = np.nonzero(between)
    trigger = book.accounts.trigger[entries.account[entry]]
    n, f = entries.notional[entry] * usd[entry], floor[entry, tier] * usd[entry]
    hinges = Hinges(
        entries.account[entry],
        entries.notional_row[entry],
        entries.settlement_row[entry],
        n,
        f,
        n - f,
        trigger * step[entry, tier],
        trigger * jump[entry, tier] * usd[entry],
    )
    order = np.lexsort((*hinges[::-1][:-1], hinges.account))
    hinges = Hinges(*(column[order] for column in hinges))
    at_hinges = hinges.slope * np.maximum(hinges.distance, 0.0) + np.where(hinges.distance > 0, hinges.jump, 0.0)
    return linear, hinges, at_hinges


def _limits(book: BookColumns, room: np.ndarray, requirement: np.ndarray) -> np.ndarray:
    """The float32 number below which a change of the headroom liquidates; see `margin.is_liquidated`."""
    accounts = book.accounts
    required = requirement > 0
    below = _rounded_up(-room)
    at_or_below = np.nextafter(-_rounded_up(room), np.float32(np.inf), dtype=np.float32)
    limit = np.where(required & accounts.at_or_below, at_or_below, below)
    return np.where(~required & accounts.needs_requirement, np.float32(-np.inf), limit).astype(np.float32)


def _rounded_up(values: np.ndarray) -> np.ndarray:
    """The smallest float32 that is not below each float64."""
    single = values.astype(np.float32)
    return np.where(single < values, np.nextafter(single, np.float32(np.inf), dtype=np.float32), single)
