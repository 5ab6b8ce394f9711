"""The self-written payloads of Morpho Blue: (request, file, owner), and the parameter file they need."""

PAYLOADS = (
    ("market", "markets.json", ""),
    ("tokens", "tokens.json", ""),
    ("position", "fund.json", "fund"),
    ("position:wsteth-usdc-86", "solo.json", "solo"),
    ("userByAddress", "desk.json", "desk"),
    ("positions", "keeper.json", "keeper"),
)
PARAMETERS = "configs/venues/morpho_blue.toml"
