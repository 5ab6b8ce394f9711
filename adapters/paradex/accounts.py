"""Accounts of Paradex to canonical rows: balances, positions, open orders, the rule set, the venue's own figures.

Equity is the venue's account value: USDC, other tokens, and unrealized profit with accrued funding. A perpetual's
profit is size * (mark - average entry). The premium of an option is not paid either but is the position's cost, which
the account owes until it closes: it is the position's `realized_pnl` of -size * average entry, beside the value of the
option. Where a position states its profit, its mark is the account's own: the price that gives this profit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

from aggregator.errors import FailureReason

from ..account_rows import add_balance
from ..amounts import FieldError, joined, token_amount
from ..market_rows import add_mark, add_reconciliation_note
from ..symbols import account_id, instrument_id
from ..transport import Payload
from ..uncounted import SMALLEST_VALUE
from . import mechanics
from . import portfolio_margin as pm
from .markets import FUNDING_HOURS, USDC, VENUE, Reading, Spec
from .parse import BALANCE, MARGIN, POSITIONS, Account, Held, Resting, read_accounts
from .rules import (
    OptionFee,
    OptionRates,
    PerpRates,
    PortfolioParameters,
    PortfolioUnit,
    cross_components,
    margin_tier_rows,
    portfolio_components,
    rule_set_rows,
    token_weight_rows,
)

_EXACT_DIGITS = 80
_DIGITS = 18


def add_owner(reading: Reading, owner: str, payloads: Mapping[tuple[str, str], Payload]) -> None:
    """Rows of all accounts of one owner; `payloads` by (request, address or market that its name carries)."""
    accounts = read_accounts(reading, owner, payloads)
    for account in accounts:
        _add_account(reading, owner, account, parent=None if account is accounts[0] else accounts[0])


def add_bare_account(reading: Reading, owner: str, payload: Payload) -> None:
    """The account's row alone, of an owner whose payloads were all rejected."""
    _add_account(reading, owner, Account(None, account_id(VENUE, owner), payload), parent=None)


def _add_account(reading: Reading, owner: str, account: Account, *, parent: Account | None) -> None:
    rows, name, identity = reading.rows, account.payload.name, account.identity
    for request, missing in ((POSITIONS, account.positions is None), (BALANCE, account.balances is None)):
        if missing:
            account.is_read = False
            rows.fail(
                FailureReason.MISSING_FIELD,
                f"no /v1/{request} payload of the account",
                payload=name,
                subject=identity,
                account_id=identity,
            )
    _check_margin_configuration(reading, account)
    kind = "portfolio" if account.methodology == "portfolio_margin" else "cross"
    rule_set = f"{VENUE}:{kind}:{identity.partition(':')[2]}"
    margin_mode = "isolated" if kind == "cross" and account.isolated_market else kind
    rows.add(
        "accounts",
        account_id=identity,
        parent_account_id=parent.identity if parent else None,
        node=identity,
        venue=VENUE,
        chain=VENUE,
        owner=owner,
        margin_mode=margin_mode,
        rule_set=rule_set,
        settlement_asset="USD",
        received_at=account.received_at,
        **account.reported,
    )
    _tell_unknown_tokens(reading, account)
    with rows.guard(name, subject=identity, account_id=identity):
        reading.catalog.known_asset(USDC, path="token")
    _add_balances(reading, account)
    for held in (account.positions or {}).values():
        _add_position(reading, account, held)
    for order in account.orders.values():
        rows.add(
            "open_orders",
            order_id=order.order_id,
            account_id=identity,
            instrument_id=instrument_id(VENUE, order.spec.symbol),
            side="buy" if order.size > 0 else "sell",
            remaining_quantity=order.size.copy_abs(),
            limit_price=order.price,
            reduce_only=order.reduce_only,
        )
    components = cross_components((), {}, order_margin=Decimal(0), has_tokens=False)
    known = reading.context.assets.resolve
    tokens = {token: token == USDC for token, size in (account.balances or {}).items() if size and known(token)}
    if account.is_read:
        with rows.guard(name, subject=identity, account_id=identity):
            build = _portfolio_rules if kind == "portfolio" else _cross_rules
            perps, components = build(reading, account, has_tokens=not all(tokens.values()))
            rows.rows["margin_tiers"] += margin_tier_rows(rule_set, perps)
            if not all(tokens.values()):
                rows.rows["collateral_tiers"] += token_weight_rows(rule_set, {USDC: True} | tokens)
    rows.rows["rule_sets"] += rule_set_rows(rule_set, components)


