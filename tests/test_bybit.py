"""Bybit: payloads to canonical tables, every way to be wrong, the exact mechanics, and the engine against both.

The payloads in `payloads/bybit` are written for this suite in the venue's format, and what they must become is in
`expected/bybit/desk.json`. Their owners: north (cross, with options, orders and a loan), south (hedge mode), east
(isolated), west (portfolio margin), harbor (a wallet with a spot loan). Recorded payloads are read where the folder of
recorded material is at hand. The reference figures of the mechanics are checked by `test_vectors.py`.
"""

import copy
import json
import random
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter, Context, Normalized
from adapters.asset_book import Asset, AssetBook
from adapters.bybit import ADAPTER, FACTS, mechanics, request_name
from adapters.bybit.mechanics import CollateralTier, OptionRates, RiskTier
from adapters.bybit.parse import market_of
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.errors import ConfigurationError, Failure, FailureReason
from aggregator.rule_forms import ContractMargin, Fixed, TieredNotional, Verdict, WeightedValue, parse_parameters
from aggregator.snapshot import take_snapshot
from tests.native_figures import native_figures
from tests.sample_bybit import PAYLOADS

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "payloads" / "bybit"
PARAMETERS = tomllib.loads((HERE.parent / "configs" / "venues" / "bybit.toml").read_text(encoding="utf-8"))
NOW = datetime(2024, 6, 30, tzinfo=UTC)

NORTH, SOUTH, EAST, WEST, HARBOR = (f"bybit:{owner}:unified" for owner in ("north", "south", "east", "west", "harbor"))
ETH_LONG, BTC_SHORT = "bybit:east:isolated:ETHUSDT", "bybit:east:isolated:BTCUSD"

# The venue rounds to 8 decimals of a coin; a coin is worth at most 61 thousand dollars, and a sum has a dozen parts.
VENUE_ROUNDING = Fraction(61_000 * 12, 10**8)
# Native figures today are the venue's to 1e-9, the contract of the engine.
NATIVE_RTOL = 1e-9
# Quotients are written to 18 decimals.
COLUMN_ROUNDING = Decimal("1e-15")

FACTORS = ("BTC", "ETH", "SOL", "SHIB", "PEPE")
STABLES = ("USDT", "USDC")
BOOK = AssetBook(
    {symbol: Asset(symbol, symbol, Decimal(1), None, None) for symbol in FACTORS}
    | {symbol: Asset(symbol, None, Decimal(1), symbol, "issuer") for symbol in STABLES}
)

Row = dict[str, Any]


def fetched(name: str, request: str = "", owner: str = "", *, root: Path = FOLDER) -> Payload:
    payload = RecordedTransport(root).fetch("bybit", PayloadRequest(request, name, owner))
    assert isinstance(payload, Payload), payload
    return payload


def desk(*owners: str) -> list[Payload]:
    """The market's payloads and those of some owners, of all where none is named."""
    return [
        fetched(name, request, owner) for request, name, owner in PAYLOADS if not (owners and owner) or owner in owners
    ]


def normalized(payloads: Sequence[Payload], parameters: Any = None) -> Normalized:
    return ADAPTER.normalize(payloads, Context(BOOK, PARAMETERS if parameters is None else parameters))


def answer(request: str, body: Any, owner: str = "", name: str = "made.json") -> Payload:
    return Payload(request, name, owner, NOW, "", body)


def listed(*records: Any, category: str = "", moment: int = 1719705590000) -> Any:
    result: Row = {"list": list(records)} | ({"category": category} if category else {})
    return {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": moment}


def edited(payloads: Sequence[Payload], name: str, edit: Callable[[Any], Any]) -> list[Payload]:
    """The payloads with the body of one file changed in place (or replaced by what `edit` returns)."""
    out = []
    for payload in payloads:
        body = copy.deepcopy(payload.body)
        changed = edit(body) if payload.name == name else None
        out.append(replace(payload, body=body if changed is None else changed))
    assert any(payload.name == name for payload in payloads), name
    return out


def replaced(body: Any) -> Callable[[Any], Any]:
    return lambda _: body


def without(payloads: Sequence[Payload], *names: str) -> list[Payload]:
    return [payload for payload in payloads if payload.name not in names]


def rows_of(result: Normalized, table: str, **where: Any) -> list[Row]:
    return [r for r in result.batches[table].to_pylist() if all(r[key] == value for key, value in where.items())]


def row_of(result: Normalized, table: str, **where: Any) -> Row:
    (row,) = rows_of(result, table, **where)
    return row


def failed(result: Normalized, account: str | None) -> list[Failure]:
    return [failure for failure in result.failures if failure.account_id == account]


def body_of(name: str) -> Any:
    return fetched(name).body["result"]["list"]


# the desk as a whole


def as_json(result: Normalized) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, Decimal):
            return format(value.normalize(), "f") if value else "0"
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if isinstance(value, datetime) else value

    tables = {
        name: [{key: plain(value) for key, value in row.items() if value is not None} for row in table.to_pylist()]
        for name, table in result.batches.items()
        if table.num_rows
    }
    for row in tables.get("rule_sets", ()):
        # What a form leaves at its default is not the adapter's word.
        form = parse_parameters(row["form"], row["parameters"])
        row["parameters"] = form.model_dump(mode="json", exclude_defaults=True)
    return tables


def test_the_desk_becomes_the_expected_tables() -> None:
    expected = json.loads((HERE / "expected" / "bybit" / "desk.json").read_text(encoding="utf-8"))
    result = normalized(desk())
    found = as_json(result)
    assert set(found) == set(expected)
    for name, rows in expected.items():
        assert found[name] == rows, name
    assert result.failures == []


def test_the_order_of_the_payloads_changes_no_row() -> None:
    def sets(result: Normalized) -> dict[str, set[str]]:
        return {name: {repr(row) for row in table.to_pylist()} for name, table in result.batches.items()}

    expected = sets(normalized(desk()))
    for seed in (1, 2):
        shuffled = desk()
        random.Random(seed).shuffle(shuffled)
        assert sets(normalized(shuffled)) == expected


def test_a_snapshot_takes_the_desk_without_a_failure() -> None:
    result = normalized(desk())
    snapshot = take_snapshot([result.batches], result.failures)
    assert snapshot.failures == ()
    assert snapshot.incomplete == frozenset()
    assert {name: len(rows) for name, rows in snapshot.tables.items()} == {
        name: table.num_rows for name, table in result.batches.items()
    }


def test_the_adapter_keeps_the_protocol_and_says_what_it_covers() -> None:
    assert isinstance(ADAPTER, Adapter)
    assert len(set(ADAPTER.requests)) == len(ADAPTER.requests)
    assert FACTS.gaps


@pytest.mark.parametrize("account", [NORTH, SOUTH, WEST, HARBOR, ETH_LONG, BTC_SHORT])
def test_the_engine_computes_what_the_venue_reports(account: str) -> None:
    result = normalized(desk())
    figures = native_figures(result, as_of=NOW)[account]
    row = row_of(result, "accounts", account_id=account)
    for name, got in zip(("equity", "initial_margin", "maintenance_margin"), figures, strict=True):
        assert got == pytest.approx(float(row[f"reported_{name}"]), rel=NATIVE_RTOL, abs=0.0), name


# identities: what the rows say is what the venue says, by arithmetic of this file


def wallet_of(owner: str) -> Row:
    (record,) = body_of(f"wallet_{owner}.json")
    found: Row = record
    return found


def price_of(coin: Row) -> Fraction:
    return Fraction(coin["usdValue"]) / Fraction(coin["equity"])


RATIOS = {entry["currency"]: entry["collateralRatioList"] for entry in body_of("collateral_tiers.json")}


