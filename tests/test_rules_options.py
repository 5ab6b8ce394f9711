"""The option rule forms against plain Python twins written from the venue's rules, and what must not matter to them.

The twins loop over scenarios, expiries and options with `math` only. Source of the rules: derivexyz/v2-core @7736900d,
PMRMLib_2.sol and StandardManager.sol.
"""

import math
from decimal import Decimal
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
from pydantic import ValidationError

from aggregator.rule_forms import (
    BasisContingency,
    Confidence,
    Contingency,
    ExpiryMaxLoss,
    GridPoint,
    OptionFormula,
    PegLoss,
    PriceVolGrid,
    SkewShock,
    StaticDiscount,
    VolShock,
    parse_parameters,
)
from aggregator.rules.contingency import contingency_requirement, naked_shorts, pack_contingencies
from aggregator.rules.expiry_max_loss import expiry_requirement, pack_expiry, worst_payoffs
from aggregator.rules.option_formula import option_requirement, pack_option_formula
from aggregator.rules.price_vol_grid import (
    basis_contingency,
    grid_profits,
    grid_requirement,
    option_mark_value,
    pack_grid,
)
from aggregator.rules.risk_unit import RiskUnit

# Both sides compute in float64; values of some 1e5 are differences of prices that agree in many digits.
RELATIVE = 1e-11
ABSOLUTE = 1e-7
# Compilers may round a multiply and an add once or twice, by the shape of the arrays: a few units in the last place.
PADDING_RELATIVE = 1e-13
# Another order of the same additions.
ORDER_RELATIVE = 1e-12

POINTS = 40
CHARGES = 8
OPTIONS, EXPIRIES, COLLATERALS = 8, 3, 3
SECONDS_PER_YEAR = 365 * 86400

D = Decimal


def drawn(generator: np.random.Generator, low: float, high: float) -> Decimal:
    return D(repr(round(float(generator.uniform(low, high)), 6)))


def random_grid(generator: np.random.Generator) -> PriceVolGrid:
    directions: list[Any] = ["up", "down", "none"] * 3
    points = [GridPoint(spot=drawn(generator, 0.2, 3.0), vol=vol, dampening=D("0.7")) for vol in directions]
    points += [
        GridPoint(spot=D(1), vol="skew_linear", dampening=drawn(generator, 0.2, 2.0)),
        GridPoint(spot=D(1), vol="skew_abs", dampening=D(1)),
        GridPoint(spot=D(1), vol="none", dampening=D(1)),
    ]
    return PriceVolGrid(
        scenarios=tuple(points),
        vol_shock=VolShock(
            range_up=drawn(generator, 0, 2),
            range_down=drawn(generator, 0, 1.5),
            short_term_power=drawn(generator, 0, 0.5),
            long_term_power=drawn(generator, 0, 0.3),
            dte_floor_days=D(int(generator.integers(0, 3))),
            min_vol_up=drawn(generator, 0, 1),
        ),
        skew=SkewShock(
            linear_base_cap=drawn(generator, 0, 2),
            linear_c_base=drawn(generator, -3, 1),
            abs_base_cap=drawn(generator, 0, 2),
            abs_c_base=drawn(generator, -3, 1),
            min_k_star=drawn(generator, 0.001, 0.1),
            width_scale=drawn(generator, 0, 5),
            vol_param_static=drawn(generator, 0, 1),
            vol_param_scale=drawn(generator, -1, 1),
        ),
        discount=StaticDiscount(
            long_base=drawn(generator, 0.8, 1),
            long_rate_mult=D(1),
            long_rate_add=D("0.08"),
            short_base=drawn(generator, 0.95, 1.05),
            short_rate_mult=D("0.5"),
            short_rate_add=D("0.08"),
        ),
        initial_factor=D("1.1"),
        maintenance_factor=D("0.8"),
        basis=BasisContingency(spot_up=D("1.045"), spot_down=D("0.955"), add_factor=D("0.5"), mult_factor=D(2)),
        peg_loss=PegLoss(threshold=D("0.99"), factor=D(4)),
        settlement_window_s=D(1800),
    )


