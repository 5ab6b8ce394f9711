"""The transfer model of a run: its law, every portfolio's network, and result columns and rows."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.engine import CONFIDENCES
from aggregator.errors import ConfigurationError
from aggregator.node_scenarios import NEVER
from aggregator.policy import Requirement
from aggregator.results import Evaluated
from aggregator.route_network import GivenRoute
from aggregator.routes import Leg, Outage, Routes
from aggregator.scenarios import draw_paths, stream_number
from aggregator.transfer_batch import NetworkScenarios, evaluate_transfers
from aggregator.transfer_detail import TransferDetail, transfer_detail
from aggregator.transfer_margin import scenarios_looked_at
from aggregator.transfer_results import route_point_rows, route_rows, transfer_columns
from aggregator.transfer_run import network_of, profit_leaves, transfer_law, transfers
from tests.margin_twin import expected_shortfall
from tests.quickstart_book import FACTORS, HORIZON_DAYS
from tests.transfer_book import PATHS, ROUTES, STEPS, measured, path_law, run_law, transfer_desk
from tests.unified_twin import SEED

EXACT = 1e-9  # sums of some thousand float64 terms
FLOAT32 = 1e-6  # losses by node are kept in float32
SOLVED = 1e-5  # what the solver and the programme of HiGHS leave


# ---- the law ---------------------------------------------------------------------------------------------------------


def test_the_law_draws_its_channels_at_the_stress_of_the_runs_own_paths() -> None:
    law = run_law("path")
    assert law.deadlines == "path"
    assert law.market.timing.fixed_hours is None
    assert law.market.timing.step_hours == 6.0
    assert law.market.timing.horizon_hours == 24.0
    assert law.market.levels == CONFIDENCES
    assert law.channels[:2] == ("ethereum", "unused")
    assert set(law.channels[2:]) == {"venue binance", "venue hyperliquid", "venue aave_v3"}
    key = jax.random.fold_in(jax.random.key(SEED), stream_number("paths"))
    moves = np.cumsum(np.asarray(draw_paths(path_law().generator, key, 0, PATHS, steps=STEPS)), axis=1)
    btc = moves[:, :, FACTORS.index("price:BTC")]
    stress = np.maximum(-btc.min(axis=1), 0.0) / btc[:, -1].std()
    # The outages of the chain follow the stress: their chance where it is high is the logistic function's there.
    down = ~np.asarray(law.market.channels.up)[:, 0]
    for part in (stress < 0.5, stress >= 0.5):
        chance = 1.0 / (1.0 + np.exp(2.0 - 0.3 * stress[part]))
        error = math.sqrt((chance * (1.0 - chance)).sum()) / part.sum()
        assert down[part].mean() == pytest.approx(chance.mean(), abs=4.0 * error)


def test_paths_that_the_run_does_not_have_become_fixed_deadlines() -> None:
    law = run_law("fixed")
    assert law.deadlines == "fixed"
    assert law.market.timing.fixed_hours == ROUTES.deadline.fixed_hours
    np.testing.assert_array_equal(law.market.weights, measured().cube.weights)
    asked = ROUTES.model_copy(update={"deadline": ROUTES.deadline.model_copy(update={"mode": "fixed"})})
    assert run_law("path", asked).deadlines == "fixed"
    # Draws of their own: the paths' channels are not the scenarios' over again.
    by_path = np.asarray(run_law("path").market.channels.up)[:PATHS, 1]
    assert 0.3 < (by_path == np.asarray(law.market.channels.up)[:PATHS, 1]).mean() < 0.7


def test_a_market_that_nothing_moves_is_refused() -> None:
    other = ROUTES.model_copy(update={"deadline": ROUTES.deadline.model_copy(update={"market": "DOGE"})})
    with pytest.raises(ConfigurationError, match=r"deadline.market is 'DOGE'"):
        run_law("fixed", other)


def test_a_venue_says_whether_profit_leaves() -> None:
    assert profit_leaves(ROUTES) == {"binance": False, "hyperliquid": True, "aave_v3": False}


def given_route(source: str, target: str) -> GivenRoute:
    return GivenRoute(source, target, "USDC", Leg(median_hours=0.1, p99_hours=0.2), Outage(intercept=-40.0, slope=0.0))


def test_routes_of_other_books_are_no_part_of_a_portfolios_network() -> None:
    of = measured()
    names = [node for node, venue in of.portfolio.nodes if venue in ROUTES.venues]
    own, foreign = given_route(names[0], names[1]), given_route(names[0], "elsewhere")
    law = transfer_law(
        ROUTES, [own, foreign], FACTORS, of.cube, None, venues=sorted(ROUTES.venues), seed=SEED, horizon_days=1.0
    )
    assert law.channels[-2:] == (own.channel, foreign.channel)
    network = network_of(of.portfolio, law)
    known = [route for route in network.routes if own.channel in route.through]
    assert [(network.points[r.source], network.points[r.target]) for r in known] == [(names[0], names[1])]
    assert not [route for route in network.routes if foreign.channel in route.through]


# ---- portfolios ------------------------------------------------------------------------------------------------------


def test_pooled_and_siloed_are_the_headlines_in_the_same_scenarios() -> None:
    of = transfer_desk("fixed")
    nodes = len(of.desk.portfolio.nodes)
    losses = of.nodes.losses[:, -1].astype(float)
    weights = np.asarray(of.law.market.weights)
    for level, confidence in enumerate(CONFIDENCES):
        pooled = float(of.desk.headline.pooled_es[level])
        own = [expected_shortfall(row, weights, confidence) for row in losses]
        assert min(own) > 0.0
        assert of.found.figures.pooled[level] == pytest.approx(pooled, rel=FLOAT32)
        assert of.found.figures.siloed[level] == pytest.approx(sum(own), rel=EXACT)
        headline = np.asarray(of.desk.headline.node_es)[:nodes, level]
        np.testing.assert_allclose(own, headline, rtol=FLOAT32)


def test_without_paths_to_walk_there_is_no_prefunding() -> None:
    of = transfer_desk("fixed")
    assert transfer_detail(of.desk.evaluated, of.found, of.nodes, of.law, of.rules).prefunding is None


def test_what_the_model_finds_is_what_its_network_gives() -> None:
    of = transfer_desk("path")
    network = network_of(of.desk.portfolio, of.law)
    assert network == of.found.network
    assert of.found.method == "closed_form"
    assert of.found.deadlines == "path"
    (direct,) = evaluate_transfers([NetworkScenarios(network, of.nodes)], of.law.channels, of.law.market, devices=1)
    for name, values in direct._asdict().items():
        np.testing.assert_array_equal(values, getattr(of.found.figures, name), err_msg=name)
    figures = of.found.figures
    assert (figures.pooled < figures.constrained).all()
    assert (figures.constrained < figures.siloed).all()


def test_a_portfolio_that_is_not_finite_is_left_out() -> None:
    of = transfer_desk("path")
    broken = []
    for name in ("losses", "surplus", "withdrawable"):
        values = getattr(of.nodes, name).copy()
        values[..., 7] = np.nan
        broken.append(of.nodes._replace(**{name: values}))
    portfolios = [of.desk.portfolio] * 5
    found = transfers(portfolios, [broken[0], of.nodes, broken[1], None, broken[2]], of.law, devices=1)
    assert [one is None for one in found] == [True, False, True, True, True]
    assert found[1] is not None
    np.testing.assert_array_equal(found[1].figures.constrained, of.found.figures.constrained)


def test_a_file_without_venues_leaves_every_node_alone() -> None:
    of = transfer_desk("path")
    law = run_law("path", Routes(deadline=ROUTES.deadline))
    (found,) = transfers([of.desk.portfolio], [of.nodes], law, devices=1)
    assert found is not None
    assert found.method == "no_routes"
    np.testing.assert_allclose(found.figures.constrained, found.figures.siloed, rtol=EXACT)
    columns = transfer_columns(of.desk.evaluated, found, of.desk.policy)
    assert columns["binding_failure"] is None
    assert columns["offset_share"] == 0.0
    assert columns["requirement_effective_usd"] == pytest.approx(float(of.desk.unified.silo[0]), rel=EXACT)
    rows = route_rows(of.desk.portfolio, detail_of(found, law), law)
    assert [row["kind"] for row in rows] == ["all"]
    assert rows[0]["without_increase_usd"] == pytest.approx(0.0, abs=EXACT * float(found.figures.siloed[0]))


# ---- result columns and rows -----------------------------------------------------------------------------------------


def detail_of(found: object = None, law: object = None) -> TransferDetail:
    of = transfer_desk("path")
    return transfer_detail(of.desk.evaluated, found or of.found, of.nodes, law or of.law, of.rules)  # type: ignore[arg-type]


@pytest.mark.parametrize(("cap", "share"), [(0.8, 0.3), (0.8, 0.95), (0.1, 0.3), (1.0, 1.0)])
def test_the_requirement_keeps_the_smaller_of_the_cap_and_the_fungibility(cap: float, share: float) -> None:
    of = transfer_desk("path")
    figures = of.found.figures._replace(fungibility=jnp.array([share, share / 2]))
    policy = Requirement(offset_cap=cap)
    columns = transfer_columns(of.desk.evaluated, of.found._replace(figures=figures), policy)
    ideal = np.asarray(of.desk.unified.components.requirement)[-1].astype(float)
    silo = np.asarray(of.desk.unified.silo).astype(float)
    assert (ideal < silo).all()
    expected = silo - np.minimum(cap, [share, share / 2]) * (silo - ideal)
    assert columns["requirement_effective_usd"] == pytest.approx(expected[0], rel=EXACT)
    assert columns["offset_share"] == min(cap, share)
    assert columns["usable_saving"] == pytest.approx(min(cap, share), rel=1e-6)
    assert columns["offset_benefit_usd"] == pytest.approx(silo[0] - expected[0], rel=1e-6)
    assert columns["margin_efficiency"] == pytest.approx(expected[0] / silo[0], rel=EXACT)
    initial = max(policy.initial_scale * expected[0], expected[1])
    assert columns["requirement_initial_usd"] == pytest.approx(initial, rel=EXACT)
    equity = math.fsum(of.desk.portfolio.line_equity)
    assert columns["health_unified"] == pytest.approx(equity / expected[0], rel=1e-6)


def test_without_a_model_or_a_requirement_there_are_no_columns() -> None:
    of = transfer_desk("path")
    assert transfer_columns(of.desk.evaluated, None, of.desk.policy) == {}
    assert transfer_columns(Evaluated(of.desk.portfolio, None), of.found, of.desk.policy) == {}
    bare = of.desk.headline._replace(unified=None)
    assert transfer_columns(Evaluated(of.desk.portfolio, bare), of.found, of.desk.policy) == {}


def test_the_failure_that_binds_is_the_one_that_costs_most() -> None:
    of = transfer_desk("path")
    figures = of.found.figures
    columns = transfer_columns(of.desk.evaluated, of.found, of.desk.policy)
    worst = int(np.argmax(figures.without_channel))
    # Every route leads over the one chain.
    assert columns["binding_failure"] == "ethereum" == of.found.channels[worst]
    rise = figures.without_channel[worst] - figures.constrained[0]
    assert columns["binding_failure_usd"] == pytest.approx(rise, rel=EXACT)
    assert rise > 0.01 * figures.constrained[0]
    assert figures.without_channel[1] == pytest.approx(figures.constrained[0], rel=SOLVED)


def test_a_failure_that_costs_nothing_does_not_bind() -> None:
    """The solver's own last digits are no failure."""
    of = transfer_desk("path")
    same = of.found.figures.constrained[0] * (1.0 + 1e-8)
    figures = of.found.figures._replace(without_channel=jnp.full(len(of.law.channels), same))
    columns = transfer_columns(of.desk.evaluated, of.found._replace(figures=figures), of.desk.policy)
    assert columns["binding_failure"] is None
    assert columns["binding_failure_usd"] is None


