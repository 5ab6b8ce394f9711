"""The Binance adapter: payloads of the venue's shape to canonical batches, every class of bad input, the mechanics.

Desk of the payloads (2024-06-20): owner `north` in single-asset mode with an isolated position, a dated future and open
orders; owner `south` in multi-assets and hedge mode (version 3 answers); owner `east` with the account answer of
portfolio margin alone. COIN-M and portfolio margin have files of their own, with payloads of 2024-06-30. The reference
figures of the mechanics are checked by `test_vectors.py`.
"""

import copy
import json
import random
import tomllib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from adapters.adapter import Adapter, Asset, AssetBook, Context, Normalized
from adapters.binance import ADAPTER, mechanics, request_name
from adapters.binance.parse import market_of
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.errors import Failure, FailureReason
from aggregator.rule_forms import parse_parameters
from aggregator.snapshot import take_snapshot

HERE = Path(__file__).parent
PAYLOADS = HERE / "payloads" / "binance"
PARAMETERS = tomllib.loads((HERE.parent / "configs" / "venues" / "binance.toml").read_text(encoding="utf-8"))
OWNERS = ("north", "south", "east")
RECEIVED = datetime(2024, 6, 20, 12, tzinfo=UTC)

# Venue figures are rounded to 8 decimals; a sum of five positions can miss by a few units of the last.
VENUE_ROUNDING = Decimal("5e-8")
# Exact decimals but for weights, which are quotients kept to 18 decimals, on values below 1e5.
WEIGHT_ROUNDING = Decimal("1e-12")

FACTORS = ("BTC", "ETH", "SOL", "BNB", "SHIB")
STABLES = ("USDT", "USDC")
BOOK = AssetBook(
    {symbol: Asset(symbol, symbol, Decimal(1), None, None) for symbol in FACTORS}
    | {symbol: Asset(symbol, None, Decimal(1), symbol, "issuer") for symbol in STABLES}
)
CONTEXT = Context(BOOK, PARAMETERS)

Row = dict[str, Any]


def load(*names: str) -> list[Payload]:
    """Payload files by name; the owner is the file's first word where it is one."""
    transport = RecordedTransport(PAYLOADS)
    out = []
    for name in names:
        owner = name.partition("_")[0]
        answer = transport.fetch("binance", PayloadRequest("", name, owner if owner in OWNERS else ""))
        assert isinstance(answer, Payload)
        out.append(answer)
    return out


def whole_desk() -> list[Payload]:
    return load(*sorted(path.name for path in PAYLOADS.glob("*.json")))


def north() -> list[Payload]:
    """Everything that `north` needs and nothing else."""
    return load(
        "north_account.json",
        "north_position_risk.json",
        "north_open_orders.json",
        "north_multi_assets.json",
        "leverage_bracket.json",
        "premium_index.json",
    )


def south() -> list[Payload]:
    return load(
        "south_account.json",
        "south_position_risk.json",
        "south_multi_assets.json",
        "leverage_bracket.json",
        "asset_index.json",
    )


def answer(request: str, body: Any, *, owner: str = "", name: str = "made.json") -> Payload:
    return Payload(request, name, owner, RECEIVED, "", body)


def edited(payloads: Sequence[Payload], request: str, edit: Callable[[Any], Any]) -> list[Payload]:
    """The payloads with the body of one request changed in place (or replaced by what `edit` returns)."""
    out = []
    for payload in payloads:
        if request_name(payload.request)[0] == request:
            body = copy.deepcopy(payload.body)
            replaced = edit(body)
            out.append(answer(payload.request, body if replaced is None else replaced, owner=payload.account))
        else:
            out.append(payload)
    assert len(out) == len(payloads)
    return out


def without(payloads: Sequence[Payload], *requests: str) -> list[Payload]:
    return [payload for payload in payloads if request_name(payload.request)[0] not in requests]


def normalized(payloads: Sequence[Payload], *, parameters: Any = None) -> Normalized:
    return ADAPTER.normalize(payloads, CONTEXT if parameters is None else Context(BOOK, parameters))


def rows_of(result: Normalized, table: str, **where: Any) -> list[Row]:
    rows: list[Row] = result.batches[table].to_pylist()
    return [row for row in rows if all(row[column] == value for column, value in where.items())]


def row_of(result: Normalized, table: str, **where: Any) -> Row:
    (row,) = rows_of(result, table, **where)
    return row


def failed(result: Normalized, account: str | None) -> list[Failure]:
    return [failure for failure in result.failures if failure.account_id == account]


def reasons(result: Normalized, account: str | None) -> set[str]:
    return {str(failure.reason) for failure in failed(result, account)}


def position(body: list[Any], symbol: str) -> Any:
    (record,) = [entry for entry in body if entry["symbol"] == symbol]
    return record


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
    failures = [
        {
            "reason": str(f.reason),
            "payload": f.payload,
            "path": f.path,
            "subject": f.subject,
            "account_id": f.account_id,
        }
        for f in result.failures
    ]
    return {"tables": tables, "failures": failures}


def test_the_desk_becomes_the_expected_batches() -> None:
    expected = json.loads((HERE / "expected" / "binance" / "desk.json").read_text(encoding="utf-8"))
    found = as_json(normalized(whole_desk()))
    assert set(found["tables"]) == set(expected["tables"])
    for name, rows in expected["tables"].items():
        assert found["tables"][name] == rows, name
    assert found["failures"] == expected["failures"]


def test_the_order_of_the_payloads_changes_no_row() -> None:
    def sets(result: Normalized) -> dict[str, set[str]]:
        return {name: {repr(row) for row in table.to_pylist()} for name, table in result.batches.items()}

    forward, backward = normalized(whole_desk()), normalized(whole_desk()[::-1])
    assert sets(forward) == sets(backward)


def test_a_snapshot_takes_the_desk_without_a_further_failure() -> None:
    result = normalized(whole_desk())
    snapshot = take_snapshot([result.batches], result.failures)
    assert list(snapshot.failures) == result.failures
    assert snapshot.incomplete == {"binance:east:portfolio"}
    assert {name: len(rows) for name, rows in snapshot.tables.items()} == {
        name: table.num_rows for name, table in result.batches.items()
    }


def test_the_adapter_keeps_the_protocol() -> None:
    assert isinstance(ADAPTER, Adapter)
    assert ADAPTER.venue == "binance"
    assert len(set(ADAPTER.requests)) == len(ADAPTER.requests)


# identities: what the rows say is what the venue says


def marks_of(result: Normalized, account: str) -> dict[str, Decimal]:
    rows = rows_of(result, "marks", field="mark")
    marks = {row["subject"]: Decimal(str(row["value"])) for row in rows if row["account_id"] is None}
    return marks | {row["subject"]: Decimal(str(row["value"])) for row in rows if row["account_id"] == account}


def balance_of(result: Normalized, account: str, asset: str) -> Decimal:
    rows = rows_of(result, "balances", account_id=account, asset_id=asset)
    return sum((row["quantity"] if row["side"] == "asset" else -row["quantity"] for row in rows), Decimal(0))


