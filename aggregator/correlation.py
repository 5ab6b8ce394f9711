"""Correlation matrices on the host: built from pairs, checked, repaired, factorised; float64, [factors, factors]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .errors import ConfigurationError

EIGENVALUE_FLOOR = 1e-8
"""Smallest eigenvalue that the repair of a correlation matrix leaves, as a fraction of the mean eigenvalue."""

LARGEST_REPAIR = 0.1
"""A repair that moves some correlation by more than this is refused: the matrix is wrong, not rounded."""

_SYMMETRY_TOLERANCE = 1e-12


def correlation_matrix(factors: Sequence[str], pairs: Mapping[tuple[str, str], float]) -> np.ndarray:
    """Correlation matrix [factors, factors] from the correlations of unordered pairs; a pair not given is 0.

    Raises ConfigurationError for a pair of one factor, an unknown factor, or a pair given twice with unequal figures.
    """
    position = {name: i for i, name in enumerate(factors)}
    matrix = np.eye(len(position))
    given: dict[frozenset[str], float] = {}
    for (first, second), value in pairs.items():
        for name in (first, second):
            if name not in position:
                raise ConfigurationError(f"correlation of {first} and {second}: {name} is not a factor of this run")
        pair = frozenset((first, second))
        if len(pair) == 1:
            raise ConfigurationError(f"correlation of {first} with itself is 1 and must not be given")
        if given.setdefault(pair, value) != value:
            raise ConfigurationError(f"correlation of {first} and {second} is given twice: {given[pair]} and {value}")
        matrix[position[first], position[second]] = matrix[position[second], position[first]] = value
    return matrix


def repaired_correlation(factors: Sequence[str], correlation: np.ndarray) -> np.ndarray:
    """`correlation` made positive definite: eigenvalues clipped at 1e-8 trace / d, then rescaled to a unit diagonal.

    A matrix whose smallest eigenvalue is above the floor comes back unchanged. Raises ConfigurationError when the
    matrix is no correlation matrix (shape, finite, symmetric, unit diagonal, |rho| <= 1) or when the repair moves an
    entry by more than `LARGEST_REPAIR`; the message names the factors.
    """
    names = tuple(factors)
    count = len(names)
    matrix = np.asarray(correlation, dtype=np.float64)
    if matrix.shape != (count, count):
        raise ConfigurationError(f"correlation has shape {matrix.shape}; {count} factors need ({count}, {count})")
    _check(names, matrix)
    floor = EIGENVALUE_FLOOR * float(np.trace(matrix)) / count
    # Eigenvalues take far longer than a factorisation, and most matrices need none: one that is positive definite with
    # twice the floor taken off its diagonal has no eigenvalue near the floor.
    if _is_positive_definite(matrix - 2.0 * floor * np.eye(count)):
        return matrix
    eigenvalues, vectors = np.linalg.eigh(matrix)
    if eigenvalues[0] >= floor:
        return matrix
    clipped = (vectors * np.maximum(eigenvalues, floor)) @ vectors.T
    size = np.sqrt(np.diag(clipped))
    repaired = clipped / np.outer(size, size)
    repaired = (repaired + repaired.T) / 2.0
    np.fill_diagonal(repaired, 1.0)
    moved = np.abs(repaired - matrix)
    if moved.max() > LARGEST_REPAIR:
        i, j = divmod(int(moved.argmax()), count)
        raise ConfigurationError(
            f"correlations are inconsistent with each other: the nearest valid matrix has {repaired[i, j]:.3f} "
            f"for {names[i]} and {names[j]} where {matrix[i, j]:.3f} is given"
        )
    return repaired


def _check(names: tuple[str, ...], matrix: np.ndarray) -> None:
    """Raise ConfigurationError naming the first two factors whose entry belongs to no correlation matrix."""
    diagonal = np.eye(len(names), dtype=bool)
    with np.errstate(invalid="ignore"):
        wrong = ~np.isfinite(matrix) | (np.abs(matrix) > 1.0 + _SYMMETRY_TOLERANCE)
        wrong |= diagonal & (np.abs(matrix - 1.0) > _SYMMETRY_TOLERANCE)
        wrong |= np.abs(matrix - matrix.T) > _SYMMETRY_TOLERANCE
    if not wrong.any():
        return
    i, j = divmod(int(wrong.argmax()), len(names))
    value, first, second = matrix[i, j], names[i], names[j]
    where = f"correlation of {first} and {second}"
    if not math.isfinite(value):
        raise ConfigurationError(f"{where} is {value}; expected a finite number")
    if i == j:
        raise ConfigurationError(f"correlation of {first} with itself is {value}; expected 1")
    if abs(value) > 1.0 + _SYMMETRY_TOLERANCE:
        raise ConfigurationError(f"{where} is {value}; expected a number in [-1, 1]")
    raise ConfigurationError(f"{where} is {value} one way and {matrix[j, i]} the other; expected symmetry")


def _is_positive_definite(matrix: np.ndarray) -> bool:
    try:
        cholesky_factor(matrix)
    except ConfigurationError:
        return False
    return True


def cholesky_factor(matrix: np.ndarray) -> np.ndarray:
    """Lower triangular A with A A' = `matrix`; ConfigurationError when it is not positive definite."""
    # written out because the bits of the library routine depend on the linear-algebra library and its threads
    root = np.zeros_like(matrix)
    for j in range(len(matrix)):
        below = matrix[j:, j] - (root[j:, :j] * root[j, :j]).sum(axis=1)
        if not below[0] > 0.0:
            raise ConfigurationError(f"correlation matrix is not positive definite at its row {j}")
        root[j:, j] = below / math.sqrt(below[0])
    return root
