"""The margin held against what happened next: walk forward day by day, forecast, revalue, count.

Each day t a generator sees the days before t (`backtest_market`), gives every book a value at risk and an expected
shortfall, which is the requirement, and is held against the loss of day t by full revaluation. Losses and requirements
are in USD per USD of notional of a book; host code in float64, without JAX; the same figures on every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from .backtest_books import Book, book_losses
from .backtest_laws import STRESS_DAYS, Generator, Law, plain_changes
from .backtest_market import Market
from .backtest_statistics import (
    TRAFFIC_LIGHT_DAYS,
    acerbi_szekely,
    berkowitz,
    breach_sizes,
    christoffersen_independence,
    christoffersen_joint,
    kupiec,
    largest_increase,
    peak_to_trough,
    pit_uniformity,
    traffic_light,
)
from .errors import ConfigurationError

BLEND = "stressed_blend"
"""The requirement of the product, max(ES_current, 3/4 ES_current + 1/4 ES_stressed), on `filtered_history`."""

STRESSED_WEIGHT = 0.25
"""Weight of stressed observations: Commission Delegated Regulation (EU) 153/2013, article 28 (1) (b)."""

TAIL_POINTS = 20
"""Equal slices of the mass beyond value at risk whose means are kept for the test of the shortfall."""

MASS_SLACK = 1e-12
"""As in `risk`: probability mass within this of the confidence counts as reaching it."""

LEAST_KUPIEC, LEAST_CHRISTOFFERSEN = 0.05, 0.01
"""A generator keeps a book's target when both p-values are at least these and the share of exceptions lies within half
to one and a half times 1 - confidence (98.5 to 99.5 % at 99 %). A book of options must also keep Kupiec's on the days
with observed implied volatilities, if there are `TRAFFIC_LIGHT_DAYS` of them: a rule that is tested on itself hides
what it lacks."""

Progress = Callable[[str, int, int], None]


class Tail(NamedTuple):
    """Value at risk, and the means [TAIL_POINTS] of equal slices of the mass beyond; their mean is the shortfall."""

    value_at_risk: float
    points: np.ndarray


@dataclass(frozen=True, slots=True)
class Forecasts:
    """The forecasts of one generator for one book, [forecasts] each, and what came.

    `days` are positions in `Market.dates`, `ranks` the probability integral transforms of the losses, `recorded` says
    that every implied volatility of that day was observed. `left_out` counts days without a forecast or an outcome
    because a factor of the book had no history or no price.
    """

    generator: str
    book: str
    days: np.ndarray
    losses: np.ndarray
    value_at_risk: np.ndarray
    tail_points: np.ndarray
    ranks: np.ndarray
    recorded: np.ndarray
    left_out: int

    @property
    def expected_shortfall(self) -> np.ndarray:
        """The requirement [forecasts]."""
        return self.tail_points.mean(axis=1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the forecasts of one generator for one book are worth; p-values, ratios and USD per USD of notional.

    `kept` is the target named at `LEAST_KUPIEC`. `recorded_*` count only the days on which every implied volatility of
    the book was observed and none came from a rule; without such a day the p-value is absent.
    `breaches_of_requirement` are losses above the expected shortfall. Sizes of breaches are NaN without an exception,
    traffic lights absent below 250 forecasts, moves of the requirement NaN where the forecasts are too few or their
    step too long.
    """

    generator: str
    book: str
    first_date: str
    last_date: str
    forecasts: int
    left_out: int
    exceptions: int
    coverage: float
    kupiec_p: float
    christoffersen_p: float
    joint_p: float
    recorded_forecasts: int
    recorded_exceptions: int
    recorded_kupiec_p: float | None
    shortfall_z2: float
    shortfall_p: float
    green: float | None
    most_in_250: int | None
    breach_mean_to_es: float
    breach_largest_to_es: float
    breach_mean_excess: float
    breaches_of_requirement: int
    requirement_mean: float
    increase_1d: float
    increase_5d: float
    increase_20d: float
    peak_to_trough_1d: float
    peak_to_trough_30d: float
    pit_p: float
    berkowitz_p: float
    kept: bool


