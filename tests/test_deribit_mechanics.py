"""Deribit: the exact mechanics against published figures, at their edges and against slow twins."""

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.deribit import mechanics
from adapters.deribit.mechanics import MatrixParameters, MatrixPosition, OptionTerms
from tests.desk_deribit import exact, matrix_parameters, option_rates


@pytest.mark.parametrize(
    ("size", "index", "rates", "initial", "maintenance"),
    [
        # Support article "Linear Perpetual": BTC at 100 000, SOL at 200
        ("350", "100000", ("0.02", "0.01", "0.00005"), "1312500", "962500"),
        ("6000", "200", ("0.04", "0.02", "0.000005"), "84000", "60000"),
        ("0", "100000", ("0.02", "0.01", "0.00005"), "0", "0"),
    ],
)
def test_linear_perpetuals_of_the_support_article(
    size: str, index: str, rates: tuple[str, str, str], initial: str, maintenance: str
) -> None:
    levels = dict(zip(("initial", "maintenance", "slope"), map(exact, rates), strict=True))
    for side in (1, -1):
        margin = mechanics.linear_future_margin(side * exact(size), exact(index), **levels)
        assert margin == (exact(initial), exact(maintenance))


def test_inverse_perpetual_of_the_api_reference() -> None:
    # private/get_positions: 50 USD at a mark of 7476.65; the example's rates are 2.95 % and 2.15 %
    margin = mechanics.inverse_future_margin(
        exact(50), exact("7476.65"), initial=exact("0.0295"), maintenance=exact("0.0215"), slope=exact("0.00005")
    )
    assert float(margin.initial) == pytest.approx(0.000197283, abs=5e-10)
    assert float(margin.maintenance) == pytest.approx(0.000143783, abs=5e-10)


def test_equity_and_margin_balance_of_the_api_reference() -> None:
    # private/get_account_summary: BTC with short options of -0.0086
    equity = mechanics.equity_of(
        exact("302.60065765"),
        futures_unrealized=exact("0.05921555"),
        futures_realized=exact("-0.03258105"),
        options_value=exact("-0.0086"),
    )
    assert abs(equity - exact("302.61869214")) <= exact("1e-8")
    balance = mechanics.margin_balance(exact("302.61869214"), exact("-0.0086"), portfolio_margin=False)
    assert balance == exact("302.62729214")
    assert mechanics.margin_balance(equity, exact("-0.0086"), portfolio_margin=True) == equity


def test_captured_eth_simulation() -> None:
    # private/pme/simulate of February 2026, one short perpetual; gains count 60 %
    held = [MatrixPosition("ETH-PERPETUAL", exact("-0.999487053"), exact("1949.49"), Fraction(0))]
    matrix = mechanics.risk_matrix(held, matrix_parameters("eth"), index_price=exact("1949.34"), in_coin=True)
    assert float(matrix.worst.loss) == pytest.approx(0.15246412672881357, rel=1e-15)
    assert (matrix.worst.place, matrix.worst.source, matrix.worst.bucket) == (25, "standard", 9)
    assert float(matrix.standard[0]) == pytest.approx(0.13163975819999998, rel=1e-15)
    assert float(matrix.standard[3]) == pytest.approx(0.09359358530982659, rel=1e-15)
    assert not any(matrix.extended)
    assert matrix.roll_shock == exact("0.004997435265")
    assert matrix.margin == exact("0.157461562265")
    margin = mechanics.portfolio_margin(matrix.margin, exact("0.8"))
    assert margin == (exact("0.157461562"), exact("0.125969249812"))


def test_haircuts_of_a_recorded_cross_account() -> None:
    # 55.00055 USDT and no position: initial margin 1.100011 USDT, maintenance 0
    charge = mechanics.haircut_margin({"USDT": exact("55.00055")}, {"USDT": Fraction(1)}, {"USDT": exact("0.02")})
    assert charge == exact("1.100011")
    assert mechanics.haircut_margin({"USDT": exact(-5)}, {"USDT": Fraction(1)}, {"USDT": exact("0.02")}) == 0


