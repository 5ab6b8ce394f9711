"""Accounts of GMX v2: each position is one, with its own collateral, rules and prices.

What the Reader computes of a full close (`getPositionInfo`) goes before what DataStore values give; without either the
position is incomplete, never free of costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..account_rows import add_balance
from ..amounts import FieldError, joined, token_amount
from ..market_rows import add_mark
from ..symbols import account_id
from ..transport import Payload
from . import mechanics
from .impact import FLOAT, ImpactParameters, OpenInterest, applied, capped_positive_impact, price_impact
from .markets import USD, VENUE, Deployment
from .mechanics import Fees, Pool, Prices
from .parse import (
    GLOBAL_KEYS,
    MARKET_KEYS,
    Held,
    Info,
    Market,
    MarketPrices,
    Price,
    Verdict,
    address_of,
    read_info,
    read_position,
    read_prices,
    read_values,
    read_verdict,
    records,
    unwrapped,
)
from .rules import Margin, rule_rows, share_of_profit, usd, verdict_rows

Key = tuple[str, str, bool]
"""Market, collateral token and side: what tells one owner's positions apart."""
_QUOTE_DECIMALS = 18


@dataclass
class Owned:
    """One position as payloads show it, before it becomes an account."""

    held: Held
    payload: Payload
    path: str
    info: Info | None = None
    prices: MarketPrices | None = None
    values: Mapping[str, int] = field(default_factory=dict)
    verdict: Verdict | None = None


class Costs(NamedTuple):
    """Costs of a full close, and the share of the profit that is paid."""

    impact_usd: int
    fees_usd: int
    pnl_share: Fraction
    basis: str


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_positions(deployment: Deployment, payload: Payload, owner_account: str) -> list[Owned]:
    """Positions of `getAccountPositions` or of an answer with `PositionInfo`; empty ones are passed over.

    A payload may carry the prices and DataStore values of its market beside the positions (`prices`, `dataStore`). A
    record that cannot be read makes the owner incomplete: which position it was nobody knows.
    """
    rows, found = deployment.rows, []
    with rows.guard(payload.name, subject=payload.account, account_id=owner_account):
        body, _ = unwrapped(payload.body)
        for path, record in records(payload.body, "positions", "positionInfoList", "positionInfos", "positionInfo"):
            with rows.guard(payload.name, subject=payload.account, account_id=owner_account):
                owned = _read_one(payload, record, path)
                if isinstance(body, Mapping):
                    _read_beside(owned, body, payload)
                if owned.held.position.size_in_usd:
                    found.append(owned)
    return found


def _read_one(payload: Payload, record: Any, path: str) -> Owned:
    is_info = isinstance(record, Mapping) and "fees" in record
    nested = isinstance(record, Mapping) and "position" in record
    place = joined(path, "position") if nested else path
    held = read_position(record["position"] if nested else record, place)
    owned = Owned(held, payload, path)
    if is_info and held.position.size_in_usd:
        owned.info = read_info(record, path, payload.received_at)
    if isinstance(record, Mapping) and nested:
        _read_beside(owned, record, payload)
    return owned


def _read_beside(owned: Owned, record: Mapping[str, Any], payload: Payload) -> None:
    """Prices and values that stand beside the position(s) of one market, or by market address."""
    market = owned.held.market
    prices = record.get("prices")
    if prices is not None:
        path = "prices"
        if isinstance(prices, Mapping) and "indexTokenPrice" not in prices:
            by_market = {address_of(address, path): value for address, value in prices.items()}
            prices, path = by_market.get(market), joined(path, market)
        if prices is not None:
            owned.prices = read_prices(prices, path, payload.received_at)
    store = record.get("dataStore")
    if store is not None:
        if not isinstance(store, Mapping):
            raise FieldError("dataStore", FailureReason.MALFORMED, f"expected an object, found {type(store).__name__}")
        owned.values = read_values(store, MARKET_KEYS, "dataStore") | read_values(store, GLOBAL_KEYS, "dataStore")


