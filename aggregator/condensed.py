"""One account under one price, condensed to a small portfolio: what the price moves stays as rows, all else is summed.

A **mover** is a price factor (`price:ETH`), which moves everything that depends on it, or the mark of one instrument
(`mark:venue:ETH-PERP`), which moves the instrument's own positions and leaves prices of assets, other contracts and
options where they are. Host code in NumPy and plain numbers; the cost of a search grows with what its mover moves, not
with the account or the book.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .account import AccountInfo, OwnMark, TierEntry, ValueGroup
from .cube import CubeRows
from .portfolio import PackedPortfolio
from .risk_units import UnitRow

PRICE, MARK = "price:", "mark:"
"""What the name of a mover begins with."""
POWERS = 8
"""Most powers of one mover that rows can have: of -3 .. 3, padded."""
STILL, MOVED = "still", "moved"
"""Factors of a condensed portfolio."""


class BookCube(NamedTuple):
    """The book's cube on the host (NumPy leaves) and its factors."""

    factors: Sequence[str]
    rows: CubeRows
    today: np.ndarray

    @property
    def factor_rows(self) -> int:
        return int(self.rows.exponent_factor.shape[0])

    def _products(self, row: int) -> Iterable[tuple[str, float]]:
        """Factors of a row's product: of the row itself, or of an option's conversion."""
        option = row - self.factor_rows
        factor, weight = (
            (self.rows.exponent_factor[row], self.rows.exponent_weight[row])
            if option < 0
            else (self.rows.conversion_factor[option], self.rows.conversion_weight[option])
        )
        return ((self.factors[int(f)], float(w)) for f, w in zip(factor, weight, strict=True) if w != 0.0)

    def factors_of(self, row: int) -> set[str]:
        """Factors that move a row, implied vols aside."""
        names = {name for name, _ in self._products(row)}
        if row >= self.factor_rows:
            names.add(self.factors[int(self.rows.price_factor[row - self.factor_rows])])
        return names

    def power(self, row: int, factor: str) -> float:
        """Power of a factor in a row's product."""
        return math.fsum(weight for name, weight in self._products(row) if name == factor)


class Leg(NamedTuple):
    """`coefficient` times the value of a row of the book's cube; `mark` where one moves it alone."""

    row: int
    coefficient: float
    mark: OwnMark | None = None


class AccountRows(NamedTuple):
    """One account's rows; rows are those of the book's cube."""

    info: AccountInfo
    groups: list[tuple[ValueGroup, list[Leg]]]
    requirements: list[Leg]
    tiers: list[TierEntry]
    units: list[UnitRow]
    maintenance: float
    equity: float

    def rows(self) -> set[int]:
        """Every row that the account's rules refer to."""
        out = {leg.row for _, legs in self.groups for leg in legs} | {leg.row for leg in self.requirements}
        out |= {group.floor_row for group, _ in self.groups}
        out |= {row for tier in self.tiers for row in (tier.row, tier.conversion_row)}
        return out | {token[4] for unit in self.units for token in unit.collateral}

    def price_factors(self, exposed: Mapping[int, set[str]]) -> list[str]:
        """Price factors that move something of the account, sorted; `exposed` are the factors of its rows."""
        names = {name for of_row in exposed.values() for name in of_row}
        for unit in self.units:
            names |= {name for name, power in unit.stable_exponents if power}
            names |= {unit.price_factor} if unit.price_factor else set()
        return sorted(name for name in names if name.startswith(PRICE))

    def marks(self) -> list[OwnMark]:
        """Marks that move something of the account alone, sorted."""
        found = {leg.mark for _, legs in self.groups for leg in legs} | {tier.mark for tier in self.tiers}
        return sorted(mark for mark in found if mark is not None)


def accounts_of(portfolio: PackedPortfolio) -> list[AccountRows]:
    """The accounts of a portfolio, in its order."""
    legs: dict[int, list[Leg]] = defaultdict(list)
    for number, (group, row, coefficient) in enumerate(portfolio.native_legs):
        legs[group].append(Leg(row, coefficient, portfolio.leg_marks.get(number)))
    out = [
        AccountRows(info, [], [], [], [], fixed[1], fixed[2])
        for info, fixed in zip(portfolio.accounts, portfolio.fixed, strict=True)
    ]
    for number, (account, value_group) in enumerate(portfolio.groups):
        out[account].groups.append((value_group, legs[number]))
    for account, row, _, maintenance in portfolio.requirements:
        out[account].requirements.append(Leg(row, maintenance))
    for account, tier in portfolio.tiers:
        out[account].tiers.append(tier)
    for unit in portfolio.units:
        out[unit.account].units.append(unit)
    return out


