"""Morpho Blue: payloads to canonical tables, every way to be wrong, and the exact mechanics against slow twins.

The payloads in `payloads/morpho_blue` are written for this suite: structs of the contract, an answer of the GraphQL
API, rows of the REST API. No recorded payload of the venue was at hand.
"""

import copy
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter, Context, Normalized, find_adapter
from adapters.asset_book import read_asset_book
from adapters.morpho_blue import ADAPTER, mechanics
from adapters.morpho_blue.mechanics import ORACLE_PRICE_SCALE, WAD, Market, MorphoRevertedError
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.correlation import correlation_matrix
from aggregator.engine import draw_cube, evaluate_headlines
from aggregator.errors import ConfigurationError, Failure
from aggregator.generators.multivariate_t import multivariate_t
from aggregator.portfolio import pack_book
from aggregator.results import Evaluated, account_rows
from aggregator.schema.canonical import CANONICAL
from aggregator.snapshot import take_snapshot
from tests.normalized_rows import rows_of
from tests.payload_files import changed, put, read_payload
from tests.sample_morpho_blue import PARAMETERS, PAYLOADS

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "payloads" / "morpho_blue"
BOOK = read_asset_book(ROOT / "configs" / "assets.toml")
FILE = tomllib.loads((ROOT / PARAMETERS).read_text(encoding="utf-8"))

NOW = datetime(2024, 6, 30, tzinfo=UTC)
STAKED, ETHER, BITCOIN = "wsteth-usdc-86", "wsteth-weth-945", "wbtc-usdc-86"
FUND, FUND_ETHER = f"morpho_blue:fund:{STAKED}", f"morpho_blue:fund:{ETHER}"
SOLO, KEEPER = f"morpho_blue:solo:{STAKED}", f"morpho_blue:keeper:{STAKED}"
DESK, DESK_LENDS = f"morpho_blue:desk:{BITCOIN}", f"morpho_blue:desk:{STAKED}"
ALL = frozenset({FUND, FUND_ETHER, SOLO, KEEPER, DESK, DESK_LENDS})
MARKETS, TOKENS, FUND_FILE, SOLO_FILE, DESK_FILE, KEEPER_FILE = (file for _, file, _ in PAYLOADS)

# The engine adds a handful of float64 products of float64 marks.
ENGINE_RELATIVE = 1e-9
ETHER_USD, USDC_USD = Fraction("3377.21"), Fraction("0.99994")

Body = dict[str, Any]
Change = Callable[[Any], Any]


def _fetch(file: str, request: str = "", owner: str = "", root: Path = FOLDER) -> Payload:
    return read_payload("morpho_blue", root, request, file, owner)


def _desk() -> dict[str, Payload]:
    return {file: _fetch(file, request, owner) for request, file, owner in PAYLOADS}


def _normalize(payloads: dict[str, Payload] | list[Payload], **changes: Any) -> Normalized:
    listed = list(payloads.values()) if isinstance(payloads, dict) else payloads
    return ADAPTER.normalize(listed, Context(BOOK, FILE | changes))


def _incomplete(normalized: Normalized) -> set[str]:
    return {f.account_id for f in normalized.failures if f.account_id}


# What the tables say --------------------------------------------------------------------------------------------------


def test_the_object_is_an_adapter_and_answers_nothing_with_nothing() -> None:
    assert isinstance(ADAPTER, Adapter)
    assert find_adapter("morpho_blue") is ADAPTER
    normalized = _normalize([])
    assert normalized.failures == []
    assert set(normalized.batches) == set(CANONICAL) - {"failures"}
    assert not any(table.num_rows for table in normalized.batches.values())


def test_the_desk_becomes_accounts_with_these_balances() -> None:
    normalized = _normalize(_desk())
    assert normalized.failures == []
    accounts = {row["account_id"]: row for row in rows_of(normalized, "accounts")}
    assert set(accounts) == ALL
    assert {row["settlement_asset"] for name, row in accounts.items() if name != FUND_ETHER} == {"USDC@ethereum"}
    assert accounts[FUND_ETHER]["settlement_asset"] == "WETH@ethereum"
    assert {(row["margin_mode"], row["chain"], row["received_at"]) for row in accounts.values()} == {
        ("lending", "ethereum", NOW)
    }
    assert all(row["node"] == name for name, row in accounts.items())
    assert {name: row["event_at"] for name, row in accounts.items() if row["event_at"]} == {
        DESK: NOW - timedelta(seconds=20)  # the API's totals are of then
    }
    found = {
        (row["account_id"], row["asset_id"].partition("@")[0], row["side"], row["collateral_enabled"]): row["quantity"]
        for row in rows_of(normalized, "balances")
    }
    assert found == {
        (FUND, "USDC", "liability", True): Decimal(850_000),
        (FUND, "wstETH", "asset", True): Decimal(320),
        (FUND_ETHER, "WETH", "liability", True): Decimal("703.499291292672"),
        (FUND_ETHER, "wstETH", "asset", True): Decimal(640),
        (SOLO, "wstETH", "asset", True): Decimal("12.345678901234567890"),
        (SOLO, "USDC", "asset", False): Decimal("1264219.398438"),
        (KEEPER, "wstETH", "asset", True): Decimal("1.5"),
        (KEEPER, "USDC", "liability", True): Decimal("2692.377178"),
        (DESK, "WBTC", "asset", True): Decimal(45),
        (DESK, "USDC", "liability", True): Decimal(2_000_000),
        (DESK_LENDS, "USDC", "asset", False): Decimal("526758.082682"),
    }


def _price_marks(normalized: Normalized, **match: str) -> list[dict[str, Any]]:
    return [row for row in rows_of(normalized, "marks", **match) if row["field"] != "borrow_rate"]


