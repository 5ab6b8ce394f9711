"""Figures of portfolios: risk measures against the twin, what must hold between them, and how often it is compiled."""

from __future__ import annotations

import functools
from typing import NamedTuple

import equinox as eqx
import numpy as np
import pytest

from aggregator.batch import PortfolioArrays, bucketed
from aggregator.engine import CONFIDENCES, HISTOGRAM_BINS, Cube, evaluate_details, evaluate_headlines, map_bucket
from aggregator.portfolio import PackedPortfolio
from tests import margin_twin
from tests.engine_accounts import EVERY_KIND, VARIANTS
from tests.engine_book import FACTORS, SCENARIOS, WORST, desk, snapshot_of
from tests.engine_markets import AS_OF

pytestmark = pytest.mark.slow

# One leg in a scenario is rounded to float32 three times (coefficient, change, product); adding it to its line, its
# node and the portfolio rounds partial sums that are no larger than the sum of all legs' sizes, once per addition. So
# no loss of a portfolio of n legs is off by more than (n + 3) 2^-24 of the legs' sizes, and a VaR or ES, which moves by
# no more than the largest error of a loss, neither.
UNIT_ROUNDOFF = 2.0**-24
BAND = 1e-4  # contract: verdicts may differ within 1e-4 of the requirement
FLOAT64_RTOL = 1e-12  # sums of a thousand float64 terms

PORTFOLIOS = (*EVERY_KIND, *(name for name in VARIANTS if name != "bad"))


class Losses(NamedTuple):
    """The twin's losses of one portfolio in every scenario, USD, and the bound of what float32 may change."""

    lines: np.ndarray
    nodes: np.ndarray
    pooled: np.ndarray
    rounding: np.ndarray
    accounts: list[margin_twin.Account]


@functools.cache
def world() -> margin_twin.World:
    shocks = np.asarray(desk().cube.shocks)[:SCENARIOS]
    return margin_twin.World(snapshot_of(desk().tables).tables, FACTORS, shocks, as_of=AS_OF, horizon_days=1.0)


@functools.cache
def losses_of(portfolio_id: str) -> Losses:
    portfolio = desk().portfolio(portfolio_id)
    accounts = [margin_twin.account_twin(world(), info.account_id) for info in portfolio.accounts]
    values = {key: value for account in accounts for key, value in account.line_values.items()}
    lines = np.array([values[line.key][0] - values[line.key][1:] for line in portfolio.lines])
    nodes = np.zeros((len(portfolio.nodes), SCENARIOS))
    for number, line in enumerate(portfolio.lines):
        nodes[[node for node, _ in portfolio.nodes].index(line.node)] += lines[number]
    return Losses(lines, nodes, lines.sum(axis=0), roundings(portfolio), accounts)


def roundings(portfolio: PackedPortfolio) -> np.ndarray:
    """Bound of the float32 error of the portfolio's loss in each scenario, USD."""
    change = np.asarray(desk().cube.change, np.float64)[:, :SCENARIOS]
    size = np.zeros(SCENARIOS)
    for _, row, coefficient in portfolio.legs:
        size += np.abs(coefficient * change[row])
    return (len(portfolio.legs) + 3) * UNIT_ROUNDOFF * size


def weights() -> np.ndarray:
    return np.asarray(desk().cube.weights)[:SCENARIOS]


@pytest.mark.parametrize("portfolio_id", PORTFOLIOS)
def test_value_at_risk_and_expected_shortfall(portfolio_id: str) -> None:
    of, got = losses_of(portfolio_id), desk().headline(portfolio_id)
    bound = of.rounding.max()
    for level, confidence in enumerate(CONFIDENCES):
        for name, rows, var, es in (
            ("line", of.lines, got.line_var, got.line_es),
            ("node", of.nodes, got.node_var, got.node_es),
            ("pooled", of.pooled[None], got.pooled_var[None], got.pooled_es[None]),
        ):
            for number, losses in enumerate(rows):
                where = f"{name} {number} at {confidence}"
                expected = margin_twin.value_at_risk(losses, weights(), confidence)
                assert var[number, level] == pytest.approx(expected, abs=bound), where
                expected = margin_twin.expected_shortfall(losses, weights(), confidence)
                assert es[number, level] == pytest.approx(expected, abs=bound), where
    assert float(got.mean_loss) == pytest.approx(float(weights() @ of.pooled), abs=bound)
    assert float(got.worst_loss) == pytest.approx(of.pooled.max(), abs=bound)


