"""Synthetic books of any size as canonical Arrow tables, the same for everybody who races on them.

Made column by column from a seed: no Python runs per row. Twelve venues of three kinds, so that every rule set holds
only forms of the headline sweep: three lenders (collateral at its liquidation weight against debts), six venues of
perpetuals and dated futures (marginal notional tiers), three of European options (values alone: their requirement is a
fixed amount and the haircut of the coins posted). A portfolio has an account at about three of them with about twenty
holdings, of assets drawn by Zipf's law. The quickstart book is the shipped desk itself, multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aggregator.schema.canonical import CANONICAL
from aggregator.schema.fields import DECIMAL

AS_OF = datetime(2026, 1, 1, tzinfo=UTC)
CASH = "USDC"
LENDERS, PERP_VENUES, OPTION_VENUES = range(3), range(3, 9), range(9, 12)
VENUES = 12
TIERS = 5
BATCH_ROWS = 65_536

_DIGITS = 6
_FUTURE_DAYS = (29, 85, 176)
_OPTION_DAYS = (8, 29, 57, 85, 176)
_MONEYNESS = (0.8, 0.9, 1.0, 1.1, 1.25)
_CONTRACTS_PER_UNDERLYING = len(_OPTION_DAYS) * len(_MONEYNESS) * 2 * len(OPTION_VENUES)
_SOURCE = "synthetic"


class MarketLaw(NamedTuple):
    """Law of the daily log-changes, a multivariate t: factor names in order, standard deviations [K], correlation
    [K, K], degrees of freedom.
    """

    factors: tuple[str, ...]
    daily_std: np.ndarray
    correlation: np.ndarray
    degrees_of_freedom: float


class RaceBook(NamedTuple):
    """Canonical tables by name, the table (portfolio_id, account_id), the instant, and the law of the market."""

    name: str
    tables: Mapping[str, pa.Table]
    portfolios: pa.Table
    as_of: datetime
    law: MarketLaw


class _Mix(NamedTuple):
    """Shares of the listings by kind, chance of an account at a venue of each kind, mean holdings of one such account.

    Order of the pairs of triples: lenders, perpetual venues, option venues.
    """

    listings: tuple[float, float, float, float]
    presence: tuple[float, ...]
    holdings: tuple[float, ...]


_OPTION_HEAVY = _Mix((0.15, 0.30, 0.10, 0.45), (0.2, 0.25, 0.3), (2.5, 6.0, 11.0))
_PERP_HEAVY = _Mix((0.15, 0.65, 0.15, 0.05), (0.2, 0.37, 0.05), (2.7, 8.0, 7.0))


def option_heavy(
    portfolios: int, instruments: int = 2_000, seed: int = 1, *, positions: float = 20.0, nodes: float = 3.0
) -> RaceBook:
    """15 % spot, 30 % perpetual, 10 % future and 45 % option listings; holdings in about the same shares.

    `positions` and `nodes` are what a portfolio has on average, roughly: repeated draws count once, and no portfolio
    has more than an account at every venue.
    """
    more = nodes / 3.0
    mix = _Mix(
        _OPTION_HEAVY.listings,
        tuple(min(chance * more, 1.0) for chance in _OPTION_HEAVY.presence),
        tuple(max(mean * positions / 20.0 / more, 1.0) for mean in _OPTION_HEAVY.holdings),
    )
    return _synthetic("option_heavy", mix, portfolios, instruments, seed)


def perp_heavy(portfolios: int, instruments: int = 2_000, seed: int = 1) -> RaceBook:
    """15 % spot, 65 % perpetual, 15 % future and 5 % option listings; holdings in about the same shares."""
    return _synthetic("perp_heavy", _PERP_HEAVY, portfolios, instruments, seed)


class _Assets(NamedTuple):
    name: np.ndarray
    price: np.ndarray
    daily_std: np.ndarray
    base_rate: np.ndarray
    """Maintenance rate of the first tier, in units of 1e-4."""
    depth: np.ndarray
    """Floor of the second tier, USD, whole."""
    weight: np.ndarray
    """Collateral weight, in units of 1e-4."""


class _Listings(NamedTuple):
    """Every derivative: venue and asset numbers, kind, days to expiry (0 of a perpetual), option terms; ids as Arrow
    strings.
    """

    venue: np.ndarray
    asset: np.ndarray
    kind: np.ndarray
    """0 perpetual, 1 future, 2 option."""
    days: np.ndarray
    strike: np.ndarray
    is_call: np.ndarray
    mark: np.ndarray
    """Mark of a perpetual or future; of an option the forward."""
    vol: np.ndarray
    identifier: pa.Array
    symbol: pa.Array


def _synthetic(name: str, mix: _Mix, portfolios: int, instruments: int, seed: int) -> RaceBook:
    if portfolios < 1 or instruments < 40:
        raise ValueError(f"{portfolios} portfolios and {instruments} instruments; expected at least 1 and 40")
    rng = np.random.default_rng([seed, len(name)])
    counts = [round(share * instruments) for share in mix.listings]
    assets = _assets(rng, max(12, -(-counts[1] // len(PERP_VENUES))))
    listings = _listings(rng, assets, counts)
    accepted = _accepted_coins(counts[0], len(assets.name))
    account_portfolio, account_venue = _accounts(rng, mix, portfolios)
    holdings = _holdings(rng, mix, assets, listings, accepted, account_venue)

    portfolio_id = pc.binary_join_element_wise(
        "p", pc.utf8_lpad(pa.array(np.arange(portfolios)).cast(pa.string()), 7, "0"), ""
    )
    owner = portfolio_id.take(pa.array(account_portfolio))
    venue = _venue_names().take(pa.array(account_venue))
    account_id = pc.binary_join_element_wise(venue, owner, ":")
    tables = {
        "accounts": _accounts_table(account_id, owner, venue, account_venue),
        "balances": _balances_table(holdings, assets, account_id),
        "positions": _positions_table(holdings, listings, account_id),
        "assets": _assets_table(assets),
        "instruments": _instruments_table(assets, listings),
        "marks": _marks_table(assets, listings),
        "rule_sets": _rule_sets_table(),
        "margin_tiers": _margin_tiers_table(assets, listings),
        "collateral_tiers": _collateral_tiers_table(assets, accepted),
    }
    underlyings = np.unique(listings.asset[listings.kind == 2])
    return RaceBook(
        name,
        _canonical(tables),
        pa.table({"portfolio_id": owner, "account_id": account_id}),
        AS_OF,
        _law(assets, underlyings),
    )


# ---- the market ------------------------------------------------------------------------------------------------------


def _assets(rng: np.random.Generator, count: int) -> _Assets:
    rank = np.arange(count)
    name = np.array([("BTC", "ETH", "SOL")[i] if i < 3 else f"COIN{i:03d}" for i in range(count)])
    price = np.round(np.exp(rng.normal(1.0, 2.0, count)), 4) + 0.01
    price[:3] = 60_000.0, 3_000.0, 150.0
    std = np.clip(0.03 + 0.012 * np.log1p(rank) + rng.uniform(0.0, 0.01, count), 0.03, 0.09)
    large = rank < 5
    return _Assets(
        name=name,
        price=price,
        daily_std=std,
        base_rate=np.where(large, 40, np.minimum(50 + 10 * (rank // 4), 250)),
        depth=np.where(large, 250_000, np.maximum(50_000 // (1 + rank // 20), 5_000)),
        weight=np.maximum(9_500 - 40 * rank, 5_500),
    )


def _listings(rng: np.random.Generator, assets: _Assets, counts: list[int]) -> _Listings:
    count = len(assets.name)
    perps = _grid(counts[1], count, PERP_VENUES)
    futures = _grid(counts[2], count, _FUTURE_DAYS, PERP_VENUES)
    underlyings = min(count, max(1, -(-counts[3] // _CONTRACTS_PER_UNDERLYING)))
    options = _grid(counts[3], underlyings, _OPTION_DAYS, _MONEYNESS, (1, 0), OPTION_VENUES)

    asset = np.concatenate([perps[0], futures[0], options[0]]).astype(np.int64)
    kind = np.repeat([0, 1, 2], [perps.shape[1], futures.shape[1], options.shape[1]])
    venue = np.concatenate([perps[1], futures[2], options[4]]).astype(np.int64)
    days = np.concatenate([np.zeros(perps.shape[1]), futures[1], options[1]]).astype(np.int64)
    is_call = np.concatenate([np.zeros(perps.shape[1] + futures.shape[1]), options[3]]).astype(bool)
    spot = assets.price[asset]
    basis = 1.0 + 0.05 * days / 365.0 + np.where(kind == 2, 0.0, rng.normal(0.0, 2e-4, asset.size))
    moneyness = np.concatenate([np.ones(perps.shape[1] + futures.shape[1]), options[2]])
    strike = np.maximum(_significant(spot * moneyness, 3), 0.001)
    vol = np.round(assets.daily_std[asset] * math.sqrt(365.0) + 0.2 * np.log(moneyness) ** 2 + 0.02, 4)

    code = np.where(kind == 0, "PERP", np.char.add("D", days.astype(str)))
    terms = np.where(
        kind == 2,
        np.char.add(np.char.add("-", _shortest(strike)), np.where(is_call, "-C", "-P")),
        "",
    )
    symbol = pa.array(np.char.add(np.char.add(np.char.add(assets.name[asset], "-"), code), terms))
    return _Listings(
        venue=venue,
        asset=asset,
        kind=kind,
        days=days,
        strike=strike,
        is_call=is_call,
        # What a mark says is a decimal number, not a float's last bit.
        mark=_significant(spot * basis, 7),
        vol=vol,
        identifier=pc.binary_join_element_wise(_venue_names().take(pa.array(venue)), symbol, ":"),
        symbol=symbol,
    )


def _grid(count: int, assets: int, *axes: Any) -> np.ndarray:
    """The first `count` combinations, the most traded assets first: [1 + axes, count]."""
    cells = np.meshgrid(np.arange(assets), *axes, indexing="ij")
    return np.stack([cell.ravel()[:count] for cell in cells])


def _accepted_coins(count: int, assets: int) -> np.ndarray:
    """How many of the first assets each venue takes as collateral [venues]: 60 % of the listings at lenders."""
    accepted = np.empty(VENUES, np.int64)
    for venues, share in ((LENDERS, 0.6), (PERP_VENUES, 0.2), (OPTION_VENUES, 0.2)):
        accepted[venues] = min(assets, max(2, round(count * share / len(venues))))
    return accepted


def _law(assets: _Assets, underlyings: np.ndarray) -> MarketLaw:
    names = np.concatenate(
        [np.char.add("price:", assets.name), np.char.add("vol:", assets.name[underlyings]).astype(str)]
    )
    std = np.concatenate([assets.daily_std, np.full(underlyings.size, 0.06)])
    # One common driver; volatilities rise when prices fall.
    loading = np.concatenate([np.linspace(0.9, 0.7, assets.name.size), np.full(underlyings.size, -0.6)])
    correlation = np.outer(loading, loading)
    np.fill_diagonal(correlation, 1.0)
    order = np.argsort(names)
    return MarketLaw(tuple(names[order].tolist()), std[order], correlation[np.ix_(order, order)], 4.0)


# ---- who holds what --------------------------------------------------------------------------------------------------


class _Holdings(NamedTuple):
    """Coins by (account, asset), debts in coins likewise, cash and cash debt by account, and positions."""

    coin_account: np.ndarray
    coin_asset: np.ndarray
    coin_quantity: np.ndarray
    debt_account: np.ndarray
    debt_asset: np.ndarray
    debt_quantity: np.ndarray
    cash: np.ndarray
    cash_debt: np.ndarray
    account: np.ndarray
    listing: np.ndarray
    quantity: np.ndarray
    entry_price: np.ndarray


def _accounts(rng: np.random.Generator, mix: _Mix, portfolios: int) -> tuple[np.ndarray, np.ndarray]:
    """(portfolio, venue) of every account, in this order."""
    chance = np.empty(VENUES)
    for venues, presence in zip((LENDERS, PERP_VENUES, OPTION_VENUES), mix.presence, strict=True):
        chance[venues] = presence
    present = rng.random((portfolios, VENUES)) < chance
    nowhere = ~present.any(axis=1)
    present[nowhere, PERP_VENUES[0]] = True
    portfolio, venue = np.nonzero(present)
    return portfolio, venue


def _zipf(assets: np.ndarray) -> np.ndarray:
    """Chances of listings by the rank of their asset."""
    weight = 1.0 / (1.0 + assets)
    return weight / np.sum(weight)


def _drawn(
    rng: np.random.Generator, accounts: np.ndarray, mean: float, chance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(account, place in `chance`) of at least one and on average about `mean` distinct draws of each account."""
    holder = np.repeat(accounts, 1 + rng.poisson(mean - 1.0, accounts.size))
    edges = np.cumsum(chance)
    place = np.minimum(np.searchsorted(edges, rng.random(holder.size) * edges[-1]), chance.size - 1)
    distinct = np.unique(holder * chance.size + place)
    return distinct // chance.size, distinct % chance.size