def test_a_debt_costs_its_markets_rate_a_year() -> None:
    normalized = _normalize(_desk())
    rates = {(r["account_id"], r["subject"]): r["value"] for r in rows_of(normalized, "marks", field="borrow_rate")}
    owed = {(r["account_id"], r["asset_id"]) for r in rows_of(normalized, "balances", side="liability")}
    # The one position that only the API tells of has no rate beside it.
    assert owed - set(rates) == {(DESK, "USDC@ethereum")}
    # 6.2 % and 2.7 % a year, as the payloads' rates per second were made: fractions of 1e18.
    assert rates[FUND, "USDC@ethereum"] == pytest.approx(0.062, rel=1e-9)
    assert rates[FUND_ETHER, "WETH@ethereum"] == pytest.approx(0.027, rel=1e-9)


def test_prices_are_dollars_of_the_loan_token_times_the_oracles_price() -> None:
    normalized = _normalize(_desk())
    marks = {(r["account_id"], r["subject"].partition("@")[0]): r for r in _price_marks(normalized)}
    assert {key: row["value"] for key, row in marks.items() if key[0] == FUND_ETHER} == {
        (FUND_ETHER, "WETH"): float(ETHER_USD),
        (FUND_ETHER, "wstETH"): float(ETHER_USD * Fraction("1.17021456")),
    }
    assert marks[FUND, "wstETH"]["value"] == float(USDC_USD * Fraction("3952.26"))
    assert marks[DESK, "WBTC"]["value"] == float(USDC_USD * Fraction("60973.7783"))
    assert {(key[1], row["field"]) for key, row in marks.items()} == {
        ("USDC", "index"), ("WETH", "index"), ("wstETH", "oracle"), ("WBTC", "oracle"),
    }  # fmt: skip


def test_one_threshold_for_both_levels_and_the_incentive_as_bonus() -> None:
    tiers = {row["rule_set"]: row for row in rows_of(_normalize(_desk()), "collateral_tiers")}
    assert set(tiers) == {f"morpho_blue:{label}" for label in (STAKED, ETHER, BITCOIN)}
    for label, lltv in ((STAKED, "0.86"), (ETHER, "0.945"), (BITCOIN, "0.86")):
        row = tiers[f"morpho_blue:{label}"]
        assert row["asset_weight_initial"] == row["asset_weight_maintenance"] == Decimal(lltv)
    assert tiers[f"morpho_blue:{ETHER}"]["liquidation_bonus"] == Decimal("0.016776817488561260")


def test_totals_rates_and_oracle_prices_are_market_state() -> None:
    state = {(row["market"], row["field"]): row["value"] for row in rows_of(_normalize(_desk()), "market_state")}
    assert state[STAKED, "oracle_price"] == 3952.26
    assert state[ETHER, "oracle_price"] == 1.17021456
    assert state[STAKED, "borrow_rate"] == pytest.approx(0.062, rel=1e-9)
    assert state[STAKED, "total_borrow"] == pytest.approx(43_210_987.654321 * (1 + 0.062 * 48 / 31_536_000), rel=1e-12)
    assert state[BITCOIN, "utilization"] == pytest.approx(84_567_890.123456 / 95_123_456.789012, rel=1e-15)
    assert state[ETHER, "fee"] == 0.05
    assert state[ETHER, "lltv"] == 0.945


def test_the_desk_makes_a_complete_snapshot() -> None:
    normalized = _normalize(_desk())
    snapshot = take_snapshot([normalized.batches], normalized.failures, max_mark_gap=0.02)
    assert snapshot.failures == ()
    assert snapshot.incomplete == frozenset()
    assert snapshot.as_of == NOW


def test_the_order_of_the_payloads_does_not_matter() -> None:
    listed = list(_desk().values())
    wrong = replace(listed[2], name="again.json")

    def content(payloads: list[Payload]) -> str:
        normalized = _normalize(payloads)
        return take_snapshot([normalized.batches], normalized.failures).content_hash

    for payloads in (listed, [*listed, wrong]):
        assert len({content(payloads), content(payloads[::-1]), content(payloads[3:] + payloads[:3])}) == 1


def test_a_market_without_a_name_goes_by_its_id_and_one_elsewhere_by_its_chain() -> None:
    desk = _desk()
    unnamed = _normalize([desk[DESK_FILE], desk[TOKENS]], markets={})
    identity = "0x3a85e619751152991742810df6ec69ce473daef99e28a64ab2340d7b7ccfee49"
    assert f"morpho_blue:desk:{identity}" in {row["account_id"] for row in rows_of(unnamed, "accounts")}

    def on_base(body: Body) -> None:
        for position in body["data"]["userByAddress"]["marketPositions"]:
            position["market"]["morphoBlue"]["chain"]["id"] = 8453

    elsewhere = _normalize([changed(desk[DESK_FILE], on_base)])
    assert elsewhere.failures == []
    (row,) = [r for r in rows_of(elsewhere, "accounts") if BITCOIN in r["account_id"]]
    assert (row["account_id"], row["chain"], row["settlement_asset"]) == (
        f"morpho_blue:desk:base:{BITCOIN}",
        "base",
        "USDC@base",
    )


# Margin form, mechanics and engine ------------------------------------------------------------------------------------


