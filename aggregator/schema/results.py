"""What a run leaves: every result table by name and its key columns; the row of the run, the tables of a screen and the
failures are defined here.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from .canonical import FAILURES
from .detail_tables import (
    ALLOCATION,
    FACTORS,
    GREEKS,
    LIQUIDATION_PRICES,
    LOSS_HISTOGRAM,
    RESULT_NODES,
    RESULT_ROUTES,
    REVERSE_STRESS,
    SCENARIOS_WORST,
)
from .fields import field, flag, number, result_schema, text, time
from .headline_tables import (
    ACCOUNT_MARGIN,
    NODE_MARGIN,
    PORTFOLIO_MARGIN,
    RECONCILIATION,
    REQUIREMENT,
    STRESS,
)

RUNS = result_schema(
    "runs",
    [
        time("started_at"),
        time("finished_at"),
        number("duration_s", "s"),
        time("as_of"),
        text("snapshot_hash", "SHA-256"),
        text("configuration_digest", "SHA-256"),
        text("run_digest", "SHA-256 of snapshot, files, configuration, seed and code version"),
        text("configuration", "resolved configuration, JSON"),
        text("inputs", "JSON list of {venue, request, name, sha256}: payloads, parameter files, history"),
        text("code_version"),
        text("versions", "JSON of library versions"),
        text("device", "device kind and count"),
        field("seed", pa.int64(), "seed"),
        text("generator"),
        field("scenarios", pa.int64(), "count"),
        number("horizon_days", "days"),
        field("shards", pa.int32(), "count"),
        field("portfolios", pa.int64(), "count"),
        field("portfolios_incomplete", pa.int64(), "count"),
        field("accounts", pa.int64(), "count"),
        field("failures", pa.int64(), "count"),
        text("conditions", "JSON list of {condition, code, message}"),
        text("notes", "JSON list of what the requirement leaves out, and why", nullable=True),
        text("kind", "sweep | screen; null is a sweep", nullable=True),
    ],
    version=3,
)

SCREEN_PORTFOLIOS = result_schema(
    "screen_portfolios",
    [
        text("portfolio_id"),
        text("engine", "netted | general"),
        text("engine_reason", "why the fast engine does not cover it; null where it does", nullable=True),
        flag("complete"),
        text("accounts_left_out", "JSON list of account ids"),
        number("left_out_gross_usd", "USD, last known gross value of what is left out", nullable=True),
        text("status", "ok | incomplete | no_complete_account | calculation"),
        field("accounts", pa.int64(), "complete accounts counted"),
        number("equity_usd", "USD at market value", nullable=True),
        number("mean_loss_usd", "USD", nullable=True),
        number("worst_loss_usd", "USD", nullable=True),
        number("var_99_pooled_usd", "USD", nullable=True),
        number("es_99_pooled_usd", "USD", nullable=True),
        number("var_995_pooled_usd", "USD", nullable=True),
        number("es_995_pooled_usd", "USD", nullable=True),
        number("equity_to_es_99", "ratio", nullable=True),
        number("p_liquidation_any_at_horizon", "probability", nullable=True),
        number("p_liquidation_largest", "probability", nullable=True),
        text("p_liquidation_largest_account", nullable=True),
        number(
            "p_liquidation_unified_at_horizon",
            "probability that all accounts as one would be liquidated; null of the general engine",
            nullable=True,
        ),
        number(
            "bad_debt_usd",
            "USD, expected sum over accounts of what their equity falls below zero; null of the general engine",
            nullable=True,
        ),
    ],
)

SCREEN_ACCOUNTS = result_schema(
    "screen_accounts",
    [
        text("portfolio_id"),
        text("account_id"),
        text("node"),
        text("venue"),
        text("engine", "netted | general"),
        text("status", "ok | incomplete | calculation"),
        number("equity_usd", "USD at market value", nullable=True),
        number("equity_mean_usd", "USD at the horizon; null of the general engine", nullable=True),
        number("p_liquidation_at_horizon", "probability", nullable=True),
        number("bad_debt_usd", "USD, expected; null of the general engine", nullable=True),
    ],
)

RUN_FAILURES = pa.schema([text("run_id"), *FAILURES], metadata=FAILURES.metadata)

RESULTS: Mapping[str, pa.Schema] = {
    "runs": RUNS,
    "portfolio_margin": PORTFOLIO_MARGIN,
    "account_margin": ACCOUNT_MARGIN,
    "node_margin": NODE_MARGIN,
    "requirement": REQUIREMENT,
    "nodes": RESULT_NODES,
    "routes": RESULT_ROUTES,
    "stress": STRESS,
    "allocation": ALLOCATION,
    "scenarios_worst": SCENARIOS_WORST,
    "greeks": GREEKS,
    "liquidation_prices": LIQUIDATION_PRICES,
    "reverse_stress": REVERSE_STRESS,
    "loss_histogram": LOSS_HISTOGRAM,
    "factors": FACTORS,
    "reconciliation": RECONCILIATION,
    "screen_portfolios": SCREEN_PORTFOLIOS,
    "screen_accounts": SCREEN_ACCOUNTS,
    "failures": RUN_FAILURES,
}
"""Every result table by name. `runs` is written last; readers ignore rows of a run that has no row in it."""

RESULT_KEYS: Mapping[str, tuple[str, ...]] = {
    "runs": ("run_id",),
    "portfolio_margin": ("run_id", "portfolio_id"),
    "account_margin": ("run_id", "portfolio_id", "account_id"),
    "node_margin": ("run_id", "portfolio_id", "node"),
    "requirement": ("run_id", "portfolio_id", "scope", "level"),
    "nodes": ("run_id", "portfolio_id", "point"),
    "routes": ("run_id", "portfolio_id", "kind", "name", "source", "target"),
    "stress": ("run_id", "portfolio_id", "stress"),
    "allocation": ("run_id", "portfolio_id", "level", "key"),
    "scenarios_worst": ("run_id", "portfolio_id", "rank"),
    "greeks": ("run_id", "portfolio_id", "underlying"),
    "liquidation_prices": ("run_id", "portfolio_id", "account_id", "subject"),
    "reverse_stress": ("run_id", "portfolio_id", "kind", "subject"),
    "loss_histogram": ("run_id", "portfolio_id", "bin"),
    "factors": ("run_id", "factor"),
    "reconciliation": ("run_id", "portfolio_id", "account_id", "figure"),
    "screen_portfolios": ("run_id", "portfolio_id"),
    "screen_accounts": ("run_id", "portfolio_id", "account_id"),
    "failures": ("run_id", "venue", "payload", "path", "subject", "reason", "message"),
}
"""Key columns by result table, which is also its sort order."""
