"""Payloads of Paradex in `payloads/paradex`, for suites over all venues: (request, file, owner or empty)."""

PAYLOADS = (
    ("v1/markets", "markets.json", ""),
    ("v1/markets/summary", "markets_summary.json", ""),
    ("v1/system/margin-config", "margin_config.json", ""),
    ("v1/system/config", "system_config.json", ""),
    ("v1/bbo", "bbo_btc.json", ""),
    ("v1/account/info", "desk_info.json", "desk"),
    ("v1/account/summary", "desk_account.json", "desk"),
    ("v1/account/margin", "desk_margin.json", "desk"),
    ("v1/account/margin:0x0b0c22", "desk_margin_isolated.json", "desk"),
    ("v1/positions", "desk_positions.json", "desk"),
    ("v1/orders", "desk_orders.json", "desk"),
    ("v1/balance", "desk_balance.json", "desk"),
    ("v1/balance:0x0b0c22", "desk_balance_isolated.json", "desk"),
    ("v1/account", "grid_account.json", "grid"),
    ("v1/account/info", "grid_info.json", "grid"),
    ("v1/account/margin", "grid_margin.json", "grid"),
    ("v1/positions", "grid_positions.json", "grid"),
    ("v1/orders", "grid_orders.json", "grid"),
    ("v1/balance", "grid_balance.json", "grid"),
)
PARAMETERS = "configs/venues/paradex.toml"
