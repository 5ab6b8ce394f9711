"""Bybit: rule sets, margin tiers and collateral tiers as data."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from adapters.adapter import Normalized
from adapters.transport import Payload
from aggregator.errors import FailureReason
from aggregator.rule_forms import ContractMargin, Fixed, TieredNotional, Verdict, WeightedValue, parse_parameters
from tests.desk_bybit import (
    EAST,
    ETH_LONG,
    NORTH,
    NOW,
    PARAMETERS,
    SOUTH,
    VENUE_ROUNDING,
    WEST,
    answer,
    desk,
    edited,
    listed,
    normalized,
    price_of,
    wallet_of,
    without,
)
from tests.native_figures import native_figures
from tests.normalized_rows import only, rows_of


def components(result: Normalized, account: str) -> list[tuple[str, str, Any]]:
    rule_set = only(result, "accounts", account_id=account)["rule_set"]
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
    assert only(result, "accounts", account_id=SOUTH)["rule_set"] == "bybit:cross"
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
        tier = only(result, "collateral_tiers", rule_set=rule_set, asset_id="ETH")
        assert tier["asset_weight_maintenance"] == Decimal("0.9")
