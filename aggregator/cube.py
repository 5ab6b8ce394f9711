"""The instrument cube: every distinct payoff of a book, priced once per scenario and shared by all portfolios.

A row is one of two kinds. A **factor row** is a product of powers of factor prices relative to today,
`exp(sum weight * shock)`: a token, a perp, a future, a stablecoin, a currency conversion. Row 0 is the constant. An
**option row** is a European option in money per unit, repriced in full. Today's value of a factor row is 1, of an
option row its price; what a scenario yields is the *change* from today, computed in float64 and kept as float32 (no
cancellation: `expm1`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from .one_kernel import one_kernel
from .pricing import (
    DAYS_PER_YEAR,
    LARGEST_LOG_VOL_CHANGE,
    black76_price,
    discount_at_horizon,
    log_moneyness,
    vol_term_scale,
)
from .rounding import rounded

TERMS = 4
"""Most factors in one product: an underlying (price, peg) against a settlement asset (price or peg) and a unit."""

Exponents = Mapping[str, float]
"""Factor name to power; an empty mapping is the constant."""


class OptionTerms(NamedTuple):
    """One option at today's market: money is the quote currency of its forward, time in years."""

    forward: float
    strike: float
    years: float
    vol: float
    discount: float
    is_call: bool
    price_factor: str
    vol_factor: str
    conversion: tuple[tuple[str, float], ...]
    """Exponents that turn the quote currency into the row's money (a settlement stable's peg, say)."""
    conversion_today: float


class CubeRows(eqx.Module):
    """The rows of a cube on the device. K factor rows come first, then I option rows."""

    exponent_factor: Int[Array, "K terms"]
    exponent_weight: Float[Array, "K terms"]
    forward: Float[Array, " I"]
    strike: Float[Array, " I"]
    years: Float[Array, " I"]
    vol: Float[Array, " I"]
    discount: Float[Array, " I"]
    is_call: Bool[Array, " I"]
    price_factor: Int[Array, " I"]
    vol_factor: Int[Array, " I"]
    conversion_factor: Int[Array, "I terms"]
    conversion_weight: Float[Array, "I terms"]
    conversion_today: Float[Array, " I"]

    def log_change(self, shocks: Float[Array, " factors"], row: Int[Array, ""]) -> Float[Array, ""]:
        """Log change of one factor row in one scenario."""
        return _power_sum(shocks, self.exponent_factor[row], self.exponent_weight[row])

    def today(self) -> Float[Array, " rows"]:
        """Today's value of every row: 1 for factor rows, the price for option rows."""
        price = jax.vmap(
            lambda f, k, t, s, d, c: black76_price(f, k, years=t, vol=s, is_call=c, discount=d),
        )(self.forward, self.strike, self.years, self.vol, self.discount, self.is_call)
        return jnp.concatenate([jnp.ones(self.exponent_factor.shape[0], jnp.float64), price * self.conversion_today])

    def changes(
        self, shocks: Float[Array, " factors"], *, horizon_years: float, dtype: DTypeLike = jnp.float32
    ) -> Float[Array, " rows"]:
        """Change of every row's value from today in one scenario, computed in float64 and handed out in `dtype`.

        Options at T - h with their own vol moved by their underlying's (sticky strike); expired inside h: intrinsic.
        """
        return self._changes(self._moves(shocks[:, None]), horizon_years)[:, 0].astype(dtype)

    def changes_in_tile(
        self, shocks: Float[Array, "tile factors"], *, horizon_years: float
    ) -> Float[Array, "rows tile"]:
        """`changes` in the scenarios of a tile, float32."""
        # What the rows take from the factors is written down before it is computed with: read in the midst of a
        # formula, a factor of each row's own keeps the compiler from computing several scenarios at a time.
        written_down = one_kernel(lambda moves: moves)
        return self._changes(written_down(self._moves(shocks.T)), horizon_years).astype(jnp.float32)

    def _moves(self, by_factor: Float[Array, "factors tile"]) -> _Moves:
        powers = jax.vmap(functools.partial(_power_sum, by_factor))
        return _Moves(
            product=powers(self.exponent_factor, self.exponent_weight),
            price=by_factor[self.price_factor],
            vol=by_factor[self.vol_factor],
            conversion=powers(self.conversion_factor, self.conversion_weight),
        )

    def _changes(self, moves: _Moves, horizon_years: float) -> Float[Array, "rows tile"]:
        def of_option(option: _Option, *moves: Array) -> Array:
            return jax.vmap(option.change)(*moves)

        options = jax.vmap(of_option)(self._options(horizon_years), moves.price, moves.vol, moves.conversion)
        return jnp.concatenate([jnp.expm1(moves.product), options])

    def _options(self, horizon_years: float) -> _Option:
        def of(*terms: Array) -> tuple[Array, ...]:
            forward, strike, years, vol, discount, is_call, conversion_today = terms
            today = black76_price(forward, strike, years=years, vol=vol, is_call=is_call, discount=discount)
            return (
                rounded(today * conversion_today),
                log_moneyness(forward, strike),
                jnp.maximum(years - horizon_years, 0.0),
                discount_at_horizon(discount, years, horizon_years=horizon_years),
                vol_term_scale(years),
            )

        terms = (self.forward, self.strike, self.years, self.vol, self.discount, self.is_call, self.conversion_today)
        today, moneyness, years, discount, vol_scale = jax.vmap(of)(*terms)
        return _Option(
            today=today,
            forward=self.forward,
            strike=self.strike,
            moneyness=moneyness,
            years=years,
            vol=self.vol,
            vol_scale=vol_scale,
            discount=discount,
            is_call=self.is_call,
            conversion_today=self.conversion_today,
        )