def read_verdicts(deployment: Deployment, payload: Payload, owned: Mapping[Key, Owned]) -> None:
    """Answers of `isPositionLiquidatable`, each beside the position's key, or its market, collateral and side.

    They are for comparison: one that cannot be read or placed is a finding and stops nobody.
    """
    by_key = {found.info.position_key: found for found in owned.values() if found.info and found.info.position_key}
    rows = deployment.rows
    with rows.guard(payload.name, subject=payload.account):
        for path, record in records(payload.body, "positions", "answers"):
            with rows.guard(payload.name, subject=payload.account):
                verdict = read_verdict(record, path)
                key = record.get("positionKey")
                found = by_key.get(key.lower()) if isinstance(key, str) else None
                if found is None and "market" in record:
                    place = (
                        address_of(record["market"], joined(path, "market")),
                        address_of(record.get("collateralToken"), joined(path, "collateralToken")),
                        record.get("isLong") is True,
                    )
                    found = owned.get(place)
                if found is None:
                    raise FieldError(path, FailureReason.INCONSISTENT, "an answer about no position of the owner's")
                found.verdict = verdict


# ---- accounts --------------------------------------------------------------------------------------------------------


def position_account(deployment: Deployment, owner: str, key: Key) -> str:
    """Account id of a position: market, collateral and side by their names, or addresses while nothing names them."""
    address, collateral, is_long = key
    market = deployment.markets.get(address)
    name = deployment.market_name(market) if isinstance(market, Market) else address
    return account_id(VENUE, owner, f"{name}:{deployment.symbol(collateral)}:{'long' if is_long else 'short'}")


def add_account(deployment: Deployment, owned: Owned, problem: FieldError | None = None) -> None:
    """The account of one position, complete or with the failure that says what it lacks (a `problem` known before)."""
    rows, payload, position = deployment.rows, owned.payload, owned.held.position
    identity = position_account(deployment, payload.account, owned.held.key)
    part = identity.partition(":")[2]
    rule_set = f"{VENUE}:position:{part}"
    verdict = owned.verdict
    rows.add(
        "accounts",
        account_id=identity,
        node=identity,
        venue=VENUE,
        chain=deployment.chain,
        owner=payload.account,
        margin_mode="isolated",
        rule_set=rule_set,
        settlement_asset=USD,
        received_at=payload.received_at,
        reported_equity=usd(verdict.remaining_collateral_usd) if verdict else None,
        reported_maintenance_margin=usd(max(verdict.min_collateral_usd, verdict.min_collateral_usd_for_leverage))
        if verdict
        else None,
    )
    known = len(rows.rows["rule_sets"])
    with rows.guard(payload.name, subject=identity, account_id=identity):
        if problem is not None:
            raise problem
        market = deployment.market(owned.held.market, joined(owned.path, "market"))
        in_collateral = joined(owned.path, "collateralToken")
        if owned.held.collateral not in (market.long_token, market.short_token):
            message = f"{owned.held.collateral} is neither token of market {deployment.market_name(market)}"
            raise FieldError(in_collateral, FailureReason.INCONSISTENT, message)
        instrument = deployment.instrument(market, joined(owned.path, "market"))
        collateral = deployment.asset(owned.held.collateral, in_collateral)
        index, collateral_price = _price(deployment, owned, market.index_token), _collateral_price(deployment, owned)
        prices = Prices(index.min, index.max, collateral_price.min)
        margin = _margin(deployment, owned, market, prices)
        for table, added in rule_rows(rule_set, instrument, collateral, position.size_in_usd, margin).items():
            rows.rows[table] += added

        tokens = token_amount(position.size_in_tokens, deployment.token(market.index_token, "").decimals)
        entry = Fraction(usd(position.size_in_usd)) / Fraction(tokens)
        rows.add(
            "positions",
            account_id=identity,
            instrument_id=instrument,
            side_mode="long" if position.is_long else "short",
            quantity=tokens if position.is_long else -tokens,
            entry_price=token_amount(round(entry * 10**_QUOTE_DECIMALS), _QUOTE_DECIMALS),
        )
        if position.collateral_amount:
            decimals = deployment.token(owned.held.collateral, "").decimals
            add_balance(rows, identity, collateral, token_amount(position.collateral_amount, decimals))
        against = index.min if position.is_long else index.max
        source = payload.request
        mark = deployment.usd_price(market.index_token, against)
        add_mark(rows, instrument, "mark", mark, as_of=index.as_of, source=source, account_id=identity)
        lowest = deployment.usd_price(owned.held.collateral, collateral_price.min)
        as_of = collateral_price.as_of
        add_mark(rows, collateral, "oracle", lowest, as_of=as_of, source=source, account_id=identity)
    if len(rows.rows["rule_sets"]) == known:
        # The failure above says what lacks; that no rule follows from it is no second one.
        rows.rows["rule_sets"] += verdict_rows(rule_set)


