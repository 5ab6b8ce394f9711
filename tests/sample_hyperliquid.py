"""Payloads of Hyperliquid in `payloads/hyperliquid` that are of 2024-06-30, for suites over all venues: (request, file,
owner or empty).
"""

PAYLOADS = (
    ("metaAndAssetCtxs", "june_meta_and_asset_ctxs.json", ""),
    ("allPerpMetas", "june_all_perp_metas.json", ""),
    ("marginTable:56", "june_margin_table_56.json", ""),
    ("spotMeta", "june_spot_meta.json", ""),
    ("clearinghouseState", "june_clearinghouse_state.json", "june"),
    ("clearinghouseState:lab", "june_clearinghouse_state_lab.json", "june"),
    ("spotClearinghouseState", "june_spot_clearinghouse_state.json", "june"),
    ("openOrders", "june_open_orders.json", "june"),
    ("frontendOpenOrders", "june_frontend_open_orders.json", "june"),
    ("activeAssetData", "june_active_asset_data_btc.json", "june"),
    ("activeAssetData", "june_active_asset_data_lab.json", "june"),
)
PARAMETERS = "configs/venues/hyperliquid.toml"
