"""Rule sets in use on Binance, with the symbols and coins that each needs tiers for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from aggregator.rule_forms import component_rows

from ..amounts import FieldError
from ..rows import Rows
from .contracts import Market, any_market_of, is_coin_symbol
from .market import BinanceCatalog, MarketData
from .portfolio_market import PortfolioMarket
from .rules import (
    COIN_MARGINED,
    MULTI_ASSETS,
    PORTFOLIO_MARGIN,
    SINGLE_ASSET,
    PortfolioAmounts,
    collateral_tier_rows,
    futures_components,
    margin_tier_rows,
    portfolio_collateral_rows,
    portfolio_components,
    rule_set_id,
)

RULE_SOURCES: Mapping[str, str] = {
    SINGLE_ASSET: "Binance, leverage and margin of USD-M futures",
    MULTI_ASSETS: "Binance, leverage and margin of USD-M futures",
    COIN_MARGINED: "Binance, leverage and margin of COIN-M futures",
    PORTFOLIO_MARGIN: "Binance FAQ, portfolio margin pro: maintenance margin ratio calculation",
}
"""Where the rules of each shared rule set were read."""


@dataclass
class RuleSets:
    """Rule sets in use, with the symbols and coins that each needs tiers for."""

    symbols: dict[str, set[str]] = field(default_factory=dict)
    components: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    coins: dict[str, set[str]] = field(default_factory=dict)
    """Coins of portfolio-margin accounts that have a rule set of their own."""

    def share(self, name: str) -> None:
        """Takes in the rule set that all accounts of a mode share."""
        rule_set = rule_set_id(name)
        if rule_set not in self.components:
            components = futures_components(multi_assets=name == MULTI_ASSETS, order_initial=Decimal(0), order_basis="")
            self.components[rule_set] = component_rows(rule_set, components, source=RULE_SOURCES[name])

    def share_portfolio(self, portfolio: PortfolioMarket) -> None:
        """Takes in the rule set of portfolio-margin accounts without loans, order margin or brackets of their own."""
        rule_set = rule_set_id(PORTFOLIO_MARGIN)
        # Without a trigger every account under it has failed, and its verdict decides nothing.
        components = portfolio_components(PortfolioAmounts(), trigger=portfolio.trigger or Decimal(1))
        self.components[rule_set] = component_rows(rule_set, components, source=RULE_SOURCES[PORTFOLIO_MARGIN])

    def write(self, rows: Rows, market: MarketData, portfolio: PortfolioMarket, catalog: BinanceCatalog) -> None:
        """Adds rule sets and their tiers.

        A shared rule set of a futures product has those of every known market, that of portfolio margin those of every
        known coin.
        """
        known = [found for name in market.brackets.market if (found := _known_market(name, catalog)) is not None]
        if any(not is_coin_symbol(name) for name in market.brackets.market):
            self.share(SINGLE_ASSET)
        if any(found.inverse for found in known):
            self.share(COIN_MARGINED)
        if market.indices:
            self.share(MULTI_ASSETS)
        if portfolio.rates:
            self.share_portfolio(portfolio)
        linear = {found.symbol for found in known if not found.inverse}
        inverse = {found.symbol for found in known if found.inverse}
        shared = {
            rule_set_id(SINGLE_ASSET): linear,
            rule_set_id(MULTI_ASSETS): linear,
            rule_set_id(COIN_MARGINED): inverse,
        }
        for name in sorted(self.components):
            rows.rows["rule_sets"].extend(self.components[name])
            symbols = shared.get(name, set()) | self.symbols.get(name, set())
            owner = self.owners.get(name, "")
            for symbol in sorted(symbols):
                traded = any_market_of(symbol)
                brackets = market.brackets.find(traded, owner)
                if brackets is not None:
                    instrument = catalog.instrument(traded)
                    rows.rows["margin_tiers"].extend(margin_tier_rows(name, instrument, brackets))
            if name.startswith(rule_set_id(MULTI_ASSETS)):
                for asset in sorted(market.indices):
                    if catalog.named.asset(asset):
                        rows.rows["collateral_tiers"].extend(collateral_tier_rows(name, market.indices[asset]))
            if name.startswith(rule_set_id(PORTFOLIO_MARGIN)):
                coins = {coin for coin in portfolio.rates if catalog.named.asset(coin)}
                for coin in sorted(coins & self.coins.get(name, coins)):
                    tiers = portfolio_collateral_rows(name, portfolio.rates[coin], floor_in=portfolio.floor_in)
                    rows.rows["collateral_tiers"].extend(tiers)


def _known_market(name: str, catalog: BinanceCatalog) -> Market | None:
    """The market of brackets whose assets are known; those of a pair stand for its perpetual."""
    try:
        market = any_market_of(f"{name}_PERP" if is_coin_symbol(name) and "_" not in name else name)
        if not catalog.known(market):
            return None
        catalog.contract_size(market)
    except FieldError:
        return None
    return market