def test_delta_shock_needs_a_large_delta() -> None:
    parameters = matrix_parameters("btc")
    index = exact(60_000)

    def shock(size: str, terms: OptionTerms | None = None, more: list[MatrixPosition] | None = None) -> Fraction:
        held = [MatrixPosition("a", exact(size), index, Fraction(0), terms), *(more or [])]
        return mechanics.delta_shock(held, parameters, index_price=index, in_coin=False)

    assert shock("333") == 0  # 19.98 million
    assert shock("400") == 4_000_000 * 400 * exact("0.00005")
    assert shock("-400") == shock("400")
    assert shock("100000") == exact("0.1") * index * 100_000  # the cap
    # a deep long put of 300 coins takes 300 off a long future, never more
    put = MatrixPosition("p", exact(300), index, exact("0.1"), OptionTerms(exact(10**7), False, 0.5))
    assert shock("700", more=[put]) == shock("400")
    assert shock("200", more=[put]) == 0
    assert shock("-700", more=[put]) == shock("700")  # of the same sign: it adds nothing
    with pytest.raises(ValueError, match="m_inc"):
        mechanics.delta_shock(
            [MatrixPosition("a", exact(400), index, Fraction(0))],
            parameters._replace(delta_increment=None),
            index_price=index,
            in_coin=True,
        )


def test_options_need_three_vol_states_and_their_parameters() -> None:
    held = [MatrixPosition("o", exact(1), exact(60_000), exact("0.1"), OptionTerms(exact(60_000), True, 0.5))]
    with pytest.raises(ValueError, match="only 3 are known"):
        mechanics.standard_vector(held, matrix_parameters("btc")._replace(vol_scenarios=5), in_coin=True)
    with pytest.raises(ValueError, match="are needed for options"):
        mechanics.standard_vector(held, matrix_parameters("btc")._replace(volatility_range_up=None), in_coin=True)
    flat = [MatrixPosition("f", exact(1), exact(60_000), Fraction(0))]
    assert len(mechanics.standard_vector(flat, matrix_parameters("btc")._replace(vol_scenarios=5), in_coin=True)) == 45


def test_roll_shock_by_expiry_and_pair() -> None:
    parameters = matrix_parameters("btc")
    index = exact(60_000)
    perp = MatrixPosition("p", exact(2), index, Fraction(0), group="btc_usd")
    same = MatrixPosition("q", exact(-2), index, Fraction(0), group="btc_usd")
    linear = MatrixPosition("l", exact(-2), index, Fraction(0), group="btc_usdc")
    far = MatrixPosition("f", exact(-2), index, Fraction(1))
    roll = {"index_price": index, "in_coin": True}
    assert mechanics.roll_shock([perp, same], parameters, **roll) == 0  # type: ignore[arg-type]
    assert mechanics.roll_shock([perp, linear], parameters, **roll) == exact("0.04")  # type: ignore[arg-type]
    rate = mechanics.roll_rate(Fraction(1), parameters)
    assert float(rate) == pytest.approx(math.exp(0.075) - 1, rel=1e-15)
    assert mechanics.roll_shock([perp, far], parameters, **roll) == exact("0.02") + 2 * rate  # type: ignore[arg-type]


def numeric_matrix(held: list[MatrixPosition], p: MatrixParameters, index: float, *, in_coin: bool) -> float:
    """The matrix margin by plain floats and a price function of its own (trapezoidal integral of the payoff)."""

    def price(forward: float, strike: float, years: float, vol: float, *, is_call: bool) -> float:
        deviation = vol * math.sqrt(years)
        total, steps, width = 0.0, 2000, 8.0
        for step in range(steps + 1):
            z = -width + 2 * width * step / steps
            spot = forward * math.exp(deviation * z - deviation * deviation / 2)
            payoff = max(spot - strike, 0.0) if is_call else max(strike - spot, 0.0)
            weight = 0.5 if step in (0, steps) else 1.0
            total += weight * payoff * math.exp(-z * z / 2)
        return total * 2 * width / steps / math.sqrt(2 * math.pi)

    def worth(position: MatrixPosition, move: float, state: str) -> float:
        shocked = float(position.forward) * (1 + move)
        if position.option is None:
            value = float(position.size) * float(position.forward) * move
            return value / shocked if in_coin else value
        days = float(position.years) * 365
        tenor = (30 / days) ** (0.3 if days < 30 else 0.13)
        vol = position.option.vol
        if state == "up":
            vol = max(vol * (1 + tenor * float(p.volatility_range_up or 0)), float(p.min_volatility_for_shock_up or 0))
        elif state == "down":
            vol = vol * max(0.0, 1 - tenor * float(p.volatility_range_down or 0))
        strike, years, call = float(position.option.strike), float(position.years), position.option.is_call
        after = price(shocked, strike, years, vol, is_call=call)
        before = price(float(position.forward), strike, years, position.option.vol, is_call=call)
        if in_coin:
            return float(position.size) * (after / shocked - before / float(position.forward))
        return float(position.size) * (after - before)

    pr, losses = float(p.price_range), [0.0]
    for bucket in range(-4, 5):
        for state in ("up", "same", "down"):
            losses.append(-sum(worth(held_one, pr * bucket / 4, state) for held_one in held))
    for move in (-0.66, -0.33, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0):
        edge = 1 + math.copysign(pr, move)
        profit = sum(worth(held_one, move, "up") for held_one in held) * pr / abs(move)
        damp = max(abs(move) / pr - 1, 0.0) * float(p.extended_dampener_usd)
        if in_coin:
            profit, damp = profit * (1 + move) / edge, damp / (edge * index)
        losses.append(max(-profit - damp, 0.0))
    return max(losses)


