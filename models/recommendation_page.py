"""What the page of a recommendation shows, from the recommendation: ladders, figures as they are read, and the band."""

from __future__ import annotations

import numpy as np

from aggregator.report_ladders import BandPoint, Bracket, LadderView
from aggregator.report_tiers import (
    CoverageView,
    FigureView,
    MarketView,
    MonitoringView,
    TiersView,
    WarningView,
    WeightView,
)

from .bounded_step import SENTENCES
from .collateral_recommendation import CollateralChange
from .monitoring_text import all_trips, monitoring_lines, verdict
from .recommendation import MODEL, Figure, MarketOutlook, Recommendation, wished_ladder
from .recommended import MarketChange, Recommended
from .tier_ladder import Ladder, needed_rates
from .tier_policy import BPS, GovernancePolicy, TierLevel

BAND_POINTS = 16


def tiers_view(recommended: Recommended, policy: GovernancePolicy, *, title: str) -> TiersView:
    """The page of `recommended`."""
    made: dict[str, list[Recommendation]] = {}
    for one in recommended.outcome.recommendations:
        made.setdefault(one.market, []).append(one)
    warning = recommended.early_warning
    return TiersView(
        title,
        recommended.reference_id,
        recommended.as_of,
        recommended.outcome.recommendations[0].expires_at,
        MODEL,
        tuple(_market(change, made[change.before.market], policy) for change in recommended.markets),
        tuple(view for change in recommended.collateral for view in _weights(change)),
        _monitoring(recommended),
        tuple(
            WarningView(row.portfolio_id, row.p_history, row.p_forecast)
            for row in (() if warning is None else warning.rows)
            if not row.venue
        ),
        recommended.trial,
        tuple((failure.subject, failure.message) for failure in recommended.outcome.failures),
    )


def _monitoring(recommended: Recommended) -> MonitoringView:
    models = recommended.models
    trips = tuple(trip.message for trip in all_trips(models))
    coverage = tuple(
        CoverageView(
            f"{model.horizon}, fitted {model.refit}",
            row.group,
            row.level,
            row.days,
            row.windows,
            row.exceptions,
            row.ratio,
            row.p_value,
            row.known_before / row.windows,
        )
        for model in models
        for row in model.coverage
    )
    said = verdict(models, recommended.outcome.recommendations)
    return MonitoringView(not trips, said, trips, tuple(monitoring_lines(models)), coverage)


def _weights(change: CollateralChange) -> list[WeightView]:
    outlook, made = change.outlook, change.recommendation
    count = len(outlook.current)
    views = []
    for place, (slice_, after) in enumerate(zip(outlook.current, change.after, strict=True)):
        low, high = made.figures[place], made.figures[count + place]
        views.append(
            WeightView(
                made.market,
                slice_.value_cap if place + 1 < count else None,
                (low.previous / BPS, high.previous / BPS),
                (after[0] / BPS, after[1] / BPS),
                (low.wish / BPS, high.wish / BPS),
                (outlook.requirement[place] / BPS, outlook.requirement[count + place] / BPS),
                tuple(SENTENCES[reason] for reason in made.reasons) if place == 0 else (),
                change.accounts if place == 0 else (),
                made.model,
            )
        )
    return views


def figure_text(figure: Figure, value: int) -> str:
    """A figure as it is read: a rate in per cent, a limit in USD."""
    return f"{value:,} USD" if figure.unit == "usd" else f"{100 * value / BPS:.2f} %"


def _market(change: MarketChange, made: list[Recommendation], policy: GovernancePolicy) -> MarketView:
    figures = tuple(
        FigureView(
            f"{figure.parameter.replace('_', ' ')}, tier {figure.tier}",
            figure_text(figure, figure.previous),
            figure_text(figure, figure.value),
            figure_text(figure, figure.wish),
        )
        for one in made
        for figure in one.changes
    )
    of_rates = next(one for one in made if one.kind == "rates")
    reasons = dict.fromkeys(SENTENCES[reason] for one in made for reason in one.reasons)
    first = [of_rates.figures[place].requirement for place in (0, len(change.before.tiers))]
    requirement = None if first[0] is None or first[1] is None else (first[0] / BPS, first[1] / BPS)
    return MarketView(
        _ladder(change, of_rates, policy),
        figures,
        tuple(reasons),
        requirement,
        of_rates.history_days,
        change.accounts,
        change.value_usd,
        of_rates.model,
    )


def _ladder(change: MarketChange, of_rates: Recommendation, policy: GovernancePolicy) -> LadderView:
    count = len(change.before.tiers)
    # The figures are those of all tiers at maintenance, then at initial: what was wished after the floor.
    wish = [figure.wish / BPS for figure in of_rates.figures]
    brackets = _brackets(change.before)
    wished = tuple(
        bracket._replace(maintenance=low, initial=high)
        for bracket, low, high in zip(brackets, wish[:count], wish[count:], strict=True)
    )
    levels = change.outlook.sides[0].levels
    label = f"needed, {100 * levels[0]:g} to {100 * levels[-1]:g} %"
    return LadderView(
        change.before.market, brackets, _brackets(change.after), wished, _band(change, levels, policy), label
    )


def _band(change: MarketChange, levels: tuple[float, ...], policy: GovernancePolicy) -> tuple[BandPoint, ...]:
    first, last = _ends(wished_ladder(change.before, change.outlook, policy))
    notional = np.geomspace(first, last, BAND_POINTS)
    low, high = (_needed(change.outlook, notional, level, policy) for level in (levels[0], levels[-1]))
    return tuple(BandPoint(float(at), float(a), float(b)) for at, a, b in zip(notional, low, high, strict=True))


def _needed(outlook: MarketOutlook, notional: np.ndarray, level: float, policy: GovernancePolicy) -> np.ndarray:
    of_level = TierLevel(level=level, measure="quantile", least_days=policy.ladder.maintenance.least_days)
    return needed_rates(outlook.market, outlook.sides, outlook.size, notional, of_level, policy)


def _ends(ladder: Ladder) -> tuple[float, float]:
    caps = [tier.notional_cap for tier in ladder.tiers if tier.notional_cap is not None]
    if not caps:
        return 1_000.0, 1_000_000.0
    last = ladder.tiers[-1]
    return caps[0] / 10.0, 4.0 * last.notional_floor if last.notional_cap is None else caps[-1]


def _brackets(ladder: Ladder) -> tuple[Bracket, ...]:
    return tuple(
        Bracket(tier.notional_floor, tier.notional_cap, tier.maintenance_bps / BPS, tier.initial_bps / BPS)
        for tier in ladder.tiers
    )
