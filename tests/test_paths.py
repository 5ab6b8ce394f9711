"""Paths of several steps: first passages and funding against a plain twin, and what must hold between steps."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from aggregator.config import load_configuration
from aggregator.cube import CubeRows
from aggregator.evidence import Evidence
from aggregator.factors import build_generator, build_path_generator
from aggregator.node_scenarios import NodeRules
from aggregator.path_margin import FundedLeg, PathFigures, PathLaw, funded_legs, path_figures
from aggregator.path_results import passage_probability, path_account_columns, path_portfolio_columns
from aggregator.policy import Requirement, VenuePolicy
from aggregator.portfolio import PackedPortfolio
from aggregator.results import Evaluated
from aggregator.reverse_stress import nearest_moves, weighted_covariance
from aggregator.scenarios import draw_all, draw_paths, stream_number
from tests import margin_twin
from tests.engine_accounts import AccountBook, desk_book
from tests.engine_book import FACTORS, desk, generator_of, packed, snapshot_of
from tests.engine_markets import AS_OF, mark, merged, rows
from tests.quickstart_book import QUICKSTART, quickstart_book

ROOT = Path(__file__).resolve().parent.parent

BAND = 1e-4  # contract: verdicts may differ within 1e-4 of the requirement
FUNDING_RTOL = 1e-9  # float64, a few hundred terms; exp on both sides
MASS = 1e-12  # sums of 300 weights

SEED, STEPS, STEP_DAYS, SCENARIOS = 9, 4, 0.25, 300  # two tiles, the second padded
PORTFOLIOS = ("n2", "u1", "u3")
RATES = {"perps": 4e-4, "multi": -2e-4, "coin": 3e-4}
POLICY = Requirement(other_venues=VenuePolicy(funding_hours=8.0), venues={"perps": VenuePolicy(funding_hours=1.0)})
HOURS = {"perps": 1.0, "multi": 8.0, "coin": 8.0}


class Walked(NamedTuple):
    """The desk along its paths: figures with the funding above and without any."""

    tables: dict[str, list[dict[str, object]]]
    portfolios: tuple[PackedPortfolio, ...]
    rows: CubeRows
    law: PathLaw
    funding: list[list[FundedLeg]]
    figures: list[PathFigures]
    unfunded: list[PathFigures]

    def of(self, portfolio_id: str) -> tuple[PackedPortfolio, PathFigures]:
        place = [p.portfolio_id for p in self.portfolios].index(portfolio_id)
        return self.portfolios[place], self.figures[place]


@functools.cache
def walked() -> Walked:
    book = desk_book(seed=2)
    perpetuals = [r for r in book.tables["instruments"] if r["kind"] == "perp" and r["venue"] in RATES]
    rates = [mark(r["venue"], r["instrument_id"], "funding_rate", RATES[r["venue"]]) for r in perpetuals]
    tables = merged(book.tables, rows(marks=rates))
    packed_book = packed(AccountBook(tables, book.portfolios))
    portfolios = tuple(p for p in packed_book.portfolios if p.portfolio_id in PORTFOLIOS)
    cube = packed_book.cube.build(FACTORS)
    law = PathLaw(generator_of(FACTORS, scale=math.sqrt(STEP_DAYS)), SEED, SCENARIOS, STEPS, STEP_DAYS)
    evidence = Evidence({"main": snapshot_of(tables)}, (), AS_OF)

    def legs(portfolio: PackedPortfolio) -> list[FundedLeg]:
        units = {a.account_id: evidence.market(a.account_id).exponents(a.unit) for a in portfolio.accounts}
        return funded_legs(portfolio, cube, FACTORS, POLICY, units)

    funding = [legs(p) for p in portfolios]
    unfunded: list[list[FundedLeg]] = [[] for _ in portfolios]
    both = [
        [found for found in path_figures(portfolios, FACTORS, cube, law, of) if found] for of in (funding, unfunded)
    ]
    assert all(len(found) == len(portfolios) for found in both)
    return Walked(tables, portfolios, cube, law, funding, *both)


@functools.cache
def moves() -> np.ndarray:
    """Log moves since today [scenarios, steps, factors]."""
    key = jax.random.fold_in(jax.random.key(SEED), stream_number("paths"))
    drawn = draw_paths(walked().law.generator, key, 0, 512, steps=STEPS)
    return np.cumsum(np.asarray(drawn)[:SCENARIOS], axis=1)


class Twin(NamedTuple):
    """One account along every path: first passages [scenarios] (steps + 1: never), whether some verdict is doubtful,
    verdicts after the last step, and funding paid until liquidation in the account's unit.
    """

    first: np.ndarray
    doubtful: np.ndarray
    last: np.ndarray
    paid: np.ndarray


@functools.cache
def worlds() -> list[margin_twin.World]:
    checked = snapshot_of(walked().tables).tables
    return [
        margin_twin.World(checked, FACTORS, moves()[:, step], as_of=AS_OF, horizon_days=STEP_DAYS * (step + 1))
        for step in range(STEPS)
    ]


def due(world: margin_twin.World, account_id: str) -> np.ndarray:
    """Funding of one step, from the positions: notional at the moved mark times the rate, in the account's unit."""
    (account,) = world.of("accounts", account_id=account_id)
    total = np.zeros(SCENARIOS)
    for row in world.of("positions", account_id=account_id):
        instrument = world.instruments[row["instrument_id"]]
        rate = world.mark(account, row["instrument_id"], "funding_rate")
        if rate is None or instrument["kind"] != "perp":
            continue
        size = float(row["quantity"]) * float(instrument["contract_size"])
        today = world.mark(account, row["instrument_id"], "mark")
        assert today is not None
        price = today["value"] * np.exp(world.log_move(instrument["underlying"]))
        coins = size * price if instrument["payoff"] == "linear" else size / price
        usd = coins * world.price(account, instrument["settlement_asset"])
        notional = (usd / world.price(account, account["settlement_asset"]))[1:]
        total += notional * rate["value"] * STEP_DAYS * 24.0 / HOURS[account["venue"]]
    return total


