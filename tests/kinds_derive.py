"""Reference cases of the venue's two managers, computed by the rule forms: batched, one compilation per kind.

A case's numbers are nets (equity minus requirement, >= 0 passes). The weighted collateral part, which the engine
computes from `collateral_tiers`, is the sum of value times haircut here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aggregator.pricing import SviParameters, svi_vol
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
)
from aggregator.rules.contingency import contingency_requirement, pack_contingencies
from aggregator.rules.expiry_max_loss import expiry_requirement, pack_expiry
from aggregator.rules.price_vol_grid import (
    basis_contingency,
    collateral_values,
    grid_profits,
    grid_requirement,
    option_mark_value,
    pack_grid,
)
from aggregator.rules.risk_unit import RiskUnit, ordered_sum

SETTLEMENT_WINDOW_S = 1800
SECONDS_PER_YEAR = 365 * 86400
_CONTINGENCIES = 5

Case = Mapping[str, Any]


def _number(value: float) -> Decimal:
    return Decimal(repr(float(value)))


def _width(sizes: Sequence[int]) -> int:
    return max(1, *sizes, 1)


def _padded(rows: Sequence[Sequence[Any]], width: int, fill: Any, dtype: Any = np.float64) -> Any:
    out = np.full((len(rows), width), fill, dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def stacked_units(units: Sequence[Case]) -> RiskUnit:
    """One batched `RiskUnit` of plain mappings: spot, confidences, perp, collaterals, expiries with their options."""
    options = [[(x, o) for x, e in enumerate(u["expiries"]) for o in e["options"]] for u in units]
    C = _width([len(u["collaterals"]) for u in units])
    X = _width([len(u["expiries"]) for u in units])
    O = _width([len(row) for row in options])  # noqa: E741 - the letter of the shapes

    def scalars(read: Callable[[Case], float]) -> Any:
        return np.array([read(u) for u in units], np.float64)

    def collateral(read: Callable[[Case], float], fill: float) -> Any:
        return _padded([[read(c) for c in u["collaterals"]] for u in units], C, fill)

    def expiry(read: Callable[[Case], float], fill: float) -> Any:
        return _padded([[read(e) for e in u["expiries"]] for u in units], X, fill)

    def option(read: Callable[[int, Case], Any], fill: Any, dtype: Any = np.float64) -> Any:
        return _padded([[read(x, o) for x, o in row] for row in options], O, fill, dtype)

    return RiskUnit(
        spot=scalars(lambda u: u["spot"]),
        spot_confidence=scalars(lambda u: u["spot_confidence"]),
        stable_price=scalars(lambda u: u["stable_price"]),
        perp_quantity=scalars(lambda u: u["perp"]["position"]),
        perp_price=scalars(lambda u: u["perp"]["price"]),
        perp_confidence=scalars(lambda u: u["perp"]["confidence"]),
        collateral_quantity=collateral(lambda c: c["amount"], 0.0),
        collateral_price=collateral(lambda c: c["price"], 1.0),
        collateral_confidence=collateral(lambda c: c["confidence"], 1.0),
        collateral_in_grid=collateral(lambda c: float(c["is_risk_cancelling"]), 0.0),
        option_quantity=option(lambda x, o: o["amount"], 0.0),
        option_strike=option(lambda x, o: o["strike"], 1.0),
        option_is_call=option(lambda x, o: o["is_call"], True, np.bool_),
        option_vol=option(lambda x, o: o["vol"], 1.0),
        option_expiry=option(lambda x, o: x, 0, np.int32),
        expiry_years=expiry(lambda e: e["sec_to_expiry"] / SECONDS_PER_YEAR, 1.0),
        expiry_forward=expiry(lambda e: e["forward"], 1.0),
        expiry_rate=expiry(lambda e: e["rate"], 0.0),
        expiry_confidence=expiry(lambda e: e["confidence"], 1.0),
    )


def _stack(modules: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *modules)


def grid_parameters(params: Case) -> PriceVolGrid:
    """The grid form of a portfolio-margin case's `params`."""
    shock, skew, margin, basis, other = (
        params[key] for key in ("vol_shock", "skew", "margin", "basis_contingency", "other")
    )
    return PriceVolGrid(
        scenarios=tuple(
            GridPoint(spot=_number(spot), vol=vol, dampening=_number(dampening))
            for spot, vol, dampening in params["scenarios"]
        ),
        vol_shock=VolShock(
            range_up=_number(shock["range_up"]),
            range_down=_number(shock["range_down"]),
            short_term_power=_number(shock["short_term_power"]),
            long_term_power=_number(shock["long_term_power"]),
            dte_floor_days=_number(shock["dte_floor_days"]),
            min_vol_up=_number(shock["min_vol_up_shock"]),
        ),
        skew=SkewShock(**{name: _number(skew[name]) for name in SkewShock.model_fields}),
        discount=StaticDiscount(
            long_base=_number(margin["long_base_static_discount"]),
            long_rate_mult=_number(margin["long_rate_mult"]),
            long_rate_add=_number(margin["long_rate_add"]),
            short_base=_number(margin["short_base_static_discount"]),
            short_rate_mult=_number(margin["short_rate_mult"]),
            short_rate_add=_number(margin["short_rate_add"]),
        ),
        initial_factor=_number(margin["im_factor"]),
        maintenance_factor=_number(margin["mm_factor"]),
        basis=BasisContingency(**{name: _number(basis[name]) for name in BasisContingency.model_fields}),
        peg_loss=PegLoss(threshold=_number(other["peg_loss_threshold"]), factor=_number(other["peg_loss_factor"])),
        settlement_window_s=Decimal(SETTLEMENT_WINDOW_S),
    )


