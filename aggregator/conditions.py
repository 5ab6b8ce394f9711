"""What holds after a run and a scheduler must hear of: limits, failures, incomplete portfolios, and the exit code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .config import Limit
from .errors import PRECEDENCE, ExitCode, Failure, FailureReason
from .run_market import TargetOutcome

_ACCOUNT_METRICS = ("health", "p_liquidation_at_horizon")
# Of a portfolio, that any account is liquidated, which bounds each; of an account when the scope names one.
_METRICS_OF_BOTH = ("p_liquidation_path",)


class Condition(NamedTuple):
    """Something that holds after the run and that a scheduler must hear of."""

    condition: str
    code: int
    message: str


def exit_code(conditions: Iterable[Condition]) -> ExitCode:
    """The first code of the precedence that some condition carries; OK when none does."""
    codes = {condition.code for condition in conditions}
    return next((code for code in PRECEDENCE if code in codes), ExitCode.OK)


def data_conditions(incomplete: Sequence[str], failures: Sequence[Failure]) -> tuple[Condition, ...]:
    """What holds of a run with these failures and portfolios that are not complete."""
    out = []
    unreachable = [f for f in failures if f.reason == FailureReason.UNREACHABLE]
    others = [f for f in failures if f.reason != FailureReason.UNREACHABLE]
    if unreachable:
        out.append(
            Condition(
                "unreachable",
                ExitCode.VENUE_UNREACHABLE,
                f"{len(unreachable)} payloads could not be brought: {unreachable[0].message}",
            )
        )
    if others:
        counts: dict[str, int] = {}
        for failure in others:
            counts[failure.reason] = counts.get(failure.reason, 0) + 1
        text = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
        out.append(Condition("failures", ExitCode.BAD_DATA, f"{len(others)} rows could not be used: {text}"))
    if incomplete:
        names = ", ".join(sorted(incomplete))
        message = f"{len(incomplete)} portfolios are incomplete: {names}"
        out.append(Condition("incomplete", ExitCode.BAD_DATA, message))
    return tuple(out)


def missed_target(missed: TargetOutcome, target: float | None) -> Condition:
    """A target for the standard error that was not reached; the figures stand, less sure than they were asked to be."""
    error = "unknown" if math.isnan(missed.error) else f"{missed.error:.2%}"
    of_whom = f" of portfolio {missed.portfolio_id}" if missed.portfolio_id else ""
    message = f"relative standard error of ES 99 %{of_whom} is {error}, the target {target:.2%}: {missed.reason}"
    return Condition("target_error_missed", ExitCode.BAD_DATA, message)


def limit_conditions(
    limit: Limit, portfolios: Sequence[Mapping[str, Any]], accounts: Sequence[Mapping[str, Any]]
) -> list[Condition]:
    """What holds of a limit and rows of `portfolio_margin` and `account_margin`: breaches, and what is undecided."""
    chosen = _in_scope(limit, portfolios, accounts)
    out = []
    if not chosen:
        out.append(
            Condition(
                "limit_undecided",
                ExitCode.BAD_DATA,
                f"{limit.metric} of {limit.scope}: nothing of that name in this run",
            )
        )
    for name, row in chosen:
        value = row[limit.metric]
        if value is None or row.get("complete") is False:
            # A debt-free account has no health to fall short of; anything else without a number is undecided.
            if limit.metric != "health" or row["status"] != "no_requirement":
                computed = row["status"] in ("ok", "no_requirement")
                reason = "no value in this run" if value is None and computed else row["status"]
                message = f"{limit.metric} of {name} is undecided ({reason})"
                out.append(Condition("limit_undecided", ExitCode.BAD_DATA, message))
        elif limit.minimum is not None and value < limit.minimum:
            message = f"{limit.metric} of {name} is {value:.6g}, below the limit {limit.minimum:g}"
            out.append(Condition("limit_breached", ExitCode.LIMIT_BREACHED, message))
        elif limit.maximum is not None and value > limit.maximum:
            message = f"{limit.metric} of {name} is {value:.6g}, above the limit {limit.maximum:g}"
            out.append(Condition("limit_breached", ExitCode.LIMIT_BREACHED, message))
    return out


def _in_scope(
    limit: Limit, portfolios: Sequence[Mapping[str, Any]], accounts: Sequence[Mapping[str, Any]]
) -> list[tuple[str, Mapping[str, Any]]]:
    """(id, row) of every portfolio and account that the limit is about, portfolios first."""
    scope, everything = limit.scope, limit.scope == "*"
    of_both = limit.metric in _METRICS_OF_BOTH
    chosen: list[tuple[str, Mapping[str, Any]]] = []
    if limit.metric not in _ACCOUNT_METRICS:
        chosen += [(r["portfolio_id"], r) for r in portfolios if everything or r["portfolio_id"] == scope]
    if limit.metric in _ACCOUNT_METRICS or (of_both and not everything):
        chosen += [
            (r["account_id"], r)
            for r in accounts
            if everything or r["account_id"] == scope or r["account_id"].startswith(scope + ":")
        ]
    return chosen
