"""The grid form with all of its parameters: against a slow twin, venues' published figures, and what must not matter.

Units go through the padded arrays of a book, many of them in one program.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.config import TILE
from aggregator.risk_units import UnitRow, option_model
from aggregator.rule_forms import (
    Contingency,
    ContractMargin,
    ContractRate,
    DeltaFloor,
    DeltaShock,
    GridPoint,
    MinimumCharge,
    PriceVolGrid,
    RollShock,
    VolShock,
)
from aggregator.rules.delta_charges import pack_delta_charges
from aggregator.rules.price_vol_grid import grid_profits, option_mark_values, pack_grid
from aggregator.unit_batch import UnitSizes, unit_sizes
from aggregator.unit_margin import unit_maintenance, unit_requirements
from tests.grid_twin import (
    FACTORS,
    D,
    Twin,
    Unit,
    after,
    arrays_of,
    black,
    book,
    book_rows,
    cube,
    number,
    tight_arrays,
    unit_row,
    wide,
)

pytestmark = pytest.mark.slow

VECTORS = Path(__file__).parent / "vectors" / "venues"
# Requirements of units are rounded to 4.5e-13; profits of some 1e5 are differences of prices that agree in many digits.
RELATIVE = 2e-12
ABSOLUTE = 1e-7
HOURS_24 = 1.0 / 365.0

requirements_of = eqx.filter_jit(lambda units, shocks, rows: unit_requirements(units, shocks, rows, elapsed_years=0.0))
profits_of = jax.jit(jax.vmap(grid_profits))
mark_values_of = jax.jit(jax.vmap(option_mark_values))
in_scenarios = eqx.filter_jit(unit_maintenance)


def requirements(rows: Sequence[UnitRow], sizes: UnitSizes | None = None) -> np.ndarray:
    """(initial, maintenance) of every unit today, [U, 2]."""
    found = requirements_of(arrays_of(rows, sizes), jnp.zeros(len(FACTORS)), cube())
    return np.stack(found, axis=1)[: len(rows)]


# ---- against the twin ------------------------------------------------------------------------------------------------


def test_requirements_equal_the_twin() -> None:
    got = requirements(book_rows())
    for found, (unit, grid) in zip(got, book(), strict=True):
        # A loss is rounded before it is multiplied; on the edge of a digit the two may fall to different sides.
        np.testing.assert_allclose(found, Twin(unit, grid).requirement(), rtol=RELATIVE, atol=ABSOLUTE)


def test_every_part_decides_somewhere() -> None:
    """Without this the comparison above might never see a charge."""
    seen: dict[str, int] = dict.fromkeys(("worst", "basis", "floor", "reported", "roll", "shock", "least"), 0)
    for unit, grid in book():
        twin = Twin(unit, grid)
        scale = twin.spot if twin.in_coin else twin.stable
        floor, roll, shock, least = twin.charges()
        worst = max(0.0, *(-twin.profit(point) for point in grid.scenarios)) * scale
        parts = {
            "worst": worst,
            "basis": twin.basis() * scale,
            "floor": floor,
            "reported": float(grid.reported_worst) * twin.stable,
        }
        largest = max(parts, key=lambda name: parts[name])
        seen[largest] += parts[largest] > 0
        seen["roll"] += roll > 0
        seen["shock"] += shock > 0
        seen["least"] += least > parts[largest] + roll + shock + float(grid.reported_add_on) * twin.stable
    assert min(seen.values()) > 0, seen


def test_profits_equal_the_twin() -> None:
    arrays = arrays_of(book_rows())
    profits = np.asarray(profits_of(arrays.market, arrays.grid))
    for found, (unit, grid) in zip(profits, book(), strict=False):
        twin, count = Twin(unit, grid), len(grid.scenarios)
        expected = [twin.profit(point) for point in grid.scenarios]
        tolerance = ABSOLUTE / (unit["spot"] if twin.in_coin else 1.0)
        np.testing.assert_allclose(found[:count], expected, rtol=1e-11, atol=tolerance)
        assert not found[count:].any()


def test_scenarios_equal_the_twin_of_the_moved_unit() -> None:
    rng = np.random.default_rng(5)
    shocks = rng.normal(size=(TILE, len(FACTORS))) * [0.03, 0.2, 0.3]
    shocks[0] = 0.0
    got = np.asarray(in_scenarios(tight_arrays(), jnp.asarray(shocks), cube(), jnp.full(len(shocks), HOURS_24)))
    assert got.shape[1] == TILE
    for found, (unit, grid) in zip(got, book(), strict=False):
        for scenario in (0, 1, 2, TILE - 1):
            peg, price, vol = shocks[scenario]
            moved = after(unit, price=price, vol=vol, peg=peg, years=HOURS_24)
            expected = Twin(moved, grid).requirement()[1]
            np.testing.assert_allclose(found[scenario], expected, rtol=1e-10, atol=ABSOLUTE)


def test_mark_values_equal_the_twin() -> None:
    values = np.asarray(mark_values_of(arrays_of(book_rows()).market))
    for found, (unit, _) in zip(values, book(), strict=False):
        for value, option in zip(found, unit["options"], strict=False):
            years, forward, rate, _ = unit["expiries"][option["expiry"]]
            price, _ = black(forward, option["strike"], years, option["vol"], option["call"])
            price *= math.exp(-rate * years)
            usd = (price + option["mark_offset"]) * (option["money"] or unit["stable"])
            if option["inverse"]:
                usd = (price / forward + option["mark_offset"]) * unit["spot"]
            expected = option["quantity"] * usd / unit["stable"]
            assert value == pytest.approx(expected, rel=1e-11, abs=ABSOLUTE)


# ---- what must not matter --------------------------------------------------------------------------------------------


def plain(unit: Unit) -> Unit:
    """Without whatever is not in every program: quotes and further delta-one holdings."""
    neutral = {"inverse": False, "money": 0.0, "mark_offset": 0.0, "delta_offset": 0.0, "entry": 0.0}
    return unit | {"options": [o | neutral for o in unit["options"]], "delta_one": []}


def test_more_padding_gives_the_same_bits() -> None:
    rows = book_rows()
    np.testing.assert_array_equal(requirements(rows, unit_sizes(rows)), requirements(rows, wide()))
    np.testing.assert_array_equal(requirements(rows, unit_sizes(crowd())), requirements(rows, wide()))


@functools.cache
def plain_rows() -> tuple[UnitRow, ...]:
    """Half of the book without quotes, futures, charges and a look-ahead."""
    off: dict[str, Any] = dict.fromkeys(("delta_floor", "roll", "delta_shock", "minimum")) | {"look_ahead_days": D(0)}
    return tuple(unit_row(plain(unit), grid.model_copy(update=off)) for unit, grid in book()[:32])


def crowd() -> list[UnitRow]:
    """The plain units among all of the book and one with a form per contract."""
    contract = ContractMargin(short_call_initial=ContractRate(spot_rate=D("0.1")))
    return [*plain_rows(), *book_rows(), unit_row(book()[0][0], None, contract=contract)]


def test_neighbors_with_more_give_the_same_bits() -> None:
    """A unit without quotes, futures, charges and a look-ahead, alone and in a book that has all of them."""
    rows = plain_rows()
    sizes, shared = unit_sizes(rows), unit_sizes(crowd())
    assert sizes[-5:] == (False, False, False, 0, 0)
    assert shared[-5:-2] == (True, True, True)
    np.testing.assert_array_equal(requirements(crowd(), shared)[: len(rows)], requirements(rows, sizes))


def test_no_move_at_once_is_today() -> None:
    rows = book_rows()
    today = requirements(rows)[:, 1]
    moved = in_scenarios(tight_arrays(), jnp.zeros((TILE, len(FACTORS))), cube(), jnp.zeros(TILE))
    np.testing.assert_array_equal(np.asarray(moved)[: len(rows), 7], today)


def test_empty_units_need_nothing_and_are_finite() -> None:
    empty = {
        "spot": 0.0,
        "stable": 1.0,
        "perp": (0.0, 0.0),
        "collateral": [],
        "expiries": [(0.0, 0.0, 0.0, 1.0)],
        "options": [],
        "delta_one": [],
    }
    nothing: dict[str, Any] = {"reported_worst": D(0), "reported_add_on": D(0)}
    rows = [unit_row(empty, grid.model_copy(update=nothing)) for _, grid in book()]
    assert not requirements(rows, wide()).any()


def test_quantities_of_zero_change_nothing() -> None:
    rows, more = [], []
    for unit, grid in book()[:32]:
        ghost = {"quantity": 0.0, "price": unit["spot"], "confidence": 1.0, "inverse": True, "money": 1.0, "expiry": 1}
        rows.append(unit_row(unit, grid))
        more.append(unit_row(unit | {"delta_one": [*unit["delta_one"], ghost]}, grid))
    np.testing.assert_array_equal(requirements(more, wide()), requirements(rows, wide()))


# ---- figures by hand -------------------------------------------------------------------------------------------------


def shock(**changes: Any) -> VolShock:
    values = dict.fromkeys(
        ("range_up", "range_down", "short_term_power", "long_term_power", "dte_floor_days", "min_vol_up"), D(0)
    )
    return VolShock(**(values | changes))


def grid_of(*points: tuple[str, str], **parameters: Any) -> PriceVolGrid:
    """A grid of (spot, dampening) points without vol moves."""
    values: dict[str, Any] = {"initial_factor": D(1), "maintenance_factor": D(1), "vol_shock": shock()} | parameters
    return PriceVolGrid(scenarios=tuple(GridPoint(spot=D(s), dampening=D(d)) for s, d in points), **values)


def holding(quantity: float, price: float, **changes: Any) -> dict[str, Any]:
    base = {
        "quantity": quantity,
        "price": price,
        "confidence": 1.0,
        "inverse": False,
        "money": 0.0,
        "expiry": -1,
    }
    return base | changes


def simple(spot: float = 100.0, **changes: Any) -> Unit:
    base = {
        "spot": spot,
        "stable": 1.0,
        "perp": (0.0, spot),
        "collateral": [],
        "expiries": [(0.5, spot, 0.0, 1.0)],
        "options": [],
        "delta_one": [],
    }
    return base | changes


def needed(unit: Unit, grid: PriceVolGrid) -> float:
    return float(requirements([unit_row(unit, grid)])[0, 1])


def test_inverse_contract_in_coins_and_in_dollars() -> None:
    # 1,000 dollars at a price of 100 are 10 coins. A fall to 80: 1000 (1/80 - 1/100) = 2.5 coins, worth 200 dollars.
    fall = grid_of(("0.8", "1"), profit_in="coin")
    short_usd = holding(10.0, 100.0, inverse=True, money=1.0)
    in_coins = simple(stable=100.0, delta_one=[short_usd])
    assert needed(in_coins, fall) == pytest.approx(2.5, rel=1e-12)
    # Valued at today's price in the dollar account, as the form says.
    assert needed(simple(delta_one=[short_usd]), fall) == pytest.approx(250.0, rel=1e-12)
    assert needed(simple(delta_one=[short_usd]), grid_of(("0.8", "1"))) == pytest.approx(200.0, rel=1e-12)


def test_inverse_and_linear_of_one_size_hedge_in_dollars() -> None:
    hedged = simple(perp=(-10.0, 100.0), delta_one=[holding(10.0, 100.0, inverse=True, money=1.0)])
    assert needed(hedged, grid_of(("0.8", "1"), ("1.2", "1"))) == 0.0


def test_profit_moves_to_zero_and_no_further() -> None:
    grid = PriceVolGrid(
        scenarios=(GridPoint(spot=D("0.5"), dampener=D(20)), GridPoint(spot=D("0.9"), dampener=D("9.9"))),
        vol_shock=shock(),
        initial_factor=D(1),
        maintenance_factor=D(1),
    )
    assert needed(simple(perp=(1.0, 100.0)), grid) == pytest.approx(30.0)
    assert needed(simple(perp=(0.3, 100.0)), grid) == 0.0


def test_rounding_of_the_worst() -> None:
    grid = grid_of(("0.5", "1"), profit_in="coin", round_digits=3)
    unit = simple(stable=100.0, delta_one=[holding(1.23456, 100.0, inverse=True, money=1.0)])
    assert needed(unit, grid) == pytest.approx(1.235, abs=1e-12)


def test_loss_against_the_mark() -> None:
    """A call marked 3 above its model price loses them even where nothing moves."""
    option = {"quantity": 2.0, "strike": 100.0, "call": True, "vol": 0.5, "expiry": 0, "inverse": False}
    option |= {"money": 0.0, "mark_offset": 3.0, "delta_offset": 0.0, "entry": 0.0}
    grid = grid_of(("1", "1"))
    assert needed(simple(options=[option]), grid) == pytest.approx(0.0, abs=1e-12)
    at_mark = grid.model_copy(update={"value_today": "mark"})
    assert needed(simple(options=[option]), at_mark) == pytest.approx(6.0, rel=1e-9)


def test_profit_shrinks_in_the_settlement_window() -> None:
    grid = grid_of(("0.8", "1"), settlement_window_s=D(1800), settlement_scales_profit=True)
    quarter = [(450 / 86400 / 365, 100.0, 0.0, 1.0)]
    dated = simple(expiries=quarter, delta_one=[holding(1.0, 100.0, expiry=0)])
    assert needed(dated, grid) == pytest.approx(5.0, rel=1e-12)
    assert needed(simple(expiries=quarter, delta_one=[holding(1.0, 100.0)]), grid) == pytest.approx(20.0, rel=1e-12)


def test_time_passes_in_the_points() -> None:
    """A long straddle loses its time value in a day where nothing moves."""
    years = 2 / 365
    option = {"quantity": 1.0, "strike": 100.0, "call": True, "vol": 0.6, "expiry": 0, "inverse": False}
    option |= {"money": 0.0, "mark_offset": 0.0, "delta_offset": 0.0, "entry": 0.0}
    unit = simple(expiries=[(years, 100.0, 0.0, 1.0)], options=[option, option | {"call": False}])
    grid = grid_of(("1", "1"), look_ahead_days=D(1))
    today, tomorrow = (black(100.0, 100.0, t, 0.6, True)[0] for t in (years, years / 2))
    assert needed(unit, grid) == pytest.approx(2 * (today - tomorrow), rel=1e-9)
    assert needed(unit, grid.model_copy(update={"look_ahead_days": D(5)})) == pytest.approx(2 * today, rel=1e-9)


def test_a_future_nets_with_the_options_of_its_date_alone() -> None:
    roll = grid_of(("1", "1"), roll=RollShock(annual_move=D("0.1"), minimum=D("0.01"), law="linear"))
    dates = [(0.5, 100.0, 0.0, 1.0), (1.0, 100.0, 0.0, 1.0)]
    deep = {"quantity": 1.0, "strike": 1e-3, "call": True, "vol": 0.1, "expiry": 0, "inverse": False}
    deep |= {"money": 0.0, "mark_offset": 0.0, "delta_offset": 0.0, "entry": 0.0}
    for expiry, expected in ((0, 0.0), (1, 100 * (0.05 + 0.1)), (-1, 100 * (0.05 + 0.01))):
        unit = simple(expiries=dates, options=[deep], delta_one=[holding(-1.0, 100.0, expiry=expiry)])
        assert needed(unit, roll) == pytest.approx(expected, rel=1e-12, abs=1e-9)


def test_further_perps_count_in_gross_perp_and_futures_do_not() -> None:
    charge = Contingency(measure="gross_perp", price="perp_mark", maintenance_rate=D("0.1"))
    held = [holding(-2.0, 101.0), holding(3.0, 102.0, inverse=True, money=1.0), holding(5.0, 103.0, expiry=0)]
    unit = simple(perp=(1.0, 100.0), delta_one=held)
    (found,) = requirements([unit_row(unit, None, contingencies=(charge,))])
    assert found[1] == pytest.approx(0.1 * (100 + 202 + 306), rel=1e-12)


def test_parameters_that_cannot_be_packed_are_refused() -> None:
    bad = grid_of(("1", "1"), minimum=MinimumCharge(delta_rate=D(1), floors=(D(0), D(5)), factors=(D(1),)))
    with pytest.raises(ValueError, match="ascend from 0"):
        pack_delta_charges(bad, 2)
    with pytest.raises(ValueError, match="ascend from 0"):
        pack_grid(bad.model_copy(update={"minimum": MinimumCharge(delta_rate=D(1), floors=(D(3),))}), 1)
    with pytest.raises(ValueError, match="2 slices, more than the 1"):
        pack_grid(bad, 1, slices=1)
    with pytest.raises(ValueError, match="looks ahead"):
        pack_grid(grid_of(("1", "1"), look_ahead_days=D(1)), 1, looks_ahead=False)


# ---- figures of the venues -------------------------------------------------------------------------------------------


def cases(venue: str, kind: str) -> list[dict[str, Any]]:
    found = json.loads((VECTORS / f"{venue}.json").read_text())["cases"]
    return [case for case in found if case["kind"] == kind]


def deribit_grid(params: Mapping[str, Any]) -> PriceVolGrid:
    """The risk matrix: moves by vol states, and the extended moves scaled to the edge of the table and dampened."""
    edge, buckets = D(str(params["price_range"])), int(params["buckets_each_side"])
    points = [
        GridPoint(spot=1 + edge * step / buckets, vol=vol)
        for step in range(-buckets, buckets + 1)
        for vol in ("up", "none", "down")
    ]
    for move in (D("-0.66"), D("-0.33"), D("0.5"), D(1), D(2), D(3), D(4), D(5)):
        end = 1 + edge.copy_sign(move)
        points.append(
            GridPoint(
                spot=1 + move,
                vol="up",
                dampening=D(str(params["extended_table_factor"])) * edge / abs(move) * (1 + move) / end,
                dampener=max(abs(move) / edge - 1, D(0)) * D(str(params["extended_dampener_usd"])) / end,
            )
        )
    return PriceVolGrid(
        scenarios=tuple(points),
        vol_shock=shock(short_below_30_days=True),
        initial_factor=D(1),
        maintenance_factor=D(str(params["mm_factor"])),
        profit_in="coin",
        round_digits=9,
        roll=RollShock(
            annual_move=D(str(params["annualised_move_risk"])), minimum=D(str(params["min_annualised_move"]))
        ),
        delta_shock=DeltaShock(
            threshold=D(str(params["delta_total_liq_shock_threshold_usd"])),
            increment=D("0.00005"),
            largest=D(str(params["max_delta_shock"])),
        ),
    )


@pytest.mark.parametrize("case", cases("deribit", "deribit_pm_matrix"), ids=lambda case: case["name"])
def test_deribit_risk_matrix(case: dict[str, Any]) -> None:
    """In a coin account; what lies on top of the matrix is not the grid's."""
    inputs, expected = case["inputs"], case["expected"]
    spot = inputs["index_price"]
    dates = sorted({p["years_to_expiry"] for p in inputs["positions"] if p["years_to_expiry"] > 0})
    held = [
        holding(
            p["size_base"],
            spot * 1.001,
            inverse=True,
            money=1.0,
            expiry=dates.index(p["years_to_expiry"]) if p["years_to_expiry"] > 0 else -1,
        )
        for p in inputs["positions"]
    ]
    unit = simple(spot, stable=spot, expiries=[(t, spot * 1.001, 0.0, 1.0) for t in dates], delta_one=held)
    grid = deribit_grid(inputs["params"])
    (found,) = requirements([unit_row(unit, grid)])
    assert found[0] == pytest.approx(expected["risk_matrix_margin"], rel=1e-8, abs=1e-10)
    assert found[1] == pytest.approx(expected["maintenance_margin"], rel=1e-8, abs=1e-10)
    arrays = arrays_of([unit_row(unit, grid)])
    profits = np.asarray(profits_of(arrays.market, arrays.grid))[0]
    assert profits[0] == pytest.approx(expected["aggregated_standard_first"], rel=1e-8)
    # Gains count nothing there, and they never are the worst.
    np.testing.assert_allclose(np.minimum(profits[27:35], 0.0), expected["aggregated_extended"], atol=1e-10)
    other = sum(inputs["other"].values())
    assert round(float(found[0]) + other, 9) == pytest.approx(expected["initial_margin"], rel=1e-8, abs=1e-10)


