"""Properties of the unified requirement through the engine: what a book may and may not do to it."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

from aggregator.account import Line
from aggregator.capital_cost import borrow_rates
from aggregator.config import load_configuration
from aggregator.engine import CONFIDENCES
from aggregator.factors import MarketSize
from aggregator.policy import Liquidity, Requirement, VenuePolicy
from aggregator.portfolio import PackedPortfolio
from aggregator.run_inputs import read_inputs
from aggregator.unified_market import stack_of
from aggregator.unified_results import node_columns, requirement_columns, requirement_rows, unified_equity
from tests.quickstart_book import FACTORS, QUICKSTART, quickstart_book
from tests.unified_twin import SIZES, Desk, Twin, component, desk, law, north_desk, shortfall

NO_FAILURES = VenuePolicy(hazard_per_year=0.0)
DEEP = {name: MarketSize(1e15, size.daily_vol, size.spread) for name, size in SIZES.items()}
PARTS = ("es_current", "es_horizon", "es_stressed", "grid", "floor", "liquidity", "concentration", "basis")


@pytest.fixture(scope="module")
def plain() -> Desk:
    return desk(Requirement())


def scaled(portfolio: PackedPortfolio, by: float) -> PackedPortfolio:
    """The portfolio with every line `by` times as large."""
    return dataclasses.replace(
        portfolio,
        lines=[line._replace(value_usd=by * line.value_usd, gross_usd=by * line.gross_usd) for line in portfolio.lines],
        line_equity=[by * value for value in portfolio.line_equity],
        legs=[(line, row, by * coefficient) for line, row, coefficient in portfolio.legs],
    )


def of_amounts(amounts: Sequence[tuple[str, str, float]]) -> PackedPortfolio:
    """The desk with nothing in its accounts but (node, asset, USD) of coins, longs and shorts."""
    whole = north_desk()
    row = {asset: quickstart_book().cube.factor_row({f"price:{asset}": 1.0}) for _, asset, _ in amounts}
    nodes = [node for node, _ in whole.nodes]
    lines = [
        Line(f"{node}/{asset}", node, whole.nodes[nodes.index(node)][1], node, asset, usd, abs(usd), f"price:{asset}",
             "collateral" if usd > 0 else "debt", asset, None, False)
        for node, asset, usd in amounts
    ]  # fmt: skip
    return dataclasses.replace(
        whole,
        lines=lines,
        line_node=[nodes.index(node) for node, _, _ in amounts],
        line_equity=[usd for _, _, usd in amounts],
        legs=[(number, row[asset], usd) for number, (_, asset, usd) in enumerate(amounts)],
    )


AAVE, BINANCE, DERIVE, HYPERLIQUID = (
    next(node for node, at in north_desk().nodes if at == venue)
    for venue in ("aave_v3", "binance", "derive", "hyperliquid")
)


# ---- cash, size, splitting -------------------------------------------------------------------------------------------


def test_cash_moves_equity_and_what_may_be_lost_with_its_venue_and_nothing_else(plain: Desk) -> None:
    portfolio, cash = plain.portfolio, 1_000_000.0
    node, venue = portfolio.nodes[1]
    dollars = Line(f"{node}/USD", node, venue, node, "USD", cash, cash, "", "collateral", "USD", None, False)
    richer = dataclasses.replace(
        portfolio,
        lines=[*portfolio.lines, dollars],
        line_node=[*portfolio.line_node, 1],
        line_equity=[*portfolio.line_equity, cash],
    )
    found = desk(plain.policy, portfolio=richer)
    for level in (0, 1):
        for name in (*PARTS, "base", "wrong_way", "unmeasured"):
            np.testing.assert_array_equal(component(found, name, level), component(plain, name, level), err_msg=name)
        # Dollars at a venue are not free of risk: its expected loss by failure is the one component that sees them.
        at_risk = plain.policy.venue(venue).hazard_per_year / 365.0 * plain.policy.venue(venue).loss_given_default
        rise = component(found, "venue", level) - component(plain, "venue", level)
        expected = np.zeros(len(rise))
        expected[[1, -1]] = at_risk * cash
        np.testing.assert_allclose(rise, expected, rtol=1e-9, atol=1e-9)
    assert unified_equity(richer, found.unified, found.policy) == pytest.approx(
        unified_equity(portfolio, plain.unified, plain.policy) + cash, rel=1e-12
    )


@pytest.mark.long
def test_without_add_ons_twice_the_book_needs_twice_as_much() -> None:
    policy = Requirement(other_venues=NO_FAILURES, venues={}, liquidity=Liquidity(impact=0.0))
    free = {name: MarketSize(1e15, 0.0, 0.0) for name in SIZES}
    one, two = desk(policy, free), desk(policy, free, scaled(north_desk(), 2.0))
    for level in (0, 1):
        for name in (*PARTS, "venue", "wrong_way", "requirement"):
            np.testing.assert_array_equal(component(two, name, level), 2.0 * component(one, name, level), err_msg=name)
        assert not component(one, "liquidity", level).any()
        assert float(two.unified.effective[level]) == pytest.approx(
            2.0 * float(one.unified.effective[level]), rel=1e-15
        )


def test_a_larger_book_needs_more_than_in_proportion(plain: Desk) -> None:
    before = plain
    for by in (1.5, 4.0, 40.0):
        after = desk(plain.policy, portfolio=scaled(north_desk(), by))
        for level in (0, 1):
            for name in (*PARTS, "requirement"):
                assert (component(after, name, level) >= component(before, name, level)).all(), (name, by)
            ratio = component(after, "requirement", level) / component(plain, "requirement", level)
            assert (ratio >= by * (1.0 - 1e-12)).all()
        assert float(after.unified.effective[0]) >= float(before.unified.effective[0])
        before = after


def test_a_position_split_over_four_venues_needs_as_much_and_its_own_charges_hide_half() -> None:
    policy = Requirement(other_venues=NO_FAILURES, venues={})
    sizes = {"price:ETH": MarketSize(4.0e8, 0.03, 0.0)}
    whole = desk(policy, sizes, of_amounts([(AAVE, "ETH", 8e6)]))
    venues = (AAVE, BINANCE, DERIVE, HYPERLIQUID)
    split = desk(policy, sizes, of_amounts([(venue, "ETH", 2e6) for venue in venues]))
    for level in (0, 1):
        for name in (*PARTS, "requirement"):
            assert component(split, name, level)[-1] == pytest.approx(component(whole, name, level)[-1], rel=1e-6), name
        assert component(whole, "liquidity", level)[-1] == pytest.approx(8e6 * 0.03 * math.sqrt(0.02), rel=1e-9)
        assert component(split, "liquidity", level)[:-1].sum() == pytest.approx(
            component(whole, "liquidity", level)[-1] / 2.0, rel=1e-12
        )
        # More than the sum of the nodes, and not clipped to it.
        assert float(split.unified.effective[level]) == component(split, "requirement", level)[-1]
        assert float(split.unified.margin_efficiency[level]) > 1.0
        assert float(split.unified.offset_benefit[level]) < 0.0


# ---- liquidity horizons ----------------------------------------------------------------------------------------------


def hedged(volume: float) -> Desk:
    """Bitcoin long against ether short that go together to one in ten thousand; ether's daily volume is `volume`."""
    sizes = {"price:BTC": MarketSize(1e12, 0.03, 0.0), "price:ETH": MarketSize(volume, 0.03, 0.0)}
    book = of_amounts([(AAVE, "BTC", 1e6), (BINANCE, "ETH", -1e6)])
    return desk(Requirement(), sizes, book, current=law(1.0, correlation=0.9999))


