"""The self-written payloads of GMX v2: (request, file, owner), owner empty for what is market-wide."""

PAYLOADS = (
    ("tokens", "tokens.json", ""),
    ("getMarkets", "markets.json", ""),
    ("getMarketInfoList", "market_info.json", ""),
    ("dataStore", "data_store.json", ""),
    ("tickers", "tickers.json", ""),
    ("getAccountPositions", "kestrel_positions.json", "kestrel"),
    ("isPositionLiquidatable", "kestrel_liquidatable.json", "kestrel"),
    ("getAccountOrders", "kestrel_orders.json", "kestrel"),
    ("getAccountPositionInfoList", "osprey_position_infos.json", "osprey"),
    ("isPositionLiquidatable", "osprey_liquidatable.json", "osprey"),
)
PARAMETERS = "configs/venues/gmx_v2.toml"
