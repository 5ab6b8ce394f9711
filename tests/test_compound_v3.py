"""Compound v3: payloads to canonical tables, every way to be wrong, and the exact mechanics against slow twins.

The payloads in `payloads/compound_v3` are written for this suite as snapshots of the contract's view functions; what
the contract would state beside them (`isLiquidatable`, `borrowBalanceOf`) follows from them. Samples of the recorded
material are read where its folder is at hand.
"""

import copy
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter, Context, Normalized, find_adapter
from adapters.amounts import parse_json
from adapters.asset_book import read_asset_book
from adapters.compound_v3 import ADAPTER, mechanics
from adapters.compound_v3.mechanics import (
    FACTOR_SCALE,
    INDEX_SCALE,
    Base,
    Collateral,
    CometRevertedError,
    Curve,
    Indices,
    Rates,
    Totals,
)
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
from tests.sample_compound_v3 import PARAMETERS, PAYLOADS

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "payloads" / "compound_v3"
BOOK = read_asset_book(ROOT / "configs" / "assets.toml")
FILE = tomllib.loads((ROOT / PARAMETERS).read_text(encoding="utf-8"))

NOW = datetime(2024, 6, 30, tzinfo=UTC)
USDC, WETH = "ethereum-usdc", "ethereum-weth"
FUND, FUND_WETH = f"compound_v3:fund:{USDC}", f"compound_v3:fund:{WETH}"
SAVER, SAVER_WETH = f"compound_v3:saver:{USDC}", f"compound_v3:saver:{WETH}"
IDLE = f"compound_v3:idle:{USDC}"
ALL = frozenset({FUND, FUND_WETH, SAVER, SAVER_WETH, IDLE})

# The contract cuts every value to 1e-8 of its unit, and nobody here holds more than two collaterals.
CUTS = Fraction(4, 10**8)
# A mark is the float64 nearest to the oracle's price, 2^-53 relative; the engine adds a handful of float64 products.
ENGINE_RELATIVE = 1e-9

Body = dict[str, Any]
Change = Callable[[Any], Any]


def _fetch(file: str, request: str = "", owner: str = "", root: Path = FOLDER) -> Payload:
    return read_payload("compound_v3", root, request, file, owner)


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
    assert find_adapter("compound_v3") is ADAPTER
    normalized = _normalize([])
    assert normalized.failures == []
    assert set(normalized.batches) == set(CANONICAL) - {"failures"}
    assert not any(table.num_rows for table in normalized.batches.values())


def test_the_desk_becomes_accounts_with_these_balances() -> None:
    normalized = _normalize(_desk())
    assert normalized.failures == []
    accounts = {row["account_id"]: row for row in rows_of(normalized, "accounts")}
    assert set(accounts) == ALL
    assert {row["settlement_asset"] for name, row in accounts.items() if WETH in name} == {"WETH@ethereum"}
    assert {row["settlement_asset"] for name, row in accounts.items() if USDC in name} == {"USD"}
    assert {(row["margin_mode"], row["chain"], row["received_at"]) for row in accounts.values()} == {
        ("lending", "ethereum", NOW)
    }
    assert all(row["node"] == name for name, row in accounts.items())
    found = {
        (row["account_id"], row["asset_id"].partition("@")[0], row["side"]): row["quantity"]
        for row in rows_of(normalized, "balances")
    }
    assert found == {
        (FUND, "USDC", "liability"): Decimal("8963884.173018"),
        (FUND, "WBTC", "asset"): Decimal(125),
        (FUND, "WETH", "asset"): Decimal(1800),
        (SAVER, "USDC", "asset"): Decimal("250000.123455"),
        (SAVER, "LINK", "asset"): Decimal(1500),
        (IDLE, "COMP", "asset"): Decimal(40),
        (IDLE, "wstETH", "asset"): Decimal("2.5"),
        (FUND_WETH, "WETH", "liability"): Decimal("959.089323857792211106"),
        (FUND_WETH, "cbETH", "asset"): Decimal(150),
        (FUND_WETH, "wstETH", "asset"): Decimal(800),
        (SAVER_WETH, "WETH", "liability"): Decimal("99.867284915762225000"),
        (SAVER_WETH, "wstETH", "asset"): Decimal(92),
    }
    assert all(row["collateral_enabled"] for row in rows_of(normalized, "balances"))


def test_prices_are_dollars_and_those_of_an_ether_market_are_converted() -> None:
    normalized = _normalize(_desk())
    ether = 3377.21
    own = {row["subject"]: row["value"] for row in rows_of(normalized, "marks", account_id=FUND_WETH, field="oracle")}
    assert own == {
        "WETH@ethereum": ether,
        "cbETH@ethereum": pytest.approx(1.07712345 * ether, rel=1e-15),
        "wstETH@ethereum": pytest.approx(1.17021456 * ether, rel=1e-15),
    }
    assert {row["subject"]: row["value"] for row in rows_of(normalized, "marks", account_id=FUND, field="oracle")} == {
        "USDC@ethereum": 0.9999412,
        "WBTC@ethereum": 60970.12345678,
        "WETH@ethereum": ether,
    }
    of_venue = {row["subject"] for row in rows_of(normalized, "marks", account_id=None)}
    assert of_venue == {f"{s}@ethereum" for s in ("USDC", "COMP", "WBTC", "WETH", "LINK", "wstETH")}
    assert {row["field"] for row in rows_of(normalized, "marks")} == {"oracle", "borrow_rate"}


def test_a_debt_costs_what_the_markets_curve_asks_for() -> None:
    normalized = _normalize(_desk())
    rates = {(r["account_id"], r["subject"]): r["value"] for r in rows_of(normalized, "marks", field="borrow_rate")}
    owed = {(r["account_id"], r["asset_id"]) for r in rows_of(normalized, "balances", side="liability")}
    assert set(rates) == owed
    state = {r["market"]: r["value"] for r in rows_of(normalized, "market_state", field="borrow_rate")}
    for (account, _), rate in rates.items():
        assert rate == state[account.rpartition(":")[2]]


