"""Drift of a model's inputs: how far those of the last days are from those that it was trained on.

The population stability index compares shares of rows in bins, here those of equal share in training and one of missing
values: sum (now - then) ln(now / then); S. Kullback, R. A. Leibler, "On information and sufficiency", Annals of
Mathematical Statistics 22 (1951), both ways. Days of one market are alike, so a month never looks like ten years: the
bounds that an index is held to are those of `configs/governance.toml`, not the ones for independent rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .classical_margin import SIDES
from .features import FeaturePanel, side_inputs
from .features_market import CALENDAR
from .training import LARGEST_INPUT, Moments, bin_shares

SMALLEST_SHARE = 1e-3
"""An empty bin counts as this share of the rows, or the index would be infinite."""


class InputDrift(NamedTuple):
    """One entry per input of `names`: `stability` the stability index, `shift` of the mean in standard deviations of
    training, `outside` the share of values beyond the clip of the networks, `missing` and `missing_then` the shares of
    rows without a value, now and in training. All NaN when `rows` is 0."""

    names: tuple[str, ...]
    rows: int
    stability: np.ndarray
    shift: np.ndarray
    outside: np.ndarray
    missing: np.ndarray
    missing_then: np.ndarray


def input_drift(panel: FeaturePanel, moments: Moments, *, days: float) -> InputDrift:
    """Drift of the inputs at the openings of the last `days`, of the assets that have data then, both sides.

    Inputs that follow the clock or say the side are left out.
    """
    recent = panel.opening > panel.opening[-1] - np.timedelta64(round(days * 24 * 3600), "s")
    time, asset = np.nonzero(panel.usable & recent[:, None])
    inputs = np.concatenate([side_inputs(panel, side, time, asset) for side in SIDES])
    kept = [place for place, name in enumerate(panel.names) if name not in (*CALENDAR, "side")]
    names = tuple(panel.names[place] for place in kept)
    of_training = Moments(*(values[kept] for values in moments))
    return drift_of(names, inputs[:, kept], of_training)


def drift_of(names: tuple[str, ...], inputs: np.ndarray, moments: Moments) -> InputDrift:
    """Drift of rows [rows, inputs] against the `moments` of training."""
    if not len(inputs):
        unknown = np.full(len(names), np.nan)
        return InputDrift(names, 0, unknown, unknown, unknown, unknown, unknown)
    known = np.isfinite(inputs)
    count = np.maximum(known.sum(axis=0), 1)
    standardised = np.where(known, (inputs.astype(np.float64) - moments.mean) / moments.spread, 0.0)
    now = np.maximum(bin_shares(inputs, moments.edges), SMALLEST_SHARE)
    then = np.maximum(moments.shares, SMALLEST_SHARE)
    return InputDrift(
        names,
        len(inputs),
        np.sum((now - then) * np.log(now / then), axis=1),
        standardised.sum(axis=0) / count,
        np.sum(np.abs(standardised) > LARGEST_INPUT, axis=0) / count,
        1.0 - known.mean(axis=0),
        moments.shares[:, -1],
    )
