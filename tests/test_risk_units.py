"""Rows of risk units from canonical tables: which holdings, which rules, what the venue says beside the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from aggregator.cube import CubeBuilder
from aggregator.errors import FailureReason
from aggregator.market import IncompleteAccountError, Market
from aggregator.pricing import black76_greeks, black76_price
from aggregator.risk_units import (
    DeltaOneRow,
    UnitRow,
    forward_is_spot,
    option_model,
    risk_unit_rows,
)
from aggregator.rule_forms import (
    Component,
    Contingency,
    ContractMargin,
    ContractRate,
    DeltaFloor,
    ExpiryMaxLoss,
    Form,
    GridPoint,
    MinimumCharge,
    OptionFormula,
    PriceVolGrid,
    TieredNotional,
    Verdict,
    VolShock,
    WeightedValue,
    component_rows,
)
from tests.engine_accounts import account, balance, position
from tests.engine_book import snapshot_of
from tests.engine_markets import AS_OF, EXPIRIES, SPOT, Rows, mark, market_rows, merged, option_id, rows

D = Decimal
RTOL = 1e-12
NAME = "desk:x"

JUNE = EXPIRIES[3]
CALL = option_id("options", "BTC", 3, 60000, "call")
PUT = option_id("coin", "BTC", 3, 55000, "put")
YEARS = (JUNE - AS_OF).total_seconds() / (365 * 86400)
SUBJECT = f"BTC@{JUNE:%Y-%m-%dT%H:%M:%SZ}"


def grid(**parameters: Any) -> PriceVolGrid:
    numbers: dict[str, Any] = dict.fromkeys(
        ("short_term_power", "long_term_power", "dte_floor_days", "min_vol_up"), D(0)
    )
    base: dict[str, Any] = {
        "scenarios": (GridPoint(spot=D("0.9")),),
        "vol_shock": VolShock(**numbers),
        "initial_factor": D(1),
        "maintenance_factor": D(1),
    }
    return PriceVolGrid(**(base | parameters))


FORMULA = OptionFormula.model_validate(dict.fromkeys(OptionFormula.model_fields, D("0.1")))
MAX_LOSS = ExpiryMaxLoss(per_contract=FORMULA, unpaired_initial_scale=D(1), unpaired_maintenance_scale=D(1))
SHORT = ContractRate(spot_rate=D("0.1"))
CONTRACT = ContractMargin(short_call_initial=SHORT, short_put_initial=SHORT)


def instruments() -> Rows:
    """What the common market lacks: dated futures of the options' date, a spot pair."""

    def row(instrument_id: str, kind: str, settlement: str, **columns: Any) -> dict[str, Any]:
        base = {"instrument_id": instrument_id, "venue": "desk", "symbol": instrument_id, "kind": kind}
        return (
            base
            | {
                "underlying": "BTC",
                "settlement_asset": settlement,
                "payoff": "linear",
                "contract_size": "1",
            }
            | columns
        )

    return rows(
        instruments=[
            row("desk:BTC-PERP", "perp", "USDC", contract_size="0.01"),
            row("desk:BTC-PERP-USDT", "perp", "USDT"),
            row("desk:BTC-PERP-INVERSE", "perp", "BTC", payoff="inverse", contract_size="100"),
            row("desk:BTC-JUNE", "future", "USDC", expiry=JUNE),
            row("desk:BTC-JUNE-INVERSE", "future", "BTC", payoff="inverse", contract_size="10", expiry=JUNE),
            row("desk:BTC-SOMETIME", "future", "USDC"),
            row("desk:BTC-SPOT", "spot", "USDC"),
        ],
        marks=[
            *(mark("desk", asset, "oracle", price) for asset, price in SPOT.items()),
            mark("desk", "USDT", "index", 0.9712),
            mark("desk", "desk:BTC-PERP", "mark", 62010.0, confidence=0.9),
            mark("desk", "desk:BTC-PERP-USDT", "mark", 63800.0),
            mark("desk", "desk:BTC-PERP-INVERSE", "mark", 62100.0, confidence=0.7),
            mark("desk", "desk:BTC-JUNE", "mark", 63000.0),
            mark("desk", "desk:BTC-JUNE-INVERSE", "mark", 63010.0),
            mark("desk", "desk:BTC-SOMETIME", "mark", 63000.0),
            mark("desk", "desk:BTC-SPOT", "mark", 62000.0),
        ],
    )


