"""Hyperliquid: open orders, settings in one coin and margin tables by id, in the sample of 2024-06-30."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from adapters.adapter import Normalized
from adapters.hyperliquid import FACTS
from adapters.transport import Payload
from aggregator.errors import FailureReason
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.snapshot import take_snapshot
from tests.desk_hyperliquid import as_json, fetched, normalized
from tests.normalized_rows import only, rows_of
from tests.payload_files import changed

from .sample_hyperliquid import PAYLOADS as SAMPLE

JUNE = "hyperliquid:june:cross"
JUNE_SOL, JUNE_LAB, JUNE_SPOT = "hyperliquid:june:isolated:SOL", "hyperliquid:june:cross:lab", "hyperliquid:june:spot"
JUNE_AS_OF = datetime(2024, 6, 30, tzinfo=UTC)


def june() -> dict[str, Payload]:
    """The sample by file name without prefix and suffix."""
    return {
        file.removeprefix("june_").removesuffix(".json"): fetched(file, request, owner)
        for request, file, owner in SAMPLE
    }


def june_with(file: str, change: Callable[[Any], Any], *, without: tuple[str, ...] = ()) -> Normalized:
    payloads = {name: payload for name, payload in june().items() if name not in without}
    payloads[file] = changed(payloads[file], change)
    return normalized(*payloads.values())


def test_the_sample_is_read_whole_and_of_one_instant() -> None:
    result = normalized(*june().values())
    assert result.failures == []
    accounts = {row["account_id"]: row for row in rows_of(result, "accounts")}
    assert accounts.keys() == {JUNE, JUNE_SOL, JUNE_LAB, JUNE_SPOT}
    assert {row["received_at"] for row in accounts.values()} == {JUNE_AS_OF}
    assert FACTS.title == "Hyperliquid"
    reordered = normalized(*list(june().values())[::-1])
    assert as_json(reordered.batches) == as_json(result.batches)


def test_the_engine_reproduces_the_venues_figures() -> None:
    result = normalized(*june().values())
    snapshot = take_snapshot([result.batches], result.failures, as_of=JUNE_AS_OF)
    assert snapshot.failures == ()
    book, _ = pack_book({"": snapshot}, {"all": ["hyperliquid:june"]}, as_of=JUNE_AS_OF)
    [native] = native_today(book)
    assert native is not None
    seen = set()
    for i, info in enumerate(book.portfolios[0].accounts):
        names = ("reported_equity", "reported_initial_margin", "reported_maintenance_margin")
        for name, ours in zip(names, (native.equity[i], native.initial[i], native.maintenance[i]), strict=True):
            reported = info.reported[name]
            if reported is not None:
                # The venue truncates every position's figure to 6 decimals.
                assert float(ours) == pytest.approx(reported, rel=1e-9, abs=4e-6), (info.account_id, name)
                seen.add((info.account_id, name))
    assert len(seen) == 7


def test_open_orders_stand_with_the_account_that_holds_their_coin() -> None:
    result = normalized(*june().values())
    orders = {row["order_id"]: row for row in rows_of(result, "open_orders")}
    assert {number: row["account_id"] for number, row in orders.items()} == {
        "91490942": JUNE,
        "91490943": JUNE,
        "91490944": JUNE_SOL,
        "91490945": JUNE_SPOT,
    }
    first = orders["91490942"]
    assert (first["side"], first["remaining_quantity"], first["limit_price"]) == ("buy", Decimal("0.3"), Decimal(60100))
    # What only reduces is said by the fuller list alone; the trigger order that it adds does not rest.
    assert [row["reduce_only"] for row in orders.values()] == [False, True, True, False]
    pair = only(result, "instruments", instrument_id="hyperliquid:@107")
    assert (pair["kind"], pair["underlying"], pair["settlement_asset"]) == ("spot", "HYPE", "USDC")


def test_orders_change_no_requirement() -> None:
    orders = ("open_orders", "frontend_open_orders")
    without = normalized(*(payload for name, payload in june().items() if name not in orders))
    whole = normalized(*june().values())
    for table in ("accounts", "positions", "rule_sets", "margin_tiers", "balances"):
        assert rows_of(without, table) == rows_of(whole, table)
    assert rows_of(without, "open_orders") == []


BAD_ORDERS = [
    (lambda b: b[0].pop("coin"), FailureReason.MISSING_FIELD, "[0].coin"),
    (lambda b: b[0].update(coin="NOSUCH"), FailureReason.UNKNOWN_MARKET, "[0].coin"),
    (lambda b: b[0].update(coin="@999"), FailureReason.UNKNOWN_MARKET, "[0].coin"),
    (lambda b: b[0].update(sz="much"), FailureReason.NOT_A_NUMBER, "[0].sz"),
    (lambda b: b[0].update(sz="-1"), FailureReason.OUT_OF_RANGE, "[0].sz"),
    (lambda b: b[0].update(limitPx="0"), FailureReason.OUT_OF_RANGE, "[0].limitPx"),
    (lambda b: b[0].update(side="buy"), FailureReason.MALFORMED, "[0].side"),
    (lambda b: b[0].update(oid=None), FailureReason.MISSING_FIELD, "[0].oid"),
    (lambda b: b[0].update(oid=True), FailureReason.MALFORMED, "[0].oid"),
    (lambda b: b[0].update(reduceOnly="no"), FailureReason.MALFORMED, "[0].reduceOnly"),
    (lambda b: b.append(b[1]), FailureReason.DUPLICATE, "[4]"),
    (lambda b: b.__setitem__(3, 7), FailureReason.MALFORMED, "[3]"),
]


@pytest.mark.parametrize(("change", "reason", "path"), BAD_ORDERS)
def test_an_order_that_cannot_be_read_is_a_finding(
    change: Callable[[Any], Any], reason: FailureReason, path: str
) -> None:
    result = june_with("open_orders", change, without=("frontend_open_orders",))
    assert [(f.reason, f.path, f.account_id) for f in result.failures] == [(reason, path, None)]
    assert len(rows_of(result, "open_orders")) == 3


def test_two_lists_that_contradict_each_other_and_orders_without_account() -> None:
    result = june_with("open_orders", lambda b: b[0].update(sz="0.4"))
    assert [f.reason for f in result.failures] == [FailureReason.DUPLICATE]
    assert "91490942" not in {row["order_id"] for row in rows_of(result, "open_orders")}
    result = june_with("open_orders", lambda b: None, without=("clearinghouse_state", "frontend_open_orders"))
    assert {f.reason for f in result.failures} == {FailureReason.MISSING_FIELD}
    assert [row["account_id"] for row in rows_of(result, "open_orders")] == [JUNE_SPOT]
    body = replace(june()["open_orders"], body={"orders": []})
    assert [f.reason for f in normalized(body).failures] == [FailureReason.MALFORMED]


def test_an_active_asset_confirms_the_leverage_and_gives_a_mark() -> None:
    result = normalized(*june().values())
    assert only(result, "marks", account_id=None, subject="hyperliquid:lab:BTC", field="mark")["value"] == 60980.0
    wrong = june_with("active_asset_data_btc", lambda b: b["leverage"].update(value=5))
    assert [(f.reason, f.account_id) for f in wrong.failures] == [(FailureReason.INCONSISTENT, JUNE)]
    isolated = june_with("active_asset_data_btc", lambda b: b["leverage"].update(type="isolated"))
    assert [(f.reason, f.account_id) for f in isolated.failures] == [(FailureReason.INCONSISTENT, JUNE)]
    for change in (lambda b: b.update(markPx="x"), lambda b: b.pop("leverage"), lambda b: b.update(coin="NOSUCH")):
        assert [f.account_id for f in june_with("active_asset_data_btc", change).failures] == [None]


def test_a_margin_table_asked_by_its_id() -> None:
    """BTC's table is in no meta payload of the sample: it comes from marginTable:56."""
    result = normalized(*june().values())
    tiers = rows_of(result, "margin_tiers", rule_set="hyperliquid:perp", market="hyperliquid:BTC")
    assert [row["notional_floor"] for row in tiers] == [0, 150_000_000]
    other = june_with("margin_table_56", lambda b: b["marginTiers"][0].update(maxLeverage=50))
    assert JUNE in {f.account_id for f in other.failures}  # the market says 40x
    broken = june_with("margin_table_56", lambda b: b["marginTiers"].pop(0))
    assert {f.account_id for f in broken.failures} == {None, JUNE}
    nameless = replace(june()["margin_table_56"], request="marginTable")
    assert FailureReason.MISSING_FIELD in {f.reason for f in normalized(nameless).failures}
    twice = normalized(*june().values(), replace(june()["margin_table_56"], name="again"))
    assert FailureReason.DUPLICATE in {f.reason for f in twice.failures}

    def listed_otherwise(body: Any) -> None:
        body[0]["marginTables"].append([56, {"marginTiers": [{"lowerBound": "0.0", "maxLeverage": 40}]}])

    clash = june_with("meta_and_asset_ctxs", listed_otherwise)
    assert FailureReason.INCONSISTENT in {f.reason for f in clash.failures}