def profit_of(result: Normalized, account: str, settlement: str) -> Decimal:
    marks = marks_of(result, account)
    return sum(
        (
            row["quantity"] * (marks[row["instrument_id"]] - row["entry_price"])
            for row in rows_of(result, "positions", account_id=account)
            if row_of(result, "instruments", instrument_id=row["instrument_id"])["settlement_asset"] == settlement
        ),
        Decimal(0),
    )


def maintenance_of(result: Normalized, account: str) -> Decimal:
    """Sum over positions of the rate steps of their margin tiers, written out."""
    rule_set, marks, total = (
        row_of(result, "accounts", account_id=account)["rule_set"],
        marks_of(result, account),
        Decimal(0),
    )
    for row in rows_of(result, "positions", account_id=account):
        notional = abs(row["quantity"]) * marks[row["instrument_id"]]
        rate = Decimal(0)
        for tier in rows_of(result, "margin_tiers", rule_set=rule_set, market=row["instrument_id"]):
            total += (tier["maintenance_rate"] - rate) * max(notional - tier["notional_floor"], Decimal(0))
            rate = tier["maintenance_rate"]
        assert rate > 0
    return total


@pytest.mark.parametrize("account", ["binance:north:USDT", "binance:north:USDC", "binance:north:isolated:SOLUSDT"])
def test_equity_and_maintenance_of_single_asset_accounts_are_the_reported_ones(account: str) -> None:
    result = normalized(whole_desk())
    row = row_of(result, "accounts", account_id=account)
    settlement = row["settlement_asset"]
    equity = balance_of(result, account, settlement) + profit_of(result, account, settlement)
    assert abs(equity - row["reported_equity"]) <= VENUE_ROUNDING
    assert abs(maintenance_of(result, account) - row["reported_maintenance_margin"]) <= VENUE_ROUNDING


def test_isolated_and_cross_accounts_share_the_wallet_without_overlap() -> None:
    result = normalized(whole_desk())
    (payload,) = load("north_account.json")
    (asset,) = [entry for entry in payload.body["assets"] if entry["asset"] == "USDT"]
    parts = [balance_of(result, a, "USDT") for a in ("binance:north:USDT", "binance:north:isolated:SOLUSDT")]
    assert sum(parts) == Decimal(asset["walletBalance"])
    accounts = [
        row_of(result, "accounts", account_id=a) for a in ("binance:north:USDT", "binance:north:isolated:SOLUSDT")
    ]
    margin = sum(row["reported_equity"] for row in accounts)
    assert abs(margin - Decimal(asset["marginBalance"])) <= VENUE_ROUNDING
    maintenance = sum(row["reported_maintenance_margin"] for row in accounts)
    assert abs(maintenance - Decimal(asset["maintMargin"])) <= VENUE_ROUNDING
    assert accounts[1]["parent_account_id"] == accounts[0]["account_id"]
    assert accounts[0]["node"] != accounts[1]["node"]


def test_multi_assets_balances_at_the_index_are_the_reported_total() -> None:
    result = normalized(whole_desk())
    row = row_of(result, "accounts", account_id="binance:south:multi")
    assert (row["settlement_asset"], row["multi_assets_mode"]) == ("USD", True)
    index = {r["subject"]: Decimal(str(r["value"])) for r in rows_of(result, "marks", field="index")}
    held = ("USDT", "USDC", "BTC", "BNB")
    equity = sum(
        (balance_of(result, row["account_id"], a) + profit_of(result, row["account_id"], a)) * index[a] for a in held
    )
    # the venue rounds each asset's figures to 8 decimals before it values them, BTC at 65 thousand dollars
    assert abs(equity - row["reported_equity"]) <= VENUE_ROUNDING * max(index.values())


def test_multi_assets_weights_turn_the_index_into_the_buffered_rates() -> None:
    result = normalized(whole_desk())
    index = {r["subject"]: Decimal(str(r["value"])) for r in rows_of(result, "marks", field="index")}
    (payload,) = load("asset_index.json")
    tiers = rows_of(result, "collateral_tiers", rule_set="binance:multi_assets")
    assert {tier["asset_id"] for tier in tiers} == {"BTC", "ETH", "USDT", "USDC", "BNB"}
    for tier in tiers:
        (entry,) = [e for e in payload.body if e["symbol"] == tier["asset_id"] + "USD"]
        price = index[tier["asset_id"]]
        for level in ("initial", "maintenance"):
            assert abs(tier[f"asset_weight_{level}"] * price - Decimal(entry["bidRate"])) <= WEIGHT_ROUNDING
            assert abs(tier[f"liability_weight_{level}"] * price - Decimal(entry["askRate"])) <= WEIGHT_ROUNDING
        assert tier["asset_weight_initial"] < 1 < tier["liability_weight_initial"]


def test_every_rule_set_has_equity_tiers_and_one_verdict() -> None:
    result = normalized(whole_desk())
    for account in rows_of(result, "accounts"):
        components = rows_of(result, "rule_sets", rule_set=account["rule_set"])
        (verdict,) = [json.loads(c["parameters"]) for c in components if c["side"] == "verdict"]
        portfolio = account["margin_mode"] == "portfolio"
        assert (verdict["liquidates_when"], verdict["trigger"]) == ("at_or_below", "1.05" if portfolio else "1")
        assert verdict["health"] == "equity_over_requirement"
        if not portfolio:
            (equity,) = [json.loads(c["parameters"]) for c in components if c["side"] == "equity"]
            multi = account["multi_assets_mode"]
            assert (equity["weights"], equity["net_by_asset"]) == (
                ("collateral_tiers", True) if multi else ("unit", False)
            )
            tiered = [c for c in components if c["form"] == "tiered_notional"]
            assert [json.loads(c["parameters"])["initial"] for c in tiered] == ["leverage"]


def test_order_margin_is_the_reported_one_in_a_rule_set_of_the_account() -> None:
    result = normalized(whole_desk())
    assert row_of(result, "accounts", account_id="binance:north:USDT")["rule_set"] == "binance:usdm:north:USDT"
    assert row_of(result, "accounts", account_id="binance:north:USDC")["rule_set"] == "binance:usdm"
    (fixed,) = rows_of(result, "rule_sets", rule_set="binance:usdm:north:USDT", form="fixed")
    assert json.loads(fixed["parameters"]) == {
        "initial": "250.50000000",
        "maintenance": "0",
        "equity": "0",
        "basis": "reported openOrderInitialMargin of USDT",
    }
    assert fixed["level"] == "initial"
    assert not rows_of(result, "rule_sets", rule_set="binance:usdm", form="fixed")
    multi = edited(south(), "fapi/account", lambda body: body.update(totalOpenOrderInitialMargin="12.5"))
    rule_set = row_of(normalized(multi), "accounts", account_id="binance:south:multi")["rule_set"]
    assert rule_set == "binance:multi_assets:south:multi"
    assert rows_of(normalized(multi), "collateral_tiers", rule_set=rule_set)


