"""Markets of Hyperliquid from its market-wide payloads, and what all payloads of one snapshot share.

A market that nobody holds and that the asset book does not know is passed over; a holder of one becomes incomplete.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..adapter import Context
from ..amounts import (
    FieldError,
    decimal_at,
    integer_at,
    integer_of,
    joined,
    member,
    members,
    non_negative_at,
    optional_decimal_at,
    positive_at,
)
from ..catalog import Catalog
from ..findings import Problem
from ..market_rows import Number, add_mark, add_market_state
from ..rows import Rows
from ..symbols import instrument_id
from ..transport import Payload
from .mechanics import MarginTier, single_tier
from .rules import (
    PERP_RULES,
    SOURCE,
    DatedParameters,
    MarketTiers,
    margin_tier_rows,
    rule_set_rows,
)

VENUE = "hyperliquid"


class Market(NamedTuple):
    """One entry of a `universe`; exactly one of `tiers` and `problem` is set."""

    coin: str
    tiers: MarketTiers | None
    problem: Problem | None
    has_table: bool
    only_isolated: bool
    is_delisted: bool
    payload: Payload


class Claim(NamedTuple):
    """Someone needs these tiers of an instrument in a rule set; `account_id` is None for the market list itself."""

    rule_set: str
    instrument: str
    tiers: MarketTiers
    account_id: str | None
    payload: Payload


@dataclass
class Reading:
    """One snapshot of the venue while it is read: what all its payloads share, and the rows so far."""

    rows: Rows
    context: Context
    catalog: Catalog
    markets: Mapping[str, Market] = field(default_factory=dict)
    tokens: Mapping[int, str] = field(default_factory=dict)
    pairs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Token indices (base, quote) of each spot pair by name."""
    collateral: Mapping[str, int] = field(default_factory=dict)
    rule_sets: dict[str, str] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def collateral_token(self, dex: str) -> str:
        """Symbol of a dex's collateral token, or `token:<index>` if nothing names it; the asset book may lack it."""
        index = self.collateral.get(dex)
        return "unknown collateral" if index is None else self.tokens.get(index, f"token:{index}")

    def settlement(self, dex: str) -> str:
        """Asset id of a dex's collateral; raises `FieldError`: missing_parameter without a name, unknown_asset."""
        index = self.collateral.get(dex)
        if index is None or index not in self.tokens:
            what = "no market payload states its collateralToken" if index is None else f"nothing names token {index}"
            raise FieldError("", FailureReason.MISSING_PARAMETER, f"collateral of dex {dex!r}: {what}")
        return self.catalog.known_asset(self.tokens[index], path="")

    def instrument(self, coin: str, *, path: str) -> str:
        """Instrument id of a perpetual, noted for the table `instruments`; raises `FieldError`, also unknown_market."""
        identity = instrument_id(VENUE, coin)
        if identity in self.catalog.instruments:
            return identity
        symbol = coin.rpartition(":")[2]
        underlying = self.catalog.known_asset(symbol, path=path, reason=FailureReason.UNKNOWN_MARKET)
        settlement = self.settlement(dex_of(coin))
        return self.catalog.instrument(coin, kind="perp", underlying=underlying, settlement_asset=settlement)

    def pair(self, name: str, *, path: str) -> str:
        """Instrument id of a spot pair, noted for the table `instruments`; raises `FieldError(unknown_market)`."""
        base, quote = (self.tokens.get(index) for index in self.pairs.get(name, (-1, -1)))
        if base is None or quote is None:
            raise FieldError(path, FailureReason.UNKNOWN_MARKET, f"no spotMeta payload lists the pair {name!r:.40}")
        underlying, settlement = (
            self.catalog.known_asset(symbol, path=path, reason=FailureReason.UNKNOWN_MARKET) for symbol in (base, quote)
        )
        return self.catalog.instrument(name, kind="spot", underlying=underlying, settlement_asset=settlement)


def dex_of(coin: str) -> str:
    """Builder dex of a coin (`km` of `km:US500`), empty for the venue's own."""
    return coin.rpartition(":")[0]


# ----------------------------------------------------------------------------------------------------------------------
# Tiers of a held position


