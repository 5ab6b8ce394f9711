"""Dependence by ranks: Kendall's tau with gaps, correlation from it, tail index of the t copula, spectrum.

Ranks do not see the margins: for every elliptical law the correlation of its dispersion is sin(pi tau / 2), however fat
the tails are (Lindskog, McNeil and Schmock, Kendall's tau for elliptical distributions, 2003).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln, stdtrit
from scipy.stats import rankdata

NU_GRID = (2.5, 2.75, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0)

EIGENVALUE_FLOOR = 0.01
"""Smallest eigenvalue that the repair leaves. Rounding d x d correlations to three digits moves eigenvalues by about
0.0006 sqrt(d), well below it for any book."""

_HALF_CHI_SQUARE_95 = 1.920729
_BLOCK_ROWS = 200_000


class CopulaFit(NamedTuple):
    """Tail index of the t copula, its 95 % profile interval within the grid, and log-likelihoods at `NU_GRID`."""

    nu: float
    interval: tuple[float, float]
    log_likelihoods: np.ndarray
    rows: int


def kendall_tau(values: np.ndarray) -> np.ndarray:
    """Kendall's tau-b [columns, columns] of `values` [dates, columns], each pair over the dates that both have.

    NaN where two columns share fewer than two dates or one is constant there. Kendall, Biometrika 33 (1945). Pairs of
    dates that agree are counted as bits: exact in any order, and ten times as fast as products of signs.
    """
    dates, columns = values.shape
    agreement, untied = np.zeros((columns, columns)), np.zeros((columns, columns))
    present = np.isfinite(values)
    filled = np.where(present, values, 0.0)
    block: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    rows = 0
    for lag in range(1, dates):
        both = present[lag:] & present[:-lag]
        block.append((both & (filled[lag:] > filled[:-lag]), both & (filled[lag:] < filled[:-lag]), both))
        rows += dates - lag
        if rows >= _BLOCK_ROWS or lag == dates - 1:
            rises, falls, pairs = (_words(np.concatenate(parts)) for parts in zip(*block, strict=True))
            moves = rises | falls
            for column in range(columns):
                same = _counts(rises[column] & rises) + _counts(falls[column] & falls)
                agreement[column] += 2 * same - _counts(moves[column] & moves)
                untied[column] += _counts(moves[column] & pairs)
            block, rows = [], 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(untied * untied.T > 0.0, agreement / np.sqrt(untied * untied.T), np.nan)


def _words(flags: np.ndarray) -> np.ndarray:
    """Flags [rows, columns] as the bits of words [columns, words], the last one filled up with zeros."""
    packed = np.packbits(flags, axis=0).T
    spare = -packed.shape[1] % 8
    return np.ascontiguousarray(np.pad(packed, ((0, 0), (0, spare)))).view(np.uint64)


def _counts(words: np.ndarray) -> np.ndarray:
    """Bits that are set in each row."""
    return np.bitwise_count(words).sum(axis=1, dtype=np.int64)


def rank_correlation(values: np.ndarray) -> np.ndarray:
    """Correlation [columns, columns] of the elliptical law with the Kendall's tau of `values` [dates, columns]."""
    correlation = np.sin(math.pi / 2.0 * kendall_tau(values))
    np.fill_diagonal(correlation, 1.0)
    return correlation


def regular_correlation(correlation: np.ndarray, *, floor: float = EIGENVALUE_FLOOR) -> np.ndarray:
    """`correlation` with eigenvalues of at least about `floor`, unit diagonal; unchanged when it has them already.

    Pairs that are estimated one by one, over unlike dates, need not fit together. Eigenvalues are clipped and the
    diagonal restored (Rebonato and Jackel, 1999).
    """
    eigenvalues, vectors = np.linalg.eigh(correlation)
    if eigenvalues[0] >= floor:
        return correlation
    clipped = (vectors * np.maximum(eigenvalues, floor)) @ vectors.T
    size = np.sqrt(np.diag(clipped))
    repaired = clipped / np.outer(size, size)
    repaired = (repaired + repaired.T) / 2.0
    np.fill_diagonal(repaired, 1.0)
    return repaired


def copula_fit(values: np.ndarray, correlation: np.ndarray) -> CopulaFit:
    """Tail index of the t copula of `values` [dates, columns] at a given regular correlation [columns, columns].

    Pseudo-likelihood (Genest, Ghoudi and Rivest, Biometrika 82, 1995): margins are ranks / (count + 1), only dates
    without a gap count; nu at the top of a parabola in log nu through the best points of `NU_GRID`. Raises ValueError
    for fewer than two columns or 50 complete dates.
    """
    complete = values[np.isfinite(values).all(axis=1)]
    rows, columns = complete.shape
    if columns < 2 or rows < 50:
        raise ValueError(f"{rows} complete dates of {columns} columns; a copula needs 50 of two")
    uniforms = rankdata(complete, axis=0) / (rows + 1.0)
    root = np.linalg.cholesky(correlation)
    log_determinant = 2.0 * float(np.sum(np.log(np.diag(root))))
    profile = np.array([_log_density(uniforms, root, log_determinant, nu) for nu in NU_GRID])
    logs = np.log(np.array(NU_GRID))
    best = int(np.argmax(profile))
    nu = NU_GRID[best]
    if 0 < best < len(NU_GRID) - 1:
        window = slice(best - 1, best + 2)
        a, b, _ = np.polyfit(logs[window] - logs[best], profile[window], 2)
        nu = math.exp(float(logs[best] - b / (2.0 * a)))
    inside = profile - (profile[best] - _HALF_CHI_SQUARE_95)
    low = _crossing(logs[: best + 1][::-1], inside[: best + 1][::-1])
    high = _crossing(logs[best:], inside[best:])
    return CopulaFit(nu, (min(low, nu), max(high, nu)), profile, rows)


def _log_density(uniforms: np.ndarray, root: np.ndarray, log_determinant: float, nu: float) -> float:
    """Sum over rows of the log density of the t copula."""
    rows, columns = uniforms.shape
    scores = stdtrit(nu, uniforms)
    whitened = np.linalg.solve(root, scores.T)
    joint = -(nu + columns) / 2.0 * np.log1p(np.sum(whitened**2, axis=0) / nu)
    single = -(nu + 1.0) / 2.0 * np.sum(np.log1p(scores**2 / nu), axis=1)
    constant = gammaln((nu + columns) / 2.0) + (columns - 1.0) * gammaln(nu / 2.0)
    constant -= columns * gammaln((nu + 1.0) / 2.0) + log_determinant / 2.0
    return float(rows * constant + np.sum(joint - single))


def _crossing(logs: np.ndarray, inside: np.ndarray) -> float:
    """exp of where `inside` falls below 0 on the way, or the end of the grid."""
    below = np.flatnonzero(inside < 0.0)
    if not len(below):
        return math.exp(float(logs[-1]))
    k = int(below[0])
    share = inside[k - 1] / (inside[k - 1] - inside[k])
    return math.exp(float(logs[k - 1] + share * (logs[k] - logs[k - 1])))


def spectrum(correlation: np.ndarray, count: int = 3) -> tuple[float, ...]:
    """Shares of the largest `count` eigenvalues in their sum, largest first."""
    eigenvalues = np.linalg.eigvalsh(correlation)[::-1]
    return tuple(float(value) for value in eigenvalues[:count] / np.sum(eigenvalues))