def random_unit(generator: np.random.Generator, *, options: int = 6) -> dict[str, Any]:
    """One unit as plain lists; strikes repeat, so that calls and puts of one strike meet."""
    seconds = [float(generator.choice([0, 900, 86400, 86400 * 20, 86400 * 200])), 86400 * 30.0]
    spot = float(generator.uniform(500, 5000))
    return {
        "spot": spot,
        "spot_confidence": float(generator.choice([1.0, 0.5])),
        "stable_price": float(generator.choice([1.0, 0.97])),
        "perp": (float(generator.normal()), spot * 1.003, float(generator.choice([1.0, 0.4]))),
        "collateral": [(2.0, spot * 1.04, 1.0, 1.0), (700.0, 1.0, 0.3, 0.0)],
        "expiries": [
            (
                s / SECONDS_PER_YEAR,
                spot * 1.01,
                float(generator.choice([-0.1, 0.06])),
                float(generator.choice([1.0, 0.2])),
            )
            for s in seconds
        ],
        "options": [
            (
                float(generator.normal()) * 3,
                spot * float(generator.choice([0.4, 0.9, 1.0, 1.1, 2.0])),
                bool(generator.random() < 0.5),
                float(generator.choice([0.0, 0.5, 1.2])),
                int(generator.integers(0, 2)),
            )
            for _ in range(options)
        ],
    }


def packed(unit: dict[str, Any], *, options: int = OPTIONS, expiries: int = EXPIRIES) -> RiskUnit:
    def column(rows: list[Any], entry: int, size: int, fill: Any, dtype: Any = np.float64) -> Any:
        return np.array([row[entry] for row in rows] + [fill] * (size - len(rows)), dtype)

    def number(value: float) -> Any:
        return np.float64(value)

    tokens, options_held, dates = unit["collateral"], unit["options"], unit["expiries"]
    return RiskUnit(
        spot=number(unit["spot"]),
        spot_confidence=number(unit["spot_confidence"]),
        stable_price=number(unit["stable_price"]),
        perp_quantity=number(unit["perp"][0]),
        perp_price=number(unit["perp"][1]),
        perp_confidence=number(unit["perp"][2]),
        collateral_quantity=column(tokens, 0, COLLATERALS, 0.0),
        collateral_price=column(tokens, 1, COLLATERALS, 1.0),
        collateral_confidence=column(tokens, 2, COLLATERALS, 1.0),
        collateral_in_grid=column(tokens, 3, COLLATERALS, 0.0),
        option_quantity=column(options_held, 0, options, 0.0),
        option_strike=column(options_held, 1, options, 1.0),
        option_is_call=column(options_held, 2, options, False, np.bool_),
        option_vol=column(options_held, 3, options, 0.5),
        option_expiry=column(options_held, 4, options, 0, np.int32),
        expiry_years=column(dates, 0, expiries, 1.0),
        expiry_forward=column(dates, 1, expiries, 1.0),
        expiry_rate=column(dates, 2, expiries, 0.0),
        expiry_confidence=column(dates, 3, expiries, 1.0),
    )


# --- the twins -------------------------------------------------------------------------------------------------------


def black(forward: float, strike: float, years: float, vol: float, is_call: bool, discount: float) -> float:
    deviation = vol * math.sqrt(years)
    if deviation == 0:
        call = max(forward - strike, 0.0)
    else:
        d1 = math.log(forward / strike) / deviation + deviation / 2
        call = forward * math.erfc(-d1 / math.sqrt(2)) / 2 - strike * math.erfc((deviation - d1) / math.sqrt(2)) / 2
    return discount * (call if is_call else call - forward + strike)


def expiry_value(unit: dict[str, Any], x: int, forward: float, vol_of: Any = lambda vol, strike: vol) -> float:
    years, _, rate, _ = unit["expiries"][x]
    discount = math.exp(-max(rate, 0.0) * years)
    return sum(
        quantity * black(forward, strike, years, vol_of(vol, strike), is_call, discount)
        for quantity, strike, is_call, vol, expiry in unit["options"]
        if expiry == x
    )


def shocked_forward(unit: dict[str, Any], form: PriceVolGrid, x: int, spot: float) -> float:
    years, forward, _, _ = unit["expiries"][x]
    fixed = max(0.0, 1 - years * SECONDS_PER_YEAR / float(form.settlement_window_s))
    return forward * fixed + forward * (1 - fixed) * spot


