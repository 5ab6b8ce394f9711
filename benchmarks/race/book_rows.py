"""What every peer computes from: a book's tables as flat arrays, one row per thing that moves.

This is the peers' own reading of the canonical tables, written apart from the engine: pyarrow for the joins, NumPy for
the rest. Market equity and headroom of an account in a scenario are

    equity   = equity_today   + sum over rows of equity_weight * x
    headroom = headroom_base  + sum over rows of (headroom_weight * x - conversion * requirement)
    requirement = maximum over the row's tiers of slope * x + level

with x the change of the row's value in the cube (relative for prices, money for options) and conversion = 1 + x of the
row of the settlement asset. Headroom is the venue's equity less its maintenance requirement, in USD; below zero the
venue liquidates. Rising marginal rates make the requirement a maximum of straight lines; other tables are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .peer_cube import CubeTerms, black


class BookRows(NamedTuple):
    """Accounts sorted by portfolio and id; the rows of account a are `first_row[a] : first_row[a + 1]`."""

    portfolio_id: pa.Array
    account_id: pa.Array
    node: pa.Array
    venue: pa.Array
    first_account: np.ndarray
    """[portfolios + 1]"""
    first_row: np.ndarray
    """[accounts + 1]"""
    equity_today: np.ndarray
    headroom_base: np.ndarray
    """Headroom today with every tiered requirement added back."""
    at_or_below: np.ndarray
    row: np.ndarray
    equity_weight: np.ndarray
    headroom_weight: np.ndarray
    first_tier: np.ndarray
    """[rows + 1] into `slope` and `level`; a row without tiers has none."""
    slope: np.ndarray
    level: np.ndarray
    conversion: np.ndarray
    """Cube row of the settlement asset's price, 0 where nothing moves it."""
    cube: CubeTerms


class _Rules(NamedTuple):
    """What the components of each rule set say."""

    name: pa.Array
    weighted: np.ndarray
    """Whether balances count at their collateral weights, in equity or by a haircut in the requirement."""
    tiered: np.ndarray
    fixed: np.ndarray
    """Equity less maintenance requirement that nothing moves, in the account's unit."""
    at_or_below: np.ndarray
    beyond: np.ndarray
    """Whether something in it lies outside the race's rules."""


