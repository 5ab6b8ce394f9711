"""Portfolio margin of Binance: uniMMR from balances, positions of both products, loans and collateral tiers.

Owners of the payloads of 2024-06-30: `delta` (papi answers, loans at three leverages, order margin and loss) and `echo`
(portfolio margin pro, no loan).
"""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.binance import mechanics
from adapters.binance.portfolio_market import uni_mmr_statuses
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.errors import ConfigurationError, FailureReason
from aggregator.rule_forms import DebtCharge, Fixed, TieredNotional, Verdict, WeightedValue
from aggregator.snapshot import take_snapshot
from tests.binance_book import (
    NOW,
    PARAMETERS,
    answer,
    body_of,
    book,
    components,
    edited,
    normalized,
    sets_of,
    without,
)
from tests.junk_answers import check_junk
from tests.native_figures import native_figures
from tests.normalized_rows import failures_of, only, rows_of

DELTA, ECHO = "binance:delta:portfolio", "binance:echo:portfolio"
TOTALS = {DELTA: "delta_account.json", ECHO: "echo_portfolio_account.json"}
BALANCES = {DELTA: "delta_balance.json", ECHO: "echo_portfolio_balance.json"}
RISKS = {
    DELTA: ("delta_um_position_risk.json", "delta_cm_position_risk.json"),
    ECHO: ("echo_um_position_risk.json", "echo_cm_position_risk.json"),
}

# Native figures today are the venue's to 1e-9, the contract of the engine.
NATIVE_RTOL = 1e-9
STATUSES = uni_mmr_statuses(PARAMETERS)
# The venue rounds each coin to 8 decimals before it values it, BTC at 61 thousand dollars.
VENUE_ROUNDING = Fraction(61_000 * 8, 10**8)
INDEX = {line["asset"]: Fraction(line["assetIndexPrice"]) for line in body_of("portfolio_asset_index_price.json")}
LEVERAGE = {line["asset"]: line["leverage"] for line in body_of("portfolio_margin_asset_leverage.json")}
LOAN_RATE = {10: Fraction("0.05"), 5: Fraction("0.08"), 3: Fraction("0.10")}  # of the venue's FAQ


@pytest.mark.parametrize("account", [DELTA, ECHO])
def test_the_engine_computes_what_the_venue_reports(account: str) -> None:
    result = normalized(book())
    assert result.failures == []
    figures = native_figures(result, as_of=NOW)[account]
    row = only(result, "accounts", account_id=account)
    for name, got in zip(("equity", "initial_margin", "maintenance_margin"), figures, strict=True):
        assert got == pytest.approx(float(row[f"reported_{name}"]), rel=NATIVE_RTOL, abs=0.0), name
    assert figures.equity / figures.maintenance == pytest.approx(float(row["reported_health"]), rel=NATIVE_RTOL)