def test_the_stressed_shortfall_of_a_hedged_book_is_that_of_the_leg_that_stays_and_no_ratio_of_nothing() -> None:
    quick = hedged(1e12)
    slowest = 0.0
    for days in (1.5, 4.0, 30.0, 100.0, 1000.0):
        found = hedged(1e6 / (0.1 * days))
        twin = Twin(found)
        for level, confidence in enumerate(CONFIDENCES):
            stressed = component(found, "es_stressed", level)
            laws = zip(found.market.stressed_change, found.market.stressed_weights, strict=True)
            expected = np.maximum(*(twin.horizon(change, weights, confidence) for change, weights in laws))
            np.testing.assert_allclose(stressed, expected, rtol=2e-4, atol=0.5)
            # At most both legs naked for as long as the longest horizon.
            alone = component(quick, "es_stressed", level)[:-1].sum()
            assert stressed[-1] <= math.sqrt(120.0) * alone
        assert component(found, "es_stressed", 0)[-1] >= slowest
        slowest = component(found, "es_stressed", 0)[-1]
        ratio = component(found, "es_horizon", 0)[-1] / component(found, "es_current", 0)[-1]
        assert ratio > 10.0  # what the shortfall over the horizons is of one that the hedge takes away


def test_a_slower_market_never_needs_less() -> None:
    before = desk(Requirement(), DEEP)
    for volume in (1e9, 1e8, 1e7, 1e6, 1e5, 1e4):
        after = desk(Requirement(), {name: size._replace(daily_volume=volume) for name, size in DEEP.items()})
        for name in ("es_horizon", "es_stressed", "requirement"):
            assert (component(after, name, 0) >= component(before, name, 0)).all(), (name, volume)
        before = after