def counted(coin: str, quantity: Fraction) -> Fraction:
    """Coins that count, slice by slice."""
    if quantity < 0:
        return quantity
    total = Fraction(0)
    for entry in RATIOS[coin]:
        low, high = Fraction(entry["minQty"]), Fraction(entry["maxQty"]) if entry["maxQty"] else quantity
        total += max(Fraction(0), min(quantity, high) - low) * Fraction(entry["collateralRatio"])
    return total


@pytest.mark.parametrize("owner", ["north", "south", "harbor"])
def test_the_margin_balance_is_collateral_by_tiers_and_profit_in_full(owner: str) -> None:
    total = Fraction(0)
    for coin in wallet_of(owner)["coin"]:
        net = Fraction(coin["walletBalance"]) - Fraction(coin["spotBorrow"])
        counts = counted(coin["coin"], net) if coin["collateralSwitch"] or net < 0 else Fraction(0)
        total += (counts + Fraction(coin["unrealisedPnl"])) * price_of(coin)
    assert abs(total - Fraction(wallet_of(owner)["totalMarginBalance"])) < VENUE_ROUNDING


@pytest.mark.parametrize(
    ("owner", "category"),
    [("north", "linear"), ("north", "inverse"), ("south", "linear"), ("south", "inverse"), ("east", "inverse")],
)
def test_each_position_is_margined_by_the_tier_rows_of_its_account(owner: str, category: str) -> None:
    result = normalized(desk())
    for record in body_of(f"positions_{owner}_{category}.json"):
        if record["size"] == "0":
            continue
        instrument = f"bybit:{record['symbol']}"
        mode = {0: "net", 1: "long", 2: "short"}[record["positionIdx"]]
        (held,) = [
            row
            for row in rows_of(result, "positions", instrument_id=instrument, side_mode=mode)
            if row["account_id"].startswith(f"bybit:{owner}:")
        ]
        size, mark = Fraction(record["size"]), Fraction(record["markPrice"])
        value = size / mark if category == "inverse" else size * mark
        rule_set = row_of(result, "accounts", account_id=held["account_id"])["rule_set"]
        maintenance = Fraction(0)
        for tier in rows_of(result, "margin_tiers", rule_set=rule_set, market=instrument):
            cap = value if tier["notional_cap"] is None else min(value, Fraction(tier["notional_cap"]))
            maintenance += Fraction(tier["maintenance_rate"]) * max(cap - Fraction(tier["notional_floor"]), Fraction(0))
        assert abs(maintenance - Fraction(record["positionMM"])) < Fraction(1, 10**8)
        initial = value * Fraction(held["initial_rate_override"])
        assert abs(initial - Fraction(record["positionIM"])) < Fraction(1, 10**8)
        assert held["initial_rate_override"] > 1 / held["leverage"]
        profit = Fraction(held["quantity"]) * (
            1 / Fraction(held["entry_price"]) - 1 / mark
            if category == "inverse"
            else mark - Fraction(held["entry_price"])
        )
        assert abs(profit - Fraction(record["unrealisedPnl"])) < Fraction(1, 10**8)


def test_dollar_prices_follow_the_venues_chain() -> None:
    marks = {
        row["subject"]: row["value"] for row in rows_of(normalized(desk()), "marks", account_id=None, field="index")
    }
    rate = 60970.0 / 60994.4
    assert marks["USDT"] == pytest.approx(rate, rel=1e-14)
    assert marks["BTC"] == pytest.approx(60970.0, rel=1e-14)
    assert marks["ETH"] == pytest.approx(3378.9 * rate, rel=1e-14)
    assert marks["USDC"] == 1.0  # a spot ticker states it
    alone = normalized([fetched("tickers_linear.json")])
    assert {row["subject"] for row in rows_of(alone, "marks", field="index")} == {
        f"bybit:{symbol}" for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT", "ETHPERP", "BTC-27SEP24")
    }


def test_a_wallets_own_prices_go_before_the_markets() -> None:
    result = normalized(desk())
    for coin in wallet_of("north")["coin"]:
        mark = row_of(result, "marks", account_id=NORTH, subject=coin["coin"], field="index")
        assert mark["value"] == pytest.approx(float(price_of(coin)), rel=1e-15)
    dust = edited(
        desk("harbor"), "wallet_harbor.json", lambda b: b["result"]["list"][0]["coin"][1].update(usdValue="0.5")
    )
    assert not rows_of(normalized(dust), "marks", account_id=HARBOR, subject="ETH")


def test_isolated_positions_take_their_margin_out_of_the_wallet() -> None:
    result = normalized(desk("east"))
    for coin, home, record in (
        ("USDT", ETH_LONG, body_of("positions_east_linear.json")[0]),
        ("BTC", BTC_SHORT, body_of("positions_east_inverse.json")[0]),
    ):
        (held,) = [c for c in wallet_of("east")["coin"] if c["coin"] == coin]
        margin = row_of(result, "balances", account_id=home, asset_id=coin)["quantity"]
        rest = row_of(result, "balances", account_id=EAST, asset_id=coin)["quantity"]
        assert (margin, margin + rest) == (Decimal(record["positionBalance"]), Decimal(held["walletBalance"]))
        account = row_of(result, "accounts", account_id=home)
        assert (account["node"], account["parent_account_id"], account["settlement_asset"]) == (home, EAST, coin)
        price = row_of(result, "positions", account_id=home)["reported_liquidation_price"]
        assert price == Decimal(record["liqPrice"])
    assert row_of(result, "accounts", account_id=EAST)["reported_equity"] is None


def test_both_sides_of_a_hedge_are_positions_of_their_own() -> None:
    held = rows_of(normalized(desk("south")), "positions", instrument_id="bybit:BTCUSDT")
    assert {(row["side_mode"], row["quantity"]) for row in held} == {
        ("long", Decimal("1.2")),
        ("short", Decimal("-0.8")),
    }


def test_a_usdc_contract_earns_from_its_session_price() -> None:
    held = row_of(normalized(desk("south")), "positions", instrument_id="bybit:ETHPERP")
    assert held["entry_price"] == Decimal("3381.44")


def test_coins_that_are_no_collateral_do_not_count_and_debts_do() -> None:
    result = normalized(desk())
    assert row_of(result, "balances", account_id=SOUTH, asset_id="SOL")["collateral_enabled"] is False
    owed = row_of(result, "balances", account_id=NORTH, asset_id="ETH")
    assert (owed["side"], owed["quantity"]) == ("liability", 5)


def test_a_spot_loan_shows_both_sides_where_its_coin_counts_in_full() -> None:
    result = normalized(desk("harbor"))
    assert {row["side"]: row["quantity"] for row in rows_of(result, "balances", asset_id="USDT")} == {
        "asset": 1200,
        "liability": 200,
    }

    def borrow_ether(body: Any) -> None:
        ether = body["result"]["list"][0]["coin"][1]
        ether.update(walletBalance="1.75", spotBorrow="1", borrowAmount="1")

    # 1.75 less 1 at 97 %: the venue weighs what is left, not both sides
    row = row_of(normalized(edited(desk("harbor"), "wallet_harbor.json", borrow_ether)), "balances", asset_id="ETH")
    assert (row["side"], row["quantity"]) == ("asset", Decimal("0.75"))


# rules as data


def components(result: Normalized, account: str) -> list[tuple[str, str, Any]]:
    rule_set = row_of(result, "accounts", account_id=account)["rule_set"]
    return [
        (row["side"], row["level"], parse_parameters(row["form"], row["parameters"]))
        for row in sorted(rows_of(result, "rule_sets", rule_set=rule_set), key=lambda r: r["component_no"])
    ]