# shapes and versions


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("fapi/account", ("fapi/account", "")),
        ("/fapi/v3/account", ("fapi/account", "")),
        ("fapi/v2/positionRisk", ("fapi/positionRisk", "")),
        ("/sapi/v1/portfolio/account", ("portfolio/account", "")),
        ("v1/portfolio/collateralRate", ("portfolio/collateralRate", "")),
        ("/fapi/v1/depth:BTCUSDT", ("fapi/depth", "BTCUSDT")),
    ],
)
def test_requests_are_named_without_version(request_text: str, expected: tuple[str, str]) -> None:
    assert request_name(request_text) == expected


@pytest.mark.parametrize(
    ("symbol", "base", "quote", "expiry"),
    [
        ("BTCUSDT", "BTC", "USDT", None),
        ("BTCUSDC", "BTC", "USDC", None),
        ("1000SHIBUSDT", "1000SHIB", "USDT", None),
        ("USDCUSDT", "USDC", "USDT", None),
        ("BTCFDUSD", "BTC", "FDUSD", None),
        ("ETHBTC", "ETH", "BTC", None),
        ("BTCUSDT_240628", "BTC", "USDT", datetime(2024, 6, 28, 8, tzinfo=UTC)),
    ],
)
def test_symbols_in_parts(symbol: str, base: str, quote: str, expiry: datetime | None) -> None:
    assert market_of(symbol) == (symbol, base, quote, expiry)