def test_the_horizons_reach_to_those_of_the_policy_beyond_that_of_the_run() -> None:
    assert stack_of(Requirement(), horizon_days=1.0).horizons == (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 120.0)
    assert stack_of(Requirement(), horizon_days=10.0).horizons == (10.0, 20.0, 40.0, 80.0, 120.0)
    assert stack_of(Requirement(), horizon_days=3.0).horizons == (3.0, 5.0, 10.0, 20.0, 40.0, 80.0, 120.0)
    assert stack_of(Requirement(), horizon_days=200.0).horizons == (200.0,)


@pytest.mark.parametrize(("days", "counted"), [(0.5, 1.0), (7.0, 10.0), (100.0, 120.0), (119.0, 120.0), (400.0, 120.0)])
def test_a_close_out_counts_up_to_the_next_horizon_and_beyond_the_last_it_is_said(days: float, counted: float) -> None:
    size = 3e6
    found = desk(
        Requirement(),
        {"price:ETH": MarketSize(size / (0.1 * days), 0.03, 0.0)},
        of_amounts([(AAVE, "ETH", size), (BINANCE, "BTC", 1.0)]),
    )
    for level in (0, 1):
        expected = math.sqrt(counted) * component(found, "es_current", level)[0]
        assert component(found, "es_horizon", level)[0] == pytest.approx(expected, rel=1e-12)
    beyond = size if days > 120.0 else 0.0
    assert component(found, "beyond_horizons", 0)[[0, 1, -1]].tolist() == pytest.approx([beyond, 0.0, beyond], rel=1e-9)
    row = next(r for r in requirement_rows(found.evaluated, ["point"] * 10_000, stressed=True) if r["scope"] == AAVE)
    assert row["beyond_horizons_usd"] == pytest.approx(beyond, rel=1e-9)


# ---- wrong way -------------------------------------------------------------------------------------------------------


def at(found: Desk, node: str) -> float:
    return float(component(found, "wrong_way", 0)[[name for name, _ in found.portfolio.nodes].index(node)])


def wrong_way(amounts: Sequence[tuple[str, str, float]], **own_tokens: tuple[str, ...]) -> Desk:
    venues = {name: VenuePolicy(own_tokens=tokens, loss_given_default=0.4) for name, tokens in own_tokens.items()}
    found = desk(Requirement(venues=venues), portfolio=of_amounts(amounts))
    np.testing.assert_allclose(component(found, "wrong_way", 0), Twin(found).wrong_way(), rtol=1e-9, atol=1e-6)
    return found


def test_a_venue_s_token_held_elsewhere_is_charged_what_its_failure_takes() -> None:
    found = wrong_way([(AAVE, "ETH", 1e6), (BINANCE, "SOL", 5e5)], binance=("ETH",))
    # The node alone has no account at the venue: what its failure does to the price is no wrong way to anything there.
    assert (at(found, AAVE), at(found, BINANCE)) == (0.0, 0.0)
    assert component(found, "wrong_way", 0)[-1] == pytest.approx(0.4 * 1e6, rel=1e-9)
    posted = wrong_way([(AAVE, "ETH", 1e6), (BINANCE, "ETH", 3e5)], binance=("ETH",))
    # What is posted there counts for nothing already and is not charged a second time.
    assert at(posted, BINANCE) == pytest.approx(3e5, rel=1e-9)
    assert component(posted, "wrong_way", 0)[-1] == pytest.approx(3e5 + 0.4 * 1e6, rel=1e-9)


