"""Checks of `margin.json`: requirement stack, add-ons, scenario grid, allocation, and collateral that has to travel."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aggregator import (
    add_ons,
    reactive_transfer,
    requirement,
    risk,
    scenario_grid,
    transfer,
    transfer_programme,
    transfer_shortfall,
)

Cases = list[dict[str, Any]]


def _column(inputs: Cases, key: str) -> jax.Array:
    return jnp.asarray([case[key] for case in inputs], dtype=jnp.float64)


def _rows(columns: dict[str, jax.Array]) -> Cases:
    arrays = {key: np.asarray(value) for key, value in columns.items()}
    return [{key: float(array[i]) for key, array in arrays.items()} for i in range(len(next(iter(arrays.values()))))]


def liquidity_addon(inputs: Cases) -> Cases:
    notional, volume = _column(inputs, "notional"), _column(inputs, "adv")
    cost = add_ons.liquidity_cost(
        notional,
        volume,
        daily_vol=_column(inputs, "sigma_daily"),
        spread=_column(inputs, "spread"),
        impact=_column(inputs, "Y"),
    )
    days = add_ons.close_out(
        notional,
        volume,
        participation=_column(inputs, "participation"),
        least_days=_column(inputs, "mpor_min_days"),
    )
    return _rows(
        {"cost_usd": cost.amount, "liq_days": days.liquidation_days, "mpor_days": days.margin_period_days},
    )


def simm_concentration(inputs: Cases) -> Cases:
    found = add_ons.concentration_ratio(_column(inputs, "net_sensitivity"), _column(inputs, "threshold"))
    return _rows({"CR": found.amount})


def vol_haircut(inputs: Cases) -> Cases:
    found = add_ons.volatility_haircut(
        _column(inputs, "static"),
        daily_vol=_column(inputs, "sigma_daily"),
        quantile=_column(inputs, "z"),
        horizon_days=_column(inputs, "h_days"),
        liquidity=_column(inputs, "liquidity"),
    )
    return _rows({"haircut": found})


def basis_addon(inputs: Cases) -> Cases:
    venues = max(len(case["venue_qty"]) for case in inputs)
    quantity = np.zeros((venues, len(inputs)))
    for column, case in enumerate(inputs):
        quantity[: len(case["venue_qty"]), column] = case["venue_qty"]
    matched = add_ons.matched_notional(jnp.asarray(quantity * np.array([case["price"] for case in inputs])))
    found = add_ons.basis(matched, _column(inputs, "basis_es"))
    return _rows({"matched_notional": matched, "addon": found.amount})


def empirical_euler(inputs: Cases) -> Cases:
    rows = []
    for case in inputs:
        components = np.asarray(case["loss_components"], np.float64)
        count = components.shape[1]
        padded, weights = risk.padded_scenarios(components, np.full(count, 1.0 / count))

        @jax.jit
        def allocate(
            losses: jax.Array, weights: jax.Array, confidence: float = case["alpha"]
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            total = jnp.sum(losses, axis=0)
            tail = risk.tail_weights(total, weights, confidence=confidence)
            shortfall = risk.expected_shortfall(total, weights, confidence=confidence)
            return shortfall, risk.euler_allocation(losses, tail), tail

        shortfall, euler, tail = (np.asarray(x) for x in allocate(jnp.asarray(padded), jnp.asarray(weights)))
        rows.append({"ES": float(shortfall), "euler": euler.tolist(), "tail_weights": tail[:count].tolist()})
    return rows


def offset_cap(inputs: Cases) -> Cases:
    parts = max(len(case["standalone"]) for case in inputs)
    standalone = np.zeros((len(inputs), parts))
    for row, case in enumerate(inputs):
        standalone[row, : len(case["standalone"])] = case["standalone"]
    found = jax.jit(jax.vmap(lambda s, c, k: requirement.capped_offset(s, c, cap=k)))(
        jnp.asarray(standalone), _column(inputs, "combined"), _column(inputs, "cap")
    )
    return _rows({"requirement": found.requirement, "benefit_uncapped": found.uncapped, "benefit_capped": found.capped})


def liquidity_horizon_es(inputs: Cases) -> Cases:
    return [
        {
            "ES": float(
                requirement.liquidity_horizon_shortfall(
                    jnp.asarray(case["es_by_bucket"], jnp.float64),
                    jnp.asarray(
                        requirement.checked_horizons([float(h) for h in case["LH"]], base_horizon=float(case["T"]))
                    ),
                    base_horizon=case["T"],
                )
            )
        }
        for case in inputs
    ]


def margin_stack(inputs: Cases) -> Cases:
    names = {
        "current_shortfall": "es_current",
        "stressed_shortfall": "es_stressed",
        "stress_weight": "stress_weight",
        "grid": "grid",
        "floor": "floor",
        "silo": "silo",
        "offset_cap": "offset_cap",
        "fungibility": "fungibility",
    }
    amounts = {ours: _column(inputs, theirs) for ours, theirs in names.items()}
    extra = [case["addons"] for case in inputs]
    parts = requirement.AddOnTotals(
        *(_column(extra, key) for key in ("liquidity", "concentration", "basis", "wwr", "venue"))
    )
    stack = jax.jit(jax.vmap(lambda a, p: requirement.requirement_stack(**a, add_ons=p)))(amounts, parts)
    return _rows(
        {
            "es_blend": stack.blended_shortfall,
            "base": stack.base,
            "ideal": stack.ideal,
            "effective": stack.effective,
            "margin_efficiency": stack.margin_efficiency,
            "benefit_realised": stack.offset_benefit,
        }
    )


def _book(positions: Cases) -> scenario_grid.GridBook:
    def column(key: str, absent: float) -> jax.Array:
        return jnp.asarray([position.get(key, absent) for position in positions], jnp.float64)

    return scenario_grid.GridBook(
        quantity=column("qty", 0.0),
        forward=column("F", 0.0),
        strike=column("K", 1.0),
        years=column("T", 0.0),
        vol=column("sigma", 0.0),
        is_call=column("cp", 1.0) > 0,
        is_option=jnp.asarray([position["type"] == "option" for position in positions]),
    )


def scenario_grid_losses(inputs: Cases) -> Cases:
    rows, losses = [], jax.jit(scenario_grid.book_losses)
    for case in inputs:
        rule = scenario_grid.GridVolRule(
            up=case["vol_up"],
            down=case["vol_down"],
            power=case["vega_power"],
            floor_days=case["dte_floor_days"],
            least_multiplier=case["vol_min_mult"],
        )
        found = losses(
            _book(case["book"]),
            spot_moves=jnp.asarray(case["spot_shocks"], jnp.float64),
            vol_steps=jnp.asarray(case["vol_dirs"], jnp.float64),
            extreme_moves=jnp.asarray(case["extreme_spot"], jnp.float64),
            extreme_weight=case["extreme_weight"],
            rule=rule,
        )
        rows.append(
            {
                "loss": np.asarray(found.grid).tolist(),
                "extreme_loss": np.asarray(found.extreme).tolist(),
                "worst": float(found.worst.amount),
            }
        )
    return rows


def transfer_uncovered(inputs: Cases) -> Cases:
    nodes = max(len(case["x"]) for case in inputs)
    surplus, capacity = np.zeros((len(inputs), nodes)), np.zeros((len(inputs), nodes, nodes))
    for row, case in enumerate(inputs):
        own = len(case["x"])
        surplus[row, :own], capacity[row, :own, :own] = case["x"], case["cap"]
    x, c = jnp.asarray(surplus), jnp.asarray(capacity)
    return _rows(
        {
            "uncovered_transit": jax.jit(transfer.uncovered_many)(x, c).amount,
            "uncovered_single_hop": jax.jit(jax.vmap(transfer.uncovered_single_hop))(x, c).amount,
            "siloed": jax.jit(jax.vmap(transfer.uncovered_siloed))(x),
            "fungible": jax.jit(jax.vmap(transfer.uncovered_fungible))(x),
        }
    )


@functools.partial(jax.jit, static_argnames="a")
def _solved(losses: jax.Array, capacity: jax.Array, weights: jax.Array, *, a: float) -> dict[str, jax.Array]:
    found = transfer_shortfall.transfer_shortfall(losses, capacity, weights, confidence=a)
    siloed = transfer_shortfall.siloed_shortfall(losses, weights, confidence=a)
    pooled = transfer_shortfall.pooled_shortfall(losses, weights, confidence=a)
    share = transfer_shortfall.fungibility(found.value, siloed=siloed, fungible=pooled)
    return {"requirement": found.value, "siloed": siloed, "unified": pooled, "fungibility": share}


def tces(inputs: Cases) -> Cases:
    rows = []
    for case in inputs:
        losses = np.asarray(case["losses"], np.float64)
        count, nodes = losses.shape
        uniform = np.full((nodes, nodes), float(case.get("cap_uniform", 0.0)))
        capacity = np.asarray(case.get("cap", uniform), np.float64)
        padded, weights = risk.padded_scenarios(losses.T, np.full(count, 1.0 / count))

        found = _solved(jnp.asarray(padded.T), jnp.asarray(capacity), jnp.asarray(weights), a=case["alpha"])
        rows.append({key: float(value) for key, value in found.items()})
    return rows


def transfer_time_expanded(inputs: Cases) -> Cases:
    return [
        {
            "min_injection": transfer_programme.time_expanded_injection(
                case["K"], case["cum_losses"], case["delay"], case["cap_per_step"]
            )
        }
        for case in inputs
    ]


def transfer_reactive(inputs: Cases) -> Cases:
    rows = []
    for case in inputs:
        found = jax.jit(reactive_transfer.reactive_policy)(
            jnp.asarray(case["K"], jnp.float64),
            jnp.asarray(case["cum_losses"], jnp.float64),
            jnp.asarray(case["delay"], jnp.int32),
            jnp.asarray(case["cap_per_step"], jnp.float64),
            jnp.asarray(case["buffer"], jnp.float64),
        )
        rows.append(
            {
                "liquidated_at": [None if t < 0 else t for t in np.asarray(found.liquidated_at).tolist()],
                "shortfall": np.asarray(found.shortfall).tolist(),
                "final_balance": np.asarray(found.final_balance).tolist(),
                "sent": np.asarray(found.sent).tolist(),
                "in_flight": np.asarray(found.in_flight).tolist(),
            }
        )
    return rows


CHECKS = {
    "liquidity_addon": liquidity_addon,
    "simm_concentration": simm_concentration,
    "vol_haircut": vol_haircut,
    "basis_addon": basis_addon,
    "empirical_euler": empirical_euler,
    "offset_cap": offset_cap,
    "liquidity_horizon_es": liquidity_horizon_es,
    "margin_stack": margin_stack,
    "scenario_grid": scenario_grid_losses,
    "transfer_uncovered": transfer_uncovered,
    "tces": tces,
    "transfer_time_expanded": transfer_time_expanded,
    "transfer_reactive": transfer_reactive,
}
