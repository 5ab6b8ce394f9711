"""Portfolio margin as far as this release goes: the venue's own figures are kept, nothing is computed.

An account's row carries the reported equity (after haircuts), maintenance margin and uniMMR, and fails as unsupported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aggregator.errors import FailureReason
from aggregator.rule_forms import component_rows

from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from .market import VENUE, Catalog, RuleSets
from .parse import collateral_rate, listed, portfolio_margin_line, unique_lines
from .rules import PORTFOLIO_MARGIN, portfolio_collateral_rows, portfolio_margin_components, rule_set_id

PORTFOLIO = "portfolio"
"""Part of the account id."""
PORTFOLIO_ACCOUNT = "portfolio/account"


def read_portfolio_margin(rows: Rows, owner: str, payload: Payload | None, *, rule_sets: RuleSets) -> None:
    """The account row of a portfolio-margin account, and the failure that says that no rule computes it yet.

    Without a usable payload the row has no reported figures.
    """
    account = account_id(VENUE, owner, PORTFOLIO)
    rule_set = rule_set_id(PORTFOLIO_MARGIN)
    rule_sets.components.setdefault(rule_set, portfolio_margin_rows())
    columns: dict[str, Any] = {
        "account_id": account,
        "node": account,
        "venue": VENUE,
        "owner": owner,
        "margin_mode": "portfolio",
        "rule_set": rule_set,
        "settlement_asset": "USD",
        "received_at": payload.received_at if payload else None,
    }
    name = payload.name if payload else ""
    if payload is not None:
        with rows.guard(name, subject=account, account_id=account):
            line = portfolio_margin_line(payload.body)
            columns |= {
                "reported_equity": line.equity,
                "reported_initial_margin": line.initial,
                "reported_maintenance_margin": line.maintenance,
                "reported_health": line.uni_mmr,
            }
    rows.add("accounts", **columns)
    rows.fail(
        FailureReason.UNSUPPORTED,
        "portfolio margin is reported by the venue but not computed in this release",
        payload=name,
        subject=account,
        account_id=account,
    )


def portfolio_margin_rows() -> list[dict[str, Any]]:
    """Rule-set rows of portfolio margin."""
    return component_rows(rule_set_id(PORTFOLIO_MARGIN), portfolio_margin_components(), source="portfolio/account")


def read_collateral_rates(rows: Rows, payloads: Sequence[Payload], catalog: Catalog, *, rule_sets: RuleSets) -> None:
    """Collateral tiers of the portfolio-margin rule set; an asset that is not in the asset book is left out."""
    rule_set = rule_set_id(PORTFOLIO_MARGIN)
    for payload in payloads:
        with rows.guard(payload.name):
            for asset, rate in unique_lines(
                rows, payload.name, listed(payload.body), collateral_rate, key=lambda line: line[0]
            ):
                if catalog.asset(asset):
                    rule_sets.components.setdefault(rule_set, portfolio_margin_rows())
                    rows.rows["collateral_tiers"].extend(portfolio_collateral_rows(rule_set, asset, rate))