def by_the_mechanics(account: str) -> mechanics.UniMmr:
    """The uniMMR of an account from its payloads through `mechanics.uni_mmr`, without the adapter."""
    tiers = {
        line["asset"]: (
            *(
                mechanics.CollateralTier(Decimal(t["tierFloor"]), Decimal(t["collateralRate"]))
                for t in line["collateralInfo"]
            ),
            mechanics.CollateralTier(Decimal(line["collateralInfo"][-1]["tierCap"]), Decimal(0)),
        )
        for line in body_of("portfolio_collateral_rate.json")
    }
    brackets = {line["symbol"]: line["brackets"] for line in body_of("fapi_leverage_bracket.json")}
    for name in ("dapi_leverage_bracket.json", "dapi_leverage_bracket_ethusd.json"):
        brackets |= {line.get("symbol", f"{line.get('pair')}_PERP"): line["brackets"] for line in body_of(name)}
    futures: dict[str, Decimal] = {}
    for record in (record for name in RISKS[account] for record in body_of(name)):
        inverse = "USD_" in record["symbol"]
        notional = abs(Decimal(record["notionalValue" if inverse else "notional"]))
        keys = ("qtylFloor", "qtyCap") if inverse else ("notionalFloor", "notionalCap")
        table = [
            mechanics.Bracket(*(Decimal(str(b[k])) for k in (*keys, "maintMarginRatio", "initialLeverage", "cum")))
            for b in brackets[record["symbol"]]
        ]
        margin = mechanics.bracket_margin(notional, table, selected_leverage=Decimal(record["leverage"]))
        asset = record["symbol"][:3] if inverse else "USDT"
        futures[asset] = futures.get(asset, Decimal(0)) + margin.maintenance_margin
    equity = maintenance = Decimal(0)
    loss = Decimal(body_of(TOTALS[account]).get("totalMarginOpenLoss", "0"))
    for line in body_of(BALANCES[account]):
        asset = line["asset"]
        index = Decimal(INDEX[asset].numerator) / INDEX[asset].denominator
        rate = LOAN_RATE[LEVERAGE.get(asset, 3)]
        coin = mechanics.PortfolioMarginCoin(
            margin_asset=Decimal(line["crossMarginAsset"]),
            margin_loan=Decimal(line["crossMarginBorrowed"]),
            futures_wallet=Decimal(line["umWalletBalance"])
            + Decimal(line["cmWalletBalance"])
            - Decimal(line["crossMarginInterest"]),
            futures_profit=Decimal(line["umUnrealizedPNL"]) + Decimal(line["cmUnrealizedPNL"]),
            futures_maintenance=futures.get(asset, Decimal(0)),
            index_price=index,
            collateral_rate=Decimal(1),
            collateral_tiers=tiers[asset],
        )
        one = mechanics.uni_mmr({asset: coin}, loan_rate=Decimal(rate.numerator) / rate.denominator, statuses=STATUSES)
        equity, maintenance = equity + one.equity_usd, maintenance + one.maintenance_usd
    return mechanics.UniMmr(equity - loss, maintenance, (equity - loss) / maintenance, "")


@pytest.mark.parametrize("account", [DELTA, ECHO])
def test_the_uni_mmr_of_the_mechanics_is_the_reported_one(account: str) -> None:
    found, stated = by_the_mechanics(account), body_of(TOTALS[account])
    assert abs(Fraction(found.equity_usd) - Fraction(stated["accountEquity"])) < VENUE_ROUNDING
    assert abs(Fraction(found.maintenance_usd) - Fraction(stated["accountMaintMargin"])) < VENUE_ROUNDING
    assert found.ratio is not None
    assert abs(found.ratio - Decimal(stated["uniMMR"])) < Decimal("1e-7")


def test_rule_sets() -> None:
    result = normalized(book())
    equity = WeightedValue(weights="collateral_tiers", net_by_asset=True, liabilities="unit")
    tiers = TieredNotional(initial="leverage")
    verdict = Verdict(liquidates_when="at_or_below", trigger=Decimal("1.05"))
    assert only(result, "accounts", account_id=ECHO)["rule_set"] == "binance:portfolio_margin"
    assert [form for _, form in components(result, ECHO)] == [equity, tiers, verdict]
    own = components(result, DELTA)
    assert [form for _, form in own if isinstance(form, WeightedValue | TieredNotional | Verdict)] == [
        equity,
        tiers,
        verdict,
    ]
    fixed = {form.basis: form for _, form in own if isinstance(form, Fixed)}
    assert fixed["reported totalMarginOpenLoss"].equity == Decimal("-25.75")
    assert fixed["reported openOrderInitialMargin"].initial == Decimal("410.5") * Decimal("0.9996")
    (loans,) = [form for _, form in own if isinstance(form, DebtCharge)]
    assert not loans.net_by_asset
    for line in body_of("delta_balance.json"):
        borrowed = Fraction(line["crossMarginBorrowed"])
        owed = [
            row
            for row in rows_of(result, "balances", account_id=DELTA, asset_id=line["asset"])
            if row["side"] == "liability"
        ]
        assert bool(owed) == (borrowed > 0)
        if borrowed:
            total = Fraction(owed[0]["quantity"]) + Fraction(owed[0]["accrued_interest"])
            leverage = LEVERAGE[line["asset"]]
            for rates, rate in (
                (loans.maintenance_rates, LOAN_RATE[leverage]),
                (loans.initial_rates, Fraction(1, leverage - 1)),
            ):
                assert abs(Fraction(rates[line["asset"]]) * total - borrowed * rate) < Fraction(1, 10**18)