@functools.cache
def twin(account_id: str) -> Twin:
    first = np.full(SCENARIOS, STEPS + 1)
    paid, doubtful = np.zeros(SCENARIOS), np.zeros(SCENARIOS, bool)
    for step, world in enumerate(worlds()):
        account = margin_twin.account_twin(world, account_id)
        trigger = trigger_of(account_id)
        if step == 0 and account.equity[0] < trigger * account.maintenance[0]:
            first[:] = 0
        alive = first > STEPS
        paid += np.where(alive, due(world, account_id), 0.0)
        needed = account.maintenance[1:]
        distance = account.distance - paid
        at_or_below = verdict_of(account_id)
        gone = np.where(needed > 0, (distance < 0) | (at_or_below & (distance == 0)), account.equity[1:] - paid < 0)
        doubtful |= alive & (np.abs(distance) <= BAND * trigger * needed)
        first = np.where(alive & gone, step + 1, first)
    return Twin(first, doubtful, gone, paid)


def trigger_of(account_id: str) -> float:
    return next(a.trigger for p in walked().portfolios for a in p.accounts if a.account_id == account_id)


def verdict_of(account_id: str) -> bool:
    return next(a.at_or_below for p in walked().portfolios for a in p.accounts if a.account_id == account_id)


ACCOUNTS = [(p, n) for p in PORTFOLIOS for n in range(len(desk_book(seed=2).portfolios[p]))]


@pytest.mark.parametrize(("portfolio_id", "number"), ACCOUNTS)
def test_first_passages_are_the_twins(portfolio_id: str, number: int) -> None:
    portfolio, figures = walked().of(portfolio_id)
    found = twin(portfolio.accounts[number].account_id)
    slack = found.doubtful.mean() + MASS
    expected = [(found.first == step).mean() for step in range(STEPS + 1)]
    np.testing.assert_allclose(figures.passage[number], expected, rtol=0.0, atol=slack)
    assert figures.last[number] == pytest.approx(found.last.mean(), abs=slack)
    assert slack < 0.02, "the band hides what is compared"