class Condensed(NamedTuple):
    """One account under one mover: its small portfolio, and the rows of the cube that the mover moves."""

    mover: str
    portfolio: PackedPortfolio
    powers: list[float]
    options: list[int]
    """Rows of the book's cube."""

    def moves_the_same(self, other: Condensed) -> bool:
        """Whether both move the same of one account, so that one answer holds for both."""
        return self._moved() == other._moved()

    def _moved(self) -> tuple[object, ...]:
        small = self.portfolio
        # Tables of one position are one object in both.
        tiers = [(entry._replace(tables=None, mark=None), id(entry.tables)) for _, entry in small.tiers]  # type: ignore[arg-type]
        rows = small.native_legs, small.groups, small.requirements, tiers, small.fixed, small.units
        return (*rows, self.powers, self.options)


def condensed(book: BookCube, account: AccountRows, exposed: Mapping[int, set[str]], mover: str) -> Condensed:
    """What the mover moves as rows of a small cube, everything else as constants. `exposed` are the factors of the
    account's rows.

    The small cube has the powers of the mover in its first rows, power 0 first, and behind them the options that it
    moves; row 0 stands for whatever stays. Raises `ValueError` for more powers than a cube has room for.
    """
    instrument = mover.removeprefix(MARK) if mover.startswith(MARK) else None
    moving = {row for row, factors in exposed.items() if mover in factors}
    options = sorted(row for row in moving if row >= book.factor_rows)
    found = {book.power(row, mover) for row in moving if row < book.factor_rows}
    found |= {mark.power for mark in account.marks() if mark.instrument_id == instrument}
    powers = [0.0, *sorted(found - {0.0})]
    if len(powers) > POWERS:
        raise ValueError(f"{mover} in {len(powers)} different powers, at most {POWERS} are possible")
    number = {row: POWERS + place for place, row in enumerate(options)}

    def local(row: int, mark: OwnMark | None = None) -> int:
        if instrument is not None:
            return 0 if mark is None or mark.instrument_id != instrument else powers.index(mark.power)
        if row not in moving:
            return 0
        return number[row] if row in number else powers.index(book.power(row, mover))

    def summed(legs: Iterable[Leg]) -> dict[int, float]:
        """Coefficients by local row; what stays is its worth today, on row 0."""
        parts: dict[int, list[float]] = defaultdict(list)
        for leg in legs:
            at = local(leg.row, leg.mark)
            parts[at].append(leg.coefficient if at else leg.coefficient * float(book.today[leg.row]))
        return {at: math.fsum(of) for at, of in sorted(parts.items())}

    equity, maintenance = [account.equity], [account.maintenance]
    small = PackedPortfolio("", accounts=[account.info])
    for group, rows in account.groups:
        legs = summed(rows)
        if any(legs) or local(group.floor_row):
            small.native_legs += [(len(small.groups), at, coefficient) for at, coefficient in legs.items()]
            small.groups.append((0, group._replace(floor_row=local(group.floor_row))))
        else:
            equity.append(_counted(group, legs.get(0, 0.0)))
            maintenance.append(group.debt_maintenance * max(-legs.get(0, 0.0), 0.0))
    required = summed(account.requirements)
    maintenance.append(required.pop(0, 0.0))
    small.requirements = [(0, at, 0.0, coefficient) for at, coefficient in required.items()]
    for tier in account.tiers:
        moved = tier._replace(row=local(tier.row, tier.mark), conversion_row=local(tier.conversion_row))
        if moved.row or moved.conversion_row:
            small.tiers.append((0, moved))
        else:
            maintenance.append(_tier_maintenance(tier))
    small.units = [_unit(unit, mover, local) for unit in account.units]
    small.fixed = [(0.0, math.fsum(maintenance), math.fsum(equity))]
    return Condensed(mover, small, powers, options)


def _counted(group: ValueGroup, net: float) -> float:
    """What a constant net value counts; `rules.weighted_value` in plain numbers."""
    steps = np.diff((0.0, *group.maintenance_weights))
    parts = [float(step) * max(net - floor, 0.0) for floor, step in zip(group.floors, steps, strict=True)]
    return math.fsum([*parts, min(net, 0.0) * group.liability_maintenance])


def _tier_maintenance(tier: TierEntry) -> float:
    """Requirement of a position that nothing moves; `rules.tiered_notional` in plain numbers."""
    tables = tier.tables
    above = np.maximum(tier.notional - tables.floor, 0.0)
    parts = [*(tables.step * above), *np.where(above > 0.0, tables.jump, 0.0)]
    return max(math.fsum(parts), tier.minimum) * tier.conversion


def _unit(unit: UnitRow, mover: str, local: Callable[[int], int]) -> UnitRow:
    return unit._replace(
        account=0,
        price_factor=None if unit.price_factor is None else _renamed(unit.price_factor, mover),
        vol_factor=STILL,
        stable_exponents=tuple((_renamed(name, mover), power) for name, power in unit.stable_exponents),
        collateral=tuple((*token[:4], local(token[4])) for token in unit.collateral),
    )


def _renamed(name: str, mover: str) -> str:
    return MOVED if name == mover else STILL