def option_marks(*, forward: bool = True, **values: float) -> Rows:
    """Marks on `desk` of both options, and more of the call by field."""
    marks = [mark("desk", name, "implied_vol", vol) for name, vol in ((CALL, 0.6), (PUT, 0.7))]
    marks += [mark("desk", CALL, name, value) for name, value in values.items()]
    if forward:
        marks.append(mark("desk", SUBJECT, "forward", 63100.0))
    return rows(marks=marks)


def built(
    requirement: Sequence[Form],
    *positions: tuple[str, float] | dict[str, Any],
    unit: str = "USDC",
    options: str = "model",
    more: Sequence[Rows] = (),
    balances: Sequence[dict[str, Any]] = (),
) -> list[UnitRow]:
    """Rows of an account on the venue `desk` under requirement forms."""
    components = [
        Component(side="equity", parameters=WeightedValue(options=options)),  # type: ignore[arg-type]
        *(Component(side="requirement", parameters=form) for form in requirement),
        Component(side="verdict", parameters=Verdict(liquidates_when="below")),
    ]
    held = [one if isinstance(one, dict) else position(NAME, *one) for one in positions]
    tables = merged(
        market_rows(),
        instruments(),
        rows(
            accounts=[account(NAME, "desk", unit) | {"venue": "desk"}],
            positions=held,
            balances=balances,
            rule_sets=component_rows("desk", components, source="test"),
        ),
        *more,
    )
    snapshot = snapshot_of(tables)
    assert not snapshot.failures
    market = Market(snapshot, CubeBuilder(), AS_OF, frozenset())
    price, _ = market.asset_price("desk", NAME, unit)
    row = market.accounts[NAME]
    return risk_unit_rows(market, row, requirement, unit_price=price, unit_exponents=market.exponents(unit))


def only(found: Sequence[UnitRow]) -> UnitRow:
    (unit,) = found
    return unit


def refused(requirement: Sequence[Form], *positions: Any, **other: Any) -> IncompleteAccountError:
    with pytest.raises(IncompleteAccountError) as caught:
        built(requirement, *positions, **other)
    return caught.value


# ---- holdings --------------------------------------------------------------------------------------------------------


def test_the_first_linear_perp_of_the_own_unit_has_the_place_of_the_perp() -> None:
    unit = only(built([grid()], ("desk:BTC-PERP-INVERSE", 621.0), ("desk:BTC-PERP-USDT", -2.0), ("desk:BTC-PERP", 50)))
    assert unit.perp == (0.5, 62010.0, 0.9)
    assert unit.delta_one == (
        DeltaOneRow(1.0, 62100.0, 0.7, True, 1.0, -1, 1.0),
        DeltaOneRow(-2.0, 63800.0, 1.0, False, 0.9712, -1, 1.0),
    )
    assert unit.expiries == ()
    assert unit.quotes == ()


def test_both_sides_of_a_hedge_mode_are_held() -> None:
    sides = [
        position(NAME, "desk:BTC-PERP", quantity, side_mode=side) for quantity, side in ((300, "long"), (-100, "short"))
    ]
    unit = only(built([grid()], *sides))
    assert unit.perp[0] == 3.0
    assert [row.quantity for row in unit.delta_one] == [-1.0]


def test_futures_share_the_expiry_of_the_options_of_their_date() -> None:
    held = (("desk:BTC-JUNE", 2.0), ("desk:BTC-JUNE-INVERSE", -6301.0))
    unit = only(built([grid()], *held))
    assert [(row.quantity, row.expiry, row.is_inverse) for row in unit.delta_one] == [(2.0, 0, False), (-1.0, 0, True)]
    assert unit.expiries[0][0] == pytest.approx(YEARS, rel=RTOL)
    early = option_id("options", "BTC", 1, 60000, "call")
    more = merged(option_marks(), rows(marks=[mark("desk", early, "implied_vol", 0.5)]))
    more["marks"].append(mark("desk", f"BTC@{EXPIRIES[1]:%Y-%m-%dT%H:%M:%SZ}", "forward", 62100.0))
    unit = only(built([grid()], *held, (CALL, 1.0), (early, 1.0), more=[more]))
    assert [row.expiry for row in unit.delta_one] == [1, 1]
    assert [option[4] for option in unit.options] == [0, 1]
    # The options' own forward is not the future's price.
    assert [expiry[1] for expiry in unit.expiries] == [62100.0, 63100.0]