def test_figures_without_a_deficit_are_left_empty() -> None:
    of = transfer_desk("path")
    rich = of.nodes._replace(
        surplus=jnp.full_like(of.nodes.surplus, 1e6),
        withdrawable=jnp.full_like(of.nodes.withdrawable, 1e5),
        passage=jnp.full_like(of.nodes.passage, NEVER),
    )
    (found,) = transfers([of.desk.portfolio], [rich], of.law, devices=1)
    assert found is not None
    columns = transfer_columns(of.desk.evaluated, found, of.desk.policy)
    assert columns["p_uncovered"] == 0.0
    assert columns["uncovered_mean_usd"] is None
    assert columns["stranded_usd"] is None
    assert columns["uncovered_transit_usd"] == 0.0
    assert columns["top_up_usd"] == pytest.approx(0.0, abs=1e-6)


def test_points_and_routes_have_a_row_each_and_failures_behind_them() -> None:
    of = transfer_desk("path")
    detail = detail_of()
    network, figures = of.found.network, of.found.figures
    points = route_point_rows(of.desk.portfolio, detail)
    assert [row["point"] for row in points] == list(network.points)
    assert math.fsum(row["top_up_usd"] for row in points) == pytest.approx(float(figures.top_up.sum()), rel=EXACT)
    assert math.fsum(row["es_99_alone_usd"] for row in points) == pytest.approx(float(figures.siloed[0]), rel=EXACT)
    assert {row["venue"] for row in points} == {venue for _, venue in of.desk.portfolio.nodes}
    assert math.fsum(row["equity_usd"] for row in points) == pytest.approx(math.fsum(of.desk.portfolio.line_equity))
    rows = route_rows(of.desk.portfolio, detail, of.law)
    routes = [row for row in rows if row["kind"] == "route"]
    assert len(routes) == len(network.routes) == 10
    for row, route in zip(routes, network.routes, strict=True):
        assert (row["source"], row["target"]) == (network.points[route.source], network.points[route.target])
        assert json.loads(row["through"]) == list(route.through)
        assert row["capacity_usd"] is None
        assert 0.0 < row["p_open"] < 1.0
    # Channels that no route leads through have no row.
    assert [row["name"] for row in rows if row["kind"] == "channel"] == [
        name for name in of.law.channels if name != "unused"
    ]
    (everything,) = [row for row in rows if row["kind"] == "all"]
    assert everything["without_usd"] == float(figures.siloed[0])
    assert everything["p_open"] is None
    for row in rows:
        if row["kind"] != "route":
            assert 0.0 <= row["without_increase_usd"] <= everything["without_increase_usd"]


def test_weights_of_the_law_sum_to_one() -> None:
    for mode in ("path", "fixed"):
        weights = transfer_desk(mode).law.market.weights
        assert float(jnp.sum(weights)) == pytest.approx(1.0, rel=EXACT)
    assert HORIZON_DAYS == 1.0


def test_the_solver_looks_at_a_share_of_the_scenarios_that_grows_with_them() -> None:
    assert [scenarios_looked_at(count) for count in (512, 51_200, 51_456, 102_400)] == [4096, 4096, 4352, 8192]
    assert run_law("path").market.scenarios_used == scenarios_looked_at(512)
