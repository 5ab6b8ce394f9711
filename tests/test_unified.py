"""The unified requirement of the quickstart desk against a plain NumPy twin, and its policies one by one."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.engine import CONFIDENCES, draw_cube, evaluate_headlines
from aggregator.errors import FailureReason
from aggregator.policy import Requirement, VenuePolicy
from aggregator.results import Evaluated
from aggregator.unified_market import priced_grid, unified_market
from aggregator.unified_results import node_columns, requirement_columns, requirement_failures, requirement_rows
from tests.quickstart_book import FACTORS, HORIZON_DAYS, quickstart_book
from tests.unified_twin import SEED, SIZES, Desk, Twin, component, desk, law, shortfall


@pytest.fixture(scope="module")
def plain() -> Desk:
    return desk(Requirement())


@pytest.mark.parametrize("level", [0, 1])
def test_every_component_is_the_twins(plain: Desk, level: int) -> None:
    twin, confidence, policy = Twin(plain), CONFIDENCES[level], plain.policy
    current = twin.shortfalls(plain.cube.change, plain.cube.weights, confidence)
    horizon = twin.horizon(plain.cube.change, plain.cube.weights, confidence)
    market = plain.market
    laws = [
        twin.horizon(change, weights, confidence)
        for change, weights in zip(market.stressed_change, market.stressed_weights, strict=True)
    ]
    stressed = np.maximum(*laws)
    close: Callable[..., None] = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=0.5)  # noqa: E731
    close(component(plain, "es_current", level), current)
    close(component(plain, "es_horizon", level), horizon)
    close(component(plain, "es_stressed", level), stressed)
    blend = np.maximum(horizon, (1 - policy.stress_weight) * horizon + policy.stress_weight * stressed)
    close(component(plain, "es_blend", level), blend)
    close(component(plain, "grid", level), twin.grid())
    priced = [line.gross_usd if line.factor else 0.0 for line in plain.portfolio.lines]
    gross = np.array([sum(priced[n] for n in m) for m in twin.members])
    close(component(plain, "floor", level), policy.floor_rate * gross)
    close(component(plain, "liquidity", level), twin.liquidity())
    close(component(plain, "concentration", level), twin.concentration(confidence))
    equity = [sum(plain.portfolio.line_equity[n] for n in m) for m in twin.members[:-1]]
    of_venue = [0.02 / 365.0 * 0.6 * max(value, 0.0) for value in equity]
    close(component(plain, "venue", level), np.array([*of_venue, sum(of_venue)]))
    basis = component(plain, "basis", level)
    assert not basis[:-1].any()
    close(basis[-1], twin.basis())
    names = ("base", "liquidity", "concentration", "basis", "wrong_way", "venue")
    close(component(plain, "requirement", level), sum(component(plain, name, level) for name in names))


def test_the_desk_makes_every_component_bind(plain: Desk) -> None:
    for name in ("es_stressed", "grid", "floor", "liquidity", "venue"):
        assert (component(plain, name, 0) > 0).all(), name
    assert (component(plain, "concentration", 0) > 0).any()
    assert (component(plain, "es_horizon", 0) > component(plain, "es_current", 0)).any()
    assert component(plain, "basis", 0)[-1] > 0


def test_the_cap_leaves_a_share_of_the_offset(plain: Desk) -> None:
    unified = plain.unified
    for level in (0, 1):
        silo = component(plain, "requirement", level)[:-1].sum()
        ideal = component(plain, "requirement", level)[-1]
        assert float(unified.silo[level]) == pytest.approx(silo, rel=1e-12)
        expected = ideal if ideal >= silo else silo - 0.8 * (silo - ideal)
        assert float(unified.effective[level]) == pytest.approx(expected, rel=1e-12)


def test_errors_are_those_of_the_batches(plain: Desk) -> None:
    twin, unified = Twin(plain), plain.unified
    pooled = twin.line_losses(plain.cube.change).sum(axis=0).reshape(8, -1)
    for level, confidence in enumerate(CONFIDENCES):
        weights = np.full(pooled.shape[1], 1.0 / pooled.shape[1])
        batches = [shortfall(row, weights, confidence) for row in pooled]
        expected = np.std(batches, ddof=1) / math.sqrt(8)
        assert float(unified.es_error[level]) == pytest.approx(expected, rel=2e-3)


def test_an_asset_without_a_market_is_shown_and_not_charged(plain: Desk) -> None:
    without = desk(Requirement(), {name: size for name, size in SIZES.items() if name != "price:SOL"})
    exposure = np.abs(Twin(plain).exposure())[:, FACTORS.index("price:SOL")]
    np.testing.assert_allclose(component(without, "unmeasured", 0), [*exposure, exposure.sum()], rtol=1e-9)
    assert not component(plain, "unmeasured", 0).any()
    assert np.isfinite(component(without, "requirement", 0)).all()
    assert (component(without, "liquidity", 0) <= component(plain, "liquidity", 0)).all()


def test_a_charge_that_nothing_was_measured_of_is_null_and_an_infinite_requirement_is_a_failure(plain: Desk) -> None:
    without = desk(Requirement(), {"price:BTC": SIZES["price:BTC"]})
    rows = requirement_rows(without.evaluated, ["point"] * 10_000, stressed=True)
    solana = next(row for row in rows if row["scope"].endswith("SOL") and row["level"] == "maintenance")
    assert (solana["liquidity_usd"], solana["concentration_usd"]) == (None, None)
    assert solana["unmeasured_usd"] > 0
    assert requirement_failures([plain.evaluated]) == []
    components = plain.unified.components._replace(venue=jnp.full_like(plain.unified.components.venue, jnp.inf))
    headline = plain.headline._replace(unified=plain.unified._replace(components=components))
    broken = Evaluated(plain.portfolio, headline)
    assert requirement_rows(broken, ["point"] * 10_000, stressed=True) == []
    assert requirement_columns(broken, plain.policy, {}) == {}
    (failure,) = requirement_failures([broken])
    assert (failure.reason, failure.subject) == (FailureReason.CALCULATION, "north-desk")


def test_columns_follow_from_the_rows(plain: Desk) -> None:
    rows = requirement_rows(plain.evaluated, ["point"] * 10_000, stressed=True)
    row = requirement_columns(plain.evaluated, plain.policy, {})
    of = {(r["scope"], r["level"]): r for r in rows}
    assert row["requirement_ideal_usd"] == of["unified", "maintenance"]["requirement_usd"]
    nodes = [r["requirement_usd"] for (scope, level), r in of.items() if scope != "unified" and level == "maintenance"]
    assert row["requirement_silo_usd"] == pytest.approx(sum(nodes), rel=1e-12)
    assert row["requirement_initial_usd"] >= 1.25 * row["requirement_effective_usd"]
    assert row["health_unified"] == pytest.approx(row["unified_equity_usd"] / row["requirement_effective_usd"])
    costs = node_columns(plain.evaluated, plain.policy)
    assert [cost["requirement_usd"] for cost in costs] == nodes
    for cost in costs:
        assert cost["opportunity_cost_usd"] == pytest.approx(0.05 * cost["locked_usd"], rel=1e-12)


def test_collateral_at_a_haircut_does_not_move() -> None:
    fixed = desk(Requirement(collateral="haircut"))
    twin = Twin(fixed)
    expected = twin.shortfalls(fixed.cube.change, fixed.cube.weights, CONFIDENCES[0])
    np.testing.assert_allclose(component(fixed, "es_current", 0), expected, rtol=2e-4, atol=0.5)


def test_a_venue_s_own_token_counts_for_nothing_and_hedges_nothing(plain: Desk) -> None:
    own = desk(Requirement(venues={"aave_v3": VenuePolicy(own_tokens=("wstETH",))}))
    held = [line for line in own.portfolio.lines if line.kind == "collateral" and line.symbol == "wstETH"]
    lost = sum(line.value_usd for line in held if line.venue == "aave_v3")
    assert lost > 0
    assert component(own, "wrong_way", 0)[-1] == pytest.approx(lost, rel=1e-12)
    expected = Twin(own).shortfalls(own.cube.change, own.cube.weights, CONFIDENCES[0])
    np.testing.assert_allclose(component(own, "es_current", 0), expected, rtol=2e-4, atol=0.5)
    # The short that the collateral hedged stands alone.
    assert component(own, "es_current", 0)[-1] > 3 * component(plain, "es_current", 0)[-1]


def test_without_figures_and_stressed_laws_the_rest_stands() -> None:
    policy = Requirement()
    book = quickstart_book()
    rows = book.cube.build(FACTORS)
    cube = draw_cube(rows, law(1.0), seed=SEED, scenarios=1024, chunk=1024, horizon_days=HORIZON_DAYS)
    market = unified_market(
        rows,
        FACTORS,
        priced_grid(rows, FACTORS, policy),
        policy,
        stressed=[],
        sizes={},
        basis={},
        seed=SEED,
        chunk=1024,
        horizon_days=HORIZON_DAYS,
    )
    cube = eqx.tree_at(lambda c: c.unified, cube, market, is_leaf=lambda leaf: leaf is None)
    for headline in evaluate_headlines(book.portfolios, FACTORS, cube, devices=1, policy=policy):
        assert headline is not None
        assert headline.unified is not None
        for name, values in headline.unified._asdict().items():
            leaves = jax.tree.leaves(values)
            if name not in ("var_error", "es_error", "es_current_error"):
                assert all(np.isfinite(leaf).all() for leaf in leaves), name
        assert not np.asarray(headline.unified.components.es_stressed).any()
