"""The rules of one account at Deribit, put together from what is known: rates, option formulas, matrices, haircuts.

Raises `FieldError` where a rule lacks something, so that the account is incomplete and never computed without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import FailureReason
from aggregator.rule_forms import Component, PriceVolGrid

from ..amounts import FieldError, joined
from ..rows import Rows
from ..symbols import instrument_id
from ..transport import Payload
from .market import DeribitCatalog, MarketData
from .parse import IdleLine, Model, OtherMargin, PositionLine, SummaryLine
from .rules import (
    PARAMETER_FILE,
    VENUE,
    ModelParameters,
    RuleBook,
    contract_margin,
    currency_weight_row,
    portfolio_components,
    risk_grid,
    standard_components,
    tier_row,
)

CROSS = "cross"
"""Part of the account id of a cross-collateral account."""

# Figures of one answer agree but for their digits and the moment of the index.
_RELATIVE = Decimal("1e-4")
_SIMULATED_DIFFERENCE = Decimal("0.01")
# Vol states per price bucket that are known.
_VOL_SCENARIOS = 3


@dataclass
class Account:
    """An account under construction; `part` names it among the owner's."""

    owner: str
    part: str
    unit: str
    model: Model
    lines: dict[str, SummaryLine] = field(default_factory=dict)
    payload: Payload | None = None
    positions: list[tuple[PositionLine, Payload]] = field(default_factory=list)
    mentioned: bool = False
    idle: list[IdleLine] = field(default_factory=list)


class Sources(NamedTuple):
    """Where rules come from: what the markets say, the parameter file, and the owner's simulations."""

    rows: Rows
    catalog: DeribitCatalog
    market: MarketData
    book: RuleBook
    parameters: ModelParameters | None
    simulated: Sequence[tuple[OtherMargin, Payload]]


class AccountRules(NamedTuple):
    """Components of one account, its rows of `margin_tiers` and `collateral_tiers`, their source, and whether they hold
    the margin of its open orders.
    """

    components: list[Component]
    tiers: list[dict[str, Any]]
    weights: list[dict[str, Any]]
    source: str
    has_order_margin: bool = True


def rule_set_of(owner: str, account: Account) -> str:
    """Id of an account's own rule set."""
    return f"{VENUE}:{'pm' if account.model.portfolio else 'sm'}:{owner}:{account.part}".rstrip(":")


def account_rules(home: str, account: Account, of: Sources) -> AccountRules:
    """The rules of one account; raises `FieldError`."""
    weights = _weights(home, account, of) if account.model.cross else []
    rules = _portfolio_rules(home, account, of) if account.model.portfolio else _standard_rules(home, account, of)
    return rules._replace(weights=weights)


def implied_index(line: SummaryLine) -> Decimal | None:
    """USD per unit that a cross row states by giving one total in both: good to the digits of the smaller one."""
    if not line.model.cross or not line.margin_balance or line.total_margin_balance is None:
        return None
    price = line.total_margin_balance / line.margin_balance
    return price if price > 0 else None


def _weights(home: str, account: Account, of: Sources) -> list[dict[str, Any]]:
    """Haircuts of every currency that the account has value in: live ones of the matrix, else dated ones."""
    rule_set = rule_set_of(account.owner, account)
    out: list[dict[str, Any]] = []
    currencies = {c for c, line in account.lines.items() if line.cash}
    currencies |= {line.instrument.settlement for line, _ in account.positions}
    name = account.payload.name if account.payload else ""
    for currency in sorted(currencies):
        asset = of.catalog.named.asset(currency)
        if asset is None:
            continue  # its balance has failed already
        dated = of.book.haircuts.get(currency)
        haircut = _haircut(currency, account, of)
        if haircut is None:
            message = f"no haircut of {currency} in {PARAMETER_FILE} or any matrix parameters"
            of.rows.fail(FailureReason.MISSING_PARAMETER, message, payload=name, subject=currency, account_id=home)
            continue
        source = f"{PARAMETER_FILE} of {of.book.as_of}" if dated is not None else "matrix parameters"
        out.append(currency_weight_row(rule_set, asset, haircut, source))
    return out


