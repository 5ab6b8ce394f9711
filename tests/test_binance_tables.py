"""Binance: the desk becomes canonical tables, and what the rows say is what the venue says."""

import json
from decimal import Decimal

import pytest

from adapters.adapter import Adapter, Normalized
from adapters.binance import ADAPTER
from aggregator.snapshot import take_snapshot
from tests.desk_binance import HERE, edited, load, marks_of, normalized, south, whole_desk
from tests.normalized_rows import only, rows_of, tables_as_json

# Venue figures are rounded to 8 decimals; a sum of five positions can miss by a few units of the last.
VENUE_ROUNDING = Decimal("5e-8")
# Exact decimals but for weights, which are quotients kept to 18 decimals, on values below 1e5.
WEIGHT_ROUNDING = Decimal("1e-12")


def test_the_desk_becomes_the_expected_batches() -> None:
    expected = json.loads((HERE / "expected" / "binance" / "desk.json").read_text(encoding="utf-8"))
    result = normalized(whole_desk())
    tables = tables_as_json(result)
    assert set(tables) == set(expected["tables"])
    for name, rows in expected["tables"].items():
        assert tables[name] == rows, name
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
    assert failures == expected["failures"]


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


def balance_of(result: Normalized, account: str, asset: str) -> Decimal:
    rows = rows_of(result, "balances", account_id=account, asset_id=asset)
    return sum((row["quantity"] if row["side"] == "asset" else -row["quantity"] for row in rows), Decimal(0))


def profit_of(result: Normalized, account: str, settlement: str) -> Decimal:
    marks = marks_of(result, account)
    return sum(
        (
            row["quantity"] * (marks[row["instrument_id"]] - row["entry_price"])
            for row in rows_of(result, "positions", account_id=account)
            if only(result, "instruments", instrument_id=row["instrument_id"])["settlement_asset"] == settlement
        ),
        Decimal(0),
    )


def maintenance_of(result: Normalized, account: str) -> Decimal:
    """Sum over positions of the rate steps of their margin tiers, written out."""
    rule_set, marks, total = (
        only(result, "accounts", account_id=account)["rule_set"],
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
    row = only(result, "accounts", account_id=account)
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
        only(result, "accounts", account_id=a) for a in ("binance:north:USDT", "binance:north:isolated:SOLUSDT")
    ]
    margin = sum(row["reported_equity"] for row in accounts)
    assert abs(margin - Decimal(asset["marginBalance"])) <= VENUE_ROUNDING
    maintenance = sum(row["reported_maintenance_margin"] for row in accounts)
    assert abs(maintenance - Decimal(asset["maintMargin"])) <= VENUE_ROUNDING
    assert accounts[1]["parent_account_id"] == accounts[0]["account_id"]
    assert accounts[0]["node"] != accounts[1]["node"]


def test_multi_assets_balances_at_the_index_are_the_reported_total() -> None:
    result = normalized(whole_desk())
    row = only(result, "accounts", account_id="binance:south:multi")
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
    assert only(result, "accounts", account_id="binance:north:USDT")["rule_set"] == "binance:usdm:north:USDT"
    assert only(result, "accounts", account_id="binance:north:USDC")["rule_set"] == "binance:usdm"
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
    rule_set = only(normalized(multi), "accounts", account_id="binance:south:multi")["rule_set"]
    assert rule_set == "binance:multi_assets:south:multi"
    assert rows_of(normalized(multi), "collateral_tiers", rule_set=rule_set)