class _Held:
    """A fixture's position in the contract's integers, read without the adapter."""

    def __init__(self, account: str) -> None:
        desk = {name: payload.body for name, payload in _desk().items()}
        staked, ether = desk[MARKETS]
        api = desk[DESK_FILE]["data"]["userByAddress"]["marketPositions"]
        label = account.split(":")[2]
        if label == BITCOIN:
            state, position = api[0]["market"]["state"], api[0]["state"]
            stored = [int(state[k]) for k in ("supplyAssets", "supplyShares", "borrowAssets", "borrowShares")]
            self.market, self.lltv, self.price = Market(*stored), 86 * 10**16, int(state["price"])
            self.decimals = 6, 8
        elif label == STAKED:
            names = ("totalSupplyAssets", "totalSupplyShares", "totalBorrowAssets", "totalBorrowShares")
            stored = [int(staked["market"][name]) for name in names]
            self.market = _slow_accrued(Market(*stored), int(staked["borrowRate"]), 48)
            self.lltv, self.price, self.decimals = 86 * 10**16, int(staked["price"]), (6, 18)
        else:
            stored = [int(value) for value in ether["market"][:4]]
            self.market = _slow_accrued(Market(*stored), int(ether["borrowRate"]), 24)  # the fee is the suppliers'
            self.lltv, self.price, self.decimals = 945 * 10**15, int(ether["price"]), (18, 18)
        shares, collateral = {
            FUND: lambda: (
                desk[FUND_FILE][0]["position"]["borrowShares"],
                desk[FUND_FILE][0]["position"]["collateral"],
            ),
            FUND_ETHER: lambda: (desk[FUND_FILE][1]["position"][1], desk[FUND_FILE][1]["position"][2]),
            SOLO: lambda: ("0", desk[SOLO_FILE]["position"]["collateral"]),
            KEEPER: lambda: (
                desk[KEEPER_FILE]["data"][0]["borrow_shares"],
                desk[KEEPER_FILE]["data"][0]["collateral_assets"],
            ),
            DESK: lambda: (position["borrowShares"], position["collateral"]),
            DESK_LENDS: lambda: ("0", "0"),
        }[account]()
        self.shares, self.collateral = int(shares), int(collateral)


def _slow_accrued(market: Market, rate: int, elapsed: int) -> Market:
    """Interest of e^x - 1 to the third order in rationals; the contract cuts each term."""
    x = Fraction(rate * elapsed, WAD)
    interest = int(market.total_borrow_assets * (x + x**2 / 2 + x**3 / 6))
    return market._replace(
        total_borrow_assets=market.total_borrow_assets + interest,
        total_supply_assets=market.total_supply_assets + interest,
    )


def _margin_form(normalized: Normalized, account: str) -> tuple[Fraction, Fraction]:
    """(equity, requirement) of an account in dollars, from its rows alone, in plain fractions."""
    (row,) = rows_of(normalized, "accounts", account_id=account)
    prices = {mark["subject"]: Fraction(mark["value"]) for mark in _price_marks(normalized, account_id=account)}
    tiers = {tier["asset_id"]: tier for tier in rows_of(normalized, "collateral_tiers", rule_set=row["rule_set"])}
    equity = requirement = Fraction(0)
    for balance in rows_of(normalized, "balances", account_id=account):
        value = Fraction(balance["quantity"]) * prices[balance["asset_id"]]
        if balance["side"] == "liability":
            equity -= value
        elif balance["collateral_enabled"]:
            equity += value
            requirement += value * (1 - Fraction(tiers[balance["asset_id"]]["asset_weight_maintenance"]))
    return equity, requirement


@pytest.mark.parametrize("account", sorted(ALL))
def test_equity_less_requirement_is_what_may_still_be_borrowed(account: str) -> None:
    equity, requirement = _margin_form(_normalize(_desk()), account)
    held = _Held(account)
    limit = Fraction(held.collateral * held.price * held.lltv, ORACLE_PRICE_SCALE * WAD)
    owed = mechanics.borrowed_assets(held.shares, held.market)
    unit = (ETHER_USD if account == FUND_ETHER else USDC_USD) / 10 ** held.decimals[0]
    assert abs(equity - requirement - (limit - owed) * unit) <= (limit + owed + 1) * unit / 2**50
    assert (equity < requirement) == (not mechanics.is_healthy(
        held.collateral, held.shares, held.market, price=held.price, lltv=held.lltv
    ))  # fmt: skip


def test_the_engine_gives_the_mechanics_figures() -> None:
    normalized = _normalize(_desk())
    snapshot = take_snapshot([normalized.batches], normalized.failures)
    book, unclaimed = pack_book({"now": snapshot}, {"desk": sorted(ALL)}, as_of=NOW)
    assert (unclaimed, book.failures) == ([], ())
    factors = book.factors()
    generator = multivariate_t(factors, dict.fromkeys(factors, 0.02), correlation=correlation_matrix(factors, {}), nu=4)
    cube = draw_cube(book.cube.build(factors), generator, seed=1, scenarios=256, chunk=256, horizon_days=1.0)
    (headline,) = evaluate_headlines(book.portfolios, factors, cube, devices=1)
    found = {row["account_id"]: row for row in account_rows(Evaluated(book.portfolios[0], headline))}
    assert set(found) == ALL
    for account, row in found.items():
        held = _Held(account)
        value = Fraction(held.collateral * held.price, ORACLE_PRICE_SCALE * 10 ** held.decimals[0])
        owed = Fraction(mechanics.borrowed_assets(held.shares, held.market), 10 ** held.decimals[0])
        needed = value * (1 - Fraction(held.lltv, WAD))
        assert row["equity"] == pytest.approx(float(value - owed), rel=ENGINE_RELATIVE), account
        assert row["maintenance_requirement"] == pytest.approx(float(needed), rel=ENGINE_RELATIVE), account
        assert row["initial_requirement"] == pytest.approx(float(needed), rel=ENGINE_RELATIVE), account
        health = mechanics.health(held.collateral, held.shares, held.market, price=held.price, lltv=held.lltv)
        assert row["health"] == (None if health is None else pytest.approx(float(health), rel=ENGINE_RELATIVE))
        assert not row["liquidatable"]
    # what is lent counts at market value and backs no debt
    assert found[DESK_LENDS]["equity"] == 0.0
    assert found[DESK_LENDS]["equity_usd"] == pytest.approx(526758.082682 * 0.99994, rel=ENGINE_RELATIVE)
    assert found[DESK]["reported_health"] == pytest.approx(found[DESK]["health"], rel=1e-12)