def paradex_grid(config: Mapping[str, Any]) -> PriceVolGrid:
    vol = config["vol_shock_params"]
    return PriceVolGrid(
        scenarios=tuple(
            GridPoint(spot=1 + number(s), vol_move=number(v), dampening=number(w)) for s, v, w in config["scenarios"]
        ),
        vol_shock=shock(
            short_term_power=number(vol["vega_power_short_dte"]),
            long_term_power=number(vol["vega_power_long_dte"]),
            dte_floor_days=number(vol["dte_floor_days"]),
            min_vol_up=number(vol["min_vol_shock_up"]),
            short_below_30_days=True,
        ),
        initial_factor=D(1),
        maintenance_factor=number(config["mmf_factor"]),
        forward="spot",
        value_today="mark",
        settlement_window_s=D(1800),
        settlement_scales_profit=True,
        delta_floor=DeltaFloor(
            unhedged=number(config["unhedged_margin_factor"]), hedged=number(config["hedged_margin_factor"])
        ),
    )


def paradex_unit(inputs: Mapping[str, Any]) -> Unit:
    """The positions of a case; the venue's marks and deltas as offsets to the model's."""
    spot, rate = inputs["spot"], inputs["rate"]
    dates = sorted({p["dte"] / 365 for p in inputs["positions"] if p["kind"] == "option"}) or [0.1]
    forwards = {t: spot * math.exp(rate * t) for t in dates}
    options = []
    for p in inputs["positions"]:
        if p["kind"] != "option":
            continue
        years = p["dte"] / 365
        discount = math.exp(-rate * years)
        model = option_model(
            forwards[years], p["strike"], years=years, vol=p["mark_iv"], is_call=p["is_call"], discount=discount
        )
        options.append(
            {
                "quantity": p["size"],
                "strike": p["strike"],
                "call": p["is_call"],
                "vol": p["mark_iv"],
                "expiry": dates.index(years),
                "inverse": False,
                "money": 0.0,
                "mark_offset": p["mark"] - model.price,
                "delta_offset": p["delta"] - model.delta / discount,
                "entry": 0.0,
            }
        )
    return simple(
        spot,
        perp=(sum(p["size"] for p in inputs["positions"] if p["kind"] == "perp"), inputs["perp_mark"]),
        expiries=[(t, forwards[t], rate, 1.0) for t in dates],
        options=options,
    )


