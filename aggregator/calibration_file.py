"""The calibration file: what a market history says about the factors, as TOML that people read and edit.

One file per as-of time, written by `crossmargin calibrate` (the text is made in `calibration_text`). Every figure is
per day unless its name says otherwise, returns are log returns, rates and depths are fractions, `per_year` is per 365
days. Standard deviations are of whole laws, never the scale of a t. What could not be estimated is listed by field name
in `assumed` or by factor in `filled`.

Every figure has a range, see `calibration_ranges`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from .calibration_ranges import (
    LARGEST_PEG_STD,
    BetaShape,
    Correlation,
    DailyStd,
    FundingRate,
    Gap,
    JumpStd,
    LogMove,
    Multiple,
    NotNegative,
    Nu,
    PegStd,
    PerDay,
    PerYear,
    Positive,
    Share,
    within,
)
from .correlation import correlation_matrix
from .errors import ConfigurationError, nearest_name
from .section import Section

CURRENT = "current"
"""Name of the law that holds at as_of; every other law is a stressed one."""

_PAIR = "|"
_TOLERANCE = 1e-9


class TableUsed(Section):
    """A table that was read: its file name without folder, the SHA-256 of its bytes, its rows."""

    name: str = Field(pattern=r"^[^/\\]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rows: int = Field(ge=0)


class Provenance(Section):
    """What was read: nothing after `as_of`; the dates of the panel are those at which every anchor has a return."""

    as_of: datetime
    first_date: date
    last_date: date
    days: int = Field(ge=1)
    anchors: tuple[str, ...] = Field(min_length=1)
    markets: tuple[str, ...] = Field(min_length=1)
    decay: float = Field(gt=0.5, lt=1)
    floor_fraction: float = Field(ge=0, le=1)
    tables: tuple[TableUsed, ...]
    estimators: dict[str, str]
    """Name of an estimator to its version; a changed estimator has a new version."""

    @field_validator("as_of")
    @classmethod
    def _zoned(cls, value: datetime) -> datetime:
        if value.tzinfo is None:
            raise ValueError("as_of needs a time zone, for example 2024-06-30T00:00:00Z")
        return value.astimezone(UTC)


class Law(Section):
    """Joint law of a day's log moves: standard deviations, rank-based correlations, tail index of the t copula.

    `correlation` holds `"factor | factor" = rho` pairs; a pair that is not given is 0. `filled` says of each factor
    without enough own history in the sample where its figures come from: beta, rule, peg or discount.
    """

    first_date: date
    last_date: date
    days: int = Field(ge=1)
    nu: Nu
    nu_interval: tuple[float, float]
    """95 % profile likelihood interval of nu, within the grid that was searched."""
    smallest_eigenvalue: Positive
    daily_std: dict[str, DailyStd]
    filled: dict[str, Literal["beta", "rule", "peg", "discount"]] = {}
    correlation: dict[str, Correlation] = {}

    def matrix(self, factors: tuple[str, ...]) -> np.ndarray:
        """Correlation matrix [factors, factors] in the given order; ConfigurationError for a pair that is wrong."""
        known = set(self.daily_std)
        pairs: dict[tuple[str, str], float] = {}
        for pair, value in self.correlation.items():
            names = [part.strip() for part in pair.split(_PAIR)]
            if len(names) != 2 or names[0] == names[1]:
                raise ConfigurationError(f'correlation {pair!r}: expected "factor | other factor"')
            for name in names:
                if name not in known:
                    raise ConfigurationError(
                        f"correlation {pair!r}: unknown factor {name!r}{nearest_name(name, known)}"
                    )
            if (names[1], names[0]) in pairs or (names[0], names[1]) in pairs:
                raise ConfigurationError(f"correlation {pair!r} is given twice")
            pairs[names[0], names[1]] = value
        wanted = set(factors)
        return correlation_matrix(factors, {pair: value for pair, value in pairs.items() if wanted.issuperset(pair)})


class TailFit(Section):
    """Generalised-Pareto tail beyond `threshold`: excess over it has this shape and scale (scale in the law's unit)."""

    threshold: Annotated[float, within(-50.0, 50.0, "standard deviations")]
    shape: Annotated[float, within(-5.0, 0.5, "the shape of a tail with a variance")] = Field(lt=0.5)
    scale: Annotated[float, within(0.0, 50.0, "standard deviations", above=True)]
    exceedances: int = Field(ge=0)


class Margin(Section):
    """Law of the standardised residual (mean 0, variance 1): body quantiles, linear between, and two GPD tails.

    `quantiles` belong to the probabilities `margin_probabilities` of the file, which begin and end at the thresholds.
    """

    quantiles: tuple[Annotated[float, within(-50.0, 50.0, "standard deviations")], ...] = Field(min_length=3)
    lower: TailFit
    upper: TailFit

    @model_validator(mode="after")
    def _ordered(self) -> Margin:
        if any(b <= a for a, b in pairwise(self.quantiles)):
            raise ValueError("quantiles must increase strictly")
        for name, tail, end in (("lower", self.lower, self.quantiles[0]), ("upper", self.upper, self.quantiles[-1])):
            if abs(tail.threshold - end) > _TOLERANCE:
                raise ValueError(f"{name}.threshold is {tail.threshold}; the quantile beside it is {end}")
        return self


class Garch(Section):
    """sigma2_{t+1} = omega + (alpha + gamma 1{r_t < 0}) r_t^2 + beta sigma2_t; gamma is 0 in the form garch."""

    form: Literal["garch", "gjr"]
    omega: Annotated[float, within(0.0, 0.1, "a squared log move a day", above=True)]
    alpha: NotNegative
    gamma: float
    beta: Share
    daily_std_next: DailyStd
    """Standard deviation of the first day after the sample."""
    daily_std_long_run: Annotated[float, within(0.0, 10.0, "a standard deviation of log moves a day", above=True)]
    """Of the stationary law, which is wide where shocks hardly decay."""
    days: int = Field(ge=1)

    @model_validator(mode="after")
    def _stationary(self) -> Garch:
        if self.alpha + self.gamma < 0:
            raise ValueError("alpha + gamma must not be negative")
        if self.alpha + self.gamma / 2 + self.beta >= 1:
            raise ValueError("alpha + gamma/2 + beta must be below 1")
        return self


class CommonJump(Section):
    """Days on which at least half of the assets jump: rate, mean and standard deviation of the mean jump."""

    per_year: PerYear
    mean: LogMove
    std: JumpStd
    events: int = Field(ge=0)


class AssetJump(Section):
    """One asset: `beta` on the common jump, its own jumps, and the daily standard deviation of the rest.

    `pooled`: fewer than the minimum of own jumps, mean and standard deviation are those of all assets' own jumps.
    """

    beta: Multiple
    per_year: PerYear
    mean: LogMove
    std: JumpStd
    diffusive_std: DailyStd
    events: int = Field(ge=0)
    pooled: bool = False


class Jumps(Section):
    """Merton jump diffusion with a common jump factor; assets by price factor."""

    threshold: Positive
    window_days: int = Field(ge=2)
    common: CommonJump
    assets: dict[str, AssetJump]


class Regime(Section):
    """One state: daily mean and standard deviation of the market, its ratio to the whole sample's, and the factors."""

    name: str
    mean: LogMove
    market_std: DailyStd
    std_multiplier: Annotated[float, within(0.0, 100.0, "a multiple of the whole sample's", above=True)]
    mean_correlation: Correlation
    """Average over pairs of price factors."""
    daily_std: dict[str, DailyStd]


class Regimes(Section):
    """Gaussian hidden Markov model of the market (mean return of the anchors); states from calm to wild."""

    states: tuple[Regime, ...] = Field(min_length=2, max_length=3)
    transition: tuple[tuple[Share, ...], ...]
    """Row: from a state, column: to a state, per day."""
    filtered: tuple[Share, ...]
    """Probability of each state on the last date, from data up to it."""
    stationary: tuple[Share, ...]
    bic: dict[str, float]
    """Number of states to the Bayesian information criterion; the lowest won."""

    @model_validator(mode="after")
    def _probabilities(self) -> Regimes:
        count = len(self.states)
        rows = {f"transition row {i + 1}": row for i, row in enumerate(self.transition)}
        for name, row in {**rows, "filtered": self.filtered, "stationary": self.stationary}.items():
            if len(row) != count:
                raise ValueError(f"{name} has {len(row)} entries; there are {count} states")
            if abs(sum(row) - 1.0) > 1e-6:
                raise ValueError(f"{name} adds up to {sum(row):.6g}; expected 1")
        if len(self.transition) != count:
            raise ValueError(f"transition has {len(self.transition)} rows; there are {count} states")
        return self


class VolRuleFit(Section):
    """Daily change of log implied volatility: beta r + beta_abs (|r| - mean_abs) + eta Z, r the price's log return.

    `beta_linear`, `eta_linear`: the same without the |r| term. `skew_tilt`: change of the 25-delta risk reversal, in
    volatility (1 = 100 points), per unit of r. `borrowed_from`: the asset whose history it is; "" for its own.
    """

    beta: Multiple
    beta_abs: Multiple
    mean_abs: JumpStd
    eta: JumpStd
    beta_linear: Multiple
    eta_linear: JumpStd
    r_squared: Share
    r_squared_linear: Share
    skew_tilt: Multiple
    days: int = Field(ge=0)
    borrowed_from: str = ""
    assumed: tuple[str, ...] = ()


class Peg(Section):
    """A stablecoin: ordinary days are t with `nu` and `daily_std`; rarely a jump of depth Beta(a, b) * depth_cap.

    After a jump the discount decays at `recovery_per_day`, or with `absorbing_probability` never. `events` in `years`
    are those of all stablecoins of the table together.
    """

    daily_std: PegStd
    nu: Nu
    jumps_per_year: PerYear
    depth_a: BetaShape
    depth_b: BetaShape
    depth_cap: float = Field(gt=0, le=1)
    recovery_per_day: PerDay
    absorbing_probability: Share
    days: int = Field(ge=0)
    events: int = Field(ge=0)
    years: NotNegative
    assumed: tuple[str, ...] = ()


class Discount(Section):
    """A staked or wrapped token's log discount to its share of the underlying: mean reversion and a rare jump."""

    daily_std: PegStd
    nu: Nu
    mean: LogMove
    reversion_per_day: PerDay
    jumps_per_year: PerYear
    depth_a: BetaShape
    depth_b: BetaShape
    depth_cap: float = Field(gt=0, le=1)
    days: int = Field(ge=0)
    borrowed_from: str = ""
    assumed: tuple[str, ...] = ()


class Funding(Section):
    """Ornstein-Uhlenbeck funding rate, fraction per interval; `kappa` per interval, `sigma` per root interval."""

    interval_hours: Annotated[float, within(0.01, 168.0, "hours")]
    kappa: Annotated[float, within(0.0, 50.0, "a rate of decay an interval", above=True)]
    theta: FundingRate
    sigma: Annotated[float, within(0.0, 1.0, "a share of notional an interval, 0.0001 for 0.01 %", above=True)]
    cap: Annotated[float, within(0.0, 1.0, "a share of notional an interval, 0.0001 for 0.01 %", above=True)]
    latest: FundingRate
    intervals: int = Field(ge=0)
    assumed: tuple[str, ...] = ()


class Liquidity(Section):
    """Depth of an asset's market by proxy: trading volume, volatility, spread, price impact of volume."""

    adv_usd: Annotated[float, within(0.0, 1e13, "USD a day", above=True)]
    """Median daily quote volume, USD."""
    daily_std: DailyStd
    spread: Gap
    """Relative bid-ask spread, fraction of the price."""
    amihud: Annotated[float, within(0.0, 1.0, "a return per USD of volume")]
    """Mean |daily return| per USD of quote volume."""
    days: int = Field(ge=1)
    market: str
    assumed: tuple[str, ...] = ()


class Basis(Section):
    """Change over a day of the log gap between perpetual and spot: 99 % expected shortfall of its size, and floor."""

    es_99: Gap
    floor: Annotated[float, within(0.0, 1.0, "a share of the price, 0.002 for 0.2 %", above=True)]
    charge: Annotated[float, within(0.0, 1.0, "a share of the price, 0.002 for 0.2 %", above=True)]
    """max(es_99, floor): what the add-on takes per unit of matched notional."""
    gap_mean: Annotated[float, within(-1.0, 1.0, "a share of the price")]
    gap_std: Gap
    days: int = Field(ge=0)
    assumed: tuple[str, ...] = ()


class FactorCheck(Section):
    """How well one price factor is known: see docs/calibration.md for each figure."""

    market: str
    first_date: date
    last_date: date
    days: int = Field(ge=0)
    filled_share: Share
    wicks: int = Field(ge=0)
    hill_left: Positive
    hill_right: Positive
    ks_left: Share
    ks_right: Share
    garch_persistence: Share


class Diagnostics(Section):
    """Checks of the whole calibration; `spectrum` is the share of the first three eigenvalues, by law."""

    spectrum: dict[str, tuple[float, ...]]
    copula_profile: dict[str, dict[str, float]]
    """By law: nu on the grid to log-likelihood below the best one (0 at the best)."""
    largest_repair: dict[str, float]
    """By law: the most that the repair to a positive definite matrix moved a correlation."""
    factors: dict[str, FactorCheck]


class CalibrationFile(Section):
    """A whole calibration. Factors are price:ASSET, vol:ASSET or peg:ASSET; the order of `factors` is that of tables.

    Every law covers every factor, `margins` and `garch` every price and vol factor (an implied volatility without a
    history has those of the one that its rule is borrowed from), the jumps and regimes every price factor.
    """

    factors: tuple[str, ...] = Field(min_length=1)
    margin_probabilities: tuple[Share, ...] = Field(min_length=3)
    calibration: Provenance
    laws: dict[str, Law]
    margins: dict[str, Margin]
    garch: dict[str, Garch]
    jumps: Jumps
    regimes: Regimes
    vol_rules: dict[str, VolRuleFit]
    pegs: dict[str, Peg]
    discounts: dict[str, Discount]
    funding: dict[str, Funding]
    liquidity: dict[str, Liquidity]
    basis: dict[str, Basis]
    diagnostics: Diagnostics
    refused: dict[str, str] = {}
    """Asset to the reason why it has no law."""

    @model_validator(mode="after")
    def _pegs_hold(self) -> CalibrationFile:
        for name, law in self.laws.items():
            for factor, std in law.daily_std.items():
                if factor.startswith("peg:") and std > LARGEST_PEG_STD:
                    raise ValueError(
                        f"laws.{name}.daily_std.{factor}: {std:g} is beyond any peg; "
                        f"expected above 0 and at most {LARGEST_PEG_STD:g}"
                    )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> CalibrationFile:
        known = set(self.factors)
        if len(known) != len(self.factors):
            raise ValueError("factors names one twice")
        probabilities = self.margin_probabilities
        if any(b <= a for a, b in pairwise(probabilities)):
            raise ValueError("margin_probabilities must increase strictly")
        if not 0.0 < probabilities[0] < 0.5 < probabilities[-1] < 1.0:
            raise ValueError("margin_probabilities must begin below and end above one half, within 0..1")
        if CURRENT not in self.laws:
            raise ValueError(f"laws has no {CURRENT!r}")
        for anchor in self.calibration.anchors:
            if f"price:{anchor}" not in known:
                raise ValueError(f"calibration.anchors: {anchor!r} is no asset of factors")
        periods = {"calibration": self.calibration} | {f"laws.{name}": law for name, law in self.laws.items()}
        for name, period in periods.items():
            if period.first_date > period.last_date:
                raise ValueError(f"{name}: first_date {period.first_date} is after last_date {period.last_date}")
        named: list[tuple[str, Mapping[str, Any]]] = [
            ("margins", self.margins),
            ("garch", self.garch),
            ("jumps.assets", self.jumps.assets),
            ("diagnostics.factors", self.diagnostics.factors),
            *((f"regimes.{state.name}.daily_std", state.daily_std) for state in self.regimes.states),
            *((f"laws.{name}.daily_std", law.daily_std) for name, law in self.laws.items()),
            *((f"laws.{name}.filled", law.filled) for name, law in self.laws.items()),
        ]
        for place, table in named:
            for factor in table:
                if factor not in known:
                    raise ValueError(f"{place}: unknown factor {factor!r}{nearest_name(factor, known)}")
        for factor, margin in self.margins.items():
            if len(margin.quantiles) != len(probabilities):
                raise ValueError(
                    f"margins.{factor} has {len(margin.quantiles)} quantiles for {len(probabilities)} probabilities"
                )
        for name, law in self.laws.items():
            for factor in self.factors:
                if factor not in law.daily_std:
                    raise ValueError(f"laws.{name}.daily_std has no {factor}")
            try:
                smallest = float(np.linalg.eigvalsh(law.matrix(self.factors))[0])
            except ConfigurationError as error:
                raise ValueError(f"laws.{name}: {error}") from None
            if not smallest > 0.0:
                raise ValueError(
                    f"laws.{name}: the correlations are inconsistent with each other "
                    f"(smallest eigenvalue {smallest:.3g}); undo or soften the edited pairs"
                )
        return self


def read_calibration(path: Path) -> CalibrationFile:
    """The calibration in a TOML file; ConfigurationError with one sentence per mistake and the nearest right name."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the calibration {path.name!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path.name} is not valid TOML: {error}") from None
    return checked_calibration(document, path.name)


def checked_calibration(document: Mapping[str, Any], name: str) -> CalibrationFile:
    """The calibration in a parsed document; `name` begins every sentence of the ConfigurationError."""
    try:
        return CalibrationFile.model_validate(document)
    except ValidationError as error:
        entries = error.errors(include_url=False, include_context=False, include_input=False)
        raise ConfigurationError(f"{name}: " + "; ".join(_sentence(dict(entry)) for entry in entries)) from None


def _sentence(entry: Mapping[str, Any]) -> str:
    location = entry["loc"]
    place = ".".join(str(part) for part in location)
    if entry["type"] == "extra_forbidden":
        return f"unknown key {place}{nearest_name(str(location[-1]), _known_keys(location[:-1]))}"
    if entry["type"] == "missing":
        return f"missing key {place}"
    message = str(entry["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Fields of the model at `location`; keys that people name and list indices stay in the model they are in."""
    models: list[type[BaseModel]] = [CalibrationFile]
    for part in location:
        following = [
            inner
            for model in models
            if part in model.model_fields
            for inner in _models(model.model_fields[str(part)].annotation)
        ]
        models = following or models
    return sorted({name for model in models for name in model.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