def portfolio_contingencies(other: Case) -> list[Contingency]:
    """The contingency forms of a portfolio-margin case's `params.other`."""
    confidence = Confidence(threshold=_number(other["conf_threshold"]), factor=_number(other["conf_margin"]))
    perp, option = _number(other["mm_perp_percent"]), _number(other["mm_option_percent"])
    return [
        Contingency(
            measure="gross_perp",
            maintenance_rate=perp,
            initial_rate=perp + _number(other["im_perp_percent_extra"]),
        ),
        Contingency(
            measure="naked_short_options",
            maintenance_rate=option,
            initial_rate=option + _number(other["im_option_percent_extra"]),
        ),
        Contingency(measure="gross_perp", confidence=confidence),
        Contingency(measure="gross_options", confidence=confidence),
        Contingency(measure="collateral", confidence=confidence),
    ]


def _option_vol(option: Case, expiry: Case) -> float:
    if option.get("vol") is not None:
        return float(option["vol"])
    svi = expiry["svi"]
    parameters = SviParameters(*(svi[name] for name in SviParameters._fields))
    return float(svi_vol(option["strike"], svi["forward"], svi=parameters, fit_years=svi["tau_years"]))


def _portfolio_unit(case: Case) -> dict[str, Any]:
    expiries = [
        {
            **expiry,
            "confidence": min(expiry["forward_confidence"], expiry["rate_confidence"], expiry["vol_confidence"]),
            "options": [{**option, "vol": _option_vol(option, expiry)} for option in expiry["options"]],
        }
        for expiry in case["expiries"]
    ]
    return {**case, "expiries": expiries}


@jax.jit
@jax.vmap
def _portfolio_margin(unit, grid, contingencies, haircuts, cash):  # type: ignore[no-untyped-def]
    values = collateral_values(unit)
    options = option_mark_value(unit)
    equity = cash + options + ordered_sum(values)
    grid_margin = grid_requirement(unit, grid)
    charges = contingency_requirement(unit, contingencies)
    return {
        "im": equity - grid_margin.initial - charges.initial - ordered_sum(values * haircuts[0]),
        "mm": equity - grid_margin.maintenance - charges.maintenance - ordered_sum(values * haircuts[1]),
        "mtm": equity,
        "scenario_pnls": grid_profits(unit, grid),
        "basis_contingency": basis_contingency(unit, grid),
        "option_mtm": options,
        "collateral_mtm": ordered_sum(values),
    }