def read_rows(
    tables: Mapping[str, pa.Table], portfolios: pa.Table, factors: tuple[str, ...], as_of: datetime
) -> BookRows:
    """The rows of a book; raises `ValueError` for whatever lies outside the race's rules, never guesses."""
    instruments = tables["instruments"]
    rules = _rules(tables["rule_sets"])
    asset_id = _joined(tables["assets"]["asset_id"])
    asset_factors = _asset_factors(tables["assets"], factors)
    account, owner_of_account = _sorted_accounts(tables["accounts"], portfolios)
    account_id = _joined(account["account_id"])
    venue_name = pc.unique(_joined(account["venue"]))
    venue = _places(account["venue"], venue_name, "venue")
    rule_set = _places(account["rule_set"], rules.name, "rule set")
    price = _asset_prices(tables["marks"], tables["assets"], venue_name, asset_id)
    if rules.beyond[rule_set].any():
        raise ValueError("an account whose rule set lies outside the race")
    unit = _numpy(pc.index_in(account["settlement_asset"], asset_id).fill_null(-1)).astype(np.int64)
    unit_price = np.where(unit < 0, 1.0, price[venue, unit])

    underlying = _places(instruments["underlying"], asset_id, "asset")
    settlement = _places(instruments["settlement_asset"], asset_id, "asset")
    if not pc.all(pc.equal(instruments["payoff"], "linear")).as_py():
        raise ValueError("the race has linear instruments alone")
    is_option = _numpy(pc.equal(instruments["kind"], "option"))
    price_rows = _PriceRows(asset_factors, len(factors))
    settled_row = price_rows.of_assets(settlement)
    linear_row = price_rows.of_pairs(underlying, settlement)
    balance_account = _places(tables["balances"]["account_id"], account_id, "account")
    balance_asset = _places(tables["balances"]["asset_id"], asset_id, "asset")
    balance_row = price_rows.of_assets(balance_asset)
    underlying_row = price_rows.of_assets(underlying)

    # Balances: a weight in the venue's equity less what the haircut requires.
    owed = _numpy(pc.equal(tables["balances"]["side"], "liability"))
    value = (
        np.where(owed, -1.0, 1.0)
        * (_floats(tables["balances"]["quantity"]) + _floats(tables["balances"]["accrued_interest"], absent=0.0))
        * price[venue[balance_account], balance_asset]
    )
    weighs = rules.weighted[rule_set[balance_account]] & (balance_asset != unit[balance_account])
    weight = np.ones(owed.size)
    weight[weighs] = _weights(
        tables["collateral_tiers"],
        rules,
        asset_id,
        rule_set[balance_account][weighs],
        balance_asset[weighs],
        owed[weighs],
    )
    counts = _numpy(tables["balances"]["collateral_enabled"]) | owed
    counted = np.where(counts, value * weight, 0.0)

    # Positions: their worth, what was paid for them, and the requirement on the notional.
    position_account = _places(tables["positions"]["account_id"], account_id, "account")
    instrument = _places(tables["positions"]["instrument_id"], _joined(instruments["instrument_id"]), "instrument")
    at = venue[position_account]
    mark, forward, implied_vol = _instrument_marks(tables["marks"], instruments)
    size = _floats(tables["positions"]["quantity"]) * _floats(instruments["contract_size"])[instrument]
    settled = price[at, settlement[instrument]]
    option = is_option[instrument]
    entry = _floats(tables["positions"]["entry_price"], absent=np.nan)
    if np.isnan(entry[~option]).any() or np.isnan(mark[instrument[~option]]).any():
        raise ValueError("a perpetual or future without mark or entry price")
    owing = _floats(tables["positions"]["unsettled_funding"], absent=0.0) + _floats(
        tables["positions"]["realized_pnl"], absent=0.0
    )
    worth = np.where(option, size, size * np.nan_to_num(mark[instrument])) * settled
    paid = (owing - np.where(option, 0.0, size * np.nan_to_num(entry))) * settled

    cube = _cube_terms(
        instruments, is_option, price_rows, forward, implied_vol, underlying_row, settled_row, factors, as_of
    )
    cube, of_option = _distinct_options(cube)
    option_row, option_price = np.zeros(is_option.size, np.int64), np.zeros(is_option.size)
    option_row[is_option] = len(price_rows) + of_option
    option_price[is_option] = black(cube.forward, cube.strike, cube.years, cube.vol, cube.is_call)[of_option]
    today = np.where(option, size * option_price[instrument] * settled, worth)

    position_row = np.where(option, option_row[instrument], linear_row[instrument])
    settled_moves = settled_row[instrument] > 0
    tier_first, tier_count, rate, deduction = _tiers(
        tables["margin_tiers"], rules, rule_set[position_account], _joined(instruments["instrument_id"]), instrument
    )
    has_tiers = rules.tiered[rule_set[position_account]]
    if (has_tiers & option).any():
        raise ValueError("an option under notional tiers")
    tier_count = np.where(has_tiers, tier_count, 0)
    notional = np.abs(worth)
    own_row = np.where(settled_moves, underlying_row[instrument], position_row)

    # One list: balances, worth of positions with their tiers; with a settlement asset that moves, the cash legs and the
    # tiers are rows of their own.
    apart = np.flatnonzero(settled_moves & has_tiers)
    cash = np.flatnonzero(settled_moves & (paid != 0))
    inline = np.where(settled_moves, 0, tier_count)
    moving = np.flatnonzero(balance_row > 0)
    blocks = [
        (balance_account[moving], balance_row[moving], value[moving], counted[moving], 0, None),
        (position_account, position_row, worth, worth, inline, np.arange(size.size)),
        (position_account[cash], settled_row[instrument[cash]], paid[cash], paid[cash], 0, None),
        (position_account[apart], own_row[apart], 0.0, 0.0, tier_count[apart], apart),
    ]
    holder = np.concatenate([b[0] for b in blocks])
    order = np.argsort(holder, kind="stable")
    lengths = [b[0].size for b in blocks]

    def listed(column: int, dtype: type) -> np.ndarray:
        parts: list[np.ndarray] = [
            np.broadcast_to(np.asarray(b[column], dtype), (n,)) for b, n in zip(blocks, lengths, strict=True)
        ]
        return np.concatenate(parts)[order]

    tiers_of = listed(4, np.int64)
    source = np.concatenate([np.full(n, -1) if b[5] is None else b[5] for b, n in zip(blocks, lengths, strict=True)])[
        order
    ]
    first_tier = np.concatenate([[0], np.cumsum(tiers_of)])
    place = np.repeat(tier_first[source], tiers_of) + np.arange(first_tier[-1]) - np.repeat(first_tier[:-1], tiers_of)
    slope = np.repeat(notional[source], tiers_of) * rate[place]
    level = slope - deduction[place] * np.repeat(settled[source], tiers_of)

    accounts = len(account_id)
    equity = np.bincount(balance_account, value, accounts) + np.bincount(position_account, today + paid, accounts)
    headroom = (
        np.bincount(balance_account, counted, accounts)
        + np.bincount(position_account, today + paid, accounts)
        + rules.fixed[rule_set] * unit_price
    )
    portfolio_id, first_account = _runs(owner_of_account)
    return BookRows(
        portfolio_id=portfolio_id,
        account_id=account_id,
        node=_joined(account["node"]),
        venue=_joined(account["venue"]),
        first_account=first_account,
        first_row=np.concatenate([[0], np.cumsum(np.bincount(holder, minlength=accounts))]),
        equity_today=equity,
        headroom_base=headroom,
        at_or_below=rules.at_or_below[rule_set],
        row=listed(1, np.int64),
        equity_weight=listed(2, np.float64),
        headroom_weight=listed(3, np.float64),
        first_tier=first_tier,
        slope=slope,
        level=level,
        conversion=np.where(source < 0, 0, settled_row[instrument[source]]),
        cube=cube,
    )


