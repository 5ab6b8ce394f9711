"""GMX v2: fixed-point powers and the price impact, in exact integers."""

from decimal import Decimal
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.gmx_v2 import impact
from adapters.gmx_v2.impact import FLOAT, ImpactParameters, OpenInterest
from adapters.gmx_v2.power import UNIT, binary_exponential, binary_logarithm, power
from tests.desk_gmx_v2 import usd

POWER_RELATIVE = 1e-16  # PRBMath's pow against the real power


@pytest.mark.parametrize(
    ("base", "exponent"), [("2", "2"), ("10", "1.75"), ("123456.789", "2.2"), ("99999999.5", "1.5")]
)
def test_the_fixed_point_power_is_the_real_one_to_its_last_digits(base: str, exponent: str) -> None:
    raw = power(int(Decimal(base) * UNIT), int(Decimal(exponent) * UNIT))
    with mpmath.workdps(60):
        real = mpmath.power(mpmath.mpf(base), mpmath.mpf(exponent))
        assert abs(mpmath.mpf(raw) / UNIT / real - 1) < POWER_RELATIVE


def test_the_logarithm_and_the_exponential_at_their_edges() -> None:
    assert binary_logarithm(UNIT) == 0
    assert binary_logarithm(8 * UNIT) == 3 * UNIT
    assert binary_exponential(0) == UNIT
    assert binary_exponential(10 * UNIT) == 1024 * UNIT
    with pytest.raises(ValueError, match=r"1\.0"):
        binary_logarithm(UNIT - 1)
    with pytest.raises(OverflowError):
        binary_exponential(192 * UNIT)


@settings(max_examples=60, deadline=None)
@given(st.integers(UNIT, 10**12 * UNIT), st.integers(UNIT, 3 * UNIT))
def test_powers_grow_with_base_and_exponent(base: int, exponent: int) -> None:
    with mpmath.workdps(60):
        real = mpmath.power(mpmath.mpf(base) / UNIT, mpmath.mpf(exponent) / UNIT)
        assert abs(mpmath.mpf(power(base, exponent)) / UNIT / real - 1) < 2 * POWER_RELATIVE


FACTORS = ImpactParameters(5 * 10**21, 10**22, 2 * FLOAT, 2 * FLOAT, 2 * 10**28)


def test_below_a_dollar_there_is_no_impact_and_an_exponent_of_one_is_exact() -> None:
    assert impact.applied_impact_factor(FLOAT - 1, FLOAT, 2 * FLOAT) == 0
    assert impact.applied_impact_factor(FLOAT, FLOAT, FLOAT) == FLOAT
    assert impact.applied_impact_factor(3 * FLOAT + 7, FLOAT, FLOAT) == 3 * FLOAT + 7


def test_crossing_the_balance_earns_by_the_positive_and_pays_by_the_negative_factor() -> None:
    # Long 400k, short 100k; 500k more short: the imbalance of 300k goes to 200k on the other side.
    now = OpenInterest(usd("400000"), usd("100000"))
    found = impact.price_impact(FACTORS, now, usd("500000"), is_long=False)
    assert found.usd / FLOAT == pytest.approx(5e-9 * 300_000**2 - 1e-8 * 200_000**2, rel=1e-15)
    assert found.balance_was_improved
    # The positive factor never exceeds the negative one.
    generous = FACTORS._replace(positive_factor=10**24)
    assert impact.price_impact(generous, now, usd("500000"), is_long=False).usd / FLOAT == pytest.approx(
        1e-8 * (300_000**2 - 200_000**2), rel=1e-15
    )


def test_a_worse_virtual_inventory_replaces_a_negative_impact_alone() -> None:
    now = OpenInterest(usd("600000"), usd("600000"))
    own = impact.price_impact(FACTORS, now, usd("100000"), is_long=True)
    # Tokens bought virtually: 900k of long interest.
    worse = impact.price_impact(FACTORS, now, usd("100000"), is_long=True, virtual_inventory=-usd("900000"))
    assert worse.usd / FLOAT == pytest.approx(-1e-8 * (1_000_000**2 - 900_000**2), rel=1e-14)
    better = impact.price_impact(FACTORS, now, usd("100000"), is_long=True, virtual_inventory=usd("900000"))
    assert better == own
    gain = impact.price_impact(FACTORS, now._replace(short=usd("900000")), usd("100000"), is_long=True)
    assert gain.usd > 0
    again = impact.price_impact(
        FACTORS, now._replace(short=usd("900000")), usd("100000"), is_long=True, virtual_inventory=-usd("900000")
    )
    assert again == gain


