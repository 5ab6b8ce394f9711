"""OKX: the exact mechanics against published figures and at their edges."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.okx import mechanics
from adapters.okx.mechanics import DiscountTier, PositionTier, RiskParts
from tests.desk_okx import exact, ladder


def test_ratio_of_the_documented_balance() -> None:
    # GET account/balance: the fee is 0.05 % of the notional
    ratio = mechanics.margin_ratio(
        exact("55415.624719833286"), exact("0.3428274116"), exact("85.7068529") * exact("0.0005")
    )
    assert ratio is not None
    assert float(ratio) == pytest.approx(143682.59776662575, rel=1e-12)
    assert mechanics.margin_ratio(exact(5), Fraction(0), Fraction(0)) is None


def test_ratio_and_liquidation_price_of_the_documented_isolated_position() -> None:
    # GET account/positions: one contract of 10 USD; profit and margin say a mark of 2565.656, rate 0.8 %
    entry, margin = exact("2566.31"), exact("0.0003896645377994")
    mark = 10 / (10 / entry - exact("-0.0000009932766034"))
    notional = mechanics.inverse_notional(Fraction(1), Fraction(10), Fraction(1), mark)
    profit = mechanics.inverse_profit(Fraction(1), Fraction(10), Fraction(1), entry=entry, mark=mark)
    maintenance = exact("0.0000311811092368")
    assert float(maintenance / notional) == pytest.approx(0.008, rel=1e-6)
    ratio = mechanics.margin_ratio(margin + profit, maintenance, notional * exact("0.0005"))
    assert ratio is not None
    assert float(ratio) == pytest.approx(11.731726509588816, rel=1e-6)
    price = mechanics.inverse_liquidation_price(
        Fraction(10), entry=entry, margin=margin, maintenance_rate=exact("0.008"), fee_rate=exact("0.0005")
    )
    assert price is not None
    # one price step of 0.01 nearer to the mark than the zero of the account
    assert float(price) == pytest.approx(2352.8496681818233 - 0.01, rel=1e-12)


def test_position_builder_example() -> None:
    # POST account/position-builder: -10 contracts of 0.01 BTC; the grid moves 9703.4244 USD, the delta is 9704.9037
    moves = [exact(move) for move in ("0", "0.04", "-0.04", "0.08", "-0.08", "0.12", "-0.12")]
    assert float(mechanics.spot_shock_of_delta(exact("-9703.424370600"), moves)) == pytest.approx(1164.4109244719994)
    tiers = [(exact(10_000), exact(1)), (exact(70_000), exact(2)), (None, exact(4))]
    charge = mechanics.minimum_charge(exact("-9704.903689800001"), exact("0.0045"))
    assert float(mechanics.scaled_minimum_charge(charge, tiers)) == pytest.approx(43.67206660410001)


def test_minimum_charge_at_its_bounds() -> None:
    tiers = [(exact(10_000), exact(1)), (exact(70_000), exact(2)), (exact(170_000), exact(4))]
    figures = {0: 0, 10_000: 10_000, 10_001: 10_002, 70_000: 130_000, 170_000: 530_000, 200_000: 650_000}
    for raw, scaled in figures.items():
        assert mechanics.scaled_minimum_charge(exact(raw), tiers) == scaled
    assert mechanics.scaled_minimum_charge(exact(7), []) == 7
    assert mechanics.minimum_charge(exact(-100), exact("0.01"), exact(3)) == 4


def test_parts_of_a_unit() -> None:
    zero = Fraction(0)
    assert mechanics.spot_shock([]) == mechanics.spot_shock([exact(3)]) == 0
    assert mechanics.extreme_move(exact(-4)) == 0
    parts = RiskParts(exact(5), exact(9), exact(1), exact(2), exact(3), exact(7), exact(20), exact(4))
    assert mechanics.unit_maintenance(parts) == 24  # the minimum charge binds, and the depeg charge comes on top
    assert mechanics.unit_maintenance(parts._replace(mr7=zero)) == 9 + 1 + 2 + 3 + 4


def test_discount_of_slices_and_debts() -> None:
    tiers = [DiscountTier(exact(0), exact(20), exact("0.98")), DiscountTier(exact(20), exact(25), exact("0.5"))]
    assert mechanics.discounted(exact(-3), tiers) == -3
    assert mechanics.discounted(exact(20), tiers) == exact("19.6")
    assert mechanics.discounted(exact(1000), tiers) == exact("22.1")  # nothing counts above the last cap
    assert mechanics.discounted_usd(exact(30), exact(2), tiers, tiers_in_usd=False) == exact("44.2")
    assert mechanics.discounted_usd(exact(10), exact(2), tiers, tiers_in_usd=True) == exact("19.6")


def test_tier_at_a_cap() -> None:
    tiers = [
        PositionTier(exact(10), exact("0.1"), exact("0.01"), exact(10)),
        PositionTier(None, exact("0.2"), exact("0.05"), exact(5)),
    ]
    at = mechanics.position_margin(exact(1000), exact(10), tiers, leverage=exact(4))
    above = mechanics.position_margin(exact(1000), exact("-10.01"), tiers, leverage=exact(4))
    assert [at.maintenance, above.maintenance, at.initial] == [10, 50, 250]


SIZES = st.fractions(min_value=Fraction(1, 100), max_value=500, max_denominator=100)
PRICES = st.integers(min_value=10, max_value=200_000).map(Fraction)
RATES = st.fractions(min_value=Fraction(1, 1000), max_value=Fraction(1, 10), max_denominator=1000)


@settings(max_examples=80, deadline=None)
@given(
    SIZES,
    PRICES,
    st.sampled_from([1, -1]),
    RATES,
    st.fractions(min_value=Fraction(1, 50), max_value=2, max_denominator=50),
)
def test_liquidation_prices_are_zeros_of_the_account(
    size: Fraction, entry: Fraction, side: int, rate: Fraction, share: Fraction
) -> None:
    fee = Fraction(5, 10_000)
    linear = mechanics.linear_liquidation_price(
        side * size, entry=entry, margin=share * size * entry, maintenance_rate=rate, fee_rate=fee
    )
    if linear is not None:
        equity = share * size * entry + side * size * (linear - entry)
        assert equity == size * linear * (rate + fee)
    else:
        assert side > 0
    inverse = mechanics.inverse_liquidation_price(
        side * size * entry, entry=entry, margin=share * size, maintenance_rate=rate, fee_rate=fee
    )
    if inverse is not None:
        contracts = side * size * entry
        assert share * size + contracts * (1 / entry - 1 / inverse) == abs(contracts) / inverse * (rate + fee)
    else:
        assert side < 0


@settings(max_examples=80, deadline=None)
@given(SIZES, SIZES, st.integers(min_value=1, max_value=20))
def test_more_never_needs_less(a: Fraction, b: Fraction, leverage: int) -> None:
    tiers = ladder("SWAP", "BTC-USDT")
    small, large = sorted((a * 100, b * 100))
    less, more = (
        mechanics.position_margin(size * 600, size, tiers, leverage=Fraction(leverage)) for size in (small, large)
    )
    assert more.maintenance >= less.maintenance
    assert more.initial >= less.initial >= 0
    slices = [(Fraction(10_000), Fraction(1)), (Fraction(70_000), Fraction(2)), (None, Fraction(4))]
    assert mechanics.scaled_minimum_charge(large, slices) >= mechanics.scaled_minimum_charge(small, slices) >= small


@settings(max_examples=80, deadline=None)
@given(SIZES, SIZES, st.fractions(min_value=1, max_value=10, max_denominator=10))
def test_discounts_fall_with_size_and_never_gain(a: Fraction, b: Fraction, factor: Fraction) -> None:
    tiers = [DiscountTier(exact(0), exact(20), exact("0.98")), DiscountTier(exact(20), None, exact("0.9"))]
    whole = mechanics.discounted(a + b, tiers)
    assert whole <= mechanics.discounted(a, tiers) + mechanics.discounted(b, tiers)
    assert 0 < whole < a + b
    assert mechanics.discounted(a * factor, tiers) <= factor * mechanics.discounted(a, tiers)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fractions(min_value=0, max_value=1000, max_denominator=10), min_size=8, max_size=8))
def test_initial_covers_maintenance_of_a_unit(figures: list[Fraction]) -> None:
    maintenance = mechanics.unit_maintenance(RiskParts(*figures))
    assert mechanics.unit_initial(maintenance, exact("1.3")) >= maintenance >= figures[-1]
    assert mechanics.unit_maintenance(RiskParts(*(3 * figure for figure in figures))) == 3 * maintenance
