"""A token that the asset book does not know: a finding where its venue counts it for nothing, else a failed account.

Every case adds a balance of PUMPKIN to an owner of the suite's own payloads. Where it counts for nothing every table
must be that of the payloads without it.
"""

import tomllib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from adapters.adapter import Context, Normalized, find_adapter
from adapters.asset_book import read_asset_book
from adapters.transport import Payload
from aggregator.snapshot import take_snapshot
from tests import sample_binance, sample_bybit, sample_deribit, sample_okx, sample_paradex
from tests.payload_files import changed, read_payload

TESTS = Path(__file__).resolve().parent
CONFIGS = TESTS.parent / "configs"
ASSETS = read_asset_book(CONFIGS / "assets.toml")
SAMPLES = {
    "okx": sample_okx.PAYLOADS,
    "bybit": sample_bybit.PAYLOADS,
    "binance": sample_binance.PAYLOADS,
    "deribit": sample_deribit.PAYLOADS,
    "paradex": sample_paradex.PAYLOADS,
}
TOKEN = "PUMPKIN"
COLLATERAL = {"marginCollateral": True, "collateralSwitch": True}


class Where(NamedTuple):
    """Where a balance is added: the venue's file, the account that it belongs to, and the way to the list."""

    venue: str
    file: str
    account: str
    balances: Callable[[Any], list[Any]]


OKX = Where("okx", "west_balance.json", "okx:west:cross", lambda body: body["data"][0]["details"])
OKX_RISK = Where("okx", "quay_position_risk.json", "okx:quay:cross", lambda body: body["data"][0]["balData"])
OKX_PORTFOLIO = Where("okx", "east_balance.json", "okx:east:portfolio", lambda body: body["data"][0]["details"])
BYBIT = Where("bybit", "wallet_harbor.json", "bybit:harbor:unified", lambda body: body["result"]["list"][0]["coin"])
BYBIT_PORTFOLIO = Where("bybit", "wallet_west.json", "bybit:west:unified", BYBIT.balances)
BYBIT_ISOLATED = Where("bybit", "wallet_east.json", "bybit:east:unified", BYBIT.balances)
BINANCE_PM = Where("binance", "delta_balance.json", "binance:delta:portfolio", lambda body: body)
BINANCE_MULTI = Where("binance", "bravo_account.json", "binance:bravo:multi", lambda body: body["assets"])
DERIBIT = Where("deribit", "south_summaries.json", "deribit:south:cross", lambda body: body["result"]["summaries"])
PARADEX = Where("paradex", "desk_balance.json", "paradex:desk", lambda body: body["results"])


def okx_row(equity: str, **said: Any) -> dict[str, Any]:
    blank = dict.fromkeys(("stgyEq", "isoEq", "upl", "imr", "mmr", "mgnRatio"), "")
    return blank | {"ccy": TOKEN, "eq": equity, "cashBal": equity, "interest": "0", "ordFrozen": "0"} | said


def bybit_row(wallet: str, usd: str, **said: Any) -> dict[str, Any]:
    zero = dict.fromkeys(("totalOrderIM", "totalPositionIM", "totalPositionMM", "unrealisedPnl", "locked"), "0")
    return zero | {"coin": TOKEN, "walletBalance": wallet, "equity": wallet, "usdValue": usd, "spotBorrow": "0"} | said


def binance_row(quantity: str) -> dict[str, Any]:
    keys = ("crossMarginFree", "crossMarginLocked", "crossMarginBorrowed", "crossMarginInterest", "umWalletBalance")
    futures = ("umUnrealizedPNL", "cmWalletBalance", "cmUnrealizedPNL", "negativeBalance")
    amounts = dict.fromkeys((*keys, *futures), "0") | {"crossMarginAsset": quantity, "totalWalletBalance": quantity}
    return amounts | {"asset": TOKEN, "crossMarginFree": quantity}