@pytest.mark.parametrize("symbol", ["", "USDT", "BTCUSD_PERP", "BTCUSDT_999999", "BTCEUR", "BTC USDT"])
def test_other_symbols_are_no_market(symbol: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        market_of(symbol)


def version_2(body: Any) -> None:
    """The account answer of version 2: entry price, leverage and isolated flag in its positions."""
    (payload,) = load("north_position_risk.json")
    for entry in body["positions"]:
        risk = position(payload.body, entry["symbol"])
        entry |= {
            "leverage": risk["leverage"],
            "entryPrice": risk["entryPrice"],
            "isolated": risk["isolated"],
            "positionInitialMargin": entry["initialMargin"],
            "openOrderInitialMargin": "0",
            "maxNotional": "250000",
        }
    for entry in body["assets"]:
        entry["marginAvailable"] = True


def test_a_version_2_account_and_market_marks_give_the_same_accounts() -> None:
    full = normalized(north())
    payloads = without(edited(north(), "fapi/account", version_2), "fapi/positionRisk")
    premium = {
        "symbol": "SOLUSDT",
        "markPrice": "134.22",
        "indexPrice": "134.28",
        "lastFundingRate": "0",
        "time": 1718884798000,
    }
    payloads.append(answer("fapi/premiumIndex:SOLUSDT", premium))
    result = normalized(payloads)
    assert result.failures == []
    drop = ("reported_initial_margin", "reported_liquidation_price")
    for table in ("balances", "positions"):
        left = [{k: v for k, v in row.items() if k not in drop} for row in rows_of(full, table)]
        assert [{k: v for k, v in row.items() if k not in drop} for row in rows_of(result, table)] == left
    assert not [row for row in rows_of(result, "marks") if row["account_id"]]


def test_version_3_leverage_is_implied_or_configured() -> None:
    result = normalized(south())
    assert {(r["instrument_id"], r["side_mode"]): r["leverage"] for r in rows_of(result, "positions")} == {
        ("binance:ETHUSDT", "long"): 25,
        ("binance:ETHUSDT", "short"): 25,
        ("binance:BTCUSDT", "short"): 20,
        ("binance:BTCUSDC", "long"): 15,
    }

    def blur(body: Any) -> None:
        for entry in body:
            entry["positionInitialMargin"] = str(Decimal(entry["positionInitialMargin"]) * Decimal("0.985"))

    payloads = edited(south(), "fapi/positionRisk", blur)
    assert reasons(normalized(payloads), "binance:south:multi") == {"missing_field"}
    settings = [
        {
            "symbol": s,
            "marginType": "CROSSED",
            "isAutoAddMargin": "false",
            "leverage": 21,
            "maxNotionalValue": "1000000",
        }
        for s in ("ETHUSDT", "BTCUSDT", "BTCUSDC")
    ]
    result = normalized([*payloads, answer("/fapi/v1/symbolConfig", settings, owner="south")])
    assert result.failures == []
    assert {row["leverage"] for row in rows_of(result, "positions")} == {Decimal(21)}


def test_isolated_positions_of_a_hedged_symbol_are_accounts_of_their_own() -> None:
    def hedge(body: Any) -> None:
        record = position(body if isinstance(body, list) else body["positions"], "SOLUSDT")
        record["positionSide"] = "LONG"
        other = dict(record, positionSide="SHORT", positionAmt="-10", notional="-1342.2", isolatedWallet="300")
        other |= {"isolatedMargin": "300", "maintMargin": "6.711"}
        (body if isinstance(body, list) else body["positions"]).append(other)

    result = normalized(edited(edited(north(), "fapi/positionRisk", hedge), "fapi/account", hedge))
    isolated = {row["account_id"] for row in rows_of(result, "accounts", margin_mode="isolated")}
    assert isolated == {"binance:north:isolated:SOLUSDT:LONG", "binance:north:isolated:SOLUSDT:SHORT"}
    assert row_of(result, "positions", account_id="binance:north:isolated:SOLUSDT:SHORT")["side_mode"] == "short"
    # the wallet of the answer now misses the second isolated wallet, which is a finding and stops nobody
    assert [(f.reason, f.account_id) for f in result.failures] == [(FailureReason.INCONSISTENT, None)]


def test_one_object_reads_like_a_list_of_one() -> None:
    record = {
        "symbol": "BTCUSDT",
        "markPrice": "65000.1",
        "indexPrice": "65010",
        "lastFundingRate": "-0.0001",
        "time": 1718884798000,
    }
    one, many = (normalized([answer("fapi/premiumIndex", body)]) for body in (record, [record]))
    assert rows_of(one, "marks") == rows_of(many, "marks")
    assert {row["field"]: row["value"] for row in rows_of(one, "marks")} == {
        "mark": 65000.1,
        "index": 65010.0,
        "funding_rate": -0.0001,
    }
    bracket = {"symbol": "BTCUSDT", "brackets": PARAMETERS["brackets"]["BTCUSDT"]}
    one, many = (normalized([answer("fapi/leverageBracket", body)]) for body in (bracket, [bracket]))
    assert rows_of(one, "margin_tiers") == rows_of(many, "margin_tiers")
    assert len(rows_of(one, "margin_tiers")) == 12


def test_negative_wallets_are_liabilities() -> None:
    result = normalized(south())
    assert row_of(result, "balances", asset_id="USDT")["side"] == "liability"
    assert row_of(result, "balances", asset_id="USDT")["quantity"] == Decimal("1800.25")


def test_assets_that_are_no_margin_do_not_count_as_collateral() -> None:
    def edit(body: Any) -> None:
        for entry in body["assets"]:
            entry["marginAvailable"] = entry["asset"] != "BNB"

    result = normalized(edited(south(), "fapi/account", edit))
    assert {row["asset_id"]: row["collateral_enabled"] for row in rows_of(result, "balances")} == {
        "USDT": True,
        "USDC": True,
        "BTC": True,
        "BNB": False,
    }


def test_mode_comes_from_the_answer_then_the_parameters_then_the_venues_default() -> None:
    bare = [answer("fapi/account", load("north_account.json")[0].body | {"positions": []}, owner="north")]
    single = normalized(bare, parameters={})
    assert {row["multi_assets_mode"] for row in rows_of(single, "accounts")} == {False}
    configured = {"accounts": {"multi_assets_mode": True}}
    multi = normalized(bare, parameters=configured)
    assert [row["account_id"] for row in rows_of(multi, "accounts")] == ["binance:north:multi"]
    stated = normalized([*bare, *load("north_multi_assets.json")], parameters=configured)
    assert {row["multi_assets_mode"] for row in rows_of(stated, "accounts")} == {False}


def test_closing_orders_without_quantity_and_flat_positions_are_no_rows() -> None:
    result = normalized(north())
    assert {row["order_id"] for row in rows_of(result, "open_orders")} == {
        "binance:north:BTCUSDT:8886774",
        "binance:north:SOLUSDT:8886776",
    }
    partly = row_of(result, "open_orders", side="buy")
    assert (partly["remaining_quantity"], partly["limit_price"]) == (Decimal("0.08"), Decimal(61000))
    assert row_of(result, "open_orders", side="sell")["limit_price"] is None
    assert len(rows_of(result, "positions")) == 6
    assert result.failures == []


def test_depth_gives_best_prices_and_notional_of_the_levels() -> None:
    result = normalized(load("depth_btcusdt.json"))
    values = {row["field"]: row["value"] for row in rows_of(result, "marks", subject="binance:BTCUSDT")}
    assert values == {
        "bid": 64987.2,
        "ask": 64987.3,
        "depth_bid": float(Decimal("64987.20") * Decimal("4.120") + Decimal("64987.10") * Decimal("0.5")),
        "depth_ask": float(Decimal("64987.30") * Decimal("3.001") + Decimal("64988") * Decimal("1.25")),
    }


# brackets


def brackets_of(*rows: tuple[str, str, str, str, str], symbol: str = "BTCUSDT", **extra: Any) -> Payload:
    keys = ("notionalFloor", "notionalCap", "maintMarginRatio", "initialLeverage", "cum")
    record = {"symbol": symbol, "brackets": [dict(zip(keys, row, strict=True)) for row in rows], **extra}
    return answer("fapi/leverageBracket", [record], name="brackets.json")


GOOD = (("0", "50000", "0.004", "125", "0"), ("50000", "600000", "0.005", "100", "50"))


def test_tiers_are_the_brackets() -> None:
    tiers = rows_of(normalized([brackets_of(*GOOD)]), "margin_tiers")
    keys = (
        "rule_set",
        "tier",
        "notional_floor",
        "notional_cap",
        "initial_rate",
        "maintenance_rate",
        "deduction",
        "source",
    )
    assert [tuple(tier[key] for key in keys) for tier in tiers] == [
        ("binance:usdm", 1, 0, 50000, Decimal("0.008"), Decimal("0.004"), 0, "venue"),
        ("binance:usdm", 2, 50000, 600000, Decimal("0.01"), Decimal("0.005"), 50, "venue"),
    ]


def test_a_coefficient_scales_floors_caps_and_deductions() -> None:
    tiers = rows_of(normalized([brackets_of(*GOOD, notionalCoef=Decimal("1.5"))]), "margin_tiers")
    assert [(t["notional_floor"], t["notional_cap"], t["deduction"]) for t in tiers] == [
        (0, 75000, 0),
        (75000, 900000, 75),
    ]
    first, second = tiers
    at = second["notional_floor"]
    assert at * first["maintenance_rate"] == at * second["maintenance_rate"] - second["deduction"]


@pytest.mark.parametrize(
    ("rows", "path"),
    [
        ([("10", "50000", "0.004", "125", "0")], "[0].brackets[0]"),
        ([GOOD[0], ("60000", "600000", "0.005", "100", "50")], "[0].brackets[1]"),
        ([GOOD[0], ("50000", "50000", "0.005", "100", "50")], "[0].brackets[1]"),
        ([GOOD[0], ("50000", "600000", "0.003", "100", "-50")], "[0].brackets[1]"),
        ([GOOD[0], ("50000", "600000", "1.2", "100", "59800")], "[0].brackets[1]"),
        ([GOOD[0], ("50000", "600000", "0.005", "130", "50")], "[0].brackets[1]"),
        ([GOOD[0], ("50000", "600000", "0.005", "100", "50.03")], "[0].brackets[1].cum"),
        ([("0", "50000", "0.004", "125", "1")], "[0].brackets[0].cum"),
    ],
)
def test_brackets_that_contradict_themselves_are_refused(rows: Any, path: str) -> None:
    result = normalized([*without(north(), "fapi/leverageBracket"), brackets_of(*rows)])
    (finding,) = failed(result, None)
    assert (finding.reason, finding.path, finding.payload) == (FailureReason.INCONSISTENT, path, "brackets.json")
    # the dated brackets of BTCUSDT do not stand in for a contradiction of today's
    account = [f for f in failed(result, "binance:north:USDT") if f.subject == "binance:BTCUSDT"]
    assert [f.reason for f in account] == [FailureReason.MISSING_PARAMETER]
    assert not rows_of(result, "margin_tiers", market="binance:BTCUSDT")


def test_dated_brackets_stand_in_where_no_answer_names_the_symbol() -> None:
    result = normalized(without(north(), "fapi/leverageBracket"))
    assert {f.subject for f in result.failures} == {"binance:1000SHIBUSDT", "binance:BTCUSDC", "binance:BTCUSDT_240628"}
    assert {str(f.reason) for f in result.failures} == {"missing_parameter"}
    assert {f.account_id for f in result.failures} == {"binance:north:USDT", "binance:north:USDC"}
    tiers = rows_of(result, "margin_tiers", rule_set="binance:usdm:north:USDT", market="binance:BTCUSDT")
    assert len(tiers) == 12


def test_the_parameter_file_holds_the_published_brackets() -> None:
    for symbol, last in (("BTCUSDT", "421481450"), ("ETHUSDT", "280506450"), ("SOLUSDT", "66728380")):
        brackets = PARAMETERS["brackets"][symbol]
        assert brackets[-1]["cum"] == last
        figures = [(Decimal(b["notionalFloor"]), Decimal(b["maintMarginRatio"])) for b in brackets]
        expected = [Decimal(b["cum"]) for b in brackets]
        assert mechanics.deductions([f for f, _ in figures], [r for _, r in figures]) == expected
    assert PARAMETERS["accounts"]["multi_assets_mode"] is False


def test_an_owners_own_brackets_win_and_give_a_rule_set_of_its_own() -> None:
    own = brackets_of(("0", "50000", "0.02", "10", "0"), ("50000", "600000", "0.03", "5", "500"))
    own = Payload(own.request, own.name, "north", RECEIVED, "", own.body)
    result = normalized([*north(), own])
    rule_set = row_of(result, "accounts", account_id="binance:north:USDT")["rule_set"]
    assert rule_set == "binance:usdm:north:USDT"
    tiers = rows_of(result, "margin_tiers", rule_set=rule_set, market="binance:BTCUSDT")
    assert [tier["maintenance_rate"] for tier in tiers] == [Decimal("0.02"), Decimal("0.03")]
    assert len(rows_of(result, "margin_tiers", rule_set="binance:usdm", market="binance:BTCUSDT")) == 3


def test_leverage_above_the_brackets_maximum_is_a_finding() -> None:
    payloads = edited(north(), "fapi/positionRisk", lambda body: position(body, "ETHUSDT").update(leverage="110"))
    result = normalized(payloads)  # 12.4 * 3562.18 = 44171: up to 125 are allowed
    assert result.failures == []
    payloads = edited(north(), "fapi/positionRisk", lambda body: position(body, "BTCUSDT").update(leverage="110"))
    result = normalized(payloads)  # 0.85 * 64987.3 = 55239: second bracket, up to 100
    (finding,) = result.failures
    assert (finding.reason, finding.account_id) == (FailureReason.INCONSISTENT, None)
    assert "at most 100" in finding.message
    assert row_of(result, "positions", instrument_id="binance:BTCUSDT")["leverage"] == 110


# bad input


CROSS = "binance:north:USDT"
ISOLATED = "binance:north:isolated:SOLUSDT"

POSITION_EDITS: list[tuple[str, dict[str, Any], str, FailureReason, str]] = [
    ("BTCUSDT", {"positionAmt": "NaN"}, CROSS, FailureReason.NOT_A_NUMBER, "[0].positionAmt"),
    ("BTCUSDT", {"positionAmt": None}, CROSS, FailureReason.MISSING_FIELD, "[0].positionAmt"),
    ("BTCUSDT", {"positionAmt": "1e21"}, CROSS, FailureReason.OUT_OF_RANGE, "[0].positionAmt"),
    ("BTCUSDT", {"entryPrice": None}, CROSS, FailureReason.MISSING_FIELD, "[0].entryPrice"),
    ("BTCUSDT", {"entryPrice": "0.0"}, CROSS, FailureReason.OUT_OF_RANGE, "[0].entryPrice"),
    ("BTCUSDT", {"markPrice": "-64000"}, CROSS, FailureReason.OUT_OF_RANGE, "[0].markPrice"),
    ("BTCUSDT", {"leverage": "twenty"}, CROSS, FailureReason.NOT_A_NUMBER, "[0].leverage"),
    ("BTCUSDT", {"leverage": "0"}, CROSS, FailureReason.OUT_OF_RANGE, "[0].leverage"),
    ("BTCUSDT", {"leverage": None}, CROSS, FailureReason.MISSING_FIELD, "[0].leverage"),
    ("BTCUSDT", {"notional": "0"}, CROSS, FailureReason.INCONSISTENT, "[0].notional"),
    ("BTCUSDT", {"positionSide": "SHORT"}, CROSS, FailureReason.INCONSISTENT, "[0].positionAmt"),
    ("ETHUSDT", {"positionSide": "LONG"}, CROSS, FailureReason.INCONSISTENT, "[1].positionAmt"),
    ("BTCUSDT", {"positionSide": "UP"}, CROSS, FailureReason.MALFORMED, "[0].positionSide"),
    ("BTCUSDT", {"positionAmt": "0.9"}, CROSS, FailureReason.INCONSISTENT, "[0].positionAmt"),
    ("BTCUSDT", {"marginType": "sideways"}, CROSS, FailureReason.MALFORMED, "[0].marginType"),
    ("BTCUSDT", {"marginAsset": "BNFCR"}, CROSS, FailureReason.UNSUPPORTED, "[0].marginAsset"),
    ("BTCUSDT", {"symbol": "DOGEUSDT"}, CROSS, FailureReason.UNKNOWN_MARKET, "positions[0].symbol"),
    ("SOLUSDT", {"isolatedWallet": "x"}, ISOLATED, FailureReason.NOT_A_NUMBER, "[2].isolatedWallet"),
]


@pytest.mark.parametrize(("symbol", "edit", "account", "reason", "path"), POSITION_EDITS)
def test_a_bad_position_makes_its_account_incomplete_and_no_other(
    symbol: str, edit: dict[str, Any], account: str, reason: FailureReason, path: str
) -> None:
    def change(body: Any) -> None:
        record = position(body if isinstance(body, list) else body["positions"], symbol)
        if isinstance(body, list) or "symbol" in edit:
            record.update(edit)

    payloads = edited(north(), "fapi/positionRisk", change)
    if "symbol" in edit:
        payloads = edited(payloads, "fapi/account", change)
    result = normalized(payloads)
    found = [f for f in failed(result, account) if f.reason == reason]
    assert found, result.failures
    assert {f.path for f in found} & {path, path.removeprefix("positions")}
    assert {f.account_id for f in result.failures} <= {account, None}
    # the account's row and its other rows stay
    assert rows_of(result, "accounts", account_id=account)
    assert len(rows_of(result, "positions")) >= 5
    bad = "binance:DOGEUSDT" if "symbol" in edit else f"binance:{symbol}"
    own = [
        r for r in rows_of(result, "positions", instrument_id=bad) if r["leverage"] is None or r["entry_price"] is None
    ]
    assert own == []


ASSET_EDITS: list[tuple[dict[str, Any], FailureReason, str]] = [
    ({"crossWalletBalance": "NaN"}, FailureReason.NOT_A_NUMBER, "assets[0].crossWalletBalance"),
    ({"crossWalletBalance": None}, FailureReason.MISSING_FIELD, "assets[0].crossWalletBalance"),
    ({"walletBalance": True}, FailureReason.NOT_A_NUMBER, "assets[0].walletBalance"),
    ({"openOrderInitialMargin": "-1"}, FailureReason.OUT_OF_RANGE, "assets[0].openOrderInitialMargin"),
    ({"openOrderInitialMargin": None}, FailureReason.MISSING_FIELD, "assets[0].openOrderInitialMargin"),
    ({"marginBalance": "Infinity"}, FailureReason.NOT_A_NUMBER, "assets[0].marginBalance"),
    ({"marginAvailable": "perhaps"}, FailureReason.MALFORMED, "assets[0].marginAvailable"),
]


@pytest.mark.parametrize(("edit", "reason", "path"), ASSET_EDITS)
def test_a_bad_balance_makes_its_account_incomplete_and_no_other(
    edit: dict[str, Any], reason: FailureReason, path: str
) -> None:
    result = normalized(edited(north(), "fapi/account", lambda body: body["assets"][0].update(edit)))
    assert (reason, path) in {(f.reason, f.path) for f in failed(result, CROSS)}
    assert {f.account_id for f in result.failures} == {CROSS}
    assert len(rows_of(result, "accounts", owner="north")) == 3
    assert not rows_of(result, "balances", account_id=CROSS)


def test_an_unknown_asset_fails_its_account_only() -> None:
    def edit(body: Any) -> None:
        body["assets"].append(dict(body["assets"][2], asset="XAUT", walletBalance="2", crossWalletBalance="2"))

    result = normalized(edited(north(), "fapi/account", edit))
    assert [(f.reason, f.account_id, f.path) for f in result.failures] == [
        (FailureReason.UNKNOWN_ASSET, "binance:north:XAUT", "assets[3].asset")
    ]
    assert row_of(result, "accounts", account_id="binance:north:XAUT")["settlement_asset"] == "XAUT"
    multi = normalized(edited(south(), "fapi/account", lambda body: body["assets"][3].update(asset="XAUT")))
    assert FailureReason.UNKNOWN_ASSET in {f.reason for f in failed(multi, "binance:south:multi")}


def test_no_entry_price_anywhere_and_no_mark_anywhere() -> None:
    no_entry = normalized(without(north(), "fapi/positionRisk"))
    assert reasons(no_entry, CROSS) == {"missing_field"}
    assert {f.path for f in failed(no_entry, CROSS)} >= {"positions[0].entryPrice"}
    assert reasons(no_entry, "binance:north:USDC") == {"missing_field"}
    no_mark = normalized(without(edited(north(), "fapi/account", version_2), "fapi/positionRisk", "fapi/premiumIndex"))
    assert reasons(no_mark, CROSS) == {"missing_mark"}
    assert reasons(no_mark, ISOLATED) == {"missing_mark"}
    assert len(rows_of(no_mark, "positions")) == 6


def test_a_bad_market_row_is_a_finding_and_whoever_needs_it_has_no_mark() -> None:
    payloads = without(edited(north(), "fapi/account", version_2), "fapi/positionRisk")
    bad = edited(payloads, "fapi/premiumIndex", lambda body: position(body, "ETHUSDT").update(markPrice="-3562.18"))
    result = normalized(bad)
    (finding,) = failed(result, None)
    assert (finding.reason, finding.path, finding.subject) == (FailureReason.OUT_OF_RANGE, "[3].markPrice", "ETHUSDT")
    needs = {(f.reason, f.subject) for f in failed(result, CROSS)}
    assert needs == {(FailureReason.MISSING_MARK, "binance:ETHUSDT")}
    twice = edited(payloads, "fapi/premiumIndex", lambda body: body.append(position(body, "ETHUSDT")))
    result = normalized(twice)
    assert [(f.reason, f.subject) for f in failed(result, None)] == [(FailureReason.DUPLICATE, "ETHUSDT")]
    assert not rows_of(result, "marks", subject="binance:ETHUSDT")


def test_markets_that_nobody_holds_and_the_book_does_not_know_are_left_out() -> None:
    result = normalized(whole_desk())
    assert not [row for row in rows_of(result, "instruments") if "FOO" in row["symbol"]]
    assert not [row for row in rows_of(result, "assets") if row["symbol"] == "FOO"]


def test_missing_index_in_multi_assets_mode() -> None:
    result = normalized(without(south(), "fapi/assetIndex"))
    assert {(f.reason, f.subject) for f in failed(result, "binance:south:multi")} == {
        (FailureReason.MISSING_MARK, asset) for asset in ("USDT", "USDC", "BTC", "BNB")
    }
    assert len(rows_of(result, "balances")) == 4


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"bidRate": "70000"}, FailureReason.INCONSISTENT),
        ({"askRate": "60000"}, FailureReason.INCONSISTENT),
        ({"bidBuffer": "0.2"}, FailureReason.INCONSISTENT),
        ({"index": "0"}, FailureReason.OUT_OF_RANGE),
        ({"index": None}, FailureReason.MISSING_FIELD),
        ({"symbol": "BTCEUR"}, FailureReason.UNKNOWN_ASSET),
    ],
)
def test_bad_asset_indices(edit: dict[str, Any], reason: FailureReason) -> None:
    result = normalized(edited(south(), "fapi/assetIndex", lambda body: body[0].update(edit)))
    assert [f.reason for f in failed(result, None)] == [reason]
    assert {(f.reason, f.subject) for f in failed(result, "binance:south:multi")} == {
        (FailureReason.MISSING_MARK, "BTC")
    }