def _holdings(
    rng: np.random.Generator,
    mix: _Mix,
    assets: _Assets,
    listings: _Listings,
    accepted: np.ndarray,
    account_venue: np.ndarray,
) -> _Holdings:
    accounts = np.arange(account_venue.size)
    at_lender, at_options = account_venue < PERP_VENUES[0], account_venue >= OPTION_VENUES[0]

    positions = []
    for venue in (*PERP_VENUES, *OPTION_VENUES):
        own = np.flatnonzero(listings.venue == venue)
        mean = mix.holdings[2 if venue in OPTION_VENUES else 1]
        chance = np.zeros(own.size)
        for kind, share in enumerate(mix.listings[1:]):
            of_kind = listings.kind[own] == kind
            if of_kind.any():
                chance[of_kind] = share * _zipf(listings.asset[own[of_kind]])
        holder, place = _drawn(rng, accounts[account_venue == venue], mean, chance)
        positions.append(np.stack([holder, own[place]]))
    account, listing = np.concatenate(positions, axis=1)
    order = np.lexsort((listing, account))
    account, listing = account[order], listing[order]
    is_option = listings.kind[listing] == 2
    notional = np.clip(np.exp(rng.normal(10.8, 1.5, account.size)), 500.0, 2e7)
    short = rng.random(account.size) < np.where(is_option, 0.4, 0.5)
    quantity = _rounded(np.where(short, -1.0, 1.0) * notional / assets.price[listings.asset[listing]])
    entry = _significant(listings.mark[listing] * (1.0 + rng.normal(0.0, 0.02, account.size)), 6)
    gross = np.bincount(account, np.abs(quantity) * assets.price[listings.asset[listing]], account_venue.size)

    coin_account, coin_asset = [], []
    for venue in range(VENUES):
        here = accounts[account_venue == venue]
        if venue in LENDERS:
            holder, coin = _drawn(rng, here, mix.holdings[0], _zipf(np.arange(accepted[venue])))
        else:
            holder, coin = _drawn(rng, here[rng.random(here.size) < 0.5], 1.0, _zipf(np.arange(accepted[venue])))
        coin_account.append(holder)
        coin_asset.append(coin)
    holder, coin = np.concatenate(coin_account), np.concatenate(coin_asset)
    order = np.lexsort((coin, holder))
    holder, coin = holder[order], coin[order]
    value = np.where(at_lender[holder], np.exp(rng.normal(11.0, 1.0, holder.size)), 0.05 * gross[holder] + 1_000.0)
    coins = _rounded(value / assets.price[coin])
    weighted = np.bincount(holder, coins * assets.price[coin] * assets.weight[coin] / 1e4, account_venue.size)

    # A lender's debt uses part of what the collateral allows; three in ten owe a share of it in a coin.
    debt = np.where(at_lender, weighted * rng.uniform(0.4, 0.95, account_venue.size), 0.0)
    in_coin = np.flatnonzero(at_lender & (rng.random(account_venue.size) < 0.3))
    debt_asset = rng.integers(0, 2, in_coin.size)
    owed = _rounded(0.4 * debt[in_coin] / assets.price[debt_asset])
    cash_debt = debt.copy()
    cash_debt[in_coin] *= 0.6
    # Leverage of perpetual books about 8, of option books (on the underlying's notional) about 5.
    cash = gross * np.exp(rng.normal(np.where(at_options, -1.6, -2.1), 0.6, account_venue.size)) + 100.0
    return _Holdings(
        coin_account=holder,
        coin_asset=coin,
        coin_quantity=coins,
        debt_account=in_coin,
        debt_asset=debt_asset,
        debt_quantity=owed,
        cash=_rounded(np.where(at_lender, 0.0, cash)),
        cash_debt=_rounded(cash_debt),
        account=account,
        listing=listing,
        quantity=quantity,
        entry_price=entry,
    )