@pytest.mark.parametrize(("portfolio_id", "number"), ACCOUNTS)
def test_funding_is_the_twins(portfolio_id: str, number: int) -> None:
    portfolio, figures = walked().of(portfolio_id)
    found = twin(portfolio.accounts[number].account_id)
    doubt = float(np.abs(found.paid[found.doubtful]).sum()) / SCENARIOS
    assert figures.funding_paid[number] == pytest.approx(
        found.paid.mean(), rel=FUNDING_RTOL, abs=doubt + FUNDING_RTOL * float(np.abs(found.paid).mean())
    )


def test_the_desk_is_worth_the_comparison() -> None:
    """Some accounts are liquidated along the way, some recover, some pay and some receive."""
    figures = walked().figures
    assert any((f.passage[:, 1:].sum(axis=1) > f.last + 1e-3).any() for f in figures)
    assert any((f.passage[:, 1] > 0).any() for f in figures)
    paid = np.concatenate([f.funding_paid for f in figures])
    assert (paid > 0).any()
    assert (paid < 0).any()
    assert len({leg.per_hour > 0 for legs in walked().funding for leg in legs}) == 2


@pytest.mark.parametrize("portfolio_id", PORTFOLIOS)
def test_a_path_liquidates_no_less_than_its_end(portfolio_id: str) -> None:
    portfolio, figures = walked().of(portfolio_id)
    assert (figures.passage.sum(axis=1) >= figures.last - MASS).all()
    anyone = passage_probability(figures.passage_any)
    single = [passage_probability(figures.passage[n]) for n in range(len(portfolio.accounts))]
    assert max(single) - MASS <= anyone <= min(sum(single), 1.0) + MASS
    # The first of all is never later than any of them.
    by_then = np.cumsum(figures.passage, axis=1)
    assert (np.cumsum(figures.passage_any)[None, :] >= by_then - MASS).all()


def test_the_first_of_all_is_the_twins() -> None:
    for portfolio_id in PORTFOLIOS:
        portfolio, figures = walked().of(portfolio_id)
        twins = [twin(info.account_id) for info in portfolio.accounts]
        first = np.min([found.first for found in twins], axis=0)
        slack = float(np.any([found.doubtful for found in twins], axis=0).mean()) + MASS
        np.testing.assert_allclose(
            figures.passage_any, [(first == k).mean() for k in range(STEPS + 1)], rtol=0.0, atol=slack
        )


def test_funding_that_is_owed_comes_before_the_verdict() -> None:
    """At a rate that eats the equity of a long in the first step every path ends there; at none, few do."""
    of, place = walked(), PORTFOLIOS.index("n2")
    portfolio = of.portfolios[place]
    number = next(n for n, a in enumerate(portfolio.accounts) if a.account_id.startswith("perps:thin"))
    ruinous: list[list[FundedLeg]] = [[] for _ in of.portfolios]
    ruinous[place] = [FundedLeg(number, 1e9, {})]
    found = path_figures(of.portfolios, FACTORS, of.rows, of.law, ruinous)[place]
    assert found is not None
    assert found.passage[number, 1] == 1.0
    assert found.funding_paid[number] == pytest.approx(1e9 * STEP_DAYS * 24.0, rel=1e-12)
    assert of.unfunded[place].passage[number, 1] < 0.5
    others = [n for n in range(len(portfolio.accounts)) if n != number]
    np.testing.assert_array_equal(found.passage[others], of.unfunded[place].passage[others])


def test_the_same_bits_alone_in_another_order_and_with_more_paths_before_them() -> None:
    of = walked()
    for place, portfolio in enumerate(of.portfolios):
        (alone,) = path_figures([portfolio], FACTORS, of.rows, of.law, [of.funding[place]])
        assert alone is not None
        for name, values in alone._asdict().items():
            np.testing.assert_array_equal(values, getattr(of.figures[place], name), err_msg=name)
    backwards = path_figures(of.portfolios[::-1], FACTORS, of.rows, of.law, of.funding[::-1])
    for found, expected in zip(backwards[::-1], of.figures, strict=True):
        assert found is not None
        np.testing.assert_array_equal(found.passage, expected.passage)
        np.testing.assert_array_equal(found.funding_paid, expected.funding_paid)


