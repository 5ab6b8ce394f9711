"""How much of a balance its venue could pay out today: what is locked cannot leave, and a lender's pool pays out what
nobody has borrowed.

Read from canonical tables: `locked` of `balances`, and of a lending account's pool the rows of `market_state` whose
market is `<part>:<asset>`, the asset alone, or for the asset that the market lends the `<part>` of the account's id
(`<venue>:<owner>:<part>`). Amounts in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from .snapshot import Row, Snapshot


class _Pool(NamedTuple):
    """What a lender's pool could pay out, in tokens; `market` names it among those of its `venue`."""

    venue: str
    market: str
    liquidity: float


def withdrawal_shares(
    snapshots: Iterable[Snapshot], portfolios: Mapping[str, str] = MappingProxyType({})
) -> dict[str, float]:
    """Share of a balance that can leave, 0 to 1, by its line (`<account>/<asset>`); without those that can as a whole.

    Nothing is held back where a table does not say it. Accounts of one portfolio in one pool are told its liquidity
    in proportion to what lies there; `portfolios` names that of each account, and one that it leaves out is alone.
    """
    out: dict[str, float] = {}
    for snapshot in snapshots:
        states: dict[tuple[str, str], dict[str, Row]] = {}
        for row in snapshot.tables["market_state"]:
            states.setdefault((row["venue"], row["market"]), {})[row["field"]] = row
        accounts = {row["account_id"]: row for row in snapshot.tables["accounts"]}
        amounts: dict[str, tuple[float, float]] = {}
        users: dict[tuple[str, _Pool], list[str]] = {}
        for balance in snapshot.tables["balances"]:
            account_id, asset = balance["account_id"], balance["asset_id"]
            account = accounts.get(account_id)
            amount = float(balance["quantity"] + (balance["accrued_interest"] or 0))
            if balance["side"] != "asset" or account is None or amount <= 0.0:
                continue
            line = f"{account_id}/{asset}"
            amounts[line] = amount, amount - float(balance["locked"] or 0)
            pool = _pool(states, account, asset) if account["margin_mode"] == "lending" else None
            if pool is not None:
                users.setdefault((portfolios.get(account_id, account_id), pool), []).append(line)
        for (_, pool), lines in users.items():
            # One that locks more than it holds asks for nothing.
            wanted = math.fsum(max(amounts[line][1], 0.0) for line in lines)
            if wanted > pool.liquidity:
                for line in lines:
                    amount, leaves = amounts[line]
                    alone = pool.liquidity if len(lines) == 1 else pool.liquidity * (max(leaves, 0.0) / wanted)
                    amounts[line] = amount, min(leaves, alone)
        for line, (amount, leaves) in amounts.items():
            share = max(leaves, 0.0) / amount
            if share < 1.0:
                out[line] = share
    return out


def _pool(states: Mapping[tuple[str, str], Mapping[str, Row]], account: Row, asset: str) -> _Pool | None:
    """The pool that pays out a balance of an account, None where no row says what it has; of nothing where paused."""
    venue, part = account["venue"], account["account_id"].split(":", 2)[-1]
    own = [market for of_venue, market in states if of_venue == venue and market.startswith(f"{part}:")]
    market = f"{part}:{asset}"
    if (venue, market) not in states and not own:
        market = asset
    found, whole = states.get((venue, market)), states.get((venue, part))
    lends = found is None and (asset == account["settlement_asset"] or bool(own))
    if whole is not None and (lends or _is_paused(whole)):
        market, found = part, whole
    if found is None:
        return None
    if _is_paused(found):
        return _Pool(venue, market, 0.0)
    amounts = {name: row["value"] for name, row in found.items() if row["value"] is not None}
    # A virtual balance of 0 says nothing where a reserve keeps none.
    there = amounts.get("virtual_balance") or amounts.get("available_liquidity")
    if there is None and "total_supply" in amounts and "total_borrow" in amounts:
        there = amounts["total_supply"] - amounts["total_borrow"] + max(amounts.get("reserves", 0.0), 0.0)
    return None if there is None else _Pool(venue, market, max(float(there), 0.0))


def _is_paused(state: Mapping[str, Row]) -> bool:
    words = (state["status"]["text"] or "").split() if "status" in state else []
    return "paused" in words or "withdraw_paused" in words