def _check_margin_configuration(reading: Reading, account: Account) -> None:
    """Fails an account with positions or orders whose margin method, or whose chosen leverage of a perpetual, is not
    stated: a portfolio-margin account is no cross account, and the venue states no default of a chosen leverage.
    """
    specs = _specs(account)
    if not account.is_read or not specs:
        return
    missing = sorted(symbol for symbol, spec in specs.items() if spec.kind != "option")
    missing = [symbol for symbol in missing if symbol not in account.leverages]
    if account.methodology is None:
        message, payload = f"no /v1/{MARGIN} payload of the account: its margin method is not known", account.payload
        path = "margin_methodology"
    elif account.methodology == "cross_margin" and missing and account.margin_payload is not None:
        message = f"no leverage of {', '.join(missing)} in the configurations of /v1/{MARGIN}"
        payload, path = account.margin_payload, "configs"
    else:
        return
    account.is_read = False
    reading.rows.fail(
        FailureReason.MISSING_FIELD,
        message,
        payload=payload.name,
        path=path,
        subject=account.identity,
        account_id=account.identity,
    )


def _tell_unknown_tokens(reading: Reading, account: Account) -> None:
    """A finding for each unknown token that is held beside USDC: the venue adds its value to the account value and to
    both requirements alike, so that it backs nothing, whatever it is worth. Without USDC in the list it may be what the
    account lives on, and fails it.
    """
    balances = account.balances or {}
    if account.unknown and USDC in balances:
        _note_unknown_tokens(reading, account)
    for token, (payload, path) in sorted(account.unknown.items()):
        if USDC in balances:
            reading.rows.fail(
                FailureReason.UNKNOWN_ASSET,
                f"{token[:40]!r} is not in the asset book: the venue adds its value to the account value and requires "
                f"it in full, the account is computed without {balances[token]:f} of it on either side",
                payload=payload,
                path=joined(path, "token"),
                subject=account.identity,
            )
            continue
        account.is_read = False
        with reading.rows.guard(payload, subject=account.identity, account_id=account.identity):
            reading.catalog.known_asset(token, path=joined(path, "token"))


def _note_unknown_tokens(reading: Reading, account: Account) -> None:
    """Notes for the reconciliation with what unknown tokens are worth in the venue's figures: the account value less
    USDC at par, other tokens at their spot and the profit of every position; none where one of these is not stated.
    """
    stated, held = account.reported.get("reported_equity"), (account.positions or {}).values()
    if stated is None or account.positions is None or any(entry.mark is None for entry in held):
        return
    with localcontext(prec=_EXACT_DIGITS), suppress(FieldError):
        known = sum(((e.mark - e.entry) * e.quantity + e.funding for e in held if e.mark is not None), Decimal(0))
        for token, size in (account.balances or {}).items():
            if token not in account.unknown:
                known += size * (1 if token == USDC else reading.base(token, path="token").spot)
        worth = stated - known
        if worth < SMALLEST_VALUE:
            return
        names = ", ".join(sorted(account.unknown))
        words = f"the venue counts {names}, of which the asset book knows nothing, as value and as requirement"
        for figure in ("equity", "initial_margin", "maintenance_margin"):
            add_reconciliation_note(
                reading.rows, account.identity, figure, worth, words, as_of=account.received_at, source="account_value"
            )


def _add_balances(reading: Reading, account: Account) -> None:
    for token, size in sorted((account.balances or {}).items()):
        if size and reading.context.assets.resolve(token) is not None:
            add_balance(reading.rows, account.identity, token, size)


def _add_position(reading: Reading, account: Account, held: Held) -> None:
    identity = instrument_id(VENUE, held.spec.symbol)
    is_option = held.spec.kind == "option"
    leverage = None if is_option else account.leverages.get(held.spec.symbol)
    override = None
    if leverage is not None and held.spec.imf is not None and 1 / leverage > held.spec.imf:
        fee = Decimal(0)
        if account.is_read:
            with suppress(FieldError):  # said once, when the rules are built
                fee = reading.taker_fee(held.spec, account.fees, path="positions")
        override = _decimal(1 / Fraction(leverage) + Fraction(fee))
    with localcontext(prec=_EXACT_DIGITS):
        cost = held.quantity * held.entry
    reading.rows.add(
        "positions",
        account_id=account.identity,
        instrument_id=identity,
        side_mode="net",
        quantity=held.quantity,
        entry_price=held.entry,
        unsettled_funding=held.funding,
        realized_pnl=-cost if is_option else None,
        leverage=leverage,
        initial_rate_override=override,
        reported_liquidation_price=held.liquidation_price,
    )
    if held.mark is not None:
        source = "average_entry_price + (unrealized_pnl - unrealized_funding_pnl) / size"
        as_of = account.received_at
        add_mark(reading.rows, identity, "mark", held.mark, as_of=as_of, source=source, account_id=account.identity)


def _decimal(value: Fraction) -> Decimal:
    return token_amount(round(value * 10**_DIGITS), _DIGITS)