def held_tiers(
    coin: str, max_leverage: Decimal | None, *, market: Market | None, dated: DatedParameters, path: str
) -> MarketTiers:
    """Tiers of a position in `coin`, by the order in the docstring of `rules`; `max_leverage` is the account payload's.

    Raises `FieldError`: missing_parameter when nothing names the coin; the market's own problem; inconsistent when the
    account states a maximum leverage that the market's tiers do not have.
    """
    if market is not None:
        if market.tiers is None:
            problem = market.problem or Problem(FailureReason.MISSING_PARAMETER, f"{coin} has no margin tiers")
            raise FieldError(path, *problem)
        if max_leverage is not None and not _has_leverage(market.tiers.tiers, max_leverage):
            raise FieldError(
                joined(path, "maxLeverage"),
                FailureReason.INCONSISTENT,
                f"{coin}: the account states maxLeverage {max_leverage}, {market.payload.name} has no such tier",
            )
        return market.tiers
    listed = dated.markets.get(coin)
    same_shape = dated.states_max_leverage == (max_leverage is not None)
    if listed is not None and same_shape and (max_leverage is None or _has_leverage(listed, max_leverage)):
        return MarketTiers(listed, dated.source, dated.key)
    if max_leverage is not None:
        return MarketTiers(
            single_tier(max_leverage), f"clearinghouseState maxLeverage {max_leverage}, taken as one tier"
        )
    raise FieldError(
        joined(path, "maxLeverage"),
        FailureReason.MISSING_PARAMETER,
        f"no margin tiers of {coin}: neither a market payload nor the position nor the selected dated parameters "
        f"({dated.key or 'none selected'}) state its maximum leverage at the time of the payload",
    )


def _has_leverage(tiers: tuple[MarginTier, ...], max_leverage: Decimal) -> bool:
    return any(tier.max_leverage == Fraction(max_leverage) for tier in tiers)


# ----------------------------------------------------------------------------------------------------------------------
# Market rows


def read_tokens(rows: Rows, payload: Payload) -> tuple[dict[int, str], dict[str, tuple[int, int]]]:
    """(token names by index, token indices of each pair by name) of a `spotMeta` payload."""
    names: dict[int, str] = {}
    pairs: dict[str, tuple[int, int]] = {}
    with rows.guard(payload.name, subject=payload.request):
        for i, token in enumerate(members(payload.body, "tokens")):
            with rows.guard(payload.name, subject=payload.request):
                path = joined("tokens", i)
                names[integer_at(token, "index", path)] = str(member(token, "name", path))
    listed: list[Any] = []
    if isinstance(payload.body, Mapping) and payload.body.get("universe") is not None:
        with rows.guard(payload.name, subject=payload.request):
            listed = members(payload.body, "universe")
    for i, pair in enumerate(listed):
        with rows.guard(payload.name, subject=payload.request):
            path = joined("universe", i)
            tokens = members(pair, "tokens", path)
            if len(tokens) != 2:
                raise FieldError(joined(path, "tokens"), FailureReason.MALFORMED, "expected [base, quote]")
            base, quote = (integer_of(token, joined(path, "tokens")) for token in tokens)
            pairs[str(member(pair, "name", path))] = base, quote
    return names, pairs


def add_markets(reading: Reading) -> None:
    """Instruments, flags and tiers of all markets whose underlying and collateral the asset book knows.

    A market that it does not know, or whose collateral has no name, is left out without a word: nobody may hold it,
    and whoever does becomes incomplete.
    """
    for market in reading.markets.values():
        identity = instrument_id(VENUE, market.coin)
        for name, flag in (("only_isolated", market.only_isolated), ("is_delisted", market.is_delisted)):
            _add_state(reading, identity, name, float(flag), market.payload)
        if market.is_delisted or market.tiers is None:
            continue
        with suppress(FieldError):
            reading.instrument(market.coin, path="")
            reading.rule_sets.setdefault(PERP_RULES, SOURCE)
            reading.claims.append(Claim(PERP_RULES, identity, market.tiers, None, market.payload))