@pytest.mark.parametrize("portfolio_id", PORTFOLIOS)
def test_liquidation_probabilities(portfolio_id: str) -> None:
    got, portfolio, of = desk().headline(portfolio_id), desk().portfolio(portfolio_id), losses_of(portfolio_id)
    anyone, doubtful = np.zeros(SCENARIOS, bool), np.zeros(SCENARIOS, bool)
    for place, (info, account) in enumerate(zip(portfolio.accounts, of.accounts, strict=True)):
        near = np.abs(account.distance) <= BAND * info.trigger * account.maintenance[1:]
        expected = weights() @ account.liquidated
        assert got.p_liquidation[place] == pytest.approx(expected, abs=float(weights() @ near) + FLOAT64_RTOL), (
            info.account_id
        )
        anyone |= account.liquidated
        doubtful |= near
    slack = float(weights() @ doubtful) + FLOAT64_RTOL
    assert float(got.p_any) == pytest.approx(weights() @ anyone, abs=slack)
    assert (doubtful & ~anyone).mean() < 0.01, "the band hides what is compared"


def test_a_certain_liquidation_has_probability_one() -> None:
    certain = [
        float(desk().headline(name).p_liquidation[place])
        for name in PORTFOLIOS
        for place, account in enumerate(losses_of(name).accounts)
        if account.liquidated.all()
    ]
    assert certain
    assert set(certain) == {1.0}


@pytest.mark.parametrize("portfolio_id", PORTFOLIOS)
def test_pooling_needs_no_more_than_silos_and_silos_no_more_than_positions_alone(portfolio_id: str) -> None:
    portfolio, got = desk().portfolio(portfolio_id), desk().headline(portfolio_id)
    noise = 2 * losses_of(portfolio_id).rounding.max()
    silo = got.node_es[: len(portfolio.nodes)].sum(axis=0)
    isolated = got.line_es[: len(portfolio.lines)].sum(axis=0)
    assert np.all(got.pooled_es <= silo + noise)
    assert np.all(silo <= isolated + noise)
    assert np.all(got.pooled_var <= got.pooled_es)


@pytest.mark.parametrize("portfolio_id", PORTFOLIOS)
def test_contributions_of_lines_add_up_to_the_shortfall(portfolio_id: str) -> None:
    of, portfolio = losses_of(portfolio_id), desk().portfolio(portfolio_id)
    got, found = desk().headline(portfolio_id), desk().detail(portfolio_id)
    euler = found.line_euler[: len(portfolio.lines)]
    bound = of.rounding.max()
    np.testing.assert_allclose(euler.sum(axis=0), got.pooled_es, rtol=0.0, atol=bound)
    np.testing.assert_array_equal(found.line_euler[len(portfolio.lines) :], 0.0)
    for level, confidence in enumerate(CONFIDENCES):
        tail = margin_twin.tail_weights(of.pooled, weights(), confidence)
        np.testing.assert_allclose(euler[:, level], of.lines @ tail, rtol=0.0, atol=bound)


@pytest.mark.parametrize("portfolio_id", PORTFOLIOS)
def test_the_worst_scenarios_are_the_largest_losses(portfolio_id: str) -> None:
    of, portfolio, found = losses_of(portfolio_id), desk().portfolio(portfolio_id), desk().detail(portfolio_id)
    worst = np.argsort(-of.pooled, kind="stable")[:WORST]
    np.testing.assert_array_equal(found.worst_scenario, worst)
    bound = of.rounding[worst]
    assert np.all(np.abs(found.worst_loss - of.pooled[worst]) <= bound)
    by_line = found.worst_line_loss[:, : len(portfolio.lines)]
    assert np.all(np.abs(by_line - of.lines[:, worst].T) <= bound[:, None])
    for place, (info, account) in enumerate(zip(portfolio.accounts, of.accounts, strict=True)):
        clear = np.abs(account.distance[worst]) > BAND * info.trigger * account.maintenance[1:][worst]
        np.testing.assert_array_equal(found.worst_liquidated[:, place][clear], account.liquidated[worst][clear])


