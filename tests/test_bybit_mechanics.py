"""Bybit: the exact mechanics by slow twins, and the engine on generated accounts."""

import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adapters.adapter import Normalized
from adapters.bybit import mechanics
from adapters.bybit.mechanics import CollateralTier, OptionRates, RiskTier
from tests.desk_bybit import PARAMETERS, answer, body_of, desk, listed, normalized
from tests.normalized_rows import only, rows_of, tables_as_json

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
    assert tables_as_json(result_of(shuffled)) == tables_as_json(result)
    for symbol, _, side, leverage in held:
        row = only(result, "positions", instrument_id=f"bybit:{symbol}")
        inverse = only(result, "instruments", instrument_id=f"bybit:{symbol}")["payoff"] == "inverse"
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
