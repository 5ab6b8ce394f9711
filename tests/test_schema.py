"""Canonical tables: `cast_table` is the one door, and Arrow's silent decimal overflow does not pass it."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.errors import DataError, Failure, FailureReason
from aggregator.schema.canonical import CANONICAL, FAILURES, KEYS
from aggregator.schema.casting import ArrowStream, cast_table, table_from_rows
from aggregator.schema.decimals import exact_decimals, quantize
from aggregator.schema.fields import DECIMAL, TIME, describe, table_version
from aggregator.schema.results import RESULT_KEYS, RESULTS

LARGEST = Decimal("99999999999999999999.999999999999999999")
MOMENT = datetime(2024, 6, 25, 14, 0, 2, tzinfo=UTC)

amounts = st.integers(min_value=-(10**38) + 1, max_value=10**38 - 1).map(lambda raw: Decimal(f"{raw}e-18"))
"""Every value of decimal128(38, 18)."""


def refused(reason: FailureReason, name: str, source: Any) -> str:
    with pytest.raises(DataError) as caught:
        cast_table(name, source)
    assert caught.value.failure.reason is reason, str(caught.value)
    assert caught.value.failure.subject == name
    return caught.value.failure.message


def balances(**columns: Any) -> pa.Table:
    """Two rows of balances as a careless producer would send them."""
    return pa.table(
        {
            "account_id": ["a", "b"],
            "asset_id": ["USDC", "ETH"],
            "side": ["asset", "liability"],
            "quantity": ["1.5", "2"],
            "collateral_enabled": [True, False],
        }
        | columns
    )


def marks(**columns: Any) -> pa.Table:
    return pa.table(
        {
            "venue": ["v", "v"],
            "subject": ["a", "b"],
            "field": ["mark", "mark"],
            "value": [1.0, 2.0],
            "source": ["x", "x"],
        }
        | columns
    )


# ---- the schemas themselves ------------------------------------------------------------------------------------------


VERSIONS = {"marks": "3", "margin_tiers": "2", "collateral_tiers": "2"}
RESULT_VERSIONS = {
    "runs": "3",
    "portfolio_margin": "5",
    "account_margin": "2",
    "node_margin": "3",
    "requirement": "2",
    "stress": "2",
    "liquidation_prices": "2",
    "nodes": "2",
    "routes": "2",
}


@pytest.mark.parametrize("name", sorted(CANONICAL))
def test_every_canonical_schema_states_its_name_and_version(name: str) -> None:
    assert table_version(CANONICAL[name]) == (name, VERSIONS.get(name, "1"))


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_every_result_schema_states_its_name_and_version(name: str) -> None:
    assert table_version(RESULTS[name]) == (name, RESULT_VERSIONS.get(name, "1"))


@pytest.mark.parametrize("schemas", [CANONICAL, RESULTS], ids=["canonical", "results"])
def test_every_field_has_a_unit_and_an_allowed_type(schemas: Mapping[str, pa.Schema]) -> None:
    allowed = {pa.string(), pa.float64(), pa.bool_(), pa.int32(), pa.int64(), DECIMAL, TIME}
    for name, schema in schemas.items():
        assert len(set(schema.names)) == len(schema.names), name
        for field in schema:
            assert field.metadata[b"unit"], f"{name}.{field.name}"
            assert field.type in allowed, f"{name}.{field.name}: {field.type}"


@pytest.mark.parametrize(("keys", "schemas"), [(KEYS, CANONICAL), (RESULT_KEYS, RESULTS)], ids=["canonical", "results"])
def test_every_key_column_exists(keys: Mapping[str, tuple[str, ...]], schemas: Mapping[str, pa.Schema]) -> None:
    assert set(keys) == set(schemas) - ({"failures"} if schemas is CANONICAL else set())
    for name, columns in keys.items():
        assert columns
        assert set(columns) <= set(schemas[name].names), name


def test_results_belong_to_a_run() -> None:
    for name, schema in RESULTS.items():
        assert schema.names[0] == "run_id", name
        assert RESULT_KEYS[name][0] == "run_id", name


def test_the_closed_list_of_reasons_stands_in_the_failures_schema() -> None:
    assert FAILURES.field("reason").metadata[b"unit"].decode().split(" | ") == [str(reason) for reason in FailureReason]


def test_what_no_figure_reads_is_marked_as_information() -> None:
    marked = {
        (name, column["name"])
        for name, schema in CANONICAL.items()
        for column in describe(schema)
        if column.get("use") == "information"
    }
    assert marked == {
        ("accounts", "parent_account_id"),
        ("accounts", "multi_assets_mode"),
        ("positions", "isolated_collateral"),
        ("margin_tiers", "notional_cap"),
        ("collateral_tiers", "liquidation_bonus"),
        ("collateral_tiers", "cap"),
    }


def test_a_description_has_name_type_unit_and_nullability_of_every_column() -> None:
    described = describe(CANONICAL["balances"])
    assert [entry["name"] for entry in described] == CANONICAL["balances"].names
    assert described[3] == {
        "name": "quantity",
        "type": "decimal128(38, 18)",
        "unit": "tokens, positive",
        "nullable": False,
    }
    assert describe(pa.schema([pa.field("bare", pa.int8())]))[0]["unit"] == ""


def test_a_schema_without_metadata_has_no_version() -> None:
    assert table_version(pa.schema([])) == ("", "")


# ---- what cast_table accepts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()), pa.binary()]
)
def test_every_kind_of_text_column_becomes_string(text: pa.DataType) -> None:
    table = cast_table("balances", balances(account_id=pa.array(["a", "b"]).cast(text)))
    assert table.schema.equals(CANONICAL["balances"], check_metadata=True)
    assert table.column("account_id").to_pylist() == ["a", "b"]


def test_a_dictionary_of_large_strings_with_a_null_in_a_nullable_column_is_decoded() -> None:
    column = pa.array(["x", None]).cast(pa.large_string()).dictionary_encode()
    table = cast_table("accounts", accounts(2, chain=column))
    assert table.column("chain").to_pylist() == ["x", None]


def accounts(rows: int, **columns: Any) -> pa.Table:
    required = ("account_id", "node", "venue", "owner", "margin_mode", "rule_set", "settlement_asset")
    return pa.table({name: [f"{name}{number}" for number in range(rows)] for name in required} | columns)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([Decimal("1.50"), Decimal("2.00")], pa.decimal128(4, 2)),
        pa.array([Decimal("1.5"), Decimal(2)], pa.decimal256(70, 30)),
        pa.array([Decimal("1.5"), Decimal("2.0")], pa.decimal32(5, 1)),
        pa.array([1.5, 2.0], pa.float64()),
        pa.array([1.5, 2.0], pa.float32()),
        pa.array(["1.5", "2"]),
        pa.array(["1.5", "2"], pa.large_string()),
        pa.array(["1.5", "2"]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_every_kind_of_number_becomes_an_exact_decimal(column: pa.Array) -> None:
    table = cast_table("balances", balances(quantity=column))
    assert table.column("quantity").type == DECIMAL
    assert table.column("quantity").to_pylist() == [Decimal("1.5"), Decimal(2)]


def test_integers_become_decimals_and_decimals_measured_values() -> None:
    assert cast_table("balances", balances(quantity=[1, 2])).column("quantity").to_pylist() == [1, 2]
    values = cast_table("marks", marks(value=pa.array([Decimal("0.1"), Decimal(2)]))).column("value")
    assert values.type == pa.float64()
    assert values.to_pylist() == [0.1, 2.0]


@pytest.mark.parametrize(
    "kind",
    [
        pa.timestamp("us", "UTC"),
        pa.timestamp("ms", "Etc/UTC"),
        pa.timestamp("s", "UTC"),
        pa.timestamp("ns", "UTC"),
        pa.timestamp("us", "+00:00"),
        pa.timestamp("ms", "Asia/Tokyo"),
    ],
    ids=str,
)
def test_every_kind_of_time_keeps_its_instant(kind: pa.DataType) -> None:
    zone = ZoneInfo("Asia/Tokyo")
    column = pa.array([MOMENT.astimezone(zone), None], pa.timestamp("us", "UTC")).cast(kind)
    times = cast_table("marks", marks(as_of=column)).column("as_of")
    assert times.type == TIME
    assert times.to_pylist() == [MOMENT, None]


def test_iso_text_becomes_a_time() -> None:
    times = cast_table("marks", marks(as_of=["2024-06-25T14:00:02Z", None])).column("as_of")
    assert times.to_pylist() == [MOMENT, None]


def test_a_time_that_does_not_fit_microseconds_is_refused_not_cut() -> None:
    column = pa.array([1719324002000000001, None], pa.timestamp("ns", "UTC"))
    assert "marks.as_of" in refused(FailureReason.MALFORMED, "marks", marks(as_of=column))


class StreamOnly:
    """Another library's table: nothing but the Arrow C stream interface."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