def test_rule_sets() -> None:
    result = normalized(desk())
    verdict = Verdict(liquidates_when="at_or_below", health="requirement_over_equity")
    cross = WeightedValue(weights="collateral_tiers", liabilities="unit", options="excluded")
    tiers = TieredNotional(initial="leverage")
    south = components(result, SOUTH)
    assert [form for _, _, form in south if not isinstance(form, ContractMargin)] == [cross, tiers, verdict]
    (option,) = [form for _, _, form in south if isinstance(form, ContractMargin)]
    assert option.underlyings == ("BTC",)
    assert row_of(result, "accounts", account_id=SOUTH)["rule_set"] == "bybit:cross"
    fixed = {
        (level, form.basis): (form.initial, form.maintenance)
        for _, level, form in components(result, NORTH)
        if isinstance(form, Fixed)
    }
    orders = next(c for c in wallet_of("north")["coin"] if c["coin"] == "USDT")
    initial = Fraction(orders["totalOrderIM"]) * price_of(orders)
    assert abs(Fraction(fixed["initial", "reported totalOrderIM"][0]) - initial) < VENUE_ROUNDING
    ((loan_initial, loan_maintenance),) = [value for (_, basis), value in fixed.items() if "loans" in basis]
    ether = next(c for c in wallet_of("north")["coin"] if c["coin"] == "ETH")
    assert abs(Fraction(loan_initial) - 5 * price_of(ether) / 10) < VENUE_ROUNDING
    assert abs(Fraction(loan_maintenance) - 5 * price_of(ether) / 25) < VENUE_ROUNDING
    (reported,) = [form for _, _, form in components(result, WEST) if isinstance(form, Fixed)]
    totals = wallet_of("west")
    assert (reported.initial, reported.maintenance) == (
        Decimal(totals["totalInitialMargin"]),
        Decimal(totals["totalMaintenanceMargin"]),
    )
    assert [form for _, _, form in components(result, EAST)] == [WeightedValue(), verdict]
    assert [form for _, _, form in components(result, ETH_LONG)] == [WeightedValue(), tiers, verdict]


def test_the_loss_of_an_order_costs_equity() -> None:
    def cross_the_mark(body: Any) -> None:
        body["result"]["list"][0]["price"] = "3380.20"  # a buy of 20 ETH two above the mark
        body["result"]["list"].append(dict(body["result"]["list"][0], orderId="r", price="9999", reduceOnly=True))

    result = normalized(edited(desk("north"), "orders_north.json", cross_the_mark))
    assert result.failures == []
    (loss,) = [form for side, _, form in components(result, NORTH) if isinstance(form, Fixed) and side == "equity"]
    usdt = next(c for c in wallet_of("north")["coin"] if c["coin"] == "USDT")
    assert abs(Fraction(loss.equity) + 40 * price_of(usdt)) < Fraction(1, 10**9)
    usual = native_figures(normalized(desk("north")), as_of=NOW)[NORTH]
    reduced = native_figures(result, as_of=NOW)[NORTH]
    assert reduced.equity - usual.equity == pytest.approx(float(loss.equity), rel=1e-6)


def limits(*rows: tuple[str, str, str, str, str], symbol: str = "BTCUSDT") -> Payload:
    keys = ("riskLimitValue", "maintenanceMargin", "initialMargin", "maxLeverage", "mmDeduction")
    return answer(
        "market/risk-limit", listed(*({"symbol": symbol} | dict(zip(keys, row, strict=True)) for row in rows))
    )


FIRST, SECOND = ("2000000", "0.005", "0.01", "100", ""), ("5000000", "0.0075", "0.015", "66.67", "5000")


def test_percentages_and_fractions_give_the_same_tiers() -> None:
    plain = normalized([limits(FIRST, SECOND)])
    percent = normalized([limits(("2000000", "0.5", "1", "100", ""), ("5000000", "0.75", "1.5", "66.67", ""))])
    assert rows_of(percent, "margin_tiers") == rows_of(plain, "margin_tiers")
    assert [(t["notional_floor"], t["maintenance_rate"], t["deduction"]) for t in rows_of(plain, "margin_tiers")] == [
        (0, Decimal("0.005"), 0),
        (2000000, Decimal("0.0075"), 5000),
    ]
    assert rows_of(normalized([limits(SECOND, FIRST)]), "margin_tiers") == rows_of(plain, "margin_tiers")


@pytest.mark.parametrize(
    ("rows", "path"),
    [
        ([("2000000", "0.005", "0.1", "100", "")], "result.list[0].initialMargin"),
        ([("2000000", "0.02", "0.01", "100", "")], "result.list[0].maintenanceMargin"),
        ([FIRST, ("5000000", "0.004", "0.015", "66.67", "")], "result.list[1].maintenanceMargin"),
        ([FIRST, FIRST], "result.list[1].riskLimitValue"),
        ([FIRST, ("5000000", "0.0075", "0.015", "66.67", "5100")], "result.list[1].mmDeduction"),
        ([("2000000", "0.005", "0.01", "100", "1")], "result.list[0].mmDeduction"),
    ],
)
def test_tiers_that_contradict_themselves_are_refused(rows: Any, path: str) -> None:
    dated = {
        "risk_limits": {
            "BTCUSDT": [
                dict(
                    zip(("riskLimitValue", "maintenanceMargin", "initialMargin", "maxLeverage"), FIRST[:4], strict=True)
                )
            ]
        }
    }
    result = normalized([limits(*rows)], PARAMETERS | dated)
    assert [(f.reason, f.path, f.account_id) for f in result.failures] == [(FailureReason.INCONSISTENT, path, None)]
    assert rows_of(result, "margin_tiers") == []  # the dated table does not stand in for a contradiction of today's
    assert rows_of(normalized([], PARAMETERS | dated), "margin_tiers")


@pytest.mark.parametrize(
    ("tiers", "reason", "path"),
    [
        ([("0", "10", "0.9"), ("11", "", "0")], FailureReason.INCONSISTENT, "collateralRatioList[1]"),
        ([("1", "", "0.9")], FailureReason.INCONSISTENT, "collateralRatioList[0]"),
        ([("0", "", "0.9"), ("10", "", "0")], FailureReason.INCONSISTENT, "collateralRatioList[1]"),
        ([("0", "0", "0.9")], FailureReason.INCONSISTENT, "collateralRatioList[0]"),
        ([("0", "", "1.1")], FailureReason.OUT_OF_RANGE, "collateralRatioList[0].collateralRatio"),
        ([], FailureReason.MISSING_FIELD, ""),
    ],
)
def test_collateral_tiers_that_are_none(tiers: Any, reason: FailureReason, path: str) -> None:
    keys = ("minQty", "maxQty", "collateralRatio")
    record = {"currency": "BTC", "collateralRatioList": [dict(zip(keys, tier, strict=True)) for tier in tiers]}
    result = normalized([answer("spot-margin-trade/collateral", listed(record))])
    assert [(f.reason, f.path) for f in result.failures] == [(reason, f"result.list[0].{path}".rstrip("."))]
    assert rows_of(result, "collateral_tiers") == []


def test_above_the_last_slice_nothing_counts() -> None:
    record = {"currency": "BTC", "collateralRatioList": [{"minQty": "0", "maxQty": "10", "collateralRatio": "0.9"}]}
    tiers = rows_of(normalized([answer("spot-margin-trade/collateral", listed(record))]), "collateral_tiers")
    assert [(t["floor"], t["asset_weight_maintenance"], t["floor_in"]) for t in tiers] == [
        (0, Decimal("0.9"), "tokens"),
        (10, 0, "tokens"),
    ]


