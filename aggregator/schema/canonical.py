"""The canonical tables: what every venue becomes, one Arrow schema per table, and the key columns of each.

Balances carry a side instead of a sign; rates are fractions (0.02 is 2 %). A new nullable column, a new word in a
closed list or a change of meaning is a new version of the table.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from ..errors import FailureReason
from .fields import exact, field, flag, information, number, table_schema, text, time

MARK_FIELDS = (
    "mark",
    "index",
    "oracle",
    "oracle_twap",
    "stable_price",
    "price_min",
    "price_max",
    "bid",
    "ask",
    "forward",
    "rate",
    "implied_vol",
    "delta",
    "funding_rate",
    "borrow_rate",
    "spread",
    "adv",
    "depth_bid",
    "depth_ask",
)
"""Closed list of mark fields. Prices per unit of the subject in the mark's own quote; vols and rates as fractions.

`funding_rate` is for the venue's own interval, `borrow_rate` what a debt of the asset costs a year, not compounded.
"""


ACCOUNTS = table_schema(
    "accounts",
    1,
    [
        text("account_id"),
        information(text("parent_account_id", nullable=True)),
        text("node"),
        text("venue"),
        text("chain", nullable=True),
        text("owner"),
        text("margin_mode", "cross | isolated | portfolio | lending"),
        text("rule_set"),
        text("settlement_asset", "asset whose unit the venue's own numbers carry; USD for a plain dollar base"),
        text("emode", "lending category", nullable=True),
        information(flag("multi_assets_mode", nullable=True)),
        time("event_at", nullable=True),
        time("received_at", nullable=True),
        exact("reported_equity", "settlement asset", nullable=True),
        exact("reported_initial_margin", "settlement asset", nullable=True),
        exact("reported_maintenance_margin", "settlement asset", nullable=True),
        exact("reported_health", "ratio as the venue defines it", nullable=True),
    ],
)

BALANCES = table_schema(
    "balances",
    1,
    [
        text("account_id"),
        text("asset_id"),
        text("side", "asset | liability"),
        exact("quantity", "tokens, positive"),
        exact("accrued_interest", "tokens not yet in quantity", nullable=True),
        flag("collateral_enabled"),
        exact("locked", "tokens not withdrawable", nullable=True),
    ],
)

POSITIONS = table_schema(
    "positions",
    1,
    [
        text("account_id"),
        text("instrument_id"),
        text("side_mode", "net | long | short"),
        exact("quantity", "contracts, signed, long positive"),
        exact("entry_price", "quote per unit", nullable=True),
        exact("unsettled_funding", "settlement asset, positive when owed to the account", nullable=True),
        exact("realized_pnl", "settlement asset, not yet in the balance", nullable=True),
        exact("leverage", "chosen leverage", nullable=True),
        exact("initial_rate_override", "fraction of notional", nullable=True),
        information(exact("isolated_collateral", "settlement asset", nullable=True)),
        exact("reported_initial_margin", "settlement asset", nullable=True),
        exact("reported_maintenance_margin", "settlement asset", nullable=True),
        exact("reported_liquidation_price", "quote per unit", nullable=True),
    ],
)

OPEN_ORDERS = table_schema(
    "open_orders",
    1,
    [
        text("order_id"),
        text("account_id"),
        text("instrument_id"),
        text("side", "buy | sell"),
        exact("remaining_quantity", "contracts, positive"),
        exact("limit_price", "quote per unit", nullable=True),
        flag("reduce_only"),
    ],
)

ASSETS = table_schema(
    "assets",
    1,
    [
        text("asset_id"),
        text("symbol"),
        text("chain", nullable=True),
        field("decimals", pa.int32(), "digits of a token integer", nullable=True),
        text("risk_factor", "price factor that moves the asset; empty for a pure stable asset", nullable=True),
        exact("multiplier", "units of the risk factor's asset per unit of this asset"),
        text("peg_of", "peg factor of the asset (a stable or a wrapped token)", nullable=True),
        text("issuer", "issuer group", nullable=True),
    ],
)

INSTRUMENTS = table_schema(
    "instruments",
    1,
    [
        text("instrument_id"),
        text("venue"),
        text("symbol"),
        text("kind", "spot | perp | future | option"),
        text("underlying", "asset_id of the unit that the price refers to"),
        text("settlement_asset", "asset_id of profit and loss"),
        text("payoff", "linear | inverse"),
        exact("contract_size", "linear: units per contract; inverse: USD per contract"),
        exact("strike", "quote per unit", nullable=True),
        time("expiry", nullable=True),
        text("option_type", "call | put", nullable=True),
    ],
)

MARKS = table_schema(
    "marks",
    3,
    [
        text("venue"),
        text("account_id", "set when the mark came inside this account's own payload", nullable=True),
        text("subject", "instrument_id, asset_id, `<underlying>@<expiry>` or pair"),
        text("field", " | ".join(MARK_FIELDS)),
        number("value", "as the field says"),
        number("confidence", "0 to 1", nullable=True),
        time("as_of", nullable=True),
        text("source"),
    ],
)

MARKET_STATE = table_schema(
    "market_state",
    1,
    [
        text("venue"),
        text("market"),
        text("field"),
        number("value", "base units or as the field says", nullable=True),
        text("text", "status words", nullable=True),
        time("as_of", nullable=True),
        text("source"),
    ],
)

RULE_SETS = table_schema(
    "rule_sets",
    1,
    [
        text("rule_set"),
        field("component_no", pa.int32(), "order within the rule set"),
        text("form"),
        text("side", "equity | requirement | verdict"),
        text("level", "initial | maintenance | both"),
        text("group_by", "position | instrument | expiry | underlying | settlement_asset | risk_unit | account"),
        text("parameters", "JSON text of the form's model, numbers as decimal strings"),
        time("valid_from", nullable=True),
        text("source"),
        time("read_at", nullable=True),
    ],
)

MARGIN_TIERS = table_schema(
    "margin_tiers",
    2,
    [
        text("rule_set"),
        text("market", "instrument_id"),
        field("tier", pa.int32(), "1 is the smallest notional"),
        exact("notional_floor", "settlement asset, or contracts where the component says so"),
        information(exact("notional_cap", "settlement asset, or contracts where the component says so", nullable=True)),
        exact("initial_rate", "fraction of notional"),
        exact("maintenance_rate", "fraction of notional, marginal"),
        exact("deduction", "settlement asset"),
        exact("size_coefficient", "growth of the rate with size, as the component's law says", nullable=True),
        text("source", "venue | model"),
    ],
)

COLLATERAL_TIERS = table_schema(
    "collateral_tiers",
    2,
    [
        text("rule_set"),
        text("asset_id", "id; an instrument's id for the profit of its positions"),
        text("emode", "lending category, empty for none"),
        field("tier", pa.int32(), "1 is the smallest floor"),
        exact("floor", "tokens, or value in the account's unit by floor_in"),
        text("floor_in", "tokens | value; null is tokens", nullable=True),
        exact("asset_weight_initial", "fraction of value that counts for initial margin"),
        exact("asset_weight_maintenance", "fraction of value that counts for maintenance margin"),
        exact("liability_weight_initial", "multiple of value that a debt counts for initial margin"),
        exact("liability_weight_maintenance", "multiple of value that a debt counts for maintenance margin"),
        information(exact("liquidation_bonus", "fraction", nullable=True)),
        information(exact("cap", "tokens", nullable=True)),
        text("source"),
    ],
)

ROUTES = table_schema(
    "routes",
    1,
    [
        text("source_node"),
        text("target_node"),
        text("asset_id"),
        number("transfer_median_s", "s"),
        number("transfer_p99_s", "s"),
        number("capacity_usd", "USD", nullable=True),
        number("fee_rate", "fraction"),
        number("failure_probability", "probability per transfer"),
    ],
)

FAILURES = table_schema(
    "failures",
    1,
    [
        text("venue", nullable=True),
        text("payload", nullable=True),
        text("path", "path of the field", nullable=True),
        text("subject", nullable=True),
        text("account_id", "account made incomplete by this failure", nullable=True),
        text("reason", " | ".join(FailureReason)),
        text("message"),
    ],
)

CANONICAL: Mapping[str, pa.Schema] = {
    "accounts": ACCOUNTS,
    "balances": BALANCES,
    "positions": POSITIONS,
    "open_orders": OPEN_ORDERS,
    "assets": ASSETS,
    "instruments": INSTRUMENTS,
    "marks": MARKS,
    "market_state": MARKET_STATE,
    "rule_sets": RULE_SETS,
    "margin_tiers": MARGIN_TIERS,
    "collateral_tiers": COLLATERAL_TIERS,
    "routes": ROUTES,
    "failures": FAILURES,
}
"""Every canonical table by name."""

KEYS: Mapping[str, tuple[str, ...]] = {
    "accounts": ("account_id",),
    "balances": ("account_id", "asset_id", "side"),
    "positions": ("account_id", "instrument_id", "side_mode"),
    "open_orders": ("order_id",),
    "assets": ("asset_id",),
    "instruments": ("instrument_id",),
    "marks": ("venue", "account_id", "subject", "field"),
    "market_state": ("venue", "market", "field"),
    "rule_sets": ("rule_set", "component_no"),
    "margin_tiers": ("rule_set", "market", "tier"),
    "collateral_tiers": ("rule_set", "asset_id", "emode", "tier"),
    "routes": ("source_node", "target_node", "asset_id"),
}
"""Key columns by table: two rows of equal key are duplicates and all copies are rejected."""
