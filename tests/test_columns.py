"""Long lists read by columns: the same tables and failures as row by row, whatever the payloads hold."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import columns as flat
from adapters.adapter import Context, Normalized, find_adapter
from adapters.amounts import FieldError, decimal_of
from adapters.asset_book import read_asset_book
from adapters.columns import Columns, canonical_table, encoded, nearest_floats, not_surely_within
from adapters.rows import Rows
from adapters.transport import Payload
from aggregator.errors import DataError, FailureReason
from aggregator.schema.canonical import CANONICAL
from aggregator.schema.decimals import quantize
from aggregator.schema.fields import DECIMAL

from . import payload_mutations

BOOK = read_asset_book(Path(__file__).resolve().parent.parent / "configs" / "assets.toml")
NOW = datetime(2024, 6, 30, tzinfo=UTC)
NEVER = 10**9
COINS = ("BTC", "ETH", "SOL", "LINK")
PRICES = {"BTC": Decimal("61000.5"), "ETH": Decimal("3400.25"), "SOL": Decimal("140.125"), "LINK": Decimal("14.03")}
SIZES = {"BTC": Decimal("0.25"), "ETH": Decimal("-3.5"), "SOL": Decimal("120"), "LINK": Decimal("-900.5")}


# ---- one column ------------------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.decimals(allow_nan=True, allow_infinity=True, places=None).map(str),
    st.decimals(min_value=-(10**20), max_value=10**20, places=8).map(lambda number: f"{number:f}"),
    st.integers(-(10**22), 10**22),
    st.decimals(min_value=-(10**19), max_value=10**19, places=4),
    st.sampled_from(payload_mutations.NO_NUMBERS + payload_mutations.EXTREMES + payload_mutations.OTHER_KINDS),
    st.text(alphabet="0123456789.-+eE_ \x00\u0661\ud800", max_size=45),
)


@settings(max_examples=300, deadline=None)
@given(values=st.lists(numbers, max_size=12), optional=st.booleans())
def test_a_plain_number_is_the_one_that_the_row_path_reads(values: list[Any], optional: bool) -> None:
    columns = Columns([[{"x": value} for value in values]])
    found = columns.decimal("x", optional=optional).to_pylist()
    for value, number, plain in zip(values, found, columns.plain.tolist(), strict=True):
        if not plain:
            assert number is None
        elif value is None or value == "":
            assert optional
            assert number is None
        else:
            assert number == quantize(decimal_of(value)) == decimal_of(value)


def test_ordinary_numbers_are_plain_whatever_stands_beside_them() -> None:
    ordinary = ["1.5", "-0.000000000000000001", "99999999999999999999", 7, Decimal("2.25"), "0"]
    columns = Columns([[{"x": value} for value in [*ordinary, "abc", None, "1e5", True, "12\x0034", [], "9" * 90]]])
    found = columns.decimal("x").to_pylist()
    assert found[:6] == [Decimal(str(value)) for value in ordinary]
    assert columns.plain.tolist() == [True] * 6 + [False] * 7


@pytest.mark.parametrize("text", ["30000000000000000000000", "100000000000000000000", "-30000000000000000000000.5"])
def test_what_a_decimal_cannot_hold_is_left_to_the_row_path(text: str) -> None:
    columns = Columns([[{"x": text}]])
    assert columns.decimal("x").to_pylist() == [None]
    assert not columns.plain.any()


def test_signs_words_and_texts() -> None:
    records = [
        {"p": "1", "n": "0", "side": "LONG", "t": "a", "f": False},
        {"p": "0", "n": "-1", "side": "long", "t": "", "f": 0},
        {"p": "-1", "n": "2", "side": ["LONG"], "t": 5, "f": None},
        {"p": "3", "n": "3", "t": "\ud800"},
    ]

    def plain(read: Callable[[Columns], Any]) -> list[bool]:
        columns = Columns([records])
        read(columns)
        return list(columns.plain.tolist())

    assert plain(lambda c: c.positive("p")) == [True, False, False, True]
    assert plain(lambda c: c.non_negative("n")) == [True, False, True, True]
    assert plain(lambda c: c.among("side", ("LONG", "SHORT"))) == [True, False, False, False]
    assert plain(lambda c: c.among("f", (None, False))) == [True, False, True, True]
    assert plain(lambda c: c.text("t")) == [True, False, False, False]
    assert Columns([records]).among("side", ("LONG",)) == ["LONG", None, None, None]


def test_an_empty_text_is_no_number_where_blanks_are_not_allowed() -> None:
    columns = Columns([[{"x": ""}, {"x": None}, {}, {"x": "1"}]])
    assert columns.decimal("x", optional=True, blank=False).to_pylist() == [None, None, None, Decimal(1)]
    assert columns.plain.tolist() == [False, True, True, True]


def test_lists_are_plain_when_all_their_records_are() -> None:
    columns = Columns([[{"a": {"x": "1"}}, {"a": {"x": "1"}}], [], [{"a": 5}, {"a": {"x": "2"}}], ["no record"]])
    inner = columns.inner("a")
    codes, values = encoded(inner.values("x"))
    assert columns.plain_lists().tolist() == [True, True, False, False]
    inner.reject_repeated(codes)
    assert columns.plain_lists().tolist() == [False, True, False, False]
    assert values == ["1", None, "2"]
    chosen = columns.chosen(np.array([False, True, False, True, False]))
    assert chosen.bounds.tolist() == [0, 1, 1, 2, 2]
    assert chosen.plain.all()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_value_within_its_tier_is_never_taken_for_granted(data: st.DataObject) -> None:
    ends = sorted(data.draw(st.sets(st.integers(1, 9), min_size=1, max_size=3)))
    tiers = [(Decimal(end) / 10, Decimal(60 - 10 * number)) for number, end in enumerate(ends)]
    amounts = data.draw(st.lists(st.integers(0, 12).map(lambda tenth: Decimal(tenth) / 10), min_size=1, max_size=8))
    values = data.draw(st.lists(st.integers(30, 70).map(Decimal), min_size=len(amounts), max_size=len(amounts)))
    codes = np.zeros(len(amounts), np.int64)
    doubt = not_surely_within(codes, np.array([float(a) for a in amounts]), pa.array(values, DECIMAL), {0: tiers})
    for amount, value, doubtful in zip(amounts, values, doubt.tolist(), strict=True):
        allowed = next((most for end, most in tiers if amount <= end), tiers[-1][1])
        if value > allowed:
            assert doubtful
        elif all(amount != end for end, _ in tiers):
            assert not doubtful


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.decimals(min_value=-(10**19), max_value=10**19, places=18), max_size=6))
def test_floats_are_the_nearest(values: list[Decimal]) -> None:
    assert nearest_floats(pa.array(values, DECIMAL)).to_pylist() == [float(value) for value in values]


# ---- whole tables among rows -----------------------------------------------------------------------------------------


def states(*names: str) -> pa.Table:
    return canonical_table("market_state", len(names), venue="v", market=list(names), field="f", source="s")


def names_of(rows: Rows) -> list[str]:
    return list(rows.batches()["market_state"].column("market").to_pylist())


def add(rows: Rows, name: str | None) -> None:
    rows.add("market_state", venue="v", market=name, field="f", source="s")


def test_tables_stand_where_they_were_added() -> None:
    rows = Rows("v")
    rows.add_table("market_state", states("a", "b"))
    add(rows, "c")
    rows.add_table("market_state", states("d"))
    rows.add_table("market_state", states())
    rows.add_table("market_state", states("e").slice(0, 1))
    add(rows, "f")
    assert names_of(rows) == ["a", "b", "c", "d", "e", "f"]
    assert rows.batches()["market_state"].schema.equals(CANONICAL["market_state"], check_metadata=True)


def test_a_row_that_the_schema_refuses_moves_no_table() -> None:
    rows = Rows("v")
    add(rows, "a")
    add(rows, None)
    rows.add_table("market_state", states("b"))
    add(rows, "c")
    assert names_of(rows) == ["a", "b", "c"]
    assert [failure.reason for failure in rows.failures] == [FailureReason.MISSING_FIELD]


def test_a_guard_takes_tables_back() -> None:
    rows = Rows("v")
    rows.add_table("market_state", states("a"))
    with rows.guard("payload"):
        rows.add_table("market_state", states("b"))
        rows.add_table(
            "marks", canonical_table("marks", 1, venue="v", subject="x", field="mark", value=[1.0], source="s")
        )
        raise FieldError("x", FailureReason.MALFORMED, "no")
    assert names_of(rows) == ["a"]
    assert rows.batches()["marks"].num_rows == 0


def test_a_table_is_checked_like_any_other() -> None:
    with pytest.raises(KeyError, match="no column"):
        canonical_table("marks", 1, price=[1.0])
    with pytest.raises(DataError):
        canonical_table("market_state", 1, venue="v", market=[None], field="f", source="s")
    with pytest.raises(DataError):
        Rows("v").add_table("market_state", pa.table({"venue": ["v"]}))


# ---- venues ----------------------------------------------------------------------------------------------------------


def payload(request: str, body: Any, owner: str = "") -> Payload:
    return Payload(request, f"{request} {owner}", owner, NOW, "", body)


def binance(owner: str, *, both: bool = True) -> list[Payload]:
    risk = [
        {
            "symbol": f"{coin}USDT",
            "positionAmt": str(SIZES[coin]),
            "entryPrice": str(PRICES[coin] + 1),
            "markPrice": str(PRICES[coin]),
            "unRealizedProfit": "1.5",
            "liquidationPrice": "0",
            "leverage": "20",
            "marginType": "cross",
            "isolatedMargin": "0.00",
            "positionSide": "BOTH",
            "notional": str(SIZES[coin] * PRICES[coin]),
            "isolatedWallet": "0",
        }
        for coin in reversed(COINS)
    ]
    stated = [
        {
            "symbol": row["symbol"],
            "entryPrice": row["entryPrice"],
            "initialMargin": "1.5",
            "maintMargin": "0.5",
            "leverage": "20",
            "isolated": False,
            "positionSide": "BOTH",
            "positionAmt": row["positionAmt"],
            "notional": row["notional"],
            "isolatedWallet": "0",
        }
        for row in risk
    ]
    wallet = {
        "asset": "USDT",
        "walletBalance": "50000",
        "crossWalletBalance": "50000",
        "marginBalance": "50000",
        "openOrderInitialMargin": "0",
    }
    account = {"assets": [wallet]} | ({"positions": [*stated, stated[0] | {"symbol": "XRPUSDT", "positionAmt": "0"}]})
    answers = [payload("fapi/positionRisk", risk, owner)] if both else []
    return [*answers, payload("fapi/account", account, owner)]


def binance_coins(owner: str) -> list[Payload]:
    risk = [
        {
            "symbol": f"{coin}USD_PERP",
            "positionAmt": str(size),
            "entryPrice": "3500",
            "markPrice": str(PRICES[coin]),
            "liquidationPrice": "0",
            "leverage": "10",
            "marginType": "cross",
            "positionSide": "LONG" if size > 0 else "SHORT",
            "notionalValue": f"{size * 100 / PRICES[coin]:.8f}",
            "isolatedWallet": "0",
        }
        for coin, size in (("BTC", 30), ("BTC", -20))
    ]
    wallet = {"asset": "BTC", "walletBalance": "2", "crossWalletBalance": "2", "openOrderInitialMargin": "0"}
    return [payload("dapi/positionRisk", risk, owner), payload("dapi/account", {"assets": [wallet]}, owner)]


def binance_desk() -> tuple[list[Payload], Context]:
    brackets = [
        {"notionalFloor": 0, "notionalCap": 20000, "maintMarginRatio": "0.01", "initialLeverage": 50, "cum": 0},
        {"notionalFloor": 20000, "notionalCap": 900000, "maintMarginRatio": "0.02", "initialLeverage": 25, "cum": 200},
    ]
    coins = [{"qtyFloor": 0, "qtyCap": 10, "maintMarginRatio": "0.01", "initialLeverage": 50, "cum": 0}]
    market = [
        payload("fapi/premiumIndex", [{"symbol": f"{coin}USDT", "markPrice": str(PRICES[coin])} for coin in COINS]),
        payload("fapi/leverageBracket", [{"symbol": f"{coin}USDT", "brackets": brackets} for coin in COINS]),
        payload("dapi/leverageBracket", [{"pair": "BTCUSD", "brackets": coins}]),
        payload("dapi/exchangeInfo", {"symbols": [{"symbol": "BTCUSD_PERP", "contractSize": 100}]}),
    ]
    owners = [*binance("north"), *binance("south", both=False), *binance_coins("north")]
    implied = binance("west")
    for row in implied[0].body:  # version 3 states a margin instead of a leverage and a margin type
        margin = abs(Decimal(row["notional"])) / 20
        del row["leverage"], row["marginType"]
        row["positionInitialMargin"] = f"{margin:.8f}"
    implied[1].body["positions"] = []
    del implied[1].body["positions"]
    return [*market, *owners, *implied], Context(BOOK, {})


def hyperliquid_desk() -> tuple[list[Payload], Context]:
    universe = [{"name": coin, "szDecimals": 3, "maxLeverage": 40, "marginTableId": 40} for coin in COINS]
    contexts = [
        {"oraclePx": str(PRICES[coin]), "markPx": str(PRICES[coin]), "funding": "0.00001", "openInterest": "10"}
        for coin in COINS
    ]
    meta = {"universe": universe, "marginTables": [], "collateralToken": 0}
    out = [payload("metaAndAssetCtxs", [meta, contexts])]
    for owner in ("north", "south"):
        values = {coin: abs(SIZES[coin]) * PRICES[coin] for coin in COINS}
        raw = Decimal("90000.25")
        summary = {
            "accountValue": str(raw + sum(SIZES[coin] * PRICES[coin] for coin in COINS)),
            "totalNtlPos": str(sum(values.values())),
            "totalRawUsd": str(raw),
            "totalMarginUsed": str(sum(values.values()) / 20),
        }
        entries = [
            {
                "type": "oneWay",
                "position": {
                    "coin": coin,
                    "szi": str(SIZES[coin]),
                    "leverage": {"type": "cross", "value": 20},
                    "entryPx": str(PRICES[coin] + 1),
                    "positionValue": str(values[coin]),
                    "liquidationPx": None if coin == "BTC" else "7.5",
                    "marginUsed": str(values[coin] / 20),
                    "maxLeverage": 40,
                },
            }
            for coin in COINS
        ]
        body = {"marginSummary": summary, "crossMarginSummary": summary, "assetPositions": entries}
        out.append(payload("clearinghouseState", body | {"time": 1719705600000}, owner))
    return out, Context(BOOK, {})


def bybit_desk() -> tuple[list[Payload], Context]:
    def answer(rows: list[Any], category: str = "") -> Any:
        return {"retCode": 0, "result": {"category": category, "list": rows}, "time": 1719705600000}

    tickers = [{"symbol": f"{coin}USDT", "markPrice": str(PRICES[coin]), "indexPrice": "1"} for coin in COINS]
    limits = [
        {
            "symbol": f"{coin}USDT",
            "riskLimitValue": str(limit),
            "maintenanceMargin": rate,
            "initialMargin": initial,
            "maxLeverage": most,
            "mmDeduction": "",
        }
        for coin in COINS
        for limit, rate, initial, most in ((20000, "0.01", "0.02", "50"), (2000000, "0.02", "0.04", "25"))
    ]
    out = [payload("market/tickers:linear", answer(tickers, "linear"))]
    out.append(payload("market/risk-limit:linear", answer(limits, "linear")))
    for owner in ("north", "south"):
        rows = [
            {
                "positionIdx": 0,
                "symbol": f"{coin}USDT",
                "side": "Buy" if SIZES[coin] > 0 else "Sell",
                "size": str(abs(SIZES[coin])),
                "avgPrice": str(PRICES[coin] + 1),
                "tradeMode": 0,
                "leverage": "10",
                "positionBalance": "",
                "markPrice": "" if coin == "ETH" else str(PRICES[coin]),
                "liqPrice": "",
                "bustPrice": "0.5" if coin == "SOL" else "",
                "positionMM": "12.5",
                "positionIM": "130",
                "unrealisedPnl": "1.25",
                "sessionAvgPrice": "",
            }
            for coin in COINS
        ]
        rows.append({"positionIdx": 0, "symbol": "XRPUSDT", "side": "", "size": "0"})
        coin_row: dict[str, Any] = {"coin": "USDT", "walletBalance": "50000", "equity": "50000", "usdValue": "50000"}
        coin_row |= {"marginCollateral": True, "collateralSwitch": True}
        wallet = {"accountType": "UNIFIED", "totalEquity": "50000", "coin": [coin_row | {"totalPositionMM": "50"}]}
        order = {
            "symbol": "SOLUSDT",
            "side": "Buy",
            "orderId": "7",
            "qty": "2",
            "leavesQty": "2",
            "price": "150.5",
            "orderType": "Limit",
        }
        out.append(payload("position/list:linear", answer(rows, "linear"), owner))
        out.append(payload("account/wallet-balance", answer([wallet]), owner))
        out.append(payload("order/realtime:linear", answer([order], "linear"), owner))
    ratios = {"currency": "USDT", "collateralRatioList": [{"minQty": "0", "maxQty": "", "collateralRatio": "1"}]}
    out.append(payload("spot-margin-trade/collateral", answer([ratios])))
    return out, Context(BOOK, {"fees": {"taker_rate": "0.00055"}})


def dydx_v4_desk() -> tuple[list[Payload], Context]:
    markets = {
        f"{coin}-USD": {
            "ticker": f"{coin}-USD",
            "clobPairId": str(number),
            "status": "ACTIVE",
            "oraclePrice": str(PRICES[coin]),
            "initialMarginFraction": "0.05",
            "maintenanceMarginFraction": "0.03",
            "openInterest": "1000",
            "openInterestLowerCap": "1000000",
            "openInterestUpperCap": "90000000",
        }
        for number, coin in enumerate(COINS)
    }
    out = [payload("perpetualMarkets", {"markets": markets})]
    for owner in ("north", "south"):
        positions = {
            f"{coin}-USD": {
                "market": f"{coin}-USD",
                "status": "CLOSED" if coin == "LINK" else "OPEN",
                "side": "LONG" if SIZES[coin] > 0 else "SHORT",
                "size": str(SIZES[coin]),
                "entryPrice": str(PRICES[coin] + 1),
                "unrealizedPnl": None if coin == "ETH" else "1.75",
                "subaccountNumber": 0,
            }
            for coin in COINS
        }
        usdc = {"symbol": "USDC", "side": "LONG", "size": "90000.5"}
        record: dict[str, Any] = {"subaccountNumber": 0, "equity": "90000", "freeCollateral": "50000"}
        record |= {"openPerpetualPositions": positions, "assetPositions": {"USDC": usdc}}
        out.append(payload("subaccount:0", {"subaccount": record}, owner))
    return out, Context(BOOK, {})


DESKS: dict[str, Callable[[], tuple[list[Payload], Context]]] = {
    "binance": binance_desk,
    "bybit": bybit_desk,
    "dydx_v4": dydx_v4_desk,
    "hyperliquid": hyperliquid_desk,
}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Position rows that came as whole tables, one entry per table."""
    found: list[int] = []
    original = Rows.add_table

    def add_table(self: Rows, name: str, table: pa.Table) -> None:
        if name == "positions":
            found.append(table.num_rows)
        original(self, name, table)

    monkeypatch.setattr(Rows, "add_table", add_table)
    return found