@pytest.mark.parametrize("in_coin", [True, False])
def test_the_matrix_against_a_numerical_twin(in_coin: bool) -> None:
    index = exact(61_000)
    held = [
        MatrixPosition("f", exact("0.5"), exact(61_400), exact("0.25")),
        MatrixPosition("c", exact(-60), exact(61_400), exact("0.25"), OptionTerms(exact(150_000), True, 0.62)),
        MatrixPosition("p", exact(-25), exact(61_100), exact("0.04"), OptionTerms(exact(35_000), False, 0.71)),
        MatrixPosition("l", exact(3), exact(61_100), exact("0.04"), OptionTerms(exact(64_000), True, 0.55)),
    ]
    parameters = matrix_parameters("btc")._replace(extended_dampener_usd=exact(1_000))
    matrix = mechanics.risk_matrix(held, parameters, index_price=index, in_coin=in_coin)
    twin = numeric_matrix(held, parameters, float(index), in_coin=in_coin)
    # the twin's integral of a kink is good to about 1e-6
    assert float(matrix.worst.loss) == pytest.approx(twin, rel=1e-5)
    assert matrix.worst.source == "extended"  # short far options: the tail is the worst


def test_liquidation_prices_where_none_is() -> None:
    rates = {"maintenance": exact("0.01"), "slope": exact("0.00005")}
    assert mechanics.linear_liquidation_price(exact(1), exact(60_000), exact(70_000), **rates) is None
    assert mechanics.inverse_liquidation_price(exact(60_000), exact(60_000), exact(-2), **rates) is None
    assert mechanics.linear_liquidation_price(Fraction(0), exact(60_000), exact(1), **rates) is None


SIZES = st.fractions(min_value=Fraction(1, 100), max_value=500, max_denominator=100)
PRICES = st.integers(min_value=100, max_value=200_000).map(Fraction)


@settings(max_examples=60, deadline=None)
@given(
    SIZES, PRICES, st.sampled_from([1, -1]), st.fractions(min_value=Fraction(1, 20), max_value=3, max_denominator=50)
)
def test_a_linear_liquidation_price_is_the_zero_of_the_account(
    size: Fraction, entry: Fraction, side: int, margin: Fraction
) -> None:
    rates = {"maintenance": Fraction(1, 100), "slope": Fraction(5, 100_000)}
    cash = margin * size * entry
    price = mechanics.linear_liquidation_price(side * size, entry, cash, **rates)
    if price is None:
        # collateral for the whole position cannot run out
        assert side > 0
        assert margin >= 1
        return
    required = mechanics.linear_future_margin(side * size, price, initial=Fraction(1), **rates).maintenance
    assert cash + side * size * (price - entry) == required


