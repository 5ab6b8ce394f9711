"""Nodes in every scenario and along paths: losses, surplus, what may leave, warnings and first passages, by a twin."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.batch import bucketed
from aggregator.cube import CubeRows
from aggregator.engine import Cube
from aggregator.evidence import Evidence
from aggregator.node_scenarios import NEVER, NodeRules, NodeScenarios, node_rows, node_scenarios
from aggregator.path_margin import PathFigures, PathLaw, path_figures
from aggregator.portfolio import PackedPortfolio
from aggregator.scenarios import draw_paths, stream_number
from tests import margin_twin
from tests.engine_accounts import book_of
from tests.engine_book import FACTORS, cube_of, generator_of, packed, snapshot_of
from tests.engine_markets import AS_OF

SCENARIOS = 300  # two tiles, the second padded
STEPS, STEP_DAYS, SEED = 3, 0.25, 9
WARNING = 1.3
FLOAT32 = 2e-6  # of the values that were added up: rounded to float32 a few times on the way
BAND = 1e-4  # contract: verdicts may differ within 1e-4 of the requirement

MEMBERS = {
    "lent": ("lend:plain", "perps:cross", "multi:usd", "wallet:spot"),
    "thin": ("lend:emode", "perps:thin", "multi:usdt", "perps:isolated"),
    "coin": ("coin:margined", "perps:thin", "coin:contracts"),
}
OUT = {"perps": True, "coin": False}
"""Where unrealised profit leaves; the other venues are not in the table."""


class World(NamedTuple):
    """The book as the engine takes it."""

    tables: dict[str, Any]
    portfolios: tuple[PackedPortfolio, ...]
    cube: Cube
    rules: NodeRules

    @property
    def rows(self) -> CubeRows:
        """Rows of the cube."""
        return self.cube.rows


@functools.cache
def world() -> World:
    book = book_of(MEMBERS, seed=4)
    packed_book = packed(book)
    # Everybody of a portfolio's first two accounts on one node: figures of a node are sums over its accounts.
    portfolios = tuple(sorted(packed_book.portfolios, key=lambda p: list(MEMBERS).index(p.portfolio_id)))
    evidence = Evidence({"main": snapshot_of(book.tables)}, (), AS_OF)
    accounts = [a for p in portfolios for a in p.accounts]
    units = {a.account_id: evidence.market(a.account_id).exponents(a.unit) for a in accounts}
    still = margin_twin.World(
        snapshot_of(book.tables).tables, FACTORS, np.zeros((1, len(FACTORS))), as_of=AS_OF, horizon_days=0.0
    )
    needs = {}
    for account in accounts:
        found = margin_twin.account_twin(still, account.account_id)
        needs[account.account_id] = float(found.initial[0]), float(found.maintenance[0])
    cube = cube_of(packed_book, scenarios=SCENARIOS, chunk=512, scale=2.0)
    shares = {line.key: 0.25 for p in portfolios for line in p.lines if line.kind == "collateral"}
    kept = dict(sorted(shares.items())[::3])
    return World(book.tables, portfolios, cube, NodeRules(units, needs, WARNING, OUT, kept))


class Twin(NamedTuple):
    """One node [1 + S], today first; `scale` is the size of what was added up, `doubtful` verdicts within the band."""

    loss: np.ndarray
    surplus: np.ndarray
    withdrawable: np.ndarray
    gone: np.ndarray
    warned: np.ndarray
    scale: float
    doubtful: np.ndarray


def twins(shocks: np.ndarray, days: float, portfolio: PackedPortfolio) -> list[Twin]:
    """Every node of a portfolio at the moves [S, factors]."""
    of = world()
    there = margin_twin.World(snapshot_of(of.tables).tables, FACTORS, shocks, as_of=AS_OF, horizon_days=days)
    out = []
    for node, venue in portfolio.nodes:
        size = len(shocks) + 1
        sums = {name: np.zeros(size) for name in ("loss", "surplus", "free", "balance", "leaves")}
        restricted = False
        gone, warned, doubtful, scale = np.zeros(size, bool), np.zeros(size, bool), np.zeros(size, bool), 0.0
        for number, info in enumerate(portfolio.accounts):
            if (info.node, info.venue) != (node, venue):
                continue
            account = margin_twin.account_twin(there, info.account_id)
            unit = there.price(there.of("accounts", account_id=info.account_id)[0], info.unit)
            initial, today = of.rules.requirements[info.account_id]
            needed = np.maximum(account.maintenance, 0.0)
            ratio = initial / today if today > 0.0 else 1.0
            sums["surplus"] += (account.equity - info.trigger * needed) * unit
            sums["free"] += (account.equity - max(ratio, info.trigger) * needed) * unit
            for key, value in account.line_values.items():
                line = next(line for line in portfolio.lines if line.key == key)
                sums["loss"] += value[0] - value
                scale += float(np.abs(value).max())
                restricted |= key in of.rules.leaving_share
                if line.kind in ("collateral", "debt"):
                    sums["balance"] += value
                if line.kind == "collateral":
                    sums["leaves"] += of.rules.leaving_share.get(key, 1.0) * value
                elif line.kind != "debt" and OUT.get(venue, False):
                    sums["leaves"] += np.maximum(value, 0.0)
            judged = np.where(needed > 0.0, account.equity < info.trigger * needed, account.equity < 0.0)
            gone |= judged
            level = info.trigger * needed * WARNING
            if info.lender:
                level = needed + (WARNING - 1.0) * portfolio.debts[number]
            warned |= judged | ((needed > 0.0) & (account.equity < level))
            for edge in (info.trigger * needed, level):
                doubtful |= np.abs(account.equity - edge) <= BAND * np.maximum(needed, 1e-9)
            scale += float(np.abs(needed * unit).max()) * max(ratio, info.trigger)
        paid = sums["free"] if OUT.get(venue, False) else np.minimum(sums["free"], sums["balance"])
        paid = np.minimum(paid, sums["leaves"]) if restricted else paid
        out.append(Twin(sums["loss"], sums["surplus"], np.maximum(paid, 0.0), gone, warned, scale, doubtful))
    return out


@functools.cache
def at_horizon() -> list[NodeScenarios]:
    of = world()
    found = node_scenarios(of.portfolios, FACTORS, of.cube, of.rules)
    assert all(one is not None for one in found)
    return [one for one in found if one is not None]


def compare(found: NodeScenarios, expected: list[list[Twin]], *, path: bool) -> None:
    """A portfolio's figures against twins by step and node; along a path today counts as well."""
    first_warned = np.full(SCENARIOS, NEVER)
    in_doubt = np.zeros(SCENARIOS, bool)
    for node in range(len(expected[0])):
        steps = [of_step[node] for of_step in expected]
        scale = max(step.scale for step in steps)
        for number, step in enumerate(steps):
            np.testing.assert_allclose(
                found.losses[node, number, :SCENARIOS], step.loss[1:], rtol=0.0, atol=FLOAT32 * scale
            )
        before = [steps[0].surplus[:1].repeat(SCENARIOS)] if path else []
        surplus = np.min([*before, *(step.surplus[1:] for step in steps)], axis=0)
        np.testing.assert_allclose(found.surplus[node, :SCENARIOS], surplus, rtol=0.0, atol=FLOAT32 * scale)
        before = [steps[0].withdrawable[:1].repeat(SCENARIOS)] if path else []
        free = np.min([*before, *(step.withdrawable[1:] for step in steps)], axis=0)
        np.testing.assert_allclose(found.withdrawable[node, :SCENARIOS], free, rtol=0.0, atol=FLOAT32 * scale)
        passage, doubt = np.full(SCENARIOS, NEVER), np.zeros(SCENARIOS, bool)
        if path:
            passage[steps[0].gone[:1].repeat(SCENARIOS)] = 0
            first_warned[steps[0].warned[:1].repeat(SCENARIOS)] = 0
        for number, step in enumerate(steps):
            passage[(passage == NEVER) & step.gone[1:]] = number + 1
            first_warned = np.where(step.warned[1:], np.minimum(first_warned, number + 1), first_warned)
            doubt |= step.doubtful[1:]
        in_doubt |= doubt
        assert doubt.mean() < 0.02, "the band hides what is compared"
        np.testing.assert_array_equal(found.passage[node, :SCENARIOS][~doubt], passage[~doubt])
    np.testing.assert_array_equal(found.warned[:SCENARIOS][~in_doubt], first_warned[~in_doubt])


