"""One account alone: a portfolio of its own over a small cube of the rows and factors that its rules depend on.

Host code. An account's verdict depends on few of the factors of a book, and its cost should not grow with the book.
Factors are numbered from 0 for each account (**slots**), by name; rows of options stand behind the padded product rows
of a bucket, so they are negative (-1, -2, ...) until it is known how many these are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np

from .batch import PortfolioArrays
from .condensed import AccountRows, BookCube
from .cube import TERMS, CubeRows
from .portfolio import PackedPortfolio
from .unit_batch import rounded_up


class Alone(NamedTuple):
    """One account as a portfolio over a cube of its own: rows and factors of the book in the order of their slots."""

    portfolio: PackedPortfolio
    factors: list[str]
    products: list[int]
    options: list[int]


def alone(book: BookCube, account: AccountRows) -> Alone:
    """The account with everything that its rules refer to, and nothing else."""
    used = account.rows() | {0}
    products = sorted(row for row in used if row < book.factor_rows)
    options = sorted(row for row in used if row >= book.factor_rows)
    names = {name for row in used for name in book.factors_of(row)}
    names |= {book.factors[int(book.rows.vol_factor[row - book.factor_rows])] for row in options}
    for unit in account.units:
        names |= {name for name, power in unit.stable_exponents if power}
        names |= {name for name in (unit.price_factor, unit.vol_factor) if name is not None}
    factors = sorted(names & set(book.factors))
    slot = {name: str(number) for number, name in enumerate(factors)}
    # Option rows lie behind the padded product rows, whose number only the bucket knows: negative until then.
    place = {row: number for number, row in enumerate(products)}
    place |= {row: -1 - number for number, row in enumerate(options)}

    small = PackedPortfolio("", accounts=[account.info], fixed=[(0.0, account.maintenance, account.equity)])
    for number, (group, legs) in enumerate(account.groups):
        small.groups.append((0, group._replace(floor_row=place[group.floor_row])))
        small.native_legs += [(number, place[leg.row], leg.coefficient) for leg in legs]
    small.requirements = [(0, place[leg.row], 0.0, leg.coefficient) for leg in account.requirements]
    small.tiers = [
        (0, tier._replace(row=place[tier.row], conversion_row=place[tier.conversion_row])) for tier in account.tiers
    ]
    small.units = [
        unit._replace(
            account=0,
            price_factor=None if unit.price_factor is None else slot[unit.price_factor],
            vol_factor=slot.get(unit.vol_factor, ""),
            stable_exponents=tuple((slot[name], power) for name, power in unit.stable_exponents if power),
            collateral=tuple((*token[:4], place[token[4]]) for token in unit.collateral),
        )
        for unit in account.units
    ]
    return Alone(small, factors, products, options)


def resolved(portfolio: PortfolioArrays, behind: int) -> PortfolioArrays:
    """Rows of options, negative so far, behind the `behind` product rows of the bucket's cubes."""

    def at(rows: Any) -> Any:
        return np.where(rows >= 0, rows, behind - 1 - rows).astype(np.int32)

    names = ("native_row", "group_floor_row", "requirement_row", "tier_row", "tier_conversion_row")
    return eqx.tree_at(
        lambda p: [getattr(p, name) for name in names], portfolio, [at(getattr(portfolio, name)) for name in names]
    )


def small_cubes(members: Sequence[Alone], book: BookCube, count: int) -> tuple[CubeRows, Any]:
    """The cubes of all accounts of a bucket and their rows today (NumPy), padded to `count` accounts."""
    products = rounded_up(max(len(one.products) for one in members))
    options = rounded_up(max(len(one.options) for one in members))
    neutral: Mapping[str, tuple[float, type]] = {
        "forward": (1.0, np.float64),
        "strike": (1.0, np.float64),
        "years": (0.1, np.float64),
        "vol": (0.5, np.float64),
        "discount": (1.0, np.float64),
        "is_call": (True, np.bool_),
        "conversion_today": (0.0, np.float64),
    }
    # Any: host arrays stand where the module declares device arrays.
    columns: dict[str, Any] = {name: np.full((count, options), fill, kind) for name, (fill, kind) in neutral.items()}
    columns |= {
        "exponent_factor": np.zeros((count, products, TERMS), np.int32),
        "exponent_weight": np.zeros((count, products, TERMS)),
        "price_factor": np.zeros((count, options), np.int32),
        "vol_factor": np.zeros((count, options), np.int32),
        "conversion_factor": np.zeros((count, options, TERMS), np.int32),
        "conversion_weight": np.zeros((count, options, TERMS)),
    }
    today = np.concatenate([np.ones((count, products)), np.zeros((count, options))], axis=1)
    for number, one in enumerate(members):
        slot = {book.factors.index(name): place for place, name in enumerate(one.factors)}
        at = np.array(one.options, np.int64) - book.factor_rows

        def slots(of: Any, slot: Mapping[int, int] = slot) -> Any:
            """Slots of factors; what has none stands in a product with weight 0."""
            return np.array([slot.get(int(f), 0) for f in np.ravel(of)], np.int32).reshape(np.shape(of))

        factor, weight = np.asarray(book.rows.exponent_factor), np.asarray(book.rows.exponent_weight)
        columns["exponent_factor"][number, : len(one.products)] = slots(factor[one.products])
        columns["exponent_weight"][number, : len(one.products)] = weight[one.products]
        for name in neutral:
            columns[name][number, : len(at)] = np.asarray(getattr(book.rows, name))[at]
        for name in ("price_factor", "vol_factor"):
            columns[name][number, : len(at)] = slots(np.asarray(getattr(book.rows, name))[at])
        factor, weight = np.asarray(book.rows.conversion_factor), np.asarray(book.rows.conversion_weight)
        columns["conversion_factor"][number, : len(at)] = slots(factor[at])
        columns["conversion_weight"][number, : len(at)] = weight[at]
        today[number, products : products + len(at)] = book.today[one.options]
    return CubeRows(**columns), today