def test_balances_are_wallets_and_loans() -> None:
    result = normalized(book("delta"))
    for line in body_of("delta_balance.json"):
        sides = {row["side"]: row for row in rows_of(result, "balances", asset_id=line["asset"])}
        held = sum(Decimal(line[key]) for key in ("crossMarginAsset", "umWalletBalance", "cmWalletBalance"))
        assert sides["asset"]["quantity"] == held
        assert all(row["collateral_enabled"] for row in sides.values())
        if Decimal(line["crossMarginBorrowed"]):
            assert sides["liability"]["quantity"] == Decimal(line["crossMarginBorrowed"])
            assert sides["liability"]["accrued_interest"] == Decimal(line["crossMarginInterest"])


def test_a_wallet_below_zero_is_owed_but_no_loan() -> None:
    def overdraw(body: Any) -> None:
        usdt = body[0]
        usdt.update(umWalletBalance="-150000", crossMarginAsset="140000.5")

    result = normalized(edited(book("delta"), "delta_balance.json", overdraw))
    (usdt,) = rows_of(result, "balances", asset_id="USDT")
    assert (usdt["side"], usdt["quantity"]) == ("liability", Decimal("60000") + Decimal("9999.5"))
    (loans,) = [form for _, form in components(result, DELTA) if isinstance(form, DebtCharge)]
    total = Fraction(usdt["quantity"]) + Fraction(usdt["accrued_interest"])
    assert abs(Fraction(loans.maintenance_rates["USDT"]) * total - 60_000 * Fraction("0.05")) < Fraction(1, 10**15)


def test_collateral_tiers_are_the_published_slices() -> None:
    result = normalized(book("delta"))
    rows = rows_of(result, "collateral_tiers", rule_set="binance:portfolio_margin:delta", asset_id="BTC")
    assert [
        (r["floor"], r["asset_weight_maintenance"], r["liability_weight_maintenance"], r["floor_in"]) for r in rows
    ] == [
        (0, Decimal("0.95"), 1, "tokens"),
        (20, Decimal("0.90"), 1, "tokens"),
        (200, 0, 1, "tokens"),
    ]
    dated = PARAMETERS | {"portfolio_margin": PARAMETERS["portfolio_margin"] | {"collateral_floor_in": "value"}}
    rows = rows_of(normalized(book("delta"), dated), "collateral_tiers", asset_id="BTC")
    assert {row["floor_in"] for row in rows if "portfolio" in row["rule_set"]} == {"value"}


def test_flat_rates_are_one_slice() -> None:
    flat = [
        {"asset": a, "collateralRate": r} for a, r in (("BTC", "0.95"), ("USDT", "1"), ("USDC", "0.99"), ("WAGMI", "0"))
    ]
    payloads = without(book("echo"), "portfolio_collateral_rate.json")
    result = normalized([*payloads, answer("/sapi/v1/portfolio/collateralRate", flat)])
    assert result.failures == []
    tiers = rows_of(result, "collateral_tiers", rule_set="binance:portfolio_margin")
    assert {t["asset_id"]: t["asset_weight_initial"] for t in tiers} == {
        "BTC": Decimal("0.95"),
        "USDT": 1,
        "USDC": Decimal("0.99"),
    }
    figures = native_figures(result, as_of=NOW)[ECHO]
    assert figures.equity < native_figures(normalized(book("echo")), as_of=NOW)[ECHO].equity


def test_the_status_word_is_kept() -> None:
    state = only(normalized(book("delta")), "market_state", field="account_status")
    assert (state["market"], state["text"]) == (DELTA, "NORMAL")


