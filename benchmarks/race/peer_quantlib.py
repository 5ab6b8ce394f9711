"""The QuantLib peer, pricing alone: every option in every scenario through `blackFormula`, one call each."""

from __future__ import annotations

import math

import numpy as np
import QuantLib

from .peer_cube import HORIZON_YEARS, CubeTerms


def option_changes(terms: CubeTerms, shocks: np.ndarray, options: int) -> np.ndarray:
    """Changes of the first `options` options [options, scenarios], float64, settled in what nothing moves."""
    out = np.empty((options, shocks.shape[1]))
    for option in range(options):
        kind = QuantLib.Option.Call if terms.is_call[option] else QuantLib.Option.Put
        strike, forward = float(terms.strike[option]), float(terms.forward[option])
        vol, years = float(terms.vol[option]), float(terms.years[option])
        today = QuantLib.blackFormula(kind, strike, forward, vol * math.sqrt(years))
        root = math.sqrt(max(years - HORIZON_YEARS, 0.0))
        steepness = math.sqrt(30.0 / max(years * 365.0, 1.0))
        of_price = shocks[terms.price_factor[option]].tolist()
        of_vol = shocks[terms.vol_factor[option]].tolist()
        out[option] = [
            QuantLib.blackFormula(
                kind, strike, forward * math.exp(move), vol * math.exp(min(max(v * steepness, -2.0), 2.0)) * root
            )
            - today
            for move, v in zip(of_price, of_vol, strict=True)
        ]
    return out
