"""Canonical ids and dated instrument names."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.amounts import FieldError
from adapters.symbols import EXPIRY_HOUR_UTC, account_id, expiry_of, expiry_subject, instrument_id, option_symbol
from aggregator.errors import FailureReason

JUNE = datetime(2026, 6, 27, EXPIRY_HOUR_UTC, tzinfo=UTC)


def test_ids_carry_the_venue_first() -> None:
    assert instrument_id("binance", "BTCUSDT") == "binance:BTCUSDT"
    assert account_id("binance", "east") == "binance:east"
    assert account_id("binance", "east", "isolated:BTC") == "binance:east:isolated:BTC"


def test_the_subject_of_an_expiry_is_in_utc() -> None:
    assert expiry_subject("ETH", JUNE) == "ETH@2026-06-27T08:00:00Z"
    assert expiry_subject("ETH", JUNE.astimezone(timezone(timedelta(hours=9)))) == "ETH@2026-06-27T08:00:00Z"


@pytest.mark.parametrize("digits", ["20260627", "260627"])
def test_both_date_forms_expire_at_eight(digits: str) -> None:
    assert expiry_of(digits) == JUNE


@pytest.mark.parametrize(
    "digits",
    [
        "",
        "2026",
        "2606277",
        "202606270",
        "20261327",
        "20260631",
        "261327",
        "20260229",
        "00000101",
        "2026-6-7",
        "abcdefgh",
    ],
)
def test_what_is_no_date_is_malformed_and_quoted(digits: str) -> None:
    with pytest.raises(FieldError) as caught:
        expiry_of(digits, "instrument")
    assert caught.value.reason is FailureReason.MALFORMED
    assert caught.value.path == "instrument"
    assert repr(digits) in caught.value.message


@given(st.dates(min_value=datetime(2000, 1, 1).date(), max_value=datetime(2068, 12, 31).date()))
def test_every_date_round_trips_in_both_forms(date: object) -> None:
    assert expiry_of(f"{date:%Y%m%d}").date() == date
    assert expiry_of(f"{date:%y%m%d}").date() == date


def test_an_option_name_in_parts() -> None:
    assert option_symbol("ETH-20260627-3500-C") == ("ETH", JUNE, Decimal(3500), "call")
    assert option_symbol("1INCH-260627-0.45-P") == ("1INCH", JUNE, Decimal("0.45"), "put")
    assert option_symbol("XRP-260627-0_45-P").strike == Decimal("0.45")


@pytest.mark.parametrize(
    "symbol",
    ["", "ETH", "ETH-PERP", "ETH-20260627-3500", "ETH-20260627-3500-X", "eth-20260627-3500-C", "ETH-20260627--3500-C",
     "ETH-20260627-3500-C ", "ETH-20260627-3500-C\n", "ETH-27JUN26-3500-C", "ETH-20260627-1e5-C", "ETH-20260627-.5-C"],
)  # fmt: skip
def test_what_is_no_option_name_is_an_unknown_market(symbol: str) -> None:
    with pytest.raises(FieldError) as caught:
        option_symbol(symbol, "positions[0]")
    assert caught.value.reason is FailureReason.UNKNOWN_MARKET
    assert caught.value.path == "positions[0]"


def test_an_option_of_a_day_that_does_not_exist_is_malformed() -> None:
    with pytest.raises(FieldError) as caught:
        option_symbol("ETH-20260631-3500-C", "p")
    assert caught.value.reason is FailureReason.MALFORMED


def test_the_message_quotes_a_long_name_in_part_only() -> None:
    with pytest.raises(FieldError) as caught:
        option_symbol("X" * 10_000)
    assert len(caught.value.message) < 100