def _price(deployment: Deployment, owned: Owned, address: str) -> Price:
    """Price of a market token: of the payload itself, else of the price list."""
    market = deployment.market(owned.held.market, "")
    if owned.prices is not None:
        names = (market.index_token, market.long_token, market.short_token)
        for name, price in zip(names, owned.prices, strict=True):
            if name == address:
                return price
    return deployment.price(address, "")


def _collateral_price(deployment: Deployment, owned: Owned) -> Price:
    if owned.prices is None and owned.info is not None and owned.info.collateral_price is not None:
        return owned.info.collateral_price
    return _price(deployment, owned, owned.held.collateral)


def _needed(deployment: Deployment, owned: Owned, name: str) -> int:
    value = deployment.value(owned.held.market, name, owned.values)
    if value is None:
        message = f"{name} is neither in a payload nor in the dated parameters"
        raise FieldError(name, FailureReason.MISSING_PARAMETER, message)
    return value


def _either(deployment: Deployment, owned: Owned, name: str, flagged: str) -> int:
    """A value that a deployment may state once or with a flag behind its name."""
    value = deployment.value(owned.held.market, f"{name}_{flagged}", owned.values)
    return _needed(deployment, owned, name) if value is None else value


def _margin(deployment: Deployment, owned: Owned, market: Market, prices: Prices) -> Margin:
    """Everything that the rules of one position need; raises `FieldError` naming the first value that lacks."""
    position = owned.held.position
    opening = _needed(deployment, owned, "min_collateral_factor")
    side = "long" if position.is_long else "short"
    multiplier = _either(deployment, owned, "min_collateral_factor_multiplier", side)
    if multiplier:
        interest = _needed(deployment, owned, f"open_interest_{side}")
        opening = mechanics.open_interest_collateral_factor(opening, interest, 0, multiplier)
    liquidation = _needed(deployment, owned, "min_collateral_factor_for_liquidation")
    minimum = _needed(deployment, owned, "min_collateral_usd")
    costs = _costs_of_info(deployment, owned, prices) if owned.info else _costs(deployment, owned, market, prices)
    return Margin(minimum, liquidation, opening, *costs)


def _costs_of_info(deployment: Deployment, owned: Owned, prices: Prices) -> Costs:
    """Costs by what the Reader computed: fees in tokens, impact of the close, capped profit."""
    info = owned.info
    assert info is not None
    close = info.price_impact_usd
    pending = owned.held.position.pending_impact_amount
    if close > 0 and pending < 0:
        # Otherwise the cap cannot matter: the sum is at most 0, or counts as 0.
        factor = _needed(deployment, owned, "max_impact_factor_positive")
        close = min(close, applied(owned.held.position.size_in_usd, factor))
    return Costs(
        _impact(deployment, owned, close, prices),
        info.cost_amount * prices.collateral_min,
        share_of_profit(info.pnl_usd, info.uncapped_pnl_usd),
        "closing costs: impact and fees of getPositionInfo",
    )


def _impact(deployment: Deployment, owned: Owned, close_usd: int, prices: Prices) -> int:
    position = owned.held.position
    if mechanics.impact_for_check(position, close_usd, prices, FLOAT) == 0:
        return 0
    bound = _needed(deployment, owned, "max_impact_factor_for_liquidations")
    return mechanics.impact_for_check(position, close_usd, prices, bound)