@pytest.mark.parametrize("place", range(len(MEMBERS)))
def test_nodes_at_the_horizon_are_the_twins(place: int) -> None:
    of = world()
    shocks = np.asarray(of.cube.shocks)[:SCENARIOS]
    compare(at_horizon()[place], [twins(shocks, 1.0, of.portfolios[place])], path=False)


def test_the_book_is_worth_the_comparison() -> None:
    found = at_horizon()
    real = slice(0, SCENARIOS)
    gone = np.concatenate([(one.passage[:, real] == 1).mean(axis=1) for one in found])
    assert ((gone > 0.02) & (gone < 0.98)).sum() >= 3
    assert any(0.05 < (one.warned[real] == 1).mean() < 0.95 for one in found)
    assert any(
        ((one.withdrawable[:, real] > 0.0) & (one.withdrawable[:, real] < one.surplus[:, real])).any() for one in found
    )
    assert any((one.surplus[:, real] < 0.0).any() for one in found)
    assert any(info.unit == "BTC" for portfolio in world().portfolios for info in portfolio.accounts)


def test_profit_that_leaves_can_only_be_more() -> None:
    """At venues of the table that let it out now, the same accounts let out less when it stays, nothing else moves."""
    of = world()
    kept = node_scenarios(of.portfolios, FACTORS, of.cube, of.rules._replace(profit_leaves={}))
    less = False
    for portfolio, free, held in zip(of.portfolios, at_horizon(), kept, strict=True):
        assert held is not None
        for node, (_, venue) in enumerate(portfolio.nodes):
            assert (held.withdrawable[node] <= free.withdrawable[node]).all()
            if OUT.get(venue, False):
                less |= bool((held.withdrawable[node] < free.withdrawable[node]).any())
            else:
                np.testing.assert_array_equal(held.withdrawable[node], free.withdrawable[node])
        for name in ("losses", "surplus", "passage", "warned"):
            np.testing.assert_array_equal(getattr(held, name), getattr(free, name))
    assert less


