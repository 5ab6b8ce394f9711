"""The verb `recommend`: forecasts become tiers, the tiers go back through the engine, and both are written.

What is read of the venues is passed in; the clock is not read, a recommendation is dated with the instant of the run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from aggregator.config import Resolved
from aggregator.errors import ConfigurationError, DataError, Failure
from aggregator.portfolio import Book
from aggregator.report_tiers import write_tiers_page
from aggregator.schema.fields import TIME
from aggregator.snapshot import Snapshot
from aggregator.tier_tables import RECOMMENDATIONS_TABLE, TRIAL_TABLE, append_once, read_table, trial_table
from aggregator.tier_trial import TrialRow

from .book_trial import book_of_run, trial_of_book, warning_of_book
from .bounded_step import Standing
from .collateral_in_force import CollateralInForce, collateral_in_force
from .collateral_recommendation import CollateralChange, in_force_figures, laws_of_run, recommend_collateral
from .engine_requirements import collateral_requirements, market_requirements
from .market_files import BAR_FILES
from .market_history import read_market
from .market_outlooks import EIGHT_HOURS, ONE_DAY, Priced, asset_of, latest_forecast, market_outlooks, watched
from .markets_in_force import markets_in_force
from .monitoring_text import monitoring_document
from .recommendation import MODEL, Kind, MarketOutlook, Outcome, Recommendation, applied, recommend
from .recommendation_files import (
    RECOMMENDATIONS,
    Origin,
    governance_document,
    read_document,
    recommendation_rows,
    standings,
)
from .recommendation_page import tiers_view
from .recommended import MarketChange, Recommended
from .scenario_forecast import with_forecast
from .tier_ladder import Ladder
from .tier_model_settings import SHIPPED, read_tier_model_settings
from .tier_policy import GovernancePolicy, read_policy

REFERENCE = Path(__file__).parent / "reference"
"""Checkpoints that are shipped."""

Progress = Callable[[str, int, int], None]


def run_recommend(
    resolved: Resolved,
    snapshots: Mapping[str, Snapshot],
    *,
    as_of: datetime,
    digest: str,
    market: Path | None = None,
    progress: Progress | None = None,
) -> Recommended:
    """Recommend rates, position limits and collateral weights of `snapshots`, try them on the book, write both.

    `digest` is the hash of the snapshots; `market` overrides `tiers.market`. Raises ConfigurationError naming the key
    when there is no market history, checkpoint, policy or settings to read, and DataError when no market at all can be
    recommended.
    """
    say = progress or (lambda stage, done, total: None)
    resolved = with_forecast(resolved, as_of)
    configuration = resolved.configuration
    tiers = configuration.tiers
    folder = market or (resolved.path(tiers.market) if tiers.market else None)
    if folder is None:
        raise ConfigurationError("tiers.market: no folder of market history; set the key or give --market DIR")
    checkpoints = resolved.path(tiers.checkpoints) if tiers.checkpoints else REFERENCE
    policy = read_policy(resolved.path(tiers.governance))
    settings = read_tier_model_settings(SHIPPED if tiers.settings is None else resolved.path(tiers.settings))

    book, generation = book_of_run(resolved, snapshots, as_of)
    in_force, failures = markets_in_force(snapshots)
    collateral, not_weighed = collateral_in_force(snapshots)
    say("forecast", 0, 1)
    forecast = latest_forecast(read_market(folder), checkpoints, settings=settings, as_of=as_of)
    floating = {name: one for name, one in collateral.items() if one.symbol is not None}
    priced: list[Priced] = [*in_force.values(), *floating.values()]
    named = {asset_of(one, forecast) for one in priced}
    assets = sorted(name for name in named if name is not None)
    monitored = watched(forecast, assets, settings=settings, policy=policy, as_of=as_of)
    age = tiers.max_age_days
    outlooks, unforeseen = market_outlooks(in_force, forecast, as_of=as_of, max_age_days=age, models=monitored)
    prices, _ = market_outlooks(floating, forecast, as_of=as_of, max_age_days=age, models=monitored)
    say("forecast", 1, 1)
    say("requirement", 0, 1)
    floors = market_requirements(resolved, in_force, policy, as_of)
    of_collateral = collateral_requirements(resolved, collateral, as_of)
    say("requirement", 1, 1)

    told = {failure.subject for failure in (*failures, *unforeseen)}
    current = {name: in_force[name].ladder for name in in_force if name not in told}
    store = _location(resolved)
    known = _standings(store, current, collateral, policy, as_of)
    made = recommend(current, outlooks, floors, known, policy, now=as_of)
    if not made.recommendations:
        raise _nothing(Outcome((), (*failures, *unforeseen, *made.failures)))
    weighed, unweighed = recommend_collateral(
        collateral, prices, laws_of_run(resolved), of_collateral, known, policy, now=as_of
    )
    outcome = Outcome(
        (*made.recommendations, *(one.recommendation for one in weighed)),
        (*failures, *unforeseen, *made.failures, *not_weighed, *unweighed),
    )
    after = _ladders_after(current, made.recommendations, as_of)
    weights = {one.outlook.in_force.name: one.after for one in weighed}

    say("trial", 0, 1)
    trial = trial_of_book(resolved, snapshots, book, generation, after, weights, as_of)
    warning = warning_of_book(resolved, book, generation, trial, as_of)
    say("trial", 1, 1)

    beside = [path.name for name in (EIGHT_HOURS, ONE_DAY) for path in _fits(checkpoints, name)]
    inputs = {
        "configuration": resolved.digest(),
        "market_history": _digest_of(folder / name for name in (*BAR_FILES.values(), "context.parquet")),
        "scenario_inputs": _digest_of([resolved.path(configuration.assets)]),
        "snapshot": digest,
    }
    origin = Origin(
        MODEL,
        _digest_of(checkpoints / name for name in beside),
        inputs,
        monitoring_document(monitored, outcome.recommendations),
    )
    document = governance_document(outcome, origin, policy)
    reference = str(read_document(document, now=as_of)["reference_id"])
    recommended = Recommended(
        reference,
        as_of,
        outcome,
        _changes(book, snapshots, current, after, outlooks, trial),
        _holders(snapshots, weighed, trial),
        monitored,
        tuple(trial),
        _conditions(outcome, snapshots, collateral, trial),
        resolved.path(tiers.output) / f"{reference}.json",
        resolved.path(tiers.output) / f"{reference}.html",
        str(store),
        warning,
    )
    append_once(store, TRIAL_TABLE, trial_table(trial, reference_id=reference, created_at=as_of), transaction=reference)
    append_once(store, RECOMMENDATIONS_TABLE, recommendation_rows(outcome, origin, policy), transaction=reference)
    _write(recommended.document, document)
    write_tiers_page(tiers_view(recommended, policy, title=configuration.title), recommended.report)
    return recommended


def _fits(folder: Path, checkpoint: str) -> list[Path]:
    """A checkpoint and the refits beside it."""
    path = folder / checkpoint
    return [path, *sorted(folder.glob(f"{path.stem}_*{path.suffix}"))]


def _standings(
    store: str | Path,
    current: Mapping[str, Ladder],
    collateral: Mapping[str, CollateralInForce],
    policy: GovernancePolicy,
    as_of: datetime,
) -> dict[tuple[str, Kind], Standing]:
    """What earlier recommendations say; those of this very instant do not count, so that a repeated run is the same."""
    rows = read_table(store, RECOMMENDATIONS_TABLE, RECOMMENDATIONS)
    earlier = rows.filter(pc.less(rows["created_at"], pa.scalar(as_of, TIME)))
    in_force: dict[tuple[str, Kind], Sequence[int]] = {**in_force_figures(collateral)}
    for market, ladder in current.items():
        rates = [tier.maintenance_bps for tier in ladder.tiers] + [tier.initial_bps for tier in ladder.tiers]
        in_force[market, "rates"] = rates
        cap = ladder.tiers[-1].notional_cap
        if cap is not None:
            in_force[market, "position_limits"] = [round(cap)]
    return standings(earlier, in_force, policy.review, now=as_of)


def _ladders_after(
    current: Mapping[str, Ladder], recommendations: Sequence[Recommendation], now: datetime
) -> dict[str, Ladder]:
    after: dict[str, Ladder] = {}
    for one in recommendations:
        after[one.market] = applied(after.get(one.market, current[one.market]), one, now=now)
    return after


def _changes(
    book: Book,
    snapshots: Mapping[str, Snapshot],
    current: Mapping[str, Ladder],
    after: Mapping[str, Ladder],
    outlooks: Sequence[MarketOutlook],
    trial: Sequence[TrialRow],
) -> tuple[MarketChange, ...]:
    gone = _gone(trial)
    held = _held(snapshots)
    lines = [line for portfolio in book.portfolios for line in portfolio.lines]
    by_market = {outlook.market: outlook for outlook in outlooks}
    changes = []
    for market in sorted(after):
        accounts = tuple(sorted(gone & held.get(market, set())))
        # A line's key is account/instrument, with the side behind it where the account has both.
        keys = [f"{account}/{market}" for account in accounts]
        own = {*keys, *(f"{key}/{side}" for key in keys for side in ("long", "short"))}
        value = math.fsum(line.gross_usd for line in lines if line.key in own)
        changes.append(MarketChange(current[market], after[market], by_market[market], accounts, value))
    return tuple(changes)


def _holders(
    snapshots: Mapping[str, Snapshot], weighed: Sequence[CollateralChange], trial: Sequence[TrialRow]
) -> tuple[CollateralChange, ...]:
    """The changes of collateral with the accounts that hold it and are liquidatable by all changes together."""
    gone, held = _gone(trial), _holding(snapshots)
    return tuple(
        one._replace(accounts=tuple(sorted(gone & held.get(one.outlook.in_force.name, set())))) for one in weighed
    )


def _gone(trial: Sequence[TrialRow]) -> set[str]:
    return {account for row in trial if not row.venue for account in row.accounts_liquidated}


def _holding(snapshots: Mapping[str, Snapshot]) -> dict[str, set[str]]:
    """Accounts by the collateral that they hold, named as in `collateral_in_force`."""
    held: dict[str, set[str]] = {}
    for snapshot in snapshots.values():
        rule_sets = {row["account_id"]: row["rule_set"] for row in snapshot.tables["accounts"]}
        for row in snapshot.tables["balances"]:
            if row["side"] == "asset" and row["account_id"] in rule_sets:
                name = f"{rule_sets[row['account_id']]}/{row['asset_id']}"
                held.setdefault(name, set()).add(row["account_id"])
    return held


def _held(snapshots: Mapping[str, Snapshot]) -> dict[str, set[str]]:
    """Accounts by the market that they hold a position in."""
    held: dict[str, set[str]] = {}
    for snapshot in snapshots.values():
        for row in snapshot.tables["positions"]:
            held.setdefault(row["instrument_id"], set()).add(row["account_id"])
    return held


def _conditions(
    outcome: Outcome,
    snapshots: Mapping[str, Snapshot],
    collateral: Mapping[str, CollateralInForce],
    trial: Sequence[TrialRow],
) -> tuple[str, ...]:
    held = {*_held(snapshots), *(name for name, one in collateral.items() if one.held_usd > 0.0)}
    kept = [failure.message for failure in outcome.failures if failure.subject in held]
    short = [f"portfolio {row.portfolio_id} is incomplete" for row in trial if not row.venue and not row.complete]
    return (*kept, *short)


def _nothing(outcome: Outcome) -> DataError:
    """The error of a run in which no market could be recommended: the first reason stands for all."""
    if not outcome.failures:
        raise ConfigurationError("no market of the run has margin tiers: there is nothing to recommend")
    first = outcome.failures[0]
    message = f"none of {len(outcome.failures)} markets can be recommended; {first.message}"
    return DataError(Failure(first.reason, message, subject=first.subject))


def _location(resolved: Resolved) -> str | Path:
    path = resolved.configuration.store.path
    return path if "://" in path else resolved.path(path)


def _digest_of(paths: Any) -> str:
    """SHA-256 over the contents of the files that are there, in order."""
    digest = hashlib.sha256()
    for path in paths:
        if path.exists():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """The whole file or none of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise ConfigurationError(f"tiers.output: cannot write {path}: {error.strerror}") from None
