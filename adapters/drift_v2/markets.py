"""Spot and perpetual markets of Drift v2 from their decoded program accounts, and what all payloads share.

Prices are the oracle's, in units of 1e-6 dollars: `oracle_price` where whoever decoded the account put the oracle's
beside it, else the last one that the program itself has seen (`historical_oracle_data.last_oracle_price`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..adapter import Context, parameter_table
from ..amounts import FieldError, joined, token_amount
from ..catalog import Catalog
from ..findings import Problem
from ..market_rows import add_mark, add_market_state, add_reconciliation_note
from ..rows import Rows
from ..symbols import instrument_id
from ..transport import Payload
from .decoded import accounts_in, has, integer, name_of, positive, unsigned, variant
from .decoded import field as field_of
from .mechanics import BASE, PRICE, QUOTE_SPOT_MARKET, WEIGHT, PerpMarket, SpotMarket, token_value, trunc_div
from .mechanics import token_amount as tokens_of

VENUE = "drift_v2"
STATUSES = (
    "initialized",
    "active",
    "fundingpaused",
    "ammpaused",
    "fillpaused",
    "withdrawpaused",
    "reduceonly",
    "settlement",
    "delisted",
)
CONTRACTS = ("perpetual", "future", "prediction")
FUNDING_RATE = 10**9
MAX_DECIMALS = 19


class Spot(NamedTuple):
    """A spot market; interests as the program stores them."""

    symbol: str
    asset_id: str
    market: SpotMarket
    pool_id: int
    deposit_interest: int
    borrow_interest: int


class Perp(NamedTuple):
    """A perpetual market; funding rates are cumulative."""

    market_index: int
    symbol: str
    instrument_id: str
    market: PerpMarket
    pool_id: int
    funding_long: int
    funding_short: int
    is_settled: bool


@dataclass
class Reading:
    """One snapshot of the venue while it is read: what all its payloads share, and the rows so far."""

    rows: Rows
    context: Context
    catalog: Catalog
    spots: dict[int, Spot] = field(default_factory=dict)
    perps: dict[int, Perp] = field(default_factory=dict)
    problems: dict[tuple[str, int], Problem] = field(default_factory=dict)
    spot_payload: Payload | None = None

    @property
    def chain(self) -> str:
        """Name of the chain in asset ids."""
        return str(self.context.parameters.get("chain", "solana"))

    def token(self, symbol: str, decimals: int | None, path: str) -> str:
        """Asset id of a token, noted for the table `assets`; raises `FieldError(unknown_asset)`."""
        names = parameter_table(self.context.parameters, "symbols", venue=VENUE)
        return self.catalog.token(names.get(symbol, symbol), self.chain, decimals, path=path)

    def perp_instrument(self, symbol: str, path: str) -> str:
        """Instrument id of a perpetual, noted for the table `instruments`; raises `FieldError(unknown_market)`."""
        underlying = symbol.removesuffix("-PERP")
        if not symbol.endswith("-PERP"):
            raise FieldError(path, FailureReason.UNKNOWN_MARKET, f"{symbol!r:.60} is no name of a perpetual")
        self.catalog.known_asset(underlying, path=path, reason=FailureReason.UNKNOWN_MARKET, of=symbol)
        return self._instrument(symbol, "perp", underlying, path)

    def spot_instrument(self, spot: Spot, path: str) -> str:
        """Instrument id of a spot market, on which orders rest."""
        return self._instrument(spot.symbol, "spot", spot.asset_id, path)

    def _instrument(self, symbol: str, kind: str, underlying: str, path: str) -> str:
        settlement = self.token("USDC", 6, path)
        return self.catalog.instrument(symbol, kind=kind, underlying=underlying, settlement_asset=settlement)

    def quote(self, path: str) -> Spot:
        """Spot market 0, in which everything settles; raises `FieldError` where it is not known."""
        return self.spot(QUOTE_SPOT_MARKET, path)

    def spot(self, index: int, path: str) -> Spot:
        """A spot market by index; raises `FieldError` with its own problem, or unknown_market."""
        if ("spot", index) in self.problems:
            raise FieldError(path, *self.problems["spot", index])
        if index not in self.spots:
            raise FieldError(path, FailureReason.UNKNOWN_MARKET, f"no account of spot market {index}")
        return self.spots[index]

    def perp(self, index: int, path: str) -> Perp:
        """A perpetual market by index; raises `FieldError` with its own problem, or unknown_market."""
        if ("perp", index) in self.problems:
            raise FieldError(path, *self.problems["perp", index])
        if index not in self.perps:
            raise FieldError(path, FailureReason.UNKNOWN_MARKET, f"no account of perpetual market {index}")
        return self.perps[index]


def usd(price: int) -> Decimal:
    """Dollars of a price in the program's units."""
    return Decimal(price) / PRICE