def test_a_higher_warning_comes_no_later_and_changes_nothing_else() -> None:
    of = world()
    early = node_scenarios(of.portfolios, FACTORS, of.cube, of.rules._replace(warning_health=2.0))
    more = 0
    for one, other in zip(at_horizon(), early, strict=True):
        assert other is not None
        assert (other.warned <= one.warned).all()
        more += int((other.warned < one.warned).sum())
        np.testing.assert_array_equal(one.passage, other.passage)
    assert more > 0


def test_a_lender_is_warned_at_its_own_health() -> None:
    """Weighted collateral over debt, not equity over requirement, which for a lender is another number."""
    of = world()
    portfolio = of.portfolios[0]
    number = next(n for n, info in enumerate(portfolio.accounts) if info.lender)
    info = portfolio.accounts[number]
    still = margin_twin.World(
        snapshot_of(of.tables).tables, FACTORS, np.zeros((1, len(FACTORS))), as_of=AS_OF, horizon_days=0.0
    )
    account = margin_twin.account_twin(still, info.account_id)
    assert account.health is not None
    for factor, warned in ((1.001, True), (0.999, False)):
        rules = of.rules._replace(warning_health=account.health * factor)
        (bucket,) = bucketed([portfolio], FACTORS, multiple=1)
        rows = node_rows(bucket, [portfolio], FACTORS, rules)
        level = rows.warning_multiple[0, number] * account.maintenance[0] + rows.warning_debt[0, number]
        assert (account.equity[0] < level) == warned


def test_one_portfolio_alone_and_among_others_gives_the_same_bits() -> None:
    of = world()
    for place, portfolio in enumerate(of.portfolios):
        (alone,) = node_scenarios([portfolio], FACTORS, of.cube, of.rules)
        assert alone is not None
        for name, values in alone._asdict().items():
            np.testing.assert_array_equal(values, getattr(at_horizon()[place], name), err_msg=name)
    assert node_scenarios([PackedPortfolio("empty")], FACTORS, of.cube, of.rules) == [None]