def test_the_order_of_the_payloads_and_a_second_source_of_positions_change_no_row() -> None:
    expected = sets_of(normalized(book("delta")))
    assert sets_of(normalized(book("delta")[::-1])) == expected
    # the classic paths carry the same positions
    renamed = [
        answer(
            p.request.replace("papi/v1/um/", "fapi/v2/").replace("papi/v1/cm/", "dapi/v1/"), p.body, p.account, p.name
        )
        if "/um/" in p.request or "/cm/" in p.request
        else p
        for p in book("delta")
    ]
    result = normalized(renamed)
    assert result.failures == []
    for table in ("positions", "balances", "accounts", "open_orders", "margin_tiers", "collateral_tiers"):
        assert sets_of(result)[table] == expected[table]


def test_everything_of_the_owner_is_in_one_account() -> None:
    result = normalized(book("delta", "echo"))
    assert [row["account_id"] for row in rows_of(result, "accounts")] == [DELTA, ECHO]
    assert {row["account_id"] for row in rows_of(result, "open_orders")} == {DELTA}
    held = {row["instrument_id"] for row in rows_of(result, "positions", account_id=DELTA)}
    assert held == {"binance:BTCUSDT", "binance:ETHUSDT", "binance:BTCUSD_PERP", "binance:ETHUSD_PERP"}


coins = st.decimals(Decimal("0.00000001"), 1000, places=8, allow_nan=False)


@settings(max_examples=25)
@given(st.tuples(coins, coins, coins), st.permutations(range(3)), st.tuples(coins, coins))
def test_coins_may_lie_in_any_wallet(amounts: Any, order: list[int], debt: Any) -> None:
    keys = ("crossMarginAsset", "umWalletBalance", "cmWalletBalance")

    def spread(places: Any) -> Any:
        def edit(body: Any) -> None:
            body[1].update({key: str(amounts[place]) for key, place in zip(keys, places, strict=True)})
            body[1].update(crossMarginBorrowed=str(debt[0]), crossMarginInterest=str(debt[1]))

        return normalized(edited(book("delta"), "delta_balance.json", edit))

    first, second = spread(range(3)), spread(order)
    assert first.failures == []
    assert sets_of(first) == sets_of(second)
    # all that is owed carries the charge, which is that of the loan alone
    (loans,) = [form for _, form in components(first, DELTA) if isinstance(form, DebtCharge)]
    charged = Fraction(loans.maintenance_rates["BTC"]) * (Fraction(debt[0]) + Fraction(debt[1]))
    assert abs(charged - Fraction(debt[0]) * LOAN_RATE[LEVERAGE["BTC"]]) < Fraction(1, 10**18)


# where figures come from when an answer is not there


def test_order_margin_is_what_the_total_holds_beyond_positions_and_loans() -> None:
    payloads = without(book("delta"), "delta_um_account.json", "delta_cm_account.json")
    result = normalized(payloads)
    assert result.failures == []
    (orders,) = [form for _, form in components(result, DELTA) if isinstance(form, Fixed) and form.initial]
    assert orders.basis == "reported accountInitialMargin less positions"
    assert abs(orders.initial - Decimal("410.5") * Decimal("0.9996")) < Decimal("1e-6")
    silent = edited(payloads, "delta_account.json", lambda body: body.pop("accountInitialMargin"))
    assert [(f.reason, f.path) for f in normalized(silent).failures] == [
        (FailureReason.MISSING_FIELD, "accountInitialMargin")
    ]


