"""The report of one run: a single HTML file that a person reads, made from the result tables alone.

No script, no remote resource, no font to load; a content security policy says so to the browser. All text from data is
escaped, and equal tables give equal bytes. A figure that does not exist is shown as n/a with the status that explains
it, never as 0. Amounts are USD unless a column names a unit; losses and requirements are positive.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from math import expm1, floor, inf, log, log10
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from .errors import ExitCode, StoreError
from .reconciliation import by_size, worth_showing
from .report_charts import (
    NO_BREAK,
    HeatCell,
    LadderStep,
    WaterfallStep,
    compact,
    heat_map,
    histogram_chart,
    ladder_chart,
    waterfall_chart,
)
from .schema import RESULTS

Row = Mapping[str, Any]

# A page that is read, not a dump: beyond these counts the page says how many rows it leaves in the result store.
PORTFOLIO_ROWS = 100
DETAILED_PORTFOLIOS = 20
ACCOUNT_ROWS = 60
NOTABLE_PROBABILITY = 0.01
"""From here on the first line names the account that is most likely to be liquidated."""
NEAREST_ACCOUNTS = 12
POSITION_ROWS_TOP = 30
POSITION_ROWS_BOTTOM = 8
WATERFALL_STEPS = 11
HEAT_MAP_ROWS = 12
HEAT_MAP_COLUMNS = 10
SCENARIO_ROWS = 10
LIQUIDATION_PRICE_ROWS = 30
RECONCILIATION_ROWS = 80
FACTOR_ROWS = 60
FAILURE_ROWS = 100
INPUT_ROWS = 200

_MINUS = "−"
_NOT_AVAILABLE = Markup('<span class="na">n/a</span>')
# Control characters are not allowed in HTML, and direction overrides can make text read as something else.
_UNPRINTABLE = dict.fromkeys(
    (
        *(code for code in range(0x20) if chr(code) not in "\t\n\r"),
        *range(0x7F, 0xA0),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        *(0xFFFE, 0xFFFF),
    ),
    "\ufffd",
)


class _Limited(NamedTuple):
    """Rows for the page and how many more there are."""

    rows: Sequence[Any]
    more: int


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
    conditions = _json(run["conditions"], "runs.conditions")
    page = _environment().get_template("report.html")
    return page.render(
        run=run,
        conditions=[{**c, "meaning": _condition_word(c)} for c in conditions],
        verdict=_verdict(run_tables, portfolios, conditions),
        tiles=_tiles(run_tables, portfolios),
        portfolios=_Limited(portfolios[:PORTFOLIO_ROWS], max(0, len(portfolios) - PORTFOLIO_ROWS)),
        decimals=_decimals(row["equity_usd"] for row in portfolios),
        left_out=[
            {**row, "accounts_left_out": _json(row["accounts_left_out"], "portfolio_margin.accounts_left_out")}
            for row in portfolios[:PORTFOLIO_ROWS]
            if not row["complete"]
        ],
        nearest=_accounts_view(_nearest_accounts(run_tables["account_margin"]), True),
        ladder=_book_ladder(portfolios),
        details=[_detail(row, run_tables, anchors[row["portfolio_id"]]) for row in detailed[:DETAILED_PORTFOLIOS]],
        details_more=max(0, len(detailed) - DETAILED_PORTFOLIOS),
        anchors=anchors,
        factors=_factors(run_tables["factors"]),
        factor_sources=_counts(run_tables["factors"], "source"),
        failures=_failures(run_tables["failures"]),
        failure_reasons=_counts(run_tables["failures"], "reason"),
        reconciliation=_reconciliation(run_tables["reconciliation"]),
        reconciliation_counts=_counts(run_tables["reconciliation"], "status"),
        inputs=_limited(_json(run["inputs"], "runs.inputs"), INPUT_ROWS),
        versions=sorted(_json(run["versions"], "runs.versions").items()),
        configuration=json.dumps(
            _json(run["configuration"], "runs.configuration"), indent=2, ensure_ascii=False, sort_keys=True
        ),
    )


# -- the whole run -------------------------------------------------------------------------------------------------


def _by_size(table: pa.Table) -> list[dict[str, Any]]:
    """Portfolio rows, largest pooled expected shortfall first, those without one last."""
    rows = table.to_pylist()
    return sorted(rows, key=lambda row: (row["es_99_pooled_usd"] is None, -(row["es_99_pooled_usd"] or 0.0)))


def _condition_word(condition: Row) -> str:
    words = {
        int(ExitCode.INTERNAL): "internal error",
        int(ExitCode.CONFIGURATION): "configuration",
        int(ExitCode.BAD_DATA): "bad or incomplete data",
        int(ExitCode.LIMIT_BREACHED): "limit breached",
        int(ExitCode.VENUE_UNREACHABLE): "venue unreachable",
    }
    return words.get(condition.get("code", 0), str(condition.get("condition", "condition")))


def _verdict(run_tables: Mapping[str, pa.Table], portfolios: Sequence[Row], conditions: Sequence[Row]) -> Row:
    """The state of the run in one or two sentences, and how grave it is (bad, attention or good)."""
    liquidatable = pc.sum(run_tables["account_margin"].column("liquidatable").cast(pa.int64())).as_py() or 0
    incomplete = sum(not row["complete"] for row in portfolios)
    breached = sum(c.get("code") == ExitCode.LIMIT_BREACHED for c in conditions)
    unreachable = sum(c.get("code") == ExitCode.VENUE_UNREACHABLE for c in conditions)
    sentences = []
    if liquidatable:
        sentences.append(f"{_count(liquidatable, 'account')} can be liquidated now")
    if breached:
        sentences.append("a limit is breached" if breached == 1 else f"{breached} limits are breached")
    grave = bool(sentences)
    if unreachable:
        sentences.append("a venue did not answer" if unreachable == 1 else f"{unreachable} venues did not answer")
    if incomplete:
        sentences.append(
            f"{incomplete} of {_count(len(portfolios), 'portfolio')} incomplete: limits there are undecided"
        )
    elif any(c.get("code") == ExitCode.BAD_DATA for c in conditions):
        sentences.append("some input rows could not be used; every portfolio is complete")
    if not sentences:
        if not portfolios:
            sentences.append("the run holds no portfolio")
        elif conditions:
            sentences.append(f"the run reports {_count(len(conditions), 'condition')}")
        else:
            sentences.append("no account can be liquidated now, no limit is breached, all data are complete")
    likeliest = max(
        (row for row in portfolios if row["p_liquidation_largest_account"] is not None),
        key=lambda row: row["p_liquidation_largest"],
        default=None,
    )
    if likeliest is not None and likeliest["p_liquidation_largest"] >= NOTABLE_PROBABILITY:
        account = likeliest["p_liquidation_largest_account"]
        sentences.append(f"{account} is liquidated at the horizon in {likeliest['p_liquidation_largest']:.1%} of cases")
    text = "; ".join(sentences)
    grade = "bad" if grave else "good" if portfolios and not conditions and not incomplete else "attention"
    return {"text": f"{text[0].upper()}{text[1:]}.", "grade": grade}


def _tiles(run_tables: Mapping[str, pa.Table], portfolios: Sequence[Row]) -> list[Row]:
    """The figures at the top; amounts are sums over portfolios, which never offset each other."""
    count = len(portfolios)

    def total(column: str) -> tuple[float | None, str]:
        known = [row[column] for row in portfolios if row[column] is not None]
        scope = "" if count == 1 else f"sum of {count} portfolios"
        if len(known) < count:
            scope = f"{len(known)} of {_count(count, 'portfolio')} computed"
        return (sum(known) if known else None), scope

    equity, equity_scope = total("equity_usd")
    pooled, pooled_scope = total("es_99_pooled_usd")
    silo, _ = total("es_99_silo_sum_usd")
    maintenance, maintenance_scope = total("native_maintenance_usd")
    saving = None if pooled is None or silo is None or silo <= 0 else 1.0 - pooled / silo
    likely = max(
        (row for row in portfolios if row["p_liquidation_any_at_horizon"] is not None),
        key=lambda row: row["p_liquidation_any_at_horizon"],
        default=None,
    )
    return [
        {"label": "Equity", "value": _words(equity), "note": equity_scope or "at market value"},
        {
            "label": "Unified margin: pooled ES 99 %",
            "value": _words(pooled),
            "note": pooled_scope or "all nodes as one",
        },
        {
            "label": "Saved against silos",
            "value": _NOT_AVAILABLE if saving is None else percent(saving, 1),
            "note": _NOT_AVAILABLE if silo is None else Markup("silo sum {}").format(_words(silo)),
        },
        {"label": "Native maintenance", "value": _words(maintenance), "note": maintenance_scope or "sum over accounts"},
        {
            "label": "Largest P(any liquidation)",
            "value": _NOT_AVAILABLE if likely is None else percent(likely["p_liquidation_any_at_horizon"], 2),
            "note": "at the horizon"
            if likely is None or count == 1
            else Markup("portfolio {}").format(short(likely["portfolio_id"])),
        },
    ]


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


def _factors(table: pa.Table) -> _Limited:
    """Factors with the weakest history first: filled cells, then other sources than history, then by name."""
    rows = table.to_pylist()
    rows.sort(key=lambda row: (-row["filled_share"], row["source"] == "history", row["factor"]))
    return _limited([{**row, "name": _factor_name(row["factor"])} for row in rows], FACTOR_ROWS)


def _failures(table: pa.Table) -> _Limited:
    return _Limited(table.slice(0, FAILURE_ROWS).to_pylist(), max(0, table.num_rows - FAILURE_ROWS))


def _counts(table: pa.Table, column: str) -> list[tuple[str, int]]:
    """(value, rows) of a text column, most frequent first."""
    counted = [(c["values"], c["counts"]) for c in pc.value_counts(table.column(column)).to_pylist()]
    return sorted(counted, key=lambda pair: (-pair[1], pair[0]))


def _reconciliation(table: pa.Table) -> _Limited:
    """Figures that a venue reports or that could not be computed, largest difference first."""
    return _limited(worth_showing(by_size(table.to_pylist())), RECONCILIATION_ROWS)


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
        )
    }
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
    return {
        "anchor": anchor,
        "row": row,
        "accounts_left_out": _json(row["accounts_left_out"], "portfolio_margin.accounts_left_out"),
        "decimals": _decimals([row["equity_usd"], row["gross_notional_usd"]]),
        "ladder": _ladder(row),
        "waterfall": _waterfall(row, own["account_margin"]),
        "histogram": histogram_chart(bins, lines, title="Distribution of losses", tail_from=tail_from)
        if bins
        else None,
        "tail": histogram_chart(bins, lines, title="Tail of the losses", tail_from=tail_from, only_tail=True)
        if tail_bins > 1
        else None,
        "heat_map": _heat_map(positions),
        "worst": _limited([_worst(scenario) for scenario in own["scenarios_worst"]], SCENARIO_ROWS),
        "accounts": _limited(_accounts_view(own["account_margin"], False), ACCOUNT_ROWS),
        "liquidation_prices": _limited(_liquidation_prices(own["liquidation_prices"]), LIQUIDATION_PRICE_ROWS),
        "liquidation_prices_none": sum(r["status"] == "none" for r in own["liquidation_prices"]),
        "positions": _positions(positions, row),
        "greeks": own["greeks"],
        "key_figures": [
            (label, row[column])
            for label, column in (
                ("Equity", "equity_usd"),
                ("Gross notional", "gross_notional_usd"),
                ("Native maintenance margin", "native_maintenance_usd"),
                ("Native initial margin", "native_initial_usd"),
                ("Mean loss", "mean_loss_usd"),
                ("VaR 99 %", "var_99_pooled_usd"),
                ("ES 99 %: the unified margin", "es_99_pooled_usd"),
                ("VaR 99.5 %", "var_995_pooled_usd"),
                ("ES 99.5 %", "es_995_pooled_usd"),
                ("Worst loss", "worst_loss_usd"),
            )
        ],
    }


def _ladder(row: Row) -> Markup:
    """The chart of the margin ladder: what each way of looking at the book asks for."""
    second = "99.5 %:"
    return ladder_chart(
        [
            LadderStep("Positions alone (ES)", row["es_99_isolated_sum_usd"], row["es_995_isolated_sum_usd"], second),
            LadderStep("Venues' own rules", row["native_maintenance_usd"], row["native_initial_usd"], "initial:"),
            LadderStep("Silos by node (ES)", row["es_99_silo_sum_usd"], row["es_995_silo_sum_usd"], second),
            LadderStep("Pooled (ES)", row["es_99_pooled_usd"], row["es_995_pooled_usd"], second, emphasis=True),
        ],
        title="Margin ladder at 99 percent",
    )


def _book_ladder(portfolios: Sequence[Row]) -> Markup | None:
    """The ladder of the sums over all computed portfolios; None when nothing is computed."""
    computed = [row for row in portfolios if row["es_99_pooled_usd"] is not None]
    if not computed:
        return None
    columns = [name for name in computed[0] if name.endswith("_usd")]
    sums = {
        name: None if any(row[name] is None for row in computed) else sum(row[name] for row in computed)
        for name in columns
    }
    return _ladder(sums)


def _waterfall(row: Row, accounts: Sequence[Row]) -> Markup | None:
    """The chart from the equity of each account (of each venue when there are many) to what the pooled ES leaves."""
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
    if row["es_99_pooled_usd"] is not None:
        steps.append(WaterfallStep("Pooled ES 99 %", -row["es_99_pooled_usd"]))
        steps.append(WaterfallStep("Left after a 1 % tail", row["equity_usd"] - row["es_99_pooled_usd"], "total"))
    return waterfall_chart(steps, title="Equity by account and what the pooled requirement leaves")


def _heat_map(positions: Sequence[Row]) -> Markup | None:
    """The chart of Euler contributions by venue and asset; the smallest go into one row and one column."""
    if not positions:
        return None
    rows: list[str | None] = [*_largest(positions, "venue", HEAT_MAP_ROWS)]
    columns: list[str | None] = [*_largest(positions, "asset", HEAT_MAP_COLUMNS)]
    cells: dict[tuple[str | None, str | None], HeatCell] = {}
    for position in positions:
        # "" stands for all others and None for the total: no name from data is either
        venue = name if (name := position["venue"] or "no venue") in rows else ""
        asset = name if (name := position["asset"] or "no asset") in columns else ""
        for key in ((venue, asset), (venue, None), (None, asset), (None, None)):
            before = cells.get(key, HeatCell(0.0, 0.0))
            cells[key] = HeatCell(before.value + position["es_99_usd"], before.note + position["value_usd"])
    rows += [*([""] if ("", None) in cells else []), None]
    columns += [*([""] if (None, "") in cells else []), None]
    grid = [[cells.get((row, column)) for column in columns] for row in rows]
    words = {"": "other", None: "total"}
    shown_rows, shown_columns = ([words.get(name, name or "") for name in names] for names in (rows, columns))
    return heat_map(shown_rows, shown_columns, grid, title="Contribution to the pooled ES 99 % by venue and asset")


def _largest(positions: Sequence[Row], column: str, count: int) -> list[str]:
    """Names of the `count` largest groups by the sum of absolute contributions."""
    sums: dict[str, float] = {}
    for position in positions:
        name = position[column] or f"no {column}"
        sums[name] = sums.get(name, 0.0) + abs(position["es_99_usd"])
    return [name for name, _ in sorted(sums.items(), key=lambda pair: (-pair[1], pair[0]))[:count]]


def _worst(scenario: Row) -> Row:
    """A worst scenario with its main drivers and its main moves: three prices, two vols, every peg off by 0.2 %."""
    where = f"scenarios_worst of scenario {scenario['scenario']}"
    drivers = _json(scenario["drivers"], f"{where}, drivers")
    moves: dict[str, float] = _json(scenario["moves"], f"{where}, moves")
    ranked = sorted(moves.items(), key=lambda pair: (-abs(pair[1]), pair[0]))
    vols = [pair for pair in ranked if pair[0].startswith("vol:")]
    pegs = [pair for pair in ranked if pair[0].startswith("peg:") and abs(pair[1]) >= 0.002]
    prices = [pair for pair in ranked if not pair[0].startswith(("vol:", "peg:"))]
    return {
        **scenario,
        "drivers": drivers[:3],
        "drivers_more": max(0, len(drivers) - 3),
        "moves": [(_factor_name(name), move) for name, move in (*prices[:3], *vols[:2], *pegs[:2])],
        "liquidated": _json(scenario["liquidated"], f"{where}, liquidated"),
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
    """A log move in percent; a rise beyond tenfold is no more than far."""
    if log_move is None:
        return None
    return "> +1,000 %" if log_move > log(11.0) else move(expm1(log_move))


def _positions(positions: Sequence[Row], portfolio: Row) -> Row:
    """Position rows by contribution, the ends of a long list, and the sums over all of them."""
    pooled = portfolio["es_99_pooled_usd"]
    rows = [{**p, "share": p["es_99_usd"] / pooled if pooled and pooled > 0 else None} for p in positions]
    if len(rows) > POSITION_ROWS_TOP + POSITION_ROWS_BOTTOM:
        head, middle, foot = (
            rows[:POSITION_ROWS_TOP],
            rows[POSITION_ROWS_TOP:-POSITION_ROWS_BOTTOM],
            rows[-POSITION_ROWS_BOTTOM:],
        )
    else:
        head, middle, foot = rows, [], []

    def sums(some: Sequence[Row]) -> Row:
        isolated = [p["es_99_isolated_usd"] for p in some]
        return {
            "count": len(some),
            "value_usd": sum(p["value_usd"] for p in some),
            "es_99_isolated_usd": None if any(x is None for x in isolated) else sum(isolated),
            "es_99_usd": sum(p["es_99_usd"] for p in some),
            "es_995_usd": sum(p["es_995_usd"] for p in some),
            "share": sum(p["es_99_usd"] for p in some) / pooled if pooled and pooled > 0 else None,
        }

    widest = max((abs(p["share"]) for p in rows if p["share"] is not None), default=0.0) or 1.0
    return {"head": head, "foot": foot, "middle": sums(middle), "total": sums(rows), "widest": widest}


# -- words and numbers ---------------------------------------------------------------------------------------------


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise StoreError(f"{where}: expected JSON, found {text[:40]!r} ({error})") from error


def _limited(rows: Sequence[Any], count: int) -> _Limited:
    return _Limited(list(rows[:count]), max(0, len(rows) - count))


def _decimals(amounts: Iterable[float | None]) -> int:
    """Decimals of the USD columns: cents only for small books."""
    return 2 if max((abs(amount) for amount in amounts if amount is not None), default=0.0) < 10_000 else 0


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _signed(text: str) -> str:
    """A typographic minus, and no sign on a figure that is all zeros."""
    if text.startswith("-"):
        return text[1:] if not text.strip("-0.,") else _MINUS + text[1:]
    return text


def _words(amount: float | None) -> str | Markup:
    return _NOT_AVAILABLE if amount is None else f"USD{NO_BREAK}{compact(amount)}"


def full(amount: float | None, decimals: int = 0) -> str | Markup:
    """A figure in full with thousands separators; n/a for None."""
    return _NOT_AVAILABLE if amount is None else _signed(f"{amount:,.{decimals}f}")


def native(amount: float | None) -> str | Markup:
    """A figure in a unit of unknown worth (USDT or BTC): two decimals from 100 on, else up to six that carry digits."""
    if amount is None:
        return _NOT_AVAILABLE
    decimals = 2 if abs(amount) >= 100 or amount == 0 else 4 if abs(amount) >= 1 else 6
    return _signed(f"{amount:,.{decimals}f}")


def difference(amount: float | None, reported: float | None) -> str | Markup:
    """Recomputed minus reported as a fraction of the reported figure; the plain figure when that is zero."""
    if amount is None or reported is None:
        return _NOT_AVAILABLE
    if reported == 0:
        return native(amount)
    share = amount / abs(reported)
    if abs(share) < 5e-9:
        return "0 %"
    return percent(share, 4) if abs(share) >= 5e-7 else "< 0.0001 %"


def percent(share: float | None, decimals: int = 2) -> str | Markup:
    """A fraction in percent; one that is not zero but rounds to it is shown as below the last digit."""
    if share is None:
        return _NOT_AVAILABLE
    text = f"{share * 100:.{decimals}f}"
    if share != 0 and not text.strip("-0."):
        bound = f"{10.0**-decimals:.{decimals}f} %"
        return f"< {bound}" if share > 0 else f"> {_MINUS}{bound}"
    return f"{_signed(text)} %"


def part(amount: float | None, whole: float | None) -> str | Markup:
    """`amount` as a share of a positive `whole`; n/a otherwise."""
    return _NOT_AVAILABLE if amount is None or whole is None or whole <= 0 else percent(amount / whole, 1)


def move(share: float) -> str:
    """A relative move in percent with its sign."""
    return f"+{share * 100:.1f} %" if share > 0 else f"{_signed(f'{share * 100:.1f}')} %"


def price(amount: float | None) -> str | Markup:
    """A price with six digits that carry, and no more than twelve decimals."""
    if amount is None:
        return _NOT_AVAILABLE
    decimals = 2 if amount == 0 else min(12, max(0, 5 - floor(log10(abs(amount)))))
    return _signed(f"{amount:,.{decimals}f}")


def ratio(number: float | None) -> str | Markup:
    """A ratio with three decimals; large ones with fewer, absurd ones as a bound."""
    if number is None:
        return _NOT_AVAILABLE
    if abs(number) >= 1e6:
        return "> 1,000,000" if number > 0 else f"< {_MINUS}1,000,000"
    return _signed(f"{number:,.3f}" if abs(number) < 100 else f"{number:,.1f}")


def times(number: float | None) -> str | Markup:
    """A multiple such as 3.21 times, as 3.21 ×."""
    return _NOT_AVAILABLE if number is None else f"{_signed(f'{number:,.2f}')}{NO_BREAK}×"


def far(share: float | None) -> str | Markup:
    """The distance of health to its trigger in percent; beyond tenfold it is no more than far."""
    if share is None:
        return _NOT_AVAILABLE
    return "> 1,000 %" if share > 10 else percent(share, 1)


def moment(time: datetime | None) -> str | Markup:
    """A time as 2024-06-30 12:00:00 UTC."""
    return _NOT_AVAILABLE if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def short(text: str | None, length: int = 40) -> str | Markup:
    """A name; the middle of a long one is cut out and the whole kept in its title."""
    if text is None or text == "":
        return Markup('<span class="na">–</span>')
    if len(text) <= length:
        return text
    tail = length // 3
    return Markup('<span title="{}">{}…{}</span>').format(text, text[: length - 1 - tail], text[-tail:])


def _factor_name(factor: str) -> str:
    kind, _, name = factor.partition(":")
    return f"{name} {kind}" if name else factor


def _finished(value: Any) -> Any:
    """What every expression of the template passes: escaped, printable, and without anything that reads as an address.

    A data string may hold an address; written with a character reference it looks the same, and neither a browser, a
    mail client nor a search over the file takes it for a link. A percent sign stays on the line of its figure.
    """
    if value is None:
        return _NOT_AVAILABLE
    return Markup(str(escape(value)).translate(_UNPRINTABLE).replace("://", "&#58;//").replace(" %", f"{NO_BREAK}%"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("aggregator", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finished,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "compact": compact,
        "difference": difference,
        "far": far,
        "full": full,
        "moment": moment,
        "move": move,
        "native": native,
        "part": part,
        "percent": percent,
        "price": price,
        "ratio": ratio,
        "short": short,
        "times": times,
        "words": _words,
    }
    environment.filters.update(filters)
    return environment
