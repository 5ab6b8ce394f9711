"""Netted requirements against the bracket of every scenario, for whatever tables of tiers."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from aggregator.book_columns import Accounts, BookColumns, Legs, TierEntries
from aggregator.book_tiers import TierTables
from aggregator.cube import CubeBuilder
from aggregator.netted_shards import buckets
from aggregator.netting import Hinges, NettedBook, Rows, netted_book
from aggregator.rules.tiered_notional import pack_tiers

AS_OF = datetime(2026, 1, 1, tzinfo=UTC)
ROUNDING = 1e-12  # of the sum of what is added
ROWS = 4  # of the cube: the constant, a settlement asset, and two notionals


def book_of(
    entries: list[tuple[int, float, int]], tables: list[tuple[list[float], list[float], list[float]]]
) -> BookColumns:
    """Two accounts with an unnetted leg each; `entries` are (account, notional, table) by account, tables floors, rates
    and deductions. An entry has two legs of its own without value.
    """
    packed = [
        pack_tiers(floors, rates, deductions, rates, initial_is_integral=True) for floors, rates, deductions in tables
    ]
    width = max(len(table.floor) for table in packed)

    def padded(name: str) -> np.ndarray:
        return np.array(
            [np.pad(getattr(table, name), (0, width - len(table.floor)), mode="constant") for table in packed]
        )

    account = np.array([entry[0] for entry in entries], np.int64)
    row = 2 + np.arange(len(entries)) % 2
    names = np.array(["a", "b"], object)
    zeros, ones = np.zeros(len(entries)), np.ones(len(entries), np.int64)
    unsorted = Legs(
        np.concatenate([[0, 1], account, account]),
        np.concatenate([[2, 3], row, ones]),
        np.concatenate([[7.0, -3.0], zeros, zeros]),
        np.concatenate([[5.0, -3.0], zeros, zeros]),
        np.concatenate([[0.25, 0.0], zeros, zeros]),
    )
    order = np.lexsort((unsorted.row, unsorted.account))
    place = np.argsort(order)
    return BookColumns(
        accounts=Accounts(
            names, names, names, names, np.array([0, 0]), np.array([1.0, 1.05]), np.zeros(2, bool), np.zeros(2, bool)
        ),
        legs=Legs(*(column[order] for column in unsorted)),
        tiers=TierEntries(
            account,
            row,
            ones,
            row,
            np.array([entry[1] for entry in entries]),
            np.ones(len(entries)),
            np.array([entry[2] for entry in entries], np.int64),
            place[2 : 2 + len(entries)],
            place[2 + len(entries) :],
        ),
        tables=TierTables(padded("floor"), padded("step"), padded("jump")),
        cube=CubeBuilder(),
        not_covered=pa.table({}),
    )


def without_entries() -> BookColumns:
    return book_of([], [([0.0], [0.01], [0.0])])


def requirement(notional: float, table: tuple[list[float], list[float], list[float]]) -> float:
    """By the rows as a venue states them: rate of the tier of the notional, less its deduction."""
    if notional == 0:
        return 0.0
    tier = max(k for k, floor in enumerate(table[0]) if floor < notional)
    return notional * table[1][tier] - table[2][tier]


def hinge_requirements(hinges: Hinges, change: np.ndarray) -> np.ndarray:
    out = np.zeros(2)
    for number in range(len(hinges.account)):
        dn, ds = change[hinges.notional_row[number]], change[hinges.settlement_row[number]]
        room = hinges.distance[number] + hinges.notional[number] * dn - hinges.floor[number] * ds
        value = hinges.slope[number] * max(room, 0.0) + (hinges.jump[number] * (1 + ds) if room > 0 else 0.0)
        out[hinges.account[number]] += value
    return out


def headroom_in(netted: NettedBook, change: np.ndarray) -> np.ndarray:
    """Headroom of both accounts when the rows change, from the netted book alone."""
    today = hinge_requirements(netted.hinges, np.zeros(ROWS))
    linear = np.bincount(netted.rows.account, netted.rows.headroom * change[netted.rows.row], minlength=2)
    return netted.headroom + linear - (hinge_requirements(netted.hinges, change) - today)


@st.composite
def tables_of_tiers(draw: st.DrawFn) -> tuple[list[float], list[float], list[float]]:
    """Floors that ascend from 0, rates that rise, fall or repeat, deductions that continue the tier below or do not."""
    count = draw(st.integers(1, 5))
    floors = [0.0, *sorted(draw(st.lists(st.integers(1, 200), min_size=count - 1, max_size=count - 1, unique=True)))]
    floors = [floor * 1000.0 for floor in floors]
    rates = [draw(st.integers(1, 100)) / 200 for _ in floors]
    deductions = [0.0]
    for k in range(1, len(floors)):
        continues = deductions[-1] + floors[k] * (rates[k] - rates[k - 1])
        deductions.append(continues if draw(st.booleans()) else draw(st.integers(0, 500)) * 1.0)
    return floors, rates, deductions


@given(
    tables=st.lists(tables_of_tiers(), min_size=1, max_size=3),
    sizes=st.lists(st.tuples(st.integers(0, 1), st.floats(0.0, 3e5), st.integers(0, 9)), min_size=1, max_size=6),
    moves=st.lists(st.tuples(*(st.floats(-0.4, 0.6) for _ in range(2))), min_size=1, max_size=6),
    peg=st.floats(-0.2, 0.2),
)
def test_netted_is_what_the_brackets_require(
    tables: list[tuple[list[float], list[float], list[float]]],
    sizes: list[tuple[int, float, int]],
    moves: list[tuple[float, float]],
    peg: float,
) -> None:
    entries = sorted((account, notional, table % len(tables)) for account, notional, table in sizes)
    book = book_of(entries, tables)
    # The notional in the settlement asset moves by the ratio; in USD with the peg as well: here the peg stays.
    changes = np.array([[0.0, 0.0, *move] for move in moves])
    changes = np.vstack([np.zeros(ROWS), changes])
    netted = netted_book(book, np.ones(ROWS), changes.min(axis=0), changes.max(axis=0))
    for change in changes:
        expected = np.array([5.0 * (1 + change[2]), -3.0 * (1 + change[3])])
        expected -= book.accounts.trigger * np.array([0.25 * (1 + change[2]), 0.0])
        size = np.abs(expected) + 1.0
        doubtful = np.zeros(2)
        for number, (account, notional, table) in enumerate(entries):
            moved = notional * (1 + change[2 + number % 2])
            needed = book.accounts.trigger[account] * requirement(moved, tables[table])
            expected[account] -= needed
            size[account] += abs(needed) + moved
            # At a floor that jumps rounding decides on which side the notional lies.
            near = [abs(moved - f) < 1e-9 * (f + 1) for f in tables[table][0][1:]]
            doubtful[account] += 1e6 if any(near) else 0.0
        np.testing.assert_array_less(
            np.abs(headroom_in(netted, change) - expected), ROUNDING * size * 10 + doubtful + 1e-9
        )


def test_rows_that_cancel_and_the_constant_are_left_out() -> None:
    book = without_entries()
    legs = Legs(
        np.array([0, 0, 0, 1]), np.array([0, 2, 2, 3]), np.array([9.0, 4.0, -4.0, 1.0]), np.zeros(4), np.zeros(4)
    )
    netted = netted_book(
        BookColumns(book.accounts, legs, book.tiers, book.tables, book.cube, book.not_covered),
        np.ones(ROWS),
        np.zeros(ROWS),
        np.zeros(ROWS),
    )
    assert netted.rows.row.tolist() == [3]
    assert netted.equity.tolist() == [9.0, 1.0]


def test_a_floor_out_of_reach_is_no_hinge_and_one_in_reach_is() -> None:
    table = ([0.0, 50_000.0], [0.01, 0.02], [0.0, 500.0])
    book = book_of([(0, 40_000.0, 0)], [table])
    still = np.zeros(ROWS)
    assert len(netted_book(book, np.ones(ROWS), still, still + 0.2).hinges.account) == 0
    assert len(netted_book(book, np.ones(ROWS), still, still + 0.3).hinges.account) == 1


def test_limits_decide_in_float32_as_in_float64() -> None:
    book = without_entries()
    still = np.zeros(ROWS)
    for at_or_below in (False, True):
        accounts = book.accounts._replace(at_or_below=np.array([at_or_below] * 2))
        for equity in (0.1, 0.5, 123456.789, -0.1):
            legs = Legs(np.array([0]), np.array([0]), np.array([0.0]), np.array([equity]), np.array([1e-3]))
            netted = netted_book(
                BookColumns(accounts, legs, book.tiers, book.tables, book.cube, book.not_covered),
                np.ones(ROWS),
                still,
                still,
            )
            room = netted.headroom[0]
            near = np.float32(-room)
            for change in (near, np.nextafter(near, np.float32(-1e9)), np.nextafter(near, np.float32(1e9))):
                exact = room + float(change) <= 0 if at_or_below else room + float(change) < 0
                assert (change < netted.limit[0]) == exact


def test_equity_that_is_exactly_the_requirement_is_at_it() -> None:
    """A limit below the least normal number would be zero on a device, and no change of zero is below zero."""
    book = without_entries()
    accounts = book.accounts._replace(at_or_below=np.array([True, False]))
    legs = Legs(np.array([0, 1]), np.array([0, 0]), np.zeros(2), np.array([0.5, 0.5]), np.array([0.5, 0.5 / 1.05]))
    netted = netted_book(
        BookColumns(accounts, legs, book.tiers, book.tables, book.cube, book.not_covered),
        np.ones(ROWS),
        np.zeros(ROWS),
        np.zeros(ROWS),
    )
    assert netted.headroom.tolist() == [0.0, 0.0]
    assert netted.limit.tolist() == [np.finfo(np.float32).tiny, 0.0]


def test_portfolios_of_any_number_of_accounts_have_a_slot_for_each() -> None:
    for held, slots in ((1, 8), (8, 8), (9, 64), (512, 512), (513, 4096)):
        zeros, none = np.zeros(held), np.zeros(0, np.int64)
        netted = NettedBook(
            Rows(none, none, np.zeros(0), np.zeros(0)),
            Hinges(none, none, none, *(np.zeros(0) for _ in range(5))),
            zeros + 1.0,
            zeros,
            zeros,
            zeros.astype(np.float32),
            np.ones(held, bool),
        )
        (bucket,) = buckets(netted, np.zeros(held, np.int64), devices=1)
        assert bucket.arrays.first.shape == (1, 16, slots)
        assert bucket.arrays.accounts[0, 0] == held
        assert np.count_nonzero(bucket.arrays.equity) == held