def derive_pmrm2(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Net margins, value and scenario profits of portfolio-margin cases."""
    points = _width([len(case["params"]["scenarios"]) for case in cases])
    units = stacked_units([_portfolio_unit(case) for case in cases])
    grid = _stack([pack_grid(grid_parameters(case["params"]), points) for case in cases])
    contingencies = _stack(
        [pack_contingencies(portfolio_contingencies(case["params"]["other"]), _CONTINGENCIES) for case in cases]
    )
    width = units.collateral_quantity.shape[1]
    maintenance = _padded([[c["mm_haircut"] for c in case["collaterals"]] for case in cases], width, 0.0)
    extra = _padded([[c["im_haircut"] for c in case["collaterals"]] for case in cases], width, 0.0)
    haircuts = np.stack([maintenance + extra, maintenance], axis=1)
    cash = np.array(
        [case["cash"] + case["perp"]["unrealised_pnl"] + case["perp"]["unrealised_funding"] for case in cases]
    )
    results = jax.device_get(_portfolio_margin(units, grid, contingencies, haircuts, cash))
    return [
        {
            **{key: float(results[key][i]) for key in results if key != "scenario_pnls"},
            "scenario_pnls": [float(x) for x in results["scenario_pnls"][i][: len(case["params"]["scenarios"])]],
        }
        for i, case in enumerate(cases)
    ]


def expiry_parameters(option: Case) -> ExpiryMaxLoss:
    """The expiry form of a standard-margin case's `params.option`."""
    return ExpiryMaxLoss(
        per_contract=OptionFormula(
            max_spot_rate=_number(option["max_spot_req"]),
            min_spot_rate=_number(option["min_spot_req"]),
            mm_call_spot_rate=_number(option["mm_call_spot_req"]),
            mm_put_spot_rate=_number(option["mm_put_spot_req"]),
            mm_put_mark_rate=_number(option["mm_put_mtm_req"]),
            mm_offset_scale=_number(option["mm_offset_scale"]),
        ),
        unpaired_initial_scale=_number(option["unpaired_im_scale"]),
        unpaired_maintenance_scale=_number(option["unpaired_mm_scale"]),
    )


def standard_contingencies(params: Case) -> list[Contingency]:
    """The contingency forms of a standard-margin case's `params`; a base asset without margin is not doubted."""
    oracle, depeg, base = params["oracle_contingency"], params["depeg"], params["base"]

    def confidence(threshold: str) -> Confidence:
        return Confidence(threshold=_number(oracle[threshold]), factor=_number(oracle["factor"]))

    charges = [
        Contingency(
            measure="gross_perp",
            price="perp_mark",
            initial_rate=_number(params["perp"]["im"]),
            maintenance_rate=_number(params["perp"]["mm"]),
        ),
        Contingency(measure="gross_perp", confidence=confidence("perp_threshold")),
        Contingency(measure="short_options", confidence=confidence("option_threshold")),
        Contingency(
            measure="gross_perp_and_short_options",
            depeg=PegLoss(threshold=_number(depeg["threshold"]), factor=_number(depeg["factor"])),
        ),
    ]
    if base["margin_factor"]:
        charges.append(Contingency(measure="collateral_usd", confidence=confidence("base_threshold")))
    return charges


def _standard_unit(market: Case, stable_price: float) -> dict[str, Any]:
    expiries: dict[float, dict[str, Any]] = {}
    for option in market["options"]:
        confidence = min(option["vol_confidence"], option["forward_confidence"])
        expiry = expiries.setdefault(
            option["sec_to_expiry"],
            {
                "sec_to_expiry": option["sec_to_expiry"],
                "forward": option["forward"],
                "rate": 0.0,
                "confidence": confidence,
                "options": [],
            },
        )
        expiry["confidence"] = min(expiry["confidence"], confidence)
        expiry["options"].append(option)
    base = {
        "amount": market["base_position"],
        "price": market["spot"],
        "confidence": market["spot_confidence"],
        "is_risk_cancelling": False,
    }
    return {**market, "stable_price": stable_price, "collaterals": [base], "expiries": list(expiries.values())}


@jax.jit
@jax.vmap
def _standard_margin(unit, expiry, contingencies, base_weights, perp_value):  # type: ignore[no-untyped-def]
    values = collateral_values(unit)
    usd = ordered_sum(unit.collateral_quantity * unit.collateral_price)
    equity = perp_value + option_mark_value(unit) + ordered_sum(values)
    options = expiry_requirement(unit, expiry)
    charges = contingency_requirement(unit, contingencies)
    without_base = equity - ordered_sum(values)
    return {
        "im": without_base - options.initial - charges.initial + usd * base_weights[0],
        "mm": without_base - options.maintenance - charges.maintenance + usd * base_weights[1],
        "mtm": equity,
    }


def derive_srm(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Net margins and value of standard-margin cases: each market is a risk unit, markets and cash are added up."""
    owners: list[int] = []
    units, expiry, charges, weights, perp_values = [], [], [], [], []
    for i, case in enumerate(cases):
        params = case["params"]
        for market in case["markets"].values():
            perp, base = market["perp"], params["base"]
            owners.append(i)
            units.append(_standard_unit(market, case["stable_price"]))
            expiry.append(pack_expiry(expiry_parameters(params["option"])))
            charges.append(pack_contingencies(standard_contingencies(params), _CONTINGENCIES))
            weights.append([base["margin_factor"] * base["im_scale"], base["margin_factor"]])
            perp_values.append(perp["position"] * (perp["price"] - perp["entry_price"] - perp["funding_index_delta"]))
    totals = [{key: float(case["cash"]) for key in ("im", "mm", "mtm")} for case in cases]
    if units:
        results = jax.device_get(
            _standard_margin(
                stacked_units(units), _stack(expiry), _stack(charges), jnp.asarray(weights), jnp.asarray(perp_values)
            )
        )
        for row, owner in enumerate(owners):
            for key, total in totals[owner].items():
                totals[owner][key] = total + float(results[key][row])
    return totals


CHECKS: dict[str, Callable[[list[Any]], list[dict[str, Any]]]] = {
    "derive_pmrm2": derive_pmrm2,
    "derive_srm": derive_srm,
}
