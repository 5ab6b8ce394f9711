"""Margin rules of Hyperliquid as canonical data: rule-set components, and where the margin tiers of a market come from.

The tiers of a coin are taken from the first of these that names it; a source that contradicts another one of the same
payloads is a failure, never a choice:

0. the dated parameters selected for this owner by name (`selected_by_owner`), whose payloads are of another time than
   the market payloads, which then say nothing about the owner's positions;
1. a market payload (`metaAndAssetCtxs`, `meta`, `allPerpMetas`): `marginTableId` below 50 is one tier with that
   maximum leverage, otherwise the table of that id; without an id one tier with `maxLeverage`;
2. the dated parameters that the configuration selects, if they name the coin, are made for account payloads of this
   shape (with or without `maxLeverage`) and agree with the account's own `maxLeverage`;
3. the account payload's `maxLeverage` as one tier, exact up to the first bound of the coin's real table;
4. none: missing_parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

from aggregator.errors import ConfigurationError, FailureReason, nearest_name
from aggregator.rule_forms import Component, TieredNotional, Verdict, WeightedValue, component_rows

from ..adapter import parameter_table
from ..amounts import FieldError, integer_at, joined, member, non_negative_at, positive_at, token_amount
from .mechanics import MarginTier, PartialLiquidation, single_tier, tier_table

PERP_RULES = "hyperliquid:perp"
SPOT_RULES = "hyperliquid:spot"
SOURCE = "Hyperliquid docs: Margining, Margin tiers, Liquidations"
USDC_TOKEN = 0

_DIGITS = 18


class MarketTiers(NamedTuple):
    """Margin tiers of one market, where they were read, and the key of the dated parameters if they come from there."""

    tiers: tuple[MarginTier, ...]
    source: str
    dated: str = ""


class DatedParameters(NamedTuple):
    """One `[dated.<key>]` of the parameter file: tables by id or label, tiers by coin; `key` is empty for none.

    `states_max_leverage`: account payloads of its time carry `maxLeverage`; it serves no payload of the other shape.
    `for_owner`: selected for one owner by name, so that it goes before the market payloads.
    """

    key: str
    source: str
    states_max_leverage: bool
    for_owner: bool
    tables: Mapping[str, tuple[MarginTier, ...]]
    markets: Mapping[str, tuple[MarginTier, ...]]


NO_DATED_PARAMETERS = DatedParameters("", "", True, False, {}, {})


def perp_rule_set(tiers: Iterable[MarketTiers]) -> str:
    """Rule set of an account whose markets have `tiers`; one of its own if any of them is from dated parameters."""
    dated = sorted({held.dated for held in tiers} - {""})
    return ":".join([PERP_RULES, *dated])


def rule_set_rows(rule_set: str, source: str) -> list[dict[str, Any]]:
    """Rows of `rule_sets`: equity at unit weights, for a perp account tiered notional, liquidated below 1."""
    components = [Component(side="equity", parameters=WeightedValue(weights="unit"))]
    if rule_set != SPOT_RULES:
        tiered = TieredNotional(initial="leverage")
        components.append(Component(side="requirement", parameters=tiered, group_by="position"))
    components.append(Component(side="verdict", parameters=Verdict(liquidates_when="below", trigger=Decimal(1))))
    return component_rows(rule_set, components, source=source)


def margin_tier_rows(rule_set: str, instrument: str, tiers: tuple[MarginTier, ...]) -> list[dict[str, Any]]:
    """Rows of `margin_tiers` of one instrument; rates such as 1/30 are rounded to 18 decimals."""
    return [
        {
            "rule_set": rule_set,
            "market": instrument,
            "tier": number,
            "notional_floor": decimal_from(bracket.floor),
            "notional_cap": None if bracket.cap is None else decimal_from(bracket.cap),
            "initial_rate": decimal_from(1 / bracket.max_leverage),
            "maintenance_rate": decimal_from(bracket.rate),
            "deduction": decimal_from(bracket.deduction),
            "source": "venue",
        }
        for number, bracket in enumerate(tier_table(tiers), start=1)
    ]


def decimal_from(value: Fraction) -> Decimal:
    """`value` rounded half to even at the 18th decimal; exact wherever it has no more digits."""
    return token_amount(round(value * 10**_DIGITS), _DIGITS)


def margin_table(rows: list[Any], path: str = "") -> tuple[MarginTier, ...]:
    """Tiers of a `marginTiers` list.

    Raises `FieldError`: missing or unreadable numbers; inconsistent for a list that is empty, does not start at 0, or
    whose bounds do not rise or leverages do not fall.
    """
    tiers = tuple(
        MarginTier(
            Fraction(non_negative_at(row, "lowerBound", joined(path, i))),
            Fraction(positive_at(row, "maxLeverage", joined(path, i))),
        )
        for i, row in enumerate(rows)
    )
    if not tiers or tiers[0].lower_bound != 0:
        raise FieldError(path, FailureReason.INCONSISTENT, "a margin table must start with the lower bound 0")
    if any(
        low.lower_bound >= high.lower_bound or low.max_leverage <= high.max_leverage for low, high in pairwise(tiers)
    ):
        raise FieldError(path, FailureReason.INCONSISTENT, "lower bounds must rise and maximum leverages fall by tier")
    return tiers


# ----------------------------------------------------------------------------------------------------------------------
# The dated parameter file


def dated_parameters(parameters: Mapping[str, Any], owner: str = "") -> DatedParameters:
    """The dated parameters that the file selects for `owner`: `selected_by_owner`, else `selected`.

    Raises `ConfigurationError` for a selected key without its table, or a table that cannot be read.
    """
    by_owner = parameter_table(parameters, "selected_by_owner", venue="hyperliquid")
    key = by_owner.get(owner, parameters.get("selected", ""))
    if not key:
        return NO_DATED_PARAMETERS
    dated = parameter_table(parameters, "dated", venue="hyperliquid")
    if not isinstance(key, str):
        raise ConfigurationError(f"hyperliquid parameters: selected is {key!r}, expected the name of a [dated.<name>]")
    if key not in dated:
        raise ConfigurationError(f"hyperliquid parameters: no [dated.{key}]{nearest_name(key, dated)}")
    entry = parameter_table(dated, key, venue="hyperliquid")
    try:
        source = f"dated parameters {key!r} of {member(entry, 'as_of')}: {member(entry, 'source')}"
        tables = {
            label: margin_table(rows, label)
            for label, rows in parameter_table(entry, "margin_tables", venue="hyperliquid").items()
        }
        markets = {
            coin: _dated_tiers(market, tables, coin)
            for coin, market in parameter_table(entry, "markets", venue="hyperliquid").items()
        }
        if not isinstance(states_max_leverage := member(entry, "states_max_leverage"), bool):
            raise FieldError("states_max_leverage", FailureReason.MALFORMED, "expected true or false")
    except FieldError as error:
        raise ConfigurationError(f"hyperliquid parameters, [dated.{key}] {error.path}: {error.message}") from None
    return DatedParameters(key, source, states_max_leverage, owner in by_owner, tables, markets)


def _dated_tiers(market: Any, tables: Mapping[str, tuple[MarginTier, ...]], coin: str) -> tuple[MarginTier, ...]:
    if not isinstance(market, Mapping) or len(market) != 1 or not {"margin_table", "max_leverage"}.issuperset(market):
        raise FieldError(coin, FailureReason.MALFORMED, "expected either margin_table or max_leverage")
    if "max_leverage" in market:
        return single_tier(positive_at(market, "max_leverage", coin))
    if str(market["margin_table"]) not in tables:
        raise FieldError(coin, FailureReason.MISSING_PARAMETER, f"no margin table {market['margin_table']!r}")
    return tables[str(market["margin_table"])]


def partial_liquidation(parameters: Mapping[str, Any]) -> PartialLiquidation | None:
    """The dated terms of a partial liquidation, None without a table of them.

    Raises `ConfigurationError` naming the key unless the notional is positive, the share lies between 0 and 1, and the
    cooldown is not negative.
    """
    table = parameter_table(parameters, "partial_liquidation", venue="hyperliquid")
    if not table:
        return None
    try:
        share, cooldown = positive_at(table, "share"), integer_at(table, "cooldown_s")
        if share >= 1:
            raise FieldError("share", FailureReason.OUT_OF_RANGE, f"{share} is not below 1")
        if cooldown < 0:
            raise FieldError("cooldown_s", FailureReason.OUT_OF_RANGE, f"{cooldown} must not be negative")
        return PartialLiquidation(Fraction(positive_at(table, "notional")), Fraction(share), cooldown)
    except FieldError as error:
        message = f"hyperliquid parameters, [partial_liquidation] {error.path}: {error.message}"
        raise ConfigurationError(message) from None


def dated_tokens(parameters: Mapping[str, Any]) -> dict[int, str]:
    """Names of collateral tokens by token index: USDC, and the file's `[tokens]`. Raises `ConfigurationError`."""
    try:
        listed = {
            int(index): str(name) for index, name in parameter_table(parameters, "tokens", venue="hyperliquid").items()
        }
    except ValueError as error:
        raise ConfigurationError(f"hyperliquid parameters, [tokens]: {error}") from None
    return {USDC_TOKEN: "USDC"} | listed