def test_loan_leverage_comes_from_the_answer_then_the_parameters() -> None:
    payloads = without(book("delta"), "portfolio_margin_asset_leverage.json")
    (loans,) = [form for _, form in components(normalized(payloads), DELTA) if isinstance(form, DebtCharge)]
    assert loans.maintenance_rates["USDT"] < Decimal("0.10") < Decimal("1.001") * loans.maintenance_rates["USDT"]
    unknown = answer("portfolio/margin-asset-leverage", [{"asset": "USDT", "leverage": 4}], "delta")
    result = normalized([*book("delta"), unknown])
    assert [(f.reason, f.subject) for f in failures_of(result, DELTA)] == [(FailureReason.MISSING_PARAMETER, "USDT")]
    nothing = PARAMETERS | {"portfolio_margin": {"trigger": "1.05"}}
    assert {f.reason for f in failures_of(normalized(book("delta"), nothing), DELTA)} == {
        FailureReason.MISSING_PARAMETER
    }
    assert failures_of(normalized(book("echo"), nothing), ECHO) == []
    for bad in ({"loan_rates": {"x": "0.1"}}, {"trigger": "-1"}, {"collateral_floor_in": "yards"}):
        odd = normalized([], PARAMETERS | {"portfolio_margin": bad})
        assert [f.payload for f in odd.failures] == ["configs/venues/binance.toml"]
    with pytest.raises(ConfigurationError, match=r"expected a table \[loan_rates\]"):
        normalized([], PARAMETERS | {"portfolio_margin": {"loan_rates": 3}})


def test_prices_are_those_of_portfolio_margin_then_the_markets() -> None:
    marks = {
        row["subject"]: row["value"]
        for row in rows_of(normalized(book("delta")), "marks", account_id=DELTA, field="index")
    }
    assert marks == {asset: float(INDEX[asset]) for asset in ("BTC", "ETH", "BNB", "USDT")}
    other = normalized(without(book("delta"), "portfolio_asset_index_price.json"))
    assert other.failures == []
    assert not rows_of(other, "marks", account_id=DELTA, field="index")
    assert native_figures(other, as_of=NOW)[DELTA] == native_figures(normalized(book("delta")), as_of=NOW)[DELTA]
    blind = normalized(without(book("delta"), "portfolio_asset_index_price.json", "fapi_asset_index.json"))
    # the perpetuals of COIN-M price their coins, a stable counts at par, nothing prices BNB
    assert [(f.reason, f.subject) for f in failures_of(blind, DELTA)] == [(FailureReason.MISSING_MARK, "BNB")]


@pytest.mark.parametrize(
    ("gone", "account", "reason"),
    [
        (("delta_balance.json",), DELTA, FailureReason.MISSING_FIELD),
        (("delta_um_position_risk.json", "delta_um_account.json"), DELTA, FailureReason.MISSING_FIELD),
        (("delta_cm_position_risk.json", "delta_cm_account.json"), DELTA, FailureReason.MISSING_FIELD),
        (("portfolio_collateral_rate.json",), DELTA, FailureReason.MISSING_PARAMETER),
        (("dapi_leverage_bracket.json",), DELTA, FailureReason.MISSING_PARAMETER),
        (("echo_portfolio_balance.json",), ECHO, FailureReason.MISSING_FIELD),
    ],
)
def test_what_an_account_needs_and_nobody_sent(gone: tuple[str, ...], account: str, reason: FailureReason) -> None:
    result = normalized(without(book(), *gone))
    assert reason in {f.reason for f in failures_of(result, account)}
    assert {f.account_id for f in result.failures} <= {DELTA, ECHO, "binance:charlie:coinm:BTC"}


def test_the_account_answer_alone_is_no_account() -> None:
    result = normalized([p for p in book("delta") if p.name == "delta_account.json"])
    assert [(f.reason, f.path, f.account_id) for f in result.failures] == [
        (FailureReason.MISSING_FIELD, "balance", DELTA)
    ]
    row = only(result, "accounts")
    assert row["reported_health"] == Decimal(body_of("delta_account.json")["uniMMR"])
    assert take_snapshot([result.batches], result.failures).incomplete == {DELTA}


def test_positions_without_the_account_answer_are_computed() -> None:
    result = normalized(without(book("delta"), "delta_account.json"))
    assert result.failures == []
    assert only(result, "accounts")["reported_equity"] is None
    # nobody says the loss of the margin wallet's open orders
    assert native_figures(result, as_of=NOW)[DELTA].maintenance == pytest.approx(
        native_figures(normalized(book("delta")), as_of=NOW)[DELTA].maintenance, rel=1e-15
    )


# bad input