def test_an_account_that_is_liquidatable_today_is_gone_at_once() -> None:
    place = PORTFOLIOS.index("n2")
    portfolio = walked().portfolios[place]
    number = next(n for n, a in enumerate(portfolio.accounts) if a.account_id.startswith("perps:thin"))
    infos = list(portfolio.accounts)
    infos[number] = infos[number]._replace(trigger=1e6)
    broke = PackedPortfolio(**(portfolio.__dict__ | {"accounts": infos}))
    found = path_figures([broke], FACTORS, walked().rows, walked().law, [walked().funding[place]])[0]
    assert found is not None
    assert found.passage[number, 0] == 1.0
    assert found.funding_paid[number] == 0.0
    assert found.passage_any[0] == 1.0


def test_weights_are_in_every_figure() -> None:
    """With all the weight on the first scenario every probability is 0 or 1."""
    of = walked()
    one = of.law._replace(scenarios=1)
    for figures, portfolio in zip(
        path_figures(of.portfolios, FACTORS, of.rows, one, of.funding), PORTFOLIOS, strict=True
    ):
        assert figures is not None
        assert set(np.unique(figures.passage)) <= {0.0, 1.0}, portfolio
        paid = [twin(info.account_id).paid[0] for info in of.of(portfolio)[0].accounts]
        np.testing.assert_allclose(figures.funding_paid, paid, rtol=FUNDING_RTOL, atol=1e-9)


# ---- result columns --------------------------------------------------------------------------------------------------


def figures_of(passage: list[float], accounts: int) -> PathFigures:
    row = np.array(passage)
    return PathFigures(
        passage=np.tile(row, (accounts, 1)),
        passage_any=row,
        last=np.zeros(accounts),
        funding_paid=np.full(accounts, 2.5),
        account_is_finite=np.ones(accounts, bool),
        step_hours=6.0,
    )


def evaluated_n2() -> Evaluated:
    return desk().evaluated("n2")


@pytest.mark.parametrize(
    ("passage", "probability", "mean", "early", "median"),
    [
        ([0.0, 0.01, 0.03, 0.0, 0.06], 0.10, (6 * 0.1 + 12 * 0.3 + 24 * 0.6), 6.0, 24.0),
        ([0.0, 0.05, 0.05, 0.0, 0.0], 0.10, 9.0, 6.0, 6.0),
        ([1.0, 0.0, 0.0, 0.0, 0.0], 1.0, 0.0, 0.0, 0.0),
        ([0.0, 0.0, 0.0, 0.0, 0.2], 0.2, 24.0, 24.0, 24.0),
    ],
)
def test_hours_to_liquidation(
    passage: list[float], probability: float, mean: float, early: float, median: float
) -> None:
    evaluated = evaluated_n2()
    columns = path_portfolio_columns(evaluated, figures_of(passage, len(evaluated.portfolio.accounts)))
    assert columns["p_liquidation_path"] == pytest.approx(probability, rel=1e-12)
    assert columns["hours_to_liquidation"] == pytest.approx(mean, rel=1e-12)
    assert columns["hours_to_liquidation_10"] == early
    assert columns["hours_to_liquidation_50"] == median


def test_without_liquidation_there_is_no_time_to_it_and_without_a_rate_no_funding() -> None:
    evaluated = evaluated_n2()
    count = len(evaluated.portfolio.accounts)
    for columns in path_account_columns(evaluated, figures_of([0.0] * 5, count)):
        assert columns["p_liquidation_path"] == 0.0
        assert "hours_to_liquidation" not in columns
        assert columns["funding_paid_path"] is None  # no perpetual of this desk states a rate
    assert path_portfolio_columns(evaluated, figures_of([0.0] * 5, count))["funding_paid_path_usd"] is None
    portfolio, figures = walked().of("n2")
    stated = [c["funding_paid_path"] for c in path_account_columns(Evaluated(portfolio, evaluated.headline), figures)]
    assert any(value is not None for value in stated)


def test_figures_that_are_not_finite_are_left_out() -> None:
    evaluated = evaluated_n2()
    count = len(evaluated.portfolio.accounts)
    figures = figures_of([0.0, 0.5, 0.0, 0.0, 0.0], count)
    wild = figures._replace(account_is_finite=np.arange(count) != 1)
    columns = path_account_columns(evaluated, wild)
    assert columns[1] == {}
    assert columns[0]["p_liquidation_path"] == 0.5
    assert path_portfolio_columns(evaluated, wild) == {}
    assert path_portfolio_columns(evaluated, None) == {}
    assert path_account_columns(evaluated, None) == [{}] * count


