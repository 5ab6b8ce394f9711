"""The verb `screen`: tail, liquidation probabilities and bad debt of every portfolio of a book, by the fast engine.

Inputs, scenarios and seed are those of a sweep, and so are the figures within float32; the requirement stack, stresses,
transfers, paths and limits are left to it. Portfolios that the fast engine does not cover are computed by the sweep's
own engine: every portfolio of the configuration has a row that names its engine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .book_columns import BookColumns, book_columns
from .column_codes import places
from .conditions import data_conditions
from .config import Resolved
from .cube_prices import priced_cube
from .engine import draw_cube, evaluate_headlines
from .errors import ConfigurationError, ordered_failures
from .factors import Generation, build_generator
from .netted_sweep import sweep_columns
from .portfolio import Book, Claims, claimed_accounts, pack_book
from .progress import Progress, silent
from .results import Evaluated, account_rows, calculation_failures, portfolio_row, result_table
from .run_inputs import read_inputs, with_forecast
from .run_record import Findings, Outcome, commit_run, devices_of, new_run, outcome_of, start_run
from .scenarios import scenario_weights
from .schema.results import RESULTS
from .screen_tables import account_tables
from .snapshot import Snapshot
from .sweep_scenarios import sweep_scenarios

_SHARD = 4096
"""Portfolios that are netted and evaluated at a time."""

_COLUMNS = {
    "equity_usd": "equity_usd",
    "mean_loss_usd": "mean_loss_usd",
    "worst_loss_usd": "worst_loss_usd",
    "var_99_usd": "var_99_pooled_usd",
    "es_99_usd": "es_99_pooled_usd",
    "var_995_usd": "var_995_pooled_usd",
    "es_995_usd": "es_995_pooled_usd",
    "p_liquidation_any": "p_liquidation_any_at_horizon",
    "p_liquidation_unified": "p_liquidation_unified_at_horizon",
    "bad_debt_usd": "bad_debt_usd",
}
"""Columns of the fast engine's portfolios by their names in the result tables."""


class Screened(NamedTuple):
    """Rows of `screen_portfolios` and `screen_accounts` without their run."""

    portfolios: pa.Table
    accounts: pa.Table


def run_screen(resolved: Resolved, *, top: int, progress: Progress | None = None) -> Outcome:
    """Screen `resolved` and store the tables; `portfolios` of the outcome are the `top` with the largest ES 99 %.

    Raises `ConfigurationError` before anything is written when the configuration cannot be run; every problem with data
    becomes a failure row and a condition instead.
    """
    if top < 0:
        raise ConfigurationError(f"top {top}: expected a number of portfolios, 0 or more")
    say = progress or silent
    started = datetime.now(UTC)
    inputs = read_inputs(resolved, say)
    resolved = with_forecast(resolved, inputs.as_of)
    configuration = resolved.configuration
    claims = claimed_accounts(inputs.snapshots, configuration.portfolios)
    if claims.unclaimed:
        unclaimed = ", ".join(claims.unclaimed)
        raise ConfigurationError(f"accounts that no portfolio maps: {unclaimed}; add them to [portfolios]")
    say("book", 0, 1)
    reasons = _unfit(claims, inputs.snapshots)
    columns, generation = _columns_and_law(resolved, inputs.snapshots, claims, reasons, inputs.as_of)
    say("book", 1, 1)
    devices, number = devices_of(configuration), len(claims.portfolios)
    say("netted engine", 0, number - len(reasons))
    parts = [
        _netted(resolved, book, generation, devices, reasons)
        for book in columns.values()
        if len(book.accounts.account_id)
    ]
    say("netted engine", number - len(reasons), number - len(reasons))
    say("general engine", 0, len(reasons))
    book = _general_book(resolved, inputs.snapshots, reasons, inputs.as_of, generation.missing)
    evaluated = _evaluated(resolved, book, generation, devices)
    parts.append(_general(evaluated, reasons))
    say("general engine", len(reasons), len(reasons))

    run = new_run(resolved, inputs, kind="screen", started=started, shards=1)
    tables = _stored(parts, inputs.snapshots, claims, run.run_id)
    failures = ordered_failures(
        [*inputs.failures, *book.failures, *generation.failures, *calculation_failures(evaluated)]
    )
    incomplete = tables.portfolios.filter(pc.invert(tables.portfolios["complete"]))["portfolio_id"].to_pylist()
    say("store", 0, 1)
    start_run(run)
    run.store.write_shard(
        run.run_id,
        0,
        {
            "screen_portfolios": tables.portfolios,
            "screen_accounts": tables.accounts,
            "failures": result_table("failures", run.run_id, [asdict(failure) for failure in failures]),
        },
    )
    found = Findings(
        scenarios=int(np.count_nonzero(np.asarray(scenario_weights(generation.generator, generation.scenarios)))),
        portfolios=number,
        incomplete=len(incomplete),
        accounts=tables.accounts.num_rows,
        failures=len(failures),
        conditions=data_conditions(incomplete, failures),
        notes=_notes(resolved),
    )
    commit_run(run, found)
    say("store", 1, 1)
    return outcome_of(run, found, _largest(tables.portfolios, top))