@pytest.mark.parametrize(
    ("edit", "reason", "field"),
    [
        ({"crossMarginAsset": "NaN"}, FailureReason.NOT_A_NUMBER, "crossMarginAsset"),
        ({"crossMarginAsset": "-1"}, FailureReason.OUT_OF_RANGE, "crossMarginAsset"),
        ({"crossMarginBorrowed": None}, FailureReason.MISSING_FIELD, "crossMarginBorrowed"),
        ({"crossMarginBorrowed": "-1"}, FailureReason.OUT_OF_RANGE, "crossMarginBorrowed"),
        ({"umWalletBalance": "x"}, FailureReason.NOT_A_NUMBER, "umWalletBalance"),
        ({"crossMarginInterest": "-1"}, FailureReason.OUT_OF_RANGE, "crossMarginInterest"),
        ({"asset": "WAGMI"}, FailureReason.UNKNOWN_ASSET, "asset"),
        ({"asset": None}, FailureReason.MISSING_FIELD, "asset"),
        ({"optionEquity": "5"}, FailureReason.UNSUPPORTED, "optionEquity"),
    ],
)
def test_a_bad_balance_makes_its_account_incomplete_and_no_other(
    edit: dict[str, Any], reason: FailureReason, field: str
) -> None:
    result = normalized(edited(book(), "delta_balance.json", lambda body: body[3].update(edit)))
    assert (reason, f"[3].{field}") in {(f.reason, f.path) for f in failures_of(result, DELTA)}
    assert {f.account_id for f in result.failures} == {DELTA}


@pytest.mark.parametrize(
    ("edit", "reason", "field"),
    [
        ({"positionAmt": "NaN"}, FailureReason.NOT_A_NUMBER, "[0].positionAmt"),
        ({"positionAmt": "-6.4"}, FailureReason.INCONSISTENT, "[0].positionAmt"),
        ({"markPrice": "0"}, FailureReason.OUT_OF_RANGE, "[0].markPrice"),
        ({"marginType": "isolated"}, FailureReason.INCONSISTENT, "[0]"),
    ],
)
def test_a_bad_position_makes_its_account_incomplete_and_no_other(
    edit: dict[str, Any], reason: FailureReason, field: str
) -> None:
    result = normalized(edited(book(), "delta_um_position_risk.json", lambda body: body[0].update(edit)))
    assert (reason, field) in {(f.reason, f.path) for f in failures_of(result, DELTA)}
    assert {f.account_id for f in result.failures} == {DELTA}


@pytest.mark.parametrize(
    ("edit", "reason", "field"),
    [
        ({"accountEquity": "NaN"}, FailureReason.NOT_A_NUMBER, "accountEquity"),
        ({"accountMaintMargin": "-3"}, FailureReason.OUT_OF_RANGE, "accountMaintMargin"),
        ({"uniMMR": None}, FailureReason.MISSING_FIELD, "uniMMR"),
        ({"totalMarginOpenLoss": "-3"}, FailureReason.OUT_OF_RANGE, "totalMarginOpenLoss"),
        ({"accountType": "PM_3"}, FailureReason.UNSUPPORTED, "accountType"),
    ],
)
def test_bad_totals(edit: dict[str, Any], reason: FailureReason, field: str) -> None:
    result = normalized(edited(book(), "delta_account.json", lambda body: body.update(edit)))
    assert (reason, field) in {(f.reason, f.path) for f in failures_of(result, DELTA)}
    assert {f.account_id for f in result.failures} == {DELTA}


@pytest.mark.parametrize(
    ("tiers", "reason", "path"),
    [
        ([("0", "10", "1.2")], FailureReason.OUT_OF_RANGE, "collateralInfo[0].collateralRate"),
        ([("1", "10", "0.9")], FailureReason.INCONSISTENT, "collateralInfo[0]"),
        ([("0", "10", "0.9"), ("11", "20", "0.8")], FailureReason.INCONSISTENT, "collateralInfo[1]"),
        ([("0", "10", "0.9"), ("10", "10", "0.8")], FailureReason.INCONSISTENT, "collateralInfo[1]"),
        ([], FailureReason.MISSING_FIELD, "collateralInfo"),
    ],
)
def test_collateral_rates_that_are_none(tiers: Any, reason: FailureReason, path: str) -> None:
    info = [dict(zip(("tierFloor", "tierCap", "collateralRate"), tier, strict=True)) for tier in tiers]
    rates = [{"asset": "BTC", "collateralInfo": info}, {"asset": "USDC", "collateralRate": "0.99"}]
    result = normalized([answer("portfolio/collateralRate", rates)])
    assert [(f.reason, f.path) for f in result.failures] == [(reason, f"[0].{path}")]
    assert [t["asset_id"] for t in rows_of(result, "collateral_tiers")] == ["USDC"]