# ---- the law of a run ------------------------------------------------------------------------------------------------


def test_the_law_of_a_run_is_built_for_one_step() -> None:
    """The quickstart's law over a twelfth of a day: variances add up to the day's, and no point set is left."""
    overrides = ["paths.scenarios=256", "paths.steps=12", "scenarios.overlays=[]"]
    resolved = load_configuration(QUICKSTART, overrides=overrides)
    book = quickstart_book()
    as_of = datetime(2024, 6, 30, tzinfo=UTC)
    of_run = build_generator(resolved, book.factors(), as_of)
    of_step = build_path_generator(resolved, of_run.factors, as_of)
    assert of_step.factors == of_run.factors
    assert of_step.scenarios == 256
    assert of_step.generator.own_weights is None
    key = jax.random.key(1)
    steps = np.asarray(draw_paths(of_step.generator, key, 0, 20_480, steps=2))
    days = draw_all(of_run.generator, key, of_run.scenarios)
    weights = np.asarray(days.weights)[:, None]
    # Interquartile ranges, because the variance of a law with tails this heavy is no steady figure of a sample.
    ratio = iqr(steps.reshape(-1, steps.shape[2]), np.full((2 * 20_480, 1), 1.0)) / iqr(
        np.asarray(days.shocks), weights
    )
    np.testing.assert_allclose(ratio, math.sqrt(1 / 12), rtol=0.06)


def iqr(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Interquartile range of each column."""
    out = []
    for column in values.T:
        order = np.argsort(column)
        share = np.cumsum(weights[order, 0]) / weights.sum()
        low, high = np.interp([0.25, 0.75], share, column[order])
        out.append(high - low)
    return np.array(out)


# ---- devices ---------------------------------------------------------------------------------------------------------

_ON_DEVICES = """
import sys
import jax
from aggregator.compiler_flags import set_compiler_flags

file, cache = sys.argv[1:]
set_compiler_flags()
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)
if cache:
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

import numpy as np
from tests.test_paths import two_portfolios_on

np.savez(file, **two_portfolios_on(2))
"""


def two_portfolios_on(devices: int) -> dict[str, np.ndarray]:
    """Figures along the paths, and nearest liquidating moves, of a portfolio computed twice on that many devices."""
    of = desk()
    pair = [of.portfolio("n2"), of.portfolio("n1")]
    law = PathLaw(generator_of(FACTORS, scale=math.sqrt(STEP_DAYS)), SEED, SCENARIOS, STEPS, STEP_DAYS)
    legs = [[FundedLeg(1, 12.5, {"price:ETH": 1.0})], []]
    covariance = weighted_covariance(np.asarray(of.cube.shocks), np.asarray(of.cube.weights))
    nearest = nearest_moves(pair, FACTORS, of.cube, covariance, devices=devices)
    out = {"distance": np.array([move.distance or math.inf for of_one in nearest for move in of_one])}
    ids = [info.account_id for portfolio in pair for info in portfolio.accounts]
    units = {account_id: {"price:ETH": 1.0} for account_id in ids}
    rules = NodeRules(units, dict.fromkeys(ids, (1.2, 1.0)), 1.2, {})
    walked = path_figures(pair, FACTORS, of.cube.rows, law, legs, devices=devices, nodes=rules)
    for number, found in enumerate(walked):
        assert found is not None
        assert found.nodes is not None
        figures = found._replace(nodes=None)._asdict() | found.nodes._asdict()
        out |= {f"{name} {number}": np.asarray(values) for name, values in figures.items() if values is not None}
    return out


@pytest.mark.slow
@pytest.mark.long
def test_on_two_devices_in_another_process(tmp_path: Path) -> None:
    cache = jax.config.jax_compilation_cache_dir or ""  # type: ignore[attr-defined]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)  # a flag that sets the number of devices would win over the option
    file = tmp_path / "figures.npz"
    command = [sys.executable, "-c", _ON_DEVICES, str(file), cache]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = two_portfolios_on(1)
    with np.load(file) as figures:
        assert sorted(figures) == sorted(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(figures[name], values, err_msg=name)