# Mechanics ------------------------------------------------------------------------------------------------------------


def test_shares_round_against_whoever_asks() -> None:
    # 10 assets and 3e6 shares with the virtual ones: 11 assets for 4e6 shares
    assert [f(1, 10, 3 * 10**6) for f in (mechanics.to_shares_down, mechanics.to_shares_up)] == [363636, 363637]
    assert [f(10**6, 10, 3 * 10**6) for f in (mechanics.to_assets_down, mechanics.to_assets_up)] == [2, 3]
    assert mechanics.to_shares_down(1, 0, 0) == mechanics.VIRTUAL_SHARES  # the first asset of a market
    assert mechanics.to_assets_up(0, 5, 7) == 0


def test_accrual_by_hand_with_and_without_a_fee() -> None:
    market = Market(2_000_000, 2 * 10**12, 1_000_000, 10**12)
    rate, year = 10**17 // 31_536_000, 31_536_000
    x = rate * year
    growth = x + x * x // (2 * WAD) + x * x // (2 * WAD) * x // (3 * WAD)
    assert mechanics.compounded(rate, year) == growth
    assert growth / WAD == pytest.approx(0.1 + 0.1**2 / 2 + 0.1**3 / 6, rel=1e-8)
    interest = 1_000_000 * growth // WAD
    assert mechanics.accrued(market, rate, year) == Market(
        2_000_000 + interest, 2 * 10**12, 1_000_000 + interest, 10**12
    )
    taken = mechanics.accrued(market._replace(fee=WAD // 10), rate, year)
    fee = interest // 10
    assert taken.total_supply_shares - 2 * 10**12 == fee * (2 * 10**12 + 10**6) // (2_000_000 + interest - fee + 1)
    assert mechanics.accrued(market, rate, 0) == market
    assert mechanics.accrued(market._replace(total_borrow_assets=0), rate, year).total_supply_assets == 2_000_000


def test_the_incentive_factor_is_capped() -> None:
    factors = [mechanics.liquidation_incentive_factor(lltv * 10**15) for lltv in (0, 385, 625, 770, 860, 945, 980)]
    assert factors[:2] == [115 * 10**16] * 2
    assert factors == sorted(factors, reverse=True)
    assert factors[2] == WAD * WAD // (WAD - 3 * (WAD - 625 * 10**15) // 10)


BOOK_MARKET = Market(10**13, 10**19, 8 * 10**12, 8 * 10**18)


def test_a_liquidation_by_collateral_and_the_same_by_shares() -> None:
    # a million borrowed against 1.15 million at an LLTV of 86 %: 0.989 of what is owed
    price, lltv = ORACLE_PRICE_SCALE, 86 * 10**16
    shares = mechanics.to_shares_up(10**12, BOOK_MARKET.total_borrow_assets, BOOK_MARKET.total_borrow_shares)
    at = {"price": price, "lltv": lltv}
    done = mechanics.liquidate(115 * 10**10, shares, BOOK_MARKET, **at, seized_assets=10**11)
    factor = Fraction(mechanics.liquidation_incentive_factor(lltv), WAD)
    assert done.repaid_assets in (int(10**11 / factor) + 1, int(10**11 / factor) + 2)
    assert (done.collateral_left, done.bad_debt_assets) == (105 * 10**10, 0)
    assert done.total_borrow_assets == BOOK_MARKET.total_borrow_assets - done.repaid_assets
    again = mechanics.liquidate(115 * 10**10, shares, BOOK_MARKET, **at, repaid_shares=done.repaid_shares)
    assert abs(again.seized_assets - 10**11) <= 2
    assert again.repaid_assets == done.repaid_assets


def test_a_liquidation_of_all_collateral_writes_the_rest_off() -> None:
    shares = mechanics.to_shares_up(10**12, BOOK_MARKET.total_borrow_assets, BOOK_MARKET.total_borrow_shares)
    at = {"price": ORACLE_PRICE_SCALE, "lltv": 86 * 10**16}
    done = mechanics.liquidate(9 * 10**11, shares, BOOK_MARKET, **at, seized_assets=9 * 10**11)
    assert (done.collateral_left, done.borrow_shares_left) == (0, 0)
    assert done.bad_debt_assets + done.repaid_assets == pytest.approx(10**12, abs=3)
    assert done.bad_debt_shares + done.repaid_shares == shares
    left = BOOK_MARKET.total_borrow_assets - done.repaid_assets - done.bad_debt_assets
    assert done.total_borrow_assets == left


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"seized_assets": 0}, "inconsistent input"),
        ({"repaid_shares": 1}, "inconsistent input"),
        ({"price": 2 * ORACLE_PRICE_SCALE}, "position is healthy"),
        ({"seized_assets": 115 * 10**10 + 1}, "underflow"),
        ({"seized_assets": 0, "repaid_shares": 2 * 10**18}, "underflow"),
        ({"price": 0, "seized_assets": 0, "repaid_shares": 1}, "division by zero"),
    ],
)
def test_a_liquidation_reverts(changes: dict[str, int], error: str) -> None:
    given_ = {"price": ORACLE_PRICE_SCALE, "lltv": 86 * 10**16, "seized_assets": 10**11} | changes
    shares = mechanics.to_shares_up(10**12, BOOK_MARKET.total_borrow_assets, BOOK_MARKET.total_borrow_shares)
    with pytest.raises(MorphoRevertedError, match=error):
        mechanics.liquidate(115 * 10**10, shares, BOOK_MARKET, **given_)