def read_markets(reading: Reading, payload: Payload, kind: str) -> None:
    """All markets of one `spotMarkets` or `perpMarkets` payload; what cannot be read is a failure and a problem.

    A token or an underlying that the asset book does not know is a problem of the market's holders alone.
    """
    rows = reading.rows
    if kind == "spot":
        reading.spot_payload = payload
    with rows.guard(payload.name, subject=payload.request):
        seen: set[int] = set()
        for path, record in accounts_in(payload.body):
            with rows.guard(payload.name, subject=path):
                index = unsigned(record, "market_index", path)
                try:
                    if index in seen:
                        raise FieldError(
                            path, FailureReason.DUPLICATE, f"{kind} market {index} is listed several times"
                        )
                    seen.add(index)
                    if kind == "spot":
                        _read_spot(reading, payload, record, path, index)
                    else:
                        _read_perp(reading, payload, record, path, index)
                except FieldError as error:
                    (reading.spots if kind == "spot" else reading.perps).pop(index, None)
                    reading.problems[kind, index] = Problem(error.reason, error.message)
                    if error.reason not in (FailureReason.UNKNOWN_ASSET, FailureReason.UNKNOWN_MARKET):
                        raise


def _oracle(record: Any, history: Any, path: str, history_path: str) -> tuple[int, int | None, str]:
    """(oracle price, its 5-minute mean where it is stated, what the price was read from)."""
    twap = None
    if has(history, "last_oracle_price_twap_5min"):
        twap = positive(history, "last_oracle_price_twap_5min", history_path)
    if has(record, "oracle_price"):
        return positive(record, "oracle_price", path), twap, "oracle_price"
    if has(record, "oracle_price_data"):
        place = joined(path, "oracle_price_data")
        return positive(field_of(record, "oracle_price_data", path), "price", place), twap, "oracle_price_data"
    return positive(history, "last_oracle_price", history_path), twap, "last_oracle_price"


def _ratio(record: Any, name: str, path: str, *, largest: int = WEIGHT) -> int:
    number = unsigned(record, name, path)
    if number > largest:
        raise FieldError(joined(path, name), FailureReason.OUT_OF_RANGE, f"{number} is above {largest}")
    return number


