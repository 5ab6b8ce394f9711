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
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .account import TierEntry, ValueGroup
from .portfolio import PackedPortfolio
from .unit_batch import UnitArrays, UnitSizes, column, covering_units, rounded_up, unit_arrays, unit_sizes

_LENGTHS = (8, 64, *(2**k for k in range(8, 21)))
_WIDTHS = (1, 4, 16, 64, 256, 1024)


class PortfolioArrays(eqx.Module):
    """One bucket of portfolios (shapes without the leading P are those of one portfolio)."""

    trigger: Float[Array, " A"]
    at_or_below: Bool[Array, " A"]
    needs_requirement: Bool[Array, " A"]
    account_is_real: Bool[Array, " A"]
    fixed_initial: Float[Array, " A"]
    fixed_maintenance: Float[Array, " A"]
    fixed_equity: Float[Array, " A"]
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
    group_floor: Float[Array, "G slices"]
    group_floor_row: Int[Array, " G"]
    group_initial_step: Float[Array, "G slices"]
    group_maintenance_step: Float[Array, "G slices"]
    group_liability_initial: Float[Array, " G"]
    group_liability_maintenance: Float[Array, " G"]
    group_debt_initial: Float[Array, " G"]
    group_debt_maintenance: Float[Array, " G"]
    requirement_account: Int[Array, " R"]
    requirement_row: Int[Array, " R"]
    requirement_initial: Float[Array, " R"]
    requirement_maintenance: Float[Array, " R"]
    tier_account: Int[Array, " T"]
    tier_row: Int[Array, " T"]
    tier_notional: Float[Array, " T"]
    tier_conversion_row: Int[Array, " T"]
    tier_conversion: Float[Array, " T"]
    tier_initial_notional: Float[Array, " T"]
    tier_inverse_leverage: Float[Array, " T"]
    tier_minimum: Float[Array, " T"]
    tier_at_least_maintenance: Bool[Array, " T"]
    tier_floor: Float[Array, "T tiers"]
    tier_step: Float[Array, "T tiers"]
    tier_jump: Float[Array, "T tiers"]
    tier_initial_step: Float[Array, "T tiers"]
    tier_initial_jump: Float[Array, "T tiers"]
    units: UnitArrays | None


class Bucket(NamedTuple):
    """Portfolios of one shape: their positions in the shard, and their arrays (NumPy) with a leading axis, padded at
    the end.
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
    slices: int
    requirements: int
    tiers: int
    tier_steps: int
    units: UnitSizes


def _sizes(portfolio: PackedPortfolio) -> _Sizes:
    return _Sizes(
        accounts=rounded_up(max(len(portfolio.accounts), 1)),
        nodes=rounded_up(max(len(portfolio.nodes), 1)),
        lines=rounded_up(max(len(portfolio.lines), 1)),
        legs=rounded_up(max(len(portfolio.legs), 1)),
        native_legs=rounded_up(max(len(portfolio.native_legs), 1)),
        groups=rounded_up(max(len(portfolio.groups), 1)),
        slices=rounded_up(max((len(group.floors) for _, group in portfolio.groups), default=1), _WIDTHS),
        requirements=rounded_up(len(portfolio.requirements)),
        tiers=rounded_up(len(portfolio.tiers)),
        tier_steps=rounded_up(max((len(entry.tables.floor) for _, entry in portfolio.tiers), default=0), _WIDTHS)
        if portfolio.tiers
        else 0,
        units=unit_sizes(portfolio.units),
    )


def _covering(sizes: Sequence[_Sizes]) -> _Sizes:
    rows = {name: max(getattr(s, name) for s in sizes) for name in _Sizes._fields if name != "units"}
    return _Sizes(**rows, units=covering_units([s.units for s in sizes]))


def bucketed(
    portfolios: Sequence[PackedPortfolio], factors: Sequence[str], *, multiple: int = 1, most_buckets: int = 6
) -> list[Bucket]:
    """Buckets of `portfolios` that have accounts; positions refer to the sequence given.

    Bucket lengths are few and multiples of `multiple`: the loop over portfolios stops behind the members. More than
    `most_buckets` shapes are merged into the shape that covers all.
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
        count = padded_length(len(members), multiple)
        packed = [_arrays(portfolios[position], sizes, index) for position in members]
        empty = _arrays(PackedPortfolio(""), sizes, index)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *packed, *[empty] * (count - len(packed)))
        out.append(Bucket(tuple(members), stacked))
    return out