# ---- canonical tables ------------------------------------------------------------------------------------------------


def _canonical(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, pa.Table]:
    """Every canonical table in record batches; absent columns are null, scalars are repeated."""
    tables = {}
    for name, schema in CANONICAL.items():
        if name == "failures":
            continue
        given = columns.get(name)
        if given is None:
            tables[name] = schema.empty_table()
            continue
        rows = next(len(values) for values in given.values() if isinstance(values, (np.ndarray, pa.Array)))
        arrays = [_column(given.get(field.name), field.type, rows) for field in schema]
        table = pa.Table.from_arrays(arrays, schema=schema)
        tables[name] = pa.Table.from_batches(table.to_batches(max_chunksize=BATCH_ROWS), schema=schema)
    return tables


def _column(values: Any, kind: pa.DataType, rows: int) -> pa.Array:
    if values is None:
        return pa.nulls(rows, kind)
    if isinstance(values, pa.Array):
        return values.cast(kind)
    if isinstance(values, np.ndarray):
        return decimals(values) if kind == DECIMAL else pa.array(values).cast(kind)
    return pa.repeat(pa.scalar(values, kind), rows)


def decimals(values: np.ndarray) -> pa.Array:
    """`decimal128(38, 18)` from float64 or integer values, rounded to six decimals; |value| below 9e12."""
    micro = np.rint(np.asarray(values, np.float64) * 10.0**_DIGITS).astype(np.int64)
    # A little-endian 128-bit integer: the low word, and the sign in the high one.
    words = np.stack([micro, micro >> 63], axis=1)
    narrow = pa.Array.from_buffers(pa.decimal128(38, _DIGITS), len(micro), [None, pa.py_buffer(words.tobytes())])
    return narrow.cast(DECIMAL)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.round(values, _DIGITS)