def _unfit(claims: Claims, snapshots: Mapping[str, Snapshot]) -> dict[str, str]:
    """Portfolios that the fast engine is not asked for, with the reason: one that lacks something is left to the engine
    that knows how to leave accounts out.
    """
    out = {}
    for portfolio_id, claim in claims.portfolios.items():
        lost = [a for a in claim.accounts if a in snapshots[claims.snapshots[a]].incomplete]
        if claim.not_found or lost or not claim.accounts:
            out[portfolio_id] = "accounts are missing or incomplete"
        elif len({claims.snapshots[a] for a in claim.accounts}) > 1:
            out[portfolio_id] = "accounts of several snapshots"
    return out


def _columns_and_law(
    resolved: Resolved,
    snapshots: Mapping[str, Snapshot],
    claims: Claims,
    reasons: dict[str, str],
    as_of: datetime,
) -> tuple[dict[str, BookColumns], Generation]:
    """The covered book of every snapshot, and the scenario law of the whole book; `reasons` get what is not covered."""
    tables: dict[str, tuple[dict[str, pa.Table], pa.Table]] = {}
    for name, snapshot in sorted(snapshots.items()):
        pairs = [
            (portfolio_id, account_id)
            for portfolio_id, claim in claims.portfolios.items()
            if portfolio_id not in reasons
            for account_id in claim.accounts
            if claims.snapshots[account_id] == name
        ]
        if pairs:
            owners = pa.table({"portfolio_id": [p for p, _ in pairs], "account_id": [a for _, a in pairs]})
            tables[name] = account_tables(snapshot, {a for _, a in pairs}), owners

    def covered(known: frozenset[str] | None) -> dict[str, BookColumns]:
        books = {name: book_columns(*both, as_of=as_of, known=known) for name, both in tables.items()}
        for book in books.values():
            _add_reasons(reasons, book.not_covered)
        return books

    books = covered(None)
    others = _general_book(resolved, snapshots, reasons, as_of)
    needed = {*others.factors(), *(factor for book in books.values() for factor in book.cube.factors())}
    generation = build_generator(resolved, sorted(needed), as_of)
    if generation.missing:
        books = covered(frozenset(generation.factors))
    return books, generation


def _add_reasons(reasons: dict[str, str], not_covered: pa.Table) -> None:
    for row in not_covered.to_pylist():
        reasons.setdefault(row["portfolio_id"], f"{row['account_id']}: {row['reason']}")


def _general_book(
    resolved: Resolved,
    snapshots: Mapping[str, Snapshot],
    portfolios: Collection[str],
    as_of: datetime,
    missing: frozenset[str] = frozenset(),
) -> Book:
    entries = {name: of for name, of in resolved.configuration.portfolios.items() if name in portfolios}
    return pack_book(snapshots, entries, as_of=as_of, missing=missing)[0]


def _netted(
    resolved: Resolved, book: BookColumns, generation: Generation, devices: int, reasons: dict[str, str]
) -> Screened:
    """The covered portfolios of one snapshot; `reasons` get those whose figures are no finite numbers."""
    run = resolved.configuration.run
    rows = book.cube.build(generation.generator.factors)
    drawn = sweep_scenarios(generation.generator, seed=run.seed, scenarios=generation.scenarios)
    priced = priced_cube(rows, drawn, horizon_days=run.horizon_days)
    found = sweep_columns(book, priced, devices=devices, shard=_SHARD)
    _add_reasons(reasons, found.not_covered)
    portfolios, nodes = found.portfolios, found.nodes
    # The likeliest account of every portfolio first, of equal ones the first by id.
    order = [("portfolio_id", "ascending"), ("p_liquidation", "descending"), ("account_id", "ascending")]
    ranked = nodes.sort_by(order)
    owner = places(ranked["portfolio_id"], portfolios["portfolio_id"])
    first = ranked.take(pa.array(np.unique(owner, return_index=True)[1]))
    likely = pc.greater(first["p_liquidation"], 0.0)
    tail = portfolios["es_99_usd"]
    own = {
        "engine": _repeated("netted", portfolios),
        "complete": _repeated(True, portfolios),
        "accounts_left_out": _repeated("[]", portfolios),
        "status": _repeated("ok", portfolios),
        "accounts": pa.array(np.bincount(owner, minlength=portfolios.num_rows)),
        "equity_to_es_99": pc.if_else(pc.greater(tail, 0.0), pc.divide(portfolios["equity_usd"], tail), None),
        "p_liquidation_largest": first["p_liquidation"],
        "p_liquidation_largest_account": pc.if_else(likely, first["account_id"], None),
    }
    same = {name: portfolios[of] for of, name in _COLUMNS.items()}
    kept = ("portfolio_id", "account_id", "node", "equity_usd", "equity_mean_usd", "bad_debt_usd")
    accounts = {name: nodes[name] for name in kept} | {
        "engine": _repeated("netted", nodes),
        "status": _repeated("ok", nodes),
        "p_liquidation_at_horizon": nodes["p_liquidation"],
    }
    return Screened(pa.table({"portfolio_id": portfolios["portfolio_id"], **own, **same}), pa.table(accounts))