def test_a_flat_ratio_stands_in_where_no_tiers_are_known() -> None:
    flat = listed({"currency": "USDT", "collateralRatio": "1"}, {"currency": "ETH", "collateralRatio": "0.9"})
    payloads = without(desk("harbor"), "collateral_tiers.json", "collateral_info_harbor.json")
    for owner, rule_set in (("", "bybit:cross:harbor"), ("harbor", "bybit:cross:harbor")):
        result = normalized([*payloads, answer("account/collateral-info", flat, owner)])
        assert result.failures == []
        tier = row_of(result, "collateral_tiers", rule_set=rule_set, asset_id="ETH")
        assert tier["asset_weight_maintenance"] == Decimal("0.9")


# shapes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("position/list", ("position/list", "")),
        ("/v5/position/list:linear:USDC", ("position/list", "linear:USDC")),
        ("v5/market/tickers", ("market/tickers", "")),
    ],
)
def test_requests_are_named_without_version(text: str, expected: tuple[str, str]) -> None:
    assert request_name(text) == expected


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("BTCUSDT", ("BTC", "USDT", "perp", False, None)),
        ("ETHPERP", ("ETH", "USDC", "perp", False, None)),
        ("1000PEPEUSDT", ("1000PEPE", "USDT", "perp", False, None)),
        ("SHIB1000USDT", ("1000SHIB", "USDT", "perp", False, None)),
        ("USDCUSDT", ("USDC", "USDT", "perp", False, None)),
        ("BTC-27JUN25", ("BTC", "USDC", "future", False, datetime(2025, 6, 27, 8, tzinfo=UTC))),
        ("BTCUSDT-4JUL25", ("BTC", "USDT", "future", False, datetime(2025, 7, 4, 8, tzinfo=UTC))),
        ("BTCUSD", ("BTC", "BTC", "perp", True, None)),
        ("BTCUSDM25", ("BTC", "BTC", "future", True, datetime(2025, 6, 27, 8, tzinfo=UTC))),
        ("ETHUSDZ24", ("ETH", "ETH", "future", True, datetime(2024, 12, 27, 8, tzinfo=UTC))),
        ("BTC-30DEC22-18000-C", ("BTC", "USDC", "option", False, datetime(2022, 12, 30, 8, tzinfo=UTC))),
        ("SOL-5JUL24-140-P-USDT", ("SOL", "USDT", "option", False, datetime(2024, 7, 5, 8, tzinfo=UTC))),
    ],
)
def test_symbols_in_parts(symbol: str, expected: Any) -> None:
    market = market_of(symbol)
    assert (market.base, market.settle, market.kind, market.inverse, market.expiry) == expected


@pytest.mark.parametrize(
    "symbol", ["", "USDT", "BTC", "BTC-31FEB25", "BTC-30DEC22-0-C", "BTC-30XXX22-1-C", "btcusdt", "BTCEUR"]
)
def test_other_symbols_are_no_market(symbol: str) -> None:
    with pytest.raises(ValueError, match="no derivative"):
        market_of(symbol)


def test_delivery_times_of_the_venue_go_before_those_of_the_name() -> None:
    late = {"symbol": "BTCUSDM25", "deliveryTime": "1751011200000", "status": "PreLaunch"}
    result = normalized([answer("market/instruments-info", listed(late, category="inverse"))])
    assert row_of(result, "instruments")["expiry"] == datetime(2025, 6, 27, 8, tzinfo=UTC)
    late["deliveryTime"] = "1751097600000"
    result = normalized([answer("market/instruments-info", listed(late, category="inverse"))])
    assert row_of(result, "instruments")["expiry"] == datetime(2025, 6, 28, 8, tzinfo=UTC)
    assert row_of(result, "market_state")["text"] == "PreLaunch"


def test_messages_and_bare_bodies_read_like_answers() -> None:
    expected = as_json(normalized(desk()))
    wallet = body_of("wallet_south.json")
    for body in (
        {"topic": "wallet", "creationTime": 1719705597000, "data": wallet},
        {"list": wallet, "time": 1719705597000},
        {"result": wallet[0], "time": "1719705597000"},
    ):
        assert as_json(normalized(edited(desk(), "wallet_south.json", replaced(body)))) == expected
    tickers = body_of("tickers_linear.json")
    message = [
        answer(f"market/tickers:linear:{t['symbol']}", {"topic": "tickers", "ts": 1719705596000, "data": t})
        for t in tickers
    ]
    rest = without(desk(), "tickers_linear.json")
    assert as_json(normalized([*message, *rest])) == expected


def test_names_that_messages_spell_otherwise() -> None:
    def rename(pairs: dict[str, str], records: list[Any]) -> None:
        for record in records:
            for old, new in pairs.items():
                if old in record:
                    record[new] = record.pop(old)

    expected = as_json(normalized(desk()))
    positions = edited(
        desk(), "positions_south_linear.json", lambda b: rename({"avgPrice": "entryPrice"}, b["result"]["list"])
    )
    assert as_json(normalized(positions)) == expected
    names = {"markIv": "markPriceIv", "bid1Price": "bidPrice", "ask1Price": "askPrice"}
    options = edited(desk(), "tickers_option.json", lambda b: rename(names, b["result"]["list"]))
    assert as_json(normalized(options)) == expected


def test_spot_answers_of_the_same_names_are_not_taken_for_derivatives() -> None:
    expected = as_json(normalized(desk()))
    fees = listed({"symbol": "ETHUSDT", "takerFeeRate": "0.01", "makerFeeRate": "0.01"}, category="spot")
    pairs = listed({"symbol": "ETHUSDT", "status": "Closed", "deliveryTime": "1"}, category="spot")
    more = [
        answer("account/fee-rate:spot", fees, "south"),
        answer("account/fee-rate:spot", fees),
        answer("market/instruments-info:spot", pairs),
    ]
    assert as_json(normalized([*desk(), *more])) == expected


def test_numbers_may_be_json_numbers_and_rows_may_lack_what_is_optional() -> None:
    def plain(body: Any) -> None:
        for record in body["result"]["list"]:
            record.update(
                size=Decimal(record["size"]), leverage=int(record["leverage"]), avgPrice=Decimal(record["avgPrice"])
            )
            for key in ("positionIMByMp", "positionMMByMp", "bustPrice", "liqPrice", "tradeMode", "sessionAvgPrice"):
                del record[key]

    result = normalized(edited(desk(), "positions_south_inverse.json", plain))
    assert as_json(result)["positions"] == as_json(normalized(desk()))["positions"]


def test_a_book_gives_best_prices_and_notional_of_its_levels() -> None:
    result = normalized([fetched("orderbook_btcusdt.json"), fetched("tickers_linear.json")])
    values = {row["field"]: row["value"] for row in rows_of(result, "marks", subject="bybit:BTCUSDT")}
    assert (values["bid"], values["ask"]) == (60990.0, 60990.1)
    assert values["depth_bid"] == float(Decimal("60990.00") * Decimal("4.120") + Decimal("60989.80") * Decimal("0.75"))
    inverse = {"s": "BTCUSD", "b": [["60960", "1000"]], "a": [["60970", "500"], ["60980", "0"]]}
    result = normalized([answer("market/orderbook", {"result": inverse})])
    values = {row["field"]: row["value"] for row in rows_of(result, "marks", subject="bybit:BTCUSD")}
    assert (values["depth_bid"], values["depth_ask"]) == (1000.0, 500.0)


def test_the_last_settled_funding_is_kept() -> None:
    row = row_of(normalized([fetched("funding_history.json")]), "market_state", field="funding_rate")
    assert (row["value"], row["as_of"]) == (0.0001, datetime(2024, 6, 29, 16, tzinfo=UTC))


