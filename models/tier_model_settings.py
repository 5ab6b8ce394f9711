"""Hyper-parameters of the learned margin tiers: typed, frozen, read from TOML; an unknown key is an error.

The file `reference/tier_model.toml` holds what was chosen on the shared history up to the end of 2023. There are no
defaults here, so that a figure stands in one place.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from aggregator.section import Section, read_section

SHIPPED = Path(__file__).resolve().parent / "reference" / "tier_model.toml"
"""The settings of the shipped checkpoints."""


class Network(Section):
    """Shape of one network; `levels` are the probabilities whose margins it gives, rising."""

    levels: tuple[float, ...] = Field(min_length=2)
    layers: int = Field(ge=0, le=8)
    width: int = Field(ge=1, le=512)
    dropout: float = Field(ge=0.0, lt=1.0)

    @field_validator("levels")
    @classmethod
    def _rising(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if list(levels) != sorted(set(levels)) or levels[0] <= 0.5 or levels[-1] >= 1.0:
            raise ValueError("levels must rise strictly between 0.5 and 1")
        return levels


class Training(Section):
    """One fit: `steps` of AdamW on `batch` rows for each of `seeds` networks.

    `weight_decay` is per unit of learning rate, `weight_average` the decay per step of the averaged weights that are
    kept, `pinball_width` in units of the scaled loss, `smoothness_weight` the cost of a squared change of the log
    margin from one window to the next. Rows of assets whose anchor is below `smallest_volatility` (per day) are left
    out, losses above `largest_scaled_loss` anchors are cut there: pegs jump by more than scales can say.
    """

    seed: int = Field(ge=0, lt=2**31)
    seeds: int = Field(ge=1, le=64)
    steps: int = Field(ge=10, le=100_000)
    batch: int = Field(ge=1, le=2**20)
    learning_rate: float = Field(gt=0.0, le=1.0)
    weight_decay: float = Field(ge=0.0)
    gradient_clip: float = Field(gt=0.0)
    weight_average: float = Field(ge=0.0, lt=1.0)
    pinball_width: float = Field(ge=0.0)
    shortfall_weight: float = Field(ge=0.0)
    smoothness_weight: float = Field(ge=0.0)
    smallest_volatility: float = Field(ge=0.0)
    largest_scaled_loss: float = Field(gt=0.0)


class WalkForward(Section):
    """Refits at the start of every `months`-th month (of those 1, 1 + months, ...), once there is enough.

    A refit sees windows that ended `embargo_days` before it, and needs `least_rows` of them.
    """

    months: int = Field(ge=1, le=12)
    embargo_days: int = Field(ge=0)
    least_rows: int = Field(ge=100)

    @field_validator("months")
    @classmethod
    def _divides(cls, months: int) -> int:
        if 12 % months:
            raise ValueError("months must divide 12")
        return months


class Classical(Section):
    """Filtered historical quantiles: own standardised losses of `window_days`, shrunk to pooled ones.

    `own_days` of own history weigh as much as the pooled quantile; quantiles are refreshed every `refresh_days`.
    """

    window_days: int = Field(ge=50)
    own_days: float = Field(gt=0.0)
    refresh_days: int = Field(ge=1)


class Mixture(Section):
    """Weight of the networks in the geometric mean with the classical margin: network * n / (n + credible_rows).

    n is the number of rows that the networks were trained on.
    """

    network: float = Field(ge=0.0, le=1.0)
    credible_rows: float = Field(ge=0.0)


class Guard(Section):
    """A pooled factor on all margins from coverage in the past `window_days`; see `coverage_guard`."""

    window_days: int = Field(ge=30)
    least_days: int = Field(ge=30)
    strength: float = Field(ge=0.0, le=1.0)
    smallest_factor: float = Field(gt=0.0, le=1.0)
    largest_factor: float = Field(ge=1.0)


class Published(Section):
    """Smoothing of published tiers; see `published_tiers`. Weights are per day, rises are fractions.

    `guard_strength` takes the place of the guard's: smoothing costs coverage, which is given back.
    """

    weight: float = Field(gt=0.0, le=1.0)
    slow_weight: float = Field(gt=0.0, le=1.0)
    reach: float = Field(ge=0.0, le=1.0)
    guard_strength: float = Field(ge=0.0, le=1.0)
    largest_ratio_30_days: float = Field(gt=1.0)
    largest_rise_5_days: float = Field(gt=0.0)
    way_out: float = Field(gt=1.0)
    warm_up_days: int = Field(ge=0)


class TierModelSettings(Section):
    """Everything that shapes the learned margin tiers."""

    network: Network
    training: Training
    walk_forward: WalkForward
    classical: Classical
    mixture: Mixture
    guard: Guard
    published: Published

    @model_validator(mode="after")
    def _consistent(self) -> TierModelSettings:
        if self.guard.least_days > self.guard.window_days:
            raise ValueError("guard: least_days is above window_days")
        return self


def read_tier_model_settings(path: Path) -> TierModelSettings:
    """The settings of a TOML file; ConfigurationError naming the file and every wrong key."""
    return read_section(path, TierModelSettings)