_markets = st.builds(
    lambda borrowed, idle, factor: Market(
        borrowed + idle, (borrowed + idle) * factor, borrowed, borrowed * factor + factor // 3
    ),
    borrowed=st.integers(1, 10**15),
    idle=st.integers(0, 10**15),
    factor=st.integers(10**5, 10**7),
)
_amounts = st.integers(0, 10**15)
_prices = st.integers(1, 10**20).map(lambda price: price * 10**20)
_lltvs = st.integers(1, WAD - 1)


@settings(max_examples=100)
@given(_amounts, st.integers(1, 10**20), _markets, _prices, _lltvs)
def test_the_liquidation_price_is_where_health_turns(
    collateral: int, shares: int, market: Market, price: int, lltv: int
) -> None:
    found = mechanics.liquidation_price(collateral, shares, market, lltv=lltv)
    if found is None:
        assert collateral == 0
        assert not mechanics.is_healthy(collateral, shares, market, price=price, lltv=lltv)
        return
    assert mechanics.is_healthy(collateral, shares, market, price=found, lltv=lltv)
    assert not mechanics.is_healthy(collateral, shares, market, price=found - 1, lltv=lltv)
    assert mechanics.is_healthy(collateral, shares, market, price=price, lltv=lltv) == (price >= found)
    # the real ratio and the contract's verdict part only within the two cuts of the limit
    health = mechanics.health(collateral, shares, market, price=price, lltv=lltv)
    assert health is not None
    if mechanics.is_healthy(collateral, shares, market, price=price, lltv=lltv):
        assert health >= 1
    else:
        assert health < 1 + Fraction(3, mechanics.borrowed_assets(shares, market))