def test_the_snapshots_own_price_of_its_unit_goes_before_another_market() -> None:
    desk = _desk()

    def priced(body: Body) -> None:
        body["numerairePrice"] = "350000000000"

    desk["fund_weth.json"] = changed(desk["fund_weth.json"], priced)
    normalized = _normalize(desk)
    assert normalized.failures == []
    marks = {(r["account_id"], r["subject"]): r["value"] for r in rows_of(normalized, "marks", field="oracle")}
    assert marks[FUND_WETH, "WETH@ethereum"] == 3500.0
    assert marks[SAVER_WETH, "WETH@ethereum"] == 3377.21
    del desk["market_usdc.json"]
    alone = _normalize({name: desk[name] for name in ("fund_weth.json",)})
    assert alone.failures == []
    desk["fund_weth.json"] = _desk()["fund_weth.json"]
    unpriced = _normalize({name: desk[name] for name in ("fund_weth.json",)})
    assert [(f.reason, f.path, f.account_id) for f in unpriced.failures] == [
        ("missing_mark", "numerairePrice", FUND_WETH)
    ]
    assert rows_of(unpriced, "marks", field="oracle") == []


def test_weights_and_penalties_are_those_of_the_market() -> None:
    tiers = {
        (row["rule_set"], row["asset_id"]): (
            row["asset_weight_initial"],
            row["asset_weight_maintenance"],
            row["liquidation_bonus"],
        )
        for row in rows_of(_normalize(_desk()), "collateral_tiers")
    }
    assert tiers[f"compound_v3:{USDC}", "WETH@ethereum"] == (Decimal("0.825"), Decimal("0.895"), Decimal("0.05"))
    assert tiers[f"compound_v3:{USDC}", "COMP@ethereum"] == (Decimal("0.65"), Decimal("0.7"), Decimal("0.12"))
    assert tiers[f"compound_v3:{USDC}", "USDC@ethereum"] == (1, 1, None)
    assert tiers[f"compound_v3:{WETH}", "wstETH@ethereum"] == (Decimal("0.9"), Decimal("0.93"), Decimal("0.025"))
    assert len(tiers) == 9


def test_flags_reserves_limits_and_rates_are_market_state() -> None:
    desk = _desk()
    desk["market_usdc.json"] = changed(desk["market_usdc.json"], put("totalsBasic", "pauseFlags", to="26"))
    state = {(row["market"], row["field"]): row for row in rows_of(_normalize(desk), "market_state")}
    assert state[USDC, "status"]["text"] == "transfer_paused absorb_paused buy_paused"
    assert state[WETH, "status"]["text"] == "active"
    values = {key: row["value"] for key, row in state.items()}
    assert values[USDC, "reserves"] == 8123456.789012
    assert values[USDC, "target_reserves"] == 20_000_000.0
    assert values[USDC, "base_borrow_min"] == 100.0
    assert values[WETH, "base_borrow_min"] == 0.1  # from the Configurator's struct
    assert values[WETH, "store_front_price_factor"] == 0.7
    assert values[f"{USDC}:WBTC@ethereum", "collateral_reserves"] == 0.0125
    assert values[f"{WETH}:cbETH@ethereum", "supply_cap"] == 25_000.0
    # 331.2e6 at 1.1034567890 over 412.3e6 at 1.0723456789; below the kink: 1.6 % + 5.5 % of it
    used = 331_234_567.890123 * 1.103456789012345 / (412_345_678.901234 * 1.072345678901234)
    assert values[USDC, "utilization"] == pytest.approx(used, rel=1e-12)
    assert values[USDC, "borrow_rate"] == pytest.approx(0.016 + 0.055 * used, rel=1e-8)


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


# Margin form, mechanics and engine ------------------------------------------------------------------------------------


def _state_of(account: str) -> tuple[int, Base, list[Collateral]]:
    """(present value, base, collateral) of a fixture's account in the contract's integers, read without the adapter."""
    desk = {name: payload.body for name, payload in _desk().items()}
    market = account.split(":")[2]
    shared = desk["market_usdc.json"] if market == USDC else desk["fund_weth.json"]
    body = {
        FUND: desk["fund_usdc.json"], FUND_WETH: desk["fund_weth.json"], IDLE: desk["idle.json"],
        SAVER: desk["saver.json"][0], SAVER_WETH: desk["saver.json"][1],
    }[account]  # fmt: skip
    user = body["userBasic"]
    principal = int(user["principal"] if isinstance(user, dict) else user[0])
    totals, elapsed = shared["totalsBasic"], 36 if market == USDC else 12
    assert int(totals["lastAccrualTime"]) == NOW.timestamp() - elapsed
    index = {"supply": int(totals["baseSupplyIndex"]), "borrow": int(totals["baseBorrowIndex"])}
    supplied = int(totals["totalSupplyBase"]) * index["supply"] // 10**15
    used = int(totals["totalBorrowBase"]) * index["borrow"] // 10**15 * 10**18 // supplied
    for side, stored in index.items():
        rate = f"{side}PerSecondInterestRate"
        per_second = int(shared[f"{rate}Base"]) + int(shared[f"{rate}SlopeLow"]) * used // 10**18
        assert used <= int(shared[f"{side}Kink"])
        index[side] = stored + stored * (per_second * elapsed) // 10**18
    present = principal * index["supply"] // 10**15 if principal >= 0 else -(-principal * index["borrow"] // 10**15)
    symbols = FILE["tokens"]["ethereum"]
    held = {row["asset_id"]: row["quantity"] for row in rows_of(_normalize(_desk()), "balances", account_id=account)}
    collaterals = [
        Collateral(
            int(held[f"{symbols[asset['asset']]}@ethereum"] * int(asset["scale"])),
            int(asset["price"]),
            int(asset["scale"]),
            int(asset["borrowCollateralFactor"]),
            int(asset["liquidateCollateralFactor"]),
            int(asset["liquidationFactor"]),
        )
        for asset in shared["assets"]
        if f"{symbols[asset['asset']]}@ethereum" in held
    ]
    return present, Base(int(shared["basePrice"]), int(shared["baseScale"])), collaterals