def twin_profits(unit: dict[str, Any], form: PriceVolGrid) -> list[float]:
    shock, skew, discount = form.vol_shock, form.skew, form.discount
    assert skew is not None
    out = []
    for point in form.scenarios:
        spot, dampening = float(point.spot), float(point.dampening)
        quantity, price, _ = unit["perp"]
        profit = dampening * quantity * price * (spot - 1)
        for amount, token_price, _, in_grid in unit["collateral"]:
            profit += in_grid * dampening * amount * token_price / unit["stable_price"] * (spot - 1)
        for x, (years, today_forward, rate, _) in enumerate(unit["expiries"]):
            days, root, rate = years * 365, math.sqrt(years), max(rate, 0.0)
            tau = 30 / max(days, float(shock.dte_floor_days), 1 / 86400)
            move = tau ** float(shock.short_term_power if days <= 30 else shock.long_term_power)

            def vol_of(
                vol: float,
                strike: float,
                vol_code: str = point.vol,
                move: float = move,
                root: float = root,
                forward: float = today_forward,
            ) -> float:
                if vol_code == "up":
                    return max(float(shock.min_vol_up), vol * (1 + float(shock.range_up) * move))
                if vol_code == "down":
                    return vol * max(0.0, 1 - float(shock.range_down) * move)
                if vol_code == "none":
                    return vol
                linear = vol_code == "skew_linear"
                base, slope = (
                    (skew.linear_base_cap, skew.linear_c_base) if linear else (skew.abs_base_cap, skew.abs_c_base)
                )
                cap = float(slope) * root + float(base)
                k_star = max(
                    float(skew.min_k_star),
                    root
                    * float(skew.width_scale)
                    * (float(skew.vol_param_static) + root * float(skew.vol_param_scale)),
                )
                k = math.log(strike / forward)
                k = k if linear else abs(k)
                tilt = k * cap / k_star
                return vol * max(0.0, 1 + (min(cap, tilt) if k >= 0 else max(-cap, tilt)))

            now = expiry_value(unit, x, today_forward)
            then = expiry_value(unit, x, shocked_forward(unit, form, x, spot), vol_of)
            if then >= 0:
                then *= float(discount.long_base) * math.exp(
                    -years * (rate * float(discount.long_rate_mult) + float(discount.long_rate_add))
                )
            else:
                then *= min(
                    math.exp(rate * years),
                    float(discount.short_base)
                    * math.exp(years * (rate * float(discount.short_rate_mult) + float(discount.short_rate_add))),
                )
            change = dampening * (then - now)
            profit += -abs(change) if point.vol.startswith("skew") else change
        out.append(profit)
    return out


def twin_basis(unit: dict[str, Any], form: PriceVolGrid) -> float:
    assert form.basis is not None
    total = 0.0
    for x, (years, forward, _, _) in enumerate(unit["expiries"]):
        now = expiry_value(unit, x, forward)
        moves = [
            expiry_value(unit, x, shocked_forward(unit, form, x, float(spot))) - now
            for spot in (form.basis.spot_up, form.basis.spot_down)
        ]
        total += min(*moves, 0.0) * (float(form.basis.add_factor) + float(form.basis.mult_factor) * years)
    return total


def twin_grid_requirement(unit: dict[str, Any], form: PriceVolGrid) -> tuple[float, float]:
    assert form.peg_loss is not None
    worst = min(twin_basis(unit, form), *twin_profits(unit, form))
    peg = max(0.0, float(form.peg_loss.threshold) - unit["stable_price"]) * float(form.peg_loss.factor)
    return -(float(form.initial_factor) + peg) * worst, -float(form.maintenance_factor) * worst