def padded_length(members: int, devices: int) -> int:
    """Length of a bucket for so many members: few lengths for small ones, at most twice as many for large ones."""
    return devices * rounded_up(-(-members // devices), _LENGTHS)


def _arrays(portfolio: PackedPortfolio, sizes: _Sizes, index: Mapping[str, int]) -> PortfolioArrays:
    """One portfolio's arrays (NumPy) at the bucket's sizes."""

    def numbers(rows: Sequence[Any], entry: int, size: int) -> Any:
        return column([row[entry] for row in rows], size, np.float64)

    def indices(rows: Sequence[Any], entry: int, size: int) -> Any:
        return column([row[entry] for row in rows], size, np.int32)

    def table(
        values: Sequence[Sequence[float] | np.ndarray], width: int, rows: int, *, repeat_last: bool = False
    ) -> Any:
        out = np.zeros((rows, width))
        for number, row in enumerate(values):
            out[number, : len(row)] = row
            if repeat_last:
                out[number, len(row) :] = row[-1]
        return out

    groups = [group for _, group in portfolio.groups]
    tiers = [entry for _, entry in portfolio.tiers]
    tables = [entry.tables for entry in tiers]
    slices, steps = sizes.slices, sizes.tier_steps

    def of_groups(read: Callable[[ValueGroup], float], dtype: type = np.float64) -> Any:
        return column([read(group) for group in groups], sizes.groups, dtype)

    def of_tiers(read: Callable[[TierEntry], float], dtype: type = np.float64) -> Any:
        return column([read(entry) for entry in tiers], sizes.tiers, dtype)

    accounts, lines = portfolio.accounts, portfolio.lines
    return PortfolioArrays(
        trigger=column([a.trigger for a in accounts], sizes.accounts, np.float64, 1.0),
        at_or_below=column([a.at_or_below for a in accounts], sizes.accounts, np.bool_),
        needs_requirement=column([a.needs_requirement for a in accounts], sizes.accounts, np.bool_),
        account_is_real=column([True] * len(accounts), sizes.accounts, np.bool_),
        fixed_initial=numbers(portfolio.fixed, 0, sizes.accounts),
        fixed_maintenance=numbers(portfolio.fixed, 1, sizes.accounts),
        fixed_equity=numbers(portfolio.fixed, 2, sizes.accounts),
        line_node=column(portfolio.line_node, sizes.lines, np.int32),
        line_is_real=column([True] * len(lines), sizes.lines, np.bool_),
        node_is_real=column([True] * len(portfolio.nodes), sizes.nodes, np.bool_),
        leg_line=indices(portfolio.legs, 0, sizes.legs),
        leg_row=indices(portfolio.legs, 1, sizes.legs),
        leg_coefficient=numbers(portfolio.legs, 2, sizes.legs),
        native_group=indices(portfolio.native_legs, 0, sizes.native_legs),
        native_row=indices(portfolio.native_legs, 1, sizes.native_legs),
        native_coefficient=numbers(portfolio.native_legs, 2, sizes.native_legs),
        group_account=indices(portfolio.groups, 0, sizes.groups),
        group_floor=table([g.floors for g in groups], slices, sizes.groups, repeat_last=True),
        group_floor_row=of_groups(lambda g: g.floor_row, np.int32),
        group_initial_step=table([np.diff((0.0, *g.initial_weights)) for g in groups], slices, sizes.groups),
        group_maintenance_step=table([np.diff((0.0, *g.maintenance_weights)) for g in groups], slices, sizes.groups),
        group_liability_initial=of_groups(lambda g: g.liability_initial),
        group_liability_maintenance=of_groups(lambda g: g.liability_maintenance),
        group_debt_initial=of_groups(lambda g: g.debt_initial),
        group_debt_maintenance=of_groups(lambda g: g.debt_maintenance),
        requirement_account=indices(portfolio.requirements, 0, sizes.requirements),
        requirement_row=indices(portfolio.requirements, 1, sizes.requirements),
        requirement_initial=numbers(portfolio.requirements, 2, sizes.requirements),
        requirement_maintenance=numbers(portfolio.requirements, 3, sizes.requirements),
        tier_account=indices(portfolio.tiers, 0, sizes.tiers),
        tier_row=of_tiers(lambda t: t.row, np.int32),
        tier_notional=of_tiers(lambda t: t.notional),
        tier_conversion_row=of_tiers(lambda t: t.conversion_row, np.int32),
        tier_conversion=of_tiers(lambda t: t.conversion),
        tier_initial_notional=of_tiers(lambda t: t.initial_notional),
        tier_inverse_leverage=of_tiers(lambda t: t.inverse_leverage),
        tier_minimum=of_tiers(lambda t: t.minimum),
        tier_at_least_maintenance=of_tiers(lambda t: t.initial_at_least_maintenance, np.bool_),
        tier_floor=table([t.floor for t in tables], steps, sizes.tiers, repeat_last=True),
        tier_step=table([t.step for t in tables], steps, sizes.tiers),
        tier_jump=table([t.jump for t in tables], steps, sizes.tiers),
        tier_initial_step=table([t.initial_step for t in tables], steps, sizes.tiers),
        tier_initial_jump=table([t.initial_jump for t in tables], steps, sizes.tiers),
        units=unit_arrays(portfolio.units, sizes.units, index) if sizes.units.units else None,
    )