def test_a_short_elsewhere_nets_and_one_at_the_venue_itself_pays_nothing() -> None:
    elsewhere = wrong_way([(AAVE, "ETH", 1e6), (DERIVE, "ETH", -7e5), (BINANCE, "SOL", 5e5)], binance=("ETH",))
    assert component(elsewhere, "wrong_way", 0)[-1] == pytest.approx(0.4 * 3e5, rel=1e-9)
    there = wrong_way([(AAVE, "ETH", 1e6), (BINANCE, "ETH", -7e5)], binance=("ETH",))
    assert component(there, "wrong_way", 0)[-1] == pytest.approx(0.4 * 1e6, rel=1e-9)
    short = wrong_way([(AAVE, "ETH", -1e6), (BINANCE, "SOL", 5e5)], binance=("ETH",))
    assert not component(short, "wrong_way", 0).any()


def test_a_long_position_and_the_tokens_of_two_venues_are_charged_through_the_whole_desk() -> None:
    """Perpetuals, options by their delta, wrapped tokens: the desk itself, against the twin."""
    venues = {
        "binance": VenuePolicy(own_tokens=("ETH",), loss_given_default=0.3),
        "hyperliquid": VenuePolicy(own_tokens=("SOL", "BTC"), loss_given_default=0.5),
        "aave_v3": VenuePolicy(own_tokens=("DAI",)),
        "okx": VenuePolicy(own_tokens=("USDC",)),
    }
    found = desk(Requirement(venues=venues))
    np.testing.assert_allclose(component(found, "wrong_way", 0), Twin(found).wrong_way(), rtol=1e-9, atol=1e-6)
    assert (component(found, "wrong_way", 0) > 0).sum() >= 3
    # A venue where the desk holds nothing takes nothing with it.
    without = desk(Requirement(venues={name: venue for name, venue in venues.items() if name != "okx"}))
    np.testing.assert_array_equal(component(found, "wrong_way", 0), component(without, "wrong_way", 0))


# ---- haircuts and error bars -----------------------------------------------------------------------------------------


def test_an_error_belongs_to_the_figure_that_it_stands_beside() -> None:
    fixed = desk(Requirement(collateral="haircut"))
    everything = np.zeros(fixed.cube.weights.shape[0])
    for _, cube_row, coefficient in fixed.portfolio.legs:
        everything -= coefficient * np.asarray(fixed.cube.change, np.float64)[cube_row]
    moving = Twin(fixed).line_losses(fixed.cube.change).sum(axis=0)
    row = requirement_columns(fixed.evaluated, fixed.policy)
    rows = requirement_rows(fixed.evaluated, ["point"] * 10_000, stressed=True)
    requirement = {r["level"]: r for r in rows if r["scope"] == "unified"}
    for level, (confidence, name) in enumerate(zip(CONFIDENCES, ("99", "995"), strict=True)):
        figure = float(fixed.headline.pooled_es[level])
        uniform = np.asarray(fixed.cube.weights)
        assert figure == pytest.approx(shortfall(everything, uniform, confidence), rel=2e-4)
        errors = [_error(losses, confidence) for losses in (everything, moving)]
        assert row[f"es_{name}_pooled_error_usd"] == pytest.approx(errors[0], rel=2e-3)
        of_level = requirement[("maintenance", "initial")[level]]
        assert of_level["es_current_error_usd"] == pytest.approx(errors[1], rel=2e-3)
        assert errors[0] != pytest.approx(errors[1], rel=0.05)


def _error(losses: np.ndarray, confidence: float) -> float:
    batches = losses.reshape(8, -1)
    weights = np.full(batches.shape[1], 1.0 / batches.shape[1])
    return float(np.std([shortfall(row, weights, confidence) for row in batches], ddof=1) / math.sqrt(8))


