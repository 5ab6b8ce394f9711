"""What probabilities of liquidation are worth: ranking, calibration, and hours of warning, with error bars by days.

Rows are account-times; `probability` and `happened` [rows]. Rows of near days hang together, so that every error bar
resamples whole blocks of days (H. Künsch, "The jackknife and the bootstrap for general stationary observations", 1989).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

LEAST_PROBABILITY = 1e-4
"""Probabilities are kept this far from 0 and 1 in the logarithmic score: a replay of 2,000 dates cannot say less."""

BLOCK_DAYS = 14
DRAWS = 300


class Blocks(NamedTuple):
    """`place` [rows], the block of days of each row, and how often each block counts in each resample [draws, blocks];
    the first resample is the data."""

    place: np.ndarray
    counts: np.ndarray

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums of `values` [rows] in each resample [draws]."""
        return np.asarray(self.counts @ np.bincount(self.place, values, minlength=self.counts.shape[1]))


def day_blocks(day: np.ndarray, seed: int, *, draws: int = DRAWS, block_days: int = BLOCK_DAYS) -> Blocks:
    """Blocks of `block_days` days of the rows' `day` [rows], and `draws` resamples of as many blocks."""
    blocks, place = np.unique(day // block_days, return_inverse=True)
    random = np.random.Generator(np.random.Philox(key=seed))
    drawn = random.integers(0, len(blocks), (draws, len(blocks)))
    counts = np.stack([np.bincount(row, minlength=len(blocks)) for row in drawn])
    return Blocks(place, np.concatenate([np.ones((1, len(blocks)), dtype=np.int64), counts]).astype(np.float64))


def area_under_curve(probability: np.ndarray, happened: np.ndarray, blocks: Blocks) -> np.ndarray:
    """P(a row that happened has the larger probability than one that did not), ties half, in each resample [draws].

    NaN where a resample lacks one of the two kinds. Pairs are counted once for every pair of blocks, so that a resample
    costs a product of small matrices.
    """
    number = blocks.counts.shape[1]
    risen, of_risen = probability[happened], blocks.place[happened]
    pairs = np.zeros((number, number))
    for block in range(number):
        others = np.sort(probability[~happened & (blocks.place == block)])
        below, to = (np.searchsorted(others, risen, side=side) for side in ("left", "right"))
        pairs[:, block] = np.bincount(of_risen, 0.5 * (below + to), minlength=number)
    won = np.einsum("db,bc,dc->d", blocks.counts, pairs, blocks.counts, optimize=True)
    all_pairs = blocks.sums(happened.astype(np.float64)) * blocks.sums((~happened).astype(np.float64))
    return np.where(all_pairs > 0.0, won / np.maximum(all_pairs, 1.0), np.nan)


def brier_terms(probability: np.ndarray, happened: np.ndarray) -> np.ndarray:
    """(p - y)^2 by row; G. Brier, "Verification of forecasts expressed in terms of probability", 1950."""
    return (probability - happened) ** 2


def log_terms(probability: np.ndarray, happened: np.ndarray) -> np.ndarray:
    """-ln of the probability of what came, by row."""
    kept = np.clip(probability, LEAST_PROBABILITY, 1.0 - LEAST_PROBABILITY)
    return -np.where(happened, np.log(kept), np.log1p(-kept))


def scores(
    probabilities: Mapping[str, np.ndarray], happened: np.ndarray, day: np.ndarray, *, against: str, seed: int = 0
) -> dict[str, Any]:
    """By law: area under the curve, Brier and logarithmic score, mean probability, and differences to `against`.

    Every figure as [value, standard error] over resamples of blocks of days; differences are of the same resamples.
    """
    blocks = day_blocks(day, seed)
    total = blocks.sums(np.ones(len(day)))
    drawn: dict[str, dict[str, np.ndarray]] = {}
    for name, probability in probabilities.items():
        drawn[name] = {
            "auc": area_under_curve(probability, happened, blocks),
            "brier": blocks.sums(brier_terms(probability, happened)) / total,
            "log_score": blocks.sums(log_terms(probability, happened)) / total,
            "mean": blocks.sums(probability) / total,
        }
    base = blocks.sums(happened.astype(np.float64)) / total
    found: dict[str, Any] = {
        "rows": len(happened),
        "happened": int(happened.sum()),
        "base_rate": _figure(base),
        "laws": {name: {key: _figure(values) for key, values in of.items()} for name, of in drawn.items()},
    }
    found["minus_" + against] = {
        name: {key: _figure(values - drawn[against][key]) for key, values in of.items() if key != "mean"}
        for name, of in drawn.items()
        if name != against
    }
    return found


class Warned(NamedTuple):
    """By liquidated account: hours from the alarm that lasted until the last look to the liquidation, 0 without it;
    the same from the first alarm of all; `day` of the liquidation."""

    lasting: np.ndarray
    first: np.ndarray
    day: np.ndarray


def alarm_threshold(probability: np.ndarray, happened: np.ndarray, share: float) -> float:
    """The smallest threshold above which at most `share` of the rows lie that did not come true."""
    quiet = np.sort(probability[~happened])
    return float(quiet[max(int(np.ceil((1.0 - share) * len(quiet))) - 1, 0)])


def warned(alarm: np.ndarray, account: np.ndarray, hours: np.ndarray, liquidated_hours: np.ndarray) -> Warned:
    """`alarm` [rows]; `account` [rows] any label; `hours` [rows] of the look and of the account's liquidation.

    Rows sorted by account and time, liquidated accounts alone, all looks before the liquidation.
    """
    begins = np.flatnonzero(np.concatenate([[True], account[1:] != account[:-1]]))
    ends = np.append(begins[1:], len(account))
    lasting, first, day = [], [], []
    for begin, end in zip(begins, ends, strict=True):
        raised, at, gone = alarm[begin:end], hours[begin:end], liquidated_hours[begin]
        quiet = np.flatnonzero(~raised)
        since = 0 if not len(quiet) else int(quiet[-1]) + 1
        lasting.append(gone - at[since] if since < len(raised) else 0.0)
        first.append(gone - at[int(raised.argmax())] if raised.any() else 0.0)
        day.append(gone // 24.0)
    return Warned(np.array(lasting), np.array(first), np.array(day))


def lead_times(found: Warned, against: Warned | None = None, seed: int = 0) -> dict[str, Any]:
    """Mean hours of warning and the share of liquidations that an alarm preceded, with standard errors.

    With `against`, of the same accounts, the differences to it.
    """
    blocks = day_blocks(found.day, seed)
    total = blocks.sums(np.ones(len(found.day)))
    own, other = _by_account(found), None if against is None else _by_account(against)
    values = own if other is None else {name: of - other[name] for name, of in own.items()}
    means = {name: _figure(blocks.sums(of) / total) for name, of in values.items()}
    return {"liquidations": len(found.day), **means}


def _by_account(found: Warned) -> dict[str, np.ndarray]:
    return {
        "hours": found.lasting,
        "share_warned": (found.lasting > 0.0).astype(np.float64),
        "share_warned_24h_before": (found.lasting >= 24.0).astype(np.float64),
        "hours_from_first_alarm": found.first,
    }


def _figure(values: np.ndarray) -> list[float]:
    """[value, standard error]; the first entry is the data, the others are resamples."""
    return [float(values[0]), float(np.nanstd(values[1:]))]