def read_contexts(reading: Reading, payload: Payload) -> dict[str, tuple[str, Decimal, Payload]]:
    """Marks and state of each market from a `metaAndAssetCtxs` body whose two lists have equal length.

    Returns (dex, oracle price, payload) by coin, for the index prices of the underlyings. Delisted and unknown markets
    are passed over. The funding rate is per hour, as the venue pays it.
    """
    rows, oracles = reading.rows, {}
    universe, contexts = payload.body[0]["universe"], payload.body[1]
    for i, context in enumerate(contexts):
        coin = universe[i].get("name") if isinstance(universe[i], Mapping) else None
        market = reading.markets.get(coin) if isinstance(coin, str) else None
        identity = instrument_id(VENUE, str(coin))
        if market is None or market.is_delisted or identity not in reading.catalog.instruments:
            continue
        path = joined("[1]", i)
        with rows.guard(payload.name, subject=identity):
            oracle = positive_at(context, "oraclePx", path)
            values = {
                "mark": positive_at(context, "markPx", path),
                "oracle": oracle,
                "funding_rate": decimal_at(context, "funding", path),
            }
            for name, value in values.items():
                add_mark(rows, identity, name, value, as_of=payload.received_at, source=payload.request)
            state = {"open_interest": non_negative_at(context, "openInterest", path)}
            for name, key in (("mid_price", "midPx"), ("day_notional_volume", "dayNtlVlm"), ("premium", "premium")):
                optional = optional_decimal_at(context, key, path)
                if optional is not None:
                    state[name] = optional
            for name, value in state.items():
                _add_state(reading, identity, name, value, payload)
            oracles[market.coin] = (dex_of(market.coin), oracle, payload)
    return oracles


def add_index_prices(reading: Reading, oracles: Mapping[str, tuple[str, Decimal, Payload]]) -> None:
    """Index price of each underlying in USD: the oracle of the venue's own dex, or of the only dex that lists it."""
    listed: dict[str, dict[str, tuple[Decimal, Payload]]] = {}
    for coin, (dex, price, payload) in oracles.items():
        listed.setdefault(coin.rpartition(":")[2], {})[dex] = price, payload
    for underlying, by_dex in listed.items():
        chosen = by_dex.get("") or (next(iter(by_dex.values())) if len(by_dex) == 1 else None)
        if chosen:
            price, payload = chosen
            add_mark(reading.rows, underlying, "index", price, as_of=payload.received_at, source=payload.request)


def _add_state(reading: Reading, market: str, name: str, value: Number | str, payload: Payload) -> None:
    add_market_state(reading.rows, market, name, value, as_of=payload.received_at, source=payload.request)


# ----------------------------------------------------------------------------------------------------------------------
# What all payloads share, at the end


def add_shared_rows(reading: Reading) -> None:
    """Assets, instruments, rule sets and margin tiers that the rows so far refer to.

    Accounts whose payloads state different tiers of one instrument all become incomplete (inconsistent): one snapshot
    has one.
    """
    rows = reading.rows
    reading.catalog.write(rows)
    for rule_set, source in sorted(reading.rule_sets.items()):
        rows.rows["rule_sets"] += rule_set_rows(rule_set, source)

    by_market: dict[tuple[str, str], list[Claim]] = {}
    for claim in reading.claims:
        by_market.setdefault((claim.rule_set, claim.instrument), []).append(claim)
    for (rule_set, identity), claims in sorted(by_market.items()):
        # Most claims share one object, and to compare tables of fractions for each would take long.
        if len(set({id(claim.tiers): claim.tiers.tiers for claim in claims}.values())) > 1:
            for claim in claims:
                message = f"accounts of one snapshot state different margin tiers: {claim.tiers.source}"
                reason = FailureReason.INCONSISTENT
                rows.fail(reason, message, payload=claim.payload.name, subject=identity, account_id=claim.account_id)
            continue
        rows.rows["margin_tiers"] += margin_tier_rows(rule_set, identity, claims[0].tiers.tiers)
        name = rule_set.replace(PERP_RULES, "margin_parameters")
        _add_state(reading, identity, name, claims[0].tiers.source, claims[0].payload)