def test_the_mode_comes_from_the_answer_then_the_parameters_then_the_venues_default() -> None:
    bare = without(desk("east"), "info_east.json")
    # without a word of the mode, the positions' own trade mode keeps them apart, but the blank totals do not
    assert {f.reason for f in failed(normalized(bare), EAST)} <= {
        FailureReason.MISSING_FIELD,
        FailureReason.INCONSISTENT,
    }
    configured = PARAMETERS | {"accounts": {"margin_mode": "ISOLATED_MARGIN"}}
    assert as_json(normalized(bare, configured))["accounts"] == as_json(normalized(desk("east")))["accounts"]
    assert row_of(normalized(desk("west"), configured), "accounts")["margin_mode"] == "portfolio"
    odd = normalized([], {"accounts": {"margin_mode": ["x"]}})
    assert [(f.reason, f.path) for f in odd.failures] == [(FailureReason.MALFORMED, "accounts.margin_mode")]
    with pytest.raises(ConfigurationError, match=r"expected a table \[fees\]"):
        normalized([], {"fees": 3})


# bad input


POSITION_EDITS: list[tuple[dict[str, Any], FailureReason, str]] = [
    ({"size": "NaN"}, FailureReason.NOT_A_NUMBER, "size"),
    ({"size": None}, FailureReason.MISSING_FIELD, "size"),
    ({"size": "1e21"}, FailureReason.OUT_OF_RANGE, "size"),
    ({"size": "-1"}, FailureReason.OUT_OF_RANGE, "size"),
    ({"avgPrice": "0"}, FailureReason.OUT_OF_RANGE, "avgPrice"),
    ({"avgPrice": "x"}, FailureReason.NOT_A_NUMBER, "avgPrice"),
    ({"markPrice": "-60000"}, FailureReason.OUT_OF_RANGE, "markPrice"),
    ({"leverage": "0.5"}, FailureReason.OUT_OF_RANGE, "leverage"),
    ({"leverage": ""}, FailureReason.MISSING_FIELD, "leverage"),
    ({"side": "Up"}, FailureReason.MALFORMED, "side"),
    ({"side": ""}, FailureReason.MALFORMED, "side"),
    ({"positionIdx": 2}, FailureReason.INCONSISTENT, "side"),
    ({"positionIdx": 3}, FailureReason.MALFORMED, "positionIdx"),
    ({"positionIdx": True}, FailureReason.MALFORMED, "positionIdx"),
    ({"symbol": "BTCEUR"}, FailureReason.UNKNOWN_MARKET, "symbol"),
    ({"symbol": "WIFUSDT"}, FailureReason.UNKNOWN_MARKET, "symbol"),
    ({"symbol": 5}, FailureReason.MALFORMED, "symbol"),
    ({"liqPrice": "-1"}, FailureReason.OUT_OF_RANGE, "liqPrice"),
]


@pytest.mark.parametrize(("edit", "reason", "field"), POSITION_EDITS)
def test_a_bad_position_makes_its_account_incomplete_and_no_other(
    edit: dict[str, Any], reason: FailureReason, field: str
) -> None:
    payloads = edited(desk(), "positions_north_linear.json", lambda body: body["result"]["list"][0].update(edit))
    result = normalized(payloads)
    found = [f for f in failed(result, NORTH) if f.reason == reason and f.path == f"result.list[0].{field}"]
    assert [f.payload for f in found] == ["positions_north_linear.json"]
    assert {f.account_id for f in result.failures} == {NORTH}
    assert not rows_of(result, "positions", account_id=NORTH, instrument_id="bybit:BTCUSDT")
    assert len(rows_of(result, "positions", account_id=NORTH)) == 6  # the others stay


COIN_EDITS: list[tuple[dict[str, Any], FailureReason, str]] = [
    ({"walletBalance": "NaN"}, FailureReason.NOT_A_NUMBER, "walletBalance"),
    ({"walletBalance": None}, FailureReason.MISSING_FIELD, "walletBalance"),
    ({"walletBalance": True}, FailureReason.NOT_A_NUMBER, "walletBalance"),
    ({"spotBorrow": "-3"}, FailureReason.OUT_OF_RANGE, "spotBorrow"),
    ({"totalOrderIM": None}, FailureReason.MISSING_FIELD, "totalOrderIM"),
    ({"collateralSwitch": "perhaps"}, FailureReason.MALFORMED, "collateralSwitch"),
    ({"collateralSwitch": None}, FailureReason.MISSING_FIELD, "collateralSwitch"),
    ({"coin": "WAGMI"}, FailureReason.UNKNOWN_ASSET, "coin"),
    ({"usdValue": "1"}, FailureReason.INCONSISTENT, "totalEquity"),
]


@pytest.mark.parametrize(("edit", "reason", "field"), COIN_EDITS)
def test_a_bad_coin_makes_its_account_incomplete_and_no_other(
    edit: dict[str, Any], reason: FailureReason, field: str
) -> None:
    payloads = edited(desk(), "wallet_north.json", lambda body: body["result"]["list"][0]["coin"][0].update(edit))
    result = normalized(payloads)
    place = "result.list[0]." if field == "totalEquity" else "result.list[0].coin[0]."
    assert (reason, place + field) in {(f.reason, f.path) for f in failed(result, NORTH)}
    assert {f.account_id for f in result.failures} == {NORTH}
    assert rows_of(result, "accounts", account_id=NORTH)


@pytest.mark.parametrize(
    "name",
    ["wallet_north.json", "positions_north_linear.json", "orders_north.json", "info_north.json", "fee_rate_north.json"],
)
@pytest.mark.parametrize("body", [None, "x", {}, {"retCode": 10001, "retMsg": "params error", "result": {}}, 7])
def test_an_unreadable_answer_makes_its_account_incomplete_and_no_other(name: str, body: Any) -> None:
    result = normalized([replace(p, body=body) if p.name == name else p for p in desk()])
    assert {f.account_id for f in result.failures} == {NORTH}
    assert all(f.payload == name for f in result.failures if f.path == "retCode")


@pytest.mark.parametrize(
    ("gone", "account", "reason"),
    [
        ("wallet_north.json", NORTH, FailureReason.MISSING_FIELD),
        ("positions_north_option.json", NORTH, FailureReason.MISSING_FIELD),
        ("risk_limit_linear.json", NORTH, FailureReason.MISSING_PARAMETER),
        ("risk_limit_inverse.json", NORTH, FailureReason.MISSING_PARAMETER),
        ("collateral_tiers.json", NORTH, FailureReason.MISSING_PARAMETER),
        ("tickers_option.json", NORTH, FailureReason.MISSING_MARK),
        ("positions_east_linear.json", EAST, FailureReason.MISSING_FIELD),
    ],
)
def test_what_an_account_needs_and_nobody_sent(gone: str, account: str, reason: FailureReason) -> None:
    payloads = without(desk(), gone)
    if gone == "positions_north_option.json":
        payloads = without(payloads, "positions_north_linear.json")  # then nothing explains the margin in USDT
    result = normalized(payloads)
    assert reason in {f.reason for f in failed(result, account)}


def test_a_short_option_without_factors_and_a_position_without_a_fee_are_not_computed() -> None:
    result = normalized(desk(), {key: value for key, value in PARAMETERS.items() if key not in ("options", "fees")})
    messages = {f.message for f in failed(result, NORTH)}
    assert any("factors of short BTC options" in message for message in messages)
    assert any("no taker rate of ETHUSDT" in message for message in messages)
    assert not any("taker rate of BTCUSDT" in message for message in messages)  # its owner's own is known