def multi_row(wallet: str, *, available: bool) -> dict[str, Any]:
    keys = ("unrealizedProfit", "marginBalance", "maintMargin", "initialMargin", "openOrderInitialMargin", "crossUnPnl")
    own = {"asset": TOKEN, "walletBalance": wallet, "crossWalletBalance": wallet, "marginAvailable": available}
    return dict.fromkeys(keys, "0") | own


def deribit_row(equity: str, usd: str) -> dict[str, Any]:
    """A cross row of a currency at `usd` dollars: its total is the account's, in that currency."""
    zero = dict.fromkeys(("options_value", "futures_session_upl", "options_session_upl", "delta_total"), 0)
    model = {"margin_model": "cross_sm", "cross_collateral_enabled": True, "portfolio_margining_enabled": False}
    total = {"total_equity_usd": Decimal("216946.626406748"), "total_margin_balance_usd": Decimal("215981.624829748")}
    margin = total["total_margin_balance_usd"] / Decimal(usd)
    own = {"currency": TOKEN, "balance": Decimal(equity), "equity": Decimal(equity), "margin_balance": margin}
    return zero | model | total | own


def read(where: Where, row: dict[str, Any] | None, *, also: dict[str, Callable[[Any], None]] | None = None) -> Any:
    """The venue's sample, with one more row in the list of balances and other files changed."""
    changes: dict[str, Callable[[Any], None]] = dict(also or {})
    if row is not None:

        def add(body: Any) -> None:
            where.balances(body).append(row)
            wallet = body["result"]["list"][0] if where.venue == "bybit" else {}
            if wallet.get("totalEquity"):  # the total is of all coins, collateral or not
                wallet["totalEquity"] = str(Decimal(wallet["totalEquity"]) + Decimal(row["usdValue"]))

        changes[where.file] = add
    folder = TESTS / "payloads" / where.venue
    payloads: list[Payload] = []
    for request, file, owner in SAMPLES[where.venue]:
        payload = read_payload(where.venue, folder, request, file, owner)
        payloads.append(changed(payload, changes[payload.name]) if payload.name in changes else payload)
    parameters = tomllib.loads((CONFIGS / "venues" / f"{where.venue}.toml").read_text(encoding="utf-8"))
    return find_adapter(where.venue).normalize(payloads, Context(ASSETS, parameters))


def price(body: Any) -> None:
    body.append(body[0] | {"asset": TOKEN, "assetIndexPrice": "0.00001"})


def rate(value: str) -> Callable[[Any], None]:
    return lambda body: body.append({"asset": TOKEN, "collateralRate": value})


def tiers_of(ratio: str) -> Callable[[Any], None]:
    def change(body: Any) -> None:
        listed = body["result"]["list"]
        listed.append(
            {"currency": TOKEN, "collateralRatioList": [{"minQty": "0", "maxQty": "", "collateralRatio": ratio}]}
        )

    return change


def named(coin: str) -> dict[str, Any]:
    return {"currency": coin, "collateralRatio": "0.9", "marginCollateral": True, "collateralSwitch": True}


