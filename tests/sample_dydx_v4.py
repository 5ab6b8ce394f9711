"""The self-written payloads of dYdX v4: (request, file, owner), market-wide ones without an owner."""

PAYLOADS = (
    ("perpetualMarkets", "perpetual_markets.json", ""),
    ("Query/AllPerpetuals", "node_perpetuals.json", ""),
    ("Query/AllMarketPrices", "node_market_prices.json", ""),
    ("Query/AllLiquidityTiers", "node_liquidity_tiers.json", ""),
    ("parentSubaccount", "north_parent_subaccount.json", "north"),
    ("subaccount", "south_subaccount.json", "south"),
    ("orders", "south_orders.json", "south"),
    ("v4_subaccounts", "west_ws_subaccounts.json", "west"),
    ("perpetualPositions", "lists_perpetual_positions.json", "lists"),
    ("assetPositions", "lists_asset_positions.json", "lists"),
    ("Query/Subaccount", "east_node_subaccount.json", "east"),
    ("Query/Leverage:0", "east_leverage.json", "east"),
)
PARAMETERS = None
