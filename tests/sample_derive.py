"""Payloads of Derive in `payloads/derive` that are of 2024-06-30, for suites over all venues: (request, file, owner or
empty).
"""

PAYLOADS = (
    ("public/get_ticker", "june_ticker_eth_perp.json", ""),
    ("public/get_ticker", "june_ticker_btc_perp.json", ""),
    ("public/get_ticker", "june_ticker_eth_20240726_3600_c.json", ""),
    ("public/get_ticker", "june_ticker_eth_20240726_3100_p.json", ""),
    ("public/get_ticker", "june_ticker_eth_20240927_4200_c.json", ""),
    ("public/get_ticker", "june_ticker_btc_20240726_64000_c.json", ""),
    ("public/get_ticker", "june_ticker_btc_20240927_52000_p.json", ""),
    ("public/get_ticker", "june_ticker_weeth_usdc.json", ""),
    ("public/get_latest_signed_feeds", "june_latest_signed_feeds.json", ""),
    ("private/get_subaccount", "june_pm2_subaccount.json", "june"),
    ("private/get_subaccount", "june_sm_subaccount.json", "june"),
    ("private/get_subaccount", "june_cash_subaccount.json", "june"),
    ("private/get_subaccount", "june_pm_subaccount.json", "june"),
    ("private/get_positions", "june_pm2_positions.json", "june"),
    ("private/get_open_orders", "june_pm2_open_orders.json", "june"),
)
PARAMETERS = "configs/venues/derive.toml"