def twin_contingency(unit: dict[str, Any], form: Contingency) -> tuple[float, float]:
    perp, perp_price, perp_confidence = unit["perp"]
    spot_confidence = unit["spot_confidence"]
    amounts: list[tuple[float, float]] = []
    price = perp_price if form.price == "perp_mark" else unit["spot"]
    if form.measure in ("gross_perp", "gross_perp_and_short_options"):
        amounts.append((abs(perp) * price, min(spot_confidence, perp_confidence)))
    for x, (_, _, _, confidence) in enumerate(unit["expiries"]):
        held = [(q, k) for q, k, _, _, expiry in unit["options"] if expiry == x]
        low = min(spot_confidence, confidence)
        with_perp = min(low, perp_confidence) if perp else low
        if form.measure in ("short_options", "gross_perp_and_short_options"):
            amounts.append((sum(max(0.0, -q) for q, _ in held) * price, low))
        elif form.measure == "gross_options":
            amounts.append((sum(abs(q) for q, _ in held) * price, with_perp))
        elif form.measure == "naked_short_options":
            strikes = {k for _, k in held}
            naked = sum(max(0.0, -sum(q for q, k in held if k == strike)) for strike in strikes)
            amounts.append((naked * price, with_perp))
    for amount, token_price, confidence, _ in unit["collateral"]:
        if form.measure == "collateral":
            amounts.append((amount * token_price / unit["stable_price"], min(confidence, spot_confidence)))
        elif form.measure == "collateral_usd":
            amounts.append((amount * token_price, confidence))
    total = sum(amount for amount, _ in amounts)
    if form.confidence is not None:
        below = [(1 - c) * a for a, c in amounts if c < float(form.confidence.threshold)]
        return sum(below) * float(form.confidence.factor), 0.0
    if form.depeg is not None:
        return max(0.0, float(form.depeg.threshold) - unit["stable_price"]) * float(form.depeg.factor) * total, 0.0
    return float(form.initial_rate or 0) * total, float(form.maintenance_rate or 0) * total


def twin_contract(unit: dict[str, Any], form: OptionFormula, option: Any, *, initial: bool) -> tuple[float, float]:
    """(value, net margin) of one option position."""
    quantity, strike, is_call, vol, x = option
    years, forward, rate, _ = unit["expiries"][x]
    value = quantity * black(forward, strike, years, vol, is_call, math.exp(-max(rate, 0.0) * years))
    if quantity >= 0:
        return value, 0.0
    spot = unit["spot"]
    otm = max(0.0, strike - spot if is_call else spot - strike) / spot
    rate_at_spot = max(float(form.min_spot_rate), float(form.max_spot_rate) - otm)
    by_formula = value + spot * quantity * rate_at_spot
    if is_call:
        return value, by_formula if initial else value + float(form.mm_call_spot_rate) * spot * quantity
    maintenance = value + min(float(form.mm_put_spot_rate) * spot * quantity, float(form.mm_put_mark_rate) * value)
    return value, min(by_formula, float(form.mm_offset_scale) * maintenance) if initial else maintenance


def twin_expiry(unit: dict[str, Any], form: ExpiryMaxLoss, *, initial: bool) -> float:
    requirement = 0.0
    scale = float(form.unpaired_initial_scale if initial else form.unpaired_maintenance_scale)
    for x, (_, forward, _, _) in enumerate(unit["expiries"]):
        held = [option for option in unit["options"] if option[4] == x]
        pairs = [twin_contract(unit, form.per_contract, option, initial=initial) for option in held]
        worst = 0.0
        for price in [0.0, *(strike for _, strike, _, _, _ in held)]:
            worst = min(worst, sum(q * max(0.0, price - k if c else k - price) for q, k, c, _, _ in held))
        worst += scale * forward * min(0.0, sum(q for q, _, is_call, _, _ in held if is_call))
        requirement += sum(value for value, _ in pairs) - max(sum(net for _, net in pairs), worst)
    return requirement


# --- forms used below ------------------------------------------------------------------------------------------------

