"""Rows under construction: what a failed block added is taken back, a refused row costs nobody else anything."""

from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from adapters.amounts import FieldError, decimal_at, parse_json
from adapters.rows import Rows
from aggregator.errors import Failure, FailureReason
from aggregator.schema.canonical import CANONICAL
from aggregator.schema.casting import table_from_rows


def balance(rows: Rows, account: str, asset: str = "USDC", **values: Any) -> None:
    rows.add(
        "balances",
        **{
            "account_id": account,
            "asset_id": asset,
            "side": "asset",
            "quantity": Decimal(1),
            "collateral_enabled": True,
        }
        | values,
    )


def test_an_empty_reading_has_every_canonical_table_but_failures() -> None:
    batches = Rows("binance").batches()
    assert set(batches) == set(CANONICAL) - {"failures"}
    for name, table in batches.items():
        assert table.num_rows == 0
        assert table.schema.equals(CANONICAL[name], check_metadata=True)


def test_a_row_becomes_a_row_and_an_absent_column_is_null() -> None:
    rows = Rows("binance")
    balance(rows, "binance:east", quantity=Decimal("0.1"))
    (row,) = rows.batches()["balances"].to_pylist()
    assert row["quantity"] == Decimal("0.1")
    assert row["locked"] is None
    assert not rows.failures


def test_a_failure_carries_the_venue() -> None:
    rows = Rows("binance")
    rows.fail(FailureReason.STALE, "too old", payload="a.json", path="x", subject="BTC", account_id="binance:east")
    assert rows.failures == [Failure(FailureReason.STALE, "too old", "binance", "a.json", "x", "BTC", "binance:east")]


def test_a_guard_takes_back_what_its_block_added_to_every_table_and_nothing_else() -> None:
    rows = Rows("binance")
    balance(rows, "before")
    with rows.guard("account.json", subject="BTC", account_id="binance:east"):
        balance(rows, "inside")
        rows.add("assets", asset_id="BTC", symbol="BTC", multiplier=Decimal(1))
        decimal_at({"free": "many"}, "free", "assets[1]")
    balance(rows, "after")
    batches = rows.batches()
    assert batches["balances"].column("account_id").to_pylist() == ["before", "after"]
    assert batches["assets"].num_rows == 0
    (failure,) = rows.failures
    assert failure == Failure(
        FailureReason.NOT_A_NUMBER,
        "'many' is not a number",
        "binance",
        "account.json",
        "assets[1].free",
        "BTC",
        "binance:east",
    )


def test_a_guard_that_holds_keeps_its_rows_and_adds_no_failure() -> None:
    rows = Rows("binance")
    with rows.guard("account.json"):
        balance(rows, "inside")
    assert len(rows.rows["balances"]) == 1
    assert not rows.failures


def test_guards_nest_and_the_inner_one_takes_back_its_own_rows_only() -> None:
    rows = Rows("binance")
    with rows.guard("outer.json"):
        balance(rows, "outer")
        with rows.guard("inner.json"):
            balance(rows, "inner")
            raise FieldError("x", FailureReason.OUT_OF_RANGE, "too large")
        balance(rows, "outer again")
    assert [row["account_id"] for row in rows.rows["balances"]] == ["outer", "outer again"]
    assert [failure.payload for failure in rows.failures] == ["inner.json"]


def test_failures_that_a_failing_block_had_recorded_stay() -> None:
    rows = Rows("binance")
    with rows.guard("account.json"):
        rows.fail(FailureReason.UNKNOWN_ASSET, "first")
        raise FieldError("x", FailureReason.MALFORMED, "second")
    assert [failure.message for failure in rows.failures] == ["first", "second"]


def test_a_guard_does_not_hide_a_mistake_of_the_program() -> None:
    rows = Rows("binance")
    with pytest.raises(KeyError, match="colour"), rows.guard("account.json"):
        rows.add("colour", name="red")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"quantity": Decimal("1e20")}, FailureReason.OUT_OF_RANGE),
        ({"quantity": Decimal("NaN")}, FailureReason.NOT_A_NUMBER),
        ({"quantity": "many"}, FailureReason.NOT_A_NUMBER),
        ({"quantity": None}, FailureReason.MISSING_FIELD),
        ({"side": None}, FailureReason.MISSING_FIELD),
        ({"side": 5}, FailureReason.MALFORMED),
        ({"collateral_enabled": "yes"}, FailureReason.MALFORMED),
        ({"asset_id": "\ud800"}, FailureReason.MALFORMED),
    ],
)
def test_a_row_that_the_schema_refuses_becomes_a_failure_and_the_others_stay(
    values: dict[str, Any], reason: FailureReason
) -> None:
    rows = Rows("binance")
    balance(rows, "binance:east")
    balance(rows, "binance:bad", **values)
    balance(rows, "binance:west")
    table = rows.batches()["balances"]
    assert table.column("account_id").to_pylist() == ["binance:east", "binance:west"]
    (failure,) = rows.failures
    assert failure.reason is reason
    assert failure.venue == "binance"
    assert failure.account_id == "binance:bad"
    assert failure.message.startswith("balances.")


def test_a_refused_measured_value_leaves_the_other_marks() -> None:
    rows = Rows("binance")
    moment = datetime(2024, 6, 25, tzinfo=UTC)
    for subject, value in (("a", 1.0), ("b", float("nan")), ("c", float("inf")), ("d", 2.0)):
        rows.add("marks", venue="binance", subject=subject, field="mark", value=value, as_of=moment, source="test")
    assert rows.batches()["marks"].column("subject").to_pylist() == ["a", "d"]
    assert [(f.reason, f.subject, f.account_id) for f in rows.failures] == [
        (FailureReason.NOT_A_NUMBER, "b", None),
        (FailureReason.NOT_A_NUMBER, "c", None),
    ]


def test_half_a_surrogate_pair_in_a_payload_ends_as_a_failure_that_can_be_stored() -> None:
    body = parse_json('{"coin": "\\ud800"}')
    rows = Rows("hyperliquid")
    balance(rows, "hyperliquid:east", asset=body["coin"])
    with rows.guard("spot.json", subject=body["coin"], account_id=f"hyperliquid:east:{body['coin']}"):
        decimal_at({}, body["coin"])
    assert rows.batches()["balances"].num_rows == 0
    stored = table_from_rows("failures", [asdict(failure) for failure in rows.failures])
    assert stored.num_rows == 2
    assert set(stored.column("subject").to_pylist()) == {"\\ud800"}


def test_a_column_that_does_not_exist_is_a_mistake_of_the_adapter() -> None:
    rows = Rows("binance")
    balance(rows, "east", colateral=True)
    with pytest.raises(KeyError, match="colateral"):
        rows.batches()


def test_a_table_that_does_not_exist_is_a_mistake_of_the_adapter() -> None:
    with pytest.raises(KeyError, match="blances"):
        Rows("binance").add("blances", account_id="x")


def test_tables_have_the_exact_types() -> None:
    rows = Rows("binance")
    balance(rows, "east", quantity=Decimal("99999999999999999999.999999999999999999"))
    column = rows.batches()["balances"].column("quantity")
    assert column.type == pa.decimal128(38, 18)
    assert column.to_pylist() == [Decimal("99999999999999999999.999999999999999999")]
