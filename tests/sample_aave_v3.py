"""The self-written payloads of Aave v3 of one instant: (request, file, owner), and the parameter file they need."""

PAYLOADS = (
    ("getReservesData", "june_reserves.json", ""),
    ("getEModes", "june_emodes.json", ""),
    ("getUserReservesData", "june_user_north.json", "north"),
    ("getUserAccountData", "june_data_north.json", "north"),
    ("getUserReservesData", "june_user_staking.json", "staking"),
    ("getUserAccountData", "june_data_staking.json", "staking"),
    ("getUserReservesData", "june_user_treasury.json", "treasury"),
    ("getUserAccountData", "june_data_treasury.json", "treasury"),
)
PARAMETERS = "configs/venues/aave_v3.toml"
