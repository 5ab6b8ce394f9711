"""The self-written payloads of Compound v3: (request, file, owner), and the parameter file they need."""

PAYLOADS = (
    ("market", "market_usdc.json", ""),
    ("configuration:ethereum-weth", "configuration_weth.json", ""),
    ("account", "fund_usdc.json", "fund"),
    ("account", "fund_weth.json", "fund"),
    ("account", "saver.json", "saver"),
    ("account:ethereum-usdc", "idle.json", "idle"),
)
PARAMETERS = "configs/venues/compound_v3.toml"