def test_an_isolated_position_contradicts_multi_assets_mode() -> None:
    def edit(body: Any) -> None:
        body[0] |= {"isolatedWallet": "500", "isolatedMargin": "510"}

    result = normalized(edited(south(), "fapi/positionRisk", edit))
    assert reasons(result, "binance:south:multi") == {"inconsistent"}
    assert {row["account_id"] for row in rows_of(result, "accounts")} == {"binance:south:multi"}


def test_answers_of_different_moments() -> None:
    gone = normalized(edited(north(), "fapi/account", lambda body: body["positions"].__delitem__(0)))
    assert reasons(gone, CROSS) == {"inconsistent"}
    assert not rows_of(gone, "positions", instrument_id="binance:BTCUSDT")
    closed = normalized(
        edited(north(), "fapi/positionRisk", lambda body: body[0].update(positionAmt="0.000", notional="0"))
    )
    assert reasons(closed, CROSS) == {"inconsistent"}


def test_two_marks_of_one_symbol_in_one_answer() -> None:
    result = normalized(edited(south(), "fapi/positionRisk", lambda body: body[1].update(markPrice="3562.19")))
    assert reasons(result, "binance:south:multi") == {"inconsistent"}


def test_wallets_that_do_not_add_up_are_a_finding() -> None:
    result = normalized(edited(north(), "fapi/account", lambda body: body["assets"][0].update(walletBalance="53443")))
    (finding,) = result.failures
    assert (finding.reason, finding.account_id) == (FailureReason.INCONSISTENT, None)
    assert finding.path == "assets[0].walletBalance"