@settings(max_examples=60, deadline=None)
@given(
    SIZES, PRICES, st.sampled_from([1, -1]), st.fractions(min_value=Fraction(1, 20), max_value=1, max_denominator=50)
)
def test_an_inverse_liquidation_price_is_the_zero_of_the_account(
    coins: Fraction, entry: Fraction, side: int, margin: Fraction
) -> None:
    rates = {"maintenance": Fraction(1, 100), "slope": Fraction(5, 100_000)}
    contracts, cash = side * coins * entry, margin * coins
    price = mechanics.inverse_liquidation_price(contracts, entry, cash, **rates)
    if price is None:
        assert side < 0
        return
    at = Fraction(price)
    required = mechanics.inverse_future_margin(contracts, at, initial=Fraction(1), **rates).maintenance
    excess = cash + contracts * (1 / entry - 1 / at) - required
    # a root by floating-point square root
    scale = max(Fraction(1), entry / at)
    assert abs(excess) <= Fraction(1, 10**10) * coins * scale * scale


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, PRICES)
def test_more_size_never_needs_less_and_initial_covers_maintenance(a: Fraction, b: Fraction, price: Fraction) -> None:
    rates = {"initial": Fraction(2, 100), "maintenance": Fraction(1, 100), "slope": Fraction(5, 100_000)}
    small, large = sorted((a, b))
    for function in (mechanics.linear_future_margin, mechanics.inverse_future_margin):
        less, more = function(small, price, **rates), function(large, price, **rates)
        assert more.initial >= less.initial
        assert more.maintenance >= less.maintenance
        assert less.initial >= less.maintenance
    # the surcharge of size: splitting a position over accounts is cheaper, never dearer
    whole = mechanics.linear_future_margin(a + b, price, **rates)
    parts = [mechanics.linear_future_margin(part, price, **rates) for part in (a, b)]
    assert whole.maintenance >= sum(part.maintenance for part in parts)


@settings(max_examples=60, deadline=None)
@given(st.booleans(), SIZES, PRICES, PRICES, st.fractions(min_value=0, max_value=1, max_denominator=10_000))
def test_short_options(call: bool, size: Fraction, strike: Fraction, index: Fraction, mark: Fraction) -> None:
    rates = option_rates("BTC")
    place = {"strike": strike, "index_price": index, "mark_price": mark, "rates": rates}
    margin = mechanics.inverse_option_margin(call, -size, **place)  # type: ignore[arg-type]
    assert margin.initial >= margin.maintenance >= size * mark
    assert not any(mechanics.inverse_option_margin(call, size, **place))  # type: ignore[arg-type]
    double = mechanics.inverse_option_margin(call, -2 * size, **place)  # type: ignore[arg-type]
    assert double == (2 * margin.initial, 2 * margin.maintenance)
    place["mark_price"] = mark * index
    linear = mechanics.linear_option_margin(call, -size, **place)  # type: ignore[arg-type]
    assert linear == (margin.initial * index, margin.maintenance * index)


POSITIONS = st.lists(
    st.tuples(
        st.fractions(min_value=-20, max_value=20, max_denominator=100),
        st.sampled_from([Fraction(0), Fraction(1, 25), Fraction(1, 4)]),
        st.sampled_from([None, (50_000, True), (60_000, False), (90_000, True)]),
    ),
    min_size=1,
    max_size=4,
)


def matrix_positions(drawn: list[tuple[Fraction, Fraction, tuple[int, bool] | None]]) -> list[MatrixPosition]:
    out = []
    for number, (size, years, option) in enumerate(drawn):
        terms = None if option is None or years == 0 else OptionTerms(Fraction(option[0]), option[1], 0.6)
        out.append(MatrixPosition(str(number), size, Fraction(60_000 + 900 * years), years, terms))
    return out


@settings(max_examples=30, deadline=None)
@given(POSITIONS, st.booleans(), st.randoms(use_true_random=False))
def test_fills_and_order_change_nothing_in_the_matrix(
    drawn: list[tuple[Fraction, Fraction, tuple[int, bool] | None]], in_coin: bool, shuffle: random.Random
) -> None:
    held, parameters = matrix_positions(drawn), matrix_parameters("btc")
    index = Fraction(60_000)
    matrix = mechanics.risk_matrix(held, parameters, index_price=index, in_coin=in_coin)
    split = [
        position._replace(size=position.size * part) for position in held for part in (Fraction(1, 3), Fraction(2, 3))
    ]
    shuffle.shuffle(split)
    assert mechanics.risk_matrix(split, parameters, index_price=index, in_coin=in_coin) == matrix
    flat = parameters._replace(extended_dampener_usd=Fraction(0), delta_threshold_usd=Fraction(10**12))
    once = mechanics.risk_matrix(held, flat, index_price=index, in_coin=in_coin)
    tripled = [position._replace(size=3 * position.size) for position in held]
    thrice = mechanics.risk_matrix(tripled, flat, index_price=index, in_coin=in_coin)
    assert thrice.worst.loss == 3 * once.worst.loss
    assert thrice.roll_shock == 3 * once.roll_shock
    margin = mechanics.portfolio_margin(matrix.margin, parameters.maintenance_factor)
    assert margin.initial >= margin.maintenance >= 0