class _Moves(NamedTuple):
    """Log changes that the rows take from the factors: of factor rows (K), of the options' forwards, of their
    underlyings' volatilities, of their conversions (I).
    """

    product: Float[Array, "K tile"]
    price: Float[Array, "I tile"]
    vol: Float[Array, "I tile"]
    conversion: Float[Array, "I tile"]


class _Option(NamedTuple):
    """An option row with all that is the same in every scenario: its value today in the row's money, ln(F/K), years and
    discount that are left at the horizon, and how much its log volatility moves with its underlying's.
    """

    today: Float[Array, ""]
    forward: Float[Array, ""]
    strike: Float[Array, ""]
    moneyness: Float[Array, ""]
    years: Float[Array, ""]
    vol: Float[Array, ""]
    vol_scale: Float[Array, ""]
    discount: Float[Array, ""]
    is_call: Bool[Array, ""]
    conversion_today: Float[Array, ""]

    def change(self, price: Float[Array, ""], vol: Float[Array, ""], conversion: Float[Array, ""]) -> Float[Array, ""]:
        """Change in the row's money in one scenario, from the log changes of `_Moves`."""
        vol_change = vol * self.vol_scale
        moved = black76_price(
            self.forward * jnp.exp(price),
            self.strike,
            years=self.years,
            vol=self.vol * jnp.exp(jnp.clip(vol_change, -LARGEST_LOG_VOL_CHANGE, LARGEST_LOG_VOL_CHANGE)),
            is_call=self.is_call,
            discount=self.discount,
            moneyness=self.moneyness + price,
        )
        return rounded(moved * rounded(self.conversion_today * jnp.exp(conversion))) - self.today


def _power_sum(
    shocks: Float[Array, " factors"], factor: Int[Array, " terms"], weight: Float[Array, " terms"]
) -> Float[Array, ""]:
    # TERMS additions in a fixed order: a reduction would leave the order, and so the bits, to the compiler.
    total = rounded(weight[0] * shocks[factor[0]])
    for term in range(1, TERMS):
        total = total + rounded(weight[term] * shocks[factor[term]])
    return total


class CubeBuilder:
    """Collects distinct rows on the host and gives each a number; the factor list is fixed at the end, sorted by
    name.
    """

    def __init__(self) -> None:
        self._factor_rows: dict[tuple[tuple[str, float], ...], int] = {(): 0}
        self._option_rows: dict[OptionTerms, int] = {}

    def factor_row(self, exponents: Exponents) -> int:
        """Number of the factor row with these exponents (zero powers dropped)."""
        key = tuple(sorted((name, power) for name, power in exponents.items() if power != 0.0))
        if len(key) > TERMS:
            raise ValueError(f"a product of {len(key)} factors, at most {TERMS} are possible: {key}")
        return self._factor_rows.setdefault(key, len(self._factor_rows))

    def option_row(self, terms: OptionTerms) -> int:
        """Number of the option row, as a negative number -1, -2, ...; `finished_row` turns it into the row of the
        cube.
        """
        if len(terms.conversion) > TERMS:
            raise ValueError(f"a conversion by {len(terms.conversion)} factors, at most {TERMS} are possible")
        return -1 - self._option_rows.setdefault(terms, len(self._option_rows))

    def finished_row(self, row: int) -> int:
        """Number of a row in the finished cube (option rows lie behind the factor rows)."""
        return row if row >= 0 else len(self._factor_rows) - 1 - row

    def factors(self) -> tuple[str, ...]:
        """Every factor that some row uses, sorted."""
        names = {name for key in self._factor_rows for name, _ in key}
        for terms in self._option_rows:
            names |= {terms.price_factor, terms.vol_factor} | {name for name, _ in terms.conversion}
        return tuple(sorted(names))

    def build(self, factors: Sequence[str]) -> CubeRows:
        """The rows on the device, with factor names turned into indices of `factors`."""
        index = {name: number for number, name in enumerate(factors)}
        factor_keys = list(self._factor_rows)
        options = list(self._option_rows)

        def padded(keys: Sequence[tuple[tuple[str, float], ...]]) -> tuple[np.ndarray, np.ndarray]:
            factor = np.zeros((len(keys), TERMS), np.int32)
            weight = np.zeros((len(keys), TERMS), np.float64)
            for row, key in enumerate(keys):
                for term, (name, power) in enumerate(key):
                    factor[row, term], weight[row, term] = index[name], power
            return factor, weight

        exponent_factor, exponent_weight = padded(factor_keys)
        conversion_factor, conversion_weight = padded([terms.conversion for terms in options])

        def column(name: str, dtype: DTypeLike = np.float64) -> np.ndarray:
            return np.array([getattr(terms, name) for terms in options], dtype)

        def factor(name: str) -> np.ndarray:
            return np.array([index[getattr(terms, name)] for terms in options], np.int32)

        columns: dict[str, Any] = {
            "exponent_factor": exponent_factor,
            "exponent_weight": exponent_weight,
            **{name: column(name) for name in ("forward", "strike", "years", "vol", "discount", "conversion_today")},
            "is_call": column("is_call", bool),
            "price_factor": factor("price_factor"),
            "vol_factor": factor("vol_factor"),
            "conversion_factor": conversion_factor,
            "conversion_weight": conversion_weight,
        }
        # Not `jnp.asarray`, which compiles a program for every shape that it is given.
        return jax.device_put(CubeRows(**columns))


def years_until(seconds: float) -> float:
    """Years of 365 days in `seconds`, never negative."""
    return max(seconds, 0.0) / (DAYS_PER_YEAR * 86_400.0)