FORMULA = OptionFormula(
    max_spot_rate=D("0.15"),
    min_spot_rate=D("0.1"),
    mm_call_spot_rate=D("0.075"),
    mm_put_spot_rate=D("0.075"),
    mm_put_mark_rate=D("0.075"),
    mm_offset_scale=D("1.05"),
)
MAX_LOSS = ExpiryMaxLoss(per_contract=FORMULA, unpaired_initial_scale=D("1.2"), unpaired_maintenance_scale=D("1.1"))
DOUBT = Confidence(threshold=D("0.55"), factor=D("0.9"))
CHARGE_FORMS = (
    Contingency(measure="gross_perp", initial_rate=D("0.04"), maintenance_rate=D("0.03")),
    Contingency(measure="gross_perp", price="perp_mark", initial_rate=D("0.1"), maintenance_rate=D("0.065")),
    Contingency(measure="naked_short_options", initial_rate=D("0.005"), maintenance_rate=D("0.003")),
    Contingency(measure="gross_perp", confidence=DOUBT),
    Contingency(measure="gross_options", confidence=DOUBT),
    Contingency(measure="short_options", confidence=DOUBT),
    Contingency(measure="collateral", confidence=DOUBT),
    Contingency(measure="collateral_usd", confidence=DOUBT),
    Contingency(measure="gross_perp_and_short_options", depeg=PegLoss(threshold=D("0.98"), factor=D("1.2"))),
)

grid_of = eqx.filter_jit(
    lambda unit, parameters: (
        grid_profits(unit, parameters),
        basis_contingency(unit, parameters),
        grid_requirement(unit, parameters),
        option_mark_value(unit),
    )
)
charges_of = eqx.filter_jit(contingency_requirement)
expiry_of = eqx.filter_jit(expiry_requirement)
formula_of = eqx.filter_jit(option_requirement)


def stated(unit: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**unit, **changes}


def everything(unit: RiskUnit, form: PriceVolGrid) -> np.ndarray:
    """Requirements of every form, both levels, in one vector."""
    grid = grid_of(unit, pack_grid(form, POINTS))[2]
    charges = charges_of(unit, pack_contingencies(CHARGE_FORMS, len(CHARGE_FORMS)))
    expiry = expiry_of(unit, pack_expiry(MAX_LOSS))
    formula = formula_of(unit, pack_option_formula(FORMULA))
    return np.array([float(x) for pair in (grid, charges, expiry, formula) for x in pair])


# --- against the twins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_grid_equals_the_twin(seed: int) -> None:
    generator = np.random.default_rng(seed)
    unit, form = random_unit(generator), random_grid(generator)
    profits, basis, requirement, value = grid_of(packed(unit), pack_grid(form, POINTS))
    expected = twin_profits(unit, form)
    np.testing.assert_allclose(profits[: len(expected)], expected, rtol=RELATIVE, atol=ABSOLUTE)
    assert not np.any(profits[len(expected) :])
    np.testing.assert_allclose(basis, twin_basis(unit, form), rtol=RELATIVE, atol=ABSOLUTE)
    np.testing.assert_allclose(requirement, twin_grid_requirement(unit, form), rtol=RELATIVE, atol=ABSOLUTE)
    today = sum(expiry_value(unit, x, forward) for x, (_, forward, _, _) in enumerate(unit["expiries"]))
    np.testing.assert_allclose(value, today, rtol=RELATIVE, atol=ABSOLUTE)


@pytest.mark.parametrize("form", CHARGE_FORMS, ids=lambda form: f"{form.measure}-{form.price}")
def test_contingency_equals_the_twin(form: Contingency) -> None:
    for seed in range(12):
        unit = random_unit(np.random.default_rng(seed))
        got = charges_of(packed(unit), pack_contingencies([form], CHARGES))
        np.testing.assert_allclose(got, twin_contingency(unit, form), rtol=RELATIVE, atol=ABSOLUTE)


def test_contingencies_add_up() -> None:
    unit = random_unit(np.random.default_rng(3))
    got = charges_of(packed(unit), pack_contingencies(CHARGE_FORMS, len(CHARGE_FORMS) + 2))
    expected = np.sum([twin_contingency(unit, form) for form in CHARGE_FORMS], axis=0)
    np.testing.assert_allclose(got, expected, rtol=RELATIVE, atol=ABSOLUTE)


@pytest.mark.parametrize("seed", range(40))
def test_expiry_and_contract_margins_equal_the_twin(seed: int) -> None:
    unit = random_unit(np.random.default_rng(seed))
    got = expiry_of(packed(unit), pack_expiry(MAX_LOSS))
    expected = [twin_expiry(unit, MAX_LOSS, initial=initial) for initial in (True, False)]
    np.testing.assert_allclose(got, expected, rtol=RELATIVE, atol=ABSOLUTE)
    alone = formula_of(packed(unit), pack_option_formula(FORMULA))
    pairs = [[twin_contract(unit, FORMULA, o, initial=initial) for o in unit["options"]] for initial in (True, False)]
    expected = [sum(value - net for value, net in level) for level in pairs]
    np.testing.assert_allclose(alone, expected, rtol=RELATIVE, atol=ABSOLUTE)


