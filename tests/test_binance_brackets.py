"""Binance: leverage brackets become margin tiers, and the exact mechanics of both."""

from decimal import Decimal
from typing import Any

import pytest

from adapters.binance import mechanics
from adapters.transport import Payload
from aggregator.errors import FailureReason
from tests.desk_binance import PARAMETERS, RECEIVED, answer, edited, normalized, north, position, without
from tests.normalized_rows import failures_of, only, rows_of


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
    (finding,) = failures_of(result, None)
    assert (finding.reason, finding.path, finding.payload) == (FailureReason.INCONSISTENT, path, "brackets.json")
    # the dated brackets of BTCUSDT do not stand in for a contradiction of today's
    account = [f for f in failures_of(result, "binance:north:USDT") if f.subject == "binance:BTCUSDT"]
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
    rule_set = only(result, "accounts", account_id="binance:north:USDT")["rule_set"]
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
    assert only(result, "positions", instrument_id="binance:BTCUSDT")["leverage"] == 110


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