# ---- one law, one book ---------------------------------------------------------------------------------------------


def tail_of(losses: np.ndarray, weights: np.ndarray, confidence: float) -> Tail:
    """Tail of weighted losses [scenarios]; weights sum to 1.

    VaR_a = inf{x : P(L <= x) >= a} and ES_a = VaR_a + E[(L - VaR_a)+] / (1 - a), as `risk.tail_risk`: the slices split
    the scenario that straddles the mass 1 - a.
    """
    tail = 1.0 - confidence
    if weights.min() == weights.max():
        # equal weights: nothing below the first few scenarios matters, and a partition is cheaper than an order
        kept = min(len(losses), math.ceil(tail * len(losses)) + 2)
        chosen = np.argpartition(-losses, kept - 1)[:kept]
        losses, weights = losses[chosen], weights[chosen]
    order = np.argsort(-losses, kind="stable")
    ordered, mass = losses[order], np.cumsum(weights[order])
    last = min(int(np.searchsorted(mass, tail + MASS_SLACK, side="right")), len(ordered) - 1)
    summed = np.concatenate([[0.0], np.cumsum(weights[order] * ordered)])
    edges = np.interp(np.linspace(0.0, tail, TAIL_POINTS + 1), np.concatenate([[0.0], mass]), summed)
    return Tail(float(ordered[last]), np.diff(edges) * (TAIL_POINTS / tail))


def blended(current: Tail, stressed: Tail, weight: float = STRESSED_WEIGHT) -> Tail:
    """The larger of the current tail and the mixture of both, by their shortfall; value at risk goes with it."""
    mixed = Tail(
        (1.0 - weight) * current.value_at_risk + weight * stressed.value_at_risk,
        (1.0 - weight) * current.points + weight * stressed.points,
    )
    return mixed if mixed.points.mean() > current.points.mean() else current


def _losses(market: Market, book: Book, shocks: np.ndarray, implied: np.ndarray) -> np.ndarray:
    """Losses [rows] of `book` under `shocks` [rows, factors]; `implied` [factors] or [rows, factors] of the day."""
    column = {name: i for i, name in enumerate(market.factors)}
    return book_losses(
        book,
        {asset: shocks[:, column[f"price:{asset}"]] for asset in book.prices},
        {asset: shocks[:, column[f"vol:{asset}"]] for asset in book.implied},
        {asset: implied[..., column[f"vol:{asset}"]] for asset in book.implied},
    )


def realised_losses(market: Market, book: Book) -> np.ndarray:
    """Losses [dates] of the book of each day over that day; NaN where a price is missing."""
    return _losses(market, book, market.realised, market.implied[:-1])