# --- figures by hand -------------------------------------------------------------------------------------------------


def simple_unit(*options: tuple[float, float, bool, float, int], **changes: Any) -> dict[str, Any]:
    unit = {
        "spot": 1000.0,
        "spot_confidence": 1.0,
        "stable_price": 1.0,
        "perp": (0.0, 1000.0, 1.0),
        "collateral": [],
        "expiries": [(0.1, 1000.0, 0.0, 1.0)],
        "options": list(options),
    }
    return stated(unit, **changes)


def test_call_spread_loses_the_strike_difference() -> None:
    unit = packed(simple_unit((-2.0, 1000.0, True, 0.5, 0), (2.0, 1200.0, True, 0.5, 0)))
    assert float(worst_payoffs(unit)[0]) == pytest.approx(-400.0)


def test_naked_short_calls_lose_beyond_every_strike() -> None:
    # Payoff at the only strike is 0; one unpaired call then costs 1.1 times the forward at maintenance.
    unit = packed(simple_unit((-1.0, 1000.0, True, 3.0, 0)))
    value = float(option_mark_value(unit))
    net = value - float(expiry_of(unit, pack_expiry(MAX_LOSS)).maintenance)
    assert net == pytest.approx(max(value - 75.0, -1100.0))


def test_naked_shorts_net_calls_and_puts_of_one_strike() -> None:
    options = [(-3.0, 900.0, True, 0.5, 0), (1.0, 900.0, False, 0.5, 0), (-2.0, 1100.0, False, 0.5, 0)]
    assert float(naked_shorts(packed(simple_unit(*options)))[0]) == pytest.approx(4.0)


def test_last_half_hour_fixes_the_forward() -> None:
    form = random_grid(np.random.default_rng(1))
    seconds = 450.0  # three quarters of the half hour are averaged in
    unit = simple_unit((1.0, 10.0, True, 0.0, 0), expiries=[(seconds / SECONDS_PER_YEAR, 1000.0, 0.0, 1.0)])
    up = form.model_copy(update={"scenarios": (GridPoint(spot=D("1.2"), vol="none", dampening=D(1)),)})
    neutral = StaticDiscount(
        long_base=D(1),
        long_rate_mult=D(0),
        long_rate_add=D(0),
        short_base=D(1),
        short_rate_mult=D(0),
        short_rate_add=D(0),
    )
    profits = grid_of(packed(unit), pack_grid(up.model_copy(update={"discount": neutral}), POINTS))[0]
    assert float(profits[0]) == pytest.approx(1000.0 * 0.25 * 0.2)


def test_confidence_at_the_threshold_is_not_below_it() -> None:
    form = Contingency(measure="gross_perp", confidence=Confidence(threshold=D("0.5"), factor=D(1)))
    at = simple_unit(perp=(2.0, 1000.0, 0.5))
    below = simple_unit(perp=(2.0, 1000.0, 0.49))
    assert float(charges_of(packed(at), pack_contingencies([form], CHARGES)).initial) == 0.0
    assert float(charges_of(packed(below), pack_contingencies([form], CHARGES)).initial) == pytest.approx(0.51 * 2000.0)


# --- what must not matter --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_padding_changes_nothing(seed: int) -> None:
    generator = np.random.default_rng(seed)
    unit, form = random_unit(generator), random_grid(generator)
    narrow, wide = packed(unit), packed(unit, options=16, expiries=8)
    np.testing.assert_allclose(everything(wide, form), everything(narrow, form), rtol=PADDING_RELATIVE, atol=0)


def test_points_and_charges_may_be_padded() -> None:
    generator = np.random.default_rng(5)
    unit, form = packed(random_unit(generator)), random_grid(generator)
    exact = grid_of(unit, pack_grid(form, len(form.scenarios)))[2]
    np.testing.assert_allclose(grid_of(unit, pack_grid(form, POINTS))[2], exact, rtol=PADDING_RELATIVE, atol=0)