def _read_spot(reading: Reading, payload: Payload, record: Any, path: str, index: int) -> None:
    symbol, decimals = name_of(record, path), unsigned(record, "decimals", path)
    if decimals > MAX_DECIMALS:
        raise FieldError(joined(path, "decimals"), FailureReason.OUT_OF_RANGE, f"{decimals} decimals")
    place = joined(path, "historical_oracle_data")
    history = field_of(record, "historical_oracle_data", path) if has(record, "historical_oracle_data") else {}
    price, twap, source = _oracle(record, history, path, place)
    interests = tuple(unsigned(record, f"cumulative_{side}_interest", path) for side in ("deposit", "borrow"))
    sides = zip(("deposit", "borrow"), interests, strict=True)
    totals = {
        side: abs(tokens_of(unsigned(record, f"{side}_balance", path), interest, decimals, is_borrow=side == "borrow"))
        for side, interest in sides
    }
    market = SpotMarket(
        index,
        decimals,
        price,
        twap,
        _ratio(record, "initial_asset_weight", path),
        _ratio(record, "maintenance_asset_weight", path),
        unsigned(record, "initial_liability_weight", path),
        unsigned(record, "maintenance_liability_weight", path),
        unsigned(record, "imf_factor", path),
        unsigned(record, "scale_initial_asset_weight_start", path),
        totals["deposit"],
    )
    status = variant(record, "status", path, known=STATUSES)
    asset = reading.token(symbol, decimals, joined(path, "name"))
    if any(known.asset_id == asset for known in reading.spots.values()):
        raise FieldError(path, FailureReason.DUPLICATE, f"several spot markets are {asset}")
    pool = unsigned(record, "pool_id", path)
    reading.spots[index] = Spot(symbol, asset, market, pool, interests[0], interests[1])
    _add_mark(reading, asset, "oracle", usd(price), payload, source)
    if twap is not None:
        _add_mark(reading, asset, "oracle_twap", usd(twap), payload, "last_oracle_price_twap_5min")
    state: dict[str, Decimal | str] = {
        "deposits": token_amount(totals["deposit"], decimals),
        "borrows": token_amount(totals["borrow"], decimals),
        "deposit_index": Decimal(interests[0]) / 10**10,
        "borrow_index": Decimal(interests[1]) / 10**10,
        "deposit_value": usd(token_value(totals["deposit"], decimals, price)),
        "status": status,
    }
    if has(record, "max_token_deposits"):
        state["deposit_cap"] = token_amount(unsigned(record, "max_token_deposits", path), decimals)
    add_state(reading, asset, state, payload)


def _read_perp(reading: Reading, payload: Payload, record: Any, path: str, index: int) -> None:
    symbol, amm, place = name_of(record, path), field_of(record, "amm", path), joined(path, "amm")
    history_path = joined(place, "historical_oracle_data")
    history = field_of(amm, "historical_oracle_data", place) if has(amm, "historical_oracle_data") else {}
    price, twap, source = _oracle(record, history, path, history_path)
    status = variant(record, "status", path, known=STATUSES)
    contract = variant(record, "contract_type", path, known=CONTRACTS)
    quote_index = unsigned(record, "quote_spot_market_index", path)
    if quote_index != QUOTE_SPOT_MARKET:
        message = f"settles in spot market {quote_index}; only market 0 is known to be one"
        raise FieldError(joined(path, "quote_spot_market_index"), FailureReason.UNSUPPORTED, message)
    imbalance = unsigned(record, "unrealized_pnl_max_imbalance", path)
    market = PerpMarket(
        price,
        _ratio(record, "margin_ratio_initial", path),
        _ratio(record, "margin_ratio_maintenance", path),
        unsigned(record, "imf_factor", path),
        _ratio(record, "unrealized_pnl_initial_asset_weight", path),
        _ratio(record, "unrealized_pnl_maintenance_asset_weight", path),
        unsigned(record, "unrealized_pnl_imf_factor", path),
        imbalance,
        _net_user_pnl(amm, history, price, place) if imbalance else 0,
        is_prediction=contract == "prediction",
        expiry_price=integer(record, "expiry_price", path) if status == "settlement" else None,
        high_leverage_ratio_initial=_ratio(record, "high_leverage_margin_ratio_initial", path),
        high_leverage_ratio_maintenance=_ratio(record, "high_leverage_margin_ratio_maintenance", path),
    )
    if market.margin_ratio_initial == 0 or market.margin_ratio_maintenance > market.margin_ratio_initial:
        message = f"margin ratios {market.margin_ratio_initial} and {market.margin_ratio_maintenance}"
        raise FieldError(joined(path, "margin_ratio_initial"), FailureReason.INCONSISTENT, message)
    identity = reading.perp_instrument(symbol, joined(path, "name"))
    reading.perps[index] = Perp(
        index,
        symbol,
        identity,
        market,
        unsigned(record, "pool_id", path),
        integer(amm, "cumulative_funding_rate_long", place),
        integer(amm, "cumulative_funding_rate_short", place),
        status == "settlement",
    )
    for name in ("mark", "oracle"):  # positions are valued at the oracle price
        _add_mark(reading, identity, name, usd(price), payload, source)
    if twap is not None:
        _add_mark(reading, identity, "oracle_twap", usd(twap), payload, "last_oracle_price_twap_5min")
    _add_mark(reading, reading.catalog.instruments[identity]["underlying"], "index", usd(price), payload, source)
    state: dict[str, Decimal | str] = {"status": status, "contract_type": contract}
    for name, key, scale in (
        ("open_interest_long", "base_asset_amount_long", BASE),
        ("open_interest_short", "base_asset_amount_short", BASE),
        ("open_interest_cap", "max_open_interest", BASE),
        ("cumulative_funding_long", "cumulative_funding_rate_long", FUNDING_RATE),
        ("cumulative_funding_short", "cumulative_funding_rate_short", FUNDING_RATE),
    ):
        if has(amm, key):
            state[name] = Decimal(integer(amm, key, place)) / scale
    if has(amm, "last24h_avg_funding_rate"):  # dollars per unit of base and hour
        rate = Decimal(integer(amm, "last24h_avg_funding_rate", place)) / FUNDING_RATE / usd(price)
        _add_mark(reading, identity, "funding_rate", rate, payload, "last24h_avg_funding_rate")
    add_state(reading, identity, state, payload)


