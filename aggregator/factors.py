"""From the factors that a book needs to a scenario generator: figures or history, proxies, pegs, and what is missing.

A factor without figures, history, proxy or rule is missing: whoever needs it cannot be computed and is left out with
`missing_parameter`. Nothing is invented for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
import pyarrow as pa

from .calibrated import (
    calibrated_factors,
    calibrated_generator,
    market_figures,
    scenario_count,
    stressed_names,
)
from .calibrated_history import HistoryTables, history_assets, tail_forecasts
from .calibration_file import CURRENT, CalibrationFile, read_calibration
from .config import (
    CalibratedFigures,
    FilteredHistoryFigures,
    MultivariateTFigures,
    Resolved,
    ScenarioForecast,
)
from .errors import ConfigurationError, DataError, Failure, FailureReason, nearest_name
from .generators.filtered_historical import filtered_historical
from .generators.multivariate_t import multivariate_t
from .history import FactorHistory, Proxy, VolatilityRule, age_weights, factor_history
from .history_tables import implied_vol_changes, read_history_table, return_panel
from .path_views import VIEW_KINDS
from .scenarios import PegDistribution, ScenarioGenerator

_PAIR = "|"


class Origin(NamedTuple):
    """Where a factor's law comes from: history, proxy, rule or figures; `filled_share` of its history cells was
    filled.
    """

    source: str
    filled_share: float


class MarketSize(NamedTuple):
    """Daily volume in USD, daily standard deviation and relative spread of an asset."""

    daily_volume: float
    daily_vol: float
    spread: float


class StressedLaw(NamedTuple):
    """The law of a stressed period by name; its own scenario set when `scenarios` is None."""

    name: str
    generator: ScenarioGenerator
    scenarios: int | None


class Generation(NamedTuple):
    """A generator over `factors` (sorted); `scenarios` None for a generator that has a scenario set of its own.

    `stressed` are laws over the same factors, `sizes` and `basis` what is known of markets by price factor: see
    `unified_market`.
    """

    generator: ScenarioGenerator
    factors: tuple[str, ...]
    scenarios: int | None
    origins: Mapping[str, Origin]
    missing: frozenset[str]
    failures: tuple[Failure, ...]
    stressed: tuple[StressedLaw, ...] = ()
    sizes: Mapping[str, MarketSize] = MappingProxyType({})
    basis: Mapping[str, float] = MappingProxyType({})


def build_generator(
    resolved: Resolved, needed: Sequence[str], as_of: datetime, *, steps: int | None = None
) -> Generation:
    """The configured generator; needed factors that it cannot move are `missing`.

    With `steps` it is one of paths of as many steps, each as long as the horizon; then it may have factors behind those
    of the run that only paths read.

    From figures it covers every factor that has some, from history the needed ones.

    Raises `ConfigurationError` when the figures are wrong in themselves or cover nothing that is needed, and lets a
    `DataError` of the history pass (an anchor without data leaves no panel to work with).
    """
    figures = resolved.configuration.scenarios
    if isinstance(figures, MultivariateTFigures):
        generation = _from_figures(resolved, figures, sorted(needed))
    elif isinstance(figures, CalibratedFigures):
        generation = _from_calibration(resolved, figures, sorted(needed), steps)
    else:
        generation = _from_history(resolved, figures, sorted(needed), as_of)
    return generation._replace(sizes={**generation.sizes, **_own_sizes(resolved)})


def build_path_generator(resolved: Resolved, factors: Sequence[str], as_of: datetime) -> Generation:
    """The configured law over one step of `[paths]`, over the `factors` of the run and without stressed laws.

    Paths are drawn independently: a set of its own (every date once, a point set) is that of a single step.
    """
    configuration = resolved.configuration
    figures, run = configuration.scenarios, configuration.run
    drawn = {"scenarios": configuration.paths.scenarios, "points": "random", "stressed": ()}
    own = {name: value for name, value in drawn.items() if name in type(figures).model_fields}
    step = {"horizon_days": run.horizon_days / configuration.paths.steps}
    changed = {"scenarios": figures.model_copy(update=own), "run": run.model_copy(update=step)}
    of_step = resolved.model_copy(update={"configuration": configuration.model_copy(update=changed)})
    generation = build_generator(of_step, factors, as_of, steps=configuration.paths.steps)
    if generation.factors != tuple(factors):
        raise ConfigurationError(f"the law of [paths] moves {generation.factors}, that of the run {tuple(factors)}")
    return generation


def _own_sizes(resolved: Resolved) -> dict[str, MarketSize]:
    """Sizes of markets that the policy itself states."""
    assets = resolved.configuration.requirement.liquidity.assets
    return {f"price:{name}": MarketSize(a.adv_usd, a.daily_std, a.spread) for name, a in assets.items()}


def _from_calibration(
    resolved: Resolved, figures: CalibratedFigures, needed: Sequence[str], steps: int | None
) -> Generation:
    configuration = resolved.configuration
    file = read_calibration(resolved.path(figures.calibration))
    factors = calibrated_factors(file, figures)
    _, missing = _covered(needed, factors)
    tables, failures = _history_tables(resolved, figures, file, factors)

    def built(law: str, scenarios: int) -> ScenarioGenerator:
        return calibrated_generator(
            file,
            law,
            factors,
            figures,
            seed=configuration.run.seed,
            scenarios=scenarios,
            horizon_days=configuration.run.horizon_days,
            steps=steps,
            tables=tables,
        )

    of_stress = configuration.requirement.stressed_scenarios
    laws = {name: built(name, of_stress) for name in stressed_names(file, figures)}
    stressed = tuple(StressedLaw(name, law, scenario_count(law, of_stress)) for name, law in laws.items())
    known = market_figures(file)
    own = "history" if figures.law == "filtered_history" and not figures.mixture else "figures"
    origins = {
        name: Origin("proxy" if name in figures.proxies else own, _filled(file, figures, name)) for name in factors
    }
    current = built(CURRENT, figures.scenarios)
    forecast = None if figures.history is None else figures.history.forecast
    followed = {name: figures.proxies[name].factor if name in figures.proxies else name for name in factors}
    unforeseen = _without_forecast(forecast, followed)
    if steps is None and not configuration.paths.scenarios:
        for overlay in ("funding", "oracle_error"):
            if overlay in figures.overlays:
                raise ConfigurationError(f"scenarios.overlays: {overlay} acts on paths; set paths.scenarios above 0")
    return Generation(
        current,
        tuple(name for name in current.factors if name.partition(":")[0] not in VIEW_KINDS),
        scenario_count(current, figures.scenarios),
        origins,
        missing,
        (*failures, *_missing_failures(missing), *unforeseen),
        stressed,
        {name: MarketSize(*market[:3]) for name, market in known.items()},
        {name: market.basis for name, market in known.items() if market.basis is not None},
    )


def _history_tables(
    resolved: Resolved, figures: CalibratedFigures, file: CalibrationFile, factors: Sequence[str]
) -> tuple[HistoryTables | None, tuple[Failure, ...]]:
    """What the law filtered_history replays, up to the calibration's as_of; None for other laws."""
    history = figures.history
    if history is None:
        return None, ()
    models = [figures.proxies[name].factor if name in figures.proxies else name for name in factors]
    used = file.calibration
    return _tables(
        resolved,
        history.table,
        history.context,
        history_assets(models),
        until=used.as_of,
        anchors=used.anchors,
        markets=used.markets,
        splice=history.splice,
    )


