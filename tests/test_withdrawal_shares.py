"""What a venue could pay out of a balance, from rows as its adapters write them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from aggregator.config import load_configuration
from aggregator.run_inputs import read_inputs
from aggregator.snapshot import Snapshot
from aggregator.withdrawal_shares import withdrawal_shares
from tests.quickstart_book import QUICKSTART

EXACT = 1e-12


def account(account_id: str, mode: str, unit: str = "USD") -> dict[str, Any]:
    return {
        "account_id": account_id,
        "venue": account_id.split(":")[0],
        "margin_mode": mode,
        "settlement_asset": unit,
    }


def balance(
    account_id: str, asset: str, quantity: str, locked: str | None = None, side: str = "asset"
) -> dict[str, Any]:
    return {
        "account_id": account_id,
        "asset_id": asset,
        "side": side,
        "quantity": Decimal(quantity),
        "accrued_interest": None,
        "locked": None if locked is None else Decimal(locked),
    }


def state(venue: str, market: str, field: str, value: float | str) -> dict[str, Any]:
    is_text = isinstance(value, str)
    return {
        "venue": venue,
        "market": market,
        "field": field,
        "value": None if is_text else value,
        "text": value if is_text else None,
    }


def shares(
    accounts: list[Any], balances: list[Any], states: list[Any], portfolios: Mapping[str, str] | None = None
) -> dict[str, float]:
    tables = {"accounts": tuple(accounts), "balances": tuple(balances), "market_state": tuple(states)}
    return withdrawal_shares([Snapshot(tables, (), frozenset(), None, "")], portfolios or {})


def test_locked_tokens_stay() -> None:
    found = shares(
        [account("bybit:desk", "cross")],
        [
            balance("bybit:desk", "USDT", "200", "50"),
            balance("bybit:desk", "BTC", "2"),
            balance("bybit:desk", "ETH", "3", "4"),
            balance("bybit:desk", "SOL", "3", "4", side="liability"),
        ],
        [state("bybit", "BTC", "available_liquidity", 0.0)],
    )
    assert found == {"bybit:desk/USDT": 0.75, "bybit:desk/ETH": 0.0}


def test_a_lender_pays_out_what_its_pool_has() -> None:
    """Of two deployments each has its own reserve; a virtual balance of 0 is none; a paused reserve pays nothing."""
    main, prime = "aave_v3:desk:ethereum", "aave_v3:desk:ethereum-prime"
    found = shares(
        [account(main, "lending"), account(prime, "lending")],
        [
            balance(main, "WETH@ethereum", "10"),
            balance(main, "USDC@ethereum", "100"),
            balance(main, "DAI@ethereum", "5"),
            balance(main, "GHO@ethereum", "40"),
            balance(prime, "WETH@ethereum", "10"),
            balance(prime, "USDC@ethereum", "100"),
        ],
        [
            state("aave_v3", "WETH@ethereum", "virtual_balance", 4.0),
            state("aave_v3", "WETH@ethereum", "available_liquidity", 5.0),
            state("aave_v3", "USDC@ethereum", "available_liquidity", 1e9),
            state("aave_v3", "USDC@ethereum", "status", "active frozen paused"),
            state("aave_v3", "GHO@ethereum", "virtual_balance", 0.0),
            state("aave_v3", "GHO@ethereum", "available_liquidity", 30.0),
            state("aave_v3", "ethereum-prime:WETH@ethereum", "virtual_balance", 2.0),
        ],
    )
    assert found == {
        f"{main}/WETH@ethereum": 0.4,
        f"{main}/USDC@ethereum": 0.0,
        f"{main}/GHO@ethereum": 0.75,
        f"{prime}/WETH@ethereum": 0.2,
    }


def test_only_what_a_market_lends_is_limited_by_what_is_borrowed() -> None:
    comet, blue = "compound_v3:desk:usdc-ethereum", "morpho_blue:desk:wsteth-weth"
    found = shares(
        [account(comet, "lending"), account(blue, "lending", "WETH@ethereum")],
        [
            balance(comet, "USDC@ethereum", "100"),
            balance(comet, "WETH@ethereum", "100"),
            balance(blue, "wstETH@ethereum", "100"),
            balance(blue, "WETH@ethereum", "8"),
        ],
        [
            state("compound_v3", "usdc-ethereum", "total_supply", 1000.0),
            state("compound_v3", "usdc-ethereum", "total_borrow", 970.0),
            state("compound_v3", "usdc-ethereum", "reserves", 20.0),
            state("compound_v3", "usdc-ethereum:WETH@ethereum", "total_supply", 1.0),
            state("morpho_blue", "wsteth-weth", "total_supply", 10.0),
            state("morpho_blue", "wsteth-weth", "total_borrow", 8.0),
        ],
    )
    assert found == {
        f"{comet}/USDC@ethereum": pytest.approx(0.5, rel=EXACT),
        f"{blue}/WETH@ethereum": pytest.approx(0.25, rel=EXACT),
    }
    paused = shares(
        [account(comet, "lending")],
        [balance(comet, "WETH@ethereum", "100")],
        [state("compound_v3", "usdc-ethereum", "status", "transfer_paused withdraw_paused")],
    )
    assert paused == {f"{comet}/WETH@ethereum": 0.0}


def test_accounts_of_one_portfolio_share_the_pool_that_both_are_in() -> None:
    """In proportion to what each could take; one of another portfolio, or in another pool, is not counted with them."""
    ids = [f"aave_v3:{owner}:ethereum" for owner in ("one", "two", "three", "other")]
    found = shares(
        [account(account_id, "lending") for account_id in ids],
        [
            balance(ids[0], "WETH@ethereum", "10"),
            balance(ids[1], "WETH@ethereum", "40", "20"),
            balance(ids[2], "WETH@ethereum", "5", "6"),
            balance(ids[3], "WETH@ethereum", "10"),
            balance(ids[0], "USDC@ethereum", "100"),
        ],
        [
            state("aave_v3", "WETH@ethereum", "available_liquidity", 9.0),
            state("aave_v3", "USDC@ethereum", "available_liquidity", 100.0),
        ],
        {**dict.fromkeys(ids[:3], "desk"), ids[3]: "another"},
    )
    assert found == pytest.approx(
        {
            f"{ids[0]}/WETH@ethereum": 0.3,  # a third of 9 for 10 of the 30 that are not locked
            f"{ids[1]}/WETH@ethereum": 0.15,
            f"{ids[2]}/WETH@ethereum": 0.0,
            f"{ids[3]}/WETH@ethereum": 0.9,
        },
        rel=EXACT,
    )


def test_the_quickstart_desk_is_held_back_only_by_what_its_venues_say() -> None:
    """Shares stay within 0 to 1 and name lines of the book."""
    inputs = read_inputs(load_configuration(QUICKSTART), lambda stage, done, total: None)
    found = withdrawal_shares(inputs.snapshots.values())
    lines = {
        f"{row['account_id']}/{row['asset_id']}" for s in inputs.snapshots.values() for row in s.tables["balances"]
    }
    assert set(found) <= lines
    assert all(0.0 <= share < 1.0 for share in found.values())