def test_two_answers_to_one_question_are_both_rejected() -> None:
    for name in ("delta_balance.json", "delta_account.json", "delta_um_position_risk.json"):
        result = normalized([*book(), *[p for p in book() if p.name == name]])
        assert FailureReason.DUPLICATE in {f.reason for f in failures_of(result, DELTA)}
        assert {f.account_id for f in result.failures} == {DELTA}
    # the same question under both of its names
    again = answer("fapi/v2/positionRisk", body_of("delta_um_position_risk.json"), "delta")
    result = normalized([*book(), again])
    assert FailureReason.DUPLICATE in {f.reason for f in failures_of(result, DELTA)}


def test_brackets_of_its_own_that_cannot_be_read_fail_the_account() -> None:
    result = normalized([*book("echo"), answer("papi/v1/um/leverageBracket", 5, "echo")])
    assert [(f.reason, f.account_id) for f in result.failures] == [(FailureReason.MALFORMED, ECHO)]


def test_mutated_answers_never_raise_and_never_leave_an_unflagged_gap() -> None:
    check_junk(normalized, book("delta", "echo"), seed=20240630, count=60)


# mechanics


def coin(value: str, *, rate: str = "1", maintenance: str = "0", loan: str = "0") -> mechanics.PortfolioMarginCoin:
    zero = Decimal(0)
    return mechanics.PortfolioMarginCoin(
        Decimal(value) + Decimal(loan), Decimal(loan), zero, zero, Decimal(maintenance), Decimal(1), Decimal(rate)
    )


@pytest.mark.parametrize(
    ("equity", "status"),
    [
        ("150.01", "normal"),
        ("150", "warning"),
        ("120.01", "warning"),
        ("120", "reduce_only"),
        ("105.01", "reduce_only"),
        ("105", "liquidation"),
        ("100.01", "liquidation"),
        ("100", "bankrupt"),
        ("-5", "bankrupt"),
    ],
)
def test_uni_mmr_status_at_every_threshold(equity: str, status: str) -> None:
    result = mechanics.uni_mmr({"USDT": coin(equity, maintenance="100")}, loan_rate=Decimal("0.1"), statuses=STATUSES)
    assert (result.status, result.ratio) == (status, Decimal(equity) / 100)


def test_uni_mmr_at_its_edges() -> None:
    rate = Decimal("0.1")
    assert mechanics.uni_mmr({}, loan_rate=rate, statuses=STATUSES) == mechanics.UniMmr(
        Decimal(0), Decimal(0), None, "normal"
    )
    assert mechanics.uni_mmr({"USDT": coin("10")}, loan_rate=rate, statuses=STATUSES).ratio is None
    assert mechanics.uni_mmr({}, loan_rate=rate, statuses=STATUSES, open_loss_usd=Decimal(1)).status == "bankrupt"
    # what is owed on balance is not haircut, what is held is
    owed = mechanics.uni_mmr(
        {"BTC": coin("-10", rate="0.9"), "ETH": coin("100", rate="0.9")}, loan_rate=rate, statuses=STATUSES
    )
    assert owed.equity_usd == Decimal(80)
    # a loan needs margin although its coin is held
    assert mechanics.uni_mmr({"BTC": coin("0", loan="50")}, loan_rate=rate, statuses=STATUSES).maintenance_usd == 5


