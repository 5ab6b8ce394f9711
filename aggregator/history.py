"""Volatilities, residuals and fill rules of daily changes: the inputs of filtered historical simulation.

Host code on NumPy. Returns and volatilities are per day; arrays are [dates, assets] or [dates, columns]; NaN is a
missing return, never zero and never the return over a longer gap. `history_tables` reads the changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from .errors import ConfigurationError, DataError, Failure, FailureReason
from .history_tables import ReturnPanel
from .volatility_filter import (
    FilteredVolatility,
    VolatilityRecursion,
    check_recursion,
    exponential_weighting,
    filter_volatility,
)

DECAY = 0.97
"""Weight of the past in the exponentially weighted variance of daily returns."""

BURN_IN_DAYS = 30
"""Returns that only start the variance recursion; they have no standardised residual."""

FLOOR_FRACTION = 0.5
FLOOR_WINDOW_DAYS = 365
"""Volatility is at least this fraction of the root mean square return of the last year."""

MINIMUM_DAYS = 250
"""Returns from which an asset or an implied volatility has a history of its own."""

MAXIMUM_AGE_DAYS = 7
"""A history that ends earlier before the end of the panel is stale."""

JOINT_KINDS = ("funding", "basis", "peg", "discount", "depth")
"""Kinds of factors, besides price and vol, whose changes a history may hold; they keep the dates of the panel."""


class Proxy(NamedTuple):
    """An asset's returns are those of `asset` times `scale` (> 0)."""

    asset: str
    scale: float = 1.0


class VolatilityRule(NamedTuple):
    """Daily change of the log implied volatility: beta times the return of `underlying` (a price factor) + eta Z."""

    underlying: str
    beta: float
    eta: float


@dataclass(frozen=True, slots=True)
class FactorDiagnostics:
    """How a factor got its law. `days` counts its own returns; `filled_share` the cells that a fill rule supplies.

    `origin` is own, proxy or rule (the latter an implied volatility without a history: filled_share 1, sigma_next its
    standard deviation under the rule today).
    """

    factor: str
    origin: str
    market: str
    first_date: str
    last_date: str
    days: int
    filled_share: float
    sigma_next: float
    proxy: str = ""
    proxy_scale: float = math.nan


@dataclass(frozen=True, slots=True)
class FactorHistory:
    """What filtered historical simulation needs, on the host.

    `residuals` [dates, sources] are standardised by the volatility known before each date, NaN where a fill is needed;
    `sigma_next` [sources] is the daily volatility of the day after the last date. A missing price cell is
    `loadings` [sources, anchors] times `anchor_residuals` [dates, anchors] plus a draw from `own_residuals` of the
    source; a missing implied volatility cell follows its entry of `fill_rules`. `columns` maps a factor to its source
    column and the factor on its volatility (1, or the scale of its proxy); `rules` are the implied volatilities without
    a history. Factors that are in neither have a failure.

    What a path needs beyond one day, all [sources]: `variance_next` of the recursion (`sigma_next` is its root, but at
    least `floor`), the `floor`, and the `recursions` that filtered the residuals and carry the variance on.
    """

    dates: np.ndarray
    sources: tuple[str, ...]
    residuals: np.ndarray
    sigma_next: np.ndarray
    variance_next: np.ndarray
    floor: np.ndarray
    recursions: tuple[VolatilityRecursion, ...]
    anchor_residuals: np.ndarray
    loadings: np.ndarray
    own_residuals: tuple[np.ndarray, ...]
    columns: Mapping[str, tuple[int, float]]
    rules: Mapping[str, VolatilityRule]
    fill_rules: Mapping[str, VolatilityRule]
    diagnostics: tuple[FactorDiagnostics, ...]
    failures: tuple[Failure, ...]


# ---- volatility and residuals --------------------------------------------------------------------------------------


def ewma_volatility(
    returns: np.ndarray,
    *,
    decay: float = DECAY,
    burn_in: int = BURN_IN_DAYS,
    floor_fraction: float = FLOOR_FRACTION,
    floor_window: int = FLOOR_WINDOW_DAYS,
) -> np.ndarray:
    """Daily volatility [dates + 1, columns] known before each date; the last row is that of the next day.

    sigma2_{t+1} = decay sigma2_t + (1 - decay) r_t^2, floored: see `volatility_filter`.
    """
    weighting = [exponential_weighting(decay)] * returns.shape[1]
    return filter_volatility(
        returns, weighting, burn_in=burn_in, floor_fraction=floor_fraction, floor_window=floor_window
    ).volatility


