"""The per-contract form against a plain twin, the venues' figures, and what must not matter to it."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.config import TILE
from aggregator.cube import CubeBuilder
from aggregator.risk_units import QuoteRow, UnitRow, option_model
from aggregator.rule_forms import ContractMargin, ContractRate, parse_parameters
from aggregator.rules.contract_margin import needs_entry_price
from aggregator.unit_batch import UnitSizes, unit_arrays
from aggregator.unit_margin import unit_maintenance, unit_requirements

VECTORS = Path(__file__).parent / "vectors" / "venues"
# Requirements of units are rounded to 4.5e-13.
RELATIVE = 2e-12
ABSOLUTE = 1e-8
UNITS = 64
KINDS = ("short_call", "short_put", "long_call", "long_put")

D = Decimal
FACTORS = ("peg:USDC", "price:BTC", "vol:BTC")
SIZES = UnitSizes(
    units=UNITS,
    options=8,
    expiries=2,
    collaterals=1,
    contingencies=1,
    grid_points=1,
    has_grid=False,
    has_expiry=False,
    has_contract=True,
    has_quotes=True,
    looks_ahead=False,
    delta_one=0,
    slices=0,
)


def number(value: float) -> Decimal:
    return D(repr(float(value)))


def option(quantity: float, strike: float, *, call: bool, **changes: Any) -> dict[str, Any]:
    base = {"quantity": quantity, "strike": strike, "call": call, "vol": 0.6, "expiry": 0, "inverse": False}
    return base | {"money": 0.0, "mark": None, "entry": 0.0} | changes


def unit_of(spot: float, options: Sequence[dict[str, Any]], *, stable: float = 1.0) -> dict[str, Any]:
    expiries = [(0.05, spot * 1.002, 0.03, 1.0), (0.7, spot * 1.04, 0.0, 1.0)]
    return {"spot": spot, "stable": stable, "expiries": expiries, "options": list(options)}


def model_price(unit: dict[str, Any], held: dict[str, Any]) -> float:
    years, forward, rate, _ = unit["expiries"][held["expiry"]]
    return option_model(
        forward, held["strike"], years=years, vol=held["vol"], is_call=held["call"], discount=math.exp(-rate * years)
    ).price


def unit_row(unit: dict[str, Any], form: ContractMargin | None) -> UnitRow:
    def quote(held: dict[str, Any]) -> QuoteRow:
        own = model_price(unit, held)
        if held["inverse"]:
            own /= unit["expiries"][held["expiry"]][1]
        offset = 0.0 if held["mark"] is None else held["mark"] - own
        return QuoteRow(offset, 0.0, held["entry"], held["inverse"], held["money"])

    return UnitRow(
        account=0,
        underlying="BTC",
        spot=unit["spot"],
        spot_confidence=1.0,
        stable_price=unit["stable"],
        price_factor="price:BTC",
        vol_factor="vol:BTC",
        stable_exponents=(("price:BTC" if unit["stable"] == unit["spot"] else "peg:USDC", 1.0),),
        perp=(0.0, unit["spot"], 1.0),
        collateral=(),
        options=tuple((o["quantity"], o["strike"], o["call"], o["vol"], o["expiry"]) for o in unit["options"]),
        expiries=tuple(unit["expiries"]),
        grid=None,
        contingencies=(),
        max_loss=None,
        contract=form,
        quotes=tuple(quote(held) for held in unit["options"]),
    )


requirements_of = eqx.filter_jit(lambda units, shocks, rows: unit_requirements(units, shocks, rows, elapsed_years=0.0))
in_scenarios = eqx.filter_jit(unit_maintenance)


def requirements(rows: Sequence[UnitRow], sizes: UnitSizes = SIZES) -> np.ndarray:
    """(initial, maintenance) of every unit, [U, 2]."""
    found = requirements_of(arrays_of(rows, sizes), jnp.zeros(len(FACTORS)), CubeBuilder().build(FACTORS))
    return np.stack(found, axis=1)[: len(rows)]


def arrays_of(rows: Sequence[UnitRow], sizes: UnitSizes = SIZES) -> Any:
    return unit_arrays(rows, sizes, {name: place for place, name in enumerate(FACTORS)})


# ---- the twin --------------------------------------------------------------------------------------------------------


def charge(rate: ContractRate | None, *, spot: float, strike: float, call: bool, mark: float, entry: float) -> float:
    if rate is None:
        return 0.0
    otm = max(0.0, strike - spot if call else spot - strike)
    out = max(float(rate.spot_rate) * spot - float(rate.otm_weight) * otm, float(rate.floor_rate) * spot)
    out = max(out, float(rate.mark_rate) * mark)
    if rate.cap_rate is not None:
        out = min(out, float(rate.cap_rate) * spot)
    if rate.premium_cap is not None:
        out = min(out, float(rate.premium_cap) * mark)
    out += {"none": 0.0, "mark": mark, "larger_of_entry_and_mark": max(mark, entry)}[rate.premium]
    fee = float(rate.fee_rate) * spot
    return out + (fee if rate.fee_cap is None else min(fee, float(rate.fee_cap) * mark))


def twin(unit: dict[str, Any], form: ContractMargin) -> tuple[float, float]:
    """(initial, maintenance); an inverse option by the formula in coins, as its venue states it."""
    spot, initial, maintenance = unit["spot"], 0.0, 0.0
    for held in unit["options"]:
        forward = unit["expiries"][held["expiry"]][1]
        mark, entry, scale = held["mark"], held["entry"], spot if held["inverse"] else 1.0
        if mark is None:
            mark = model_price(unit, held) / (forward if held["inverse"] else 1.0)
        side = ("short" if held["quantity"] < 0 else "long") + ("_call" if held["call"] else "_put")
        in_coins_or_money = [
            charge(
                getattr(form, f"{side}_{level}"),
                spot=spot / scale,
                strike=held["strike"] / scale,
                call=held["call"],
                mark=mark,
                entry=entry,
            )
            for level in ("initial", "maintenance")
        ]
        if held["inverse"]:
            in_unit = spot / unit["stable"]
        else:
            in_unit = (held["money"] or unit["stable"]) / unit["stable"]
        first, kept = (abs(held["quantity"]) * each * in_unit for each in in_coins_or_money)
        initial += max(first, kept) if form.at_least_maintenance else first
        maintenance += kept
    return initial, maintenance


def random_unit(rng: np.random.Generator) -> dict[str, Any]:
    spot = float(rng.uniform(1000, 90_000))
    options = []
    for _ in range(int(rng.integers(0, 8))):
        inverse = bool(rng.random() < 0.5)
        scale = 1.0 if inverse else spot
        options.append(
            option(
                float(rng.normal()),
                spot * float(rng.choice([0.5, 0.95, 1.0, 1.2])),
                call=bool(rng.random() < 0.5),
                expiry=int(rng.integers(0, 2)),
                inverse=inverse,
                money=1.0 if inverse else float(rng.choice([0.0, 0.998])),
                mark=float(rng.uniform(0, 0.3)) * scale if rng.random() < 0.7 else None,
                entry=float(rng.uniform(0, 0.3)) * scale,
            )
        )
    return unit_of(spot, options, stable=float(rng.choice([1.0, 0.99, spot])))


def random_form(rng: np.random.Generator) -> ContractMargin:
    def rate() -> ContractRate | None:
        if rng.random() < 0.2:
            return None
        drawn = [number(round(x, 4)) for x in rng.uniform(0, 0.4, 6)]
        return ContractRate(
            spot_rate=drawn[0],
            otm_weight=number(float(rng.choice([0.0, 1.0, 0.5]))),
            floor_rate=drawn[1],
            mark_rate=drawn[2],
            cap_rate=drawn[3] if rng.random() < 0.5 else None,
            premium_cap=drawn[4] * 5 if rng.random() < 0.5 else None,
            premium=str(rng.choice(["none", "mark", "larger_of_entry_and_mark"])),  # type: ignore[arg-type]
            fee_rate=drawn[5] / 100,
            fee_cap=drawn[0] if rng.random() < 0.5 else None,
        )

    rates = {f"{kind}_{level}": rate() for kind in KINDS for level in ("initial", "maintenance")}
    return ContractMargin(at_least_maintenance=bool(rng.random() < 0.5), **rates)  # type: ignore[arg-type]


@functools.cache
def book() -> tuple[tuple[dict[str, Any], ContractMargin], ...]:
    return tuple((random_unit(rng), random_form(rng)) for rng in map(np.random.default_rng, range(UNITS)))


def test_requirements_equal_the_twin() -> None:
    got = requirements([unit_row(unit, form) for unit, form in book()])
    for found, (unit, form) in zip(got, book(), strict=True):
        np.testing.assert_allclose(found, twin(unit, form), rtol=RELATIVE, atol=ABSOLUTE)
    assert (got > 0).any(axis=0).all()


def test_scenarios_move_the_mark_with_the_model() -> None:
    """The premium follows the model; what the venue's mark has beside it stays, an inverse option's in coins."""
    held = [
        option(-2.0, 60_000, call=True, mark=0.09, inverse=True, money=1.0, expiry=1),
        option(-1.0, 58_000, call=False, mark=2500.0),
    ]
    rate = ContractRate(spot_rate=D("0.15"), otm_weight=D(1), floor_rate=D("0.1"), premium="mark")
    form = ContractMargin(short_call_maintenance=rate, short_put_maintenance=rate)
    unit = unit_of(61_000.0, held)
    shocks = np.zeros((TILE, len(FACTORS)))
    shocks[1:, 1] = np.linspace(-0.3, 0.3, TILE - 1)
    found = in_scenarios(
        arrays_of([unit_row(unit, form)]), jnp.asarray(shocks), CubeBuilder().build(FACTORS), jnp.zeros(len(shocks))
    )
    for scenario in (0, 1, 100, TILE - 1):
        growth = math.exp(shocks[scenario, 1])
        moved = unit | {"spot": unit["spot"] * growth}
        moved["expiries"] = [(t, f * growth, r, c) for t, f, r, c in unit["expiries"]]
        options = []
        for one in held:
            of_today, of_then = model_price(unit, one), model_price(moved, one)
            if one["inverse"]:
                of_today, of_then = of_today / unit["expiries"][1][1], of_then / moved["expiries"][1][1]
            options.append(one | {"mark": one["mark"] + of_then - of_today})
        expected = twin(moved | {"options": options}, form)[1]
        assert float(found[0, scenario]) == pytest.approx(expected, rel=1e-10)


def test_a_fee_that_its_cap_cuts_today_grows_with_the_mark_in_scenarios() -> None:
    """Paradex: min(0.02 % of the spot, 12.5 % of the mark), of a short call that is cheap today."""
    held = option(-3.0, 85_000, call=True, mark=30.0, vol=0.5)
    fee = ContractRate(fee_rate=D("0.0002"), fee_cap=D("0.125"))
    form = ContractMargin(short_call_initial=fee, short_call_maintenance=fee)
    unit = unit_of(61_000.0, [held])
    shocks = np.zeros((TILE, len(FACTORS)))
    shocks[1:, 1] = np.linspace(-0.3, 0.3, TILE - 1)
    found = in_scenarios(
        arrays_of([unit_row(unit, form)]), jnp.asarray(shocks), CubeBuilder().build(FACTORS), jnp.zeros(len(shocks))
    )
    expected = []
    for shock in shocks[:, 1]:
        moved = unit | {"spot": unit["spot"] * math.exp(shock)}
        moved["expiries"] = [(t, f * math.exp(shock), r, c) for t, f, r, c in unit["expiries"]]
        mark = max(0.0, held["mark"] + model_price(moved, held) - model_price(unit, held))
        expected.append(3.0 * min(0.0002 * moved["spot"], 0.125 * mark))
    np.testing.assert_allclose(np.asarray(found[0]), expected, rtol=1e-10, atol=1e-9)
    assert expected[0] == pytest.approx(3 * 0.125 * 30)
    assert expected[-1] == pytest.approx(3 * 0.0002 * 61_000 * math.exp(0.3))


def test_more_padding_gives_the_same_bits() -> None:
    rows = [unit_row(unit, form) for unit, form in book()]
    wide = SIZES._replace(
        units=2 * UNITS, options=16, expiries=4, delta_one=2, grid_points=4, has_grid=True, slices=2, looks_ahead=True
    )
    np.testing.assert_array_equal(requirements(rows, wide), requirements(rows))


def test_units_without_the_form_need_nothing() -> None:
    row = unit_row(book()[1][0], None)
    assert not requirements([row]).any()


def test_splitting_a_position_changes_nothing() -> None:
    for unit, form in book()[:8]:
        halves = [o | {"quantity": o["quantity"] / 2} for o in unit["options"][:4] for _ in range(2)]
        whole = unit | {"options": unit["options"][:4]}
        split, once = requirements([unit_row(unit | {"options": halves}, form), unit_row(whole, form)])
        np.testing.assert_allclose(split, once, rtol=RELATIVE, atol=ABSOLUTE)


def test_entry_price_is_asked_for_where_it_counts() -> None:
    form = ContractMargin(short_put_initial=ContractRate(premium="larger_of_entry_and_mark"))
    assert needs_entry_price(form, is_call=False, is_short=True)
    assert not needs_entry_price(form, is_call=True, is_short=True)
    assert not needs_entry_price(form, is_call=False, is_short=False)
    assert parse_parameters("contract_margin", form.model_dump_json()) == form


# ---- figures of the venues -------------------------------------------------------------------------------------------


def cases(venue: str, kind: str) -> list[dict[str, Any]]:
    found = json.loads((VECTORS / f"{venue}.json").read_text())["cases"]
    return [case for case in found if case["kind"] == kind]


DERIBIT_INITIAL = ContractRate(spot_rate=D("0.15"), otm_weight=D(1), floor_rate=D("0.1"), premium="mark")
DERIBIT = ContractMargin(
    short_call_initial=DERIBIT_INITIAL,
    short_call_maintenance=ContractRate(spot_rate=D("0.075"), premium="mark"),
    short_put_initial=DERIBIT_INITIAL,
    short_put_maintenance=ContractRate(spot_rate=D("0.075"), mark_rate=D("0.075"), premium="mark"),
    at_least_maintenance=True,
)


@pytest.mark.parametrize("case", cases("deribit", "deribit_sm_inverse_option"), ids=lambda case: case["name"])
def test_deribit_inverse_option(case: dict[str, Any]) -> None:
    """In coins in a coin account, and the same coins at the index in a dollar account."""
    inputs, expected = case["inputs"], case["expected"]
    spot = inputs["index_price"]
    held = option(
        inputs["size"],
        inputs["strike"],
        call=inputs["is_call"],
        inverse=True,
        money=1.0,
        mark=inputs["mark_price_base"],
        expiry=1,
    )
    in_coins, in_dollars = requirements(
        [unit_row(unit_of(spot, [held], stable=stable), DERIBIT) for stable in (spot, 1.0)]
    )
    np.testing.assert_allclose(in_coins, [expected["im_base"], expected["mm_base"]], rtol=1e-9)
    np.testing.assert_allclose(in_dollars, in_coins * spot, rtol=1e-11)


@pytest.mark.parametrize("case", cases("bybit", "bybit_option_cross"), ids=lambda case: case["name"])
def test_bybit_short_option(case: dict[str, Any]) -> None:
    inputs, expected = case["inputs"], case["expected"]
    initial = ContractRate(
        spot_rate=number(inputs["im_factor_1"]),
        otm_weight=D(1),
        floor_rate=number(inputs["im_factor_2"]),
        premium="larger_of_entry_and_mark",
    )
    maintenance = ContractRate(
        spot_rate=number(inputs["mm_factor"]),
        mark_rate=number(inputs["mm_factor"]),
        premium="mark",
        fee_rate=number(inputs["liq_fee_rate"]),
    )
    form = ContractMargin(
        short_call_initial=initial,
        short_call_maintenance=maintenance,
        short_put_initial=initial,
        short_put_maintenance=maintenance,
        at_least_maintenance=True,
    )
    held = option(
        inputs["size"],
        inputs["strike"],
        call=inputs["is_call"],
        mark=inputs["mark_price"],
        entry=inputs["entry_price"],
    )
    (found,) = requirements([unit_row(unit_of(inputs["index_price"], [held]), form)])
    np.testing.assert_allclose(found, [expected["position_im"], expected["position_mm"]], rtol=1e-9)


def paradex_form(inputs: dict[str, Any]) -> ContractMargin:
    rates: dict[str, Any] = {}
    for key, level in (("imf", "initial"), ("mmf", "maintenance")):
        f = {name: number(value) for name, value in inputs[key].items()}
        long = ContractRate(spot_rate=f["long_itm"], premium_cap=f["premium_multiplier"])
        short = ContractRate(spot_rate=f["short_itm"], otm_weight=D(1), floor_rate=f["short_otm"])
        rates |= {f"long_call_{level}": long, f"long_put_{level}": long, f"short_call_{level}": short}
        rates[f"short_put_{level}"] = short.model_copy(update={"cap_rate": f["short_put_cap"]})
    return ContractMargin(**rates)


def paradex_options() -> list[dict[str, Any]]:
    return [case for case in cases("paradex", "paradex_xm") if "strike" in case["inputs"]]


@pytest.mark.parametrize("case", paradex_options(), ids=lambda case: case["name"])
def test_paradex_option(case: dict[str, Any]) -> None:
    inputs, expected = case["inputs"], case["expected"]
    size = inputs["size"] if inputs["is_long"] else -inputs["size"]
    held = option(size, inputs["strike"], call=inputs["is_call"], mark=inputs["mark"])
    (found,) = requirements([unit_row(unit_of(inputs["spot"], [held]), paradex_form(inputs))])
    np.testing.assert_allclose(found, [expected["imr"], expected["mmr"]], rtol=1e-9)


def test_there_are_paradex_options() -> None:
    assert len(paradex_options()) == 5