def _haircut(currency: str, account: Account, of: Sources) -> Decimal | None:
    parameters = of.parameters
    live = parameters.currencies.get(currency.lower()) if parameters and account.model.portfolio else None
    return of.book.haircuts.get(currency, live.haircut if live is not None else None)


def _standard_rules(home: str, account: Account, of: Sources) -> AccountRules:
    """Standard margin: a row of rates per future, a contract formula per coin of options, reported order margin."""
    rule_set = rule_set_of(account.owner, account)
    options: set[str] = set()
    tiers = []
    orders = Decimal(0)
    for line, own_payload in account.positions:
        instrument = line.instrument
        if instrument.kind == "option":
            options.add(instrument.base)
        else:
            rates = of.book.futures.get(instrument.base)
            if rates is None:
                raise FieldError(
                    joined(line.path, "instrument_name"),
                    FailureReason.MISSING_PARAMETER,
                    f"no standard margin of {instrument.base} futures in {PARAMETER_FILE}",
                )
            ratio = Decimal(1)
            if not instrument.inverse:
                if line.index_price is None:
                    raise FieldError(
                        joined(line.path, "index_price"),
                        FailureReason.MISSING_MARK,
                        f"no index price of {instrument.name}, at which its margin is charged",
                    )
                ratio = line.index_price / line.mark_price
            tiers.append(tier_row(rule_set, instrument_id(VENUE, instrument.name), rates, price_ratio=ratio))
        if line.order_margin is None:
            of.rows.fail(
                FailureReason.MISSING_FIELD,
                f"field 'open_orders_margin' of {instrument.name} is missing: no margin of its orders",
                payload=own_payload.name,
                path=joined(line.path, "open_orders_margin"),
                subject=home,
                account_id=home,
            )
            continue
        orders += _order_margin(account, line, line.order_margin, of)
    orders += sum((_order_margin(account, idle, idle.order_margin, of) for idle in account.idle), Decimal(0))
    forms = []
    for base in sorted(options):
        rates_of_options = of.book.options.get(base)
        if rates_of_options is None:
            message = f"no standard margin of {base} options in {PARAMETER_FILE}"
            raise FieldError("", FailureReason.MISSING_PARAMETER, message)
        if of.catalog.named.asset(base) is not None:
            forms.append(contract_margin(rates_of_options, [of.catalog.named.risk_symbol(base)]))
    components = standard_components(cross=account.model.cross, options=forms, order_margin=orders)
    return AccountRules(components, tiers, [], f"{PARAMETER_FILE} of {of.book.as_of}: {of.book.source}")


def _order_margin(account: Account, line: PositionLine | IdleLine, margin: Decimal, of: Sources) -> Decimal:
    """A reported margin of orders in the unit of the account."""
    if not account.model.cross or not margin:
        return margin
    currency = line.instrument.settlement
    summary = account.lines.get(currency)
    index = of.market.index.get(currency) or (implied_index(summary) if summary else None)
    if index is None:
        raise FieldError(line.path, FailureReason.MISSING_MARK, f"no index of {currency}")
    return margin * index