def test_paradex_portfolio_margin_of_positions() -> None:
    """The venue's SDK approximates the normal distribution to 1.5e-7, hence the tolerance of the cases.

    Funding and fee provisions are amounts of quantities and marks, no part of the grid.
    """
    found = cases("paradex", "paradex_pm")
    assert len(found) == 24
    rows = [unit_row(paradex_unit(c["inputs"]), paradex_grid(c["inputs"]["pm_config"])) for c in found]
    for (initial, maintenance), case in zip(requirements(rows), found, strict=True):
        inputs, expected = case["inputs"], case["expected"]
        perps = sum(p["size"] for p in inputs["positions"] if p["kind"] == "perp")
        hours = inputs["pm_config"]["funding_provision_hour"]
        funding = max(0.0, inputs["funding_8h"] * perps * inputs["spot"] * hours / 8)
        assert maintenance + funding + expected["fee_provision_mmr"] == pytest.approx(
            expected["mmr"], rel=1e-4, abs=0.01
        ), case["name"]
        if not inputs["orders"]:
            loss = max(expected["worst_loss"], expected["delta_min"])
            assert initial == pytest.approx(loss, rel=1e-4, abs=0.01), case["name"]


def test_paradex_delta_floor() -> None:
    (case,) = cases("paradex", "paradex_pm_mindelta")
    inputs = case["inputs"]
    grid = grid_of(
        ("1", "1"),
        delta_floor=DeltaFloor(
            unhedged=number(inputs["unhedged_margin_factor"]), hedged=number(inputs["hedged_margin_factor"])
        ),
    )
    unit = simple(inputs["spot"], delta_one=[holding(delta, inputs["spot"]) for delta in inputs["deltas"]])
    assert needed(unit, grid) == pytest.approx(case["expected"]["min_delta_risk"], rel=1e-9)