def _margin_form(normalized: Normalized, account: str) -> tuple[Fraction, Fraction, Fraction]:
    """(equity, maintenance, initial) of an account in dollars, from its rows alone, in plain fractions."""
    (row,) = rows_of(normalized, "accounts", account_id=account)
    prices = {
        mark["subject"]: Fraction(mark["value"])
        for mark in rows_of(normalized, "marks", account_id=account, field="oracle")
    }
    tiers = {tier["asset_id"]: tier for tier in rows_of(normalized, "collateral_tiers", rule_set=row["rule_set"])}
    equity = maintenance = initial = Fraction(0)
    for balance in rows_of(normalized, "balances", account_id=account):
        value, tier = Fraction(balance["quantity"]) * prices[balance["asset_id"]], tiers[balance["asset_id"]]
        if balance["side"] == "liability":
            equity -= value
            continue
        equity += value
        maintenance += value * (1 - Fraction(tier["asset_weight_maintenance"]))
        initial += value * (1 - Fraction(tier["asset_weight_initial"]))
    return equity, maintenance, initial


@pytest.mark.parametrize("account", sorted(ALL))
def test_equity_less_requirement_is_the_contracts_liquidity(account: str) -> None:
    equity, maintenance, initial = _margin_form(_normalize(_desk()), account)
    present, base, held = _state_of(account)
    unit = Fraction(337721, 100) if account.endswith(WETH) else Fraction(1)
    for requirement, factor in ((maintenance, "liquidate_factor"), (initial, "borrow_factor")):
        liquidity = Fraction(mechanics.liquidity(present, base, held, factor), 10**8) * unit  # type: ignore[arg-type]
        gross = sum(Fraction(mechanics.value_of(c), 10**8) for c in held) * unit
        assert abs(equity - requirement - liquidity) <= CUTS * unit + gross / 2**50


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
        present, base, held = _state_of(account)
        value = [Fraction(c.balance * c.price, c.scale * 10**8) for c in held]
        equity = sum(value, Fraction(present * base.price, base.scale * 10**8))
        assert row["equity"] == pytest.approx(float(equity), rel=ENGINE_RELATIVE)
        for level, factor in (("maintenance", "liquidate_factor"), ("initial", "borrow_factor")):
            needed = sum(v * (1 - Fraction(getattr(c, factor), 10**18)) for v, c in zip(value, held, strict=True))
            assert row[f"{level}_requirement"] == pytest.approx(float(needed), rel=ENGINE_RELATIVE), account
        health = mechanics.health(present, base, held)
        assert row["health"] == (None if health is None else pytest.approx(float(health), rel=ENGINE_RELATIVE))
        assert row["status"] == ("no_requirement" if health is None else "ok")
        assert not row["liquidatable"]
        unit = 3377.21 if account.endswith(WETH) else 1.0
        assert row["equity_usd"] == pytest.approx(float(equity) * unit, rel=ENGINE_RELATIVE)


# Mechanics ------------------------------------------------------------------------------------------------------------

ONE = Indices()
DOLLAR = 10**8


def test_roundings_of_principal_and_present_value() -> None:
    indices = Indices(15 * 10**14, 14 * 10**14)
    assert [mechanics.present_value(p, indices) for p in (3, 0, -3, -1)] == [4, 0, -4, -1]
    assert [mechanics.principal_value(b, indices) for b in (4, 0, -4, -1)] == [2, 0, -3, -1]
    assert mechanics.base_value(-1, Base(DOLLAR, 10**18)) == 0  # dust is worth nothing, and cannot be liquidated
    assert not mechanics.is_liquidatable(-1, ONE, Base(DOLLAR, 10**18), [])
    assert mechanics.is_liquidatable(-1, ONE, Base(DOLLAR, 10**8), [])