@pytest.mark.parametrize("seed", range(6))
def test_zero_position_changes_nothing(seed: int) -> None:
    generator = np.random.default_rng(seed)
    unit, form = random_unit(generator), random_grid(generator)
    for strike in (1.0, unit["spot"] * 50):
        more = stated(unit, options=[*unit["options"], (0.0, strike, True, 0.8, 1)])
        np.testing.assert_array_equal(everything(packed(more), form), everything(packed(unit), form))


@pytest.mark.parametrize("seed", range(6))
def test_order_and_splitting_change_nothing(seed: int) -> None:
    generator = np.random.default_rng(seed)
    unit, form = random_unit(generator), random_grid(generator)
    shuffled = [unit["options"][i] for i in generator.permutation(len(unit["options"]))]
    quantity, *rest = unit["options"][0]
    split = [(0.25 * quantity, *rest), *unit["options"][1:], (0.75 * quantity, *rest)]
    base = everything(packed(unit), form)
    for options in (shuffled, split):
        got = everything(packed(stated(unit, options=options)), form)
        np.testing.assert_allclose(got, base, rtol=ORDER_RELATIVE, atol=ABSOLUTE)


@pytest.mark.parametrize("seed", range(4))
def test_requirement_scales_with_the_position(seed: int) -> None:
    generator = np.random.default_rng(seed)
    unit, form = random_unit(generator), random_grid(generator)
    quantity, price, confidence = unit["perp"]
    tripled = stated(
        unit,
        perp=(3 * quantity, price, confidence),
        collateral=[(3 * q, *rest) for q, *rest in unit["collateral"]],
        options=[(3 * q, *rest) for q, *rest in unit["options"]],
    )
    np.testing.assert_allclose(
        everything(packed(tripled), form), 3 * everything(packed(unit), form), rtol=ORDER_RELATIVE, atol=ABSOLUTE
    )


def test_empty_unit_needs_nothing_and_is_finite() -> None:
    empty = stated(simple_unit(), spot=0.0, expiries=[(0.0, 0.0, 0.0, 1.0)])
    assert not np.any(everything(packed(empty), random_grid(np.random.default_rng(0))))


def test_units_with_different_parameters_share_one_program() -> None:
    generator = np.random.default_rng(11)
    units = [packed(random_unit(generator)) for _ in range(3)]
    forms = [random_grid(generator) for _ in range(3)]

    def stack(modules: Any) -> Any:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *modules)

    batched = jax.jit(jax.vmap(grid_requirement))(stack(units), stack([pack_grid(form, POINTS) for form in forms]))
    for i, (unit, form) in enumerate(zip(units, forms, strict=True)):
        alone = grid_of(unit, pack_grid(form, POINTS))[2]
        np.testing.assert_allclose([batched.initial[i], batched.maintenance[i]], alone, rtol=ORDER_RELATIVE, atol=0)


# --- parameters ------------------------------------------------------------------------------------------------------


def test_parameters_survive_their_json_text() -> None:
    form = random_grid(np.random.default_rng(2)).model_copy(update={"grid_collateral": ("ETH", "weETH")})
    assert parse_parameters("price_vol_grid", form.model_dump_json()) == form
    assert parse_parameters("expiry_max_loss", MAX_LOSS.model_dump_json()) == MAX_LOSS


def test_wrong_parameters_are_refused() -> None:
    form = random_grid(np.random.default_rng(2))
    with pytest.raises(ValueError, match="12 points, more than the 5"):
        pack_grid(form, 5)
    with pytest.raises(ValueError, match="9 contingencies, more than the 2"):
        pack_contingencies(CHARGE_FORMS, 2)
    with pytest.raises(ValidationError, match="spot multiplier of 1"):
        PriceVolGrid.model_validate(
            form.model_dump() | {"scenarios": [{"spot": "1.1", "vol": "skew_abs", "dampening": "1"}]}
        )
    with pytest.raises(ValidationError, match="exactly one"):
        Contingency(measure="gross_perp", initial_rate=D("0.1"), confidence=DOUBT)
    with pytest.raises(ValidationError, match="exactly one"):
        Contingency(measure="gross_perp")