def _net_user_pnl(amm: Any, history: Any, price: int, path: str) -> int:
    """All users' unsettled profit in quote units, at the last price that the program has seen."""
    seen = positive(history, "last_oracle_price", path) if has(history, "last_oracle_price") else price
    base = integer(amm, "base_asset_amount_with_amm", path)
    return trunc_div(base * seen, BASE) + integer(amm, "quote_asset_amount", path)


def read_state(reading: Reading, payload: Payload) -> None:
    """Parameters of liquidations from the program's `State`; margin does not depend on them."""
    with reading.rows.guard(payload.name, subject=payload.request):
        for path, record in accounts_in(payload.body):
            found = {
                name: Decimal(unsigned(record, name, path)) / WEIGHT
                for name in ("liquidation_margin_buffer_ratio", "initial_pct_to_liquidate")
                if has(record, name)
            }
            if has(record, "liquidation_duration"):
                found["liquidation_duration"] = Decimal(unsigned(record, "liquidation_duration", path))
            add_state(reading, VENUE, found, payload)


# Rows -----------------------------------------------------------------------------------------------------------------


def _add_mark(reading: Reading, subject: str, name: str, value: Decimal, payload: Payload, source: str) -> None:
    stated_by = f"{payload.request}: {source}"
    add_mark(reading.rows, subject, name, value, as_of=payload.received_at, source=stated_by)


def add_state(reading: Reading, market: str, values: Mapping[str, Decimal | str], payload: Payload) -> None:
    """Rows of `market_state`."""
    for name, value in values.items():
        add_market_state(reading.rows, market, name, value, as_of=payload.received_at, source=payload.request)


def note_initial_margin(reading: Reading, account: str, size: Decimal, payload: Payload) -> None:
    """A note for the reconciliation: how much the gateway's initial margin may differ from ours, and why."""
    words = "the gateway leaves out strict prices and what initial weights take off the collateral"
    as_of, source = payload.received_at, payload.request
    add_reconciliation_note(reading.rows, account, "initial_margin", size, words, as_of=as_of, source=source)


def add_shared_rows(reading: Reading) -> None:
    """Assets and instruments that the rows so far refer to, and prices of spot markets in USDC."""
    quote = reading.spots.get(QUOTE_SPOT_MARKET)
    for spot in reading.spots.values():
        identity = instrument_id(VENUE, spot.symbol)
        if identity in reading.catalog.instruments and quote is not None and reading.spot_payload is not None:
            price = Decimal(spot.market.price) / quote.market.price
            _add_mark(reading, identity, "mark", price, reading.spot_payload, "oracle price over that of USDC")
    reading.catalog.write(reading.rows)


def note_usdc(reading: Reading) -> str:
    """Asset id of USDC, noted if the asset book knows it."""
    with suppress(FieldError):
        reading.token("USDC", 6, "")
    return f"USDC@{reading.chain}"