def test_what_cannot_stand_in_a_unit() -> None:
    found = refused([grid()], ("desk:BTC-SPOT", 1.0))
    assert found.reason == FailureReason.UNSUPPORTED
    assert "spot desk:BTC-SPOT in a risk unit" in str(found)
    found = refused([grid()], ("desk:BTC-SOMETIME", 1.0))
    assert found.reason == FailureReason.MISSING_FIELD
    assert "no expiry of the future desk:BTC-SOMETIME" in str(found)
    found = refused([MAX_LOSS], (PUT, 1.0), more=[option_marks()])
    assert found.reason == FailureReason.UNSUPPORTED
    assert "under a maximum loss" in str(found)
    found = refused([FORMULA], (CALL, 1.0), more=[option_marks()])
    assert "outside of an expiry_max_loss" in str(found)


# ---- which rules apply -----------------------------------------------------------------------------------------------


def test_the_form_that_names_the_underlying_wins() -> None:
    common, of_btc, of_sol = grid(), grid(underlyings=("BTC", "ETH")), grid(underlyings=("SOL",))
    assert only(built([common, of_btc, of_sol], ("desk:BTC-PERP", 1))).grid == of_btc
    assert only(built([common, of_sol], ("desk:BTC-PERP", 1))).grid == common
    charges = [
        Contingency(measure="gross_perp", maintenance_rate=D("0.1"), underlyings=names)
        for names in ((), ("BTC",), ("ETH",))
    ]
    assert only(built([common, *charges], ("desk:BTC-PERP", 1))).contingencies == tuple(charges[:2])


@pytest.mark.parametrize(
    ("forms", "what"),
    [
        ((grid(), grid()), "several grids for BTC"),
        ((grid(underlyings=("BTC",)), grid(underlyings=("BTC", "ETH")), grid()), "several grids for BTC"),
        ((MAX_LOSS, MAX_LOSS), "several maximum losses for BTC"),
        ((CONTRACT, CONTRACT), "several contract margins for BTC"),
    ],
)
def test_two_candidates_are_refused(forms: Sequence[Form], what: str) -> None:
    found = refused(forms, (CALL, 1.0), more=[option_marks()])
    assert found.reason == FailureReason.UNSUPPORTED
    assert what in str(found)


def test_what_no_rule_charges_is_refused() -> None:
    of_eth = {"underlyings": ("ETH",)}
    for form in (grid(**of_eth), MAX_LOSS.model_copy(update=of_eth), CONTRACT.model_copy(update=of_eth)):
        found = refused([form], (CALL, 1.0), more=[option_marks()])
        assert found.reason == FailureReason.MISSING_PARAMETER
        assert "says nothing of BTC" in str(found)
    assert refused([grid(**of_eth)], ("desk:BTC-PERP", 1)).reason == FailureReason.MISSING_PARAMETER
    # Where positions have tiers of their own, a future needs no grid.
    assert built([grid(**of_eth), TieredNotional()], ("desk:BTC-PERP", 1)) == []


def test_a_unit_that_nothing_charges_has_no_row() -> None:
    assert built([CONTRACT], ("desk:BTC-PERP", 1), balances=[balance(NAME, "ETH", 1.0)]) == []
    unit = only(built([CONTRACT], ("desk:BTC-PERP", 1), (CALL, -1.0), more=[option_marks()]))
    # Under the contract form alone a perp is no part of the unit.
    assert (unit.perp[0], unit.contract, unit.grid) == (0.0, CONTRACT, None)


def test_slices_that_are_none() -> None:
    bad = grid(minimum=MinimumCharge(delta_rate=D(1), floors=(D(5),), factors=(D(1),)))
    found = refused([bad], ("desk:BTC-PERP", 1))
    assert found.reason == FailureReason.INCONSISTENT
    assert "ascend from 0" in str(found)


# ---- options on spot -------------------------------------------------------------------------------------------------


def test_forward_of_options_on_spot() -> None:
    on_spot = grid(forward="spot")
    assert forward_is_spot("desk", [on_spot], "BTC")
    assert not forward_is_spot("desk", [grid()], "BTC")
    without = option_marks(forward=False)
    assert only(built([on_spot], (CALL, 1.0), more=[without])).expiries[0][1:3] == (SPOT["BTC"], 0.0)
    with_rate = merged(without, rows(marks=[mark("desk", SUBJECT, "rate", 0.05)]))
    _, forward, rate, _ = only(built([on_spot], (CALL, 1.0), more=[with_rate])).expiries[0]
    assert forward == pytest.approx(SPOT["BTC"] * math.exp(0.05 * YEARS), rel=RTOL)
    assert rate == 0.05
    assert refused([grid()], (CALL, 1.0), more=[without]).reason == FailureReason.MISSING_MARK