def both_ways(venue: str, payloads: Sequence[Payload], context: Context, patch: pytest.MonkeyPatch) -> Normalized:
    """What columns give, which must be what rows give."""
    patch.setattr(flat, "WORTHWHILE", NEVER)
    by_rows = find_adapter(venue).normalize(payloads, context)
    patch.setattr(flat, "WORTHWHILE", 0)
    by_columns = find_adapter(venue).normalize(payloads, context)
    for name, table in by_rows.batches.items():
        assert by_columns.batches[name].equals(table, check_metadata=True), name
    assert by_columns.failures == by_rows.failures
    return by_columns


@pytest.mark.parametrize("venue", DESKS)
def test_ordinary_positions_come_by_columns(venue: str, counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    payloads, context = DESKS[venue]()
    result = both_ways(venue, payloads, context, monkeypatch)
    assert result.failures == []
    assert sum(counted) == result.batches["positions"].num_rows > 0


@pytest.mark.parametrize("venue", DESKS)
def test_a_bad_row_leaves_the_other_owners_to_columns(
    venue: str, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads, context = DESKS[venue]()
    key = {"binance": "entryPrice", "bybit": "avgPrice", "dydx_v4": "entryPrice", "hyperliquid": "entryPx"}[venue]
    number, place = next((n, p) for n, one in enumerate(payloads) for p in places(one.body) if p[-1] == key)
    payloads[number] = replace(payloads[number], body=changed(payloads[number].body, place, lambda value: "-1"))
    result = both_ways(venue, payloads, context, monkeypatch)
    assert any(failure.path.endswith(key) and failure.account_id for failure in result.failures)
    assert 0 < sum(counted) < result.batches["positions"].num_rows


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*place, key))


