"""The quickstart desk, multiplied: its two portfolios again and again, every holding of another size.

Left out is what lies outside the race's rules: Derive's accounts (scenario grids). The multi-assets account at Binance
is put under the venue's single-asset rules, its bitcoin counted in full, because netting profit and coins by asset is
no weighted sum. Pegs, staked ether, cash that moves and two accounts in one node are as on the desk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aggregator.schema.canonical import CANONICAL
from aggregator.schema.casting import table_from_rows

from .books import BATCH_ROWS, MarketLaw, RaceBook, decimals

_DESK = Path(__file__).resolve().parents[2] / "configs" / "quickstart.toml"
_LEFT_OUT = "derive"
_DAILY_STD = {"price:BTC": 0.03, "price:ETH": 0.037, "price:SOL": 0.05}
_PEG_STD = 0.002


def quickstart(portfolios: int, seed: int = 1) -> RaceBook:
    """`portfolios` copies of the desk's portfolios in turn; quantities and entry prices differ by seed."""
    # Reading payloads needs every adapter and pydantic, which the synthetic books do without.
    from aggregator.config import load_configuration
    from aggregator.run_inputs import read_inputs

    resolved = load_configuration(_DESK)
    inputs = read_inputs(resolved, lambda stage, done, total: None)
    (snapshot,) = inputs.snapshots.values()
    desk: dict[str, list[dict[str, Any]]] = {
        name: [dict(row) for row in rows if _LEFT_OUT not in (row.get("venue"), _venue_of(row))]
        for name, rows in snapshot.tables.items()
    }
    for row in desk["accounts"]:
        if row["rule_set"] == "binance:multi_assets":
            row |= {"rule_set": "binance:usdm", "settlement_asset": "USDT", "multi_assets_mode": False}
    desk["market_state"], desk["routes"] = [], []
    desk["marks"] = [row for row in desk["marks"] if row["account_id"] is None]

    owners = sorted(resolved.configuration.portfolios)
    of_account = {
        row["account_id"]: owner
        for owner in owners
        for row in desk["accounts"]
        for entry in resolved.configuration.portfolios[owner]
        if row["account_id"] == entry or row["account_id"].startswith(entry + ":")
    }
    tables = {name: table_from_rows(name, desk[name]) for name in CANONICAL if name != "failures"}
    rng = np.random.default_rng([seed, portfolios])
    copies = [-(-(portfolios - place) // len(owners)) for place in range(len(owners))]
    scale = [np.exp(rng.normal(0.0, 0.7, count)) for count in copies]
    claimed: list[tuple[pa.Array, pa.Array]] = []
    for name in ("accounts", "balances", "positions"):
        account = tables[name]["account_id"].to_pylist()
        parts = []
        for place, owner in enumerate(owners):
            own = tables[name].take(pa.array([row for row, a in enumerate(account) if of_account.get(a) == owner]))
            parts.append(_copies(own, scale[place], rng))
            if name == "accounts":
                number = _suffix(np.repeat(np.arange(copies[place]), own.num_rows))
                ids = pc.binary_join_element_wise(owner, number, ":")
                claimed.append((ids, parts[-1]["account_id"].combine_chunks()))
        whole = pa.concat_tables(parts).combine_chunks()
        tables[name] = pa.Table.from_batches(whole.to_batches(max_chunksize=BATCH_ROWS), schema=CANONICAL[name])
    mapping = pa.table(
        {
            "portfolio_id": pa.concat_arrays([ids for ids, _ in claimed]),
            "account_id": pa.concat_arrays([accounts for _, accounts in claimed]),
        }
    )
    return RaceBook("quickstart", tables, mapping, inputs.as_of, _law(tables["assets"]))


def _venue_of(row: dict[str, Any]) -> str:
    """Venue in the id of a row that has no column for it."""
    named = row.get("account_id") or row.get("rule_set") or row.get("instrument_id") or ""
    return str(named).partition(":")[0]


def _suffix(numbers: np.ndarray) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 7, "0")


def _copies(table: pa.Table, scale: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """`table` once for every entry of `scale`: ids numbered, quantities scaled and shaken, entry prices shaken."""
    rows = table.num_rows
    out = table.take(pa.array(np.tile(np.arange(rows), scale.size)))
    number = _suffix(np.repeat(np.arange(scale.size), rows))
    for column in ("account_id", "node", "parent_account_id"):
        if column in out.column_names:
            ids = pc.binary_join_element_wise(out[column].combine_chunks(), number, ":")
            out = out.set_column(out.column_names.index(column), out.schema.field(column), ids)
    for column, spread in (("quantity", 0.15), ("entry_price", 0.01)):
        if column in out.column_names:
            values = out[column].combine_chunks()
            shaken = np.exp(rng.normal(0.0, spread, len(values)))
            if column == "quantity":
                shaken *= np.repeat(scale, rows)
            changed = decimals(np.nan_to_num(values.cast(pa.float64()).to_numpy(zero_copy_only=False)) * shaken)
            changed = pc.if_else(values.is_valid(), changed, pa.scalar(None, changed.type))
            out = out.set_column(out.column_names.index(column), out.schema.field(column), changed)
    return out


def _law(assets: pa.Table) -> MarketLaw:
    coins = [f"price:{name}" for name in pc.unique(assets["risk_factor"]).to_pylist() if name]
    pegs = [f"peg:{name}" for name in pc.unique(assets["peg_of"]).to_pylist() if name]
    factors = sorted(coins + pegs)
    is_coin = np.array([name.startswith("price:") for name in factors])
    std = np.array(
        [_DAILY_STD.get(name, 0.05) if coin else _PEG_STD for name, coin in zip(factors, is_coin, strict=True)]
    )
    correlation = np.where(np.outer(is_coin, is_coin), 0.7, 0.1)
    np.fill_diagonal(correlation, 1.0)
    return MarketLaw(tuple(factors), std, correlation, 4.0)