# ---- parts of the reading --------------------------------------------------------------------------------------------


def _rules(table: pa.Table) -> _Rules:
    by_name: dict[str, dict[str, float]] = {}
    for row in table.select(["rule_set", "form", "side", "parameters"]).to_pylist():
        found = by_name.setdefault(row["rule_set"], {"weighted": 0, "tiered": 0, "fixed": 0.0, "at": -1, "beyond": 0})
        given = json.loads(row["parameters"])
        if row["form"] == "weighted_value":
            # Weights in the equity or as a haircut in the requirement come to the same headroom.
            found["weighted"] += given.get("weights", "unit") == "collateral_tiers"
            plain = given.get("liabilities", "weighted") == "weighted" and given.get("weighted_at", "unit") == "unit"
            found["beyond"] += given.get("net_by_asset", False) or not plain or given.get("options", "model") != "model"
        elif row["form"] == "tiered_notional":
            found["tiered"] = 1
            plain = given.get("basis", "mark") == "mark" and given.get("floors", "notional") == "notional"
            found["beyond"] += not plain or float(given.get("minimum", 0)) != 0
        elif row["form"] == "fixed":
            found["fixed"] += float(given.get("equity", 0)) - float(given.get("maintenance", 0))
        elif row["form"] == "verdict":
            found["at"] = given["liquidates_when"] == "at_or_below"
            found["beyond"] += float(given.get("trigger", 1)) != 1 or given.get("needs_requirement", False)
        else:
            found["beyond"] += 1
    return _Rules(
        name=pa.array([*by_name], pa.string()),
        weighted=np.array([f["weighted"] == 1 for f in by_name.values()]),
        tiered=np.array([f["tiered"] == 1 for f in by_name.values()]),
        fixed=np.array([f["fixed"] for f in by_name.values()]),
        at_or_below=np.array([f["at"] == 1 for f in by_name.values()]),
        beyond=np.array([f["beyond"] > 0 or f["weighted"] > 1 or f["at"] < 0 for f in by_name.values()]),
    )


