"""Packed portfolios as padded arrays on the device: frozen modules, one leading `portfolios` axis, buckets of equal
shape.

A padded row has coefficient 0 and points at row 0 (the constant) and target 0, so it adds an exact zero behind the real
rows. Sizes are rounded up in steps, and portfolios of equal rounded sizes share a bucket and one compilation. Letters:
P portfolios, A accounts, N nodes, L lines, H legs, Q native legs, G groups, R requirement rows, T tier rows, U risk
units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .account import UnitRow
from .cube import TERMS
from .portfolio import PackedPortfolio
from .rule_forms import ExpiryMaxLoss, GridPoint, OptionFormula, PriceVolGrid, StaticDiscount, VolShock
from .rules.contingency import ContingencyParameters, pack_contingencies
from .rules.expiry_max_loss import ExpiryParameters, pack_expiry
from .rules.price_vol_grid import GridParameters, pack_grid
from .rules.risk_unit import RiskUnit

_STEPS = (0, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
_SMALL_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


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


class PortfolioArrays(eqx.Module):
    """One bucket of portfolios (shapes without the leading P are those of one portfolio)."""

    trigger: Float[Array, " A"]
    at_or_below: Bool[Array, " A"]
    account_is_real: Bool[Array, " A"]
    fixed_initial: Float[Array, " A"]
    fixed_maintenance: Float[Array, " A"]
    line_node: Int[Array, " L"]
    line_is_real: Bool[Array, " L"]
    node_is_real: Bool[Array, " N"]
    leg_line: Int[Array, " H"]
    leg_row: Int[Array, " H"]
    leg_coefficient: Float[Array, " H"]
    native_group: Int[Array, " Q"]
    native_row: Int[Array, " Q"]
    native_coefficient: Float[Array, " Q"]
    group_account: Int[Array, " G"]
    group_asset_weight: Float[Array, " G"]
    group_liability_weight: Float[Array, " G"]
    requirement_account: Int[Array, " R"]
    requirement_row: Int[Array, " R"]
    requirement_initial: Float[Array, " R"]
    requirement_maintenance: Float[Array, " R"]
    tier_account: Int[Array, " T"]
    tier_row: Int[Array, " T"]
    tier_notional: Float[Array, " T"]
    tier_conversion_row: Int[Array, " T"]
    tier_conversion: Float[Array, " T"]
    tier_inverse_leverage: Float[Array, " T"]
    tier_floor: Float[Array, "T tiers"]
    tier_increment: Float[Array, "T tiers"]
    tier_initial_rate: Float[Array, "T tiers"]
    units: UnitArrays | None


class Bucket(NamedTuple):
    """Portfolios of one shape: their positions in the shard, and their arrays with a leading axis (padded at the
    end).
    """

    members: tuple[int, ...]
    arrays: PortfolioArrays


class _Sizes(NamedTuple):
    accounts: int
    nodes: int
    lines: int
    legs: int
    native_legs: int
    groups: int
    requirements: int
    tiers: int
    tier_steps: int
    units: int
    options: int
    expiries: int
    collaterals: int
    contingencies: int
    grid_points: int
    has_grid: bool
    has_expiry: bool


def rounded_up(count: int, steps: Sequence[int] = _STEPS) -> int:
    """The smallest step that holds `count`; beyond the last step, the next multiple of it."""
    for step in steps:
        if count <= step:
            return step
    return -(-count // steps[-1]) * steps[-1]


def _sizes(portfolio: PackedPortfolio) -> _Sizes:
    units = portfolio.units
    return _Sizes(
        accounts=rounded_up(max(len(portfolio.accounts), 1)),
        nodes=rounded_up(max(len(portfolio.nodes), 1)),
        lines=rounded_up(max(len(portfolio.lines), 1)),
        legs=rounded_up(max(len(portfolio.legs), 1)),
        native_legs=rounded_up(max(len(portfolio.native_legs), 1)),
        groups=rounded_up(max(len(portfolio.groups), 1)),
        requirements=rounded_up(len(portfolio.requirements)),
        tiers=rounded_up(len(portfolio.tiers)),
        tier_steps=rounded_up(max((len(row[6]) for row in portfolio.tiers), default=0), _SMALL_STEPS)
        if portfolio.tiers
        else 0,
        units=rounded_up(len(units), _SMALL_STEPS) if units else 0,
        options=rounded_up(max((len(u.options) for u in units), default=0), _SMALL_STEPS) if units else 0,
        expiries=rounded_up(max((len(u.expiries) for u in units), default=0), _SMALL_STEPS) if units else 0,
        collaterals=rounded_up(max((len(u.collateral) for u in units), default=0), _SMALL_STEPS) if units else 0,
        contingencies=rounded_up(max((len(u.contingencies) for u in units), default=0), _SMALL_STEPS) if units else 0,
        grid_points=rounded_up(max((len(u.grid.scenarios) for u in units if u.grid), default=0), _SMALL_STEPS)
        if units
        else 0,
        has_grid=any(u.grid is not None for u in units),
        has_expiry=any(u.max_loss is not None for u in units),
    )


def _covering(sizes: Sequence[_Sizes]) -> _Sizes:
    return _Sizes(*(max(column) for column in zip(*sizes, strict=True)))


def bucketed(
    portfolios: Sequence[PackedPortfolio], factors: Sequence[str], *, multiple: int = 1, most_buckets: int = 6
) -> list[Bucket]:
    """Buckets of `portfolios` that have accounts; positions refer to the sequence given.

    Bucket lengths are powers of two and multiples of `multiple` (at least 2 per device, so that the loop over
    portfolios is never a single step that the compiler unrolls). More than `most_buckets` shapes are merged into the
    shape that covers all.
    """
    shapes: dict[_Sizes, list[int]] = defaultdict(list)
    for position, portfolio in enumerate(portfolios):
        if portfolio.accounts:
            shapes[_sizes(portfolio)].append(position)
    if len(shapes) > most_buckets:
        merged = [position for members in shapes.values() for position in members]
        shapes = defaultdict(list, {_covering(list(shapes)): sorted(merged)})
    index = {name: number for number, name in enumerate(factors)}
    out = []
    for sizes, members in sorted(shapes.items(), key=lambda item: item[1]):
        count = max(2 * multiple, multiple * rounded_up(-(-len(members) // multiple), [2**k for k in range(21)]))
        packed = [_arrays(portfolios[position], sizes, index) for position in members]
        empty = _arrays(PackedPortfolio(""), sizes, index)
        stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *packed, *[empty] * (count - len(packed)))
        out.append(Bucket(tuple(members), stacked))
    return out


def _column(values: Sequence[Any], size: int, dtype: type, fill: float = 0) -> Any:
    # Any: host arrays stand where the modules declare device arrays, until a bucket is stacked.
    out: Any = np.full(size, fill, dtype)
    out[: len(values)] = values
    return out


def _arrays(portfolio: PackedPortfolio, sizes: _Sizes, index: Mapping[str, int]) -> PortfolioArrays:
    """One portfolio's arrays (NumPy) at the bucket's sizes."""

    def numbers(rows: Sequence[Any], entry: int, size: int) -> Any:
        return _column([row[entry] for row in rows], size, np.float64)

    def indices(rows: Sequence[Any], entry: int, size: int) -> Any:
        return _column([row[entry] for row in rows], size, np.int32)

    def table(entry: int) -> Any:
        out = np.zeros((sizes.tiers, sizes.tier_steps))
        for number, row in enumerate(portfolio.tiers):
            values: np.ndarray = row[entry]  # type: ignore[assignment]
            out[number, : len(values)] = values
            out[number, len(values) :] = values[-1] if entry == 6 else 0.0
        return out

    accounts, lines = portfolio.accounts, portfolio.lines
    return PortfolioArrays(
        trigger=_column([a.trigger for a in accounts], sizes.accounts, np.float64, 1.0),
        at_or_below=_column([a.at_or_below for a in accounts], sizes.accounts, np.bool_),
        account_is_real=_column([True] * len(accounts), sizes.accounts, np.bool_),
        fixed_initial=numbers(portfolio.fixed, 0, sizes.accounts),
        fixed_maintenance=numbers(portfolio.fixed, 1, sizes.accounts),
        line_node=_column(portfolio.line_node, sizes.lines, np.int32),
        line_is_real=_column([True] * len(lines), sizes.lines, np.bool_),
        node_is_real=_column([True] * len(portfolio.nodes), sizes.nodes, np.bool_),
        leg_line=indices(portfolio.legs, 0, sizes.legs),
        leg_row=indices(portfolio.legs, 1, sizes.legs),
        leg_coefficient=numbers(portfolio.legs, 2, sizes.legs),
        native_group=indices(portfolio.native_legs, 0, sizes.native_legs),
        native_row=indices(portfolio.native_legs, 1, sizes.native_legs),
        native_coefficient=numbers(portfolio.native_legs, 2, sizes.native_legs),
        group_account=indices(portfolio.groups, 0, sizes.groups),
        group_asset_weight=numbers(portfolio.groups, 1, sizes.groups),
        group_liability_weight=numbers(portfolio.groups, 2, sizes.groups),
        requirement_account=indices(portfolio.requirements, 0, sizes.requirements),
        requirement_row=indices(portfolio.requirements, 1, sizes.requirements),
        requirement_initial=numbers(portfolio.requirements, 2, sizes.requirements),
        requirement_maintenance=numbers(portfolio.requirements, 3, sizes.requirements),
        tier_account=indices(portfolio.tiers, 0, sizes.tiers),
        tier_row=indices(portfolio.tiers, 1, sizes.tiers),
        tier_notional=numbers(portfolio.tiers, 2, sizes.tiers),
        tier_conversion_row=indices(portfolio.tiers, 3, sizes.tiers),
        tier_conversion=numbers(portfolio.tiers, 4, sizes.tiers),
        tier_inverse_leverage=numbers(portfolio.tiers, 5, sizes.tiers),
        tier_floor=table(6),
        tier_increment=table(7),
        tier_initial_rate=table(8),
        units=_units(portfolio.units, sizes, index) if sizes.units else None,
    )


def _units(units: Sequence[UnitRow], sizes: _Sizes, index: Mapping[str, int]) -> UnitArrays:
    count, options, expiries, collaterals = sizes.units, sizes.options, sizes.expiries, sizes.collaterals

    def scalar(read: Callable[[UnitRow], float], fill: float) -> Any:
        return _column([read(u) for u in units], count, np.float64, fill)

    def matrix(read: Callable[[UnitRow], Sequence[float]], size: int, fill: float, dtype: type = np.float64) -> Any:
        out: Any = np.full((count, size), fill, dtype)
        for number, unit in enumerate(units):
            values = list(read(unit))
            out[number, : len(values)] = values
        return out

    def stacked(packed: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *packed)

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
    )
    stable_factor: Any = np.zeros((count, TERMS), np.int32)
    stable_weight: Any = np.zeros((count, TERMS))
    for number, unit in enumerate(units):
        for term, (name, power) in enumerate(unit.stable_exponents):
            stable_factor[number, term], stable_weight[number, term] = index[name], power
    spare = count - len(units)
    grids = [u.grid for u in units] + [None] * spare
    losses = [u.max_loss for u in units] + [None] * spare
    return UnitArrays(
        account=_column([u.account for u in units], count, np.int32),
        market=market,
        price_factor=_column([index[u.price_factor] if u.price_factor else 0 for u in units], count, np.int32),
        price_weight=_column([float(u.price_factor is not None) for u in units], count, np.float64),
        vol_factor=_column([index.get(u.vol_factor, 0) for u in units], count, np.int32),
        vol_weight=_column([float(u.vol_factor in index) for u in units], count, np.float64),
        stable_factor=stable_factor,
        stable_weight=stable_weight,
        collateral_row=matrix(lambda u: [c[4] for c in u.collateral], collaterals, 0, np.int32),
        grid=_stacked_or_absent(grids, sizes.grid_points) if sizes.has_grid else None,
        contingency=stacked(
            [pack_contingencies(u.contingencies, sizes.contingencies) for u in units]
            + [pack_contingencies((), sizes.contingencies)] * spare
        ),
        expiry=_stacked_expiry(losses) if sizes.has_expiry else None,
        expiry_applies=_column([float(u.max_loss is not None) for u in units], count, np.float64),
    )


def _stacked_or_absent(grids: Sequence[PriceVolGrid | None], points: int) -> GridParameters:
    """Grid parameters of every unit; a unit without a grid gets one that charges nothing."""
    packed = [pack_grid(grid or _NO_GRID, points) for grid in grids]
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
    discount=StaticDiscount(
        long_base=_ONE,
        long_rate_mult=_ZERO,
        long_rate_add=_ZERO,
        short_base=_ONE,
        short_rate_mult=_ZERO,
        short_rate_add=_ZERO,
    ),
    initial_factor=_ZERO,
    maintenance_factor=_ZERO,
)
_NO_EXPIRY = ExpiryMaxLoss(
    per_contract=OptionFormula.model_validate(dict.fromkeys(OptionFormula.model_fields, _ZERO)),
    unpaired_initial_scale=_ZERO,
    unpaired_maintenance_scale=_ZERO,
)