def test_the_haircut_of_a_wrapped_token_is_that_of_its_price_and_its_discount() -> None:
    policy = Requirement(collateral="haircut")
    fixed = desk(policy)
    shocks, expected = np.asarray(fixed.cube.shocks), 0.0
    for line, value in zip(fixed.portfolio.lines, fixed.portfolio.line_equity, strict=True):
        moves = np.zeros(len(shocks))
        if line.kind == "collateral" and line.factor:
            moves = moves + shocks[:, FACTORS.index(line.factor)]
            if line.symbol == "wstETH":
                moves = moves + shocks[:, FACTORS.index("peg:wstETH")]
        expected += value * math.exp(-2.326 * float(np.std(moves)) * math.sqrt(2.0))
    assert unified_equity(fixed.portfolio, fixed.unified, policy) == pytest.approx(expected, rel=1e-7)
    assert expected < sum(fixed.portfolio.line_equity)
    volatile = np.asarray(fixed.unified.line_daily_vol)[: len(fixed.portfolio.lines)]
    at_haircut = [line.kind == "collateral" and bool(line.factor) for line in fixed.portfolio.lines]
    np.testing.assert_array_equal(volatile > 0.0, at_haircut)


# ---- what the capital costs ------------------------------------------------------------------------------------------


def test_debts_and_perpetuals_cost_what_their_payloads_state_and_an_unknown_rate_is_no_zero(plain: Desk) -> None:
    rates = borrow_rates(read_inputs(load_configuration(QUICKSTART), lambda stage, done, total: None).snapshots)
    debts = {line.key: line.value_usd for line in plain.portfolio.lines if line.kind == "debt"}
    assert set(debts) <= set(rates)
    nodes = node_columns(plain.evaluated, plain.policy, rates)
    held = list(zip(plain.portfolio.lines, plain.portfolio.line_node, strict=True))
    for number, (row, (_, venue)) in enumerate(zip(nodes, plain.portfolio.nodes, strict=True)):
        owed = [-line.value_usd * rates[line.key] for line, at in held if at == number and line.kind == "debt"]
        assert row["borrow_cost_usd"] == (pytest.approx(sum(owed), rel=1e-12) if owed else None)
        hours = plain.policy.venue(venue).funding_hours
        paid = [
            line.value_usd * line.funding_rate * 8760.0 / hours
            for line, at in held
            if at == number and line.funding_rate is not None
        ]
        unknown = [line.value_usd for line, at in held if at == number and math.isnan(rates.get(line.key, 0.0))]
        assert row["uncosted_usd"] == pytest.approx(sum(map(abs, unknown)), rel=1e-12)
        assert row["funding_cost_usd"] == (pytest.approx(sum(paid), rel=1e-12) if paid and not unknown else None)
    assert nodes[0]["borrow_cost_usd"] > 0.0
    columns = requirement_columns(plain.evaluated, plain.policy, rates)
    if all(row["uncosted_usd"] == 0.0 for row in nodes):
        total = sum((row[f"{name}_cost_usd"] or 0.0) for row in nodes for name in ("opportunity", "borrow", "funding"))
        assert columns["capital_cost_usd"] == pytest.approx(total, rel=1e-12)
    else:
        assert columns["capital_cost_usd"] is None
    # Neither is a perpetual's: its payload may state none.
    silent = [line._replace(funding_rate=None) if line.kind == "linear" else line for line in plain.portfolio.lines]
    quiet = plain.evaluated._replace(portfolio=dataclasses.replace(plain.portfolio, lines=silent))
    sol = next(line for line in silent if line.kind == "linear" and line.asset == "SOL")
    number = silent.index(sol)
    node = node_columns(quiet, plain.policy, rates | {sol.key: math.nan})[plain.portfolio.line_node[number]]
    assert (node["funding_cost_usd"], node["uncosted_usd"]) == (None, pytest.approx(abs(sol.value_usd)))
    # Without the rate of one debt the node and the whole have no cost, and its size is said.
    key = next(iter(debts))
    without = {name: rate for name, rate in rates.items() if name != key}
    node = node_columns(plain.evaluated, plain.policy, without)[0]
    assert node["borrow_cost_usd"] is None
    assert node["uncosted_usd"] == pytest.approx(-debts[key], rel=1e-12)
    assert requirement_columns(plain.evaluated, plain.policy, without)["capital_cost_usd"] is None