NOTHING = [
    pytest.param(OKX, okx_row("3", eqUsd="0.004", disEq="0"), None, "eqUsd", id="okx value below a cent"),
    pytest.param(OKX, okx_row("9", eqUsd="0", disEq="0"), None, "eqUsd", id="okx value of 0"),
    pytest.param(OKX, okx_row("3", eqUsd="9", disEq="0"), None, "disEq", id="okx discount of 0"),
    pytest.param(
        OKX, okx_row("3", eqUsd="9", disEq="9", collateralEnabled=False), None, "collateralEnabled", id="okx disabled"
    ),
    pytest.param(OKX_PORTFOLIO, okx_row("3", eqUsd="0.001", disEq="0"), None, "eqUsd", id="okx portfolio margin"),
    pytest.param(OKX_RISK, {"ccy": TOKEN, "eq": "5", "disEq": "0"}, None, "disEq", id="okx position risk"),
    pytest.param(OKX_RISK, {"ccy": TOKEN, "eq": "5", "disEq": ""}, None, "ccy", id="okx not in the discount list"),
    pytest.param(BYBIT, bybit_row("7", "0.00012"), None, "usdValue", id="bybit value below a cent"),
    pytest.param(BYBIT, bybit_row("7", "0"), None, "usdValue", id="bybit value of 0"),
    pytest.param(
        BYBIT, bybit_row("7", "12", marginCollateral=False), None, "marginCollateral", id="bybit no collateral"
    ),
    pytest.param(
        BYBIT,
        bybit_row("7", "12", marginCollateral=True, collateralSwitch=False),
        None,
        "collateralSwitch",
        id="bybit switched off",
    ),
    pytest.param(
        BYBIT,
        bybit_row("7", "12", marginCollateral=True, collateralSwitch=True),
        {"collateral_tiers.json": tiers_of("0")},
        "coin",
        id="bybit ratio of 0",
    ),
    pytest.param(
        BYBIT,
        bybit_row("7", "12", collateralSwitch=True),
        {"collateral_info_harbor.json": lambda body: body["result"]["list"].extend(map(named, ("USDT", "SOL")))},
        "coin",
        id="bybit not in the collateral list",
    ),
    pytest.param(BYBIT_PORTFOLIO, bybit_row("7", "0.001"), None, "usdValue", id="bybit portfolio margin"),
    pytest.param(BYBIT_ISOLATED, bybit_row("7", "0.001"), None, "usdValue", id="bybit isolated margin"),
    pytest.param(
        BINANCE_PM, binance_row("4"), {"portfolio_collateral_rate.json": rate("0")}, "asset", id="binance rate of 0"
    ),
    pytest.param(
        BINANCE_PM,
        binance_row("4"),
        {"portfolio_collateral_rate.json": rate("0.9"), "portfolio_asset_index_price.json": price},
        "asset",
        id="binance value below a cent",
    ),
    pytest.param(
        BINANCE_MULTI, multi_row("12", available=False), None, "marginAvailable", id="binance multi-assets no margin"
    ),
    pytest.param(DERIBIT, deribit_row("0.5", "0.01"), None, "equity", id="deribit value below a cent"),
    pytest.param(PARADEX, {"token": TOKEN, "size": "250", "last_updated_at": 1}, None, "token", id="paradex"),
]

