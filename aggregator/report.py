"""The report of one run: a single HTML file that a person reads, made from the result tables alone.

No script, no remote resource, no font to load; a content security policy says so to the browser. All text from data is
escaped, and equal tables give equal bytes. A figure that does not exist is shown as n/a with the status that explains
it, never as 0. Amounts are USD unless a column names a unit; losses and requirements are positive.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import expm1, inf, isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .errors import StoreError
from .reconciliation import by_size, worth_showing
from .report_charts import WaterfallStep, compact, histogram_chart, waterfall_chart
from .report_positions import contribution_map, position_rows
from .report_requirement import (
    capital_table,
    component_table,
    requirement_ladder,
    requirement_waterfall,
    shortfall_ladder,
)
from .report_reverse_stress import nearest_moves_table
from .report_stress import stress_table
from .report_summary import condition_word, tiles, verdict
from .report_transfer import transfer_section
from .report_words import (
    Limited,
    decimals_of,
    difference,
    factor_name,
    far,
    finished,
    full,
    full_with_error,
    hours,
    limited,
    moment,
    move,
    native,
    parsed_json,
    part,
    percent,
    price,
    ratio,
    short,
    times,
    words,
    words_with_error,
)
from .schema.results import RESULTS

Row = Mapping[str, Any]

# A page that is read, not a dump: beyond these counts the page says how many rows it leaves in the result store.
PORTFOLIO_ROWS = 100
DETAILED_PORTFOLIOS = 20
ACCOUNT_ROWS = 60
NEAREST_ACCOUNTS = 12
WATERFALL_STEPS = 11
_WATERFALL_ROW = 24.0
SCENARIO_ROWS = 10
LIQUIDATION_PRICE_ROWS = 30
RECONCILIATION_ROWS = 80
FACTOR_ROWS = 60
FAILURE_ROWS = 100
INPUT_ROWS = 200


def write_report(run_tables: Mapping[str, pa.Table], path: str | Path) -> Path:
    """Write the report of one run to `path` (its folder is created, the file replaced whole) and return the path.

    `run_tables` holds every table of `RESULTS` with the rows of one run, as `ResultStore.read_run` gives them. Raises
    `StoreError` when a table is missing, when there is not exactly one run row, or when a JSON column is damaged.
    """
    target = Path(path)
    page = render_report(run_tables)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(page, encoding="utf-8", newline="\n")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def render_report(run_tables: Mapping[str, pa.Table]) -> str:
    """The HTML text of the report; see `write_report`."""
    if missing := [name for name in RESULTS if name not in run_tables]:
        raise StoreError(f"the report needs every result table of a run, missing {missing}")
    if run_tables["runs"].num_rows != 1:
        raise StoreError(f"the report shows one run, found {run_tables['runs'].num_rows} run rows")
    run = run_tables["runs"].to_pylist()[0]
    portfolios = _by_size(run_tables["portfolio_margin"])
    allocated = set(pc.unique(run_tables["allocation"].column("portfolio_id")).to_pylist())
    detailed = [row for row in portfolios if row["portfolio_id"] in allocated]
    anchors = {row["portfolio_id"]: f"portfolio-{n}" for n, row in enumerate(detailed[:DETAILED_PORTFOLIOS], start=1)}
    conditions = parsed_json(run["conditions"], "runs.conditions")
    page = _environment().get_template("report.html")
    return page.render(
        run=run,
        conditions=[{**c, "meaning": condition_word(c)} for c in conditions],
        notes=parsed_json(run["notes"], "runs.notes") if run["notes"] is not None else [],
        verdict=verdict(run_tables, portfolios, conditions),
        tiles=tiles(run_tables, portfolios),
        portfolios=Limited(portfolios[:PORTFOLIO_ROWS], max(0, len(portfolios) - PORTFOLIO_ROWS)),
        decimals=decimals_of(row["equity_usd"] for row in portfolios),
        has_paths=any(
            run_tables[name].column("p_liquidation_path").null_count < run_tables[name].num_rows
            for name in ("portfolio_margin", "account_margin")
        ),
        left_out=[
            {**row, "accounts_left_out": parsed_json(row["accounts_left_out"], "portfolio_margin.accounts_left_out")}
            for row in portfolios[:PORTFOLIO_ROWS]
            if not row["complete"]
        ],
        nearest=_accounts_view(_nearest_accounts(run_tables["account_margin"]), True),
        ladders=_book_ladders(portfolios),
        details=[_detail(row, run_tables, anchors[row["portfolio_id"]]) for row in detailed[:DETAILED_PORTFOLIOS]],
        details_more=max(0, len(detailed) - DETAILED_PORTFOLIOS),
        anchors=anchors,
        factors=_factors(run_tables["factors"]),
        factor_sources=_counts(run_tables["factors"], "source"),
        failures=_failures(run_tables["failures"]),
        failure_reasons=_counts(run_tables["failures"], "reason"),
        reconciliation=_reconciliation(run_tables["reconciliation"]),
        reconciliation_open=_has_unexplained(run_tables["reconciliation"]),
        reconciliation_counts=_counts(run_tables["reconciliation"], "status"),
        inputs=limited(parsed_json(run["inputs"], "runs.inputs"), INPUT_ROWS),
        versions=sorted(parsed_json(run["versions"], "runs.versions").items()),
        configuration=json.dumps(
            parsed_json(run["configuration"], "runs.configuration"), indent=2, ensure_ascii=False, sort_keys=True
        ),
    )


# -- the whole run -------------------------------------------------------------------------------------------------


def _by_size(table: pa.Table) -> list[dict[str, Any]]:
    """Portfolio rows, largest pooled expected shortfall first, those without one last."""
    rows = table.to_pylist()
    return sorted(rows, key=lambda row: (row["es_99_pooled_usd"] is None, -(row["es_99_pooled_usd"] or 0.0)))


def _nearest_accounts(accounts: pa.Table) -> list[dict[str, Any]]:
    """The accounts most likely to be liquidated over all portfolios, then those whose health is nearest to its trigger.

    Health alone does not compare across venues: a lender at 1.3 may be safer than a perpetual account at 3.
    """
    known = accounts.filter(pc.and_(pc.is_valid(accounts.column("health")), pc.is_valid(accounts.column("trigger"))))
    rows = known.append_column("distance", pc.divide(known.column("health"), known.column("trigger")))
    order = [
        ("p_liquidation_at_horizon", "descending"),
        ("distance", "ascending"),
        ("portfolio_id", "ascending"),
        ("account_id", "ascending"),
    ]
    return rows.sort_by(order).slice(0, NEAREST_ACCOUNTS).to_pylist()


def _factors(table: pa.Table) -> Limited:
    """Factors with the weakest history first: filled cells, then other sources than history, then by name."""
    rows = table.to_pylist()
    rows.sort(key=lambda row: (-row["filled_share"], row["source"] == "history", row["factor"]))
    return limited([{**row, "name": factor_name(row["factor"])} for row in rows], FACTOR_ROWS)


def _failures(table: pa.Table) -> Limited:
    return Limited(table.slice(0, FAILURE_ROWS).to_pylist(), max(0, table.num_rows - FAILURE_ROWS))


def _counts(table: pa.Table, column: str) -> list[tuple[str, int]]:
    """(value, rows) of a text column, most frequent first."""
    counted = [(c["values"], c["counts"]) for c in pc.value_counts(table.column(column)).to_pylist()]
    return sorted(counted, key=lambda pair: (-pair[1], pair[0]))


def _reconciliation(table: pa.Table) -> Limited:
    """Figures that a venue reports or that could not be computed, largest difference first."""
    return limited(worth_showing(by_size(table.to_pylist())), RECONCILIATION_ROWS)


def _has_unexplained(reconciliation: pa.Table) -> bool:
    """Whether a difference is unexplained or a figure missing: then the table is not folded away."""
    return bool({"unexplained", "incomplete"} & set(pc.unique(reconciliation.column("status")).to_pylist()))


# -- one portfolio -------------------------------------------------------------------------------------------------


def _detail(row: Row, run_tables: Mapping[str, pa.Table], anchor: str) -> Row:
    """Everything that the page shows of one portfolio in depth."""
    own = {
        name: run_tables[name]
        .filter(pc.equal(run_tables[name].column("portfolio_id"), row["portfolio_id"]))
        .to_pylist()
        for name in (
            "account_margin",
            "allocation",
            "scenarios_worst",
            "greeks",
            "loss_histogram",
            "liquidation_prices",
            "node_margin",
            "nodes",
            "requirement",
            "reverse_stress",
            "routes",
            "stress",
        )
    }
    has_requirement = row["requirement_effective_usd"] is not None
    components = component_table(own["requirement"]) if has_requirement else None
    positions = [a for a in own["allocation"] if a["level"] == "position"]
    positions.sort(key=lambda a: (-a["es_99_usd"], a["key"]))
    lines = [
        (label, row[column])
        for label, column in (
            ("VaR 99 %", "var_99_pooled_usd"),
            ("ES 99 %", "es_99_pooled_usd"),
            ("VaR 99.5 %", "var_995_pooled_usd"),
            ("ES 99.5 %", "es_995_pooled_usd"),
        )
        if row[column] is not None
    ]
    bins = [(b["loss_from_usd"], b["loss_to_usd"], b["probability"]) for b in own["loss_histogram"]]
    tail_from = row["var_99_pooled_usd"]
    tail_bins = 0 if tail_from is None else sum(start > tail_from for start, _, _ in bins)
    decimals = decimals_of([row["equity_usd"], row["gross_notional_usd"]])
    return {
        "anchor": anchor,
        "row": row,
        "accounts_left_out": parsed_json(row["accounts_left_out"], "portfolio_margin.accounts_left_out"),
        "decimals": decimals,
        "ladder": requirement_ladder(row) or shortfall_ladder(row),
        "requirement": requirement_waterfall(row, components["whole"] if components else None),
        "components": components,
        "capital": capital_table(own["node_margin"]),
        "transfer": transfer_section(row, own["nodes"], own["routes"], decimals=decimals),
        "stress": stress_table(own["stress"]),
        "nearest_moves": nearest_moves_table(own["reverse_stress"]),
        "waterfall": _equity_waterfall(row, own["account_margin"]),
        "histogram": histogram_chart(bins, lines, title="Distribution of losses", tail_from=tail_from)
        if bins
        else None,
        "tail": histogram_chart(bins, lines, title="Tail of the losses", tail_from=tail_from, only_tail=True)
        if tail_bins > 1
        else None,
        "heat_map": contribution_map(positions),
        "worst": limited([_worst(scenario) for scenario in own["scenarios_worst"]], SCENARIO_ROWS),
        "accounts": limited(_accounts_view(own["account_margin"], False), ACCOUNT_ROWS),
        "liquidation_prices": limited(_liquidation_prices(own["liquidation_prices"]), LIQUIDATION_PRICE_ROWS),
        "liquidation_prices_none": sum(r["status"] == "none" for r in own["liquidation_prices"]),
        "positions": position_rows(positions, row),
        "greeks": own["greeks"],
        "key_figures": [
            (label, row[column], row[error] if error else None)
            for label, column, error in (
                ("Equity", "equity_usd", None),
                ("Gross notional", "gross_notional_usd", None),
                ("Unified maintenance margin", "requirement_effective_usd", None),
                ("Unified initial margin", "requirement_initial_usd", None),
                ("Native maintenance margin", "native_maintenance_usd", None),
                ("Native initial margin", "native_initial_usd", None),
                ("Mean loss", "mean_loss_usd", None),
                ("VaR 99 %", "var_99_pooled_usd", "var_99_pooled_error_usd"),
                ("ES 99 %", "es_99_pooled_usd", "es_99_pooled_error_usd"),
                ("VaR 99.5 %", "var_995_pooled_usd", "var_995_pooled_error_usd"),
                ("ES 99.5 %", "es_995_pooled_usd", "es_995_pooled_error_usd"),
                ("Worst loss", "worst_loss_usd", None),
            )
        ],
    }


def _book_ladders(portfolios: Sequence[Row]) -> list[Markup]:
    """The ladders of the sums over all computed portfolios, that of the requirement first; none when none is computed.

    An error of such a sum is the sum of the errors, which bounds it.
    """
    computed = [row for row in portfolios if row["es_99_pooled_usd"] is not None]
    if not computed:
        return []
    columns = [name for name in computed[0] if name.endswith("_usd")]
    sums = {
        name: None if any(row[name] is None for row in computed) else sum(row[name] for row in computed)
        for name in columns
    }
    return [chart for chart in (requirement_ladder(sums), shortfall_ladder(sums)) if chart is not None]


def _equity_waterfall(row: Row, accounts: Sequence[Row]) -> Markup | None:
    """The chart from the equity of each account (of each venue when there are many) to what the unified margin leaves.

    Without a unified requirement it ends with what the pooled ES leaves.
    """
    if row["equity_usd"] is None:
        return None
    known = [a for a in accounts if a["equity_usd"] is not None]
    by_account = len(known) <= WATERFALL_STEPS
    sums: dict[str, float] = {}
    for account in known:
        name = account["account_id"] if by_account else account["venue"]
        sums[name] = sums.get(name, 0.0) + account["equity_usd"]
    parts = sorted(sums.items(), key=lambda pair: (-pair[1], pair[0]))
    if len(parts) > WATERFALL_STEPS:
        small = sorted(parts, key=lambda pair: (-abs(pair[1]), pair[0]))[WATERFALL_STEPS - 1 :]
        rest = sum(amount for _, amount in small)
        parts = [pair for pair in parts if pair not in small] + [(f"{len(small)} other venues", rest)]
    gap = row["equity_usd"] - sum(amount for _, amount in parts)
    if abs(gap) > 1e-6 * sum(abs(amount) for _, amount in parts) + 0.01:
        parts.append(("not in an account", gap))
    steps = [WaterfallStep(label, amount) for label, amount in parts]
    steps.append(WaterfallStep("Equity", row["equity_usd"], "total"))
    equity = row["unified_equity_usd"] if row["unified_equity_usd"] is not None else row["equity_usd"]
    if equity != row["equity_usd"]:
        steps.append(WaterfallStep("Collateral haircuts", equity - row["equity_usd"]))
        steps.append(WaterfallStep("Unified equity", equity, "total"))
    effective, shortfall = row["requirement_effective_usd"], row["es_99_pooled_usd"]
    if effective is not None and isfinite(effective):
        steps.append(WaterfallStep("Unified margin", -effective))
        steps.append(WaterfallStep("Left above it", equity - effective, "total"))
    elif shortfall is not None:
        steps.append(WaterfallStep("Pooled ES 99 %", -shortfall))
        steps.append(WaterfallStep("Left after a 1 % tail", equity - shortfall, "total"))
    return waterfall_chart(steps, title="Equity by account and what the requirement leaves", row=_WATERFALL_ROW)


def _worst(scenario: Row) -> Row:
    """A worst scenario with its main drivers and its main moves: three prices, two vols, every peg off by 0.2 %."""
    where = f"scenarios_worst of scenario {scenario['scenario']}"
    drivers = parsed_json(scenario["drivers"], f"{where}, drivers")
    moves: dict[str, float] = parsed_json(scenario["moves"], f"{where}, moves")
    ranked = sorted(moves.items(), key=lambda pair: (-abs(pair[1]), pair[0]))
    vols = [pair for pair in ranked if pair[0].startswith("vol:")]
    pegs = [pair for pair in ranked if pair[0].startswith("peg:") and abs(pair[1]) >= 0.002]
    prices = [pair for pair in ranked if not pair[0].startswith(("vol:", "peg:"))]
    return {
        **scenario,
        "drivers": drivers[:3],
        "drivers_more": max(0, len(drivers) - 3),
        "moves": [(factor_name(name), move) for name, move in (*prices[:3], *vols[:2], *pegs[:2])],
        "liquidated": parsed_json(scenario["liquidated"], f"{where}, liquidated"),
    }


def _accounts_view(accounts: Sequence[Row], across_portfolios: bool) -> list[Row]:
    """Account rows, most likely liquidated first, then by distance to their trigger; those without one after them,
    incomplete ones last.
    """
    rows: list[Row] = []
    for account in accounts:
        health, trigger = account["health"], account["trigger"]
        distance = None if health is None or not trigger else health / trigger - 1.0
        rows.append({**account, "distance": distance})
    rows.sort(
        key=lambda a: (
            not a["liquidatable"],
            a["distance"] is None,
            -(a["p_liquidation_at_horizon"] or 0.0),
            a["distance"] if a["distance"] is not None else 0.0,
            a["status"] != "no_requirement",
            a["portfolio_id"] if across_portfolios else "",
            a["account_id"],
        )
    )
    return rows


def _liquidation_prices(rows: Sequence[Row]) -> list[Row]:
    """Rows that have a liquidation price or lack one for a reason, accounts liquidatable now first, then by the nearest
    move.
    """

    def nearest(row: Row) -> float:
        return min((abs(row[name]) for name in ("log_move_down", "log_move_up") if row[name] is not None), default=inf)

    shown = [
        {**row, **{side: _move_of(row[f"log_move_{side}"]) for side in ("down", "up")}}
        for row in rows
        if row["status"] != "none"
    ]
    return sorted(shown, key=lambda r: (r["status"] != "liquidatable_now", nearest(r), r["account_id"], r["subject"]))


def _move_of(log_move: float | None) -> str | None:
    """A log move in percent."""
    return None if log_move is None else move(expm1(log_move))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("aggregator", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finished,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "compact": compact,
        "difference": difference,
        "far": far,
        "full": full,
        "full_with_error": full_with_error,
        "hours": hours,
        "moment": moment,
        "move": move,
        "native": native,
        "part": part,
        "percent": percent,
        "price": price,
        "ratio": ratio,
        "short": short,
        "times": times,
        "words": words,
        "words_with_error": words_with_error,
    }
    environment.filters.update(filters)
    return environment