def _portfolio_rules(home: str, account: Account, of: Sources) -> AccountRules:
    """Portfolio margin: a risk matrix per coin, and what a simulation of the same portfolio states beside it."""
    parameters = of.parameters
    quotes: dict[str, str] = {}
    for line, _ in account.positions:
        quotes.setdefault(line.instrument.base, line.instrument.quote)
    if account.model.cross:
        for currency, summary in account.lines.items():
            if summary.cash and parameters is not None:
                own = parameters.of(currency, "USD")
                if own is not None and own[1].equity_side_impact != "none":
                    quotes.setdefault(currency, "USD")
    if quotes and parameters is None:
        raise FieldError(
            "",
            FailureReason.MISSING_PARAMETER,
            "no parameters of the risk matrix in any answer or the parameter file",
        )
    grids: list[PriceVolGrid] = []
    for base, quote in sorted(quotes.items()):
        assert parameters is not None
        found = parameters.of(base, quote)
        if found is None:
            message = f"no matrix parameters of {base} in {parameters.source}"
            raise FieldError("", FailureReason.MISSING_PARAMETER, message)
        if parameters.vol_scenarios != _VOL_SCENARIOS and any(
            line.instrument.kind == "option" and line.instrument.base == base for line, _ in account.positions
        ):
            message = f"{parameters.vol_scenarios} vol scenarios: only {_VOL_SCENARIOS} are known"
            raise FieldError("", FailureReason.UNSUPPORTED, message)
        asset = of.catalog.named.asset(base)
        if asset is None:
            continue  # its position or balance has failed already
        pair, currency_parameters = found
        counts = account.model.cross and currency_parameters.equity_side_impact != "none"
        grids.append(
            risk_grid(
                pair,
                currency_parameters,
                parameters,
                underlying=of.catalog.named.risk_symbol(base),
                in_coin=not account.model.cross and base == account.unit,
                collateral=[of.catalog.named.symbol(base)] if counts else (),
            )
        )
    other = _other_margin(home, account, of)
    factor = parameters.maintenance_factor if parameters else Decimal(1)
    basis = "reported spot_margin, mmp_margin and open_orders_margin"
    has_order_margin = True
    if other is not None:
        other_initial = other.spot + other.market_maker_protection + other.open_orders
    else:
        beyond = beyond_the_matrix(account, of)
        has_order_margin, other_initial = beyond is not None, beyond or Decimal(0)
        basis = "reported initial_margin less maintenance_margin over mm_factor"
    components = portfolio_components(
        cross=account.model.cross,
        grids=grids,
        other_initial=other_initial,
        other_basis=basis,
        correlation=other.correlation if other else Decimal(0),
        maintenance_factor=factor,
    )
    source = parameters.source if parameters else of.book.source
    return AccountRules(components, [], [], source, has_order_margin)


def beyond_the_matrix(account: Account, of: Sources) -> Decimal | None:
    """Margin of orders, spot and market-maker protection by a summary that does not name them, in the account's unit.

    The initial margin is the risk matrix, the haircuts of a cross account and these; the maintenance margin is the
    matrix times its factor. None where the summary or a parameter that it takes is not there; 0 within the digits and
    the moment of the figures.
    """
    line = next(iter(account.lines.values()), None)
    if line is None or of.parameters is None:
        return None
    cross = account.model.cross
    initial = line.total_initial if cross else line.initial
    maintenance = line.total_maintenance if cross else line.maintenance
    if initial is None or maintenance is None:
        return None
    haircuts = Decimal(0)
    for currency, summary in account.lines.items() if cross else ():
        haircut = _haircut(currency, account, of)
        index = of.market.index.get(currency) or implied_index(summary)
        if summary.equity > 0 and (haircut is None or index is None):
            return None
        haircuts += max(summary.equity, Decimal(0)) * (haircut or 0) * (index or 0)
    rest = initial - maintenance / of.parameters.maintenance_factor - haircuts
    return rest if rest > _RELATIVE * initial else Decimal(0)


def _other_margin(home: str, account: Account, of: Sources) -> OtherMargin | None:
    """What a simulation of just this account's positions states beside the matrix; others are a finding."""
    keys = (CROSS, "usd") if account.model.cross else (account.unit.lower(),)
    own = [(margin, payload) for margin, payload in of.simulated if margin.key.lower() in keys]
    if len(own) > 1:
        names = ", ".join(payload.name for _, payload in own)
        message = f"several simulations of it: {names}"
        of.rows.fail(FailureReason.DUPLICATE, message, payload=own[-1][1].name, subject=home, account_id=home)
        return None
    if not own:
        return None
    margin, payload = own[0]
    held = {line.instrument.name: _coins(line) for line, _ in account.positions}
    same = set(held) == set(margin.positions) and all(
        abs(margin.positions[name] - size) <= _SIMULATED_DIFFERENCE * abs(size) for name, size in held.items()
    )
    if same:
        return margin
    of.rows.fail(
        FailureReason.INCONSISTENT,
        "the simulation holds other positions than the account, so its margin of orders is not taken",
        payload=payload.name,
        path="portfolio.position",
        subject=home,
    )
    return None


def _coins(line: PositionLine) -> Decimal:
    """Size in base coins."""
    inverse_future = line.instrument.inverse and line.instrument.kind != "option"
    return line.size / line.mark_price if inverse_future else line.size
