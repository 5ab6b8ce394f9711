"""The typed configuration of a run, read from TOML. Every default lives here; an unknown key is an error.

Paths in a configuration are relative to its file. `--set a.b=c` overrides the environment `CROSSMARGIN__A__B`, which
overrides the file. Nothing here is a secret: keys come from the environment or from files named there, never from TOML.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from .errors import ConfigurationError, nearest_name
from .policy import Requirement
from .section import Section

ENVIRONMENT_PREFIX = "CROSSMARGIN__"
TILE = 256
"""Scenarios per tile: the fixed block in which everything over scenarios is drawn, evaluated and added."""


class PayloadFile(Section):
    """One payload file; `request` is the venue's name of the call and may be left out when the file is an envelope."""

    file: str
    request: str = ""


class Source(Section):
    """Payloads of one venue: of one owner, or market-wide when `owner` is empty.

    Sources of equal `snapshot` form one snapshot: they share market data and are checked against each other.
    `parameters` is the venue's dated parameter file.
    """

    venue: str
    owner: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]{0,64}$")
    snapshot: str = "main"
    parameters: str | None = None
    payloads: tuple[PayloadFile, ...] = Field(min_length=1)


class Run(Section):
    """What is computed. `as_of` None: the newest receive time of the snapshot."""

    as_of: datetime | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    horizon_days: float = Field(default=1.0, gt=0, le=60)
    detail_top: int = Field(default=100, ge=0)
    worst_scenarios: int = Field(default=10, ge=1, le=100)
    target_error: float | None = Field(default=None, gt=0, lt=1)
    """Relative standard error of the pooled ES at 99 % that scenarios are added for; None adds none."""

    @field_validator("as_of")
    @classmethod
    def _zoned(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("as_of needs a time zone, for example 2024-06-30T00:00:00Z")
        try:
            return value.astimezone(UTC) if value else None
        except OverflowError:
            raise ValueError("as_of is no time of this era") from None


class Data(Section):
    """Freshness and consistency bounds of the snapshot; 0 switches a bound off."""

    max_age_s: float = Field(default=3600.0, le=1e10, ge=0)
    max_mark_gap: float = Field(default=0.02, ge=0)


class Reconcile(Section):
    """From where on a difference to a venue's own figure that nothing explains is too large.

    It has to be beyond both bounds: of absolute size in USD, and of size relative to the venue's figure.
    """

    bound_usd: float = Field(default=1.0, ge=0)
    bound_relative: float = Field(default=0.001, ge=0)


class MultivariateTFigures(Section):
    """Scenarios from a multivariate t with figures from the configuration.

    `daily_std` is the daily standard deviation of each factor's log move (not the t's scale); `correlation` holds
    `"factor | factor" = rho` pairs, unnamed pairs are `default_correlation` between price factors and 0 otherwise.
    """

    generator: Literal["multivariate_t"]
    scenarios: int = Field(default=10_000, ge=100, le=10_000_000)
    nu: float = Field(gt=2)
    daily_std: dict[str, float]
    correlation: dict[str, float] = {}
    default_correlation: float = Field(default=0.0, ge=-1, le=1)
    proxies: dict[str, Proxy] = {}


class Proxy(Section):
    """A factor without figures or history of its own moves as `scale` times another one."""

    factor: str
    scale: float = Field(default=1.0, gt=0)


class PegFigures(Section):
    """Parametric peg factor: t-distributed log move with this daily standard deviation."""

    daily_std: float = Field(gt=0)
    nu: float = Field(default=3.0, gt=2)


class VolRule(Section):
    """Log vol move of an underlying without implied-vol history: `beta * r + eta * Z`."""

    beta: float
    eta: float = Field(ge=0)


class TailMoves(Section):
    """Log-moves over a day, a fall and a rise, that a factor exceeds with one minus the level of its forecast."""

    down: float = Field(gt=0, le=10)
    up: float = Field(gt=0, le=10)


class ScenarioForecast(Section):
    """Today's scale of a filtered history from outside (see `tail_scale`): `moves` by factor, or the learned margin.

    With `market`, a folder of market history, the fit in `checkpoint` (None: the shipped one of a day, close to close)
    forecasts every asset of the folder that `moves` does not name; `settings` are the model's hyper-parameters (None:
    the shipped reference). A price without a forecast keeps the volatility of its own history, and is reported.
    """

    level: float = Field(default=0.99, gt=0.5, lt=1)
    moves: dict[str, TailMoves] = {}
    market: str | None = None
    checkpoint: str | None = None
    settings: str | None = None
    max_age_days: float = Field(default=3.0, gt=0, le=60)
    """An asset whose market history ends longer before the instant of the run than this is not forecast."""

    @model_validator(mode="after")
    def _with_source(self) -> ScenarioForecast:
        if self.market is None and not self.moves:
            raise ValueError("a forecast needs moves, or a market folder to make them of")
        if self.market is None and (self.checkpoint is not None or self.settings is not None):
            raise ValueError("checkpoint and settings are read with a market folder alone")
        for name in self.moves:
            if not name.startswith(("price:", "vol:")):
                raise ValueError(f"moves of {name!r}: expected a factor price:... or vol:...")
        return self


class FilteredHistoryFigures(Section):
    """Scenarios by filtered historical simulation on a market-history table.

    `scenarios` 0 takes every date of the panel once (the exact law); otherwise dates are drawn with replacement.
    With `splice`, dates without a return of an asset's first market take that of the next. A date weighs half as much
    after every `half_life_days`; 0: all dates alike. `backtest_request` tests these very defaults.
    """

    generator: Literal["filtered_history"]
    scenarios: int = Field(default=0, ge=0, le=10_000_000)
    history: str
    context: str | None = None
    market_preference: tuple[str, ...] = ("perp", "spot")
    splice: bool = True
    anchors: tuple[str, ...] = ("BTC", "ETH")
    ewma_lambda: float = Field(default=0.97, gt=0.5, lt=1)
    half_life_days: float = Field(default=730.0, ge=0)
    proxies: dict[str, Proxy] = {}
    pegs: dict[str, PegFigures] = {}
    vol_rules: dict[str, VolRule] = {}
    mean_block: float = Field(default=1.0, ge=1)
    """Mean length, in dates, of the blocks that paths replay in one piece; 1 draws every step anew."""
    until: datetime | None = None
    """Last instant of the history; None: the run's as_of."""
    forecast: ScenarioForecast | None = None
    """What takes the place of today's volatility of the history; None: nothing."""


class HistoryFigures(Section):
    """The tables that the law filtered_history of a calibration replays, up to the calibration's as_of.

    `volatility` "ewma" takes the calibration's decay; "gjr" its GARCH figures, with leverage where the file has some;
    "garch" the same persistence without leverage. `mean_block` and `forecast` as in `FilteredHistoryFigures`, the
    latter for the current law alone.
    """

    table: str
    context: str | None = None
    volatility: Literal["ewma", "garch", "gjr"] = "ewma"
    half_life_days: float = Field(default=730.0, ge=0)
    mean_block: float = Field(default=1.0, ge=1)
    splice: bool = True
    forecast: ScenarioForecast | None = None


CalibratedLaw = Literal["t_copula", "multivariate_t", "merton_jumps", "regime_switching", "filtered_history"]
CalibratedOverlay = Literal["spot_vol", "depeg", "lst_discount", "funding", "oracle_error", "liquidity_drought"]


class JumpFigures(Section):
    """What the calibration does not say of rare jumps; both ASSUMED, no history tells them.

    The rate of jumps is multiplied by exp(`stress_loading` s), s being the standard deviations (of a day like today)
    that the market falls over the step. `absorbing_share` of the jumps of a staked token are slashings, which never
    heal; that of a stablecoin stands in the calibration.
    """

    stress_loading: float = Field(default=0.5, ge=0, le=5)
    absorbing_share: float = Field(default=0.0, ge=0, le=1)


class OracleFigures(Section):
    """The oracle of every price that paths move; all ASSUMED, its lengths rounded to whole steps of the paths.

    It follows the price of `delay_hours` ago when that differs from its mark by more than `deviation` or after
    `heartbeat_hours`, but not during an outage; a wrong feed reports the price times exp(error_std Z). All assets share
    outages and errors: there is one network of nodes.
    """

    deviation: float = Field(default=0.005, ge=0, le=1)
    heartbeat_hours: float = Field(default=1.0, gt=0, le=8760)
    delay_hours: float = Field(default=0.0, ge=0, le=8760)
    outages_per_year: float = Field(default=2.0, ge=0, le=8760)
    outage_hours: float = Field(default=4.0, gt=0, le=8760)
    errors_per_year: float = Field(default=0.5, ge=0, le=8760)
    error_std: float = Field(default=0.05, ge=0, le=2)
    error_hours: float = Field(default=1.0, gt=0, le=8760)


class DroughtFigures(Section):
    """Depth of an order book over today's: max(`least`, exp(-`sensitivity` |move| / daily deviation)); both ASSUMED."""

    sensitivity: float = Field(default=0.5, ge=0, le=100)
    least: float = Field(default=0.1, ge=1e-4, le=1)


class CalibratedFigures(Section):
    """Scenarios from a dated calibration file (see `calibration_file`).

    `law` is the generator (filtered_history needs `history`), or `mixture` gives several of them with weights that sum
    to 1. The laws t_copula and multivariate_t take scrambled Sobol points with thicker tails and weights (`points`
    "sobol") unless they are part of a mixture; all others are independent draws. `overlays` act on the law: ordinary
    moves in their order, then the rare jumps of all of them; funding and oracle_error act on paths, liquidity_drought
    on sizes of markets. `factors` None takes every factor of the file. `stressed` names the file's stressed laws that
    the requirement looks at; None takes all of them.
    """

    generator: Literal["calibrated"]
    calibration: str
    law: CalibratedLaw = "t_copula"
    mixture: dict[CalibratedLaw, float] = {}
    overlays: tuple[CalibratedOverlay, ...] = ()
    scenarios: int = Field(default=16_384, ge=256, le=10_000_000)
    points: Literal["sobol", "random"] = "sobol"
    factors: tuple[str, ...] | None = None
    stressed: tuple[str, ...] | None = None
    proxies: dict[str, Proxy] = {}
    history: HistoryFigures | None = None
    jumps: JumpFigures = JumpFigures()
    oracle_error: OracleFigures = OracleFigures()
    liquidity_drought: DroughtFigures = DroughtFigures()

    @model_validator(mode="after")
    def _with_history(self) -> CalibratedFigures:
        replays = "filtered_history" in (self.mixture or (self.law,))
        if replays and self.history is None:
            raise ValueError("law filtered_history needs the section scenarios.history with its table")
        if not replays and self.history is not None:
            raise ValueError("scenarios.history is read by the law filtered_history alone")
        return self

    @model_validator(mode="after")
    def _with_overlays(self) -> CalibratedFigures:
        if len(set(self.overlays)) < len(self.overlays):
            raise ValueError(f"overlays are {list(self.overlays)}; each acts once")
        readers = {
            "jumps": {"depeg", "lst_discount"},
            "oracle_error": {"oracle_error"},
            "liquidity_drought": {"liquidity_drought"},
        }
        for section, of_section in readers.items():
            if section in self.model_fields_set and not of_section & set(self.overlays):
                readers_of = " or ".join(sorted(of_section))
                raise ValueError(f"scenarios.{section} is read with the overlay {readers_of} alone")
        return self


class Paths(Section):
    """Paths of `steps` equal steps over the horizon, beside the scenarios; `scenarios` 0 computes none.

    What happens between two steps is not seen, so more steps find more liquidations.
    """

    scenarios: int = Field(default=0, ge=0, le=1_000_000)
    steps: int = Field(default=12, ge=1, le=1_000)


class Engine(Section):
    """How it is computed; none of these changes a bit of the results."""

    scenario_chunk: int = Field(default=4096, ge=TILE)
    host_devices: int = Field(default=0, ge=0, le=256)
    """CPU devices to split portfolios over; 0 takes the number of cores."""
    shard_portfolios: int = Field(default=1024, ge=1)
    """Portfolios per shard, about: shards are hash ranges of portfolio ids."""

    @field_validator("scenario_chunk")
    @classmethod
    def _whole_tiles(cls, value: int) -> int:
        if value % TILE:
            raise ValueError(f"scenario_chunk must be a multiple of {TILE}")
        return value


class Store(Section):
    """Where results land: a folder, or a URL of an object store."""

    path: str = "../results"
    resume_within_s: float = Field(default=86_400.0, le=1e10, ge=0)


class ReportSection(Section):
    """Folder where the HTML report of each run lands; an empty path writes none."""

    path: str = "../results/reports"


class Tiers(Section):
    """What `recommend` makes margin tiers of; no other verb reads it.

    `market` is a folder of market history, `checkpoints` one of the learned model and `settings` its hyper-parameters
    (None: the shipped reference), `governance` a TOML file, `output` the folder of recommendations and their pages.
    """

    market: str | None = None
    checkpoints: str | None = None
    governance: str = "governance.toml"
    settings: str | None = None
    output: str = "../results/recommendations"
    max_age_days: float = Field(default=3.0, gt=0, le=60)
    """An asset whose history ends longer before the instant of the run than this is not forecast."""


LimitMetric = Literal[
    "equity_usd",
    "health_minimum",
    "p_liquidation_any_at_horizon",
    "es_99_pooled_usd",
    "es_995_pooled_usd",
    "equity_to_es_99",
    "native_maintenance_usd",
    "requirement_effective_usd",
    "health_unified",
    "p_liquidation_path",
    "health",
    "p_liquidation_at_horizon",
]


class Limit(Section):
    """A bound that the run must keep: exactly one of `minimum` and `maximum`.

    `scope`: "*" every portfolio, a portfolio id, or for the account metrics (health, p_liquidation_at_horizon) an
    account id or its prefix. p_liquidation_path is both: "*" is every portfolio, whose probability bounds that of its
    accounts; any other scope is the portfolio and the accounts that it names. A metric that is null leaves the limit
    undecided, which is reported and never counts as kept.
    """

    metric: LimitMetric
    scope: str = "*"
    minimum: float | None = None
    maximum: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Limit:
        if (self.minimum is None) == (self.maximum is None):
            raise ValueError("give exactly one of minimum and maximum")
        return self


class Configuration(Section):
    """A whole run."""

    title: str = "crossmargin sweep"
    assets: str = "assets.toml"
    run: Run = Run()
    data: Data = Data()
    reconcile: Reconcile = Reconcile()
    scenarios: MultivariateTFigures | FilteredHistoryFigures | CalibratedFigures = Field(discriminator="generator")
    requirement: Requirement = Requirement()
    stress: str | None = None
    """The library of named stresses, a TOML file."""
    stress_history: str | None = None
    """Table of daily bars on which the replays of the library are measured."""
    routes: str | None = None
    """How collateral travels between venues, a TOML file (see `routes`); without one it is taken to arrive."""
    paths: Paths = Paths()
    engine: Engine = Engine()
    store: Store = Store()
    report: ReportSection = ReportSection()
    tiers: Tiers = Tiers()
    sources: tuple[Source, ...] = Field(min_length=1)
    portfolios: dict[str, tuple[str, ...]] = Field(min_length=1)
    """Portfolio id to account ids; an entry also takes every account whose id starts with it and a colon."""
    limits: tuple[Limit, ...] = ()


class Resolved(Section):
    """A configuration with the folder that its paths are relative to."""

    configuration: Configuration
    folder: Path

    def path(self, text: str) -> Path:
        """An absolute path from a path of the configuration."""
        return (self.folder / text).resolve()

    def text(self) -> str:
        """Canonical JSON of everything that was configured (no path of the machine)."""
        return json.dumps(self.configuration.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """SHA-256 of what decides the numbers: the configuration without engine, store, report, tiers and title."""
        figures = self.configuration.model_dump(mode="json", exclude={"engine", "store", "report", "tiers", "title"})
        return hashlib.sha256(json.dumps(figures, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_GENERATORS: Mapping[str, type[Section]] = {
    "multivariate_t": MultivariateTFigures,
    "filtered_history": FilteredHistoryFigures,
    "calibrated": CalibratedFigures,
}


def load_configuration(
    path: Path, *, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Resolved:
    """The configuration in `path`, with environment and `a.b=c` overrides applied.

    Raises `ConfigurationError` with one sentence per mistake: what is wrong, where, and the nearest right name.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the configuration {path.name!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path.name} is not valid TOML: {error}") from None
    for name, text in sorted((environment or {}).items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            _override(document, name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"), text, name)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigurationError(f"--set {override!r}: expected a.b=value")
        _override(document, key.strip().split("."), text.strip(), f"--set {key}")
    try:
        return Resolved(configuration=Configuration.model_validate(document), folder=path.resolve().parent)
    except ValidationError as error:
        raise ConfigurationError(f"{path.name}: " + "; ".join(_sentences(error))) from None


def _override(document: dict[str, Any], keys: Sequence[str], text: str, where: str) -> None:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        parsed = {}
    # A text of several lines may parse as a value and further keys: then it is a text.
    value = parsed["value"] if parsed.keys() == {"value"} else text
    section = document
    for key in keys[:-1]:
        section = section.setdefault(_spelled(section, key), {})
        if not isinstance(section, dict):
            raise ConfigurationError(f"{where}: {key!r} is no section")
    section[_spelled(section, keys[-1])] = value


def _spelled(section: Mapping[str, Any], key: str) -> str:
    """`key` as the section spells it: environment variables carry no case, portfolio ids and symbols do."""
    return next((known for known in section if known.lower() == key.lower()), key)


def _sentences(error: ValidationError) -> list[str]:
    out = []
    entries = error.errors(include_url=False, include_context=False, include_input=False)
    for entry in entries:
        keys, _ = _followed(entry["loc"])
        place = ".".join(keys)
        if entry["type"] == "extra_forbidden":
            _, models = _followed(entry["loc"][:-1])
            hint = nearest_name(keys[-1], sorted({name for model in models for name in model.model_fields}))
            out.append(f"unknown key {place}{hint}")
        elif entry["type"] == "missing":
            out.append(f"missing key {place}")
        elif entry["type"] == "union_tag_not_found":
            out.append(f"missing key {place}.generator: one of {', '.join(_GENERATORS)}")
        elif entry["type"] == "union_tag_invalid":
            out.append(f"{place}.generator: expected one of {', '.join(_GENERATORS)}")
        elif entry["type"] == "too_short" and any(_lies_in(other["loc"], entry["loc"]) for other in entries):
            # The list is only short because its faulty entries, which are named themselves, do not count.
            continue
        else:
            out.append(f"{place}: {entry['msg'].removeprefix('Value error, ')}")
    return out


def _lies_in(location: Sequence[int | str], outer: Sequence[int | str]) -> bool:
    return len(location) > len(outer) and location[: len(outer)] == outer


def _followed(location: Sequence[int | str]) -> tuple[list[str], list[type[BaseModel]]]:
    """(Keys as the user wrote them, models that the last one may hold) of pydantic's `location`.

    The tag that pydantic puts in for the chosen member of a union is no key; list indices and the keys of tables that
    people name stay in the model that they are in.
    """
    keys: list[str] = []
    models: list[type[BaseModel]] = [Configuration]
    for part in location:
        if len(models) > 1 and part in _GENERATORS:
            models = [_GENERATORS[str(part)]]
            continue
        keys.append(str(part))
        following = [
            inner
            for model in models
            if part in model.model_fields
            for inner in _models(model.model_fields[str(part)].annotation)
        ]
        models = following or models
    return keys, models


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


MultivariateTFigures.model_rebuild()
FilteredHistoryFigures.model_rebuild()
CalibratedFigures.model_rebuild()
Configuration.model_rebuild()
