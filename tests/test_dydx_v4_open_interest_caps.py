"""dYdX v4: without the caps on open interest of a market its holders' initial margin is not known."""

from pathlib import Path
from typing import Any

import pytest

from adapters.adapter import Context, Normalized
from adapters.asset_book import read_asset_book
from adapters.dydx_v4 import ADAPTER
from adapters.transport import Payload
from aggregator.errors import Failure
from aggregator.snapshot import take_snapshot
from tests.normalized_rows import rows_of
from tests.payload_files import changed, read_payload
from tests.sample_dydx_v4 import PAYLOADS

TESTS = Path(__file__).resolve().parent
BOOK = read_asset_book(TESTS.parent / "configs" / "assets.toml")
CAPS = ("openInterestLowerCap", "openInterestUpperCap")
MARKETS = "perpetual_markets"


def desk() -> dict[str, Payload]:
    folder = TESTS / "payloads" / "dydx_v4"
    return {
        file.removesuffix(".json"): read_payload("dydx_v4", folder, request, file, owner)
        for request, file, owner in PAYLOADS
    }


def normalized(payloads: dict[str, Payload] | list[Payload]) -> Normalized:
    listed = list(payloads.values()) if isinstance(payloads, dict) else payloads
    return ADAPTER.normalize(listed, Context(BOOK, {}))


def without_caps(ticker: str, *, said_as_null: bool = False) -> list[Payload]:
    """The desk without a node's answers, whose markets state no caps of one market."""

    def change(body: Any) -> None:
        for name in CAPS:
            if said_as_null:
                body["markets"][ticker][name] = None
            else:
                del body["markets"][ticker][name]

    found = desk()
    found[MARKETS] = changed(found[MARKETS], change)
    return [payload for payload in found.values() if "Query/" not in payload.request]


def findings(result: Normalized) -> list[Failure]:
    return [failure for failure in result.failures if failure.path.endswith(CAPS[0])]


@pytest.mark.parametrize("said_as_null", [False, True])
def test_a_held_market_without_caps_makes_its_holders_incomplete_and_nobody_else(said_as_null: bool) -> None:
    result = normalized(without_caps("SOL-USD", said_as_null=said_as_null))
    holders = {row["account_id"] for row in rows_of(result, "positions", instrument_id="dydx_v4:SOL-USD")}
    assert holders
    assert {found.account_id for found in findings(result)} == holders
    assert holders < {row["account_id"] for row in rows_of(result, "accounts")}
    for found in findings(result):
        assert (found.reason, found.subject) == ("missing_field", "dydx_v4:SOL-USD")
        assert found.path == "markets.SOL-USD.openInterestLowerCap"
        assert all(name in found.message for name in (*CAPS, "SOL-USD", "0.05"))
    assert take_snapshot([result.batches], result.failures).incomplete >= holders
    (tier,) = rows_of(result, "margin_tiers", market="dydx_v4:SOL-USD")
    assert float(tier["initial_rate"]) == 0.05  # the desk's caps make it 0.3046
    state = {row["field"] for row in rows_of(result, "market_state", market="dydx_v4:SOL-USD")}
    assert not state & {"open_interest_lower_cap", "open_interest_upper_cap"}  # unknown is not 0


def test_a_market_that_nobody_holds_is_none() -> None:
    markets = [payload for payload in without_caps("SOL-USD") if payload.request == "perpetualMarkets"]
    result = normalized(markets)
    assert rows_of(result, "margin_tiers", market="dydx_v4:SOL-USD")
    assert result.failures == []


def test_caps_of_zero_are_stated_and_no_finding() -> None:
    found = desk()
    found[MARKETS] = changed(found[MARKETS], lambda body: body["markets"]["SOL-USD"].update(dict.fromkeys(CAPS, "0")))
    assert findings(normalized(found)) == []


def test_a_nodes_tiers_stand_in_for_caps_that_the_indexer_leaves_out() -> None:
    found, without = desk(), without_caps("BTC-USD")
    found[MARKETS] = next(p for p in without if p.request == "perpetualMarkets")
    assert findings(normalized(found)) == []