def stressed_window(losses: np.ndarray, first: int, t: int) -> tuple[int, int]:
    """First and last + 1 position of the `STRESS_DAYS` days around the worst loss between `first` and t - 1."""
    worst = first + int(np.nanargmax(losses[first:t]))
    end = min(t, max(first, worst - STRESS_DAYS // 2) + STRESS_DAYS)
    return max(first, end - STRESS_DAYS), end


# ---- the walk ------------------------------------------------------------------------------------------------------


def walk_forward(
    market: Market,
    books: Sequence[Book],
    generators: Mapping[str, Generator],
    *,
    first: int,
    last: int | None = None,
    step: int = 1,
    confidence: float = 0.99,
    refit_days: int = 20,
    blend_on: str | None = None,
    progress: Progress | None = None,
) -> tuple[Forecasts, ...]:
    """Forecasts of every generator for every book on the days first, first + step, .. up to `last` (default the end).

    A generator is fitted on the first day and again when `refit_days` have passed. `blend_on` names a generator whose
    requirement is also blended with that of the stressed window of each book (`BLEND`). Raises ConfigurationError when
    no day lies between `first` and `last`, or fewer than 100 days lie before `first`.
    """
    end = len(market.dates) - 1 if last is None else last
    days = range(first, end + 1, step)
    if not days:
        raise ConfigurationError("the backtest has no day between its start and its end")
    if first - market.first < 100:
        raise ConfigurationError(
            f"{max(first - market.first, 0)} days of history lie before {market.dates[first]}; at least 100 are needed"
        )
    say = progress or (lambda stage, done, total: None)
    happened = {book.name: realised_losses(market, book) for book in books}
    names = [*generators, *([BLEND] if blend_on is not None else [])]
    rows: dict[tuple[str, str], list[tuple[Any, ...]]] = {(g, b.name): [] for g in names for b in books}
    fitted: dict[str, tuple[int, Any]] = {}
    for done, t in enumerate(days):
        for name, generator in generators.items():
            if name not in fitted or t - fitted[name][0] >= refit_days:
                fitted[name] = t, generator.fit(market, t)
            law = generator.law(market, t, fitted[name][1])
            for book in books:
                found = _forecast(market, book, law, happened[book.name][t], t, confidence)
                if found is None:
                    continue
                tail, rank = found
                observed = happened[book.name][t]
                rows[name, book.name].append((t, observed, tail.value_at_risk, tail.points, rank))
                if name == blend_on:
                    begin, stop = stressed_window(happened[book.name], market.first, t)
                    window = plain_changes(market, t)[begin - market.first : stop - market.first]
                    losses = _losses(market, book, window, market.implied[t])
                    mixed = blended(tail, tail_of(losses, np.full(len(losses), 1.0 / len(losses)), confidence))
                    rows[BLEND, book.name].append((t, observed, mixed.value_at_risk, mixed.points, rank))
        say("backtest", done + 1, len(days))
    return tuple(_collected(market, name, book, rows[name, book.name], len(days)) for name in names for book in books)


def _forecast(
    market: Market, book: Book, law: Law, observed: float, t: int, confidence: float
) -> tuple[Tail, float] | None:
    """Tail of `book` under `law` and the rank of what came; None when a factor or the outcome is missing."""
    losses = _losses(market, book, law.shocks, market.implied[t])
    if not (math.isfinite(observed) and np.isfinite(losses).all()):
        return None
    below = float(law.weights[losses < observed].sum())
    tied = float(law.weights[losses == observed].sum())
    return tail_of(losses, law.weights, confidence), below + tied / 2.0


def _collected(market: Market, name: str, book: Book, rows: Sequence[tuple[Any, ...]], asked: int) -> Forecasts:
    days = np.array([row[0] for row in rows], dtype=np.int64)
    vols = [market.factors.index(f"vol:{asset}") for asset in book.implied]
    # the volatility of the day's beginning and the one of its end, which the loss was computed with
    recorded = market.recorded[days][:, vols] & market.recorded[days + 1][:, vols]
    return Forecasts(
        generator=name,
        book=book.name,
        days=days,
        losses=np.array([row[1] for row in rows]),
        value_at_risk=np.array([row[2] for row in rows]),
        tail_points=np.array([row[3] for row in rows]).reshape(len(rows), TAIL_POINTS),
        ranks=np.array([row[4] for row in rows]),
        recorded=recorded.all(axis=1),
        left_out=asked - len(rows),
    )


# ---- the verdict ---------------------------------------------------------------------------------------------------


def judged(forecasts: Forecasts, dates: np.ndarray, *, confidence: float, step: int = 1, seed: int = 0) -> Verdict:
    """Every statistic of `forecasts`; `dates` are those of the market, `seed` that of the simulated null law.

    Raises ConfigurationError with fewer than 20 forecasts: nothing can be said of them.
    """
    count = len(forecasts.days)
    if count < 20:
        raise ConfigurationError(
            f"{forecasts.generator} has {count} forecasts of {forecasts.book}; at least 20 are needed for a verdict"
        )
    losses, requirement = forecasts.losses, forecasts.expected_shortfall
    hits = losses > forecasts.value_at_risk
    exceptions = int(np.count_nonzero(hits))
    coverage = 1.0 - exceptions / count
    share = kupiec(exceptions, count, confidence=confidence)
    spacing = christoffersen_independence(hits)
    shortfall = acerbi_szekely(losses, forecasts.value_at_risk, forecasts.tail_points, confidence=confidence, seed=seed)
    light = traffic_light(hits, confidence=confidence) if step == 1 else None
    sizes = breach_sizes(losses, forecasts.value_at_risk, requirement)
    recorded, recorded_hits = (int(np.count_nonzero(of)) for of in (forecasts.recorded, hits & forecasts.recorded))
    recorded_p = kupiec(recorded_hits, recorded, confidence=confidence).p_value if recorded else None
    observed = recorded_p is None or recorded < TRAFFIC_LIGHT_DAYS or recorded_p >= LEAST_KUPIEC
    within = abs(coverage - confidence) <= (1.0 - confidence) / 2.0
    return Verdict(
        generator=forecasts.generator,
        book=forecasts.book,
        first_date=str(dates[forecasts.days[0]]),
        last_date=str(dates[forecasts.days[-1]]),
        forecasts=count,
        left_out=forecasts.left_out,
        exceptions=exceptions,
        coverage=coverage,
        kupiec_p=share.p_value,
        christoffersen_p=spacing.p_value,
        joint_p=christoffersen_joint(hits, confidence=confidence).p_value,
        recorded_forecasts=recorded,
        recorded_exceptions=recorded_hits,
        recorded_kupiec_p=recorded_p,
        shortfall_z2=shortfall.statistic,
        shortfall_p=shortfall.p_value,
        green=None if light is None else light.green,
        most_in_250=None if light is None else light.most,
        breach_mean_to_es=sizes.mean_to_es,
        breach_largest_to_es=sizes.largest_to_es,
        breach_mean_excess=sizes.mean_excess_to_var,
        breaches_of_requirement=int(np.count_nonzero(losses > requirement)),
        requirement_mean=float(requirement.mean()),
        increase_1d=_over_days(largest_increase, requirement, 1, step),
        increase_5d=_over_days(largest_increase, requirement, 5, step),
        increase_20d=_over_days(largest_increase, requirement, 20, step),
        peak_to_trough_1d=_over_days(peak_to_trough, requirement, 1, step),
        peak_to_trough_30d=_over_days(peak_to_trough, requirement, 30, step),
        pit_p=pit_uniformity(forecasts.ranks).p_value,
        berkowitz_p=berkowitz(forecasts.ranks).p_value,
        kept=share.p_value >= LEAST_KUPIEC and spacing.p_value >= LEAST_CHRISTOFFERSEN and within and observed,
    )


def _over_days(measure: Callable[[np.ndarray, int], float], requirement: np.ndarray, days: int, step: int) -> float:
    return measure(requirement, days // step) if days % step == 0 else math.nan


def verdict_rows(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The verdicts as JSON-ready rows: NaN becomes None."""
    rows = [asdict(verdict) for verdict in verdicts]
    return [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows]


def forecast_table(forecasts: Sequence[Forecasts], dates: np.ndarray) -> pa.Table:
    """One row per generator, book and day: date (UTC day of the loss), loss, value_at_risk, expected_shortfall, rank,
    implied_recorded; USD per USD of notional.
    """
    return pa.concat_tables(
        pa.table(
            {
                "generator": pa.array([f.generator] * len(f.days), pa.string()),
                "book": pa.array([f.book] * len(f.days), pa.string()),
                "date": pa.array(dates[f.days].astype("datetime64[D]"), pa.date32()),
                "loss": f.losses,
                "value_at_risk": f.value_at_risk,
                "expected_shortfall": f.expected_shortfall,
                "rank": f.ranks,
                "implied_recorded": f.recorded,
            }
        )
        for f in forecasts
    )
