"""Risk units as padded arrays on the device, with what moves them and the rules that apply to each.

A rule that a unit does not have is present with zero factors. Letters: U risk units, C collaterals.

What few books have (futures and inverse contracts, quotes beside the model, charges by delta, a look-ahead) is absent
from the program of a bucket without it, and neutral in a unit without it: both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int

from .cube import TERMS
from .risk_units import UnitRow
from .rule_forms import ContractMargin, ExpiryMaxLoss, GridPoint, OptionFormula, PriceVolGrid, VolShock
from .rules.contingency import ContingencyParameters, pack_contingencies
from .rules.contract_margin import ContractParameters, pack_contract_margin
from .rules.delta_charges import slices_of
from .rules.expiry_max_loss import ExpiryParameters, pack_expiry
from .rules.price_vol_grid import GridParameters, pack_grid
from .rules.risk_unit import DeltaOne, OptionQuotes, RiskUnit

_STEPS = (0, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
SMALL_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class UnitArrays(eqx.Module):
    """Risk units with what moves them and which rules apply; a rule that a unit does not have is present with zero
    factors.
    """

    account: Int[Array, " U"]
    market: RiskUnit
    price_factor: Int[Array, " U"]
    price_weight: Float[Array, " U"]
    """0 where the unit has no price factor (a stable token alone)."""
    vol_factor: Int[Array, " U"]
    vol_weight: Float[Array, " U"]
    """0 where the unit holds no option and its vol factor need not exist."""
    stable_factor: Int[Array, "U terms"]
    stable_weight: Float[Array, "U terms"]
    collateral_row: Int[Array, "U C"]
    """Factor row that moves each collateral's USD price."""
    grid: GridParameters | None
    contingency: ContingencyParameters | None
    expiry: ExpiryParameters | None
    expiry_applies: Float[Array, " U"]
    contract: ContractParameters | None


class UnitSizes(NamedTuple):
    """Padded sizes of the risk units of one bucket."""

    units: int
    options: int
    expiries: int
    collaterals: int
    contingencies: int
    grid_points: int
    has_grid: bool
    has_expiry: bool
    has_contract: bool
    has_quotes: bool
    looks_ahead: bool
    delta_one: int
    slices: int


def unit_sizes(units: Sequence[UnitRow]) -> UnitSizes:
    """The rounded sizes that hold `units`; all 0 without any."""
    if not units:
        return UnitSizes(0, 0, 0, 0, 0, 0, False, False, False, False, False, 0, 0)

    def most(count: Callable[[UnitRow], int]) -> int:
        return rounded_up(max(count(unit) for unit in units), SMALL_STEPS)

    grids = [unit.grid for unit in units if unit.grid is not None]
    return UnitSizes(
        units=rounded_up(len(units), SMALL_STEPS),
        options=most(lambda u: len(u.options)),
        expiries=most(lambda u: len(u.expiries)),
        collaterals=most(lambda u: len(u.collateral)),
        contingencies=most(lambda u: len(u.contingencies)),
        grid_points=most(lambda u: len(u.grid.scenarios) if u.grid else 0),
        has_grid=bool(grids),
        has_expiry=any(u.max_loss is not None for u in units),
        has_contract=any(u.contract is not None for u in units),
        has_quotes=any(u.quotes for u in units),
        looks_ahead=any(grid.look_ahead_days for grid in grids),
        delta_one=rounded_up(max(len(u.delta_one) for u in units), (0, *SMALL_STEPS)),
        slices=rounded_up(max((slices_of(grid) for grid in grids), default=0), (0, *SMALL_STEPS)),
    )


def covering_units(sizes: Iterable[UnitSizes]) -> UnitSizes:
    """The sizes that hold all of `sizes`."""
    return UnitSizes(*(max(column) for column in zip(*sizes, strict=True)))