@pytest.mark.parametrize(
    "request_text", ["fapi/account", "fapi/positionRisk", "fapi/openOrders", "fapi/multiAssetsMargin"]
)
def test_two_answers_to_one_request_are_both_rejected(request_text: str) -> None:
    payloads = north()
    (copied,) = [p for p in payloads if request_name(p.request)[0] == request_text]
    again = Payload("/fapi/v9/" + request_text.partition("/")[2], "again.json", "north", RECEIVED, "", copied.body)
    result = normalized([*payloads, again])
    duplicates = [f for f in result.failures if f.reason == FailureReason.DUPLICATE]
    assert "again.json" in duplicates[0].message
    assert {f.account_id for f in duplicates} >= {"binance:north" if request_text == "fapi/account" else CROSS} - (
        {"binance:north"} if rows_of(result, "accounts", account_id=CROSS) else set()
    )
    assert {f.account_id for f in duplicates} <= {row["account_id"] for row in rows_of(result, "accounts")}
    if request_text == "fapi/account":
        assert not [row for row in rows_of(result, "balances") if row["account_id"] != ISOLATED]


def test_two_market_answers_to_one_request_are_both_rejected() -> None:
    result = normalized([*south(), *load("asset_index.json")])
    assert [(f.reason, f.subject) for f in failed(result, None)] == [(FailureReason.DUPLICATE, "fapi/assetIndex")]
    assert reasons(result, "binance:south:multi") == {"missing_mark"}
    books = [answer("fapi/depth:BTCUSDT", {}), answer("fapi/depth:ETHUSDT", {})]
    assert {f.reason for f in normalized(books).failures} == {FailureReason.MISSING_FIELD}