@pytest.mark.parametrize("portfolio_id", PORTFOLIOS)
def test_the_histogram_holds_every_scenario_once(portfolio_id: str) -> None:
    of, found = losses_of(portfolio_id), desk().detail(portfolio_id)
    edges, probability = found.histogram_edge, found.histogram_probability
    assert edges.shape == (HISTOGRAM_BINS + 1,)
    assert probability.sum() == pytest.approx(1.0, rel=FLOAT64_RTOL)
    bound = 2 * of.rounding.max()
    assert edges[0] == pytest.approx(of.pooled.min(), abs=bound)
    assert edges[-1] == pytest.approx(of.pooled.max(), abs=bound)
    for number, edge in enumerate(edges[1:-1], start=1):
        near = weights() @ (np.abs(of.pooled - edge) <= bound)
        assert probability[:number].sum() == pytest.approx(weights() @ (of.pooled < edge), abs=near + FLOAT64_RTOL)


def test_more_worst_scenarios_than_scenarios_are_all_of_them() -> None:
    # The padding of weight 0 is no scenario.
    assert desk().cube.weights.shape[0] > SCENARIOS
    (both,) = evaluate_details([desk().portfolio("n1")], FACTORS, desk().cube, devices=1, worst=10_000)
    assert both is not None
    assert sorted(both[1].worst_scenario) == list(range(SCENARIOS))
    assert np.all(np.diff(both[1].worst_loss) <= 0.0)


# ---- what must not matter, and what must matter alone ----------------------------------------------------------------


def _figures(portfolio_id: str) -> tuple[PackedPortfolio, dict[str, np.ndarray]]:
    portfolio, got = desk().portfolio(portfolio_id), desk().headline(portfolio_id)
    names = ("pooled_var", "pooled_es", "node_var", "node_es", "mean_loss", "worst_loss", "p_liquidation", "p_any")
    return portfolio, {name: np.asarray(getattr(got, name)) for name in names}


def test_a_position_of_quantity_zero_changes_no_bit() -> None:
    with_it, figures = _figures("zero")
    base, expected = _figures("base")
    assert len(with_it.lines) == len(base.lines) + 1
    for name, value in expected.items():
        np.testing.assert_array_equal(figures[name], value, name)
    for got, want in zip(desk().headline("zero").native, desk().headline("base").native, strict=True):
        np.testing.assert_array_equal(got, want)
    (place,) = (n for n, line in enumerate(with_it.lines) if line.key.endswith("ETH-TWIN"))
    np.testing.assert_array_equal(desk().headline("zero").line_es[place], 0.0)
    np.testing.assert_array_equal(desk().detail("zero").line_euler[place], 0.0)


def test_a_position_split_over_two_instruments_of_equal_terms_is_the_same_risk() -> None:
    split, base = desk().headline("split"), desk().headline("base")
    bound = 2 * losses_of("base").rounding.max()
    assert len(desk().portfolio("split").lines) == len(desk().portfolio("base").lines) + 1
    for name in ("pooled_var", "pooled_es", "node_var", "node_es", "mean_loss", "worst_loss"):
        np.testing.assert_allclose(getattr(split, name), getattr(base, name), rtol=0.0, atol=bound, err_msg=name)
    # Each part alone needs its share, so the positions alone need what the whole one needs.
    np.testing.assert_allclose(split.line_es.sum(axis=0), base.line_es.sum(axis=0), rtol=0.0, atol=bound)
    # Marginal tiers are per instrument: two smaller positions may need less maintenance, never more.
    assert np.all(split.native.maintenance <= base.native.maintenance * (1.0 + FLOAT64_RTOL))


