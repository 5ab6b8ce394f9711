"""What governance allows: how a forecast is read as tiers, and by how much and how often a published figure may move.

`configs/governance.toml` holds the figures; there are none here, so that each stands in one place. Published figures
are integers: rates and collateral weights in bps (1/10000), position limits in whole USD. To tighten is to move to the
safe side: rates up, weights and limits down.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from aggregator.section import Section, read_section

BPS = 10_000


class TierLevel(Section):
    """Which figure of a forecast a rate stands on: a level, quantile or shortfall beyond it, and the least horizon."""

    level: float = Field(gt=0.5, lt=1.0)
    measure: Literal["quantile", "shortfall"]
    least_days: float = Field(gt=0.0, le=365.0)


class LevelPair(Section):
    """Maintenance and initial; initial is nowhere the weaker of the two."""

    maintenance: TierLevel
    initial: TierLevel

    @model_validator(mode="after")
    def _ordered(self) -> LevelPair:
        low, high = self.maintenance, self.initial
        if high.level < low.level or high.least_days < low.least_days:
            raise ValueError("initial has a lower level or a shorter least_days than maintenance")
        if low.measure == "shortfall" and high.measure == "quantile":
            raise ValueError("maintenance is a shortfall and initial only a quantile")
        return self


class CloseOutRules(Section):
    """Pace and impact of a forced sale, and the close-out times in days at which brackets of notional end."""

    participation: float = Field(gt=0.0, le=1.0)
    impact: float = Field(ge=0.0)
    bracket_days: tuple[float, ...] = Field(min_length=1, max_length=50)
    least_bracket_usd: float = Field(gt=0.0)

    @field_validator("bracket_days")
    @classmethod
    def _rising(cls, days: tuple[float, ...]) -> tuple[float, ...]:
        if days[0] <= 0.0 or list(days) != sorted(set(days)):
            raise ValueError("bracket_days must be positive and rise strictly")
        return days


class Rounding(Section):
    """`steps`: pairs (up to, multiple of), both in bps and rising; the last reaches 10000."""

    steps: tuple[tuple[int, int], ...] = Field(min_length=1)

    @field_validator("steps")
    @classmethod
    def _covers(cls, steps: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        last = 0
        for upper, step in steps:
            # a multiple of the step at both ends, so that rounding up inside a range never leaves it
            if upper <= last or step <= 0 or upper % step or last % step:
                raise ValueError("steps must rise, and every bound be a multiple of the steps on both sides of it")
            last = upper
        if last != BPS:
            raise ValueError("the last of steps must reach 10000 bps")
        return steps

    def up(self, rate: float) -> int:
        """The smallest figure on the grid that is at least `rate` (a fraction, >= 0); from 1 on, 10000 bps."""
        # a rate that is on the grid already must not move up a step for its last bits
        exact = round(rate * BPS, 6)
        for upper, step in self.steps:
            if exact <= upper:
                return math.ceil(exact / step) * step
        return BPS


class PegRules(Section):
    """Level of the expected shortfall, and the days a pegged asset is held at a haircut before it can be changed."""

    level: float = Field(gt=0.5, lt=1.0)
    maintenance_days: float = Field(gt=0.0)
    initial_days: float = Field(gt=0.0)

    @model_validator(mode="after")
    def _ordered(self) -> PegRules:
        if self.initial_days < self.maintenance_days:
            raise ValueError("initial_days is below maintenance_days")
        return self


class Review(Section):
    """Expiry of a recommendation, hysteresis, and the way out of bounds for markets that collapse."""

    expiry_s: int = Field(gt=0)
    dead_band_bps: int = Field(ge=0, lt=BPS)
    longest_hold_s: int = Field(ge=0)
    way_out_ratio: float = Field(gt=1.0)
    way_out_window_s: int = Field(gt=0)
    least_history_days: float = Field(ge=0.0)


class MonitoringRules(Section):
    """Bounds of what is watched of the learned model; beyond them the classical member stands in for it.

    Exceptions are multiples of those that the level allows, over each of `coverage_days`, and trip only where the
    p-value of their test is below `significance` (`asset_significance` for an asset alone). The stability index is the
    median over the inputs in the last `drift_days`, `largest_outside` the share of their values out of range;
    `largest_missing` is the share of inputs that are lost for all assets, `largest_asset_missing` for one.
    """

    coverage_days: tuple[int, ...] = Field(min_length=1, max_length=5)
    least_exceptions: float = Field(ge=0.0, lt=1.0)
    largest_exceptions: float = Field(gt=1.0)
    significance: float = Field(gt=0.0, lt=1.0)
    asset_significance: float = Field(gt=0.0, lt=1.0)
    drift_days: int = Field(ge=1, le=3650)
    largest_stability_index: float = Field(gt=0.0)
    largest_outside: float = Field(gt=0.0, lt=1.0)
    largest_missing: float = Field(ge=0.0, lt=1.0)
    largest_asset_missing: float = Field(ge=0.0, lt=1.0)
    largest_age_days: float = Field(gt=0.0)

    @field_validator("coverage_days")
    @classmethod
    def _rising_days(cls, days: tuple[int, ...]) -> tuple[int, ...]:
        if days[0] < 1 or list(days) != sorted(set(days)):
            raise ValueError("coverage_days must be positive and rise strictly")
        return days


class Bound(Section):
    """The largest step in one direction, and the least time since the last change."""

    largest_step_bps: int = Field(gt=0)
    delay_s: int = Field(ge=0)


class Bounds(Section):
    """Smallest and largest figure (zero is forbidden) and the steps towards the safe and the loose side."""

    least: int = Field(gt=0)
    largest: int = Field(gt=0)
    tighten: Bound
    loosen: Bound

    @model_validator(mode="after")
    def _ordered(self) -> Bounds:
        if self.largest < self.least:
            raise ValueError("largest is below least")
        return self


class GovernancePolicy(Section):
    """The whole of a governance file."""

    ladder: LevelPair
    close_out: CloseOutRules
    rounding: Rounding
    collateral: LevelPair
    pegs: PegRules
    monitoring: MonitoringRules
    review: Review
    rates: Bounds
    collateral_weights: Bounds
    position_limits: Bounds

    @model_validator(mode="after")
    def _fractions(self) -> GovernancePolicy:
        for name in ("rates", "collateral_weights"):
            if getattr(self, name).largest > BPS:
                raise ValueError(f"{name}: largest is above 10000 bps")
        return self

    def digest(self) -> str:
        """SHA-256 of the resolved figures, in hex."""
        figures = self.model_dump(mode="json")
        return hashlib.sha256(json.dumps(figures, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_policy(path: Path) -> GovernancePolicy:
    """The policy of a TOML file; ConfigurationError naming the file and every wrong or missing key."""
    return read_section(path, GovernancePolicy)