# ----------------------------------------------------------------------------------------------------------------------
# Rules of one account


def _mark_of(reading: Reading, account: Account, symbol: str) -> Decimal:
    """Mark of a market as the account sees it: its own position's, else the market summary's."""
    held = (account.positions or {}).get(symbol)
    if held is not None and held.mark is not None:
        return held.mark
    return reading.summary(symbol, path="market").mark


def _specs(account: Account) -> dict[str, Spec]:
    """Markets that the account holds or has orders in, by symbol."""
    held, orders = account.positions or {}, account.orders.values()
    return {symbol: entry.spec for symbol, entry in held.items()} | {o.spec.symbol: o.spec for o in orders}


def _cross_rules(reading: Reading, account: Account, *, has_tokens: bool) -> tuple[list[PerpRates], list[Any]]:
    """(rates of perpetuals, components) of a cross or isolated account; raises `FieldError`."""
    held = account.positions or {}
    orders_of: dict[str, list[Resting]] = {}
    for order in account.orders.values():
        orders_of.setdefault(order.spec.symbol, []).append(order)
    perps: list[PerpRates] = []
    options: dict[str, tuple[OptionRates, OptionRates, OptionFee]] = {}
    order_margin = Fraction(0)
    for symbol, spec in sorted(_specs(account).items()):
        fee = reading.taker_fee(spec, account.fees, path="positions")
        if symbol in held and spec.imf is not None and spec.mmf_factor is not None:
            perps.append(PerpRates(instrument_id(VENUE, symbol), spec.imf + fee, spec.imf * spec.mmf_factor + fee))
        elif symbol in held and spec.option is not None:
            risk_symbol = reading.catalog.risk_symbol(spec.base)
            rates = OptionRates(*spec.option[0]), OptionRates(*spec.option[1]), _option_fee(reading, fee)
            if options.setdefault(risk_symbol, rates) != rates:
                message = f"options on {spec.base} with different margin parameters in one account"
                raise FieldError("positions", FailureReason.UNSUPPORTED, message)
            # Without its spot and mark it cannot be charged, which is said here.
            reading.base(spec.base, path="positions")
            _mark_of(reading, account, symbol)
        if symbol in orders_of:
            quantity = held[symbol].quantity if symbol in held else Decimal(0)
            order_margin += _order_margin(reading, account, spec, quantity, orders=orders_of[symbol], fee=fee)
    return perps, cross_components(
        perps,
        options,
        order_margin=_decimal(order_margin),
        has_tokens=has_tokens,
    )


def _option_fee(reading: Reading, rate: Decimal) -> OptionFee:
    """Fee of an option at a taker rate; raises `FieldError(missing_parameter)` without the dated cap."""
    cap = reading.parameters.option_fee_cap
    if cap is None:
        message = "no cap of an option's fee: `option_cap` of [fees] in configs/venues/paradex.toml"
        raise FieldError("fees.option_cap", FailureReason.MISSING_PARAMETER, message)
    return OptionFee(rate, cap)


def _order_margin(
    reading: Reading, account: Account, spec: Spec, quantity: Decimal, *, orders: list[Resting], fee: Decimal
) -> Fraction:
    """What open orders in one market add to the initial requirement of a cross account."""
    mark = Fraction(_mark_of(reading, account, spec.symbol))
    market: mechanics.Market
    if spec.option is not None:
        market = mechanics.OptionMarket(
            mark,
            Fraction(reading.base(spec.base, path="orders").spot),
            Fraction(spec.strike or 0),
            is_call=spec.option_type == "call",
            imf=mechanics.OptionFractions(*map(Fraction, spec.option[0])),
            mmf=mechanics.OptionFractions(*map(Fraction, spec.option[1])),
            fee_rate=Fraction(fee),
            fee_cap=Fraction(_option_fee(reading, fee).cap),
        )
    else:
        leverage = account.leverages.get(spec.symbol)
        market = mechanics.PerpMarket(
            mark,
            Fraction(spec.imf or 0),
            Fraction(spec.mmf_factor or 0),
            Fraction(fee),
            chosen_imf=None if leverage is None else 1 / Fraction(leverage),
        )
    resting = [mechanics.Order(Fraction(o.size), mark if o.price is None else Fraction(o.price)) for o in orders]
    with_orders = mechanics.market_margin(market, quantity, resting)
    return with_orders.imr - mechanics.market_margin(market, quantity).imr