def _tables(
    resolved: Resolved,
    history: str,
    context: str | None,
    assets: Sequence[str],
    *,
    until: datetime,
    anchors: Sequence[str],
    markets: Sequence[str],
    splice: bool,
) -> tuple[HistoryTables, tuple[Failure, ...]]:
    """Returns of `assets`, the implied volatilities that the context table has of them, and what could not be read."""
    with _readable(history):
        panel, failures = return_panel(
            read_history_table(resolved.path(history)),
            assets,
            as_of=until,
            anchors=anchors,
            markets=markets,
            splice=splice,
        )
    vols: dict[str, np.ndarray] = {}
    if context is not None:
        with _readable(context):
            vols, of_vols = implied_vol_changes(
                read_history_table(resolved.path(context)), assets, dates=panel.dates, as_of=until
            )
        failures = (*failures, *of_vols)
    return HistoryTables(panel, vols), failures


def _filled(file: CalibrationFile, figures: CalibratedFigures, name: str) -> float:
    """Share of the history behind a price that was filled; 0 for what has none to fill."""
    model = figures.proxies[name].factor if name in figures.proxies else name
    check = file.diagnostics.factors.get(model)
    return 0.0 if check is None else check.filled_share


def _covered(needed: Sequence[str], covered: Sequence[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    factors = tuple(name for name in needed if name in set(covered))
    if needed and not factors:
        raise ConfigurationError(
            f"[scenarios] moves none of the factors that this book needs: {', '.join(needed) or 'none'}"
        )
    return factors, frozenset(needed) - set(factors)


def _missing_failures(missing: frozenset[str]) -> list[Failure]:
    return [
        Failure(
            FailureReason.MISSING_PARAMETER,
            f"factor {name} has no figures, history, proxy or rule in [scenarios]; accounts that need it are left out",
            path="scenarios",
            subject=name,
        )
        for name in sorted(missing)
    ]


def _from_figures(resolved: Resolved, figures: MultivariateTFigures, needed: Sequence[str]) -> Generation:
    for name, proxy in figures.proxies.items():
        if proxy.factor not in figures.daily_std:
            hint = nearest_name(proxy.factor, figures.daily_std)
            raise ConfigurationError(f"proxy of {name}: factor {proxy.factor!r} has no daily_std{hint}")
    # Every configured factor is drawn, needed or not: dropping one would give those behind it other draws, and then a
    # payload that cannot be read would change the figures of everybody else.
    factors = tuple(sorted({*figures.daily_std, *figures.proxies}))
    _, missing = _covered(needed, factors)
    correlations = _pairs(figures)
    model = {name: figures.proxies[name].factor if _is_proxied(figures, name) else name for name in factors}
    std = {
        name: figures.daily_std[model[name]] * (figures.proxies[name].scale if _is_proxied(figures, name) else 1.0)
        for name in factors
    }
    matrix = np.eye(len(factors))
    for i, a in enumerate(factors):
        for j, b in enumerate(factors):
            if i != j:
                matrix[i, j] = 1.0 if model[a] == model[b] else _correlation(figures, correlations, model[a], model[b])
    generator = multivariate_t(
        factors,
        std,
        correlation=matrix,
        nu=figures.nu,
        horizon_days=resolved.configuration.run.horizon_days,
    )
    origins = {name: Origin("proxy" if _is_proxied(figures, name) else "figures", 0.0) for name in factors}
    return Generation(generator, factors, figures.scenarios, origins, missing, tuple(_missing_failures(missing)))


def _is_proxied(figures: MultivariateTFigures, name: str) -> bool:
    return name not in figures.daily_std


def _pairs(figures: MultivariateTFigures) -> dict[frozenset[str], float]:
    known = [*figures.daily_std]
    out: dict[frozenset[str], float] = {}
    for pair, value in figures.correlation.items():
        names = [part.strip() for part in pair.split(_PAIR)]
        if len(names) != 2 or names[0] == names[1]:
            raise ConfigurationError(f'correlation {pair!r}: expected "factor | other factor"')
        for name in names:
            if name not in figures.daily_std:
                raise ConfigurationError(f"correlation {pair!r}: {name!r} has no daily_std{nearest_name(name, known)}")
        if not -1.0 <= value <= 1.0:
            raise ConfigurationError(f"correlation {pair!r} is {value}; expected -1..1")
        key = frozenset(names)
        if key in out:
            raise ConfigurationError(f"correlation {pair!r} is given twice")
        out[key] = value
    return out


def _correlation(figures: MultivariateTFigures, pairs: Mapping[frozenset[str], float], a: str, b: str) -> float:
    both_prices = a.startswith("price:") and b.startswith("price:")
    return pairs.get(frozenset((a, b)), figures.default_correlation if both_prices else 0.0)


def _from_history(
    resolved: Resolved, figures: FilteredHistoryFigures, needed: Sequence[str], as_of: datetime
) -> Generation:
    until = figures.until or as_of
    assets = sorted({name.partition(":")[2] for name in needed if not name.startswith("peg:")})
    proxies = {_symbol(name): Proxy(_symbol(p.factor), p.scale) for name, p in figures.proxies.items()}
    wanted = sorted({*assets, *(proxies[a].asset for a in assets if a in proxies)})
    (panel, vols), read_failures = _tables(
        resolved,
        figures.history,
        figures.context,
        wanted,
        until=until,
        anchors=figures.anchors,
        markets=figures.market_preference,
        splice=figures.splice,
    )
    rules = {a: VolatilityRule(f"price:{a}", rule.beta, rule.eta) for a, rule in figures.vol_rules.items()}
    # A panel needs a column even for a book of stablecoins alone, or of no account that could be read.
    prices = [name for name in needed if name.startswith("price:")] or [f"price:{figures.anchors[0]}"]
    # A vol factor moves with its underlying's price, which therefore takes part even where nothing else needs it.
    extra = [f"price:{name.partition(':')[2]}" for name in needed if name.startswith("vol:")]
    history = factor_history(
        panel,
        list(dict.fromkeys([*prices, *extra, *(name for name in needed if name.startswith("vol:"))])),
        proxies={a: p for a, p in proxies.items() if a in assets},
        implied_vols=vols,
        volatility_rules=rules,
        decay=figures.ewma_lambda,
    )
    pegs = {f"peg:{a}": PegDistribution(p.daily_std, p.nu) for a, p in figures.pegs.items()}
    known = [*history.columns, *history.rules, *pegs]
    usable, missing = _covered(needed, known)
    factors = tuple(sorted({*usable, *(name for name in [*prices, *extra] if name in history.columns)}))
    generator = filtered_historical(
        factors,
        history,
        key=jax.random.key(resolved.configuration.run.seed),
        pegs=pegs,
        mode="draw" if figures.scenarios else "every_date",
        horizon_days=resolved.configuration.run.horizon_days,
        date_weights=age_weights(history.dates, figures.half_life_days or None),
        mean_block_steps=figures.mean_block,
        forecasts=tail_forecasts(figures.forecast),
    )
    shares = {d.factor: Origin({"own": "history"}.get(d.origin, d.origin), d.filled_share) for d in history.diagnostics}
    origins = {name: shares.get(name, Origin("figures", 0.0)) for name in factors}
    named = {f.subject for f in history.failures}
    failures = [
        *read_failures,
        *_gap_failures(history),
        *history.failures,
        *(f for f in _missing_failures(missing) if f.subject not in named and f.subject.partition(":")[2] not in named),
        *_without_forecast(figures.forecast, {n: history.sources[c] for n, (c, _) in history.columns.items()}),
    ]
    return Generation(generator, factors, figures.scenarios or None, origins, missing, tuple(failures))


@contextmanager
def _readable(file: str) -> Iterator[None]:
    """A file that Arrow cannot read, or whose columns have the wrong type, is bad data and no internal error."""
    try:
        yield
    except pa.ArrowException as error:
        message = f"the table cannot be read: {str(error).partition(chr(10))[0]}"
        raise DataError(Failure(FailureReason.MALFORMED, message, payload=Path(file).name)) from None


def _gap_failures(history: FactorHistory) -> list[Failure]:
    """A finding for every price history with days missing inside: they are filled by rule, and that must be said."""
    found = []
    for d in history.diagnostics:
        if d.origin != "own" or not d.factor.startswith("price:"):
            continue
        span = (date.fromisoformat(d.last_date) - date.fromisoformat(d.first_date)).days + 1
        if d.days < span:
            message = (
                f"history of {d.factor} lacks {span - d.days} of the {span} daily returns from {d.first_date} to "
                f"{d.last_date}; they are filled by the rules for short histories"
            )
            found.append(Failure(FailureReason.MISSING_FIELD, message, path="history", subject=d.factor))
    return found


def _without_forecast(forecast: ScenarioForecast | None, sources: Mapping[str, str]) -> list[Failure]:
    """A finding for every price that a law with a forecast scales by the volatility of its own history instead.

    `sources` has the factor that each factor follows, mostly itself.
    """
    if forecast is None:
        return []
    lacking = [
        name
        for name, source in sources.items()
        if name.startswith("price:") and not {name, source} & forecast.moves.keys()
    ]
    message = "{} has no forecast: today's scale is the volatility of its own history, as without a forecast"
    return [
        Failure(FailureReason.MISSING_PARAMETER, message.format(name), path="scenarios.forecast", subject=name)
        for name in lacking
    ]


def _symbol(name: str) -> str:
    return name.removeprefix("price:")
