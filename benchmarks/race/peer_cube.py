"""The peers' scenarios and instrument cube in NumPy: draws of the law, changes of every row, option prices.

Written apart from the engine, with the same formulas: a price row changes by `expm1` of the sum of its factors; an
option is priced again by Black-76 one day later, its volatility moved with its underlying's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from .books import MarketLaw

HORIZON_YEARS = 1.0 / 365.0
_LARGEST_VOL_CHANGE = 2.0


class CubeTerms(NamedTuple):
    """What moves each row: prices are products of at most four factors, then come the options.

    Row 0 is the constant. Factor numbers refer to the law's factors; one past the last is "no factor".
    """

    factors: np.ndarray
    """[rows of prices, 4]"""
    forward: np.ndarray
    strike: np.ndarray
    years: np.ndarray
    vol: np.ndarray
    is_call: np.ndarray
    price_factor: np.ndarray
    vol_factor: np.ndarray
    conversion: np.ndarray
    """Row of the price of the option's settlement asset."""

    @property
    def rows(self) -> int:
        """Prices and options together."""
        return len(self.factors) + len(self.strike)


def draw_shocks(law: MarketLaw, scenarios: int, seed: int) -> np.ndarray:
    """Log-changes [factors, scenarios] of a multivariate t, float64."""
    rng = np.random.default_rng(seed)
    nu = law.degrees_of_freedom
    root = np.linalg.cholesky(law.correlation) * (law.daily_std * np.sqrt((nu - 2.0) / nu))[:, None]
    width = np.sqrt(nu / rng.chisquare(nu, scenarios))
    return (root @ rng.standard_normal((len(law.factors), scenarios))) * width


def black(
    forward: np.ndarray, strike: np.ndarray, years: np.ndarray, vol: np.ndarray, is_call: np.ndarray
) -> np.ndarray:
    """Undiscounted Black-76 prices of anything that broadcasts; the intrinsic value at expiry.

    The out-of-the-money side is computed and the other follows by parity.
    """
    deviation = vol * np.sqrt(years)
    alive = deviation > 0
    safe = np.where(alive, deviation, 1.0)
    d1 = np.log(forward / strike) / safe + 0.5 * safe
    side = np.where(strike >= forward, 1.0, -1.0)
    out = np.maximum(side * (forward * ndtr(side * d1) - strike * ndtr(side * (d1 - safe))), 0.0)
    call = np.where(side > 0, out, out + forward - strike)
    put = np.where(side > 0, out - forward + strike, out)
    gain = np.where(is_call, forward - strike, strike - forward)
    return np.where(alive, np.where(is_call, call, put), np.maximum(gain, 0.0))


def cube_changes(terms: CubeTerms, shocks: np.ndarray) -> np.ndarray:
    """Change of every row in every scenario [rows, scenarios], float32: relative for prices, money for options."""
    factors, scenarios = shocks.shape
    moved = np.concatenate([shocks, np.zeros((1, scenarios))])
    prices = len(terms.factors)
    out = np.empty((terms.rows, scenarios), np.float32)
    for row, held in enumerate(terms.factors):
        out[row] = np.expm1(moved[held[held < factors]].sum(axis=0))
    later = np.maximum(terms.years - HORIZON_YEARS, 0.0)
    steepness = np.sqrt(30.0 / np.maximum(terms.years * 365.0, 1.0))
    today = black(terms.forward, terms.strike, terms.years, terms.vol, terms.is_call)
    for option in range(len(terms.strike)):
        forward = terms.forward[option] * np.exp(moved[terms.price_factor[option]])
        change = np.clip(moved[terms.vol_factor[option]] * steepness[option], -_LARGEST_VOL_CHANGE, _LARGEST_VOL_CHANGE)
        price = black(
            forward, terms.strike[option], later[option], terms.vol[option] * np.exp(change), terms.is_call[option]
        )
        conversion = 1.0 + out[terms.conversion[option]].astype(np.float64)
        out[prices + option] = price * conversion - today[option]
    return out