def test_two_answers_to_one_question_are_both_rejected() -> None:
    for name, account in (
        ("wallet_north.json", NORTH),
        ("positions_north_linear.json", NORTH),
        ("tickers_linear.json", None),
    ):
        again = [p for p in desk() if p.name == name]
        for order in ([*desk(), *again], [*again, *desk()]):
            result = normalized(order)
            assert [f.account_id for f in result.failures if f.reason == FailureReason.DUPLICATE] == [account]
    twice = edited(desk(), "positions_north_linear.json", lambda b: b["result"]["list"].append(b["result"]["list"][0]))
    result = normalized(twice)
    assert [(f.reason, f.path) for f in failed(result, NORTH)] == [(FailureReason.DUPLICATE, "result.list[3]")]
    assert not rows_of(result, "positions", account_id=NORTH, instrument_id="bybit:BTCUSDT")
    both = listed({"symbol": "BTCUSDT", "markPrice": "1", "indexPrice": "1"}, category="linear")
    contradicted = normalized([*desk(), answer("market/tickers:linear:BTCUSDT", both)])
    assert [(f.reason, f.subject, f.account_id) for f in contradicted.failures] == [
        (FailureReason.DUPLICATE, "BTCUSDT", None)
    ]


def test_requests_that_are_not_understood_and_owners_that_are_not_named() -> None:
    unknown = normalized([answer("v5/asset/coin/query-info", {}, "north")])
    assert [(f.reason, f.subject) for f in unknown.failures] == [(FailureReason.UNSUPPORTED, "north")]
    nobody = normalized([answer("position/list", listed())])
    assert [(f.reason, f.path) for f in nobody.failures] == [(FailureReason.MISSING_FIELD, "account")]


def test_a_coin_that_stands_twice_and_totals_below_their_parts() -> None:
    def twice(body: Any) -> None:
        coins = body["result"]["list"][0]["coin"]
        coins.append(coins[0])

    result = normalized(edited(desk("south"), "wallet_south.json", twice))
    assert (FailureReason.DUPLICATE, "result.list[0].coin[4]") in {(f.reason, f.path) for f in failed(result, SOUTH)}

    def shrink(body: Any) -> None:
        body["result"]["list"][0].update(totalMaintenanceMargin="100", totalMaintenanceMarginByMp="100")

    result = normalized(edited(desk("north"), "wallet_north.json", shrink))
    assert [(f.reason, f.path) for f in failed(result, NORTH)] == [
        (FailureReason.INCONSISTENT, "result.list[0].totalMaintenanceMargin")
    ]

    def silence(body: Any) -> None:
        del body["result"]["list"][0]["coin"][3]["totalPositionMM"]

    result = normalized(edited(desk("north"), "wallet_north.json", silence))
    assert [(f.reason, f.path) for f in failed(result, NORTH)] == [
        (FailureReason.MISSING_FIELD, "result.list[0].coin[3]")
    ]


def test_positions_that_do_not_explain_the_wallets_margin() -> None:
    def shorten(body: Any) -> None:
        del body["result"]["list"][0]

    result = normalized(edited(desk("south"), "positions_south_linear.json", shorten))
    assert [(f.reason, f.path) for f in failed(result, SOUTH)] == [
        (FailureReason.INCONSISTENT, "result.list[0].coin[0].totalPositionMM")
    ]


def test_wallets_of_other_types_and_modes_that_nobody_knows() -> None:
    def classic(body: Any) -> None:
        body["result"]["list"].append(dict(body["result"]["list"][0], accountType="CONTRACT"))

    result = normalized(edited(desk("harbor"), "wallet_harbor.json", classic))
    assert [(f.reason, f.path) for f in failed(result, HARBOR)] == [
        (FailureReason.UNSUPPORTED, "result.list[1].accountType")
    ]
    odd = edited(desk("west"), "info_west.json", lambda body: body["result"].update(marginMode="NEW_MARGIN"))
    assert (FailureReason.UNSUPPORTED, "result.marginMode") in {
        (f.reason, f.path) for f in failed(normalized(odd), WEST)
    }


def test_spot_orders_are_a_finding() -> None:
    spot = listed({"orderId": "1", "symbol": "BTCUSDT", "side": "Buy", "qty": "1", "price": "5"}, category="spot")
    result = normalized([*desk("south"), answer("order/realtime:spot", spot, "south")])
    assert [(f.reason, f.account_id) for f in result.failures] == [(FailureReason.UNSUPPORTED, None)]


def test_more_leverage_than_the_tier_allows_is_a_finding() -> None:
    payloads = edited(desk(), "positions_north_linear.json", lambda b: b["result"]["list"][0].update(leverage="80"))
    (finding,) = normalized(payloads).failures  # 40.5 BTC are 2.47 million: the second tier, up to 66.67
    assert (finding.reason, finding.account_id) == (FailureReason.INCONSISTENT, None)
    assert "at most 66.67" in finding.message


