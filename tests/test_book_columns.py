"""Books by columns: the same exposures as the engine's packer, account by account, and what is refused by name."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from aggregator.book_columns import BookColumns, book_columns
from aggregator.errors import ConfigurationError, DataError
from aggregator.netting import netted_book
from tests import margin_twin
from tests.engine_accounts import EVERY_KIND, AccountBook, book_of, position
from tests.engine_book import FACTORS, snapshot_of
from tests.engine_markets import AS_OF
from tests.netted_books import alone, arrow_tables

# The twin adds in another order: a rounding of the gross value, not of the difference.
OF_GROSS = 1e-11

COVERED = {"coin:margined", "coin:options", "lend:plain", "lend:emode", "wallet:spot"}
COVERED |= {f"perps:{kind}" for kind in ("cross", "rates", "thin", "isolated", "zero")}


@functools.cache
def every_kind() -> AccountBook:
    return book_of(EVERY_KIND, seed=3)


@functools.cache
def columns() -> BookColumns:
    book = every_kind()
    return book_columns(arrow_tables(book.tables), alone(book), as_of=AS_OF, known=frozenset(FACTORS))


def changed(**tables: Any) -> dict[str, pa.Table]:
    """The tables of the book with some rows added."""
    rows = {name: list(values) for name, values in every_kind().tables.items()}
    for name, more in tables.items():
        rows[name] = rows.get(name, []) + more
    return arrow_tables(rows)


def reasons(found: BookColumns) -> dict[str, str]:
    return {row["account_id"]: row["reason"] for row in found.not_covered.to_pylist()}


def test_every_kind_is_covered_or_refused_with_its_reason() -> None:
    kinds = {account_id.rsplit(":", 2)[0] for account_id in columns().accounts.account_id}
    assert kinds == COVERED
    refused = {account_id.rsplit(":", 2)[0]: reason for account_id, reason in reasons(columns()).items()}
    assert set(refused) == {kind for kinds in EVERY_KIND.values() for kind in kinds} - COVERED
    assert refused["options:grid"] == "the rule form price_vol_grid"
    assert refused["multi:usd"] == "balances netted with profits by asset"


def test_figures_today_are_those_of_the_slow_twin() -> None:
    book = columns()
    today = np.asarray(book.cube.build(FACTORS).today())
    no_move = np.zeros(len(today))
    netted = netted_book(book, today, no_move, no_move)
    world = margin_twin.World(
        snapshot_of(every_kind().tables).tables, FACTORS, np.zeros((1, len(FACTORS))), as_of=AS_OF, horizon_days=0.0
    )
    for number, account_id in enumerate(book.accounts.account_id):
        twin = margin_twin.account_twin(world, account_id)
        trigger = book.accounts.trigger[number]
        gross = sum(abs(values[0]) for values in twin.line_values.values()) + 1.0
        market = sum(values[0] for values in twin.line_values.values())
        room = (twin.equity[0] - trigger * twin.maintenance[0]) * twin.unit_price
        # Profit is value less cost, both far above it.
        legs = np.abs(book.legs.market[book.legs.account == number] * today[book.legs.row[book.legs.account == number]])
        scale = max(gross, float(legs.sum()))
        assert abs(netted.equity[number] - market) <= OF_GROSS * scale, account_id
        assert abs(netted.headroom[number] - room) <= OF_GROSS * scale, account_id
        assert abs(netted.requirement[number] - twin.maintenance[0] * twin.unit_price) <= OF_GROSS * scale, account_id


def test_the_order_of_the_rows_changes_nothing() -> None:
    book = every_kind()
    tables = arrow_tables(book.tables)
    backwards = {name: table.take(pa.array(range(table.num_rows), pa.int64())[::-1]) for name, table in tables.items()}
    other = book_columns(backwards, alone(book), as_of=AS_OF, known=frozenset(FACTORS))
    assert list(other.accounts.account_id) == list(columns().accounts.account_id)
    zeros = np.zeros(500)
    a, b = (
        netted_book(c, np.asarray(c.cube.build(FACTORS).today()), zeros, zeros) for c in (columns(), other)
    )  # fmt: skip
    for name in ("equity", "headroom", "requirement", "limit"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
    assert [column.tobytes() for column in a.rows] == [column.tobytes() for column in b.rows]


def test_one_account_that_is_not_covered_takes_its_portfolio_along() -> None:
    book = every_kind()
    ids = alone(book)["account_id"].to_pylist()
    together = pa.table({"portfolio_id": ["all"] * len(ids), "account_id": ids})
    found = book_columns(arrow_tables(book.tables), together, as_of=AS_OF)
    assert len(found.accounts.account_id) == 0
    assert len(found.not_covered) == len(reasons(columns()))


def test_rows_that_cannot_be_trusted_are_refused_by_account() -> None:
    (cross,) = (a for a in columns().accounts.account_id if a.startswith("perps:cross:n1"))
    unknown = book_columns(
        changed(positions=[position(cross, "perps:NO-SUCH", 1.0, entry_price="1")]), alone(every_kind()), as_of=AS_OF
    )
    assert reasons(unknown)[cross] == "market 'perps:NO-SUCH' is not known"
    fewer = frozenset(FACTORS) - {"price:ETH"}
    found = book_columns(arrow_tables(every_kind().tables), alone(every_kind()), as_of=AS_OF, known=fewer)
    assert "needs the factor price:ETH, which nothing moves" in reasons(found)[cross]


def test_balances_twice_or_negative_are_refused() -> None:
    tables = arrow_tables(every_kind().tables)
    balances = tables["balances"]
    first = balances["account_id"][0].as_py()
    twice = tables | {"balances": pa.concat_tables([balances, balances.slice(0, 1)])}
    found = book_columns(twice, alone(every_kind()), as_of=AS_OF)
    assert reasons(found)[first] == "a row twice" or first not in columns().accounts.account_id
    quantity = balances.schema.get_field_index("quantity")
    minus = pc.negate(balances["quantity"])
    negative = tables | {"balances": balances.set_column(quantity, balances.schema.field(quantity), minus)}
    found = book_columns(negative, alone(every_kind()), as_of=AS_OF)
    assert "a negative balance" in reasons(found).values()


def test_maps_and_tables_of_the_wrong_shape_are_errors() -> None:
    tables, mapping = arrow_tables(every_kind().tables), alone(every_kind())
    with pytest.raises(ConfigurationError, match="in no portfolio"):
        book_columns(tables, mapping.slice(1), as_of=AS_OF)
    with pytest.raises(ConfigurationError, match="two portfolios"):
        book_columns(tables, pa.concat_tables([mapping, mapping.slice(0, 1)]), as_of=AS_OF)
    with pytest.raises(DataError, match="missing columns"):
        book_columns(tables | {"positions": tables["positions"].drop_columns(["quantity"])}, mapping, as_of=AS_OF)


def test_maps_without_an_id_are_errors() -> None:
    tables, mapping = arrow_tables(every_kind().tables), alone(every_kind())
    ids = mapping["account_id"].to_pylist()
    for column in ("portfolio_id", "account_id"):
        for missing in (None, ""):
            lacking = mapping.set_column(
                mapping.column_names.index(column), column, pa.array([*ids[:-1], missing], pa.string())
            )
            with pytest.raises(ConfigurationError, match=f"{column} is missing in some row"):
                book_columns(tables, lacking, as_of=AS_OF)
    with pytest.raises(ConfigurationError, match="no column portfolio_id"):
        book_columns(tables, mapping.rename_columns(["portfolio", "account_id"]), as_of=AS_OF)
    numbered = pa.table({"portfolio_id": list(range(len(ids))), "account_id": ids})
    with pytest.raises(ConfigurationError, match="portfolio_id is int64; expected texts"):
        book_columns(tables, numbered, as_of=AS_OF)
    coded = pa.table({name: mapping[name].combine_chunks().dictionary_encode() for name in mapping.column_names})
    assert book_columns(tables, coded, as_of=AS_OF).accounts.account_id.tolist() == sorted(
        columns().accounts.account_id
    )


def with_column(table: str, column: str, value: Any) -> dict[str, pa.Table]:
    """The tables of the book with one value in all rows of a column."""
    tables = arrow_tables(every_kind().tables)
    found = tables[table]
    field = found.schema.field(column)
    place = found.schema.get_field_index(column)
    repeated = pa.array([value] * found.num_rows).cast(field.type)
    return tables | {table: found.set_column(place, field, repeated)}


@pytest.mark.parametrize(
    ("table", "column", "value", "reason"),
    [
        ("instruments", "strike", None, "the strike of"),
        ("instruments", "strike", "-1", "the strike of"),
        ("instruments", "option_type", None, "its type None"),
        ("instruments", "option_type", "CALL", "its type 'CALL'"),
        ("instruments", "expiry", None, "is None, its type"),
        ("instruments", "payoff", "quanto", "is 'quanto'"),
        ("instruments", "contract_size", "0", "the contract size of"),
        ("balances", "side", "debt", "neither an asset nor a liability"),
    ],
)
def test_terms_that_say_nothing_are_refused_by_account(table: str, column: str, value: Any, reason: str) -> None:
    found = reasons(book_columns(with_column(table, column, value), alone(every_kind()), as_of=AS_OF))
    concerned = "coin:options" if table == "instruments" else "perps:cross"
    assert any(reason in text for account, text in found.items() if account.startswith(concerned)), found


@pytest.mark.parametrize("table", ["assets", "instruments", "marks"])
def test_rows_of_shared_tables_that_stand_twice_are_errors(table: str) -> None:
    tables = arrow_tables(every_kind().tables)
    twice = tables | {table: pa.concat_tables([tables[table], tables[table]])}
    with pytest.raises(ConfigurationError, match=f"{table}: .*stands? twice"):
        book_columns(twice, alone(every_kind()), as_of=AS_OF)


def test_a_table_that_is_not_there_is_named() -> None:
    tables = arrow_tables(every_kind().tables)
    del tables["marks"]
    with pytest.raises(ConfigurationError, match="no table marks"):
        book_columns(tables, alone(every_kind()), as_of=AS_OF)


def test_an_account_that_was_not_read_is_named() -> None:
    mapping = pa.concat_tables([alone(every_kind()), pa.table({"portfolio_id": ["x"], "account_id": ["gone"]})])
    found = book_columns(arrow_tables(every_kind().tables), mapping, as_of=AS_OF)
    assert reasons(found)["gone"] == "no account of this id"