def age_weights(days: np.ndarray, half_life_days: float | None) -> np.ndarray:
    """Weights [days] that sum to 1 and halve with every `half_life_days` before the last of the `days`; None: equal.

    Source: J. Boudoukh, M. Richardson, R. Whitelaw, "The best of both worlds", Risk 11 (1998).
    """
    if half_life_days is None:
        return np.full(len(days), 1.0 / len(days))
    age = (days[-1] - days).astype("timedelta64[D]").astype(np.float64)
    weights = 0.5 ** (age / half_life_days)
    return weights / weights.sum()


def volatility_rule(
    underlying: str, changes: np.ndarray, returns: np.ndarray, *, minimum_days: int = MINIMUM_DAYS
) -> VolatilityRule | None:
    """Least squares through the origin of implied volatility changes [dates] on returns; None if too few dates."""
    both = np.isfinite(changes) & np.isfinite(returns)
    if np.count_nonzero(both) < minimum_days:
        return None
    x, y = returns[both], changes[both]
    beta = float(np.sum(x * y) / np.sum(x * x))
    return VolatilityRule(underlying, beta, float(np.sqrt(np.mean((y - beta * x) ** 2))))


def factor_history(
    panel: ReturnPanel,
    factors: Sequence[str],
    *,
    proxies: Mapping[str, Proxy] | None = None,
    implied_vols: Mapping[str, np.ndarray] | None = None,
    volatility_rules: Mapping[str, VolatilityRule] | None = None,
    minimum_days: int = MINIMUM_DAYS,
    maximum_age_days: int = MAXIMUM_AGE_DAYS,
    decay: float = DECAY,
    recursions: Mapping[str, VolatilityRecursion] | None = None,
    joint: Mapping[str, np.ndarray] | None = None,
) -> FactorHistory:
    """Residuals, volatilities and fill rules of the factors among `factors` (pegs without a history are parametric).

    A price with at least `minimum_days` returns, the last at most `maximum_age_days` before the end of the panel, has
    its own residuals, with the loadings of a regression on those of all anchors over the overlap. Else it takes its
    entry of `proxies`, else it has a failure (`stale` when long but ended, `missing_parameter` otherwise). An implied
    volatility (`implied_vols` [panel dates] by underlying) is treated alike with beta and eta from `volatility_rules`,
    else from its own history, else from the first anchor that has one; it needs the price factor of its underlying.
    Residuals begin when every anchor has one.

    Factors of `JOINT_KINDS` take their changes from `joint` [panel dates] by factor name, with gaps filled like those
    of a price; one that is short, ended or not there has a failure, but for a peg that is not there. A factor with an
    entry in `recursions` is filtered by it, any other by exponential weighting with `decay`. Raises ConfigurationError
    for a factor of another kind, a bad proxy or a bad recursion.
    """
    proxies = {} if proxies is None else proxies
    implied_vols = {} if implied_vols is None else implied_vols
    rules_given = {} if volatility_rules is None else volatility_rules
    given_recursions = {} if recursions is None else recursions
    joint = {} if joint is None else joint
    for name, recursion in given_recursions.items():
        check_recursion(recursion, name)
    price_names, vol_names = _named(factors, "price"), _named(factors, "vol")
    for asset, proxy in proxies.items():
        if not (math.isfinite(proxy.scale) and proxy.scale > 0.0):
            raise ConfigurationError(f"proxy of {asset}: scale is {proxy.scale!r}; expected a positive number")
        if proxy.asset == asset:
            raise ConfigurationError(f"proxy of {asset} is {asset} itself")

    def filtered(changes: np.ndarray, names: Sequence[str]) -> FilteredVolatility:
        own = [given_recursions.get(name, exponential_weighting(decay)) for name in names]
        return filter_volatility(
            changes, own, burn_in=BURN_IN_DAYS, floor_fraction=FLOOR_FRACTION, floor_window=FLOOR_WINDOW_DAYS
        )

    of_prices = filtered(panel.returns, [f"price:{asset}" for asset in panel.assets])
    standardised = _standardised(panel.returns, of_prices.volatility)
    kept = np.isfinite(standardised[:, panel.anchors]).all(axis=1)
    if not kept.any():
        message = f"the anchors have {len(panel.dates)} common daily returns; more than {BURN_IN_DAYS} are needed"
        raise DataError(Failure(FailureReason.MISSING_PARAMETER, message))
    anchor_residuals = standardised[kept][:, panel.anchors]

    origin, failures = _price_origins(
        panel, list(dict.fromkeys(price_names + vol_names)), proxies, minimum_days, maximum_age_days
    )
    positions = {asset: panel.assets.index(asset) for asset, _ in origin.values()}
    sources = [
        _loaded_source(f"price:{asset}", standardised[kept, position], of_prices, position, anchor_residuals)
        for asset, position in positions.items()
    ]
    order = list(positions)
    columns = {f"price:{asset}": (order.index(source), scale) for asset, (source, scale) in origin.items()}

    rules: dict[str, VolatilityRule] = {}
    fill_rules: dict[str, VolatilityRule] = {}
    default = next(
        (
            rule
            for column in panel.anchors
            if (rule := _own_rule(panel, panel.assets[column], implied_vols, minimum_days))
        ),
        None,
    )
    for asset in vol_names:
        name = f"vol:{asset}"
        rule = rules_given.get(asset) or _own_rule(panel, asset, implied_vols, minimum_days) or default
        if asset not in origin or rule is None:
            lacking = (
                f"the price of {asset}" if asset not in origin else "a history, a rule or an anchor with a history"
            )
            message = f"{name} needs {lacking}, and there is none"
            failures.append(Failure(FailureReason.MISSING_PARAMETER, message, subject=name))
            continue
        rule = rule._replace(underlying=f"price:{asset}")
        changes = implied_vols.get(asset)
        if changes is None or _state(panel.dates, changes, minimum_days, maximum_age_days) != "own":
            rules[name] = rule
            continue
        of_vol = filtered(changes[:, None], [name])
        residuals = _standardised(changes[:, None], of_vol.volatility)[kept, 0]
        no_loading = np.full(len(panel.anchors), np.nan)
        fill_rules[name] = rule
        columns[name] = len(sources), 1.0
        sources.append(_Source(name, residuals, *_last(of_vol, 0), no_loading, np.zeros(0)))
    for name in _joint_names(factors):
        if name not in joint:
            if not name.startswith("peg:"):
                message = f"{name} has no history"
                failures.append(Failure(FailureReason.MISSING_PARAMETER, message, subject=name))
            continue
        state = _state(panel.dates, joint[name], minimum_days, maximum_age_days)
        if state != "own":
            failures.append(_joint_failure(name, state, minimum_days))
            continue
        of_joint = filtered(joint[name][:, None], [name])
        residuals = _standardised(joint[name][:, None], of_joint.volatility)[kept, 0]
        columns[name] = len(sources), 1.0
        sources.append(_loaded_source(name, residuals, of_joint, 0, anchor_residuals))

    for source in sources:
        if not (math.isfinite(source.sigma_next) and source.sigma_next > 0.0):
            message = f"{source.name} has the volatility {source.sigma_next!r}; its changes are all zero"
            raise DataError(Failure(FailureReason.CALCULATION, message, subject=source.name))
    dates = panel.dates[kept]
    history = FactorHistory(
        dates=dates,
        sources=tuple(source.name for source in sources),
        residuals=np.array([source.residuals for source in sources]).reshape(len(sources), len(dates)).T.copy(),
        sigma_next=np.array([source.sigma_next for source in sources]),
        variance_next=np.array([source.variance_next for source in sources]),
        floor=np.array([source.floor for source in sources]),
        recursions=tuple(given_recursions.get(source.name, exponential_weighting(decay)) for source in sources),
        anchor_residuals=anchor_residuals,
        loadings=np.array([source.loadings for source in sources]).reshape(len(sources), len(panel.anchors)),
        own_residuals=tuple(source.own_residuals for source in sources),
        columns=columns,
        rules=rules,
        fill_rules=fill_rules,
        diagnostics=(),
        failures=tuple(failures),
    )
    listed = [name for name in factors if name in columns or name in rules]
    return replace(
        history, diagnostics=tuple(_diagnostics(name, panel, history, implied_vols, joint) for name in listed)
    )