def test_rows_that_occur_twice_are_rejected() -> None:
    assets = normalized(edited(north(), "fapi/account", lambda body: body["assets"].append(body["assets"][0])))
    assert FailureReason.DUPLICATE in {f.reason for f in failed(assets, CROSS)}
    assert not rows_of(assets, "balances", account_id=CROSS)
    risk = normalized(edited(north(), "fapi/positionRisk", lambda body: body.append(body[0])))
    assert FailureReason.DUPLICATE in {f.reason for f in failed(risk, CROSS)}
    assert not rows_of(risk, "positions", instrument_id="binance:BTCUSDT")
    orders = normalized(edited(north(), "fapi/openOrders", lambda body: body.append(body[0])))
    assert reasons(orders, CROSS) == {"duplicate"}


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"side": "HOLD"}, FailureReason.MALFORMED),
        ({"price": "-1"}, FailureReason.OUT_OF_RANGE),
        ({"executedQty": "1"}, FailureReason.INCONSISTENT),
        ({"origQty": None}, FailureReason.MISSING_FIELD),
        ({"symbol": "DOGEUSDT"}, FailureReason.UNKNOWN_MARKET),
        ({"reduceOnly": 3}, FailureReason.MALFORMED),
    ],
)
def test_bad_orders(edit: dict[str, Any], reason: FailureReason) -> None:
    result = normalized(edited(north(), "fapi/openOrders", lambda body: body[0].update(edit)))
    assert [(f.reason, f.account_id) for f in result.failures] == [(reason, CROSS)]
    assert len(rows_of(result, "open_orders")) == 1


@pytest.mark.parametrize(
    ("body", "reason", "path"),
    [
        ({"bids": [["2", "1"]], "asks": [["1", "1"]]}, FailureReason.INCONSISTENT, "bids"),
        ({"bids": [], "asks": [["1", "1"]]}, FailureReason.MISSING_MARK, "bids"),
        ({"bids": [["1", "1"]]}, FailureReason.MISSING_FIELD, "asks"),
        ({"bids": [["-1", "1"]], "asks": [["1", "1"]]}, FailureReason.OUT_OF_RANGE, "bids[0]"),
        ({"bids": [["1", "1"], "x"], "asks": [["2", "1"]]}, FailureReason.MALFORMED, "bids[1]"),
        ({"bids": [["1", "NaN"]], "asks": [["2", "1"]]}, FailureReason.NOT_A_NUMBER, "bids[0][1]"),
    ],
)
def test_bad_books(body: Any, reason: FailureReason, path: str) -> None:
    (failure,) = normalized([answer("fapi/depth:BTCUSDT", body)]).failures
    assert (failure.reason, failure.path, failure.account_id) == (reason, path, None)


def test_a_book_without_a_symbol() -> None:
    (failure,) = normalized([answer("fapi/depth", load("depth_btcusdt.json")[0].body)]).failures
    assert (failure.reason, failure.path) == (FailureReason.MISSING_FIELD, "symbol")
    (failure,) = normalized([answer("fapi/depth:DOGEUSDT", load("depth_btcusdt.json")[0].body)]).failures
    assert failure.reason == FailureReason.UNKNOWN_MARKET


@pytest.mark.parametrize("body", [None, [], "maintenance", 7, {}, {"assets": {}}, {"assets": [None]}])
def test_an_account_answer_of_the_wrong_shape_leaves_an_incomplete_account(body: Any) -> None:
    result = normalized([answer("fapi/account", body, owner="north")])
    assert [row["account_id"] for row in rows_of(result, "accounts")] == ["binance:north"]
    assert {f.account_id for f in result.failures} == {"binance:north"}
    with_positions = normalized(edited(north(), "fapi/account", lambda _: {} if body is None else body))
    cross = {row["account_id"] for row in rows_of(with_positions, "accounts", margin_mode="cross")}
    assert cross == {CROSS, "binance:north:USDC"}
    assert cross <= {f.account_id for f in with_positions.failures}


def test_positions_without_an_account_answer() -> None:
    result = normalized(without(north(), "fapi/account"))
    assert reasons(result, CROSS) == {"missing_field"}
    assert reasons(result, "binance:north:USDC") == {"missing_field"}
    assert not failed(result, ISOLATED)  # its wallet stands in positionRisk


def test_an_unreadable_mode_leaves_no_account_complete() -> None:
    result = normalized(edited(north(), "fapi/multiAssetsMargin", lambda body: body.update(multiAssetsMargin="maybe")))
    assert {f.account_id for f in result.failures} == {CROSS, "binance:north:USDC"}
    assert {f.reason for f in result.failures} == {FailureReason.MALFORMED}


def test_requests_that_are_not_understood() -> None:
    unknown = normalized([answer("eapi/v1/account", {}, owner="north")])
    assert [(f.reason, f.subject) for f in unknown.failures] == [(FailureReason.UNSUPPORTED, "north")]
    nobody = normalized([answer("fapi/account", {"assets": []})])
    assert [(f.reason, f.path) for f in nobody.failures] == [(FailureReason.MISSING_FIELD, "account")]


