"""How much of a balance its venue could pay out today: what is locked cannot leave, and a lender's pool pays out what
nobody has borrowed.

Read from canonical tables: `locked` of `balances`, and of a lending account's pool the rows of `market_state` whose
market is `<part>:<asset>`, the asset alone, or for the asset that the market lends the `<part>` of the account's id
(`<venue>:<owner>:<part>`). Amounts in tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .snapshot import Row, Snapshot


def withdrawal_shares(snapshots: Iterable[Snapshot]) -> dict[str, float]:
    """Share of a balance that can leave, 0 to 1, by its line (`<account>/<asset>`); without those that can as a whole.

    Nothing is held back where a table does not say it. Two accounts in one pool are told its whole liquidity each.
    """
    out: dict[str, float] = {}
    for snapshot in snapshots:
        states: dict[tuple[str, str], dict[str, Row]] = {}
        for row in snapshot.tables["market_state"]:
            states.setdefault((row["venue"], row["market"]), {})[row["field"]] = row
        accounts = {row["account_id"]: row for row in snapshot.tables["accounts"]}
        for balance in snapshot.tables["balances"]:
            account = accounts.get(balance["account_id"])
            amount = float(balance["quantity"] + (balance["accrued_interest"] or 0))
            if balance["side"] != "asset" or account is None or amount <= 0.0:
                continue
            leaves = amount - float(balance["locked"] or 0)
            if account["margin_mode"] == "lending":
                leaves = min(leaves, _liquidity(states, account, balance["asset_id"], leaves))
            share = max(leaves, 0.0) / amount
            if share < 1.0:
                out[f"{balance['account_id']}/{balance['asset_id']}"] = share
    return out


def _liquidity(
    states: Mapping[tuple[str, str], Mapping[str, Row]], account: Row, asset: str, otherwise: float
) -> float:
    """Tokens that the pool of an account's balance has, `otherwise` where no row says it; 0 where it is paused."""
    venue, part = account["venue"], account["account_id"].split(":", 2)[-1]
    own = [market for of_venue, market in states if of_venue == venue and market.startswith(f"{part}:")]
    found = states.get((venue, f"{part}:{asset}"))
    if found is None and not own:
        found = states.get((venue, asset))
    whole = states.get((venue, part))
    lends = found is None and (asset == account["settlement_asset"] or bool(own))
    if whole is not None and (lends or _is_paused(whole)):
        found = whole
    if found is None:
        return otherwise
    if _is_paused(found):
        return 0.0
    amounts = {name: row["value"] for name, row in found.items() if row["value"] is not None}
    # A virtual balance of 0 says nothing where a reserve keeps none.
    there = amounts.get("virtual_balance") or amounts.get("available_liquidity")
    if there is None and "total_supply" in amounts and "total_borrow" in amounts:
        there = amounts["total_supply"] - amounts["total_borrow"] + max(amounts.get("reserves", 0.0), 0.0)
    return otherwise if there is None else max(float(there), 0.0)


def _is_paused(state: Mapping[str, Row]) -> bool:
    words = (state["status"]["text"] or "").split() if "status" in state else []
    return "paused" in words or "withdraw_paused" in words