@pytest.mark.parametrize("case", cases("okx", "okx_pm_unit"), ids=lambda case: case["name"])
def test_okx_risk_unit(case: dict[str, Any]) -> None:
    inputs, expected = case["inputs"], case["expected"]
    move, extreme = D(str(inputs["max_price_move"])), D(str(inputs["extreme_price_move"]))
    steps = [move * step / 3 for step in range(-3, 4)]
    points = [GridPoint(spot=1 + m, vol=v) for m in steps for v in ("up", "none", "down")]
    points += [GridPoint(spot=1 + sign * extreme, dampening=D("0.5")) for sign in (-1, 1)]
    grid = PriceVolGrid(
        scenarios=tuple(points),
        vol_shock=shock(),
        initial_factor=number(inputs["im_factor"]),
        maintenance_factor=D(1),
        roll=RollShock(annual_move=D("0.05"), minimum=number(inputs["mr4_rate"]), law="linear"),
        minimum=MinimumCharge(delta_rate=number(inputs["mr7_rate"])),
    )
    # The delta counts at the index, the profit at the price that the example's own grid implies.
    spot = 97049.03689800001
    quantity = inputs["delta_usd"] / spot
    unit = simple(spot, perp=(quantity, -inputs["mr1_loss_at_max_move"] / float(move) / quantity))
    (found,) = requirements([unit_row(unit, grid)])
    np.testing.assert_allclose(found, [expected["imr"], expected["mmr"]], rtol=1e-8)
    alone = grid.model_copy(update={"scenarios": (GridPoint(spot=D(1)),), "roll": None})
    assert needed(unit, alone) == pytest.approx(expected["mr7"], rel=1e-9)