class _Source(NamedTuple):
    """One column of residuals with what fills its gaps."""

    name: str
    residuals: np.ndarray
    sigma_next: float
    variance_next: float
    floor: float
    loadings: np.ndarray
    own_residuals: np.ndarray


def _standardised(returns: np.ndarray, volatility: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(volatility[:-1] > 0.0, returns / volatility[:-1], np.nan)


def _last(filtered: FilteredVolatility, column: int) -> tuple[float, float, float]:
    """Volatility, variance of the recursion and floor of the day after the last date."""
    return (
        float(filtered.volatility[-1, column]),
        float(filtered.variance[-1, column]),
        float(filtered.floor[-1, column]),
    )


def _loaded_source(
    name: str, residuals: np.ndarray, filtered: FilteredVolatility, column: int, anchor_residuals: np.ndarray
) -> _Source:
    present = np.isfinite(residuals)
    loadings = np.linalg.lstsq(anchor_residuals[present], residuals[present], rcond=None)[0]
    own = residuals[present] - (anchor_residuals[present] * loadings).sum(axis=1)
    return _Source(name, residuals, *_last(filtered, column), loadings, own)


def _price_origins(
    panel: ReturnPanel,
    assets: Sequence[str],
    proxies: Mapping[str, Proxy],
    minimum_days: int,
    maximum_age_days: int,
) -> tuple[dict[str, tuple[str, float]], list[Failure]]:
    """For each asset the asset whose returns it takes, and their scale; a failure where there is none."""
    state = {
        asset: _state(panel.dates, panel.returns[:, column], minimum_days, maximum_age_days)
        for column, asset in enumerate(panel.assets)
    }
    state |= {panel.assets[column]: "own" for column in panel.anchors}
    origin: dict[str, tuple[str, float]] = {}
    failures: list[Failure] = []
    for asset in assets:
        if state.get(asset) == "own":
            origin[asset] = asset, 1.0
        elif asset in proxies and state.get(proxies[asset].asset) == "own":
            origin[asset] = proxies[asset].asset, float(proxies[asset].scale)
        else:
            failures.append(_price_failure(asset, state.get(asset, "none"), proxies.get(asset), minimum_days))
    return origin, failures


def _own_rule(
    panel: ReturnPanel, asset: str, implied_vols: Mapping[str, np.ndarray], minimum_days: int
) -> VolatilityRule | None:
    if asset not in implied_vols or asset not in panel.assets:
        return None
    returns = panel.returns[:, panel.assets.index(asset)]
    return volatility_rule(f"price:{asset}", implied_vols[asset], returns, minimum_days=minimum_days)


def _named(factors: Sequence[str], wanted: str) -> list[str]:
    names = []
    for factor in factors:
        kind, separator, name = factor.partition(":")
        if kind not in ("price", "vol", *JOINT_KINDS) or not separator or not name:
            kinds = ", ".join(f"{kind}:NAME" for kind in ("vol", *JOINT_KINDS[:-1]))
            raise ConfigurationError(
                f"factor {factor!r} is not of the form price:NAME, {kinds} or {JOINT_KINDS[-1]}:NAME"
            )
        if kind == wanted:
            names.append(name)
    return names


def _joint_names(factors: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(factors) if name.partition(":")[0] in JOINT_KINDS]


def _joint_failure(name: str, state: str, minimum_days: int) -> Failure:
    found = "ended before the end of the panel" if state == "stale" else f"has fewer than {minimum_days} daily changes"
    reason = FailureReason.STALE if state == "stale" else FailureReason.MISSING_PARAMETER
    return Failure(reason, f"the history of {name} {found}", subject=name)


def _state(dates: np.ndarray, changes: np.ndarray, minimum_days: int, maximum_age_days: int) -> str:
    """Whether daily changes [dates] are a history of their own: own, stale (ended early), short or none."""
    present = np.flatnonzero(np.isfinite(changes))
    if len(present) < max(minimum_days, BURN_IN_DAYS + 1):
        return "short" if len(present) else "none"
    age = int((dates[-1] - dates[present[-1]]).astype(np.int64))
    return "own" if age <= maximum_age_days else "stale"


def _price_failure(asset: str, state: str, proxy: Proxy | None, minimum_days: int) -> Failure:
    found = {
        "none": "has no price history",
        "short": f"has fewer than {minimum_days} daily returns",
        "stale": "has a price history that ended before the end of the panel",
    }[state]
    hint = "and no proxy" if proxy is None else f"and its proxy {proxy.asset} has no usable history of its own"
    reason = FailureReason.STALE if state == "stale" else FailureReason.MISSING_PARAMETER
    return Failure(reason, f"price:{asset} {found} {hint}", subject=f"price:{asset}")


def _diagnostics(
    name: str,
    panel: ReturnPanel,
    history: FactorHistory,
    implied_vols: Mapping[str, np.ndarray],
    joint: Mapping[str, np.ndarray],
) -> FactorDiagnostics:
    kind, _, asset = name.partition(":")
    if name in history.rules:
        rule = history.rules[name]
        column, scale = history.columns[rule.underlying]
        sigma = math.hypot(rule.beta * history.sigma_next[column] * scale, rule.eta)
        return FactorDiagnostics(name, "rule", "", "", "", 0, 1.0, sigma)
    column, scale = history.columns[name]
    source = history.sources[column].partition(":")[2]
    if name in joint:
        changes = joint[name]
    else:
        changes = implied_vols[asset] if kind == "vol" else panel.returns[:, panel.assets.index(source)]
    present = panel.dates[np.isfinite(changes)]
    return FactorDiagnostics(
        factor=name,
        origin="own" if source == asset else "proxy",
        market=panel.markets[panel.assets.index(source)] if kind == "price" else "",
        first_date=str(present[0]),
        last_date=str(present[-1]),
        days=len(present),
        filled_share=float(np.isnan(history.residuals[:, column]).mean()),
        sigma_next=float(history.sigma_next[column] * scale),
        proxy="" if source == asset else source,
        proxy_scale=math.nan if source == asset else scale,
    )
