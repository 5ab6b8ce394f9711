"""Deribit: the desk of `payloads/deribit`, written for this suite (see its SOURCE.md), and the adapter run on it."""

import tomllib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from adapters.adapter import Context, Normalized
from adapters.asset_book import read_asset_book
from adapters.deribit import ADAPTER
from adapters.deribit.mechanics import MatrixParameters, OptionRates
from adapters.transport import Payload
from tests.payload_files import changed, read_payload
from tests.sample_deribit import PAYLOADS

TESTS = Path(__file__).resolve().parent
FOLDER = TESTS / "payloads" / "deribit"
CONFIGS = TESTS.parent / "configs"
PARAMETERS = tomllib.loads((CONFIGS / "venues" / "deribit.toml").read_text(encoding="utf-8"))
ASSETS = read_asset_book(CONFIGS / "assets.toml")
REQUESTS = {file: (request, owner) for request, file, owner in PAYLOADS}

NORTH_BTC, NORTH_USDC, SOUTH = "deribit:north:BTC", "deribit:north:USDC", "deribit:south:cross"
EAST, WEST, QUAY = "deribit:east:BTC", "deribit:west:cross", "deribit:quay:USDT"


def fetched(file: str, *, root: Path = FOLDER, request: str = "", owner: str = "") -> Payload:
    stated = REQUESTS.get(file, (request, owner)) if root == FOLDER else (request, owner)
    return read_payload("deribit", root, stated[0], file, stated[1])


def desk() -> list[Payload]:
    return [fetched(file) for file in REQUESTS]


def normalized(payloads: list[Payload], parameters: Any = None) -> Normalized:
    return ADAPTER.normalize(payloads, Context(ASSETS, PARAMETERS if parameters is None else parameters))


def desk_with(file: str, change: Callable[[Any], None]) -> list[Payload]:
    return [changed(payload, change) if payload.name == file else payload for payload in desk()]


def desk_without(*files: str) -> list[Payload]:
    return [payload for payload in desk() if payload.name not in files]


def exact(value: Any) -> Fraction:
    return Fraction(str(value))


def matrix_parameters(coin: str) -> MatrixParameters:
    general = PARAMETERS["portfolio_margin"]["general"]
    pair = PARAMETERS["portfolio_margin"]["currency_pair"][f"{coin}_usd"]
    currency = PARAMETERS["portfolio_margin"]["currency"][coin]
    return MatrixParameters(
        exact(pair["price_range"]),
        general["buckets_count"],
        general["vol_scenarios_count"],
        exact(currency["pnl_offset"]),
        exact(currency["annualised_move_risk"]),
        exact(currency["min_annualised_move"]),
        exact(currency["extended_dampener"]),
        exact(pair["extended_table_factor"]),
        exact(pair["delta_total_liq_shock_threshold"]),
        exact(pair["max_delta_shock"]),
        exact(general["mm_factor"]),
        exact(pair["m_inc"]),
        exact(pair["volatility_range_up"]),
        exact(pair["volatility_range_down"]),
        exact(pair["min_volatility_for_shock_up"]),
        exact(pair["short_term_vega_power"]),
        exact(pair["long_term_vega_power"]),
    )


def option_rates(coin: str) -> OptionRates:
    """Standard margin of a short option of a coin, from the parameter file."""
    rates = PARAMETERS["options"][coin]
    return OptionRates(*(exact(rates[name]) for name in ("initial", "initial_floor", "maintenance", "put_mark")))