COUNTS = [
    pytest.param(OKX, okx_row("3", eqUsd="9", disEq="8"), None, id="okx"),
    pytest.param(OKX, okx_row("-3", eqUsd="-9", disEq="-9", collateralEnabled=False), None, id="okx debt"),
    pytest.param(OKX, okx_row("-3", eqUsd="-0.004", disEq="0"), None, id="okx debt below a cent"),
    pytest.param(OKX, okx_row("-3", eqUsd="0", disEq="0"), None, id="okx debt of a stated value of 0"),
    pytest.param(OKX, okx_row("0", eqUsd="0") | {"cashBal": "1", "interest": "2"}, None, id="okx interest alone"),
    pytest.param(OKX_RISK, {"ccy": TOKEN, "eq": "-5", "disEq": "0"}, None, id="okx position risk debt"),
    pytest.param(OKX, okx_row("3"), {"discounts.json": lambda body: body.update(data=[])}, id="okx unsaid"),
    pytest.param(
        BYBIT,
        bybit_row("7", "12", marginCollateral=True, collateralSwitch=True),
        {"collateral_tiers.json": tiers_of("0.5")},
        id="bybit",
    ),
    pytest.param(
        BYBIT, bybit_row("7", "12", marginCollateral=True, collateralSwitch=True), None, id="bybit without a ratio"
    ),
    pytest.param(BYBIT, bybit_row("-7", "-12", marginCollateral=False), None, id="bybit debt"),
    pytest.param(BYBIT, bybit_row("-7", "0"), None, id="bybit debt of a stated value of 0"),
    pytest.param(BYBIT, bybit_row("7", "0.001", spotBorrow="3", **COLLATERAL), None, id="bybit borrowed for spot"),
    pytest.param(BYBIT, bybit_row("7", "0.001", borrowAmount="3", **COLLATERAL), None, id="bybit borrowed"),
    pytest.param(BYBIT_ISOLATED, bybit_row("-7", "-0.001"), None, id="bybit isolated margin debt"),
    pytest.param(BYBIT_ISOLATED, bybit_row("7", "12", marginCollateral=False), None, id="bybit isolated margin"),
    pytest.param(BINANCE_PM, binance_row("4"), {"portfolio_collateral_rate.json": rate("0.9")}, id="binance"),
    pytest.param(BINANCE_PM, binance_row("4"), None, id="binance not in the collateral rates"),
    pytest.param(BINANCE_PM, binance_row("4") | {"crossMarginBorrowed": "9"}, None, id="binance debt"),
    pytest.param(
        BINANCE_PM,
        binance_row("4") | {"crossMarginBorrowed": "9"},
        {"portfolio_collateral_rate.json": rate("0.9"), "portfolio_asset_index_price.json": price},
        id="binance debt below a cent",
    ),
    pytest.param(BINANCE_MULTI, multi_row("12", available=True), None, id="binance multi-assets"),
    pytest.param(BINANCE_MULTI, multi_row("-12", available=False), None, id="binance multi-assets debt"),
    pytest.param(DERIBIT, deribit_row("0.5", "10"), None, id="deribit"),
    pytest.param(DERIBIT, deribit_row("-0.5", "0.01"), None, id="deribit debt below a cent"),
    pytest.param(PARADEX, {"token": TOKEN, "size": "-250", "last_updated_at": 1}, None, id="paradex debt"),
]


def tables(result: Normalized, *, but: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    return {name: table.to_pylist() for name, table in result.batches.items() if name not in but}


@pytest.mark.parametrize(("where", "row", "also", "field"), NOTHING)
def test_what_its_venue_counts_for_nothing_leaves_the_account_whole(
    where: Where, row: Any, also: Any, field: str
) -> None:
    before, result = read(where, None, also=also), read(where, row, also=also)
    assert tables(result) == tables(before)
    found = [failure for failure in result.failures if failure not in before.failures]
    assert where.account not in {failure.account_id for failure in found}
    (finding,) = [failure for failure in found if failure.reason == "unknown_asset"]
    assert (finding.venue, finding.subject, finding.account_id) == (where.venue, where.account, None)
    assert TOKEN in finding.message
    assert finding.path.endswith(f".{field}")
    assert finding.payload == where.file
    # The snapshot takes it as a finding too: nothing refers to an asset that is not there.
    held = take_snapshot([result.batches], result.failures, max_mark_gap=0.0)
    assert where.account not in {failure.account_id for failure in held.failures}


@pytest.mark.parametrize(("where", "row", "also"), COUNTS)
def test_what_counts_leaves_the_account_incomplete(where: Where, row: Any, also: Any) -> None:
    before, result = read(where, None, also=also), read(where, row, also=also)
    assert where.account not in {failure.account_id for failure in before.failures}
    own = [failure for failure in result.failures if failure.account_id == where.account]
    assert "unknown_asset" in {failure.reason for failure in own}
    assert TOKEN not in {balance["asset_id"] for balance in result.batches["balances"].to_pylist()}


def test_a_cent_is_the_border_of_holdings_and_a_debt_has_none() -> None:
    for usd, fails in (("0.01", True), ("0.009999", False), ("-0.000001", True), ("-0.01", True)):
        result = read(OKX, okx_row("2" if Decimal(usd) > 0 else "-2", eqUsd=usd, disEq=usd))
        assert (OKX.account in {failure.account_id for failure in result.failures}) == fails, usd