def _costs(deployment: Deployment, owned: Owned, market: Market, prices: Prices) -> Costs:
    """Costs by the exact mechanics from DataStore values; discounts of a trader's referral or tier are not in them."""
    position = owned.held.position
    close, improved = _close_impact(deployment, owned, market)
    factor = _either(deployment, owned, "position_fee_factor", "positive" if improved else "negative")
    side = "long" if position.is_long else "short"
    accrued = _needed(deployment, owned, f"cumulative_borrowing_factor_{side}")
    token = "long_token" if owned.held.collateral == market.long_token else "short_token"
    funding = _needed(deployment, owned, f"funding_fee_per_size_{side}_{token}")
    try:
        borrowing = mechanics.borrowing_fee_usd(position.size_in_usd, accrued, position.borrowing_factor)
    except ValueError as problem:
        raise FieldError("borrowingFactor", FailureReason.INCONSISTENT, str(problem)) from None
    if funding < position.funding_fee_amount_per_size:
        message = "the position's funding per size exceeds the market's"
        raise FieldError("fundingFeeAmountPerSize", FailureReason.INCONSISTENT, message)
    fees = Fees(
        position=mechanics.position_fee_amount(position.size_in_usd, factor, prices.collateral_min),
        borrowing=borrowing // prices.collateral_min,
        funding=mechanics.funding_fee_amount(position.size_in_usd, funding, position.funding_fee_amount_per_size),
    )
    profit = mechanics.uncapped_pnl(position, index_min=prices.index_min, index_max=prices.index_max)
    paid = mechanics.capped_pnl(profit, _pool(deployment, owned, market)) if profit > 0 else profit
    return Costs(
        _impact(deployment, owned, close, prices),
        fees.total * prices.collateral_min,
        share_of_profit(paid, profit),
        "closing costs: impact and fees from DataStore values",
    )


def _close_impact(deployment: Deployment, owned: Owned, market: Market) -> tuple[int, bool]:
    """(USD of the impact of closing in full, its positive part capped; whether the balance improves)."""
    position = owned.held.position
    in_tokens = bool(deployment.value(owned.held.market, "use_open_interest_in_tokens", owned.values) or 0)
    parameters = ImpactParameters(
        _needed(deployment, owned, "impact_factor_positive"),
        _needed(deployment, owned, "impact_factor_negative"),
        _either(deployment, owned, "impact_exponent", "positive"),
        _either(deployment, owned, "impact_exponent", "negative"),
        _needed(deployment, owned, "max_impact_factor_positive"),
        deployment.value(owned.held.market, "max_impact_factor_negative", owned.values),
    )
    unit = 1
    names, inventory_name = ("open_interest_long", "open_interest_short"), "virtual_inventory"
    if in_tokens:
        # The balance is then one of tokens, at the middle of the index prices of the moment.
        price = _price(deployment, owned, market.index_token)
        unit = (price.min + price.max) // 2
        names = ("open_interest_in_tokens_long", "open_interest_in_tokens_short")
        inventory_name = "virtual_inventory_in_tokens"
    interest = OpenInterest(*(_needed(deployment, owned, name) * unit for name in names))
    inventory = deployment.value(owned.held.market, inventory_name, owned.values)
    size = position.size_in_tokens * unit if in_tokens else position.size_in_usd
    try:
        found = price_impact(
            parameters,
            interest,
            -size,
            is_long=position.is_long,
            virtual_inventory=None if inventory is None else inventory * unit,
        )
    except (ValueError, OverflowError) as problem:
        raise FieldError("openInterest", FailureReason.INCONSISTENT, str(problem)) from None
    return capped_positive_impact(found.usd, position.size_in_usd, parameters), found.balance_was_improved


def _pool(deployment: Deployment, owned: Owned, market: Market) -> Pool:
    """The pool of the position's side, whose profit counts at the price that makes it largest."""
    is_long = owned.held.position.is_long
    side = "long" if is_long else "short"
    token = market.long_token if is_long else market.short_token
    amount = _needed(deployment, owned, f"pool_amount_{side}_token")
    if market.long_token == market.short_token:
        amount //= 2
    index = _price(deployment, owned, market.index_token)
    interest = _needed(deployment, owned, f"open_interest_{side}")
    tokens = _needed(deployment, owned, f"open_interest_in_tokens_{side}")
    pnl = mechanics.side_pnl(interest, tokens, index.max if is_long else index.min, is_long=is_long)
    factor = _needed(deployment, owned, f"max_pnl_factor_{side}")
    return Pool(amount, _price(deployment, owned, token).min, pnl, factor)