def test_a_decrease_lifts_both_virtual_sides_and_never_exceeds_its_own() -> None:
    assert impact.virtual_open_interest(usd("5"), -usd("3")) == OpenInterest(usd("3"), usd("8"))
    assert impact.virtual_open_interest(-usd("5"), usd("3")) == OpenInterest(usd("5"), 0)
    with pytest.raises(ValueError, match="exceeds"):
        impact.price_impact(FACTORS, OpenInterest(usd("1"), 0), -usd("2"), is_long=True)


def test_a_positive_impact_is_capped_by_the_smaller_factor() -> None:
    assert impact.capped_positive_impact(usd("500"), -usd("10000"), FACTORS) == usd("200")
    assert impact.capped_positive_impact(usd("500"), usd("10000"), FACTORS._replace(max_negative_factor=10**28)) == usd(
        "100"
    )
    assert impact.capped_positive_impact(-usd("500"), usd("10000"), FACTORS) == -usd("500")


def test_impact_tokens_round_against_the_trader() -> None:
    assert impact.impact_amount(100, 6, 7) == 14
    assert impact.impact_amount(-100, 6, 7) == -17
    assert impact.impact_amount(0, 6, 7) == 0
    assert impact.pending_impact_usd(3, 6, 7) == 18
    assert impact.pending_impact_usd(-3, 6, 7) == -21


def test_execution_prices() -> None:
    free = impact.execution_of_increase(0, usd("1000"), index_min=4 * 10**15, index_max=5 * 10**15, is_long=True)
    assert (free.price, free.size_in_tokens) == (5 * 10**15, usd("1000") // (5 * 10**15))
    empty = impact.execution_of_increase(-5, 0, index_min=4, index_max=5, is_long=False)
    assert empty == (4, 0, 0)
    with pytest.raises(ValueError, match="larger than the order"):
        impact.execution_of_increase(-usd("2000"), usd("1000"), index_min=10**15, index_max=10**15, is_long=True)
    terms: dict[str, Any] = {
        "position_usd": usd("1000"),
        "position_tokens": 10**18,
        "index_min": 10**15,
        "index_max": 2 * 10**15,
    }
    assert impact.execution_of_decrease(-usd("10"), usd("1000"), **terms, is_long=True) == 10**15 - 10**13
    assert impact.execution_of_decrease(-usd("10"), usd("1000"), **terms, is_long=False) == 2 * 10**15 + 10**13
    assert impact.execution_of_decrease(-usd("10"), 0, **terms, is_long=True) == 10**15
    with pytest.raises(ValueError, match="larger than the order"):
        impact.execution_of_decrease(-usd("1001"), usd("1000"), **terms, is_long=True)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**8),
    st.integers(0, 10**8),
    st.integers(1, 10**7),
    st.booleans(),
    st.sampled_from([FLOAT, 17 * 10**29, 2 * FLOAT]),
)
def test_opening_and_closing_never_earns_impact(long: int, short: int, size: int, is_long: bool, exponent: int) -> None:
    """The positive factor is at most the negative one and exponents are equal: a round trip costs or is free."""
    parameters = ImpactParameters(5 * 10**19, 10**20, exponent, exponent, FLOAT)
    now, delta = OpenInterest(long * FLOAT, short * FLOAT), size * FLOAT
    opened = impact.price_impact(parameters, now, delta, is_long=is_long)
    after = impact.next_open_interest(now, delta, is_long)
    closed = impact.price_impact(parameters, after, -delta, is_long=is_long)
    # The powers are good to some 1e-17 of themselves.
    slack = impact.applied_impact_factor(2 * (long + short + size + 1) * FLOAT, 10**20, exponent) // 10**15 + 10
    assert opened.usd + closed.usd <= slack