@settings(max_examples=100)
@given(_amounts, st.integers(0, 10**20), _markets, _prices, _lltvs)
def test_health_has_no_value_without_debt_and_grows_with_collateral(
    collateral: int, shares: int, market: Market, price: int, lltv: int
) -> None:
    at = {"price": price, "lltv": lltv}
    health = mechanics.health(collateral, shares, market, **at)
    assert (health is None) == (shares == 0)
    if shares == 0:
        assert mechanics.is_healthy(0, 0, market, **at)
        assert mechanics.liquidation_price(collateral, 0, market, lltv=lltv) is None
        return
    more = mechanics.health(2 * collateral, shares, market, **at)
    worse = mechanics.health(collateral, 2 * shares, market, **at)
    assert health is not None
    assert more is not None
    assert worse is not None
    assert more == 2 * health
    assert worse <= health
    # split in two, a debt is rounded up twice
    half = mechanics.borrowed_assets(shares // 2, market) + mechanics.borrowed_assets(shares - shares // 2, market)
    assert 0 <= half - mechanics.borrowed_assets(shares, market) <= 1


@settings(max_examples=100)
@given(_markets, st.integers(1, 10**15), _prices, st.integers(10**17, WAD - 1), st.floats(0.01, 1), st.booleans())
def test_a_liquidation_never_takes_more_than_it_pays_for(
    market: Market, collateral: int, price: int, lltv: int, part: float, by_shares: bool
) -> None:
    shares = market.total_borrow_shares // 2 + 1
    wanted = max(int((shares if by_shares else collateral) * part), 1)
    asked = {"repaid_shares": wanted} if by_shares else {"seized_assets": wanted}
    try:
        done = mechanics.liquidate(collateral, shares, market, price=price, lltv=lltv, **asked)
    except MorphoRevertedError:
        return
    factor = Fraction(mechanics.liquidation_incentive_factor(lltv), WAD)
    worth = Fraction(done.seized_assets * price, ORACLE_PRICE_SCALE)
    assert worth <= done.repaid_assets * factor
    assert 0 <= done.seized_assets <= collateral
    assert done.repaid_shares + done.bad_debt_shares + done.borrow_shares_left == shares
    assert done.bad_debt_assets <= market.total_borrow_assets
    assert done.total_borrow_assets >= 0
    if done.collateral_left:
        assert done.bad_debt_assets == done.bad_debt_shares == 0


# Sources beside each other --------------------------------------------------------------------------------------------


def test_the_contracts_snapshot_counts_and_the_api_adds_its_health() -> None:
    desk = _desk()
    entry = copy.deepcopy(desk[DESK_FILE].body["data"]["userByAddress"]["marketPositions"][0])
    entry["market"]["uniqueKey"] = desk[MARKETS].body[0]["id"]
    entry["market"]["collateralAsset"] = {"address": "0x7f39c581f595b53c5cb19bd0b3f8da6c935e2ca0", "symbol": "wstETH",
                                          "decimals": 18}  # fmt: skip
    entry["market"]["state"]["price"] = "1"
    entry["healthFactor"] = Decimal("1.25")
    api = Payload("marketPosition", "api.json", "fund", NOW, "", {"data": {"marketPosition": entry}})
    normalized = _normalize([*desk.values(), api])
    assert normalized.failures == []
    assert rows_of(normalized, "balances") == rows_of(_normalize(desk), "balances")
    values = [
        {(r["account_id"], r["subject"]): r["value"] for r in rows_of(n, "marks")}
        for n in (normalized, _normalize(desk))
    ]
    assert values[0] == values[1]
    (row,) = rows_of(normalized, "accounts", account_id=FUND)
    assert row["reported_health"] == Decimal("1.25")


@pytest.mark.parametrize("root", ["marketPositions", "marketPosition", "bare", "flat"])
def test_every_answer_of_the_api_with_the_same_objects_is_read(root: str) -> None:
    desk = _desk()
    entries = desk[DESK_FILE].body["data"]["userByAddress"]["marketPositions"]
    expected = rows_of(_normalize(desk), "balances", account_id=DESK)
    if root == "marketPositions":
        body: Any = {"data": {"marketPositions": {"items": entries, "pageInfo": {"count": 3}}}}
    elif root == "marketPosition":
        body = {"marketPosition": entries[0]}
    elif root == "bare":
        root, body = "marketPosition", entries[0]
    else:  # an older schema without `state`, with the price as an object and marketId in place of uniqueKey
        entry = {k: v for k, v in entries[0].items() if k != "state"} | entries[0]["state"]
        entry = copy.deepcopy(entry)
        entry["market"]["marketId"] = entry["market"].pop("uniqueKey")
        entry["market"]["loanAsset"]["price"] = {"usd": entry["market"]["loanAsset"].pop("priceUsd")}
        root, body = "marketPositions", {"data": {"marketPositions": {"items": [entry]}}}
    normalized = _normalize([Payload(root, "api.json", "desk", NOW, "", body), desk[TOKENS]])
    assert normalized.failures == []
    assert rows_of(normalized, "balances", account_id=DESK) == expected


def test_markets_of_the_api_serve_rows_of_the_rest_api() -> None:
    desk = _desk()
    entries = desk[DESK_FILE].body["data"]["userByAddress"]["marketPositions"]
    markets = Payload(
        "markets", "m.json", "", NOW, "", {"data": {"markets": {"items": [e["market"] for e in entries]}}}
    )
    normalized = _normalize([markets, desk[KEEPER_FILE]])
    assert normalized.failures == []
    held = {row["asset_id"]: row["quantity"] for row in rows_of(normalized, "balances", account_id=KEEPER)}
    # the API's totals are 20 seconds older than the contract's accrued ones
    assert held["USDC@ethereum"] == pytest.approx(Decimal("2692.377178"), abs=Decimal("0.001"))
    one = Payload("marketById", "m.json", "", NOW, "", {"data": {"marketById": entries[1]["market"]}})
    assert rows_of(_normalize([one, desk[KEEPER_FILE]]), "balances", account_id=KEEPER)


def test_stated_amounts_stand_in_for_totals_that_nobody_has() -> None:
    desk = _desk()

    def without_totals(body: Body) -> None:
        for entry in body["data"]["userByAddress"]["marketPositions"]:
            for name in ("supplyShares", "borrowShares"):
                del entry["market"]["state"][name]

    normalized = _normalize([changed(desk[DESK_FILE], without_totals), desk[TOKENS]])
    assert normalized.failures == []
    found = {r["account_id"]: r["quantity"] for r in rows_of(normalized, "balances", asset_id="USDC@ethereum")}
    assert found[DESK] == 2_000_000
    assert found[DESK_LENDS] == Decimal("526758.064084")  # as the API states it, of 20 s before


def test_totals_without_a_rate_stay_as_stored_and_say_so() -> None:
    desk = _desk()
    desk[MARKETS] = changed(desk[MARKETS], lambda body: body[0].pop("borrowRate"))
    stored = _normalize([desk[MARKETS], desk[TOKENS], desk[KEEPER_FILE]])
    assert [(f.reason, f.path, f.account_id) for f in stored.failures] == [
        ("missing_parameter", "[0].market.lastUpdate", None)
    ]
    (row,) = rows_of(stored, "balances", side="liability")
    exact = -(-2_500_000_000_000_000 * (43_210_987_654_321 + 1) // (40_123_456_789_012_345_678 + 10**6))
    assert row["quantity"] == Decimal(exact).scaleb(-6)
    # a market without an interest model bears no interest
    desk[MARKETS] = changed(desk[MARKETS], put(0, "marketParams", "irm", to="0x" + "0" * 40))
    assert _normalize([desk[MARKETS], desk[TOKENS], desk[KEEPER_FILE]]).failures == []
    timeless = replace(desk[KEEPER_FILE], received_at=None)
    desk[MARKETS] = changed(_desk()[MARKETS], lambda body: body[0].pop("borrowRate"))
    assert _normalize([desk[MARKETS], desk[TOKENS], timeless]).failures == []


def test_a_stable_loan_counts_at_par_and_another_needs_its_price() -> None:
    desk = _desk()
    del desk[TOKENS]
    normalized = _normalize(desk)
    assert [(f.reason, f.path, f.account_id) for f in normalized.failures] == [
        ("missing_mark", "[1].idToMarketParams[0]", FUND_ETHER)
    ] or [(f.reason, f.account_id) for f in normalized.failures] == [("missing_mark", FUND_ETHER)]
    marks = {r["subject"]: r["value"] for r in _price_marks(normalized, account_id=FUND)}
    assert marks == {"wstETH@ethereum": 3952.26}
    balances = {r["asset_id"] for r in rows_of(normalized, "balances", account_id=FUND_ETHER)}
    assert balances == {"WETH@ethereum", "wstETH@ethereum"}


def test_an_owner_who_lends_what_backs_the_debt_is_not_computed() -> None:
    desk = _desk()

    def same_token(body: Body) -> None:
        body["marketParams"]["collateralToken"] = body["marketParams"]["loanToken"]
        body["collateralToken"] = {"symbol": "USDC", "decimals": 6}

    normalized = _normalize([changed(desk[SOLO_FILE], same_token)])
    assert [(f.reason, f.path, f.account_id) for f in normalized.failures] == [
        ("unsupported", "position.collateral", SOLO)
    ]
    assert rows_of(normalized, "balances") == []


def test_an_idle_market_has_no_collateral() -> None:
    nobody = "0x" + "0" * 40
    params = {"loanToken": "0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48", "collateralToken": nobody, "oracle": nobody,
              "irm": nobody, "lltv": "0"}  # fmt: skip
    market = {"totalSupplyAssets": "500", "totalSupplyShares": "500000000", "totalBorrowAssets": "0",
              "totalBorrowShares": "0", "lastUpdate": "1719000000", "fee": "0"}  # fmt: skip
    body = {"id": "0x" + "1" * 64, "market": market, "marketParams": params,
            "position": {"supplyShares": "100000000", "borrowShares": "0", "collateral": "0"}}  # fmt: skip
    normalized = _normalize([Payload("position", "p.json", "idle", NOW, "", body)])
    assert normalized.failures == []
    (row,) = rows_of(normalized, "balances")
    assert (row["quantity"], row["collateral_enabled"]) == (Decimal("0.000100"), False)
    assert rows_of(normalized, "collateral_tiers") == []


# What cannot be read --------------------------------------------------------------------------------------------------


def _drop(*path: Any) -> Change:
    def change(body: Any) -> None:
        for step in path[:-1]:
            body = body[step]
        del body[path[-1]]

    return change


OF_DESK = ("data", "userByAddress", "marketPositions")


@pytest.mark.parametrize(
    ("file", "change", "reason", "path", "incomplete"),
    [
        (MARKETS, _drop(0, "market", "totalBorrowAssets"), "missing_field", "[0].total_borrow_assets", {KEEPER, FUND}),
        (MARKETS, put(0, "market", "totalBorrowShares", to="-1"), "out_of_range", "[0].market.totalBorrowShares",
         {KEEPER, FUND, DESK_LENDS}),
        (MARKETS, put(0, "market", "lastUpdate", to=Decimal("NaN")), "not_a_number", "[0].market.lastUpdate",
         {KEEPER, FUND, DESK_LENDS}),
        (MARKETS, put(1, "market", to=["1", "2"]), "malformed", "[1].market", {FUND_ETHER}),
        (MARKETS, put(0, "price", to="0"), "out_of_range", "[0].price", {KEEPER, FUND}),
        (MARKETS, put(0, "price", to="much"), "not_a_number", "[0].price", {KEEPER, FUND}),
        (MARKETS, put(0, "marketParams", "lltv", to=str(WAD)), "out_of_range", "[0].marketParams.lltv", {KEEPER, FUND}),
        (MARKETS, _drop(1, "price"), "missing_field", "[1].price", {FUND_ETHER}),
        (MARKETS, _drop(1, "id"), "missing_field", "[1].id", {FUND_ETHER}),
        (MARKETS, put(1, "idToMarketParams", 1, to="0x00000000000000000000000000000000000000ff"), "unknown_asset",
         "[1].idToMarketParams[1]", {FUND_ETHER}),
        (MARKETS, put(0, "borrowRate", to="fast"), "not_a_number", "[0].borrowRate", {KEEPER, FUND, DESK_LENDS}),
        (MARKETS, put(0, to=None), "malformed", "[0]", {KEEPER, FUND}),
        (TOKENS, put(1, "priceUsd", to="-3377"), "out_of_range", "[1].priceUsd", {FUND_ETHER}),
        (TOKENS, put(1, "priceUsd", to=Decimal("NaN")), "not_a_number", "[1].priceUsd", {FUND_ETHER}),
        (TOKENS, put(1, "decimals", to=8), "inconsistent", "[1].decimals", {FUND_ETHER}),
        (TOKENS, _drop(1, "address"), "missing_field", "[1].token", {FUND_ETHER}),
        (FUND_FILE, _drop(0, "position"), "missing_field", "[0].borrow_shares", {FUND}),
        (FUND_FILE, put(0, "position", "collateral", to="1.5"), "not_a_number", "[0].position.collateral", {FUND}),
        (FUND_FILE, put(0, "position", "borrowShares", to=str(2**128)), "out_of_range", "[0].position.borrowShares",
         {FUND}),
        (FUND_FILE, put(1, "position", to=[]), "malformed", "[1].position", {"morpho_blue:fund"}),
        (FUND_FILE, _drop(0, "position", "supplyShares"), "missing_field", "[0].supply_assets", {FUND}),
        (FUND_FILE, put(1, "id", to="0x" + "5" * 64), "missing_field", "[1].loan_token",
         {"morpho_blue:fund:0x" + "5" * 64}),
        (FUND_FILE, put(0, "chainId", to=59144), "unsupported", "[0].chainId", {"morpho_blue:fund"}),
        (SOLO_FILE, put("id", to="0x" + "5" * 64), "inconsistent", "id", {SOLO}),
        (SOLO_FILE, put("collateralToken", "decimals", to=8), "inconsistent", "collateralToken.decimals", {SOLO}),
        (SOLO_FILE, put("loanToken", "priceUsd", to="0"), "out_of_range", "loanToken.priceUsd", {SOLO}),
        (DESK_FILE, put("data", to=None), "missing_field", "data", {"morpho_blue:desk"}),
        (DESK_FILE, put("data", "userByAddress", to=None), "missing_field", "data.userByAddress", {"morpho_blue:desk"}),
        (DESK_FILE, put(*OF_DESK, 0, "healthFactor", to="healthy"), "not_a_number",
         "data.userByAddress.marketPositions[0].healthFactor", frozenset()),
        (DESK_FILE, put(*OF_DESK, 0, "state", "borrowShares", to=None), "missing_field",
         "data.userByAddress.marketPositions[0].borrow_shares", {DESK}),
        (DESK_FILE, put(*OF_DESK, 0, "market", "loanAsset", "symbol", to="FOO"), "", "", frozenset()),
        (DESK_FILE, put(*OF_DESK, 0, "market", "collateralAsset", "address", to="0x" + "f" * 40), "", "", frozenset()),
        (DESK_FILE, put(*OF_DESK, 0, "state", to=7), "malformed", "data.userByAddress.marketPositions[0].state",
         {"morpho_blue:desk"}),
        (KEEPER_FILE, put("data", 0, "borrow_shares", to=True), "not_a_number", "data[0].borrow_shares", {KEEPER}),
        (KEEPER_FILE, _drop("data"), "missing_field", "id", {"morpho_blue:keeper"}),
    ],
)  # fmt: skip
def test_an_unreadable_field_is_named_and_stops_only_who_needs_it(
    file: str, change: Change, reason: str, path: str, incomplete: frozenset[str]
) -> None:
    desk = _desk()
    desk[file] = changed(desk[file], change)
    normalized = _normalize(desk)
    if not reason:  # the parameter file names the token, or the payload does: nothing is lost
        assert normalized.failures == []
        return
    assert any((f.reason, f.path) == (reason, path) for f in normalized.failures), normalized.failures
    assert _incomplete(normalized) == set(incomplete), normalized.failures
    assert all(f.venue == "morpho_blue" and f.message for f in normalized.failures)
    good = _normalize(_desk())
    untouched = ALL - incomplete - {a for a in ALL if any(a.startswith(i + ":") for i in incomplete)}
    untouched -= {DESK_LENDS} if file == MARKETS else set()  # without the contract's totals the API's older ones count
    for account in untouched - ({FUND_ETHER} if "morpho_blue:fund:0x" in str(incomplete) else set()):
        assert rows_of(normalized, "balances", account_id=account) == rows_of(good, "balances", account_id=account)


def test_a_token_that_nobody_knows_is_a_failure_of_its_holder_alone() -> None:
    tokens = copy.deepcopy(FILE["tokens"])
    tokens["ethereum"]["0x2260fac5e5542a773aa44fbcfedf7c193bc2c599"] = {"symbol": "FOO", "decimals": 8}
    normalized = _normalize(_desk(), tokens=tokens)
    assert {(f.reason, f.account_id) for f in normalized.failures if f.account_id} == {("unknown_asset", DESK)}
    assert not rows_of(normalized, "assets", symbol="FOO")


@pytest.mark.parametrize(
    ("file", "incomplete"),
    [
        (MARKETS, {KEEPER, FUND, FUND_ETHER}),
        (TOKENS, {FUND, FUND_ETHER, KEEPER}),  # the others' payloads price the loan themselves
        (FUND_FILE, {FUND, FUND_ETHER}),
        (KEEPER_FILE, {KEEPER}),
        (DESK_FILE, {DESK, DESK_LENDS}),
    ],
)
def test_two_answers_to_one_question_are_both_rejected(file: str, incomplete: set[str]) -> None:
    desk = _desk()
    normalized = _normalize([*desk.values(), replace(desk[file], name="copy.json")])
    assert {f.reason for f in normalized.failures} >= {"duplicate"}
    assert _incomplete(normalized) == incomplete
    assert {row["account_id"] for row in rows_of(normalized, "accounts")} == ALL


def test_snapshots_that_disagree_on_a_threshold_stop_all_owners_of_the_market() -> None:
    desk = _desk()
    lowered = changed(desk[SOLO_FILE], put("marketParams", "lltv", to=str(77 * 10**16)))
    normalized = _normalize({**desk, SOLO_FILE: lowered})
    snapshot = take_snapshot([normalized.batches], normalized.failures)
    assert snapshot.incomplete == {SOLO, FUND, KEEPER}


def test_payloads_of_nobody_and_of_unknown_kind_are_refused() -> None:
    fund = _desk()[FUND_FILE]
    failures = _normalize([replace(fund, account=""), replace(fund, request="vaultPositions")]).failures
    assert {(f.reason, f.path, f.account_id) for f in failures} == {
        ("missing_field", "account", None),
        ("unsupported", "request", None),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chain": ""}, "'chain' is missing"),
        ({"chains": {"1": 1}}, "must map ids to names"),
        ({"markets": {"a": "0x1", "b": "0X1"}}, "names one id twice"),
        ({"tokens": {"ethereum": {"0x1": "USDC"}}}, r"expected \{ symbol, decimals \}"),
        ({"tokens": []}, "expected a table"),
        ({"as_of": "yesterday"}, "as_of"),
    ],
)
def test_an_unusable_parameter_file_is_a_configuration_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _normalize(_desk(), **changes)


def test_a_truncated_file_and_a_missing_file_are_failures(tmp_path: Path) -> None:
    data = (FOLDER / FUND_FILE).read_bytes()
    (tmp_path / "half.json").write_bytes(data[: len(data) // 2])
    for file, reason in (("half.json", "malformed"), ("none.json", "unreachable")):
        fetched = RecordedTransport(tmp_path).fetch("morpho_blue", PayloadRequest("position", file, "fund"))
        assert isinstance(fetched, Failure)
        assert fetched.reason == reason


ODD: tuple[Any, ...] = (
    None, "", "x", "-1", -1, 0, "0", "1e400", 10**80, Decimal("NaN"), Decimal("1.5"), True, [], {}, [[]], "\ud800",
)  # fmt: skip


def _leaves(body: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(body, dict | list):
        for key, inner in body.items() if isinstance(body, dict) else enumerate(body):
            yield (*path, key)
            yield from _leaves(inner, (*path, key))


@pytest.mark.parametrize("file", [file for _, file, _ in PAYLOADS])
def test_no_value_in_any_place_raises_or_becomes_a_table_of_the_wrong_shape(file: str) -> None:
    desk = _desk()
    payload = desk[file]
    others = [other for name, other in desk.items() if name != file]
    for number, path in enumerate(_leaves(payload.body)):
        change = _drop(*path) if number % 4 == 0 else put(*path, to=ODD[number % len(ODD)])
        normalized = _normalize([*others, changed(payload, change)])
        assert all(row["quantity"] >= 0 for row in rows_of(normalized, "balances"))
    for odd in ODD:
        assert _normalize([*others, replace(payload, body=odd)]).failures