def test_portfolio_margin_parts() -> None:
    margin = [
        mechanics.MarginCoin("BTC", Decimal("0.1"), Decimal("0.04")),
        mechanics.MarginCoin("BTC", Decimal("0.2"), Decimal(0)),
    ]
    linear = [mechanics.LinearPosition("BTCUSDT", *map(Decimal, ("-0.05", "52000", "40000", "0.005", "2")))]
    inverse = [
        mechanics.InversePosition("BTCUSD_PERP", Decimal(10_000), 1, Decimal(50_000), Decimal(40_000), Decimal("0.005"))
    ]
    parts = mechanics.portfolio_margin_parts(margin, linear, inverse, loan_rate=Decimal("0.1"))
    assert parts.linear_profit == (Decimal(600),)
    assert parts.linear_maintenance == (Decimal(8),)  # 2000 * 0.005 - 2
    # 10000 USD long from 50000 to 40000: 0.2 BTC less 0.25 BTC
    assert parts.inverse_profit == (Decimal("-0.05"),)
    assert parts.inverse_maintenance == (Decimal("0.00125"),)
    assert parts.margin_equity == {"BTC": Decimal("0.26")}
    assert parts.margin_maintenance == {"BTC": Decimal("0.004")}
    assert mechanics.portfolio_margin_parts([], [], [], loan_rate=Decimal("0.1")) == ((), (), (), (), {}, {})


tier_tables = st.lists(
    st.tuples(st.integers(1, 50), st.decimals(0, 1, places=2, allow_nan=False)), min_size=1, max_size=5
).map(
    lambda steps: [
        mechanics.CollateralTier(Decimal(sum(s for s, _ in steps[:n])), rate) for n, (_, rate) in enumerate(steps)
    ]
)


@settings(max_examples=80)
@given(st.decimals(-50, 300, places=2, allow_nan=False), tier_tables)
def test_each_slice_of_a_coin_counts_at_its_rate(quantity: Decimal, tiers: list[mechanics.CollateralTier]) -> None:
    found = mechanics.collateral_value(quantity, Decimal(2), tiers)
    ends = [*(tier.floor for tier in tiers[1:]), Decimal("Infinity")]
    slices = sum(
        (max(min(quantity, end) - tier.floor, Decimal(0)) * tier.rate for tier, end in zip(tiers, ends, strict=True)),
        Decimal(0),
    )
    assert found == 2 * (slices if quantity > 0 else quantity)
    assert found <= 2 * quantity
    assert mechanics.collateral_value(quantity + 1, Decimal(2), tiers) >= found


def test_collateral_and_loans_at_their_edges() -> None:
    for floors in ([], [1], [0, 0], [0, 5, 3]):
        table = [mechanics.CollateralTier(Decimal(floor), Decimal(1)) for floor in floors]
        with pytest.raises(ValueError, match="must ascend from 0"):
            mechanics.collateral_value(Decimal(1), Decimal(1), table)
    assert mechanics.loan_initial_rate(Decimal(5)) == Decimal("0.25")
    with pytest.raises(ValueError, match="must be above 1"):
        mechanics.loan_initial_rate(Decimal(1))


# payloads recorded elsewhere


def test_the_recorded_account_lacks_its_balances(recorded: Any) -> None:
    def fetched(name: str, request: str, owner: str = "") -> Payload:
        payload = RecordedTransport(recorded / "payloads" / "binance").fetch(
            "binance", PayloadRequest(request, name, owner)
        )
        assert isinstance(payload, Payload)
        return payload

    result = normalized(
        [
            fetched("portfolio_margin_account.json", "portfolio/account", "doc"),
            fetched("portfolio_margin_collateral_rate.json", "portfolio/collateralRate"),
        ]
    )
    assert [(f.reason, f.path, f.account_id) for f in result.failures] == [
        (FailureReason.MISSING_FIELD, "balance", "binance:doc:portfolio")
    ]
    row = only(result, "accounts")
    # the venue's ratio is its equity over its maintenance margin
    ratio = row["reported_equity"] / row["reported_maintenance_margin"]
    assert abs(ratio - row["reported_health"]) < Decimal("1e-4")
    assert [t["asset_id"] for t in rows_of(result, "collateral_tiers")] == ["USDC"]