def _significant(values: np.ndarray, digits: int) -> np.ndarray:
    """Rounded to so many significant digits, and to what `decimals` can hold."""
    scale = 10.0 ** (digits - 1 - np.floor(np.log10(values)))
    return np.maximum(np.round(np.round(values * scale) / scale, _DIGITS), 10.0**-_DIGITS)


def _shortest(values: np.ndarray) -> np.ndarray:
    distinct, place = np.unique(values, return_inverse=True)
    return np.array([f"{value:g}" if value < 1e5 else f"{value:.0f}" for value in distinct])[place]


def _venue_names() -> pa.Array:
    return pa.array([f"venue{venue:02d}" for venue in range(VENUES)])


def _rule_set(venue: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(venue, "margin", ":")


def _accounts_table(account_id: pa.Array, owner: pa.Array, venue: pa.Array, number: np.ndarray) -> dict[str, Any]:
    return {
        "account_id": account_id,
        "node": account_id,
        "venue": venue,
        "owner": owner,
        "margin_mode": np.where(number < PERP_VENUES[0], "lending", "cross"),
        "rule_set": _rule_set(venue),
        "settlement_asset": CASH,
        "event_at": AS_OF,
        "received_at": AS_OF,
    }


def _balances_table(held: _Holdings, assets: _Assets, account_id: pa.Array) -> dict[str, Any]:
    cash, owed = np.flatnonzero(held.cash > 0), np.flatnonzero(held.cash_debt > 0)
    account = np.concatenate([held.coin_account, cash, held.debt_account, owed])
    name = np.concatenate(
        [
            assets.name[held.coin_asset],
            np.full(cash.size, CASH),
            assets.name[held.debt_asset],
            np.full(owed.size, CASH),
        ]
    )
    is_asset = np.arange(account.size) < held.coin_account.size + cash.size
    quantity = np.concatenate([held.coin_quantity, held.cash[cash], held.debt_quantity, held.cash_debt[owed]])
    order = np.argsort(account, kind="stable")
    return {
        "account_id": account_id.take(pa.array(account[order])),
        "asset_id": name[order],
        "side": np.where(is_asset[order], "asset", "liability"),
        "quantity": quantity[order],
        "collateral_enabled": True,
    }


def _positions_table(held: _Holdings, listings: _Listings, account_id: pa.Array) -> dict[str, Any]:
    entry = decimals(held.entry_price)
    is_option = pa.array(listings.kind[held.listing] == 2)
    return {
        "account_id": account_id.take(pa.array(held.account)),
        "instrument_id": listings.identifier.take(pa.array(held.listing)),
        "side_mode": "net",
        "quantity": held.quantity,
        "entry_price": pc.if_else(is_option, pa.scalar(None, DECIMAL), entry),
    }


def _assets_table(assets: _Assets) -> dict[str, Any]:
    names = np.append(assets.name, CASH)
    return {
        "asset_id": names,
        "symbol": names,
        "risk_factor": pa.array([*assets.name.tolist(), None]),
        "multiplier": np.ones(names.size),
    }


def _instruments_table(assets: _Assets, listings: _Listings) -> dict[str, Any]:
    count = listings.venue.size
    is_option = pa.array(listings.kind == 2)
    expiry = pa.array([None if days == 0 else _expiry(int(days)) for days in listings.days], CANONICAL_TIME)
    return {
        "instrument_id": listings.identifier,
        "venue": _venue_names().take(pa.array(listings.venue)),
        "symbol": listings.symbol,
        "kind": np.array(["perp", "future", "option"])[listings.kind],
        "underlying": assets.name[listings.asset],
        "settlement_asset": CASH,
        "payoff": "linear",
        "contract_size": np.ones(count),
        "strike": pc.if_else(is_option, decimals(listings.strike), pa.scalar(None, DECIMAL)),
        "expiry": expiry,
        "option_type": pc.if_else(is_option, pa.array(np.where(listings.is_call, "call", "put")), None),
    }


CANONICAL_TIME = CANONICAL["instruments"].field("expiry").type


def _expiry(days: int) -> datetime:
    return AS_OF + timedelta(days=days, hours=8)


def _marks_table(assets: _Assets, listings: _Listings) -> dict[str, Any]:
    venues = _venue_names()
    everywhere = np.repeat(np.arange(VENUES), assets.name.size)
    is_option = listings.kind == 2
    linear = np.flatnonzero(~is_option)
    options = np.flatnonzero(is_option)
    # One forward per venue, underlying and expiry.
    code = (listings.venue[options] * assets.name.size + listings.asset[options]) * 1_000 + listings.days[options]
    _, first = np.unique(code, return_index=True)
    dated = options[first]
    times = np.array([f"{_expiry(int(days)):%Y-%m-%dT%H:%M:%SZ}" for days in listings.days[dated]])
    subject = np.char.add(np.char.add(assets.name[listings.asset[dated]], "@"), times)
    venue = np.concatenate([everywhere, listings.venue[linear], listings.venue[dated], listings.venue[options]])
    field = np.repeat(
        ["index", "mark", "forward", "implied_vol"], [everywhere.size, linear.size, dated.size, options.size]
    )
    value = np.concatenate(
        [
            np.tile(assets.price, VENUES),
            listings.mark[linear],
            listings.mark[dated],
            listings.vol[options],
        ]
    )
    return {
        "venue": venues.take(pa.array(venue)),
        "subject": pa.concat_arrays(
            [
                pa.array(np.tile(assets.name, VENUES)),
                listings.identifier.take(pa.array(linear)),
                pa.array(subject),
                listings.identifier.take(pa.array(options)),
            ]
        ),
        "field": field,
        "value": value,
        "as_of": AS_OF,
        "source": _SOURCE,
    }


_UNIT = '{"weights":"unit"}'
_WEIGHTED = '{"weights":"collateral_tiers"}'
_BELOW = '{"liquidates_when":"below"}'
_AT_OR_BELOW = '{"liquidates_when":"at_or_below"}'
_RULES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "lender": (
        ("weighted_value", "equity", _UNIT),
        ("weighted_value", "requirement", _WEIGHTED),
        ("verdict", "verdict", '{"liquidates_when":"below","health":"weighted_collateral_over_debt"}'),
    ),
    "perpetuals": (
        ("weighted_value", "equity", _WEIGHTED),
        ("tiered_notional", "requirement", '{"initial":"tier_rate"}'),
        ("verdict", "verdict", _BELOW),
    ),
    "options": (
        ("weighted_value", "equity", _UNIT),
        ("weighted_value", "requirement", _WEIGHTED),
        ("fixed", "requirement", '{"initial":"200","maintenance":"100","basis":"computed"}'),
        ("verdict", "verdict", _BELOW),
    ),
}