def test_truncated_and_missing_files_are_said_by_the_transport(tmp_path: Path) -> None:
    text = (PAYLOADS / "north_account.json").read_text(encoding="utf-8")
    (tmp_path / "cut.json").write_text(text[: len(text) // 2], encoding="utf-8")
    transport = RecordedTransport(tmp_path)
    cut = transport.fetch("binance", PayloadRequest("fapi/account", "cut.json", "north"))
    gone = transport.fetch("binance", PayloadRequest("fapi/account", "gone.json", "north"))
    assert isinstance(cut, Failure)
    assert isinstance(gone, Failure)
    assert (cut.reason, gone.reason) == (FailureReason.MALFORMED, FailureReason.UNREACHABLE)


# no answer of any shape gets an exception out of the adapter


JUNK: tuple[Any, ...] = (None, "", "NaN", "-1", "x", -1, 0, True, [], {}, [[]], Decimal("1e30"), "BTCUSDT", {"a": 1})
MUTATIONS = 60


def test_mutated_answers_never_raise_and_never_leave_an_unflagged_gap() -> None:
    chance = random.Random(20240620)
    payloads = whole_desk()
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
        changed = answer(payloads[number].request, body, owner=payloads[number].account)
        result = normalized([*payloads[:number], changed, *payloads[number + 1 :]])
        known = {row["account_id"] for row in rows_of(result, "accounts")}
        assert {f.account_id for f in result.failures if f.account_id} <= known
        if not accounts <= known:
            assert result.failures
        snapshot = take_snapshot([result.batches], result.failures)
        whole = known - snapshot.incomplete
        for row in (*rows_of(result, "positions"), *rows_of(result, "balances"), *rows_of(result, "open_orders")):
            assert row["account_id"] in known
        for row in rows_of(result, "positions"):
            if row["account_id"] in whole:
                assert row["instrument_id"] in marks_of(result, row["account_id"])


# mechanics


BRACKETS = [
    mechanics.Bracket(
        *(Decimal(b[k]) for k in ("notionalFloor", "notionalCap", "maintMarginRatio", "initialLeverage", "cum"))
    )
    for b in PARAMETERS["brackets"]["BTCUSDT"]
]


@pytest.mark.parametrize("number", range(len(BRACKETS) - 1))
def test_at_a_cap_the_lower_bracket_applies_and_maintenance_is_continuous(number: int) -> None:
    lower, upper = BRACKETS[number], BRACKETS[number + 1]
    assert lower.cap is not None
    margin = mechanics.bracket_margin(lower.cap, BRACKETS, selected_leverage=Decimal(1))
    assert margin.max_leverage == lower.max_leverage
    assert margin.maintenance_margin == lower.cap * upper.rate - upper.cum
    above = mechanics.bracket_margin(lower.cap + 1, BRACKETS, selected_leverage=Decimal(1))
    assert above.max_leverage == upper.max_leverage
    assert above.maintenance_margin - margin.maintenance_margin == upper.rate


def test_bracket_margin_at_its_edges() -> None:
    zero = mechanics.bracket_margin(Decimal(0), BRACKETS, selected_leverage=Decimal(20))
    assert zero == mechanics.BracketMargin(Decimal(0), Decimal(125), Decimal(0))
    huge = mechanics.bracket_margin(Decimal("3e9"), BRACKETS, selected_leverage=Decimal(20))
    assert (huge.max_leverage, huge.initial_margin) == (Decimal(1), Decimal("3e9"))
    assert mechanics.bracket_margin(
        Decimal(-55_000), BRACKETS[::-1], selected_leverage=Decimal(20)
    ) == mechanics.bracket_margin(Decimal(55_000), BRACKETS, selected_leverage=Decimal(20))
    with pytest.raises(ValueError, match="no brackets"):
        mechanics.bracket_margin(Decimal(1), [], selected_leverage=Decimal(1))
    with pytest.raises(ValueError, match="must be positive"):
        mechanics.bracket_margin(Decimal(1), BRACKETS, selected_leverage=Decimal(0))


@pytest.mark.parametrize("quantity", ["0.5", "-0.5", "12", "-12", "900", "-900", "30000", "-30000"])
@pytest.mark.parametrize("leverage", ["2", "10", "100"])
def test_at_the_liquidation_price_balance_and_maintenance_meet(quantity: str, leverage: str) -> None:
    q, entry = Decimal(quantity), Decimal(60_000)
    wallet = abs(q) * entry / Decimal(leverage)
    price = mechanics.liquidation_price(q, entry, BRACKETS, wallet=wallet)
    assert price is not None

    def excess(at: Decimal) -> Decimal:
        maintenance = mechanics.bracket_margin(q * at, BRACKETS, selected_leverage=Decimal(1)).maintenance_margin
        return wallet + q * (at - entry) - maintenance

    # 28 significant digits on balances up to 1e9
    assert abs(excess(price)) <= Decimal("1e-12") * abs(q) * entry
    step = Decimal(1) if q > 0 else Decimal(-1)
    assert excess(price + step) > 0 > excess(price - step)


def test_positions_without_a_liquidation_price() -> None:
    assert mechanics.liquidation_price(Decimal(0), Decimal(60_000), BRACKETS, wallet=Decimal(1)) is None
    assert mechanics.liquidation_price(Decimal(1), Decimal(60_000), BRACKETS, wallet=Decimal(60_000)) is None
    assert mechanics.liquidation_price(Decimal(1), Decimal(60_000), BRACKETS, wallet=Decimal(70_000)) is None
    one = mechanics.liquidation_price(
        Decimal(1), Decimal(60_000), BRACKETS, wallet=Decimal(5_000), other_margin=Decimal(1_000)
    )
    assert one == mechanics.liquidation_price(Decimal(1), Decimal(60_000), BRACKETS, wallet=Decimal(6_000))


# payloads recorded elsewhere


def recorded_payload(recorded: Path, name: str, request: str, owner: str = "") -> Payload:
    transport = RecordedTransport(recorded / "payloads" / "binance")
    payload = transport.fetch("binance", PayloadRequest(request, name, owner))
    assert isinstance(payload, Payload)
    return payload


def test_recorded_account_contradicts_itself(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "usdm_account_v3.json", "fapi/account", "doc")])
    assert [(f.reason, f.path, f.account_id) for f in result.failures] == [
        (FailureReason.INCONSISTENT, "positions[0].notional", "binance:doc:USDT")
    ]
    assert {row["account_id"]: row["reported_equity"] for row in rows_of(result, "accounts")} == {
        "binance:doc:USDT": Decimal("23.72469206"),
        "binance:doc:USDC": Decimal("103.12345678"),
    }


def test_recorded_brackets_are_the_dated_ones(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "leverage_tiers_usdm.json", "fapi/leverageBracket")])
    assert result.failures == []
    assert {row["market"] for row in rows_of(result, "margin_tiers")} >= {"binance:BTCUSDT", "binance:BTCUSDC"}
    for symbol, brackets in PARAMETERS["brackets"].items():
        tiers = rows_of(result, "margin_tiers", market=f"binance:{symbol}")
        dated = [(Decimal(b["notionalFloor"]), Decimal(b["maintMarginRatio"]), Decimal(b["cum"])) for b in brackets]
        assert [(t["notional_floor"], t["maintenance_rate"], t["deduction"]) for t in tiers] == dated


def test_recorded_bracket_with_a_coefficient(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "usdm_brackets_doc.json", "fapi/leverageBracket")])
    tier = row_of(result, "margin_tiers")
    assert (tier["notional_cap"], tier["maintenance_rate"]) == (15000, Decimal("0.0065"))


def test_recorded_market_answers(recorded: Path) -> None:
    result = normalized(
        [
            recorded_payload(recorded, "usdm_mark_price.json", "fapi/premiumIndex"),
            recorded_payload(recorded, "usdm_depth.json", "fapi/depth:ETHUSDT"),
            recorded_payload(recorded, "portfolio_margin_collateral_rate.json", "portfolio/collateralRate"),
            recorded_payload(recorded, "portfolio_margin_account.json", "portfolio/account", "doc"),
            recorded_payload(recorded, "usdm_position_risk.json", "fapi/positionRisk", "doc"),
        ]
    )
    values = {(row["subject"], row["field"]): row["value"] for row in rows_of(result, "marks")}
    assert values["binance:BTCUSDT", "mark"] == 11793.63104562
    assert values["binance:ETHUSDT", "bid"] == 4.0
    assert values["binance:ETHUSDT", "depth_bid"] == 4.0 * 431
    assert row_of(result, "accounts", margin_mode="portfolio")["reported_health"] == Decimal("5167.92171923")
    assert [t["asset_id"] for t in rows_of(result, "collateral_tiers")] == ["USDC"]
