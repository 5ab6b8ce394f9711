"""Paradex: recorded payloads, read where the folder of recorded material is at hand."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aggregator.errors import FailureReason
from tests.desk_paradex import BTC_PERP, PAYLOADS, R, fetched, mark, normalized
from tests.normalized_rows import only

from .sample_paradex import PAYLOADS as SAMPLE

RECORDED = [
    ("markets.json", "/v1/markets", "", set()),
    ("market_specs_option.json", "/v1/markets", "", set()),
    ("tickers.json", "/v1/markets/summary", "", set()),
    ("portfolio_margin_config.json", "/v1/system/portfolio-margin-config", "", set()),
    # Neither the market of the position nor a balance is in the sample.
    ("positions.json", "/v1/positions", "trader", {R.UNKNOWN_MARKET, R.MISSING_FIELD}),
]


@pytest.mark.parametrize(("file", "request_name", "owner", "reasons"), RECORDED)
def test_recorded_payloads(
    recorded: Path, file: str, request_name: str, owner: str, reasons: set[FailureReason]
) -> None:
    payload = fetched(file, request_name, owner, root=recorded / "payloads" / "paradex")
    result = normalized(payload)
    assert {failure.reason for failure in result.failures} == reasons


def test_recorded_markets_with_their_marks(recorded: Path) -> None:
    folder = recorded / "payloads" / "paradex"
    joined_by_symbol = normalized(fetched("market_specs_option.json", "/v1/markets", root=folder))
    option = only(joined_by_symbol, "instruments", kind="option")
    assert option["expiry"] == datetime(2026, 5, 8, 8, tzinfo=UTC)  # from the symbol: the sample has no expiry_at
    assert mark(joined_by_symbol, option["instrument_id"], "implied_vol") == 0.42746687
    both = normalized(
        fetched("markets.json", "/v1/markets", root=folder), fetched("tickers.json", "/v1/markets/summary", root=folder)
    )
    assert both.failures == []
    assert mark(both, "BTC", "index") == 66806.71304318
    assert mark(both, BTC_PERP, "mark") == 67307.7225876


def test_every_recorded_file_is_read_by_some_request(recorded: Path) -> None:
    names = {path.name for path in (recorded / "payloads" / "paradex").glob("*.json")}
    assert names == {file for file, *_ in RECORDED}


def test_fixtures_are_of_one_instant() -> None:
    for path in PAYLOADS.glob("*.json"):
        envelope = json.loads(path.read_text(encoding="utf-8"))
        assert envelope["received_at"] == "2024-06-30T00:00:00Z", path.name
    assert {file for _, file, _ in SAMPLE} == {path.name for path in PAYLOADS.glob("*.json")}
