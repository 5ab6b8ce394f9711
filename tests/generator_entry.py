"""What the common suite of scenario generators (`test_generators.py`) needs to know of each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import PRNGKeyArray

from aggregator.scenarios import ScenarioGenerator

Key = PRNGKeyArray


class JointTail(NamedTuple):
    """P(both factors at or below their bounds)."""

    factors: tuple[str, str]
    bounds: tuple[float, float]
    probability: float


class KnownLaw(NamedTuple):
    """Law of one step: `mean` [factors], `covariance` [factors, factors], quantile functions of factors, joint tails.

    Entries of the covariance that are not known are NaN.
    """

    mean: np.ndarray
    covariance: np.ndarray
    quantiles: Mapping[str, Callable[[float], float]] = {}
    joint_tails: Sequence[JointTail] = ()


class Entry(NamedTuple):
    """A generator under test.

    `build` takes the key of a run; `more` builds two, the second with further factors that must leave the draws of the
    others as they are (None where factors share what is drawn: the dimensions of a point set). `refused` are
    calls that must raise a ConfigurationError whose message matches. `scenarios` is how many are drawn of a generator
    without weights of its own.
    """

    build: Callable[[Key], ScenarioGenerator]
    law: KnownLaw
    more: Callable[[Key], tuple[ScenarioGenerator, ScenarioGenerator]] | None
    refused: Sequence[tuple[Callable[[], object], str]]
    scenarios: int = 65_536
