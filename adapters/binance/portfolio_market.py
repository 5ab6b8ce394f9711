"""Market-wide answers of portfolio margin: collateral rates, asset indices, loan leverages; its dated parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Any

from aggregator.errors import ConfigurationError, FailureReason

from ..adapter import parameter_table
from ..amounts import FieldError, positive_at
from ..fields import records_of
from ..rows import Rows
from ..transport import Payload
from .market import PARAMETER_FILE, VENUE
from .parse import unique_lines
from .portfolio_parse import CollateralRates, asset_index_price, collateral_rates, loan_leverage

LEVERAGE, RATES, INDEX = (
    "portfolio/margin-asset-leverage",
    "portfolio/collateralRate",
    "portfolio/asset-index-price",
)
STATUSES = ("normal", "warning", "reduce_only", "liquidation")
"""Statuses of an account in the dated file, from the calmest on."""


@dataclass
class PortfolioMarket:
    """Market-wide answers and dated parameters of portfolio margin."""

    rates: dict[str, CollateralRates] = field(default_factory=dict)
    indices: dict[str, tuple[Decimal, Payload]] = field(default_factory=dict)
    leverage: dict[str, Decimal] = field(default_factory=dict)
    default_leverage: Decimal | None = None
    loan_rates: dict[Decimal, Decimal] = field(default_factory=dict)
    """Maintenance rate of a loan by its leverage."""
    floor_in: str = "tokens"
    trigger: Decimal | None = None
    """uniMMR at which the venue liquidates."""


def read_portfolio_market(
    rows: Rows, payloads: Mapping[str, Sequence[Payload]], parameters: Mapping[str, Any]
) -> PortfolioMarket:
    """Collateral rates, asset indices and loan leverages, and the dated table of loan rates.

    Raises `ConfigurationError` for a parameter file whose table is none.
    """
    out = PortfolioMarket()
    for payload in payloads.get(RATES, ()):
        with rows.guard(payload.name):
            for line in unique_lines(
                rows, payload.name, records_of(payload.body), collateral_rates, key=lambda line: line.asset
            ):
                out.rates[line.asset] = line
    for payload in payloads.get(INDEX, ()):
        with rows.guard(payload.name):
            for asset, price in unique_lines(
                rows, payload.name, records_of(payload.body), asset_index_price, key=lambda line: line[0]
            ):
                out.indices[asset] = price, payload
    uni_mmr_statuses(parameters)  # what is wrong with them is said now, not when somebody needs them
    out.leverage = loan_leverages(rows, payloads.get(LEVERAGE, ()))
    dated = parameter_table(parameters, "portfolio_margin", venue=VENUE)
    with rows.guard(PARAMETER_FILE, subject="portfolio_margin"):
        for key in ("loan_leverage", "trigger"):
            if key in dated:
                number = positive_at(dated, key, "portfolio_margin")
                if key == "trigger":
                    out.trigger = number
                else:
                    out.default_leverage = number
        rates = parameter_table(dated, "loan_rates", venue=VENUE)
        for leverage in rates:
            number = positive_at({"leverage": leverage}, "leverage", "portfolio_margin.loan_rates")
            out.loan_rates[number] = positive_at(rates, leverage, "portfolio_margin.loan_rates")
        out.floor_in = str(dated.get("collateral_floor_in", "tokens"))
        if out.floor_in not in ("tokens", "value"):
            path = "portfolio_margin.collateral_floor_in"
            raise FieldError(path, FailureReason.MALFORMED, f"{out.floor_in[:20]!r} is neither tokens nor value")
    return out


def uni_mmr_statuses(parameters: Mapping[str, Any]) -> tuple[tuple[str, Decimal], ...]:
    """The dated statuses of an account by the uniMMR above which each holds, descending; empty without a table of them.

    Raises `ConfigurationError` naming the key for a status that is none of the documented ones or is missing, and for a
    figure that is no positive number or not below that of the calmer status.
    """
    path = "portfolio_margin.uni_mmr_statuses"
    table = parameter_table(
        parameter_table(parameters, "portfolio_margin", venue=VENUE), "uni_mmr_statuses", venue=VENUE
    )
    if not table:
        return ()
    for name in table:
        if name not in STATUSES:
            raise ConfigurationError(f"parameters of {VENUE}: {path}: unknown status {name!r:.40}")
    try:
        found = tuple((name, positive_at(table, name, path)) for name in STATUSES)
    except FieldError as error:
        raise ConfigurationError(f"parameters of {VENUE}: {error.path}: {error.message}") from None
    for (calmer, above), (name, figure) in pairwise(found):
        if figure >= above:
            message = f"{path}.{name}: {figure} is not below the {above} of {calmer}"
            raise ConfigurationError(f"parameters of {VENUE}: {message}")
    return found


def loan_leverages(rows: Rows, payloads: Sequence[Payload], account: str | None = None) -> dict[str, Decimal]:
    """Leverage of loans by asset; what is wrong with an answer fails `account`."""
    out: dict[str, Decimal] = {}
    for payload in payloads:
        with rows.guard(payload.name, account_id=account):
            entries = records_of(payload.body)
            out |= dict(
                unique_lines(
                    rows, payload.name, entries, loan_leverage, key=lambda line: line[0], account=lambda record: account
                )
            )
    return out
