"""The self-written documents of a clearing house: (request, file, owner), owner empty for what is market-wide."""

PAYLOADS = (
    ("parameters", "parameters.json", ""),
    ("positions", "heron_positions.json", "heron"),
    ("account", "heron_account.json", "heron"),
    ("positions", "plover_positions.json", "plover"),
    ("account", "plover_account.json", "plover"),
    ("positions", "wren_positions.json", "wren"),
    ("account", "wren_account.json", "wren"),
)
PARAMETERS = None
