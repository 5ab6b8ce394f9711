"""Exact numbers from payloads: nothing passes through binary floating point, every refusal has a path and a reason."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.amounts import (
    FieldError,
    decimal_at,
    decimal_of,
    integer_at,
    integer_of,
    joined,
    member,
    members,
    non_negative_at,
    optional_decimal_at,
    optional_time_at,
    parse_json,
    positive_at,
    time_of,
    token_amount,
)
from aggregator.errors import FailureReason

UINT256 = 2**256 - 1
MOMENT = datetime(2024, 6, 25, 14, 0, 2, tzinfo=UTC)

amounts = st.integers(min_value=-(10**38) + 1, max_value=10**38 - 1).map(lambda raw: Decimal(f"{raw}e-18"))
"""Every value of decimal128(38, 18)."""


def refused(reason: FailureReason, call: Callable[[], Any]) -> FieldError:
    with pytest.raises(FieldError) as caught:
        call()
    assert caught.value.reason is reason, caught.value.message
    return caught.value


# ---- JSON ------------------------------------------------------------------------------------------------------------


def test_json_numbers_keep_every_digit() -> None:
    body = parse_json(
        '{"a": 0.1, "b": 1234567890.123456789012345678, "c": 115792089237316195423570985008687907853269984}'
    )
    assert body["a"] == Decimal("0.1")
    assert body["a"] != 0.1, "0.1 as a double is another number"
    assert body["b"] == Decimal("1234567890.123456789012345678")
    assert body["c"] == 115792089237316195423570985008687907853269984
    assert isinstance(body["c"], int)


def test_json_keeps_trailing_zeros_and_exponents() -> None:
    assert str(parse_json("1.500")) == "1.500"
    assert parse_json("1.5e-7") == Decimal("0.00000015")


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity"])
def test_a_token_that_is_no_json_number_is_refused_where_it_is_used(token: str) -> None:
    body = parse_json('{"price": ' + token + ', "size": "1"}')
    assert decimal_at(body, "size") == 1
    error = refused(FailureReason.NOT_A_NUMBER, lambda: decimal_at(body, "price", "data[0]"))
    assert error.path == "data[0].price"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a": 1',
        "[1,]",
        "{'a': 1}",
        "nonsense",
        b"\xff\xfe\xfd",
        b'{"a": "\xff"}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "[1e99999999999999999999]",
        "[" + "9" * 5000 + "]",
    ],
    ids=[
        "empty", "cut", "cut in a member", "trailing comma", "single quotes", "word", "no text", "bad byte",
        "deep list", "deep object", "absurd exponent", "absurd integer",
    ],
)  # fmt: skip
def test_a_text_that_is_no_json_is_malformed(text: str | bytes) -> None:
    error = refused(FailureReason.MALFORMED, lambda: parse_json(text))
    assert len(error.message) < 200


def test_bytes_and_text_parse_alike() -> None:
    text = '{"symbol": "ÄTHER", "price": 1.25}'
    assert parse_json(text) == parse_json(text.encode()) == {"symbol": "ÄTHER", "price": Decimal("1.25")}


@given(value=amounts)
def test_a_number_survives_json_as_number_and_as_text(value: Decimal) -> None:
    body = parse_json(f'{{"number": {value:f}, "text": "{value:f}"}}')
    assert decimal_at(body, "number") == value
    assert decimal_at(body, "text") == value


# ---- members ---------------------------------------------------------------------------------------------------------


def test_a_member_is_found_with_any_value_but_null() -> None:
    assert member({"a": 0}, "a") == 0
    assert member({"a": ""}, "a") == ""
    assert member({"a": False}, "a") is False


@pytest.mark.parametrize("record", [{}, {"a": None}, {"b": 1}])
def test_an_absent_or_null_member_is_missing_and_named(record: dict[str, Any]) -> None:
    error = refused(FailureReason.MISSING_FIELD, lambda: member(record, "a", "positions[3]"))
    assert error.path == "positions[3].a"
    assert "'a'" in error.message


@pytest.mark.parametrize("record", [None, [], "text", 5, [("a", 1)]])
def test_a_member_of_no_object_is_malformed_and_the_place_is_that_of_the_record(record: Any) -> None:
    error = refused(FailureReason.MALFORMED, lambda: member(record, "a", "positions[3]"))
    assert error.path == "positions[3]"
    assert type(record).__name__ in error.message


def test_members_are_a_list_or_an_error() -> None:
    assert members({"a": []}, "a") == []
    assert members({"a": [1, 2]}, "a") == [1, 2]
    refused(FailureReason.MISSING_FIELD, lambda: members({}, "a"))
    no_lists: tuple[Any, ...] = ("ab", 5, {})
    for value in no_lists:
        error = refused(FailureReason.MALFORMED, partial(members, {"a": value}, "a", "x"))
        assert error.path == "x.a"


def test_paths_join_keys_and_indices() -> None:
    assert joined("", "a") == "a"
    assert joined("a", "b") == "a.b"
    assert joined(joined("a", 3), "b") == "a[3].b"


# ---- decimals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("0", "0"),
        ("-0.0", "0"),
        ("1.10", "1.1"),
        ("  7.5 ", "7.5"),
        ("1e3", "1000"),
        ("1E-18", "0.000000000000000001"),
        ("+5", "5"),
        (5, "5"),
        (-5, "-5"),
        (Decimal("0.3"), "0.3"),
        ("99999999999999999999.999999999999999999", "99999999999999999999.999999999999999999"),
        (10**20 - 1, "99999999999999999999"),
        ("0e999", "0"),
        ("0e9999999", "0"),
        ("-0e-9999999", "0"),
        ("1e-100", "1e-100"),
    ],
)
def test_a_number_is_read_exactly(value: Any, number: str) -> None:
    assert decimal_of(value) == Decimal(number)


@pytest.mark.parametrize(
    "value",
    ["", " ", "abc", "1,5", "0x10", "1_000", "٣", "1.2.3", "NaN", "sNaN", "Infinity", "-inf", True, None, [], {}, 0.5],
)  # fmt: skip
def test_what_is_no_number_is_refused_with_its_path(value: Any) -> None:
    error = refused(FailureReason.NOT_A_NUMBER, lambda: decimal_of(value, "a.b"))
    assert error.path == "a.b"


@pytest.mark.parametrize(
    "value", ["1e20", "-1e20", 10**20, -(10**20), "1e30", "1e9999999", str(UINT256), UINT256, Decimal("1e400000")]
)
def test_a_number_from_1e20_up_is_out_of_range(value: Any) -> None:
    refused(FailureReason.OUT_OF_RANGE, lambda: decimal_of(value))


@pytest.mark.parametrize("value", ["1e-101", "-9.99e-101", "1e-9999999", Decimal("-1e-400000")])
def test_a_number_far_below_every_unit_is_out_of_range(value: Any) -> None:
    assert "from 1e-100 up" in refused(FailureReason.OUT_OF_RANGE, lambda: decimal_of(value)).message


def test_a_zero_of_any_exponent_is_an_ordinary_zero() -> None:
    for text in ("0e9999999", "0e-9999999"):
        assert decimal_of(text).as_integer_ratio() == (0, 1)


def test_the_precision_of_the_decimal_context_does_not_matter() -> None:
    text = "12345678901234567890.123456789012345678"
    with localcontext(prec=3):
        assert str(decimal_of(text)) == text
        refused(FailureReason.OUT_OF_RANGE, lambda: decimal_of("100000000000000000000.5"))
        assert decimal_of("99999999999999999999.9") == Decimal("99999999999999999999.9")


def test_a_message_never_carries_a_whole_long_value() -> None:
    error = refused(FailureReason.NOT_A_NUMBER, lambda: decimal_of("x" * 10_000))
    assert len(error.message) < 100


@given(value=amounts)
def test_any_canonical_amount_round_trips_through_text(value: Decimal) -> None:
    assert decimal_of(str(value)) == value
    assert decimal_of(f"{value:f}") == value


def test_required_numbers_name_their_place() -> None:
    record = {"size": "2.5", "bad": "x", "zero": "0", "minus": "-1"}
    assert decimal_at(record, "size", "p") == Decimal("2.5")
    assert refused(FailureReason.MISSING_FIELD, lambda: decimal_at(record, "price", "p")).path == "p.price"
    assert refused(FailureReason.NOT_A_NUMBER, lambda: decimal_at(record, "bad", "p")).path == "p.bad"
    assert positive_at(record, "size") == Decimal("2.5")
    assert refused(FailureReason.OUT_OF_RANGE, lambda: positive_at(record, "zero", "p")).path == "p.zero"
    refused(FailureReason.OUT_OF_RANGE, lambda: positive_at(record, "minus"))
    assert non_negative_at(record, "zero") == 0
    assert refused(FailureReason.OUT_OF_RANGE, lambda: non_negative_at(record, "minus", "p")).path == "p.minus"


@pytest.mark.parametrize("record", [{}, {"a": None}, {"a": ""}])
def test_an_optional_number_may_be_absent_null_or_empty(record: dict[str, Any]) -> None:
    assert optional_decimal_at(record, "a") is None


def test_an_optional_number_that_is_there_must_be_one() -> None:
    assert optional_decimal_at({"a": "0"}, "a") == 0
    assert refused(FailureReason.NOT_A_NUMBER, lambda: optional_decimal_at({"a": "x"}, "a", "p")).path == "p.a"
    refused(FailureReason.NOT_A_NUMBER, lambda: optional_decimal_at({"a": False}, "a"))


@pytest.mark.parametrize("record", [[], "text", None])
def test_an_optional_field_of_no_object_is_malformed(record: Any) -> None:
    refused(FailureReason.MALFORMED, lambda: optional_decimal_at(record, "a"))
    refused(FailureReason.MALFORMED, lambda: optional_time_at(record, "a"))


# ---- integers and tokens ---------------------------------------------------------------------------------------------


def test_integers_of_any_size_are_exact() -> None:
    assert integer_of(str(UINT256)) == UINT256
    assert integer_of(UINT256) == UINT256
    assert integer_of("-17") == -17
    assert integer_at({"raw": "0"}, "raw") == 0


@pytest.mark.parametrize("value", ["1.0", "", "1e3", "0x10", "1_000", "٣", "9" * 5000, True, Decimal(1), 1.0, None, []])
def test_what_is_no_integer_is_refused(value: Any) -> None:
    assert refused(FailureReason.NOT_A_NUMBER, lambda: integer_of(value, "raw")).path == "raw"


@pytest.mark.parametrize(
    ("raw", "decimals", "tokens"),
    [
        (0, 18, "0"),
        (1, 18, "0.000000000000000001"),
        (1_500_000, 6, "1.5"),
        (5, 0, "5"),
        (10**28 - 1, 18, "9999999999.999999999999999999"),
        (10**28, 18, "10000000000"),
        (10**28 + 1, 18, "10000000000.000000000000000001"),
        (-(10**28 + 1), 18, "-10000000000.000000000000000001"),
        (UINT256, 0, str(UINT256)),
        (UINT256, 77, "1." + str(UINT256)[1:]),
    ],
)
def test_a_token_amount_keeps_every_digit(raw: int, decimals: int, tokens: str) -> None:
    assert token_amount(raw, decimals) == Decimal(tokens)


@given(raw=st.integers(min_value=-UINT256, max_value=UINT256), decimals=st.integers(min_value=0, max_value=36))
def test_a_token_amount_times_its_unit_is_the_integer(raw: int, decimals: int) -> None:
    sign, digits, exponent = token_amount(raw, decimals).as_tuple()
    assert isinstance(exponent, int)
    assert int("".join(map(str, digits))) * (-1) ** sign == raw
    assert exponent == -decimals


# ---- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        1719324002,
        1719324002000,
        1719324002000000,
        "1719324002",
        "1719324002000",
        "2024-06-25T14:00:02Z",
        "2024-06-25T14:00:02+00:00",
        "2024-06-25T16:00:02+02:00",
        " 2024-06-25T14:00:02.000Z ",
    ],
)
def test_one_instant_in_every_unit(value: Any) -> None:
    moment = time_of(value)
    assert moment == MOMENT
    assert moment.tzinfo is UTC


def test_milliseconds_and_microseconds_are_kept() -> None:
    assert time_of(1719324002123) == MOMENT + timedelta(milliseconds=123)
    assert time_of(1719324002123456) == MOMENT + timedelta(microseconds=123456)
    assert time_of("2024-06-25T14:00:02.123456Z") == MOMENT + timedelta(microseconds=123456)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("2024-06-25T14:00:02", FailureReason.MALFORMED),
        ("2024-06-25", FailureReason.MALFORMED),
        ("yesterday", FailureReason.MALFORMED),
        ("", FailureReason.MALFORMED),
        ("1719324002.5", FailureReason.MALFORMED),
        (Decimal("1719324002.5"), FailureReason.NOT_A_NUMBER),
        (True, FailureReason.NOT_A_NUMBER),
        (None, FailureReason.NOT_A_NUMBER),
        ("--5", FailureReason.NOT_A_NUMBER),
        (-1, FailureReason.OUT_OF_RANGE),
        ("-1719324002", FailureReason.OUT_OF_RANGE),
        (1719324002000000000, FailureReason.OUT_OF_RANGE),
        (4_102_444_800, FailureReason.OUT_OF_RANGE),
        (10**40, FailureReason.OUT_OF_RANGE),
        ("2100-01-01T00:00:00Z", FailureReason.OUT_OF_RANGE),
        ("9999-12-31T23:59:59-23:00", FailureReason.OUT_OF_RANGE),
        ("0001-01-01T00:00:00+23:00", FailureReason.OUT_OF_RANGE),
        ("1969-12-31T23:59:59Z", FailureReason.OUT_OF_RANGE),
    ],
)
def test_what_is_no_time_is_refused(value: Any, reason: FailureReason) -> None:
    assert refused(reason, lambda: time_of(value, "t")).path == "t"


@given(
    st.datetimes(
        min_value=datetime(2001, 9, 10),
        max_value=datetime(2099, 12, 30),
        timezones=st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))),
    )
)
def test_any_time_of_this_century_round_trips_as_text_and_as_microseconds(moment: datetime) -> None:
    assert time_of(moment.isoformat()) == moment
    micros = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert time_of(micros) == time_of(str(micros)) == moment
    assert time_of(micros // 1_000_000) == moment - timedelta(microseconds=micros % 1_000_000)


@pytest.mark.parametrize("value", [None, 0, "0", ""])
def test_an_optional_time_of_zero_is_never(value: Any) -> None:
    assert optional_time_at({"t": value}, "t") is None


def test_an_optional_time_may_be_absent_and_is_read_when_there() -> None:
    assert optional_time_at({}, "t") is None
    assert optional_time_at({"t": 1719324002}, "t") == MOMENT
    assert refused(FailureReason.MALFORMED, lambda: optional_time_at({"t": "soon"}, "t", "p")).path == "p.t"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_documents_without_fractions_parse_as_plain_json_does(document: Any) -> None:
    assert parse_json(json.dumps(document)) == document


def test_a_key_that_stands_twice_in_one_object_is_malformed() -> None:
    with pytest.raises(FieldError, match="'szi' stands twice") as caught:
        parse_json('{"position": {"szi": "1", "szi": "2"}}')
    assert caught.value.reason == FailureReason.MALFORMED