def test_dollars_that_nothing_moves_shift_equity_alone() -> None:
    richer, figures = _figures("cash")
    base, expected = _figures("base")
    for name in ("pooled_var", "pooled_es", "node_var", "node_es", "mean_loss", "worst_loss"):
        np.testing.assert_array_equal(figures[name], expected[name], name)
    assert sum(richer.line_equity) - sum(base.line_equity) == pytest.approx(5000.0, rel=1e-9)
    place = [info.account_id for info in base.accounts].index("perps:cross:base:1")
    shift = desk().headline("cash").native.equity - desk().headline("base").native.equity
    # The account's unit is a stable at 1.0003 dollars.
    assert shift[place] == pytest.approx(5000.0 / 1.0003, rel=1e-9)
    assert np.count_nonzero(shift) == 1
    np.testing.assert_array_equal(
        desk().headline("cash").native.maintenance, desk().headline("base").native.maintenance
    )
    assert figures["p_liquidation"][place] < expected["p_liquidation"][place]


def test_twice_the_amounts_are_twice_the_risk() -> None:
    double, base = desk().headline("double"), desk().headline("base")
    # Doubling is exact in binary floating point, so no tolerance: prices are linear in amounts.
    for name in ("pooled_var", "pooled_es", "node_var", "node_es", "line_var", "line_es", "mean_loss", "worst_loss"):
        np.testing.assert_array_equal(getattr(double, name), 2.0 * getattr(base, name), name)
    np.testing.assert_array_equal(double.native.equity, 2.0 * base.native.equity)
    accounts = [info.account_id.partition(":")[0] for info in desk().portfolio("base").accounts]
    lend, perps = accounts.index("lend"), accounts.index("perps")
    # The lender's requirement is linear in its collateral, marginal tiers grow faster than the position.
    assert double.native.maintenance[lend] == 2.0 * base.native.maintenance[lend]
    assert double.native.maintenance[perps] > 2.0 * base.native.maintenance[perps]


def test_an_account_that_float32_cannot_hold_spoils_no_other() -> None:
    bad, base = desk().headline("bad"), desk().headline("base")
    accounts = [info.account_id for info in desk().portfolio("bad").accounts]
    wild = accounts.index("wallet:spot:bad:3")
    assert not bool(bad.finite)
    expected = [place != wild for place in range(len(accounts))]
    np.testing.assert_array_equal(bad.account_is_finite[: len(accounts)], expected)
    kept = [name for name in accounts if not name.startswith("wallet")]
    assert [name.replace(":bad:", ":base:") for name in kept] == [
        a.account_id for a in desk().portfolio("base").accounts
    ]
    for name, got in (*bad.native._asdict().items(), ("p_liquidation", bad.p_liquidation)):
        want = getattr(base.native, name, base.p_liquidation)
        np.testing.assert_array_equal(got[: len(kept)], want[: len(kept)], name)
    # Every other portfolio of the same bucket is as it should be.
    assert [p.portfolio_id for p, h in zip(desk().book.portfolios, desk().headlines, strict=True) if not h.finite] == [
        "bad"
    ]


# ---- compilation -----------------------------------------------------------------------------------------------------


def test_compilations_are_bounded_by_shapes() -> None:
    @functools.partial(eqx.debug.assert_max_traces, max_traces=2)
    def counted(portfolio: PortfolioArrays, cube: Cube) -> object:
        return portfolio.leg_coefficient.sum() + cube.weights[0]

    portfolios = desk().book.portfolios
    pairs = (
        [p for p in portfolios if p.portfolio_id.startswith("n")],
        [p for p in portfolios if p.portfolio_id[0] == "u"],
    )
    for repetition in range(3):
        for members in pairs:
            # Other portfolios and another order, but the same two shapes and lengths.
            turned = members[repetition:] + members[:repetition]
            for bucket in bucketed(turned, FACTORS):
                map_bucket(bucket.arrays, desk().cube, counted, 1, len(bucket.members))
    assert eqx.debug.get_num_traces(counted) == 2


def test_a_portfolio_without_complete_account_has_no_figures() -> None:
    empty = PackedPortfolio("nothing")
    assert evaluate_headlines([empty], FACTORS, desk().cube, devices=1) == [None]
