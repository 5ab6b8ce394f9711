"""The contingency form: charges on gross, naked, short quantities and collateral of one risk unit.

Requirements positive, in the account's own unit. Letters: K components, M measures, O options, X expiries, C
collaterals, F further perpetuals. What a measure counts and which confidences it looks at is stated in
`rule_forms.Contingency`.

Source of the rule: derivexyz/v2-core @7736900d, PMRMLib_2.sol and StandardManager.sol (rules only).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..rounding import rounded
from ..rule_forms import Contingency
from .price_vol_grid import collateral_values
from .risk_unit import Requirement, RiskUnit, expiry_sums, ordered_sum

MEASURES = (
    "gross_perp",
    "naked_short_options",
    "short_options",
    "gross_options",
    "collateral",
    "collateral_usd",
    "gross_perp_and_short_options",
)
PRICES = ("spot", "perp_mark")


class ContingencyParameters(eqx.Module):
    """Components of one rule set as arrays; a padded component charges nothing."""

    measure: Int[Array, " K"]
    """Index into `MEASURES`."""
    price: Int[Array, " K"]
    """Index into `PRICES`."""
    initial_rate: Float[Array, " K"]
    maintenance_rate: Float[Array, " K"]
    confidence_threshold: Float[Array, " K"]
    confidence_factor: Float[Array, " K"]
    depeg_threshold: Float[Array, " K"]
    depeg_factor: Float[Array, " K"]


class _FurtherPerps(eqx.Module):
    """Size, own price and lowest confidence of each further perpetual; a future has size 0."""

    size: Float[Array, " F"]
    price: Float[Array, " F"]
    confidence: Float[Array, " F"]


class _Groups(eqx.Module):
    """Quantity (collateral: value) and confidence, by measure, of what has its own feeds: perp, expiry, collateral.

    `further`: perpetuals beside the unit's first linear one, None without any; `counts_perps` by measure.
    """

    perp: Float[Array, " M"]
    expiry: Float[Array, "M X"]
    collateral: Float[Array, "M C"]
    perp_confidence: Float[Array, " M"]
    expiry_confidence: Float[Array, "M X"]
    collateral_confidence: Float[Array, "M C"]
    counts_perps: Float[Array, " M"]
    further: _FurtherPerps | None


def pack_contingencies(components: Sequence[Contingency], size: int) -> ContingencyParameters:
    """`components` as NumPy arrays of length `size`; raises `ValueError` when there are more."""
    if len(components) > size:
        raise ValueError(f"the rule set has {len(components)} contingencies, more than the {size} that were reserved")

    def column(read: Callable[[Contingency], Decimal | None]) -> Any:
        return np.array([float(read(c) or 0) for c in components] + [0.0] * (size - len(components)), np.float64)

    def codes(names: Sequence[str], values: Sequence[str]) -> Any:
        return np.array([names.index(value) for value in values] + [0] * (size - len(values)), np.int32)

    return ContingencyParameters(
        measure=codes(MEASURES, [c.measure for c in components]),
        price=codes(PRICES, [c.price for c in components]),
        initial_rate=column(lambda c: c.initial_rate),
        maintenance_rate=column(lambda c: c.maintenance_rate),
        confidence_threshold=column(lambda c: c.confidence.threshold if c.confidence else None),
        confidence_factor=column(lambda c: c.confidence.factor if c.confidence else None),
        depeg_threshold=column(lambda c: c.depeg.threshold if c.depeg else None),
        depeg_factor=column(lambda c: c.depeg.factor if c.depeg else None),
    )


def naked_shorts(unit: RiskUnit) -> Float[Array, " X"]:
    """Short quantity per expiry not covered at its own strike: sum over strikes of max(0, -(calls + puts))."""
    same = (unit.option_expiry[:, None] == unit.option_expiry[None, :]) & (
        unit.option_strike[:, None] == unit.option_strike[None, :]
    )
    count = unit.option_quantity.shape[0]
    earlier = jnp.arange(count)[None, :] < jnp.arange(count)[:, None]
    is_first = ~jnp.any(same & earlier, axis=1)
    net = ordered_sum(jnp.where(same, jnp.broadcast_to(unit.option_quantity, same.shape), 0.0))
    return expiry_sums(jnp.where(is_first, jnp.maximum(0.0, -net), 0.0), unit)


def contingency_requirement(unit: RiskUnit, parameters: ContingencyParameters) -> Requirement:
    """Sum over components of measure * price * rate.

    A confidence charge is (1 - confidence) * factor where the confidence is below the threshold (strictly), else 0; a
    depeg charge is max(0, threshold - stable price) * factor. Both fall on the initial level only.
    """
    groups = _groups(unit)
    price = jnp.stack([unit.spot, unit.perp_price])[parameters.price]
    perp = rounded(groups.perp[parameters.measure] * price)
    expiry = rounded(groups.expiry[parameters.measure] * price[:, None])
    collateral = groups.collateral[parameters.measure]
    total = perp + ordered_sum(expiry) + ordered_sum(collateral)

    doubted = (
        _doubted(perp[:, None], groups.perp_confidence[parameters.measure][:, None], parameters)
        + _doubted(expiry, groups.expiry_confidence[parameters.measure], parameters)
        + _doubted(collateral, groups.collateral_confidence[parameters.measure], parameters)
    )
    if groups.further is not None:
        held, count = groups.further, parameters.measure.shape[0]
        prices = jnp.stack([jnp.full_like(held.price, unit.spot), held.price])[parameters.price]
        sizes = groups.counts_perps[parameters.measure][:, None] * held.size[None, :]
        further = rounded(sizes * prices)
        total = total + ordered_sum(further)
        confidence = jnp.broadcast_to(held.confidence, (count, held.size.shape[0]))
        doubted = doubted + _doubted(further, confidence, parameters)
    depeg = rounded(jnp.maximum(0.0, parameters.depeg_threshold - unit.stable_price) * parameters.depeg_factor)
    charged = rounded(total * (parameters.initial_rate + depeg))
    return Requirement(
        initial=ordered_sum(charged + rounded(doubted * parameters.confidence_factor)),
        maintenance=ordered_sum(total * parameters.maintenance_rate),
    )


def _doubted(
    amount: Float[Array, "K N"], confidence: Float[Array, "K N"], parameters: ContingencyParameters
) -> Float[Array, " K"]:
    below = confidence < parameters.confidence_threshold[:, None]
    return ordered_sum(jnp.where(below, (1.0 - confidence) * amount, 0.0))


def _groups(unit: RiskUnit) -> _Groups:
    quantity = unit.option_quantity
    perp = jnp.abs(unit.perp_quantity)
    naked = naked_shorts(unit)
    short = expiry_sums(jnp.maximum(0.0, -quantity), unit)
    gross = expiry_sums(jnp.abs(quantity), unit)
    value = collateral_values(unit)
    value_usd = unit.collateral_quantity * unit.collateral_price

    spot_confidence = unit.spot_confidence
    perp_confidence = jnp.minimum(spot_confidence, unit.perp_confidence)
    options = jnp.minimum(spot_confidence, unit.expiry_confidence)
    with_perp = jnp.where(unit.perp_quantity != 0, jnp.minimum(options, unit.perp_confidence), options)
    further = None
    if unit.delta_one is not None:
        held = unit.delta_one
        size = jnp.where(held.expiry < 0, jnp.abs(held.quantity), 0.0)
        further = _FurtherPerps(size, held.price, jnp.minimum(spot_confidence, held.confidence))
        lowest = jnp.min(jnp.where(size > 0, held.confidence, 1.0), initial=1.0)
        with_perp = jnp.minimum(with_perp, lowest)
    own = unit.collateral_confidence
    no_perp, no_expiry, no_collateral = jnp.zeros_like(perp), jnp.zeros_like(short), jnp.zeros_like(value)

    # Rows in the order of MEASURES.
    return _Groups(
        perp=jnp.stack([perp, no_perp, no_perp, no_perp, no_perp, no_perp, perp]),
        expiry=jnp.stack([no_expiry, naked, short, gross, no_expiry, no_expiry, short]),
        collateral=jnp.stack(
            [no_collateral, no_collateral, no_collateral, no_collateral, value, value_usd, no_collateral]
        ),
        perp_confidence=jnp.broadcast_to(perp_confidence, (len(MEASURES),)),
        expiry_confidence=jnp.stack([options, with_perp, options, with_perp, options, options, options]),
        collateral_confidence=jnp.stack([jnp.minimum(own, spot_confidence)] * 5 + [own, own]),
        counts_perps=jnp.array([float("perp" in name) for name in MEASURES], jnp.float64),
        further=further,
    )