def rounded_up(count: int, steps: Sequence[int] = _STEPS) -> int:
    """The smallest step that holds `count`; beyond the last step, the next multiple of it."""
    for step in steps:
        if count <= step:
            return step
    return -(-count // steps[-1]) * steps[-1]


def column(values: Sequence[Any], size: int, dtype: type, fill: float = 0) -> Any:
    """`values` as an array of length `size`, padded with `fill`."""
    # Any: host arrays stand where the modules declare device arrays, until a bucket is stacked.
    out: Any = np.full(size, fill, dtype)
    out[: len(values)] = values
    return out


def unit_arrays(units: Sequence[UnitRow], sizes: UnitSizes, index: Mapping[str, int]) -> UnitArrays:
    """The risk units of one portfolio (NumPy) at the bucket's sizes; `index` numbers the factors."""
    count, options, expiries, collaterals = sizes.units, sizes.options, sizes.expiries, sizes.collaterals

    def scalar(read: Callable[[UnitRow], float], fill: float) -> Any:
        return column([read(u) for u in units], count, np.float64, fill)

    def matrix(read: Callable[[UnitRow], Sequence[float]], size: int, fill: float, dtype: type = np.float64) -> Any:
        out: Any = np.full((count, size), fill, dtype)
        for number, unit in enumerate(units):
            values = list(read(unit))
            out[number, : len(values)] = values
        return out

    def stacked(packed: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *packed)

    delta_one = DeltaOne(
        quantity=matrix(lambda u: [d.quantity for d in u.delta_one], sizes.delta_one, 0.0),
        price=matrix(lambda u: [d.price for d in u.delta_one], sizes.delta_one, 1.0),
        confidence=matrix(lambda u: [d.confidence for d in u.delta_one], sizes.delta_one, 1.0),
        is_inverse=matrix(lambda u: [d.is_inverse for d in u.delta_one], sizes.delta_one, False, np.bool_),
        money_usd=matrix(lambda u: [d.money_usd for d in u.delta_one], sizes.delta_one, 0.0),
        expiry=matrix(lambda u: [d.expiry for d in u.delta_one], sizes.delta_one, -1, np.int32),
        delta=matrix(lambda u: [d.delta for d in u.delta_one], sizes.delta_one, 1.0),
    )
    quotes = OptionQuotes(
        mark_offset=matrix(lambda u: [q.mark_offset for q in u.quotes], options, 0.0),
        delta_offset=matrix(lambda u: [q.delta_offset for q in u.quotes], options, 0.0),
        entry_price=matrix(lambda u: [q.entry_price for q in u.quotes], options, 0.0),
        is_inverse=matrix(lambda u: [q.is_inverse for q in u.quotes], options, False, np.bool_),
        money_usd=matrix(lambda u: [q.money_usd for q in u.quotes], options, 0.0),
    )
    market = RiskUnit(
        spot=scalar(lambda u: u.spot, 1.0),
        spot_confidence=scalar(lambda u: u.spot_confidence, 1.0),
        stable_price=scalar(lambda u: u.stable_price, 1.0),
        perp_quantity=scalar(lambda u: u.perp[0], 0.0),
        perp_price=scalar(lambda u: u.perp[1], 1.0),
        perp_confidence=scalar(lambda u: u.perp[2], 1.0),
        collateral_quantity=matrix(lambda u: [c[0] for c in u.collateral], collaterals, 0.0),
        collateral_price=matrix(lambda u: [c[1] for c in u.collateral], collaterals, 1.0),
        collateral_confidence=matrix(lambda u: [c[2] for c in u.collateral], collaterals, 1.0),
        collateral_in_grid=matrix(lambda u: [c[3] for c in u.collateral], collaterals, 0.0),
        option_quantity=matrix(lambda u: [o[0] for o in u.options], options, 0.0),
        option_strike=matrix(lambda u: [o[1] for o in u.options], options, 1.0),
        option_is_call=matrix(lambda u: [o[2] for o in u.options], options, True, np.bool_),
        option_vol=matrix(lambda u: [o[3] for o in u.options], options, 0.5),
        option_expiry=matrix(lambda u: [o[4] for o in u.options], options, 0, np.int32),
        expiry_years=matrix(lambda u: [x[0] for x in u.expiries], expiries, 0.1),
        expiry_forward=matrix(lambda u: [x[1] for x in u.expiries], expiries, 1.0),
        expiry_rate=matrix(lambda u: [x[2] for x in u.expiries], expiries, 0.0),
        expiry_confidence=matrix(lambda u: [x[3] for x in u.expiries], expiries, 1.0),
        delta_one=delta_one if sizes.delta_one else None,
        option_quotes=quotes if sizes.has_quotes else None,
    )
    stable_factor: Any = np.zeros((count, TERMS), np.int32)
    stable_weight: Any = np.zeros((count, TERMS))
    for number, unit in enumerate(units):
        for term, (name, power) in enumerate(unit.stable_exponents):
            stable_factor[number, term], stable_weight[number, term] = index[name], power
    spare = count - len(units)
    grids = [u.grid for u in units] + [None] * spare
    losses = [u.max_loss for u in units] + [None] * spare
    contracts = [u.contract for u in units] + [None] * spare
    return UnitArrays(
        account=column([u.account for u in units], count, np.int32),
        market=market,
        price_factor=column([index[u.price_factor] if u.price_factor else 0 for u in units], count, np.int32),
        price_weight=column([float(u.price_factor is not None) for u in units], count, np.float64),
        vol_factor=column([index.get(u.vol_factor, 0) for u in units], count, np.int32),
        vol_weight=column([float(u.vol_factor in index) for u in units], count, np.float64),
        stable_factor=stable_factor,
        stable_weight=stable_weight,
        collateral_row=matrix(lambda u: [c[4] for c in u.collateral], collaterals, 0, np.int32),
        grid=_stacked_or_absent(grids, sizes) if sizes.has_grid else None,
        contingency=stacked(
            [pack_contingencies(u.contingencies, sizes.contingencies) for u in units]
            + [pack_contingencies((), sizes.contingencies)] * spare
        ),
        expiry=_stacked_expiry(losses) if sizes.has_expiry else None,
        expiry_applies=column([float(u.max_loss is not None) for u in units], count, np.float64),
        contract=stacked([pack_contract_margin(c or _NO_CONTRACT) for c in contracts]) if sizes.has_contract else None,
    )


def _stacked_or_absent(grids: Sequence[PriceVolGrid | None], sizes: UnitSizes) -> GridParameters:
    """Grid parameters of every unit; a unit without a grid gets one that charges nothing."""
    packed = [
        pack_grid(grid or _NO_GRID, sizes.grid_points, slices=sizes.slices, looks_ahead=sizes.looks_ahead)
        for grid in grids
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *packed)


def _stacked_expiry(losses: Sequence[ExpiryMaxLoss | None]) -> ExpiryParameters:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[pack_expiry(loss or _NO_EXPIRY) for loss in losses])


_ZERO, _ONE = Decimal(0), Decimal(1)
_NO_GRID = PriceVolGrid(
    scenarios=(GridPoint(spot=_ONE, vol="none", dampening=_ZERO),),
    vol_shock=VolShock(
        range_up=_ZERO,
        range_down=_ZERO,
        short_term_power=_ZERO,
        long_term_power=_ZERO,
        dte_floor_days=_ONE,
        min_vol_up=_ZERO,
    ),
    initial_factor=_ZERO,
    maintenance_factor=_ZERO,
)
_NO_CONTRACT = ContractMargin()
_NO_EXPIRY = ExpiryMaxLoss(
    per_contract=OptionFormula.model_validate(dict.fromkeys(OptionFormula.model_fields, _ZERO)),
    unpaired_initial_scale=_ZERO,
    unpaired_maintenance_scale=_ZERO,
)