def test_truncated_and_missing_files_are_said_by_the_transport(tmp_path: Path) -> None:
    text = (FOLDER / "wallet_north.json").read_text(encoding="utf-8")
    (tmp_path / "cut.json").write_text(text[: len(text) // 2], encoding="utf-8")
    transport = RecordedTransport(tmp_path)
    reasons = []
    for name in ("cut.json", "gone.json"):
        failure = transport.fetch("bybit", PayloadRequest("account/wallet-balance", name, "north"))
        assert isinstance(failure, Failure)
        reasons.append(failure.reason)
    assert reasons == [FailureReason.MALFORMED, FailureReason.UNREACHABLE]


JUNK: tuple[Any, ...] = (None, "", "NaN", "-1", "x", -1, 0, True, [], {}, [[]], Decimal("1e30"), "BTCUSDT", {"a": 1})
MUTATIONS = 80


def test_mutated_answers_never_raise_and_never_leave_an_unflagged_gap() -> None:
    chance = random.Random(20240630)
    payloads = desk()
    accounts = {row["account_id"] for row in rows_of(normalized(payloads), "accounts")}
    for _ in range(MUTATIONS):
        number = chance.randrange(len(payloads))
        body = copy.deepcopy(payloads[number].body)
        spots: list[tuple[Any, Any]] = []
        stack = [body]
        while stack:
            node = stack.pop()
            for key, value in node.items() if isinstance(node, dict) else enumerate(node):
                spots.append((node, key))
                if isinstance(value, dict | list):
                    stack.append(value)
        node, key = chance.choice(spots)
        node[key] = chance.choice(JUNK)
        result = normalized([*payloads[:number], replace(payloads[number], body=body), *payloads[number + 1 :]])
        known = {row["account_id"] for row in rows_of(result, "accounts")}
        assert {f.account_id for f in result.failures if f.account_id} <= known
        if not accounts <= known:
            assert result.failures
        for table in ("positions", "balances", "open_orders"):
            assert {row["account_id"] for row in rows_of(result, table)} <= known
        take_snapshot([result.batches], result.failures)


# mechanics


TIERS = [RiskTier(Fraction(limit), Fraction(rate)) for limit, rate in ((2000, "0.02"), (5000, "0.03"), (9000, "0.05"))]
OPEN = [*TIERS[:2], RiskTier(None, Fraction("0.05"))]
RATES = OptionRates(Fraction("0.15"), Fraction("0.10"), Fraction("0.03"), Fraction("0.002"))

money = st.fractions(min_value=Fraction(1, 100), max_value=20_000, max_denominator=10_000)
prices = st.fractions(min_value=Fraction(1, 10), max_value=100_000, max_denominator=1_000)
ladders = st.lists(
    st.tuples(st.fractions(1, 1000, max_denominator=100), st.fractions(0, Fraction(1, 20), max_denominator=1000)),
    min_size=1,
    max_size=6,
).map(
    lambda steps: [
        RiskTier(sum((s for s, _ in steps[: n + 1]), Fraction(0)), sum((r for _, r in steps[: n + 1]), Fraction(0)))
        for n in range(len(steps))
    ]
)
sides = st.sampled_from((1, -1))


def marginal(value: Fraction, tiers: Sequence[RiskTier]) -> Fraction:
    """Each slice at its own rate; the last one without end."""
    total, floor = Fraction(0), Fraction(0)
    for number, tier in enumerate(tiers):
        top = value if number == len(tiers) - 1 or tier.limit is None else min(value, tier.limit)
        total += max(Fraction(0), top - floor) * tier.rate
        floor = tier.limit if tier.limit is not None else floor
    return total


@settings(max_examples=60)
@given(money, ladders)
def test_value_times_rate_less_deduction_is_the_integral_of_the_rates(value: Fraction, tiers: list[RiskTier]) -> None:
    assert mechanics.maintenance_margin(value, tiers) == marginal(value, tiers)
    assert mechanics.maintenance_margin(-value, tiers) == marginal(value, tiers)


@settings(max_examples=60)
@given(money, money, ladders)
def test_more_value_never_needs_less_and_initial_covers_maintenance(
    value: Fraction, more: Fraction, tiers: list[RiskTier]
) -> None:
    assert mechanics.maintenance_margin(value + more, tiers) >= mechanics.maintenance_margin(value, tiers)
    rate = max(tier.rate for tier in tiers)
    assume(rate > 0)
    leverage = max(Fraction(1), min(Fraction(100), 1 / rate))
    for side, inverse in ((1, False), (-1, False), (1, True), (-1, True)):
        initial = mechanics.initial_margin(value, leverage, side=side, taker_rate=Fraction("0.0006"), inverse=inverse)
        assert initial >= mechanics.maintenance_margin(value, tiers)


def test_edges_of_the_tiers() -> None:
    assert mechanics.maintenance_margin(0, TIERS) == 0
    assert mechanics.maintenance_margin(2000, TIERS) == 40
    assert mechanics.maintenance_margin(20_000, TIERS) == mechanics.maintenance_margin(20_000, OPEN)
    for tiers in ([], [TIERS[1], TIERS[0]], [RiskTier(None, Fraction(1)), TIERS[0]]):
        with pytest.raises(ValueError, match="tiers"):
            mechanics.maintenance_margin(1, tiers)
    with pytest.raises(ValueError, match="at least 1"):
        mechanics.initial_margin(1, Fraction(1, 2))
    with pytest.raises(ValueError, match="must be positive"):
        mechanics.position_value(1, 0)


def test_the_fee_of_closing_is_paid_at_the_bankruptcy_price() -> None:
    # 0.5 BTC at 50 000 with 10x: bankrupt at 45 000, taker 0.06 % of 22 500 (help center, USDC initial margin)
    value = mechanics.position_value(Fraction("0.5"), 50_000)
    assert mechanics.initial_margin(value, 10, taker_rate=Fraction("0.0006")) == 2500 + Fraction("13.5")
    for side, inverse in ((1, False), (-1, False), (1, True), (-1, True)):
        size, price, leverage = Fraction(7), Fraction(400), Fraction(8)
        value = mechanics.position_value(size, price, inverse=inverse)
        bust = mechanics.bankruptcy_price(side, size, price, value / leverage, inverse=inverse)
        assert bust is not None
        fee = mechanics.position_value(size, bust, inverse=inverse) * Fraction("0.0006")
        assert value * mechanics.closing_fee_rate(leverage, side, Fraction("0.0006"), inverse=inverse) == fee


@settings(max_examples=60)
@given(sides, money, prices, st.fractions(1, 50, max_denominator=10), ladders, st.booleans())
def test_at_the_liquidation_price_margin_and_maintenance_meet(
    side: int, size: Fraction, entry: Fraction, leverage: Fraction, tiers: list[RiskTier], inverse: bool
) -> None:
    margin = mechanics.position_value(size, entry, inverse=inverse) / leverage
    price = mechanics.liquidation_price(side, size, entry, tiers, margin=margin, inverse=inverse)

    def excess(at: Fraction) -> Fraction:
        value = mechanics.position_value(size, at, inverse=inverse)
        profit = mechanics.profit(side, size, entry, at, inverse=inverse)
        return margin + profit - mechanics.maintenance_margin(value, tiers)

    if price is None:
        # nothing on the losing side down to almost nothing, or up to a thousand times the entry
        for at in (entry / 1000, entry * 1000):
            assert excess(at) > 0 or excess(entry) < 0
        return
    assert excess(price) == 0
    assert (excess(price * Fraction(101, 100)) > 0) == (side > 0)
    assert (excess(price * Fraction(99, 100)) > 0) == (side < 0)


def test_the_venues_liquidation_prices_of_isolated_inverse_positions() -> None:
    # help center, isolated mode of the unified account:
    # size (1 +- rate) / (size / entry +- size / entry / leverage + deduction)
    size, entry, leverage, rate = Fraction(60_000), Fraction(50_000), 10, Fraction("0.005")
    tiers = [RiskTier(None, rate)]
    margin = size / entry / leverage
    short = mechanics.liquidation_price(-1, size, entry, tiers, margin=margin, inverse=True)
    assert short == size * (1 - rate) / (size / entry - margin)
    long = mechanics.liquidation_price(1, size, entry, tiers, margin=margin, inverse=True)
    assert long == size * (1 + rate) / (size / entry + margin)


def test_positions_without_a_liquidation_or_bankruptcy_price() -> None:
    assert mechanics.liquidation_price(1, 0, 100, TIERS, margin=1) is None
    assert mechanics.liquidation_price(1, 1, 100, TIERS, margin=100) is None
    assert mechanics.liquidation_price(-1, 100, 100, TIERS, margin=1, inverse=True) is None
    assert mechanics.bankruptcy_price(1, 0, 100, 1) is None
    assert mechanics.bankruptcy_price(1, 1, 100, 100) is None
    assert mechanics.bankruptcy_price(-1, 100, 100, 1, inverse=True) is None
    assert mechanics.bankruptcy_price(-1, 2, 100, 20) == 110


slices = st.lists(
    st.tuples(st.fractions(1, 50, max_denominator=10), st.fractions(0, 1, max_denominator=100)), min_size=1, max_size=5
).map(
    lambda steps: [
        CollateralTier(None if n == len(steps) - 1 else sum((s for s, _ in steps[: n + 1]), Fraction(0)), r)
        for n, (_, r) in enumerate(steps)
    ]
)


@settings(max_examples=60)
@given(st.fractions(-50, 300, max_denominator=100), prices, slices)
def test_collateral_is_never_worth_more_than_its_coins(
    quantity: Fraction, price: Fraction, tiers: list[CollateralTier]
) -> None:
    value = mechanics.collateral_value(quantity, price, tiers)
    assert value <= quantity * price
    assert mechanics.haircut_loss(quantity, price, tiers) == quantity * price - value >= 0
    assert mechanics.collateral_value(quantity, 3 * price, tiers) == 3 * value
    assert mechanics.collateral_value(quantity + 1, price, tiers) >= value
    if quantity <= 0:
        assert value == quantity * price


def test_collateral_above_a_table_without_end_counts_nothing_more() -> None:
    table = [CollateralTier(Fraction(10), Fraction("0.9"))]
    assert mechanics.collateral_value(25, 2, table) == mechanics.collateral_value(10, 2, table) == 18
    with pytest.raises(ValueError, match="do not ascend"):
        mechanics.collateral_value(1, 1, [table[0], table[0]])


@settings(max_examples=60)
@given(st.fractions(Fraction(1, 100), 50, max_denominator=100), prices, prices, money, money, st.booleans())
def test_short_options(
    size: Fraction, index: Fraction, strike: Fraction, entry: Fraction, mark: Fraction, is_call: bool
) -> None:
    def margin(quantity: Fraction) -> mechanics.OptionMargin:
        return mechanics.option_margin(
            quantity, is_call=is_call, index_price=index, strike=strike, entry_price=entry, mark_price=mark, rates=RATES
        )

    short = margin(-size)
    assert short.initial >= short.maintenance > size * mark
    assert margin(-2 * size) == mechanics.OptionMargin(2 * short.initial, 2 * short.maintenance)
    assert margin(size) == mechanics.OptionMargin(Fraction(0), Fraction(0))


def test_rates_and_the_verdict() -> None:
    assert mechanics.margin_rate(80, 100) == Fraction(4, 5)
    assert mechanics.margin_rate(80, 110, haircut_loss_usd=4, order_loss_usd=-6) == Fraction(4, 5)
    assert mechanics.margin_rate(80, 0) is None
    assert mechanics.margin_rate(0, -5) == 0
    assert [mechanics.is_liquidated(80, balance) for balance in (81, 80, 79)] == [False, True, True]
    assert [mechanics.is_liquidated(0, balance) for balance in (1, 0, -1)] == [False, False, True]
    assert mechanics.order_loss(1, 2, 101, 100) == -2
    assert mechanics.order_loss(1, 2, 99, 100) == 0
    assert mechanics.order_loss(-1, 2, 99, 100) == -2
    assert mechanics.order_loss(-1, 200, 100, 125, inverse=True) == 200 * (Fraction(1, 125) - Fraction(1, 100))
    assert mechanics.margin_balance([100, -20], [5], 7) == 92
    assert mechanics.portfolio_initial_margin(100, Fraction("1.3")) == 130
    with pytest.raises(ValueError, match="must be positive"):
        mechanics.usdt_usd(0, 1)


# generated accounts


LADDERS: dict[str, Any] = {}
for _name in ("risk_limit_linear.json", "risk_limit_inverse.json"):
    for _record in body_of(_name):
        LADDERS.setdefault(_record["symbol"], []).append(_record)
MARKS = {
    record["symbol"]: record["markPrice"] for c in ("linear", "inverse") for record in body_of(f"tickers_{c}.json")
}

holdings = st.lists(
    st.tuples(
        st.sampled_from(sorted(LADDERS)),
        st.integers(1, 200),
        st.sampled_from(("Buy", "Sell")),
        st.integers(1, 25),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda holding: holding[0],
)


@settings(max_examples=25)
@given(holdings, st.randoms(use_true_random=False))
def test_generated_positions(held: list[tuple[str, int, str, int]], chance: random.Random) -> None:
    records = []
    for symbol, number, side, leverage in held:
        size = number * (1000 if symbol.endswith(("USD", "U24")) else 1)
        records.append(
            {"symbol": symbol, "side": side, "size": str(size), "avgPrice": MARKS[symbol], "markPrice": MARKS[symbol]}
            | {"leverage": str(leverage), "positionIdx": 0}
        )
    market = [payload for payload in desk() if not payload.account]
    wallet = {"accountType": "UNIFIED", "coin": [], "totalEquity": "0", "totalInitialMargin": "0"}

    def result_of(rows: Sequence[Any]) -> Normalized:
        own = [answer("position/list", listed(*rows), "made"), answer("account/wallet-balance", listed(wallet), "made")]
        return normalized([*market, *own])

    result = result_of(records)
    assert result.failures == []
    shuffled = [*records]
    chance.shuffle(shuffled)
    assert as_json(result_of(shuffled)) == as_json(result)
    for symbol, _, side, leverage in held:
        row = row_of(result, "positions", instrument_id=f"bybit:{symbol}")
        inverse = row_of(result, "instruments", instrument_id=f"bybit:{symbol}")["payoff"] == "inverse"
        value = mechanics.position_value(abs(row["quantity"]), Fraction(MARKS[symbol]), inverse=inverse)
        tiers = [RiskTier(Fraction(r["riskLimitValue"]), Fraction(r["maintenanceMargin"])) for r in LADDERS[symbol]]
        rows = rows_of(result, "margin_tiers", rule_set="bybit:cross", market=f"bybit:{symbol}")
        by_rows = max(value * Fraction(t["maintenance_rate"]) - Fraction(t["deduction"]) for t in rows)
        # rising rates: the tier that holds the value asks for the most
        assert by_rows == mechanics.maintenance_margin(value, tiers)
        initial = value * Fraction(row["initial_rate_override"])
        fee = Fraction(PARAMETERS["fees"]["taker_rate"])
        expected = mechanics.initial_margin(
            value, leverage, side=1 if side == "Buy" else -1, taker_rate=fee, inverse=inverse
        )
        assert abs(initial - expected) <= value * Fraction(1, 10**17)
        assert initial >= by_rows  # no leverage above that of the highest tier


# payloads recorded elsewhere


def recorded_payload(recorded: Path, name: str, request: str, owner: str = "") -> Payload:
    return fetched(name, request, owner, root=recorded / "payloads" / "bybit")


@pytest.mark.parametrize(
    ("name", "request_text", "owner", "expected"),
    [
        ("account_info.json", "v5/account/info", "doc", {("missing_field", "list")}),
        ("collateral_info.json", "v5/account/collateral-info", "", set()),
        ("funding_history.json", "v5/market/funding/history", "", set()),
        # a position without its owner's wallet and without tiers
        (
            "inverse_position.json",
            "v5/position/list",
            "doc",
            {("missing_field", "list"), ("missing_parameter", "result.list[0]")},
        ),
        ("linear_inverse_tickers.json", "v5/market/tickers", "", set()),
        ("option_ticker.json", "v5/market/tickers", "", set()),
        ("risk_limit.json", "v5/market/risk-limit", "", set()),
        # the samples' totals are of more coins than they list
        (
            "uta_wallet_balance.json",
            "v5/account/wallet-balance",
            "doc",
            {("inconsistent", "result.list[0].totalEquity")},
        ),
        (
            "uta_wallet_spot_borrow.json",
            "v5/account/wallet-balance",
            "doc",
            {("inconsistent", "result.list[0].totalEquity"), ("missing_parameter", "result.list[0].coin[0].coin")},
        ),
    ],
)  # fmt: skip
def test_recorded_payloads_are_read(recorded: Path, name: str, request_text: str, owner: str, expected: Any) -> None:
    result = normalized([recorded_payload(recorded, name, request_text, owner)])
    assert {(str(f.reason), f.path) for f in result.failures} == expected


def test_recorded_values(recorded: Path) -> None:
    result = normalized(
        [
            recorded_payload(recorded, "risk_limit.json", "market/risk-limit"),
            recorded_payload(recorded, "inverse_position.json", "position/list", "doc"),
            recorded_payload(recorded, "option_ticker.json", "market/tickers"),
            recorded_payload(recorded, "uta_wallet_spot_borrow.json", "account/wallet-balance", "doc"),
        ]
    )
    tier = row_of(result, "margin_tiers", rule_set="bybit:cross")
    assert (tier["maintenance_rate"], tier["initial_rate"], tier["notional_cap"]) == (
        Decimal("0.005"),
        Decimal("0.01"),
        150,
    )
    held = row_of(result, "positions")
    profit = held["quantity"] * (1 / held["entry_price"] - 1 / Decimal("28224.50"))
    assert abs(profit - Decimal("-0.00029413")) < Decimal("1e-8")
    forward = row_of(result, "marks", field="forward")
    assert (forward["subject"], forward["value"]) == ("BTC@2022-12-30T08:00:00Z", 16590.42)
    sides = {row["side"]: row["quantity"] for row in rows_of(result, "balances", asset_id="USDT")}
    assert sides == {"asset": 1200, "liability": 200}