# ---- paths -----------------------------------------------------------------------------------------------------------


def law() -> PathLaw:
    return PathLaw(generator_of(FACTORS, scale=2.0 * math.sqrt(STEP_DAYS)), SEED, SCENARIOS, STEPS, STEP_DAYS)


def walked(nodes: NodeRules | None) -> list[PathFigures]:
    of = world()
    found = path_figures(of.portfolios, FACTORS, of.rows, law(), [[] for _ in of.portfolios], nodes=nodes)
    return [one for one in found if one is not None]


@functools.cache
def along_paths() -> list[PathFigures]:
    return walked(world().rules)


@pytest.mark.parametrize("place", range(len(MEMBERS)))
def test_nodes_along_paths_are_the_twins(place: int) -> None:
    key = jax.random.fold_in(jax.random.key(SEED), stream_number("paths"))
    drawn = np.asarray(draw_paths(law().generator, key, 0, 512, steps=STEPS))[:SCENARIOS]
    moves = np.cumsum(drawn, axis=1)
    portfolio = world().portfolios[place]
    steps = [twins(moves[:, step], STEP_DAYS * (step + 1), portfolio) for step in range(STEPS)]
    nodes = along_paths()[place].nodes
    assert nodes is not None
    assert nodes.losses.shape == (len(portfolio.nodes), STEPS, 512)
    compare(nodes, steps, path=True)


def test_keeping_the_nodes_changes_no_bit_of_the_other_figures() -> None:
    for one, other in zip(walked(None), along_paths(), strict=True):
        assert one.nodes is None
        for name, values in one._asdict().items():
            if name != "nodes":
                np.testing.assert_array_equal(values, getattr(other, name), err_msg=name)


def test_the_first_node_to_go_goes_with_the_first_account() -> None:
    """What paths say of accounts and of nodes is one thing: weights of the first passages agree."""
    for portfolio, found in zip(world().portfolios, along_paths(), strict=True):
        nodes = found.nodes
        assert nodes is not None
        first = nodes.passage[:, :SCENARIOS].min(axis=0)
        shares = [(first == step).mean() for step in range(STEPS + 1)]
        np.testing.assert_allclose(found.passage_any, shares, rtol=0.0, atol=1e-12, err_msg=portfolio.portfolio_id)
        assert (nodes.warned[:SCENARIOS] <= first).all()


def test_a_path_alone_gives_the_same_bits() -> None:
    of = world()
    (alone,) = path_figures([of.portfolios[1]], FACTORS, of.rows, law(), [[]], nodes=of.rules)
    assert alone is not None
    assert alone.nodes is not None
    among = along_paths()[1].nodes
    assert among is not None
    for name, values in alone.nodes._asdict().items():
        np.testing.assert_array_equal(values, getattr(among, name), err_msg=name)


def test_losses_by_node_are_kept_in_float32() -> None:
    """20 bytes for a node and scenario, as the memory of a run is planned."""
    assert {str(values.dtype) for one in at_horizon() for values in one} == {"float32", "int32"}
    assert jnp.dtype(at_horizon()[0].passage.dtype) == jnp.int32


def test_what_its_venue_cannot_pay_out_stays_at_the_node() -> None:
    """The shares of the rules bind at some nodes and scenarios, at others the requirement does."""
    of = world()
    plain = node_scenarios(of.portfolios, FACTORS, of.cube, of.rules._replace(leaving_share={}))
    bound, same = 0, 0
    for limited, free in zip(at_horizon(), plain, strict=True):
        assert free is not None
        assert (limited.withdrawable <= free.withdrawable).all()
        bound += int((limited.withdrawable < free.withdrawable).sum())
        same += int(((limited.withdrawable == free.withdrawable) & (free.withdrawable > 0.0)).sum())
        np.testing.assert_array_equal(limited.surplus, free.surplus)
    assert bound > 0
    assert same > 0