class ArrayOnly:
    """Another library's batch: nothing but the Arrow C array interface."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch

    def __arrow_c_array__(self, requested_schema: object = None) -> object:
        return self.batch.__arrow_c_array__(requested_schema)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda table: table,
        lambda table: table.to_batches()[0],
        lambda table: table.to_reader(),
        StreamOnly,
        lambda table: StreamOnly(pa.concat_tables([table.slice(0, 1), table.slice(1)])),
        lambda table: ArrayOnly(table.to_batches()[0]),
    ],
    ids=["table", "batch", "reader", "stream", "chunked stream", "array"],
)
def test_any_arrow_source_is_accepted(wrapped: Any) -> None:
    expected = cast_table("balances", balances())
    assert cast_table("balances", wrapped(balances())).equals(expected)


@pytest.mark.parametrize("source", [None, [{"account_id": "a"}], {"account_id": ["a"]}, "text"])
def test_what_is_no_arrow_source_is_a_mistake_of_the_caller(source: Any) -> None:
    with pytest.raises(TypeError, match="Arrow C interface"):
        ArrowStream.of(source)


def test_columns_are_matched_by_name_and_absent_nullable_ones_are_null() -> None:
    shuffled = balances().select(["quantity", "side", "collateral_enabled", "asset_id", "account_id"])
    table = cast_table("balances", shuffled)
    assert table.column_names == CANONICAL["balances"].names
    assert table.column("locked").to_pylist() == [None, None]
    assert table.column("locked").type == DECIMAL


def test_an_empty_table_is_a_table() -> None:
    for name, schema in CANONICAL.items():
        assert cast_table(name, schema.empty_table()).num_rows == 0


def test_casting_twice_changes_nothing() -> None:
    once = cast_table("balances", balances())
    assert cast_table("balances", once).equals(once)


# ---- what cast_table refuses -----------------------------------------------------------------------------------------


def test_all_missing_and_unknown_columns_stand_in_one_error_with_the_nearest_names() -> None:
    table = balances().rename_columns(["acount_id", "asset_id", "side", "quantiy", "collateral_enabled"])
    message = refused(FailureReason.MISSING_FIELD, "balances", table)
    assert "'balances'" in message
    assert "missing columns ['account_id', 'quantity']" in message
    assert "unknown 'acount_id' (did you mean 'account_id'?)" in message
    assert "unknown 'quantiy' (did you mean 'quantity'?)" in message


def test_an_unknown_column_alone_is_malformed_and_no_column_is_called_missing() -> None:
    message = refused(FailureReason.MALFORMED, "balances", balances(zzz=[1, 2]))
    assert "unknown 'zzz'" in message
    assert "missing" not in message


def test_a_column_that_stands_twice_is_refused() -> None:
    table = balances().append_column("side", pa.array(["asset", "asset"]))
    assert "['side']" in refused(FailureReason.MALFORMED, "balances", table)


@pytest.mark.parametrize("stated", [("positions", "1"), ("balances", "2"), ("balances", ""), ("", "1")])
def test_another_stated_name_or_version_is_refused_and_both_are_named(stated: tuple[str, str]) -> None:
    metadata = {"crossmargin.table": stated[0], "crossmargin.version": stated[1]}
    message = refused(FailureReason.MALFORMED, "balances", balances().replace_schema_metadata(metadata))
    assert f"table {stated[0]!r} version {stated[1]!r}" in message
    assert "expected 'balances' version '1'" in message


def test_foreign_metadata_says_nothing_about_the_version() -> None:
    cast_table("balances", balances().replace_schema_metadata({"pandas": "{}"}))


def test_a_null_in_a_required_column_is_a_missing_field_and_counted() -> None:
    message = refused(FailureReason.MISSING_FIELD, "balances", balances(side=["asset", None]))
    assert message == "balances.side: 1 rows are null"
    refused(FailureReason.MISSING_FIELD, "balances", balances(quantity=[None, None]))
    refused(FailureReason.MISSING_FIELD, "marks", marks(value=pa.array([None, 1.0], pa.float64())))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused_in_measured_and_exact_columns(value: float) -> None:
    assert "marks.value" in refused(FailureReason.NOT_A_NUMBER, "marks", marks(value=[1.0, value]))
    assert "marks.confidence" in refused(FailureReason.NOT_A_NUMBER, "marks", marks(confidence=[None, value]))
    assert "balances.quantity" in refused(FailureReason.NOT_A_NUMBER, "balances", balances(quantity=[1.0, value]))


@pytest.mark.parametrize("value", ["NaN", "sNaN", "Infinity", "abc", "", "1,5", "1e-99999999999999999999"])
def test_a_text_that_is_no_number_is_refused(value: str) -> None:
    assert "balances.quantity" in refused(FailureReason.NOT_A_NUMBER, "balances", balances(quantity=["1", value]))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("balances", balances(account_id=[["a"], ["b"]])),
        ("balances", balances(collateral_enabled=["maybe", "no"])),
        ("balances", balances(account_id=pa.array([b"\xff", b"b"]))),
        ("marks", marks(value=["abc", "1"])),
        ("marks", marks(as_of=["soon", None])),
    ],
    ids=["list", "flag", "no text", "measured", "time"],
)
def test_a_column_that_cannot_be_cast_is_malformed(name: str, source: pa.Table) -> None:
    assert f"{name}." in refused(FailureReason.MALFORMED, name, source)


def test_an_unknown_table_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(KeyError):
        cast_table("blances", balances())


# ---- decimals: what Arrow does in silence ----------------------------------------------------------------------------


def test_arrow_casts_an_overlong_text_to_garbage_in_silence_and_this_door_refuses_it() -> None:
    """The hazard is real in this pyarrow, and each way through `schema` refuses it."""
    garbage = pa.array(["1e30"]).cast(DECIMAL).to_pylist()[0]
    assert garbage != Decimal("1e30")
    assert abs(garbage) < Decimal("1e21"), "a plausible number"
    with pytest.raises(DataError, match=r"out_of_range: x: \|1.000e\+30\| is not below 1e20"):
        exact_decimals(["1e30"], where="x")
    refused(FailureReason.OUT_OF_RANGE, "balances", balances(quantity=["1", "1e30"]))
    with pytest.raises(DataError, match="out_of_range"):
        table_from_rows("balances", [{"account_id": "a", "quantity": "1e30"}])


@pytest.mark.parametrize(
    "value",
    [
        "1e20",
        "-1e20",
        10**20,
        1e20,
        Decimal("1e20"),
        Decimal("1e9999999"),
        Decimal("99999999999999999999.9999999999999999995"),
        Decimal("-99999999999999999999.9999999999999999995"),
    ],
    ids=str,
)
def test_nothing_from_1e20_up_even_by_rounding_is_accepted(value: Any) -> None:
    with pytest.raises(DataError) as caught:
        exact_decimals([value], where="x")
    assert caught.value.failure.reason is FailureReason.OUT_OF_RANGE


def test_the_largest_value_and_its_rounding_neighbour_are_accepted() -> None:
    below = Decimal("99999999999999999999.9999999999999999994")
    smallest = LARGEST.copy_negate()
    assert exact_decimals([LARGEST, smallest, below], where="x").to_pylist() == [LARGEST, smallest, LARGEST]


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        ("0.0000000000000000005", "0"),
        ("0.0000000000000000015", "2e-18"),
        ("0.0000000000000000025", "2e-18"),
        ("0.00000000000000000250000000000000000001", "3e-18"),
        ("-0.0000000000000000015", "-2e-18"),
        ("12345678901234567890.1234567890123456785", "12345678901234567890.123456789012345678"),
        ("1e-9999999", "0"),
        ("0e500", "0"),
    ],
)
def test_digits_beyond_the_18th_are_rounded_half_to_even(value: str, rounded: str) -> None:
    assert quantize(Decimal(value)) == Decimal(rounded)
    assert exact_decimals([value], where="x").to_pylist() == [Decimal(rounded)]


def test_a_float_counts_as_the_decimal_that_it_prints() -> None:
    assert exact_decimals([0.1, None], where="x").to_pylist() == [Decimal("0.1"), None]


def test_a_flag_and_bytes_are_no_numbers() -> None:
    for value in (True, b"1"):
        with pytest.raises(DataError, match="not_a_number"):
            exact_decimals([value], where="x")


@given(value=amounts)
def test_every_value_of_the_type_passes_unchanged(value: Decimal) -> None:
    assert exact_decimals([value, str(value)], where="x").to_pylist() == [value, value]


def test_the_callers_decimal_context_does_not_matter() -> None:
    with localcontext(prec=3):
        assert exact_decimals([LARGEST], where="x").to_pylist() == [LARGEST]


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_rows_become_the_canonical_table() -> None:
    table = table_from_rows(
        "balances",
        [{"account_id": "a", "asset_id": "ETH", "side": "asset", "quantity": "0.1", "collateral_enabled": True}],
    )
    assert table.schema.equals(CANONICAL["balances"], check_metadata=True)
    assert table.to_pylist()[0]["quantity"] == Decimal("0.1")
    assert table.to_pylist()[0]["accrued_interest"] is None
    assert table_from_rows("balances", []).num_rows == 0


def test_a_row_with_an_unknown_column_is_a_mistake_of_the_program() -> None:
    with pytest.raises(KeyError, match="quantiy"):
        table_from_rows("balances", [{"quantiy": 1}])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("balances", {"account_id": 5}),
        ("balances", {"account_id": "\ud800"}),
        ("balances", {"collateral_enabled": "yes"}),
        ("marks", {"value": "abc"}),
        ("marks", {"as_of": "soon"}),
        ("margin_tiers", {"tier": 2**40}),
        ("margin_tiers", {"tier": 2**70}),
        ("margin_tiers", {"tier": 1.5}),
    ],
)
def test_a_value_that_its_column_cannot_hold_is_malformed_and_the_column_is_named(
    name: str, values: dict[str, Any]
) -> None:
    with pytest.raises(DataError) as caught:
        table_from_rows(name, [values])
    assert caught.value.failure.reason is FailureReason.MALFORMED
    assert caught.value.failure.message.startswith(f"{name}.{next(iter(values))}: ")


def test_failures_become_the_canonical_table() -> None:
    failures = [
        Failure(FailureReason.STALE, "too old", "binance", "a.json", "x.y", "BTC", "binance:east"),
        Failure(FailureReason.INCONSISTENT, "prices differ"),
    ]
    rows = table_from_rows("failures", [asdict(failure) for failure in failures]).to_pylist()
    assert [row["reason"] for row in rows] == ["stale", "inconsistent"]
    assert [Failure(**(row | {"reason": FailureReason(row["reason"])})) for row in rows] == failures
    assert table_from_rows("failures", []).num_rows == 0
