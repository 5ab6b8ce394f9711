"""Aave v3 mechanics by release: interest, health, liquidation calls and liquidation prices, against a slow twin.

The twin below is written from the releases' documentation with fractions and named roundings, one function per rule and
without a line of the mechanics.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.aave_v3 import mechanics
from adapters.aave_v3.mechanics import CollateralParameters, EMode, ReserveHolding

RELEASES = tuple(mechanics.GENERATIONS)
DOLLAR = 10**8
WAD, RAY = 10**18, 10**27
YEAR = 31_536_000
ALL_OF_IT = 2**256 - 1


def _release(name: str) -> mechanics.Generation:
    return mechanics.GENERATIONS[name]


def _minor(release: str) -> int:
    return int(release.removeprefix("v3."))


# The twin -------------------------------------------------------------------------------------------------------------


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


class Roundings(NamedTuple):
    """How a release turns shares into supplied and owed tokens, and tokens into values and shares."""

    supplied: Callable[[Fraction], int]
    owed: Callable[[Fraction], int]
    debt_value: Callable[[Fraction], int]
    seized_shares: Callable[[Fraction], int]
    repaid_shares: Callable[[Fraction], int]
    bonus: Callable[[Fraction], int]
    without_bonus: Callable[[Fraction], int]
    fee: Callable[[Fraction], int]
    needed_debt: Callable[[Fraction], int]


def _roundings(minor: int) -> Roundings:
    against = minor >= 5  # docs/3.5: balances down, debts up
    explicit = minor >= 7  # docs/3.7/liquidation-rounding.md
    return Roundings(
        supplied=math.floor if against else half_up,
        owed=math.ceil if against else half_up,
        debt_value=math.ceil if against else math.floor,
        seized_shares=math.ceil if against else half_up,
        repaid_shares=math.floor if against else half_up,
        bonus=math.floor if explicit else half_up,
        without_bonus=math.floor if explicit else half_up,
        fee=math.ceil if explicit else half_up,
        needed_debt=math.ceil if against else half_up,
    )


def twin_liquidation(
    minor: int,
    collateral: mechanics.CollateralSide,
    debt: mechanics.DebtSide,
    *,
    total_collateral: int,
    total_debt: int,
    health: int,
    debt_to_cover: int,
) -> tuple[Any, ...] | str:
    """(half, repaid, to liquidator, fee, shares left, none left, deficit), or the name of the error."""
    rounds = _roundings(minor)
    index, borrow_index = Fraction(collateral.liquidity_index, RAY), Fraction(debt.borrow_index, RAY)
    collateral_price = Fraction(collateral.price, 10**collateral.decimals)
    debt_price = Fraction(debt.price, 10**debt.decimals)
    bonus = Fraction(collateral.liquidation_bonus, 10_000)
    if health >= WAD:
        return "HealthFactorNotBelowThreshold"
    if collateral.scaled_balance == 0:
        return "CollateralCannotBeLiquidated"
    balance, owed = rounds.supplied(collateral.scaled_balance * index), rounds.owed(debt.scaled_debt * borrow_index)
    if owed == 0:
        return "SpecifiedCurrencyNotBorrowedByUser"

    above = Fraction(health, WAD) > Fraction(95, 100)
    if minor < 3:
        half = above
        most = half_up(Fraction(owed, 2)) if half else owed
    else:
        debt_worth = rounds.debt_value(owed * debt_price)
        half = above and debt_worth >= 2000 * DOLLAR and math.floor(balance * collateral_price) >= 2000 * DOLLAR
        most = owed
        if half and debt_worth > half_up(Fraction(total_debt, 2)):
            most = math.floor(half_up(Fraction(total_debt, 2)) / debt_price)
    repaid = min(debt_to_cover, most)
    taken = rounds.bonus(math.floor(repaid * debt_price / collateral_price) * bonus)
    if taken > balance:
        taken = balance
        repaid = rounds.needed_debt(math.floor(balance * collateral_price / debt_price) / bonus)
    fee = 0
    if collateral.protocol_fee:
        fee = rounds.fee((taken - rounds.without_bonus(taken / bonus)) * Fraction(collateral.protocol_fee, 10_000))
    if minor >= 3 and repaid < owed and taken < balance:
        left = (rounds.debt_value((owed - repaid) * debt_price), math.floor((balance - taken) * collateral_price))
        if min(left) < 1000 * DOLLAR:
            return "MustNotLeaveDust"
    seized = rounds.seized_shares((taken - fee) / index)
    to_liquidator, moved = taken - fee, fee
    for_fee = rounds.seized_shares(fee / index)
    if seized + for_fee > collateral.scaled_balance:
        for_fee = collateral.scaled_balance - seized
        moved = rounds.supplied(for_fee * index)
    consumed = math.floor((seized + for_fee) * index) if minor >= 7 else taken
    none_left = minor >= 3 and math.floor(consumed * collateral_price) == total_collateral
    burned = owed if none_left else repaid
    if seized == 0 or rounds.repaid_shares(burned / borrow_index) == 0:
        return "InvalidBurnAmount"
    left_shares = collateral.scaled_balance - seized - for_fee
    return half, repaid, to_liquidator, fee, moved, left_shares, none_left, owed - repaid if none_left else 0


def _outcome(release: str, *sides: Any, **totals: Any) -> tuple[Any, ...] | str:
    try:
        return tuple(mechanics.liquidation(*sides, **totals, generation=_release(release)))
    except mechanics.LiquidationRevertedError as reverted:
        return reverted.error


prices = st.integers(1, 10**12)
indices = st.integers(RAY, 3 * RAY)


@st.composite
def calls(draw: st.DrawFn) -> tuple[mechanics.CollateralSide, mechanics.DebtSide, dict[str, int]]:
    few = draw(st.booleans())
    shares = st.integers(0, 20) if few else st.integers(1, 10**13)
    collateral = mechanics.CollateralSide(
        decimals=0 if few else 8,
        price=draw(st.integers(1, 5000)) * DOLLAR if few else draw(prices),
        scaled_balance=draw(shares),
        liquidity_index=draw(indices),
        liquidation_bonus=draw(st.sampled_from((10_000, 10_100, 10_450, 10_500, 10_733, 11_001, 12_000))),
        protocol_fee=draw(st.sampled_from((0, 1, 999, 1000, 2000, 10_000))),
    )
    debt = mechanics.DebtSide(
        decimals=0 if few else 6,
        price=draw(st.integers(1, 5000)) * DOLLAR if few else draw(prices),
        scaled_debt=draw(shares),
        borrow_index=draw(indices),
    )
    own = mechanics.ray_mul_floor(collateral.scaled_balance, collateral.liquidity_index)
    owed = mechanics.ray_mul_ceil(debt.scaled_debt, debt.borrow_index)
    value = own * collateral.price // 10**collateral.decimals
    debt_value = mechanics.ceil_div(owed * debt.price, 10**debt.decimals)
    totals = {
        "total_collateral": value + draw(st.sampled_from((0, 0, 1, 5000 * DOLLAR))),
        "total_debt": debt_value + draw(st.sampled_from((0, 0, 1, 5000 * DOLLAR))),
        "health": draw(st.sampled_from((1, WAD // 2, 95 * WAD // 100, 95 * WAD // 100 + 1, WAD - 1, WAD))),
        "debt_to_cover": draw(st.sampled_from((0, 1, owed // 3, owed // 2, max(owed - 1, 0), owed, ALL_OF_IT))),
    }
    return collateral, debt, totals


@settings(max_examples=400)
@given(calls(), st.sampled_from(RELEASES))
def test_a_liquidation_call_is_the_twins_in_every_release(
    call: tuple[mechanics.CollateralSide, mechanics.DebtSide, dict[str, int]], release: str
) -> None:
    collateral, debt, totals = call
    assert _outcome(release, collateral, debt, **totals) == twin_liquidation(
        _minor(release), collateral, debt, **totals
    )


# Liquidation by release -----------------------------------------------------------------------------------------------


def _position(**changes: int) -> dict[str, Any]:
    """9000 dollars of three debts against ether, of which one debt of 3000 is called: health 0.96.

    The example of docs/3.3: before v3.3 half of the one debt may go, then all of it.
    """
    arguments: dict[str, Any] = {
        "collateral": mechanics.CollateralSide(18, 3000 * DOLLAR, 4 * 10**18, RAY, 10_500, 1000),
        "debt": mechanics.DebtSide(6, DOLLAR, 3000 * 10**6, RAY),
        "total_collateral": 12_000 * DOLLAR,
        "total_debt": 9000 * DOLLAR,
        "health": 96 * WAD // 100,
        "debt_to_cover": ALL_OF_IT,
    }
    for key, value in changes.items():
        side, _, name = key.partition("__")
        arguments[side] = arguments[side]._replace(**{name: value}) if name else value
    return arguments


def _call(release: str, **changes: int) -> mechanics.Liquidation:
    arguments = _position(**changes)
    return mechanics.liquidation(
        arguments.pop("collateral"), arguments.pop("debt"), **arguments, generation=_release(release)
    )


@pytest.mark.parametrize("release", RELEASES)
def test_the_close_factor_is_of_the_reserve_before_v33_and_of_the_account_since(release: str) -> None:
    of_the_reserve = _minor(release) < 3
    done = _call(release)
    assert (done.half_close_factor, done.debt_repaid) == (True, 1500 * 10**6 if of_the_reserve else 3000 * 10**6)
    low = _call(release, health=95 * WAD // 100)
    assert (low.half_close_factor, low.debt_repaid) == (False, 3000 * 10**6)
    # one debt alone of 9000 dollars: half of it in every release
    alone = _call(release, debt__scaled_debt=9000 * 10**6)
    assert alone.debt_repaid == 4500 * 10**6
    # below 2000 dollars all of it since v3.3, half before
    small = _call(release, debt__scaled_debt=1999 * 10**6, total_debt=1999 * DOLLAR)
    assert small.debt_repaid == (999_500_000 if of_the_reserve else 1999 * 10**6)


def test_dust_may_stay_before_v33() -> None:
    for release in RELEASES:
        leaves_dust = {"debt_to_cover": 2900 * 10**6, "health": WAD // 2}
        if _minor(release) < 3:
            assert _call(release, **leaves_dust).debt_repaid == 2900 * 10**6
        else:
            with pytest.raises(mechanics.LiquidationRevertedError, match="MustNotLeaveDust"):
                _call(release, **leaves_dust)


@pytest.mark.parametrize("release", RELEASES)
def test_a_debt_without_collateral_is_written_off_since_v33(release: str) -> None:
    done = _call(
        release,
        collateral__price=600 * DOLLAR,
        total_collateral=2400 * DOLLAR,
        total_debt=3000 * DOLLAR,
        health=WAD // 2,
    )
    repaid = 2_285_714_286  # 2400 dollars / 1.05, up as half up
    assert (done.debt_repaid, done.scaled_collateral_left) == (repaid, 0)
    if _minor(release) < 3:
        assert (done.no_collateral_left, done.deficit) == (False, 0)
    else:
        assert (done.no_collateral_left, done.deficit) == (True, 3000 * 10**6 - repaid)


def test_seized_amounts_round_half_up_before_v37() -> None:
    # one unit of collateral costs 1 unit of debt; 10 * 1.05 = 10.5, and of 11 the part without bonus is 10.48
    sides = {"collateral__decimals": 0, "collateral__price": DOLLAR, "debt__decimals": 0, "debt__price": DOLLAR}
    changes = sides | {"collateral__scaled_balance": 5000, "debt__scaled_debt": 5000, "health": WAD // 2}
    old, new = (_call(name, **changes, debt_to_cover=10) for name in ("v3.6", "v3.7"))
    assert (old.collateral_to_liquidator + old.protocol_fee, old.protocol_fee) == (11, 0)
    assert (new.collateral_to_liquidator + new.protocol_fee, new.protocol_fee) == (10, 1)


def test_a_cut_repayment_rounds_half_up_before_v35() -> None:
    # 105 of collateral are 100 of debt with the bonus; 107 are 101.9, 106 are 100.95
    sides = {"collateral__decimals": 0, "collateral__price": DOLLAR, "debt__decimals": 0, "debt__price": DOLLAR}
    for balance, half, up in ((107, 102, 102), (106, 101, 101), (110, 105, 105), (108, 103, 103), (116, 110, 111)):
        changes = sides | {"collateral__scaled_balance": balance, "debt__scaled_debt": 5000, "health": WAD // 2}
        assert _call("v3.4", **changes).debt_repaid == half
        assert _call("v3.5", **changes).debt_repaid == up


# Interest and health --------------------------------------------------------------------------------------------------


@given(rate=st.integers(0, 10 * RAY), elapsed=st.integers(0, 3 * YEAR))
def test_interest_before_v34_is_a_binomial_series(rate: int, elapsed: int) -> None:
    found = mechanics.compounded_interest(rate, elapsed, _release("v3.3"))
    # the powers of the rate per second are rounded to a ray before they are multiplied up
    square = half_up(Fraction(rate * rate, RAY)) // YEAR**2
    cube = half_up(Fraction(square * rate, RAY)) // YEAR
    second = elapsed * max(elapsed - 1, 0) * square // 2
    third = elapsed * max(elapsed - 1, 0) * max(elapsed - 2, 0) * cube // 6
    assert found == RAY + rate * elapsed // YEAR + second + third
    p, n = Fraction(rate, YEAR * RAY), elapsed
    exact = 1 + n * p + Fraction(n * (n - 1), 2) * p**2 + Fraction(n * (n - 1) * (n - 2), 6) * p**3
    lost = 1 + elapsed**2 + elapsed**3  # rays: at most one per rounded power
    assert abs(found - exact * RAY) <= lost


def test_a_year_at_ten_percent_in_both_formulas() -> None:
    ten_percent = RAY // 10
    assert mechanics.compounded_interest(ten_percent, YEAR, _release("v3.4")) == 1_105_166_666_666_666_666_666_666_667
    old = mechanics.compounded_interest(ten_percent, YEAR, _release("v3.3"))
    # the square of the rate per second is 10 055 109 076 rays, its cube 31 (of 31.9: a term short by three percent)
    pairs = YEAR * (YEAR - 1)
    assert old == RAY + RAY // 10 + pairs * 10_055_109_076 // 2 + pairs * (YEAR - 2) * 31 // 6
    assert mechanics.compounded_interest(ten_percent, 0, _release("v3.0")) == RAY
    assert mechanics.compounded_interest(ten_percent, 1, _release("v3.0")) == RAY + ten_percent // YEAR


def test_health_is_of_the_floored_average_before_v35() -> None:
    # 300 at 80 % and 100 at 60.01 %: the average is 75.0025 %, floored 75 %
    held = [
        ReserveHolding(0, 0, DOLLAR, CollateralParameters(7500, 8000), 300, is_collateral=True, scaled_debt=200),
        ReserveHolding(1, 0, DOLLAR, CollateralParameters(3333, 6001), 100, is_collateral=True),
    ]
    for release in RELEASES:
        data = mechanics.account_data(held, generation=_release(release))
        assert (data.liquidation_threshold, data.weighted_collateral) == (7500, 3_000_100 * DOLLAR)
        assert data.health_factor == (1_500_000_000_000_000_000 if _minor(release) < 5 else 1_500_050_000_000_000_000)


@given(collateral=st.integers(0, 10**17), threshold=st.integers(0, 10_000), debt=st.integers(1, 10**17))
def test_the_average_health_factor_rounds_twice(collateral: int, threshold: int, debt: int) -> None:
    weighted = half_up(Fraction(collateral * threshold, 10_000))
    assert mechanics.average_health_factor(collateral, threshold, debt) == half_up(Fraction(weighted * WAD, debt))
    assert mechanics.average_health_factor(collateral, threshold, 0) is None


# Generated accounts ---------------------------------------------------------------------------------------------------


@st.composite
def accounts(draw: st.DrawFn) -> tuple[list[ReserveHolding], EMode | None]:
    """Whole dollars per unit of a token, so that no value is rounded; indices of 1."""
    bps = st.integers(0, 10_000)

    def parameters() -> CollateralParameters:
        ltv, threshold = sorted((draw(bps), draw(bps)))
        return CollateralParameters(ltv, threshold, 10_500)

    held = [
        ReserveHolding(
            reserve_id=number,
            decimals=draw(st.sampled_from((0, 6, 8))),
            price=draw(st.integers(1, 5000)) * DOLLAR,
            parameters=parameters(),
            scaled_supply=draw(st.integers(0, 10**6)),
            is_collateral=draw(st.booleans()),
            scaled_debt=draw(st.sampled_from((0, 0, 1, 1000)) | st.integers(0, 10**6)),
        )
        for number in range(draw(st.integers(1, 4)))
    ]
    if draw(st.booleans()):
        return held, None
    bits = st.integers(0, 2 ** len(held) - 1)
    return held, EMode(1, parameters(), draw(bits), draw(bits), draw(st.booleans()))


def _exact_health(held: list[ReserveHolding], emode: EMode | None, prices_: dict[int, Fraction], release: str) -> Any:
    """(weighted collateral, debt) in base currency as fractions, without any rounding of values."""
    weighted = owed = Fraction(0)
    for h in held:
        price = prices_[h.reserve_id] / 10**h.decimals
        threshold = h.parameters.liquidation_threshold
        old = _minor(release) < 6
        if emode is not None and emode.collateral_bitmap >> h.reserve_id & 1 and not (old and threshold == 0):
            threshold = emode.parameters.liquidation_threshold
        if h.is_collateral:
            weighted += h.scaled_supply * price * Fraction(threshold, 10_000)
        owed += h.scaled_debt * price
    return weighted, owed


@settings(max_examples=100)
@given(accounts(), st.sampled_from(RELEASES))
def test_the_liquidation_price_is_where_the_health_factor_is_one(
    account: tuple[list[ReserveHolding], EMode | None], release: str
) -> None:
    held, emode = account
    now = {h.reserve_id: Fraction(h.price) for h in held}
    found = mechanics.liquidation_prices(held, emode, generation=_release(release))
    assert set(found) <= set(now)
    for h in held:
        if h.reserve_id not in found:
            assert h.scaled_debt == 0
            assert not (h.is_collateral and h.scaled_supply) or _minor(release) < 6
            continue
        price = found[h.reserve_id]
        at_zero = _exact_health(held, emode, now | {h.reserve_id: Fraction(0)}, release)
        at_double = _exact_health(held, emode, now | {h.reserve_id: 2 * now[h.reserve_id]}, release)
        if price is None:
            # no positive price: the surplus keeps its sign from 0 on, or is 0 at 0 or everywhere
            first, second = at_zero[0] - at_zero[1], at_double[0] - at_double[1]
            assert first * (second - first) >= 0
            continue
        assert price > 0
        weighted, owed = _exact_health(held, emode, now | {h.reserve_id: price}, release)
        assert weighted == owed
        below = _exact_health(held, emode, now | {h.reserve_id: price * Fraction(999, 1000)}, release)
        above = _exact_health(held, emode, now | {h.reserve_id: price * Fraction(1001, 1000)}, release)
        assert (below[0] - below[1]) * (above[0] - above[1]) < 0


def test_liquidation_prices_by_hand() -> None:
    ether = CollateralParameters(8000, 8250, 10_500)
    dollars = CollateralParameters(7500, 7800, 10_450)
    # 10 ether at 2000 dollars, threshold 82.5 %, against 9000 dollars of debt beside 1000 dollars at 78 %
    held = [
        ReserveHolding(0, 18, 2000 * DOLLAR, ether, 10 * 10**18, is_collateral=True),
        ReserveHolding(1, 6, DOLLAR, dollars, 1000 * 10**6, is_collateral=True, scaled_debt=9000 * 10**6),
    ]
    price = Fraction((9000 - 780) * DOLLAR) / (10 * Fraction(8250, 10_000))
    debt_price = Fraction(16_500 * DOLLAR) / (9000 - 780)
    assert mechanics.liquidation_prices(held) == {0: price, 1: debt_price}
    # in an e-mode of 95 % the ether is good for more
    emode = EMode(1, CollateralParameters(9300, 9500, 10_100), 0b01)
    assert mechanics.liquidation_prices(held, emode)[0] == Fraction((9000 - 780) * DOLLAR) / Fraction(95, 10)
    # without debt, without threshold, without collateral: none
    assert mechanics.liquidation_prices([held[0]]) == {0: None}
    worthless = held[0]._replace(parameters=CollateralParameters(0, 0))
    assert mechanics.liquidation_prices([worthless, held[1]]) == {0: None, 1: None}
    assert mechanics.liquidation_prices([held[1]._replace(scaled_supply=0)]) == {1: None}
    assert mechanics.liquidation_prices([]) == {}
    # a supply that is no collateral is not asked; a token both supplied and owed in equal weight moves nothing
    idle = held[0]._replace(is_collateral=False)
    assert mechanics.liquidation_prices([idle]) == {}
    even = ReserveHolding(2, 0, DOLLAR, CollateralParameters(0, 5000), 20, is_collateral=True, scaled_debt=10)
    assert mechanics.liquidation_prices([even, held[0]]) == {2: None, 0: None}


@settings(max_examples=100)
@given(accounts(), st.sampled_from(RELEASES), st.randoms(use_true_random=False))
def test_order_scale_and_division_of_holdings_change_nothing(
    account: tuple[list[ReserveHolding], EMode | None], release: str, random: Any
) -> None:
    held, emode = account
    # Whole tokens and whole dollars: a unit of 1 keeps every value exact, so that scale and division are exact too.
    held = [h._replace(decimals=0) for h in held]
    generation = _release(release)
    data = mechanics.account_data(held, emode, generation=generation)
    shuffled = random.sample(held, len(held))
    assert mechanics.account_data(shuffled, emode, generation=generation) == data
    many = [h._replace(scaled_supply=7 * h.scaled_supply, scaled_debt=7 * h.scaled_debt) for h in held]
    scaled = mechanics.account_data(many, emode, generation=generation)
    assert (scaled.total_collateral, scaled.total_debt) == (7 * data.total_collateral, 7 * data.total_debt)
    assert (scaled.ltv, scaled.liquidation_threshold) == (data.ltv, data.liquidation_threshold)
    # one holding in two of the same reserve
    first = held[0]
    part = first.scaled_supply // 3, first.scaled_debt // 2
    halves = [
        first._replace(scaled_supply=part[0], scaled_debt=part[1]),
        first._replace(scaled_supply=first.scaled_supply - part[0], scaled_debt=first.scaled_debt - part[1]),
    ]
    assert mechanics.account_data([*halves, *held[1:]], emode, generation=generation) == data


@settings(max_examples=100)
@given(accounts(), st.sampled_from(RELEASES), st.integers(0, 3), st.integers(1, 10**6))
def test_debt_never_helps_collateral_never_hurts_and_what_may_be_borrowed_is_safe(
    account: tuple[list[ReserveHolding], EMode | None], release: str, number: int, more: int
) -> None:
    held, emode = account
    generation = _release(release)
    data = mechanics.account_data(held, emode, generation=generation)
    place = number % len(held)
    h = held[place]

    def with_(**changes: Any) -> mechanics.AccountData:
        changed = [*held[:place], h._replace(**changes), *held[place + 1 :]]
        return mechanics.account_data(changed, emode, generation=generation)

    def health(of: mechanics.AccountData) -> float:
        return math.inf if of.health_factor is None else of.health_factor

    owing = with_(scaled_debt=h.scaled_debt + more)
    assert owing.total_debt > data.total_debt or h.price * more < 10**h.decimals
    assert health(owing) <= health(data)
    assert owing.available_borrows <= data.available_borrows
    supplying = with_(scaled_supply=h.scaled_supply + more)
    assert supplying.weighted_collateral >= data.weighted_collateral
    if not generation.health_of_average:
        # before v3.5 a collateral of a low threshold may lower the floored average by more than it adds
        assert health(supplying) >= health(data)
    # initial is at least maintenance: where something may still be borrowed the account is healthy
    if data.available_borrows > 0:
        assert health(data) >= WAD