def changed(node: Any, place: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    if not place:
        return change(node)
    out: Any = dict(node) if isinstance(node, dict) else list(node)
    out[place[0]] = changed(node[place[0]], place[1:], change)
    return out


OTHERS: tuple[Any, ...] = (
    *payload_mutations.NO_NUMBERS,
    *payload_mutations.EXTREMES,
    *payload_mutations.HOSTILE,
    *payload_mutations.OTHER_KINDS,
    *("2.5", "-3", "+5", "5.", "1e2", " 5", "0.1234567890123456789", "150", "26", "20.00", "1.0000001"),
    *("LONG", "SHORT", "BOTH", "isolated", "ISOLATED", "cross", "Sell", "Buy", "true", "false", "BTC", "BTCUSDT"),
    *(Decimal("1E+2"), Decimal("0E-18"), 20, -1, 1, False, "XRPUSDT", "BTCUSD_PERP", [{"symbol": "BTCUSDT"}]),
)


def spoilt(payloads: Sequence[Payload], rng: random.Random) -> list[Payload]:
    out = list(payloads)
    for _ in range(rng.choice((1, 1, 2))):
        number = rng.randrange(len(out))
        found = list(places(out[number].body))
        if not found:
            continue
        place, kind = rng.choice(found), rng.random()
        last = place[-1]

        def without(node: Any, last: Any = last) -> Any:
            return {key: value for key, value in node.items() if key != last}

        def twice(node: Any, last: Any = last) -> Any:
            return [*node, node[last]]

        if kind < 0.2 and isinstance(last, str):
            body = changed(out[number].body, place[:-1], without)
        elif kind < 0.4 and isinstance(last, int):
            body = changed(out[number].body, place[:-1], twice)
        else:
            other = rng.choice(OTHERS)

            def another(value: Any, other: Any = other) -> Any:
                return other

            body = changed(out[number].body, place, another)
        out[number] = replace(out[number], body=body)
    return out


@pytest.mark.parametrize("venue", DESKS)
def test_columns_and_rows_read_the_same_of_spoilt_desks(
    venue: str, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads, context = DESKS[venue]()
    for seed in range(50):
        both_ways(venue, spoilt(payloads, random.Random(seed)), context, monkeypatch)
    assert sum(counted) > 50  # mostly one owner of several is spoilt


@pytest.mark.parametrize("venue", DESKS)
def test_columns_and_rows_read_the_same_of_the_sample(venue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = payload_mutations.sample(venue)
    both_ways(venue, sample.payloads, sample.context, monkeypatch)
    for seed in range(12):
        changes = payload_mutations.mutations(venue, random.Random(seed))
        both_ways(venue, payload_mutations.spoilt(sample.payloads, changes), sample.context, monkeypatch)


def test_short_lists_are_read_row_by_row(counted: list[int]) -> None:
    payloads, context = hyperliquid_desk()
    find_adapter("hyperliquid").normalize(payloads, context)
    assert counted == []
