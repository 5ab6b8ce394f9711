"""The books that the margin is tested on: unit notional, rebuilt every day, revalued in full.

A book has delta-one legs (spot, staked tokens, linear perpetuals: one dollar figure per leg) and European options with
strike and size relative to the price of the day, so that it is the same book on every day. Revaluation is host NumPy in
float64 and mirrors `aggregator.pricing` (Black-76 on the undiscounted forward, which is the price itself). Quantities
are in USD of notional, long positive; losses positive, in USD per USD of notional; volatilities annual, times in days.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from .errors import ConfigurationError, nearest_name

DAYS_PER_YEAR = 365.0

OPTION_DAYS = 30.0
"""Days to expiry of every option of a book: that of the implied volatility series."""

SHORTEST_DAYS = 1e-9
"""An option with less time left is worth its intrinsic value."""


class Leg(NamedTuple):
    """A position that moves one to one with the price of `asset`, `notional` USD today."""

    asset: str
    notional: float


class OptionLeg(NamedTuple):
    """A European option on `asset`: strike = `moneyness` times today's price, on `notional` USD of the underlying."""

    asset: str
    is_call: bool
    moneyness: float
    notional: float


class Book(NamedTuple):
    """A named book; `legs` and `options` may each be empty, not both."""

    name: str
    legs: tuple[Leg, ...] = ()
    options: tuple[OptionLeg, ...] = ()

    @property
    def prices(self) -> tuple[str, ...]:
        """Assets whose price moves the book, sorted."""
        return tuple(sorted({leg.asset for leg in self.legs} | {option.asset for option in self.options}))

    @property
    def implied(self) -> tuple[str, ...]:
        """Underlyings whose implied volatility moves the book, sorted."""
        return tuple(sorted({option.asset for option in self.options}))


BASKET = ("BTC", "ETH", "BNB", "XRP", "ADA", "LINK", "BCH", "ETC", "TRX", "XLM")
"""Ten of the perpetuals listed by February 2020, so that the basket is whole on every day from 2020-10 on. All ten were
still traded in 2026: a basket chosen in 2020 could not have known that."""

BOOKS = {
    book.name: book
    for book in (
        Book("BTC long", (Leg("BTC", 1.0),)),
        Book("BTC short", (Leg("BTC", -1.0),)),
        Book("ETH long", (Leg("ETH", 1.0),)),
        Book("ETH short", (Leg("ETH", -1.0),)),
        Book("BTC-ETH spread", (Leg("BTC", 1.0), Leg("ETH", -1.0))),
        Book("basket", tuple(Leg(asset, 0.1) for asset in BASKET)),
        Book(
            "BTC short straddle",
            options=(OptionLeg("BTC", True, 1.0, -1.0), OptionLeg("BTC", False, 1.0, -1.0)),
        ),
        # The pieces of configs/quickstart.toml in round figures: staked ETH as collateral (as ETH: its discount has no
        # history here), a short perpetual against it, a smaller long one elsewhere, options sold around it.
        Book(
            "yield desk",
            (Leg("ETH", 1.0), Leg("ETH", -1.25), Leg("ETH", 0.25)),
            (OptionLeg("ETH", True, 1.15, -0.5), OptionLeg("ETH", False, 0.85, -0.5)),
        ),
    )
}


def named_books(names: Sequence[str]) -> tuple[Book, ...]:
    """The books of `BOOKS` with these names, in this order; ConfigurationError for an unknown or repeated name."""
    for name in names:
        if name not in BOOKS:
            raise ConfigurationError(f"no book {name!r}{nearest_name(name, BOOKS)}; known: {', '.join(BOOKS)}")
    if len(set(names)) != len(names) or not names:
        raise ConfigurationError("books: expected at least one name, each once")
    return tuple(BOOKS[name] for name in names)


def option_price(
    is_call: bool, forward: float | np.ndarray, strike: float, volatility: float | np.ndarray, days: float
) -> np.ndarray:
    """Undiscounted Black-76 price, in the unit of the forward; shapes broadcast.

        v = sigma sqrt(T); d1 = ln(F/K)/v + v/2; C = F N(d1) - K N(d1 - v); P = C - F + K

    The out-of-the-money side is computed and the other taken from parity, so that no digits cancel. With no time or no
    volatility left it is the intrinsic value.

    Source: F. Black, "The pricing of commodity contracts", Journal of Financial Economics 3 (1976).
    """
    total = np.maximum(volatility * math.sqrt(max(days, SHORTEST_DAYS) / DAYS_PER_YEAR), 1e-16)
    d1 = np.log(np.asarray(forward) / strike) / total + total / 2.0
    d2 = d1 - total
    call_side = np.asarray(forward) <= strike
    sign = np.where(call_side, 1.0, -1.0)
    outside = sign * (forward * ndtr(sign * d1) - strike * ndtr(sign * d2))
    intrinsic = np.maximum(forward - strike, 0.0) if is_call else np.maximum(strike - forward, 0.0)
    return np.maximum(outside, 0.0) + intrinsic


def book_losses(
    book: Book,
    price_changes: Mapping[str, np.ndarray],
    volatility_changes: Mapping[str, np.ndarray],
    volatilities: Mapping[str, float | np.ndarray],
    *,
    days: float = 1.0,
) -> np.ndarray:
    """Losses [scenarios] of `book` under log-changes of prices and implied volatilities [scenarios] over `days`.

    L = -sum_legs N (e^x - 1) - sum_options N (V(e^x, sigma e^y, T - days) - V(1, sigma, T)), V per USD of underlying.
    `volatilities` are today's implied ones, one figure or one per row. Strikes stay, so a move of the price changes
    moneyness; every strike has the volatility that is given. A KeyError is a caller that lacks a factor of
    `Book.prices` or `Book.implied`.
    """
    growth = {asset: np.expm1(price_changes[asset]) for asset in book.prices}
    loss = np.zeros_like(next(iter(growth.values())))
    net: dict[str, float] = {}
    for leg in book.legs:
        net[leg.asset] = net.get(leg.asset, 0.0) + leg.notional
    for asset, notional in net.items():
        loss = loss - notional * growth[asset]
    for option in book.options:
        today = volatilities[option.asset]
        later = today * np.exp(volatility_changes[option.asset])
        before = option_price(option.is_call, 1.0, option.moneyness, today, OPTION_DAYS)
        after = option_price(
            option.is_call, 1.0 + growth[option.asset], option.moneyness, later, max(OPTION_DAYS - days, 0.0)
        )
        loss = loss - option.notional * (after - before)
    return loss