def _repeated(value: Any, table: pa.Table) -> pa.Array:
    return pa.repeat(pa.scalar(value), table.num_rows)


def _evaluated(resolved: Resolved, book: Book, generation: Generation, devices: int) -> list[Evaluated]:
    """The portfolios of the general engine, without policy and stresses."""
    if not book.portfolios:
        return []
    run = resolved.configuration.run
    cube = draw_cube(
        book.cube.build(generation.factors),
        generation.generator,
        seed=run.seed,
        scenarios=generation.scenarios,
        chunk=resolved.configuration.engine.scenario_chunk,
        horizon_days=run.horizon_days,
    )
    headlines = evaluate_headlines(book.portfolios, generation.factors, cube, devices=devices)
    return [Evaluated(p, h) for p, h in zip(book.portfolios, headlines, strict=True)]


def _general(evaluated: Sequence[Evaluated], reasons: Mapping[str, str]) -> Screened:
    portfolios = [
        {**portfolio_row(e), "engine": "general", "engine_reason": reasons[e.portfolio.portfolio_id]} for e in evaluated
    ]
    accounts = [
        {**row, "engine": "general", "status": "ok" if row["status"] == "no_requirement" else row["status"]}
        for e in evaluated
        for row in account_rows(e)
    ]

    def table(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        columns = [f for f in RESULTS[name] if f.name != "run_id"]
        return pa.table({f.name: pa.array([row.get(f.name) for row in rows], f.type) for f in columns})

    return Screened(table("screen_portfolios", portfolios), table("screen_accounts", accounts))


def _stored(parts: Sequence[Screened], snapshots: Mapping[str, Snapshot], claims: Claims, run_id: str) -> Screened:
    """All parts in the schemas of the store; venues are those of the snapshots."""
    venues = {row["account_id"]: row["venue"] for snapshot in snapshots.values() for row in snapshot.tables["accounts"]}
    accounts = [
        of.drop_columns([c for c in of.column_names if c == "venue"]).append_column(
            "venue", pa.array([venues[a] for a in of["account_id"].to_pylist()], pa.string())
        )
        for of in (part.accounts for part in parts)
    ]

    def joined(name: str, tables: Sequence[pa.Table]) -> pa.Table:
        found = [
            pa.table(
                {
                    f.name: _repeated(run_id, table)
                    if f.name == "run_id"
                    else table[f.name].cast(f.type)
                    if f.name in table.column_names
                    else pa.nulls(table.num_rows, f.type)
                    for f in RESULTS[name]
                }
            )
            for table in tables
        ]
        return pa.concat_tables(found).sort_by([("portfolio_id", "ascending")]).cast(RESULTS[name])

    found = Screened(joined("screen_portfolios", [p.portfolios for p in parts]), joined("screen_accounts", accounts))
    if found.portfolios["portfolio_id"].to_pylist() != list(claims.portfolios):
        raise RuntimeError("a screen must have one row for every portfolio of its configuration; this is a fault of it")
    return found


def _largest(portfolios: pa.Table, top: int) -> list[dict[str, Any]]:
    """The rows of the largest expected shortfalls; those without one last, each by id."""
    order = [("es_99_pooled_usd", "descending"), ("portfolio_id", "ascending")]
    return list(portfolios.sort_by(order).slice(0, top).to_pylist())


def _notes(resolved: Resolved) -> tuple[str, ...]:
    configuration = resolved.configuration
    out = []
    if configuration.limits:
        out.append("a screen decides no limits; `crossmargin sweep` does")
    if configuration.run.target_error is not None:
        out.append("run.target_error adds no scenarios to a screen; they are as many as the scenarios section says")
    return tuple(out)
