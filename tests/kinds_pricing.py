"""Checks of `pricing.json`: each kind as one batched call of `aggregator.pricing`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aggregator import pricing

Cases = list[dict[str, Any]]


def _columns(inputs: Cases) -> dict[str, jax.Array]:
    return {key: jnp.asarray([case[key] for case in inputs], dtype=jnp.float64) for key in inputs[0]}


def _rows(columns: dict[str, jax.Array]) -> Cases:
    arrays = {key: np.asarray(value) for key, value in columns.items()}
    return [{key: float(array[i]) for key, array in arrays.items()} for i in range(len(next(iter(arrays.values()))))]


def black76_vanilla(inputs: Cases) -> Cases:
    c = _columns(inputs)

    def greeks(is_call: bool) -> pricing.OptionGreeks:
        one = lambda f, k, t, s, d: pricing.black76_greeks(f, k, years=t, vol=s, discount=d, is_call=is_call)  # noqa: E731
        return jax.jit(jax.vmap(one))(c["F"], c["K"], c["T"], c["sigma"], c["df"])

    call, put = greeks(True), greeks(False)
    return _rows(
        {
            "call": call.price,
            "put": put.price,
            "delta_call": call.delta,
            "delta_put": put.delta,
            "gamma": call.gamma,
            "vega": put.vega,
            "theta_call": call.theta,
            "theta_put": put.theta,
            "vanna": put.vanna,
            "volga": call.volga,
            "strike_delta_call": call.strike_delta,
        }
    )


def inverse_option(inputs: Cases) -> Cases:
    c = _columns(inputs)

    def greeks(is_call: bool) -> pricing.InverseOptionGreeks:
        one = lambda f, k, t, s: pricing.inverse_option_greeks(f, k, years=t, vol=s, is_call=is_call)  # noqa: E731
        return jax.jit(jax.vmap(one))(c["F"], c["K"], c["T"], c["sigma"])

    call, put = greeks(True), greeks(False)
    return _rows(
        {
            "call_coin": call.price_coin,
            "put_coin": put.price_coin,
            "delta_usd_call": call.delta_usd,
            "delta_usd_put": put.delta_usd,
            "padelta_call": call.premium_adjusted_delta,
            "padelta_put": put.premium_adjusted_delta,
            "dcoin_dF_call": call.price_coin_slope,
            "dcoin_dF_put": put.price_coin_slope,
            "vega_coin": call.vega_coin,
        }
    )


def inverse_perp(inputs: Cases) -> Cases:
    c = _columns(inputs)
    value = jax.vmap(lambda n, e, s: pricing.inverse_perp_value(n, e, mark=s))(c["usd_notional"], c["entry"], c["mark"])
    return _rows(
        {
            "pnl_coin": value.pnl_coin,
            "pnl_usd": value.pnl_usd,
            "dpnl_coin_dS": value.pnl_coin_slope,
            "d2pnl_coin_dS2": value.pnl_coin_curvature,
        }
    )


def inverse_liquidation(inputs: Cases) -> Cases:
    c = _columns(inputs)
    found = jax.vmap(lambda b, n, e, m: pricing.inverse_liquidation_price(b, n, entry=e, maintenance_rate=m))(
        c["coll_coin"], c["usd_notional"], c["entry"], c["mm"]
    )
    return [
        {"liq_price": float(price) if exists else None}
        for price, exists in zip(np.asarray(found.price), np.asarray(found.exists), strict=True)
    ]


def quanto(inputs: Cases) -> Cases:
    c = _columns(inputs)
    forward = jax.vmap(lambda f, t, s, x, r: pricing.quanto_forward(f, t, vol=s, coin_vol=x, correlation=r))(
        c["F"], c["T"], c["sigma_S"], c["sigma_X"], c["rho"]
    )

    def price(is_call: bool) -> jax.Array:
        one = lambda f, k, t, s: pricing.black76_price(f, k, years=t, vol=s, is_call=is_call)  # noqa: E731
        return jax.vmap(one)(forward, c["K"], c["T"], c["sigma_S"])

    return _rows({"F_quanto": forward, "call_usdmeasure_per_X0": price(True), "put_usdmeasure_per_X0": price(False)})


CHECKS = {
    "black76_vanilla": black76_vanilla,
    # The edge cases hold a part of the same keys.
    "black76_edge": black76_vanilla,
    "inverse_option": inverse_option,
    "inverse_perp": inverse_perp,
    "inverse_liquidation": inverse_liquidation,
    "quanto": quanto,
}
