"""Rule sets in use on Bybit, with the markets and coins that each needs tiers for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aggregator.rule_forms import Component, component_rows

from ..rows import Rows
from ..symbols import instrument_id
from .catalog import VENUE, BybitCatalog
from .market import MarketData
from .parse import market_of
from .rules import (
    CROSS,
    RULE_SOURCE,
    Amounts,
    CollateralTable,
    collateral_tier_rows,
    cross_components,
    margin_tier_rows,
    profit_weight_row,
    rule_set_id,
)


@dataclass
class RuleSets:
    """What accounts have asked for: components of each rule set, symbols held under it, its own collateral tables."""

    components: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    symbols: dict[str, set[str]] = field(default_factory=dict)
    collateral: dict[str, dict[str, CollateralTable]] = field(default_factory=dict)

    def add(
        self, rule_set: str, components: Sequence[Component], *, symbols: set[str], source: str = RULE_SOURCE
    ) -> None:
        """Takes a rule set in, or more symbols of one that is there."""
        if rule_set not in self.components:
            self.components[rule_set] = component_rows(rule_set, components, source=source)
        self.symbols.setdefault(rule_set, set()).update(symbols)

    def write(self, rows: Rows, market: MarketData, catalog: BybitCatalog) -> None:
        """Adds rule sets and their tiers; the shared set of cross margin has those of every known market and coin."""
        shared = rule_set_id(CROSS)
        if market.risk_tables or market.collateral:
            self.add(shared, cross_components(Amounts(), market.options), symbols=set())
        for rule_set in sorted(self.components):
            rows.rows["rule_sets"].extend(self.components[rule_set])
            symbols = set(self.symbols[rule_set])
            if rule_set == shared:
                symbols |= {symbol for symbol in market.risk_tables if catalog.known(symbol) is not None}
            for symbol in sorted(symbols):
                self._write_market(rows, rule_set, symbol, market, catalog)
            tables: Mapping[str, CollateralTable] = self.collateral.get(rule_set, {})
            if rule_set == shared:
                tables = {coin: table for coin, table in market.collateral.items() if catalog.named.asset(coin)} | dict(
                    tables
                )
            for coin in sorted(tables):
                rows.rows["collateral_tiers"].extend(collateral_tier_rows(rule_set, tables[coin]))

    def _write_market(self, rows: Rows, rule_set: str, symbol: str, market: MarketData, catalog: BybitCatalog) -> None:
        instrument = instrument_id(VENUE, symbol)
        catalog.instrument(market_of(symbol))
        if not rule_set.startswith(rule_set_id("isolated")):
            rows.rows["collateral_tiers"].append(profit_weight_row(rule_set, instrument))
        table = market.risk_tables.get(symbol)
        if table is not None:
            rows.rows["margin_tiers"].extend(margin_tier_rows(rule_set, instrument, table))