def _rule_sets_table() -> dict[str, Any]:
    rows = []
    for venue in range(VENUES):
        kind = "lender" if venue in LENDERS else "options" if venue in OPTION_VENUES else "perpetuals"
        for number, (form, side, parameters) in enumerate(_RULES[kind]):
            if form == "verdict" and venue in PERP_VENUES and venue % 2:
                parameters = _AT_OR_BELOW
            rows.append((f"venue{venue:02d}:margin", number, form, side, parameters))
    names, numbers, forms, sides, parameters_of = zip(*rows, strict=True)
    return {
        "rule_set": np.array(names),
        "component_no": np.array(numbers),
        "form": np.array(forms),
        "side": np.array(sides),
        "level": "both",
        "group_by": "account",
        "parameters": pa.array(parameters_of),
        "source": _SOURCE,
    }


def _margin_tiers_table(assets: _Assets, listings: _Listings) -> dict[str, Any]:
    linear = np.flatnonzero(listings.kind != 2)
    asset = listings.asset[linear]
    # Whole dollars and whole parts of 1e-4, so that deductions continue the tier below to the last digit.
    floor = assets.depth[asset][:, None] * np.array([0, 1, 5, 20, 100])
    rate = np.minimum(assets.base_rate[asset][:, None] * np.array([2, 3, 5, 10, 20]) // 2, 5_000)
    deduction = np.cumsum(floor * np.diff(rate, axis=1, prepend=rate[:, :1]), axis=1)
    return {
        "rule_set": pc.binary_join_element_wise(
            _venue_names().take(pa.array(np.repeat(listings.venue[linear], TIERS))), "margin", ":"
        ),
        "market": listings.identifier.take(pa.array(np.repeat(linear, TIERS))),
        "tier": np.tile(np.arange(1, TIERS + 1), linear.size),
        "notional_floor": floor.ravel().astype(np.float64),
        "notional_cap": np.concatenate([floor[:, 1:], np.full((linear.size, 1), 10**9)], axis=1).ravel().astype(float),
        "initial_rate": 2.0 * rate.ravel() / 1e4,
        "maintenance_rate": rate.ravel() / 1e4,
        "deduction": deduction.ravel() / 1e4,
        "source": "venue",
    }


def _collateral_tiers_table(assets: _Assets, accepted: np.ndarray) -> dict[str, Any]:
    venue = np.repeat(np.arange(VENUES), accepted)
    coin = np.concatenate([np.arange(count) for count in accepted])
    weight = assets.weight[coin] / 1e4
    return {
        "rule_set": _rule_set(_venue_names().take(pa.array(venue))),
        "asset_id": assets.name[coin],
        "emode": "",
        "tier": np.ones(coin.size, np.int32),
        "floor": np.zeros(coin.size),
        "asset_weight_initial": weight - 0.05,
        "asset_weight_maintenance": weight,
        "liability_weight_initial": np.ones(coin.size),
        "liability_weight_maintenance": np.ones(coin.size),
        "source": _SOURCE,
    }
