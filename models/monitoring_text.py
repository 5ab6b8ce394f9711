"""What was watched of the models, for people and for machines: sentences, a table on the terminal, JSON of integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from .input_drift import InputDrift
from .model_monitor import MonitoredModel, Trip
from .recommendation import FALLBACK, LAW, MODEL, Recommendation

SHOWN_INPUTS = 5
"""Inputs that have drifted furthest, in tables."""

MILLION, THOUSAND = 1_000_000, 1_000


def verdict(models: Sequence[MonitoredModel], recommendations: Sequence[Recommendation]) -> str:
    """One sentence: which model the recommendation stands on."""
    trips = all_trips(models)
    back = markets_on_fallback(recommendations)
    if not trips:
        return "The guard rail of the learned model holds: its forecasts are used throughout."
    if not back:
        return "The guard rail of the learned model has tripped, for no market of this run."
    others = {one.market for one in recommendations if one.model == MODEL}
    which = ", ".join(back) if others else "every market"
    return f"The guard rail of the learned model has tripped: its {FALLBACK} member stands in for it, for {which}."


def all_trips(models: Sequence[MonitoredModel]) -> list[Trip]:
    """Every trip of every model."""
    return [trip for model in models for trip in model.trips]


def markets_on_fallback(recommendations: Sequence[Recommendation]) -> list[str]:
    """Markets and collateral whose forecast is not the learned one although there is one, by name."""
    return sorted({one.market for one in recommendations if one.model not in (MODEL, LAW)})


def furthest(drift: InputDrift) -> list[int]:
    """Places of the inputs that have drifted furthest."""
    return np.argsort(-drift.stability, kind="stable")[:SHOWN_INPUTS].tolist() if drift.rows else []


def monitoring_table(models: Sequence[MonitoredModel]) -> Table:
    """One row per model, group and span of days: how often its margins held at the levels that tiers stand on."""
    table = Table(title="Coverage of the model in use", title_justify="left")
    for name in ("model", "assets"):
        table.add_column(name)
    for name in ("level", "days", "windows", "exceptions", "of those allowed", "p", "already seen in training"):
        table.add_column(name, justify="right")
    for model in models:
        for number, row in enumerate(row for row in model.coverage if row.level in model.levels):
            table.add_row(
                f"{model.horizon}, fitted {model.refit}" if number == 0 else "",
                row.group,
                f"{100 * row.level:g} %",
                str(row.days),
                f"{row.windows:,}",
                f"{row.exceptions:,}",
                f"{row.ratio:.2f}",
                f"{row.p_value:.3f}",
                f"{row.known_before / row.windows:.0%}",
            )
    return table


def monitoring_lines(models: Sequence[MonitoredModel]) -> list[str]:
    """A sentence on the drift of every model's inputs, and one on a fit that knows more than the run does."""
    lines = []
    for model in models:
        drift = model.drift
        if model.age_days < 0.0:
            lines.append(
                f"{model.horizon} model: made for use from {model.refit} on, which is after this run: its networks may"
                " have been trained on what came later, so this is no test of what it would have said"
            )
        if not drift.rows:
            continue
        names = ", ".join(f"{drift.names[n]} {drift.stability[n]:.2f}" for n in furthest(drift))
        lines.append(
            f"{model.horizon} model, {max(model.age_days, 0.0):.0f} days old: median stability index of its inputs"
            f" {float(np.median(drift.stability)):.2f}, {float(np.mean(drift.outside)):.2%} out of range,"
            f" {float(np.mean(drift.missing)):.1%} missing ({float(np.mean(drift.missing_then)):.1%} in training);"
            f" furthest: {names}"
        )
    return lines


def monitoring_document(models: Sequence[MonitoredModel], recommendations: Sequence[Recommendation]) -> dict[str, Any]:
    """Integers and text alone: shares in millionths, the stability index and shifts in thousandths."""
    return {
        "verdict": verdict(models, recommendations),
        "fallback": {"model": FALLBACK, "markets": markets_on_fallback(recommendations)},
        "models": [_model(model) for model in models],
    }


def _model(model: MonitoredModel) -> dict[str, Any]:
    drift = model.drift
    return {
        "horizon": model.horizon,
        "refit": model.refit,
        "age_days": int(np.floor(model.age_days)),
        "trips": [
            {
                "reason": str(trip.reason),
                "assets": list(trip.assets),
                "message": trip.message,
            }
            for trip in model.trips
        ],
        "coverage": [
            {
                "group": row.group,
                "level_millionths": round(MILLION * row.level),
                "days": row.days,
                "windows": row.windows,
                "exceptions": row.exceptions,
                "seen_in_training": row.known_before,
                "p_value_millionths": round(MILLION * row.p_value),
            }
            for row in model.coverage
        ],
        "drift": [
            {
                "input": name,
                "stability_index_thousandths": round(THOUSAND * float(drift.stability[place])),
                "shift_thousandths": round(THOUSAND * float(drift.shift[place])),
                "out_of_range_millionths": round(MILLION * float(drift.outside[place])),
                "missing_millionths": round(MILLION * float(drift.missing[place])),
                "missing_in_training_millionths": round(MILLION * float(drift.missing_then[place])),
            }
            for place, name in enumerate(drift.names)
        ]
        if drift.rows
        else [],
    }
