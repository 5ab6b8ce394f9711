"""Parameters of the rule forms: to JSON text and back without loss of a digit; unknown keys are refused."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from aggregator.rule_forms import (
    FORMS,
    BasisContingency,
    Component,
    Confidence,
    Contingency,
    ContractMargin,
    ContractRate,
    DebtCharge,
    DeltaFloor,
    DeltaShock,
    ExpiryMaxLoss,
    Fixed,
    Form,
    GridPoint,
    MinimumCharge,
    OptionFormula,
    PegLoss,
    PriceVolGrid,
    RateOfSize,
    RollShock,
    SkewShock,
    StaticDiscount,
    TieredNotional,
    Verdict,
    VolShock,
    WeightedValue,
    component_rows,
    parse_parameters,
)
from aggregator.schema.casting import table_from_rows

numbers = st.decimals(allow_nan=False, allow_infinity=False)
"""Decimals of any length and exponent: a parameter is exactly what the venue publishes."""


def with_numbers(model: type[Form], **others: st.SearchStrategy[Any]) -> st.SearchStrategy[Form]:
    """Instances of `model` with any number in every field that `others` does not name."""
    return st.builds(model, **{name: numbers for name in model.model_fields if name not in others}, **others)


peg_losses = with_numbers(PegLoss)
option_formulas = with_numbers(OptionFormula)
points = st.one_of(
    with_numbers(GridPoint, vol=st.sampled_from(["up", "down", "none"]), vol_move=st.none() | numbers),
    with_numbers(
        GridPoint, vol_move=st.none(), vol=st.sampled_from(["skew_linear", "skew_abs"]), spot=st.just(Decimal(1))
    ),
)
measures = st.sampled_from(
    ["gross_perp", "naked_short_options", "short_options", "gross_options", "collateral", "collateral_usd"]
)
sides = st.sampled_from(["ignore", "worst_side", "worst_side_initial"])
symbols = st.lists(st.text(), max_size=3).map(tuple)
contract_rates = st.none() | with_numbers(
    ContractRate,
    cap_rate=st.none() | numbers,
    premium_cap=st.none() | numbers,
    premium=st.sampled_from(["none", "mark", "larger_of_entry_and_mark"]),
)
rates_by_asset = st.dictionaries(st.text(), numbers, max_size=3)
instances: dict[str, st.SearchStrategy[Form]] = {
    "tiered_notional": with_numbers(
        TieredNotional,
        initial=st.sampled_from(["leverage", "tier_rate", "tier_integral"]),
        basis=st.sampled_from(["mark", "entry"]),
        floors=st.sampled_from(["notional", "quantity"]),
        initial_at_least_maintenance=st.booleans(),
        orders=sides,
    ),
    "rate_of_size": with_numbers(
        RateOfSize,
        law=st.sampled_from(["linear", "integer_sqrt"]),
        initial=st.sampled_from(["rate", "leverage"]),
        orders=sides,
    ),
    "weighted_value": st.builds(
        WeightedValue,
        weights=st.sampled_from(["unit", "collateral_tiers"]),
        net_by_asset=st.booleans(),
        weighted_at=st.sampled_from(["unit", "usd"]),
        liabilities=st.sampled_from(["weighted", "unit"]),
        options=st.sampled_from(["model", "mark", "excluded"]),
    ),
    "debt_charge": with_numbers(
        DebtCharge, initial_rates=rates_by_asset, maintenance_rates=rates_by_asset, net_by_asset=st.booleans()
    ),
    "price_vol_grid": with_numbers(
        PriceVolGrid,
        scenarios=st.lists(points, min_size=1, max_size=4).map(tuple),
        vol_shock=with_numbers(VolShock, short_below_30_days=st.booleans()),
        skew=with_numbers(SkewShock),
        discount=with_numbers(StaticDiscount),
        basis=st.none() | with_numbers(BasisContingency),
        peg_loss=st.none() | peg_losses,
        settlement_scales_profit=st.booleans(),
        grid_collateral=symbols,
        underlyings=symbols,
        forward=st.sampled_from(["own", "spot"]),
        profit_in=st.sampled_from(["unit", "coin"]),
        round_digits=st.none() | st.integers(0, 18),
        value_today=st.sampled_from(["model", "mark"]),
        delta_floor=st.none() | with_numbers(DeltaFloor),
        roll=st.none()
        | with_numbers(RollShock, law=st.sampled_from(["exponential", "linear"]), collateral=st.booleans()),
        delta_shock=st.none() | with_numbers(DeltaShock),
        minimum=st.none()
        | with_numbers(
            MinimumCharge,
            floors=st.lists(numbers, min_size=1, max_size=3).map(tuple),
            factors=st.lists(numbers, min_size=1, max_size=3).map(tuple),
        ),
    ),
    "contingency": st.one_of(
        st.builds(Contingency, measure=measures, initial_rate=numbers, maintenance_rate=st.none() | numbers),
        st.builds(Contingency, measure=measures, maintenance_rate=numbers, underlyings=symbols),
        st.builds(Contingency, measure=measures, confidence=with_numbers(Confidence)),
        st.builds(Contingency, measure=measures, depeg=peg_losses, price=st.just("perp_mark")),
    ),
    "option_formula": option_formulas,
    "contract_margin": st.builds(
        ContractMargin,
        short_call_initial=contract_rates,
        short_put_maintenance=contract_rates,
        long_call_initial=contract_rates,
        at_least_maintenance=st.booleans(),
        underlyings=symbols,
    ),
    "expiry_max_loss": with_numbers(ExpiryMaxLoss, per_contract=option_formulas, underlyings=symbols),
    "fixed": with_numbers(Fixed, basis=st.sampled_from(["reported totals", "computed from arrays"])),
    "verdict": with_numbers(
        Verdict,
        liquidates_when=st.sampled_from(["below", "at_or_below"]),
        health=st.sampled_from(["equity_over_requirement", "requirement_over_equity", "weighted_collateral_over_debt"]),
        needs_requirement=st.booleans(),
    ),
}


def leaves(value: Any) -> list[Any]:
    """Every leaf of a parsed JSON document that is no container."""
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner)]
    return [value]


def test_every_form_has_instances_here() -> None:
    assert set(instances) == set(FORMS)


@pytest.mark.parametrize("form", sorted(FORMS))
@settings(max_examples=20)
@given(data=st.data())
def test_every_form_round_trips_as_json_without_losing_a_digit(form: str, data: st.DataObject) -> None:
    model = data.draw(instances[form])
    text = model.model_dump_json()
    again = parse_parameters(form, text)
    assert again == model
    assert again.model_dump_json() == text, "equal decimals of other digits (1.0 and 1.00) count as a loss too"
    assert all(isinstance(leaf, str | bool | None) for leaf in leaves(json.loads(text))), "numbers travel as text"


@pytest.mark.parametrize("form", sorted(FORMS))
@settings(max_examples=3)
@given(data=st.data())
def test_every_form_refuses_an_unknown_key_and_never_changes(form: str, data: st.DataObject) -> None:
    model = data.draw(instances[form])
    document = json.loads(model.model_dump_json()) | {"margn": "1"}
    with pytest.raises(ValidationError, match="margn"):
        parse_parameters(form, json.dumps(document))
    first = next(iter(type(model).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(model, first, getattr(model, first))


def test_an_unknown_key_inside_a_part_is_refused() -> None:
    text = '{"measure": "gross_perp", "confidence": {"threshold": "0.9", "factor": "1", "scale": "2"}}'
    with pytest.raises(ValidationError, match=r"confidence\.scale"):
        parse_parameters("contingency", text)


@pytest.mark.parametrize("number", ['"NaN"', '"Infinity"', '"-Infinity"', '"abc"', '""', "true", "null", "[]"])
def test_what_is_no_number_is_refused_without_echoing_it(number: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_parameters("verdict", '{"liquidates_when": "below", "trigger": ' + number + "}")
    assert "input_value" not in str(caught.value)


def test_an_amount_says_where_it_comes_from() -> None:
    with pytest.raises(ValidationError, match="reported"):
        Fixed(initial=Decimal(1), basis="somewhere")


def test_an_unknown_form_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="tiered_notionl"):
        parse_parameters("tiered_notionl", "{}")


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"initial": "levrage"}'])
def test_bad_text_is_a_validation_error(text: str) -> None:
    with pytest.raises(ValidationError):
        parse_parameters("tiered_notional", text)


@pytest.mark.parametrize(
    "sources",
    [
        {},
        {"initial_rate": "0.1", "confidence": {"threshold": "0.9", "factor": "1"}},
        {"maintenance_rate": "0.1", "depeg": {"threshold": "0.9", "factor": "1"}},
        {"confidence": {"threshold": "0.9", "factor": "1"}, "depeg": {"threshold": "0.9", "factor": "1"}},
    ],
)
def test_a_contingency_has_exactly_one_source_of_its_rate(sources: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one of the rates"):
        Contingency(measure="gross_perp", **sources)


def test_a_skew_point_needs_skew_parameters_and_an_unmoved_spot() -> None:
    grid = parse_parameters("price_vol_grid", GRID)
    assert isinstance(grid, PriceVolGrid)
    document = json.loads(GRID)
    document["scenarios"][0]["vol"] = "skew_abs"
    with pytest.raises(ValidationError, match="a skew point needs"):
        PriceVolGrid.model_validate(document)
    document["skew"] = dict.fromkeys(SkewShock.model_fields, "1")
    PriceVolGrid.model_validate(document)
    document["scenarios"][0]["spot"] = "1.1"
    with pytest.raises(ValidationError, match="a skew point needs"):
        PriceVolGrid.model_validate(document)


GRID = json.dumps(
    {
        "scenarios": [{"spot": "1", "vol": "up", "dampening": "1"}],
        "vol_shock": dict.fromkeys(VolShock.model_fields, "1"),
        "discount": dict.fromkeys(StaticDiscount.model_fields, "1"),
        "initial_factor": "1.25",
        "maintenance_factor": "1",
    }
)


def test_components_become_numbered_rows_of_the_canonical_table() -> None:
    components = [
        Component(side="equity", parameters=WeightedValue()),
        Component(side="requirement", parameters=TieredNotional(), level="both", group_by="position"),
        Component(side="verdict", parameters=Verdict(liquidates_when="at_or_below", trigger=Decimal("1.05"))),
    ]
    rows = component_rows("binance:pm", components, source="the venue's page, read 2024-06-20")
    table = table_from_rows("rule_sets", rows)
    assert table.column("component_no").to_pylist() == [0, 1, 2]
    assert table.column("form").to_pylist() == ["weighted_value", "tiered_notional", "verdict"]
    assert table.column("group_by").to_pylist() == ["account", "position", "account"]
    for row, component in zip(table.to_pylist(), components, strict=True):
        assert parse_parameters(row["form"], row["parameters"]) == component.parameters
        assert row["valid_from"] is None


def test_a_component_keeps_the_parameters_of_its_own_form() -> None:
    component = Component(side="requirement", parameters=Fixed(initial=Decimal("0.1"), basis="reported"))
    assert component.form == "fixed"
    assert component.parameters == Fixed(initial=Decimal("0.1"), basis="reported")
    with pytest.raises(ValidationError):
        Component(side="charge", parameters=Fixed(basis="x"))  # type: ignore[arg-type]