def test_a_negative_rate_of_options_on_spot() -> None:
    part = merged(option_marks(forward=False), rows(marks=[mark("desk", SUBJECT, "rate", -0.01)]))
    found = refused([grid(forward="spot")], (CALL, 1.0), more=[part])
    assert found.reason == FailureReason.UNSUPPORTED
    assert "a negative rate -0.01" in str(found)


# ---- what the venue says beside the model ----------------------------------------------------------------------------


def call_model() -> tuple[float, float]:
    return option_model(63100.0, 60000.0, years=YEARS, vol=0.6, is_call=True, discount=1.0)


def test_marks_count_where_a_rule_looks_at_them() -> None:
    part = option_marks(mark=9000.0)
    for forms, options, looks in (
        ([grid()], "model", False),
        ([grid()], "mark", True),
        ([grid(value_today="mark")], "model", True),
        ([CONTRACT], "excluded", True),
        ([MAX_LOSS], "model", False),
        ([MAX_LOSS], "mark", True),
    ):
        unit = only(built(forms, (CALL, -1.0), options=options, more=[part]))
        if looks:
            assert unit.quotes[0].mark_offset == pytest.approx(9000.0 - call_model()[0], rel=RTOL)
        else:
            assert unit.quotes == ()
    # Without a mark the model's price counts.
    assert only(built([grid(value_today="mark")], (CALL, -1.0), more=[option_marks()])).quotes == ()


def test_an_inverse_option_is_quoted_in_coins() -> None:
    part = merged(option_marks(), rows(marks=[mark("desk", PUT, "mark", 0.08)]))
    unit = only(built([grid(value_today="mark")], (PUT, 2.0), unit="BTC", more=[part]))
    model = option_model(63100.0, 55000.0, years=YEARS, vol=0.7, is_call=False, discount=1.0)
    (quote,) = unit.quotes
    assert quote.mark_offset == pytest.approx(0.08 - model.price / 63100.0, rel=1e-10)
    assert (quote.is_inverse, quote.money_usd) == (True, 1.0)
    assert unit.spot == unit.stable_price


def test_money_of_an_option_in_another_stable() -> None:
    unit = only(built([grid()], (CALL, 1.0), unit="USD", more=[option_marks()]))
    assert unit.quotes[0].money_usd == SPOT["USDC"]


def test_deltas_count_where_a_charge_looks_at_them() -> None:
    part = merged(option_marks(delta=0.5), rows(marks=[mark("desk", SUBJECT, "rate", 0.05)]))
    assert only(built([grid()], (CALL, 1.0), more=[part])).quotes == ()
    charged = grid(delta_floor=DeltaFloor(unhedged=D("0.02"), hedged=D("0.01")))
    discount = math.exp(-0.05 * YEARS)
    own = only(built([charged], (CALL, 1.0), more=[part])).quotes[0].delta_offset
    assert own == pytest.approx(0.5 - discount * call_model()[1], rel=1e-10)
    on_spot = only(built([charged.model_copy(update={"forward": "spot"})], (CALL, 1.0), more=[part]))
    forward = SPOT["BTC"] / discount
    delta = option_model(forward, 60000.0, years=YEARS, vol=0.6, is_call=True, discount=1.0).delta
    assert on_spot.quotes[0].delta_offset == pytest.approx(0.5 - delta, rel=1e-10)


def test_the_entry_price_is_read_where_it_counts() -> None:
    form = ContractMargin(short_call_initial=ContractRate(premium="larger_of_entry_and_mark"))
    short = position(NAME, CALL, -1.0, entry_price="8100.5")
    assert only(built([form], short, more=[option_marks()])).quotes[0].entry_price == 8100.5
    assert only(built([form], (CALL, 1.0), more=[option_marks()])).quotes == ()
    found = refused([form], (CALL, -1.0), more=[option_marks()])
    assert found.reason == FailureReason.MISSING_FIELD
    assert f"no entry price of {CALL}" in str(found)


def test_the_host_model_is_the_devices() -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        forward, strike = rng.uniform(50, 150, 2)
        years, vol = float(rng.choice([0.0, 0.01, 0.5])), float(rng.choice([0.0, 0.3, 1.2]))
        is_call, discount = bool(rng.random() < 0.5), float(rng.uniform(0.8, 1))
        if rng.random() < 0.2:
            strike = forward
        found = option_model(forward, strike, years=years, vol=vol, is_call=is_call, discount=discount)
        terms = {"years": years, "vol": vol, "is_call": is_call, "discount": discount}
        assert found.price == pytest.approx(float(black76_price(forward, strike, **terms)), rel=1e-12, abs=1e-12)
        assert found.delta == pytest.approx(float(black76_greeks(forward, strike, **terms).delta), rel=1e-12, abs=1e-15)