def _portfolio_rules(reading: Reading, account: Account, *, has_tokens: bool) -> tuple[list[PerpRates], list[Any]]:
    """(no rates of perpetuals, components) of a portfolio-margin account; raises `FieldError`."""
    by_base: dict[str, list[Spec]] = {}
    for spec in _specs(account).values():
        if spec.kind == "future":
            message = f"the dated future {spec.symbol} under portfolio margin"
            raise FieldError("positions", FailureReason.UNSUPPORTED, message)
        by_base.setdefault(spec.base, []).append(spec)
    units: list[PortfolioUnit] = []
    order_margin = 0.0
    for base, specs in sorted(by_base.items()):
        parameters = reading.configuration(base, path="positions")
        marks = reading.base(base, path="positions")
        fees = {spec.kind: reading.taker_fee(spec, account.fees, path="positions") for spec in specs}
        held = [entry for entry in (account.positions or {}).values() if entry.spec.base == base]
        perp = sum(entry.quantity for entry in held if entry.spec.kind == "perp")
        rate = marks.funding_rate_8h
        if rate is None and any(spec.kind == "perp" for spec in specs):
            raise FieldError("positions", FailureReason.MISSING_MARK, f"no funding rate of the perpetual on {base}")
        pays = rate is not None and rate * perp > 0
        funding = abs(rate) * parameters.funding_hours / FUNDING_HOURS if pays and rate is not None else Decimal(0)
        if any(order.spec.base == base for order in account.orders.values()):
            order_margin += _portfolio_order_margin(reading, account, base, parameters, fees)
        if held:
            symbol = reading.catalog.risk_symbol(base)
            of_options = _option_fee(reading, fees["option"]) if "option" in fees else None
            units.append(PortfolioUnit(symbol, parameters, fees.get("perp", Decimal(0)), of_options, funding))
    amount = Decimal(repr(order_margin))
    return [], portfolio_components(units, order_margin=amount, has_tokens=has_tokens)


def _portfolio_order_margin(
    reading: Reading, account: Account, base: str, parameters: PortfolioParameters, fees: Mapping[str, Decimal]
) -> float:
    """What open orders in one base asset add to the initial requirement of a portfolio-margin account."""
    now, marks = account.received_at, reading.base(base, path="orders")

    def leg(spec: Spec, size: Decimal, price: Decimal | None, *, is_order: bool) -> pm.Leg:
        summary = reading.summary(spec.symbol, path="orders")
        mark = float(_mark_of(reading, account, spec.symbol))
        delta = summary.delta
        if delta is None and spec.kind == "option":
            raise FieldError("orders", FailureReason.MISSING_MARK, f"no delta of {spec.symbol}")
        option = None
        if spec.kind == "option":
            if summary.vol is None:
                raise FieldError("orders", FailureReason.MISSING_MARK, f"no implied vol of {spec.symbol}")
            if now is None or spec.expiry is None:
                message = "the time to expiry needs the receive time of the payload"
                raise FieldError("received_at", FailureReason.MISSING_FIELD, message)
            days = max(0.0, (spec.expiry - now).total_seconds() / pm.SECONDS_PER_DAY)
            cap = float(_option_fee(reading, fees[spec.kind]).cap)
            option = pm.OptionTerms(float(spec.strike or 0), spec.option_type == "call", days, float(summary.vol), cap)
        limit = (mark if price is None else float(price)) if is_order else None
        return pm.Leg(float(size), mark, 1.0 if delta is None else float(delta), float(fees[spec.kind]), option, limit)

    held = [h for h in (account.positions or {}).values() if h.spec.base == base]
    positions = [leg(h.spec, h.quantity, None, is_order=False) for h in held]
    orders = [leg(o.spec, o.size, o.price, is_order=True) for o in account.orders.values() if o.spec.base == base]
    perp_mark = marks.perp_mark if marks.perp_mark is not None else marks.spot
    underlying = pm.Underlying(
        float(marks.spot), float(perp_mark), float(marks.funding_rate_8h or 0), float(marks.rate)
    )
    configuration = portfolio_configuration(parameters)
    both = pm.portfolio_margin(positions, orders, underlying=underlying, configuration=configuration)
    alone = pm.portfolio_margin(positions, [], underlying=underlying, configuration=configuration)
    added = both.imr - alone.imr
    if not math.isfinite(added):
        raise FieldError("orders", FailureReason.OUT_OF_RANGE, f"orders on {base} need a margin that is no number")
    return added


def portfolio_configuration(parameters: PortfolioParameters) -> pm.Configuration:
    """The configuration of a base asset in float64, as `portfolio_margin` takes it."""
    return pm.Configuration(
        scenarios=tuple(pm.Scenario(float(spot), float(vol), float(w)) for spot, vol, w in parameters.scenarios),
        vol=pm.VolShockParameters(
            float(parameters.power_short),
            float(parameters.power_long),
            float(parameters.dte_floor_days),
            float(parameters.min_vol_up),
        ),
        hedged_factor=float(parameters.hedged),
        unhedged_factor=float(parameters.unhedged),
        mmf_factor=float(parameters.mmf_factor),
        funding_hours=float(parameters.funding_hours),
    )
