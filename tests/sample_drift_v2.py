"""The self-written payloads of Drift v2: (request, file, owner), market-wide ones without an owner."""

PAYLOADS = (
    ("spotMarkets", "spot_markets.json", ""),
    ("perpMarkets", "perp_markets.json", ""),
    ("state", "state.json", ""),
    ("/v2/markets", "markets.json", ""),
    ("user", "north_users.json", "north"),
    ("/v2/collateral", "north_collateral.json", "north"),
    ("/v2/user/marginInfo", "north_margin_info.json", "north"),
    ("/v2/positionInfo/0", "north_position_info_0.json", "north"),
    ("user", "south_user.json", "south"),
)
PARAMETERS = "configs/venues/drift_v2.toml"