@pytest.mark.parametrize("case", cases("okx", "okx_pm_mr7"), ids=lambda case: case["name"])
def test_okx_minimum_charge_by_slices(case: dict[str, Any]) -> None:
    inputs, expected = case["inputs"], case["expected"]
    floors = (D(0), *(number(bound) for bound, _ in inputs["tiers"] if bound is not None))
    grid = grid_of(
        ("1", "1"),
        reported_worst=number(inputs.get("mr_before_mr7", 0)),
        minimum=MinimumCharge(
            delta_rate=D("0.01"), floors=floors, factors=tuple(number(factor) for _, factor in inputs["tiers"])
        ),
    )
    unit = simple(100.0, perp=(inputs["mr7_raw"], 100.0))
    assert needed(unit, grid) == pytest.approx(expected.get("mmr", expected["mr7_scaled"]), rel=1e-9)
    assert needed(unit, grid.model_copy(update={"reported_worst": D(0)})) == pytest.approx(
        expected["mr7_scaled"], rel=1e-9
    )


def test_okx_spot_hedge_pays_the_minimum_charge_of_its_derivatives() -> None:
    """10 BTC against as many short perpetuals: no price risk, yet MR7 is 3,020.17 (announcement of May 2024)."""
    price = 3020.17 / 0.0045 / 10
    unit = simple(price, perp=(-10.0, price), collateral=[(10.0, price, 1.0)])
    grid = grid_of(("0.85", "1"), ("1.15", "1"), minimum=MinimumCharge(delta_rate=D("0.0045")))
    assert needed(unit, grid) == pytest.approx(3020.17, rel=1e-9)