def _asset_factors(assets: pa.Table, factors: tuple[str, ...]) -> np.ndarray:
    """[assets, 2] numbers of the price and peg factors; `len(factors)` where there is none."""
    names = pa.array(factors)
    out = np.empty((assets.num_rows, 2), np.int64)
    for place, (prefix, column) in enumerate((("price:", "risk_factor"), ("peg:", "peg_of"))):
        wanted = pc.binary_join_element_wise(prefix, _joined(assets[column]), "")
        number = pc.index_in(wanted, names).fill_null(len(factors))
        out[:, place] = _numpy(number)
    return out


class _PriceRows:
    """Numbers the distinct products of price factors; row 0 is the constant."""

    def __init__(self, asset_factors: np.ndarray, none: int) -> None:
        self.asset_factors, self.none = asset_factors, none
        self.rows: dict[tuple[int, ...], int] = {(none,) * 4: 0}

    def __len__(self) -> int:
        return len(self.rows)

    def of_assets(self, assets: np.ndarray) -> np.ndarray:
        """Row of each asset's price."""
        return self._numbered(np.unique(assets, return_inverse=True), lambda a: self.asset_factors[a])

    def of_pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Row of each product of two assets' prices."""
        count = len(self.asset_factors)
        codes = np.unique(first * count + second, return_inverse=True)
        return self._numbered(codes, lambda c: self.asset_factors[[c // count, c % count]].ravel())

    def _numbered(self, distinct: tuple[np.ndarray, np.ndarray], factors_of: Callable[[int], np.ndarray]) -> np.ndarray:
        numbers = []
        for code in distinct[0]:
            held = sorted(int(f) for f in factors_of(code) if f != self.none)
            key = (*held, *(self.none,) * (4 - len(held)))
            numbers.append(self.rows.setdefault(key, len(self.rows)))
        return np.array(numbers, np.int64)[distinct[1]] if numbers else np.zeros(0, np.int64)


def _sorted_accounts(accounts: pa.Table, portfolios: pa.Table) -> tuple[pa.Table, pa.Array]:
    """Accounts by portfolio and id, and the portfolio of each."""
    number = pc.index_in(accounts["account_id"], _joined(portfolios["account_id"]))
    if number.null_count:
        raise ValueError("an account that no portfolio claims")
    owner = _joined(portfolios["portfolio_id"]).take(_joined(number))
    order = pc.sort_indices(
        pa.table({"owner": owner, "account": accounts["account_id"]}),
        [("owner", "ascending"), ("account", "ascending")],
    )
    return accounts.take(order), owner.take(order)


def _asset_prices(marks: pa.Table, assets: pa.Table, venues: pa.Array, asset_id: pa.Array) -> np.ndarray:
    """[venues, assets] in USD by the first field that is there; NaN where an asset with a price factor has none."""
    fields = pa.array(["mark", "stable_price", "index", "oracle"])  # the last one counts
    venue, asset = pc.index_in(marks["venue"], venues), pc.index_in(marks["subject"], asset_id)
    rank = pc.index_in(marks["field"], fields)
    known = pc.and_(pc.and_(pc.is_valid(venue), pc.is_valid(asset)), pc.is_valid(rank))
    if pc.any(pc.and_(known, pc.is_valid(marks["account_id"]))).as_py():
        raise ValueError("an asset price of one account alone")
    kept = [_numpy(column.filter(known)) for column in (venue, asset, rank, marks["value"])]
    has_factor = _numpy(pc.is_valid(assets["risk_factor"]))
    out = np.tile(np.where(has_factor, np.nan, _floats(assets["multiplier"])), (len(venues), 1))
    for order in range(len(fields)):
        here = kept[2] == order
        out[kept[0][here], kept[1][here]] = kept[3][here]
    return out


def _instrument_marks(marks: pa.Table, instruments: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mark, forward and implied volatility of each instrument; NaN where there is none."""
    times = pc.strftime(instruments["expiry"], format="%Y-%m-%dT%H:%M:%SZ")
    # Arrow writes fractions of a second, a subject has none.
    times = pc.replace_substring_regex(times, pattern=r"\.\d+", replacement="")
    dated = pc.binary_join_element_wise(instruments["underlying"], times, "@")

    def looked_up(field: str, subject: pa.ChunkedArray) -> np.ndarray:
        of_field = marks.filter(pc.and_(pc.equal(marks["field"], field), pc.is_null(marks["account_id"])))
        key = _joined(pc.binary_join_element_wise(of_field["venue"], of_field["subject"], " "))
        place = pc.index_in(pc.binary_join_element_wise(instruments["venue"], subject, " "), key)
        return _floats(of_field["value"].combine_chunks().take(_joined(place)), absent=np.nan)

    ids = instruments["instrument_id"]
    return looked_up("mark", ids), looked_up("forward", dated), looked_up("implied_vol", ids)


def _weights(
    table: pa.Table, rules: _Rules, asset_id: pa.Array, rule_set: np.ndarray, asset: np.ndarray, owed: np.ndarray
) -> np.ndarray:
    """Maintenance weight of each balance by rule set, asset and side."""
    set_of_row, asset_of_row = pc.index_in(table["rule_set"], rules.name), pc.index_in(table["asset_id"], asset_id)
    used = pc.and_(pc.is_valid(set_of_row), pc.is_valid(asset_of_row))
    if pc.any(pc.and_(used, pc.greater(table["tier"], 1))).as_py():
        raise ValueError("collateral weights in several tiers")
    shape = (len(rules.name), len(asset_id), 2)
    weight = np.full(shape, np.nan)
    place = _numpy(set_of_row.filter(used)), _numpy(asset_of_row.filter(used))
    for side, column in enumerate(("asset_weight_maintenance", "liability_weight_maintenance")):
        weight[(*place, side)] = _floats(table[column].filter(used))
    found = weight[rule_set, asset, owed.astype(np.int64)]
    if np.isnan(found).any():
        raise ValueError("a balance without collateral weight")
    return found


def _tiers(
    table: pa.Table, rules: _Rules, rule_set: np.ndarray, instrument_id: pa.Array, instrument: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """First tier and number of tiers of each position, and rate and deduction of every tier."""
    code = _numpy(pc.index_in(table["rule_set"], rules.name).fill_null(len(rules.name))) * len(instrument_id)
    market = pc.index_in(table["market"], instrument_id)
    kept = np.flatnonzero(_numpy(pc.is_valid(market)))
    code = code[kept] + _numpy(market.fill_null(0))[kept]
    tier = _numpy(table["tier"])[kept]
    order = kept[np.lexsort((tier, code))]
    code = np.sort(code)
    rate, deduction, floor = (
        _floats(table[name])[order] for name in ("maintenance_rate", "deduction", "notional_floor")
    )
    within = code[1:] == code[:-1]
    continues = np.isclose(np.diff(deduction), floor[1:] * np.diff(rate), rtol=1e-9, atol=1e-9)
    if (within & ((np.diff(rate) < 0) | ~continues)).any() or (deduction[np.append(True, ~within)] != 0).any():
        raise ValueError("tiers that are not marginal with rising rates")
    wanted = rule_set * len(instrument_id) + instrument
    first = np.searchsorted(code, wanted)
    count = np.searchsorted(code, wanted, side="right") - first
    if (rules.tiered[rule_set] & (count == 0)).any():
        raise ValueError("a position without margin tiers")
    return first, count, rate, deduction


def _cube_terms(
    instruments: pa.Table,
    is_option: np.ndarray,
    price_rows: _PriceRows,
    forward: np.ndarray,
    vol: np.ndarray,
    underlying_row: np.ndarray,
    settled_row: np.ndarray,
    factors: tuple[str, ...],
    as_of: datetime,
) -> CubeTerms:
    vol_of_price = _numpy(
        pc.index_in(pa.array([name.replace("price:", "vol:") for name in factors]), pa.array(factors)).fill_null(-1)
    )
    options = instruments.filter(pa.array(is_option))
    expiry = _numpy(options["expiry"].cast(pa.timestamp("us")).cast(pa.int64()))
    now = round(as_of.timestamp() * 1e6)
    products = np.array(list(price_rows.rows), np.int64)
    price_factor = products[underlying_row[is_option]].min(axis=1) if is_option.any() else np.zeros(0, np.int64)
    return CubeTerms(
        factors=products,
        forward=forward[is_option],
        strike=_floats(options["strike"]),
        years=np.maximum(expiry - now, 0) / (365.0 * 86_400.0e6),
        vol=vol[is_option],
        is_call=_numpy(pc.equal(options["option_type"], "call")),
        price_factor=price_factor,
        vol_factor=vol_of_price[price_factor],
        conversion=settled_row[is_option],
    )


def _distinct_options(cube: CubeTerms) -> tuple[CubeTerms, np.ndarray]:
    """(the options without those of equal terms, in the order in which they come first; the row of each option)."""
    columns = cube[1:]
    table = np.stack([column.astype(np.float64) for column in columns], axis=1)
    _, first, same = np.unique(table, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return CubeTerms(cube.factors, *(column[first[order]] for column in columns)), place[same.reshape(-1)]


def _runs(owners: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Distinct owners in order and where each begins, with the end."""
    encoded = owners.dictionary_encode()
    counts = np.bincount(_numpy(encoded.indices))
    return encoded.dictionary, np.concatenate([[0], np.cumsum(counts)])


def _joined(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(
        column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
    )


def _floats(column: pa.Array | pa.ChunkedArray, *, absent: float | None = None) -> np.ndarray:
    """A column as float64; nulls become `absent`, or are an error without one."""
    if column.null_count and absent is None:
        raise ValueError(f"{column.null_count} nulls in a column of numbers")
    values = column.cast(pa.float64())
    return _numpy(values if absent is None else values.fill_null(absent))


def _places(values: pa.Array | pa.ChunkedArray, names: pa.Array, what: str) -> np.ndarray:
    """Number of each value among `names`; an unknown one is an error."""
    found = pc.index_in(values, names)
    if found.null_count:
        raise ValueError(f"{found.null_count} rows name an unknown {what}")
    return _numpy(found).astype(np.int64)


def first_portfolios(rows: BookRows, count: int) -> BookRows:
    """The rows of the first `count` portfolios alone, with the whole cube."""
    accounts = int(rows.first_account[count])
    legs = int(rows.first_row[accounts])
    tiers = int(rows.first_tier[legs])
    return rows._replace(
        portfolio_id=rows.portfolio_id[:count],
        account_id=rows.account_id[:accounts],
        node=rows.node[:accounts],
        venue=rows.venue[:accounts],
        first_account=rows.first_account[: count + 1],
        first_row=rows.first_row[: accounts + 1],
        equity_today=rows.equity_today[:accounts],
        headroom_base=rows.headroom_base[:accounts],
        at_or_below=rows.at_or_below[:accounts],
        row=rows.row[:legs],
        equity_weight=rows.equity_weight[:legs],
        headroom_weight=rows.headroom_weight[:legs],
        first_tier=rows.first_tier[: legs + 1],
        slope=rows.slope[:tiers],
        level=rows.level[:tiers],
        conversion=rows.conversion[:legs],
    )