def test_accrual_against_rational_arithmetic() -> None:
    # a market at 95 % utilization with a kink at 80 %: 1.5 % + 3.5 % * 0.8 + 25 % * 0.15 a year
    yearly = (8 * 10**17, 35 * 10**15, 25 * 10**16, 15 * 10**15)
    curve = Curve(yearly[0], *(mechanics.per_second(rate) for rate in yearly[1:]))
    totals = Totals(ONE, 1_000 * 10**6, 950 * 10**6)
    assert mechanics.utilization(totals) == 95 * 10**16
    assert mechanics.utilization(Totals(ONE, 0, 7)) == 0
    rate = mechanics.interest_rate(curve, 95 * 10**16)
    exact = Fraction(15, 1000) + Fraction(35, 1000) * Fraction(8, 10) + Fraction(25, 100) * Fraction(15, 100)
    assert 0 <= exact / 31_536_000 - Fraction(rate, 10**18) < Fraction(6, 10**18)  # six cuts
    grown = mechanics.accrued_indices(totals, Rates(Curve(0, 0, 0, 0), curve), 86_400)
    assert grown == Indices(INDEX_SCALE, INDEX_SCALE + INDEX_SCALE * (rate * 86_400) // 10**18)
    assert mechanics.accrued_indices(totals, Rates(curve, curve), 0) == ONE


def test_the_early_stop_asks_no_feed_that_it_does_not_need() -> None:
    good = Collateral(100, 2 * DOLLAR, 1, FACTOR_SCALE // 2, FACTOR_SCALE)
    broken = Collateral(1, 0, 1, FACTOR_SCALE // 2, FACTOR_SCALE)
    base = Base(DOLLAR, 1)
    assert not mechanics.is_liquidatable(-200, ONE, base, [good, broken])  # 200 dollars cover 200 exactly
    with pytest.raises(CometRevertedError, match="BadPrice"):
        mechanics.is_liquidatable(-201, ONE, base, [good, broken])
    with pytest.raises(CometRevertedError, match="BadPrice"):
        mechanics.is_liquidatable(-200, ONE, base, [broken, good])
    assert mechanics.is_borrow_collateralized(-100, ONE, base, [good, broken._replace(balance=0)])
    assert not mechanics.is_borrow_collateralized(-101, ONE, base, [good])
    assert mechanics.is_borrow_collateralized(5, ONE, base, [broken])  # without debt nothing is asked


def test_an_absorption_by_hand_and_its_gates() -> None:
    # 10 units at 100 dollars, factor 0.9: 900 credited against 1000 owed; the reserves pay the shortfall
    held = [Collateral(10, 100 * DOLLAR, 1, 0, FACTOR_SCALE * 8 // 10, FACTOR_SCALE * 9 // 10)]
    base = Base(DOLLAR, 1)
    done = mechanics.absorb(-1000, ONE, base, held)
    assert done == mechanics.Absorption((1000 * DOLLAR,), 0, 0, 1000, 1000 * DOLLAR)
    rich = mechanics.absorb(-850, ONE, base, held)
    assert rich == mechanics.Absorption((1000 * DOLLAR,), 50, 50, 900, 900 * DOLLAR)
    with pytest.raises(CometRevertedError, match="NotLiquidatable"):
        mechanics.absorb(-800, ONE, base, held)
    with pytest.raises(CometRevertedError, match="Paused"):
        mechanics.absorb(-1000, ONE, base, held, pause_flags=8)


def test_sale_of_collateral_and_reserves() -> None:
    # compound-finance/comet test/quote-collateral-test.ts: 50 % of a 40 % penalty off 200 dollars, 200 USDC buy 1.25
    sold = mechanics.quote_collateral(
        200 * 10**6,
        Base(DOLLAR, 10**6),
        price=200 * DOLLAR,
        scale=10**18,
        liquidation_factor=6 * 10**17,
        store_front_factor=5 * 10**17,
    )
    assert sold == 125 * 10**16
    totals = Totals(ONE, 700, 500)
    assert mechanics.reserves(250, totals, Indices(INDEX_SCALE, 2 * INDEX_SCALE)) == 250 - 700 + 1000
    assert mechanics.reserves(100, totals, ONE) == -100
    assert [mechanics.collateral_is_for_sale(own, 50) for own in (-1, 0, 49, 50)] == [True, True, True, False]


def test_borrowing_keeps_its_minimum_and_its_collateral() -> None:
    held = [Collateral(10, 100 * DOLLAR, 1, FACTOR_SCALE // 2, FACTOR_SCALE * 8 // 10)]
    base = Base(DOLLAR, 1)
    indices = Indices(INDEX_SCALE, 3 * INDEX_SCALE)

    def withdrawn(principal: int, amount: int) -> int:
        return mechanics.withdrawn(principal, amount, indices, base, held, borrow_minimum=100)

    assert withdrawn(50, 40) == 10  # a supply needs no minimum
    assert withdrawn(0, 100) == -34  # rounded up: 34 * 3 = 102 owed
    with pytest.raises(CometRevertedError, match="BorrowTooSmall"):
        withdrawn(0, 99)
    assert withdrawn(0, 498) == -166
    with pytest.raises(CometRevertedError, match="NotCollateralized"):
        withdrawn(0, 501)


def test_pause_bits_and_asset_bits() -> None:
    assert mechanics.paused_actions(0) == ()
    assert mechanics.paused_actions(0b10101) == ("supply", "withdraw", "buy")
    assert mechanics.assets_in(0b1000_0000_0000_0101, 0b10) == {0, 2, 15, 17}


_collateral = st.builds(
    lambda balance, price, digits, factors, penalty: Collateral(
        balance, price, 10**digits, min(factors), max(factors), penalty
    ),
    balance=st.integers(0, 10**12),
    price=st.integers(1, 10**14),
    digits=st.sampled_from((0, 6, 8, 18)),
    factors=st.tuples(st.integers(0, FACTOR_SCALE), st.integers(0, FACTOR_SCALE)),
    penalty=st.integers(0, FACTOR_SCALE),
)
_bases = st.builds(Base, st.integers(1, 10**12), st.sampled_from((1, 10**6, 10**18)))
_indices = st.builds(Indices, st.integers(INDEX_SCALE, 3 * INDEX_SCALE), st.integers(INDEX_SCALE, 3 * INDEX_SCALE))


def _slow_liquidity(principal: int, indices: Indices, base: Base, held: list[Collateral], level: str) -> int:
    """The contract's loop without its early stop, in floor divisions of positive integers."""
    index = indices.supply if principal >= 0 else indices.borrow
    value = abs(principal) * index // 10**15 * base.price // base.scale
    total = value if principal >= 0 else -value
    for one in held:
        total += one.balance * one.price // one.scale * getattr(one, level) // 10**18
    return total


@settings(max_examples=100)
@given(st.integers(-(10**12), 10**12), _indices, _bases, st.lists(_collateral, max_size=5))
def test_the_verdicts_are_the_sign_of_the_slow_liquidity(
    principal: int, indices: Indices, base: Base, held: list[Collateral]
) -> None:
    liquidated = principal < 0 and _slow_liquidity(principal, indices, base, held, "liquidate_factor") < 0
    may_borrow = principal >= 0 or _slow_liquidity(principal, indices, base, held, "borrow_factor") >= 0
    assert mechanics.is_liquidatable(principal, indices, base, held) == liquidated
    assert mechanics.is_borrow_collateralized(principal, indices, base, held) == may_borrow
    # initial >= maintenance: whoever may borrow cannot be liquidated; the order of the assets decides nothing
    assert not (liquidated and may_borrow)
    assert mechanics.is_liquidatable(principal, indices, base, held[::-1]) == liquidated
    # more debt never helps, more collateral never hurts
    if principal < 0 and liquidated:
        assert mechanics.is_liquidatable(principal * 2, indices, base, held)
    fuller = [one._replace(balance=one.balance * 2) for one in held]
    assert liquidated or not mechanics.is_liquidatable(principal, indices, base, fuller)


@settings(max_examples=100)
@given(st.integers(-(10**12), -1), _indices, _bases, st.lists(_collateral, min_size=1, max_size=4), st.integers(0, 3))
def test_the_liquidation_price_is_where_the_verdict_turns(
    principal: int, indices: Indices, base: Base, held: list[Collateral], place: int
) -> None:
    asset = place % len(held)
    present = mechanics.present_value(principal, indices)
    price = mechanics.liquidation_price(present, base, held, asset)

    def liquidated(at: int) -> bool:
        moved = [*held[:asset], held[asset]._replace(price=at), *held[asset + 1 :]]
        return mechanics.is_liquidatable(principal, indices, base, moved)

    if price is None:
        assert liquidated(1) == liquidated(10**40)
        return
    assert price >= 1
    assert not liquidated(price)
    assert not liquidated(2 * price)
    assert price == 1 or liquidated(price - 1)


@settings(max_examples=100)
@given(st.integers(-(10**12), -1), _indices, _bases, st.lists(_collateral, max_size=4))
def test_an_absorption_pays_what_the_collateral_is_credited_or_the_debt(
    principal: int, indices: Indices, base: Base, held: list[Collateral]
) -> None:
    done = mechanics.absorption(principal, indices, base, held)
    owed = -mechanics.present_value(principal, indices)
    credited = sum(
        Fraction(one.balance * one.price * one.liquidation_factor, one.scale * 10**18) for one in held
    ) * Fraction(base.scale, base.price)
    assert done.base_paid_out - done.new_balance == owed
    assert done.new_balance >= 0
    assert done.base_paid_out >= owed
    cuts = (2 * len(held)) * Fraction(base.scale, base.price) + 1
    assert done.base_paid_out == owed or credited - cuts <= done.base_paid_out <= credited
    assert mechanics.present_value(done.new_principal, indices) <= done.new_balance


@settings(max_examples=100)
@given(st.integers(-(10**18), 10**18), _indices)
def test_a_principal_holds_at_most_what_it_is_worth(present: int, indices: Indices) -> None:
    principal = mechanics.principal_value(present, indices)
    back = mechanics.present_value(principal, indices)
    # a supply is never rounded up; a debt is, by less than one unit of principal, and then cut
    step = max(indices) // INDEX_SCALE + 1
    assert present - step <= back <= present if present >= 0 else present - step <= back <= present + 1


@settings(max_examples=60)
@given(
    st.integers(0, 10**15),
    st.integers(0, 10**15),
    st.integers(0, 3600),
    st.integers(0, 3600),
    st.tuples(*[st.integers(0, 10**18)] * 4),
)
def test_indices_grow_with_time_and_utilization(
    supply: int, borrow: int, sooner: int, later: int, curve: tuple[int, int, int, int]
) -> None:
    rates = Rates(*[Curve(curve[0], *(mechanics.per_second(rate) for rate in curve[1:]))] * 2)
    totals = Totals(ONE, supply, borrow)
    first = mechanics.accrued_indices(totals, rates, min(sooner, later))
    second = mechanics.accrued_indices(totals, rates, max(sooner, later))
    assert first >= ONE
    assert first.borrow <= second.borrow
    assert first.supply <= second.supply
    assert mechanics.accrued_indices(totals._replace(borrow=borrow * 2), rates, 60).borrow >= (
        mechanics.accrued_indices(totals, rates, 60).borrow
    )


# What a snapshot may leave out ----------------------------------------------------------------------------------------


def test_a_base_balance_without_a_curve_is_the_venues_own_or_stays_as_stored() -> None:
    def without_curve(body: Body) -> None:
        for key in [key for key in body if "Kink" in key or "PerSecond" in key]:
            del body[key]

    desk = _desk()
    del desk["configuration_weth.json"]
    stated = _normalize({**desk, "fund_weth.json": changed(desk["fund_weth.json"], without_curve)})
    assert stated.failures == []
    (row,) = rows_of(stated, "balances", account_id=FUND_WETH, asset_id="WETH@ethereum")
    assert row["quantity"] == Decimal("959.089323857792211106")

    def nor_balance(body: Body) -> None:
        without_curve(body)
        del body["borrowBalanceOf"]

    stored = _normalize({**desk, "fund_weth.json": changed(desk["fund_weth.json"], nor_balance)})
    assert [(f.reason, f.path, f.account_id) for f in stored.failures] == [
        ("missing_parameter", "totalsBasic.lastAccrualTime", None)
    ]
    (row,) = rows_of(stored, "balances", account_id=FUND_WETH, asset_id="WETH@ethereum")
    body = desk["fund_weth.json"].body
    owed = -int(body["userBasic"]["principal"]) * int(body["totalsBasic"]["baseBorrowIndex"]) // 10**15
    assert row["quantity"] == Decimal(owed).scaleb(-18)
    timeless = replace(changed(desk["fund_weth.json"], nor_balance), received_at=None)
    assert _normalize({**desk, "fund_weth.json": timeless}).failures == []


def test_the_configurator_lends_its_curve_and_the_rates_of_today_do_too() -> None:
    def without_curve(body: Body) -> None:
        for key in [key for key in body if "Kink" in key or "PerSecond" in key]:
            del body[key]

    desk = _desk()
    desk["fund_weth.json"] = changed(desk["fund_weth.json"], without_curve)
    assert _normalize(desk).failures == []
    assert rows_of(_normalize(desk), "balances") == rows_of(_normalize(_desk()), "balances")
    del desk["configuration_weth.json"]
    full = mechanics.Totals(Indices(1034567890123456, 1051234567890123), 51234 * 10**18 + 5, 43210 * 10**18 + 7)
    body = _desk()["fund_weth.json"].body
    curves = {
        side: Curve(int(body[f"{side}Kink"]), *(int(body[f"{side}PerSecondInterestRate{p}"]) for p in
                    ("SlopeLow", "SlopeHigh", "Base")))
        for side in ("supply", "borrow")
    }  # fmt: skip

    def with_rates(body: Body) -> None:
        for side, curve in curves.items():
            body[f"{side}Rate"] = str(mechanics.interest_rate(curve, mechanics.utilization(full)))

    desk["fund_weth.json"] = changed(desk["fund_weth.json"], with_rates)
    rows = rows_of(_normalize(desk), "balances", account_id=FUND_WETH)
    assert rows == rows_of(_normalize(_desk()), "balances", account_id=FUND_WETH)


def test_a_deployment_file_fills_what_a_snapshot_leaves_out() -> None:
    asset = {
        "address": "0xc02aaa39b223fe8d0a0e5c4f27ead9083c756cc2",
        "decimals": "18",
        "borrowCF": Decimal("0.82567"),
        "liquidateCF": Decimal("0.9"),
        "liquidationFactor": Decimal("0.95"),
        "supplyCap": "1000000e18",
    }
    rates = {f"{side}Kink": Decimal("0.8") for side in ("supply", "borrow")}
    rates |= {f"{s}{n}": Decimal("0.03") for s in ("supply", "borrow") for n in ("SlopeLow", "SlopeHigh", "Base")}
    body = {
        "name": "made up",
        "baseToken": "USDC",
        "borrowMin": "100e6",
        "storeFrontPriceFactor": Decimal("0.5"),
        "targetReserves": "5000000e6",
        "rates": rates,
        "assets": {"WETH": asset},
    }
    file = Payload("configuration", "file.json", "", None, "", body)
    alone = _normalize([file])
    assert alone.failures == []
    (tier,) = rows_of(alone, "collateral_tiers", asset_id="WETH@ethereum")
    assert tier["asset_weight_initial"] == Decimal("0.8256")  # the contract keeps four digits
    totals = {"baseSupplyIndex": str(10**15), "baseBorrowIndex": str(10**15), "lastAccrualTime": "1719619200"}
    lean = {
        "userBasic": {"principal": "-1000000", "assetsIn": "1"},
        "totalsBasic": totals | {"totalSupplyBase": "2000000", "totalBorrowBase": "1000000"},
        "baseScale": "1000000",
        "basePrice": "100000000",
        "assets": [{"asset": "WETH", "price": "337700000000", "userCollateral": "5000000000000000"}],
    }
    account = Payload("account", "lean.json", "lean", NOW, "", lean)
    both = _normalize([file, account])
    assert both.failures == []
    (owed,) = rows_of(both, "balances", side="liability")
    # a day at 3 % + 3 % of 50 %, to the cut of the index
    assert float(owed["quantity"]) == pytest.approx(1 + 0.045 / 365, abs=2e-6)
    assert {row["field"] for row in rows_of(both, "market_state", market=USDC)} >= {
        "base_borrow_min",
        "target_reserves",
    }
    (cap,) = rows_of(both, "market_state", market=f"{USDC}:WETH@ethereum", field="supply_cap")
    assert cap["value"] == 1e6


def test_balances_may_stand_in_the_assets_or_by_token_and_wrapped() -> None:
    desk = _desk()
    before = rows_of(_normalize(desk), "balances", account_id=FUND_WETH)

    def by_token(body: Body) -> None:
        body["userCollateral"] = {asset["asset"]: asset.pop("userCollateral")["balance"] for asset in body["assets"]}

    moved = changed(desk["fund_weth.json"], by_token)
    assert rows_of(_normalize({**desk, "fund_weth.json": moved}), "balances", account_id=FUND_WETH) == before
    for wrapped in ({"result": moved.body}, {"jsonrpc": "2.0", "id": 1, "data": [moved.body]}):
        payloads = {**desk, "fund_weth.json": replace(moved, body=wrapped)}
        assert rows_of(_normalize(payloads), "balances", account_id=FUND_WETH) == before


def test_numbers_may_be_json_integers() -> None:
    def as_numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: as_numbers(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [as_numbers(inner) for inner in value]
        return int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value

    desk = _desk()
    numbers = {name: replace(payload, body=as_numbers(payload.body)) for name, payload in desk.items()}
    normalized = _normalize(numbers)
    assert normalized.failures == []
    assert rows_of(normalized, "balances") == rows_of(_normalize(desk), "balances")


# What cannot be read --------------------------------------------------------------------------------------------------


def _drop(*path: Any) -> Change:
    def change(body: Any) -> None:
        for step in path[:-1]:
            body = body[step]
        del body[path[-1]]

    return change


OF_USDC = frozenset({FUND, SAVER, IDLE})
MARKET, FUND_FILE, WETH_FILE, SAVER_FILE, IDLE_FILE = (
    "market_usdc.json",
    "fund_usdc.json",
    "fund_weth.json",
    "saver.json",
    "idle.json",
)


@pytest.mark.parametrize(
    ("file", "change", "reason", "path", "incomplete"),
    [
        (MARKET, _drop("basePrice"), "missing_field", "basePrice", {FUND, SAVER}),
        (MARKET, put("basePrice", to="-99994120"), "out_of_range", "basePrice", OF_USDC),
        (MARKET, put("baseScale", to="0"), "out_of_range", "baseScale", OF_USDC),
        (MARKET, put("baseScale", to="1000001"), "inconsistent", "baseScale", OF_USDC),
        (MARKET, _drop("totalsBasic", "baseBorrowIndex"), "missing_field", "totalsBasic.baseBorrowIndex",
         {FUND, SAVER}),
        (MARKET, put("totalsBasic", to=[]), "malformed", "totalsBasic", {FUND, SAVER}),
        (MARKET, put("totalsBasic", "baseSupplyIndex", to=Decimal("NaN")), "not_a_number",
         "totalsBasic.baseSupplyIndex", {FUND, SAVER}),
        (MARKET, _drop("borrowPerSecondInterestRateSlopeHigh"), "missing_field", "borrowPerSecondInterestRateSlopeHigh",
         {FUND, SAVER}),
        (MARKET, put("totalsBasic", "lastAccrualTime", to="yesterday"), "not_a_number", "totalsBasic.lastAccrualTime",
         {FUND, SAVER}),
        (MARKET, _drop("assets", 1, "price"), "missing_mark", "assets[1].price", {FUND}),
        (MARKET, put("assets", 1, "price", to="0"), "out_of_range", "assets[1].price", {FUND}),
        (MARKET, put("assets", 2, "price", to="much"), "not_a_number", "assets[2].price",
         {FUND, FUND_WETH, SAVER_WETH}),
        (MARKET, put("assets", 2, "scale", to="1000"), "inconsistent", "", frozenset()),
        (MARKET, _drop("assets", 1, "liquidateCollateralFactor"), "missing_field",
         "assets[1].liquidateCollateralFactor", {FUND}),
        (MARKET, put("assets", 1, "borrowCollateralFactor", to=str(77 * 10**16)), "inconsistent",
         "assets[1].borrowCollateralFactor", {FUND}),
        (MARKET, put("assets", 1, "liquidateCollateralFactor", to=str(10**18 + 1)), "out_of_range",
         "assets[1].liquidateCollateralFactor", {FUND}),
        (MARKET, put("assets", 3, "offset", to=4), "inconsistent", "assets[4].offset", {FUND, SAVER, IDLE}),
        (MARKET, put("assets", to={}), "malformed", "assets", OF_USDC | {FUND_WETH, SAVER_WETH}),
        (MARKET, put("assets", 0, to="COMP"), "malformed", "assets[0]", OF_USDC),
        (MARKET, put("comet", to="0x0000000000000000000000000000000000000001"), "unknown_market", "comet",
         OF_USDC | {FUND_WETH, SAVER_WETH}),
        (MARKET, put("reserves", to="plenty"), "not_a_number", "reserves", frozenset()),
        (FUND_FILE, _drop("userBasic"), "missing_field", "userBasic", {FUND}),
        (FUND_FILE, put("userBasic", "principal", to="1.5"), "not_a_number", "userBasic.principal", {FUND}),
        (FUND_FILE, put("userBasic", "principal", to=str(-(2**104))), "out_of_range", "userBasic.principal", {FUND}),
        (FUND_FILE, put("userBasic", to=["1", "2"]), "malformed", "userBasic", {FUND}),
        (FUND_FILE, put("userBasic", "assetsIn", to=str(0b1000110)), "missing_field", "userBasic.assetsIn", {FUND}),
        (FUND_FILE, put("userBasic", "assetsIn", to="2"), "inconsistent", "assets[2].userCollateral", {FUND}),
        (FUND_FILE, _drop("userCollateral"), "missing_field", "assets[1].userCollateral", {FUND}),
        (FUND_FILE, put("userCollateral", "0x2260fac5e5542a773aa44fbcfedf7c193bc2c599", to="-1"), "out_of_range",
         "userCollateral.0x2260fac5e5542a773aa44fbcfedf7c193bc2c599.balance", {FUND}),
        (FUND_FILE, put("userCollateral", to=[]), "malformed", "userCollateral", {FUND}),
        (FUND_FILE, put("userCollateral", "0x00000000000000000000000000000000000000ff", to="7"), "unknown_market",
         "userCollateral.0x00000000000000000000000000000000000000ff", {FUND}),
        (FUND_FILE, put("isLiquidatable", to=True), "inconsistent", "isLiquidatable", frozenset()),
        (FUND_FILE, put("isBorrowCollateralized", to="yes"), "malformed", "isBorrowCollateralized", frozenset()),
        (WETH_FILE, put("borrowBalanceOf", to=str(9 * 10**20)), "inconsistent", "borrowBalanceOf", frozenset()),
        (WETH_FILE, put("borrowBalanceOf", to="0"), "inconsistent", "borrowBalanceOf", frozenset()),
        (WETH_FILE, put("basePrice", to="99999999"), "inconsistent", "basePrice", {FUND_WETH}),
        (WETH_FILE, put("comet", to="0xc3d688B66703497DAA19211EEdff47f25384cdc3"), "duplicate", "", {FUND}),
        (SAVER_FILE, put(1, "userBasic", 3, to="2.5"), "not_a_number", "[1].userBasic.assetsIn", {SAVER_WETH}),
        (SAVER_FILE, put(0, to=None), "malformed", "[0]", {SAVER}),
        (IDLE_FILE, put("userCollateral", "0xc00e94cb662c3520282e6f5717214004a7f26888", to=None), "missing_field",
         "userCollateral.0xc00e94cb662c3520282e6f5717214004a7f26888.balance", {IDLE}),
    ],
)  # fmt: skip
def test_an_unreadable_field_is_named_and_stops_only_who_needs_it(
    file: str, change: Change, reason: str, path: str, incomplete: frozenset[str]
) -> None:
    desk = _desk()
    desk[file] = changed(desk[file], change)
    normalized = _normalize(desk)
    if (file, reason, path) == (MARKET, "inconsistent", ""):
        # the decimals of a token that another market states too: the snapshot sees both
        assert {f.reason for f in take_snapshot([normalized.batches], normalized.failures).failures} & {"duplicate"}
        return
    assert any((f.reason, f.path) == (reason, path) for f in normalized.failures), normalized.failures
    assert _incomplete(normalized) == set(incomplete), normalized.failures
    assert all(f.venue == "compound_v3" and f.message for f in normalized.failures)
    good = _normalize(_desk())
    for account in ALL - incomplete - ({FUND_WETH} if reason == "duplicate" else set()):
        assert rows_of(normalized, "balances", account_id=account) == rows_of(good, "balances", account_id=account)
        assert len(rows_of(normalized, "accounts", account_id=account)) == 1
    for account in incomplete:
        assert len(rows_of(normalized, "accounts", account_id=account)) == 1


def test_a_token_that_nobody_knows_is_a_failure_of_its_holder_alone() -> None:
    desk = _desk()
    desk[MARKET] = changed(desk[MARKET], put("assets", 0, "symbol", to="FOO"))
    normalized = _normalize(desk)
    assert [(f.reason, f.path, f.account_id) for f in normalized.failures] == [
        ("unknown_asset", "assets[0].asset", IDLE)
    ]
    tokens = copy.deepcopy(FILE["tokens"])
    tokens["ethereum"]["0xc00e94cb662c3520282e6f5717214004a7f26888"] = "FOO"
    normalized = _normalize(_desk(), tokens=tokens)
    assert [(f.reason, f.path, f.account_id) for f in normalized.failures] == [
        ("unknown_asset", "assets[0].asset", IDLE)
    ]
    assert not rows_of(normalized, "assets", symbol="FOO")


def test_repeated_assets_and_repeated_answers_are_all_rejected() -> None:
    desk = _desk()

    def again(body: Body) -> None:
        body["assets"].append(body["assets"][1] | {"offset": 5})

    twice = _normalize({**desk, MARKET: changed(desk[MARKET], again)})
    assert any((f.reason, f.path) == ("duplicate", "assets[5]") for f in twice.failures)
    assert _incomplete(twice) == OF_USDC
    for file, incomplete in ((FUND_FILE, {FUND}), (MARKET, OF_USDC | {FUND_WETH, SAVER_WETH})):
        copies = _normalize([*desk.values(), replace(desk[file], name="copy.json")])
        assert sum(f.reason == "duplicate" for f in copies.failures) == 2
        assert _incomplete(copies) == set(incomplete)
        assert {row["account_id"] for row in rows_of(copies, "accounts")} == ALL


def test_snapshots_that_disagree_on_a_factor_stop_both_owners() -> None:
    desk = _desk()

    def lower(body: list[Body]) -> None:
        body[1]["assets"][1]["liquidateCollateralFactor"] = str(92 * 10**16)

    normalized = _normalize({**desk, SAVER_FILE: changed(desk[SAVER_FILE], lower)})
    snapshot = take_snapshot([normalized.batches], normalized.failures)
    assert snapshot.incomplete == {FUND_WETH, SAVER_WETH}


def test_payloads_of_nobody_and_of_unknown_kind_are_refused() -> None:
    fund = _desk()[FUND_FILE]
    failures = _normalize(
        [
            replace(fund, account=""),
            replace(fund, request="accounts"),
            replace(fund, request="account:base-usdc", body={"userBasic": {}}),
        ]
    ).failures
    assert {(f.reason, f.path, f.account_id) for f in failures} == {
        ("missing_field", "account", None),
        ("unsupported", "request", None),
        ("unknown_market", "request", "compound_v3:fund:base-usdc"),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"markets": {}}, "no .markets"),
        ({"markets": {"a": {"chain": "ethereum", "base": "USDC"}}}, "'numeraire' is missing"),
        ({"markets": {"a": 3}}, "expected a table"),
        ({"default_market": "nowhere"}, "default_market 'nowhere'"),
        ({"tokens": {"ethereum": {"0x1": 5}}}, "must map addresses"),
        ({"as_of": "yesterday"}, "as_of"),
    ],
)
def test_parameters_that_name_no_market_are_a_configuration_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _normalize(_desk(), **changes)


def test_a_snapshot_that_names_no_market_needs_a_default() -> None:
    idle = replace(_desk()[IDLE_FILE], request="account")
    market = _desk()[MARKET]
    assert _normalize([idle, market]).failures == []
    parameters = {key: value for key, value in FILE.items() if key != "default_market"}
    failures = ADAPTER.normalize([idle, market], Context(BOOK, parameters)).failures
    assert [(f.reason, f.account_id) for f in failures] == [("missing_field", "compound_v3:idle")]


def test_a_truncated_file_and_a_missing_file_are_failures(tmp_path: Path) -> None:
    data = (FOLDER / FUND_FILE).read_bytes()
    (tmp_path / "half.json").write_bytes(data[: len(data) // 2])
    for file, reason in (("half.json", "malformed"), ("none.json", "unreachable")):
        fetched = RecordedTransport(tmp_path).fetch("compound_v3", PayloadRequest("account", file, "fund"))
        assert isinstance(fetched, Failure)
        assert fetched.reason == reason


ODD: tuple[Any, ...] = (
    None,
    "",
    "x",
    "-1",
    -1,
    0,
    "0",
    "1e400",
    10**80,
    Decimal("NaN"),
    Decimal("1.5"),
    True,
    [],
    {},
    [[]],
    "\ud800",
)


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
        for odd in ODD[number % 7 :: 7]:
            normalized = _normalize([*others, changed(payload, put(*path, to=odd))])
            rows = rows_of(normalized, "balances")
            assert all(row["quantity"] >= 0 for row in rows)
        if path[-1] != len(path):
            _normalize([*others, changed(payload, _drop(*path))])
    for odd in ODD:
        assert _normalize([*others, replace(payload, body=odd)]).failures


# The recorded material ------------------------------------------------------------------------------------------------


def test_the_samples_are_read_whole(recorded: Path) -> None:
    root = recorded / "payloads" / "compound_v3"
    account = _fetch("account_constructed.json", "account", "sample", root)
    file = _fetch("mainnet_usdc_configuration.json", "configuration", root=root)
    for payloads in ([account], [file], [account, file]):
        normalized = _normalize(payloads)
        assert normalized.failures == []
    held = {row["asset_id"]: row["quantity"] for row in rows_of(_normalize([account, file]), "balances")}
    assert held == {"USDC@ethereum": 1_000_000, "COMP@ethereum": 10, "WETH@ethereum": 1}
    equity, maintenance, _ = _margin_form(_normalize([account]), f"compound_v3:sample:{USDC}")
    # 10 COMP at 175 and 1 WETH at 3000 against a million, factors of 1
    assert equity == 4_750 - 1_000_000
    assert maintenance == 0
    tiers = {r["asset_id"]: r["asset_weight_maintenance"] for r in rows_of(_normalize([file]), "collateral_tiers")}
    assert tiers["WETH@ethereum"] == Decimal("0.895")
    assert set(tiers) == {f"{s}@ethereum" for s in ("USDC", "COMP", "WBTC", "WETH", "UNI", "LINK")}


def test_a_key_twice_in_one_object_is_malformed_before_the_adapter() -> None:
    with pytest.raises(ValueError, match="twice"):
        parse_json('{"principal": "1", "principal": "2"}')
