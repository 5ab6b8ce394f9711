"""Writes the reference page that is generated from `aggregator.schema`: the canonical tables and the result tables.

    .venv/bin/python -P docs/generate_schema.py

`tests/test_docs.py` fails when the page is not what this program writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from aggregator.schema.canonical import CANONICAL, KEYS
from aggregator.schema.fields import describe, table_version
from aggregator.schema.results import RESULT_KEYS, RESULTS

PAGE = "schema.md"

_GENERATED = "<!-- Generated from aggregator/schema/: .venv/bin/python -P docs/generate_schema.py. Do not edit. -->"

_INTRODUCTION = """\
Two sets of tables, by name and version. The **canonical tables** are what every venue becomes: write them and any
program can bring a venue, a desk or a book of its own into a run, without an adapter, by the venue `tables`
([below](#writing-canonical-tables)). The **result tables** are what a run leaves.

A table's version is a whole number in the metadata of its Arrow schema. A new nullable column, a new word in a closed
list or a change of meaning is a new version, and the [changelog](../CHANGELOG.md) names it; a source that states
another version is refused, one that states none is taken as the current one."""

_CANONICAL_INTRODUCTION = """\
What an adapter emits and the snapshot checks. Every Arrow schema carries the table's name and version in its metadata
(`crossmargin.table`, `crossmargin.version`) and every field its unit (`unit`). `crossmargin schema` prints the same.

- Ids are strings: an asset is `<SYMBOL>` on an exchange and `<SYMBOL>@<chain>` on a chain, an instrument
  `<venue>:<venue symbol>`, an account `<venue>:<owner>[:<part>]`, an expiry's marks `<underlying>@<time of expiry>`.
- Times are UTC with microseconds. Exact quantities and money are `decimal128(38, 18)`, below 1e20 in size; measured
  values are `double` and finite.
- Long is positive. A debt is a row of `balances` with side `liability` and a positive quantity. Rates are fractions.
- A column marked "(information)" is kept for people and other programs: no figure of a run looks at it.
- Two rows of equal key are duplicates. Copies of a row of a shared table (assets, instruments, marks, market state,
  rules and tiers) that agree in full are one row; of anything else, all copies are rejected.

How the tables are filled and checked: [the path of the data](data-path.md). What the `parameters` of a rule set hold:
[rule forms](rule-forms.md).

### Writing canonical tables

One file per table, named in the configuration by the table's name: Parquet, Arrow IPC (file or stream) or CSV; from
Python any object with the Arrow C stream interface (`adapters.tables`). Columns go by name; nullable ones may be
absent, unknown ones are refused. Types are cast exactly: decimals from text or integers without passing through binary
floating point, times with an offset. A row that the schema refuses becomes a failure and the others stay; rows of equal
key are all rejected. `venue` may be any name of your own; `rule_set` refers to rows of `rule_sets` that you bring, in
the [forms](rule-forms.md) that exist."""

_RESULT_INTRODUCTION = """\
What a run writes, one Delta table per name below the store's root. What the numbers mean and how to read them:
[results](results.md). A figure that was not computed is null and the row's `status` says why; nothing that was not
computed is 0. Losses and requirements are positive."""

_CANONICAL_ROWS: Mapping[str, str] = {
    "accounts": "One row per account: what a venue liquidates (a cross account, an isolated position, a position in a "
    "lending market). Accounts of one `node` share collateral at once and without limit. The `reported_` columns are "
    "the venue's own figures, unchanged.",
    "balances": "One row per account, asset and side.",
    "positions": "One row per account, instrument and side mode. Market value today is quantity × contract size × "
    "(mark − entry price) + unsettled funding + realized profit (linear), for an option quantity × contract size × "
    "model price or, where the rule set says so, the venue's own mark.",
    "open_orders": "One row per resting order. The tiered forms count them where the rule set says so; what else a "
    "venue takes for orders its adapter computes from its rules or takes as reported.",
    "assets": "One row per asset that anything refers to, with the factors that move it.",
    "instruments": "One row per instrument of a venue.",
    "marks": "One row per venue, subject and field. A mark with an `account_id` came inside that account's payload and "
    "goes before the venue's own mark for that account.",
    "market_state": "One row per venue, market and field: open interest, skew, pools, indices, caps, status words, "
    "with the time they hold at; what of them enters a requirement, the adapter's rules have used. With an account as "
    "market: `reconciliation_note` and `order_margin`, see [reconciliation](reconcile.md).",
    "rule_sets": "One row per component of a rule set, and one verdict row.",
    "margin_tiers": "One row per rule set, market and tier: `notional × maintenance_rate − deduction` in the tier of "
    "the notional. Deductions that continue the tier below make it the integral of the rates; deductions of 0 in many "
    "tiers charge the whole notional at the tier's rate.",
    "collateral_tiers": "One row per rule set, asset (or instrument, for the profit of its positions), lending "
    "category and tier: what the slice above the floor counts.",
    "routes": "One row per pair of nodes and asset: how collateral moves between them, by the "
    "[transfer model](transfer-constrained-margin.md) before any route of its file. For tables of one's own; no "
    "adapter fills it.",
    "failures": "One row per row or payload that could not be used. The reasons: [the path of the data](data-path.md).",
}

_RESULT_ROWS: Mapping[str, str] = {
    "runs": "One row per finished run; rows of the other tables count only once their run has its row here.",
    "portfolio_margin": "One row per portfolio: the headline.",
    "account_margin": "One row per account that was read: the venue's rules, in the account's own unit, beside the "
    "venue's own figures.",
    "node_margin": "One row per node: what its losses need when nothing comes in from outside.",
    "requirement": "The stack of the unified requirement, by node and for everything pooled, at both levels: "
    "[the requirement](requirement.md).",
    "nodes": "One row per point among which collateral travels: the nodes, and withdrawal limits and brokers, which "
    "hold nothing ([transfer-constrained margin](transfer-constrained-margin.md)). For the `detail_top` portfolios of "
    "a run with a routes file.",
    "routes": "One row per route between two points, one per channel that routes lead through, and one for all routes "
    "at once; of a channel the columns tell what its failure costs. For the `detail_top` portfolios of a run with a "
    "routes file.",
    "stress": "One row per portfolio and named stress of the library: [stresses](stress.md).",
    "allocation": "Euler contributions to the pooled expected shortfall by venue, by asset and by position; each level "
    "adds up to it. For the `detail_top` portfolios.",
    "scenarios_worst": "The largest pooled losses, what drives them and who is liquidated in them. For the "
    "`detail_top` portfolios.",
    "greeks": "First-order sensitivities by underlying. For the `detail_top` portfolios.",
    "liquidation_prices": "One row per account and position (its own mark moves alone), balance or underlying "
    "(everything moves that depends on its price): the nearest liquidation price on each side. For the `detail_top` "
    "portfolios.",
    "reverse_stress": "The nearest joint move of the factors that liquidates something, for the portfolio and for each "
    "account, and the nearest move of each price alone: [reverse stress](reverse-stress.md). For the `detail_top` "
    "portfolios.",
    "loss_histogram": "Probability of the pooled loss by bins of equal width. For the `detail_top` portfolios.",
    "factors": "One row per risk factor of the run: its spread over the horizon and where its law comes from.",
    "reconciliation": "One row per account and figure: ours, the venue's own, and what explains a difference. What the "
    "columns mean: [reconciliation](reconcile.md).",
    "screen_portfolios": "One row per portfolio of a screen: tail, liquidation and bad debt without the requirement "
    "stack ([screens](results.md#screens)).",
    "screen_accounts": "One row per account of a screen.",
    "failures": "Everything that could not be read, checked or computed.",
}


def section(
    title: str,
    introduction: str,
    tables: Mapping[str, pa.Schema],
    keys: Mapping[str, Sequence[str]],
    rows: Mapping[str, str],
) -> str:
    """Markdown of one set of tables: an introduction, and for every table its rows, key, and columns with type and
    unit.
    """
    parts = [f"## {title}", introduction]
    for name, schema in tables.items():
        key = ", ".join(f"`{column}`" for column in keys.get(name, ())) or "none"
        lines = [f"### {name}", "", rows[name], "", f"Version {table_version(schema)[1]}. Key: {key}.", ""]
        lines += ["| column | type | null | unit or meaning |", "|---|---|---|---|"]
        for column in describe(schema):
            unit = column["unit"].replace("|", "\\|") + (" (information)" if "use" in column else "")
            lines.append(f"| `{column['name']}` | {column['type']} | {'yes' if column['nullable'] else ''} | {unit} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def pages() -> dict[str, str]:
    """Text of every generated page by file name."""
    parts = [
        "# The schema",
        _GENERATED,
        _INTRODUCTION,
        section("Canonical tables", _CANONICAL_INTRODUCTION, CANONICAL, KEYS, _CANONICAL_ROWS),
        section("Result tables", _RESULT_INTRODUCTION, RESULTS, RESULT_KEYS, _RESULT_ROWS),
    ]
    return {PAGE: "\n\n".join(parts) + "\n"}


if __name__ == "__main__":
    for name, text in pages().items():
        (Path(__file__).resolve().parent / name).write_text(text, encoding="utf-8", newline="\n")
