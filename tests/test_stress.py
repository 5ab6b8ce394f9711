"""Named stresses: what the file may say, the moves it means, and every portfolio's figures against a plain twin."""

import math
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from adapters.asset_book import read_asset_book
from aggregator.batch import PortfolioArrays, bucketed
from aggregator.config import TILE
from aggregator.engine import Cube, Headline, draw_cube, evaluate_headlines, priced
from aggregator.errors import ConfigurationError
from aggregator.factors import MarketSize
from aggregator.generators.multivariate_t import multivariate_t
from aggregator.history_tables import read_history_table
from aggregator.margin import scenario_margin
from aggregator.policy import Requirement, VenuePolicy
from aggregator.portfolio import PackedPortfolio
from aggregator.replay import closes_on, replayed
from aggregator.results import Evaluated
from aggregator.stress import (
    Held,
    StressLibrary,
    check_kinds,
    check_names,
    read_stress_library,
    stress_moves,
    without_effect,
)
from aggregator.stress_margin import (
    StressArrays,
    StressFigures,
    depth_loss,
    joined_columns,
    stress_arrays,
    stress_cube,
    stress_figures,
    stress_views,
)
from aggregator.stress_results import held_by, stress_rows
from aggregator.unified_batch import unified_arrays
from aggregator.unified_market import priced_grid, unified_market
from tests.quickstart_book import FACTORS, HORIZON_DAYS, quickstart_book

pytestmark = pytest.mark.slow

SHIPPED = Path(__file__).resolve().parent.parent / "configs" / "stress.toml"
ASSETS = SHIPPED.parent / "assets.toml"

LIBRARY = """
[stress.crash]
description = "a fall"
source = "made up"
binding = true
vol = { default = 2.0 }
depth = 0.25
[stress.crash.price]
moves = { ETH = -0.30, default = -0.10 }

[stress."wrong mark"]
description = "one venue marks ETH too low"
source = "made up"
[stress."wrong mark".venues.hyperliquid]
marks = { ETH = 0.35 }
withdrawals = false

[stress.frozen]
description = "a rise that nobody sees"
source = "made up"
oracle = "frozen"
[stress.frozen.price]
moves = { default = 0.30 }

[stress.failure]
description = "a venue fails while funding is dear"
source = "made up"
funding = 0.01
chains_halted = ["ethereum"]
[stress.failure.venues.binance]
fails = true

[stress."own rates"]
description = "two days at a venue's own rate"
source = "made up"
funding = -0.001
funding_days = 2
[stress."own rates".venues.hyperliquid]
funding = 0.0002

[stress.both]
description = "together"
source = "made up"
transfers = "shut"
combines = ["crash", "failure"]
"""


def library(text: str, folder: Path) -> StressLibrary:
    path = folder / "stress.toml"
    path.write_text(text, encoding="utf-8")
    return read_stress_library(path)


# ---- the file --------------------------------------------------------------------------------------------------------


def test_the_shipped_library_is_read_and_holds_what_it_promises() -> None:
    names = set(read_stress_library(SHIPPED).stress)
    past = {"2020-03-12", "2021-05-19", "2022-06", "2022-11", "2023-03-11-peg", "2025-10-10"}
    imagined = {"flash crash down", "correlation one", "alt collapse", "vol doubling", "depeg", "oracle frozen"}
    broken = {"bridge down", "chain halted", "venue halted", "funding at cap", "no depth"}
    assert past | imagined | broken <= names
    assert any(stress.combines for stress in read_stress_library(SHIPPED).stress.values())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("depth = 0.25", "dept = 0.25", ("unknown key stress.crash.dept", "did you mean 'depth'")),
        ("depth = 0.25", "depth = 0.0", ("stress.crash.depth",)),
        ('description = "a fall"\n', "", ("missing key stress.crash.description",)),
        ("ETH = -0.30", "ETH = -1.0", ("stress.crash.price.moves", "cannot fall by all of itself")),
        ("default = 2.0", "default = 0.0", ("stress.crash.vol", "positive")),
        ("ETH = 0.35", "ETH = -1.5", ("stress.wrong mark.venues.hyperliquid.marks", "below zero")),
        ('oracle = "frozen"', 'oracle = "frosen"', ("stress.frozen.oracle",)),
        ('combines = ["crash", "failure"]', 'combines = ["crush"]', ("combines 'crush'", "did you mean 'crash'")),
        ('combines = ["crash", "failure"]', 'combines = ["both"]', ("is a combination itself",)),
        ("funding = 0.01", "funding = nan", ("stress.failure.funding",)),
        ("funding = 0.01", 'frozen = ["binance"]', ("stress.failure", 'oracle is not "frozen"')),
        ("marks = { ETH", "marks = { default = 0.1, ETH", ("wrong mark.venues.hyperliquid.marks", "no asset")),
        ("moves = { ETH = -0.30", 'reference = "BTC"\nmoves = { ETH = -0.30', ("reference BTC moves nothing",)),
        ("depth = 0.25", "funding_days = 3", ("stress.crash", "no venue states one")),
        ("funding = 0.0002", "funding = inf", ("stress.own rates.venues.hyperliquid.funding",)),
        ("[stress.crash]", "[stress.crash", ("not valid TOML",)),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    assert old in LIBRARY
    with pytest.raises(ConfigurationError) as found:
        library(LIBRARY.replace(old, new, 1), tmp_path)
    for word in words:
        assert word in str(found.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ETH = -0.30", "ETTH = -0.30", ("crash.price.moves", "unknown asset 'ETTH'", "did you mean 'ETH'")),
        ("ETH = 0.35", "EHT = 0.35", ("wrong mark.venues.hyperliquid.marks", "unknown asset 'EHT'")),
        ("venues.binance", "venues.binanse", ("failure: unknown venue 'binanse'", "did you mean 'binance'")),
    ],
)
def test_a_name_that_nobody_knows_is_refused(tmp_path: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    read = library(LIBRARY.replace(old, new, 1), tmp_path)
    check_names(library(LIBRARY, tmp_path), assets={"BTC", "ETH"}, venues={"binance", "hyperliquid"})
    with pytest.raises(ConfigurationError) as found:
        check_names(read, assets={"BTC", "ETH"}, venues={"binance", "hyperliquid"})
    for word in words:
        assert word in str(found.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ETH = -0.30", "USDC = -0.30", "crash.price.moves.USDC would move nothing: USDC has no price of its own"),
        ("ETH = -0.30", "wstETH = -0.30", "crash.price.moves.wstETH would move nothing"),
        ("vol = { default", "vol = { USDC", "crash.vol.USDC would move nothing"),
        ("depth = 0.25", "peg = { BTC = -0.1 }", "crash.peg.BTC would move nothing: BTC has no peg"),
        ("ETH = 0.35", "WBTC = 0.35", "wrong mark.venues.hyperliquid.marks.WBTC would move nothing"),
    ],
)
def test_a_move_that_can_never_happen_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    prices, pegs = {"BTC", "ETH"}, {"USDC", "wstETH"}
    check_kinds(library(LIBRARY, tmp_path), prices=prices, pegs=pegs)
    read = library(LIBRARY.replace(old, new, 1), tmp_path)
    with pytest.raises(ConfigurationError, match="stress library: ") as found:
        check_kinds(read, prices=prices, pegs=pegs)
    assert words in str(found.value)


def test_every_move_of_the_shipped_library_can_happen() -> None:
    book = read_asset_book(ASSETS).assets.values()
    check_kinds(
        read_stress_library(SHIPPED),
        prices={asset.risk_factor for asset in book if asset.risk_factor},
        pegs={asset.peg_of for asset in book if asset.peg_of},
    )


HELD = Held(
    factors=frozenset({"price:ETH", "vol:ETH", "peg:USDC"}),
    venues=frozenset({"hyperliquid"}),
    funded=frozenset(),
    chains=frozenset({"ethereum"}),
)


@pytest.mark.parametrize(
    ("name", "old", "new", "left"),
    [
        ("crash", "", "", {"price.moves.default"}),
        ("crash", "ETH = -0.30", "BTC = -0.30", {"price.moves.BTC"}),
        ("crash", "vol = { default = 2.0 }", "vol = { BTC = 2.0 }", {"price.moves.default", "vol.BTC"}),
        ("crash", "depth = 0.25", "peg = { USDC = -0.1, USDT = -0.1 }", {"price.moves.default", "peg.USDT"}),
        ("crash", "default = -0.10 }", "BTC = 0.1 }\nreference = 'ETH'\nbeta = 2", {"price.beta", "price.moves.BTC"}),
        ("wrong mark", "marks = { ETH", "marks = { BTC = 1.0, ETH", {"venues.hyperliquid.marks.BTC"}),
        ("frozen", 'oracle = "frozen"', 'oracle = "frozen"\nfrozen = ["okx"]', {"frozen.okx"}),
        ("failure", "", "", {"funding", "venues.binance"}),
        ("failure", '"ethereum"', '"etherium"', {"chains_halted.etherium", "funding", "venues.binance"}),
        ("own rates", "", "", {"funding", "venues.hyperliquid.funding"}),
        ("both", "", "", set()),
    ],
)
def test_what_acts_on_nothing_that_is_held_is_named(
    tmp_path: Path, name: str, old: str, new: str, left: set[str]
) -> None:
    assert old in LIBRARY
    read = library(LIBRARY.replace(old, new, 1) if old else LIBRARY, tmp_path)
    assert without_effect(read.stress[name], HELD) == sorted(left)


def test_moves_are_logarithms_of_what_is_written(tmp_path: Path) -> None:
    read = library(LIBRARY, tmp_path)
    factors, venues = ("peg:USDC", "price:BTC", "price:ETH", "vol:ETH"), ("binance", "hyperliquid")
    crash = stress_moves(read.parts("crash"), factors, venues)
    np.testing.assert_allclose(crash.market, [0.0, math.log(0.9), math.log(0.7), math.log(2.0)], rtol=1e-15)
    assert not crash.marks
    assert not crash.triggers
    wrong = stress_moves(read.parts("wrong mark"), factors, venues)
    np.testing.assert_allclose(wrong.marks["hyperliquid"], [0.0, 0.0, math.log(1.35), 0.0], rtol=1e-15)
    assert not wrong.market.any()
    frozen = stress_moves(read.parts("frozen"), factors, venues)
    assert set(frozen.triggers) == set(venues)
    assert not frozen.triggers["binance"].any()
    both = stress_moves(read.parts("both"), factors, venues)
    np.testing.assert_allclose(both.market, crash.market, rtol=1e-15)


def test_beta_moves_the_others_with_their_reference(tmp_path: Path) -> None:
    text = '[stress.x]\ndescription = "d"\nsource = "s"\n[stress.x.price]\nmoves = { BTC = -0.5 }\nbeta = 1.5\n'
    moves = stress_moves(library(text, tmp_path).parts("x"), ("price:BTC", "price:SOL"), ())
    np.testing.assert_allclose(moves.market, [math.log(0.5), 1.5 * math.log(0.5)], rtol=1e-15)


DAYS = pa.table(
    {
        "asset": ["BTC", "BTC", "ETH", "ETH", "ETH", "ETH", "SOL", "SOL", "SOL", "ADA", "ADA"],
        "market": ["perp", "perp", "perp", "spot", "spot", "spot", "perp", "perp", "perp", "perp", "perp"],
        "ts": [date(2020, 3, day) for day in (11, 12, 11, 11, 12, 13, 11, 12, 12, 11, 12)],
        "close": [8000.0, 4800.0, 200.0, 201.0, 110.0, 5.0, 10.0, 5.0, 6.0, 0.05, -1.0],
    }
)


def test_a_replay_measures_what_the_history_covers(tmp_path: Path) -> None:
    text = LIBRARY.replace("vol = { default = 2.0 }", "replay = { first = 2020-03-11, last = 2020-03-12 }", 1)
    read = library(text, tmp_path)
    replay = read.stress["crash"].replay
    assert replay is not None
    closes = closes_on(DAYS, [replay.first, replay.last])
    found = replayed(read, closes, ["ADA", "BTC", "ETH", "SOL", "XRP"]).stress["crash"]
    # ETH has no perpetual on the second day; SOL has that day twice, ADA a negative close: they move as stated.
    assert found.price.moves == {
        "BTC": pytest.approx(-0.4),
        "ETH": pytest.approx(110 / 201 - 1),
        "default": -0.10,
    }
    assert "for 2 of 5 prices" in found.source
    assert replayed(read, {}, ["BTC"]).stress["frozen"] == read.stress["frozen"]


def test_a_replay_in_the_wrong_order_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"stress\.crash\.replay: first 2020-03-13 is not before last"):
        library(LIBRARY.replace("depth = 0.25", "replay = { first = 2020-03-13, last = 2020-03-12 }", 1), tmp_path)


def test_the_shipped_moves_are_those_of_the_recorded_closes(recorded: Path) -> None:
    table = read_history_table(recorded / "market" / "ohlcv_1d.parquet")
    read = read_stress_library(SHIPPED)
    for name, stress in read.stress.items():
        if stress.replay is None:
            continue
        stated = [asset for asset in stress.price.moves if asset != "default"]
        measured = replayed(read, closes_on(table, [stress.replay.first, stress.replay.last]), stated).stress[name]
        for asset in stated:
            assert measured.price.moves[asset] == pytest.approx(stress.price.moves[asset], abs=6e-4), (name, asset)


# ---- the desk --------------------------------------------------------------------------------------------------------


POLICY = Requirement(
    other_venues=VenuePolicy(),
    venues={"binance": VenuePolicy(loss_given_default=0.5), "hyperliquid": VenuePolicy(funding_hours=1.0)},
)


class Stressed(NamedTuple):
    """The desk under the library above."""

    portfolio: PackedPortfolio
    library: StressLibrary
    names: list[str]
    cube: Cube
    headline: Headline
    figures: StressFigures


@pytest.fixture(scope="module")
def stressed(tmp_path_factory: pytest.TempPathFactory) -> Stressed:
    read = library(LIBRARY, tmp_path_factory.mktemp("stress"))
    book, names = quickstart_book(), list(read.stress)
    portfolio = next(p for p in book.portfolios if p.portfolio_id == "north-desk")
    venues = sorted({info.venue for info in portfolio.accounts})
    rows = book.cube.build(FACTORS)
    std = {name: 0.001 if name.startswith("peg:") else 0.03 for name in FACTORS}
    law = multivariate_t(FACTORS, std, correlation=np.eye(len(FACTORS)), nu=4.0)
    cube = draw_cube(rows, law, seed=1, scenarios=TILE, chunk=TILE, horizon_days=HORIZON_DAYS)
    market = unified_market(
        rows,
        FACTORS,
        priced_grid(rows, FACTORS, POLICY),
        POLICY,
        stressed=[],
        sizes={name: MarketSize(2e8, 0.04, 0.001) for name in FACTORS if name.startswith("price:")},
        basis={},
        seed=1,
        chunk=TILE,
        horizon_days=HORIZON_DAYS,
    )
    views = stress_views(read, names, FACTORS, venues, tile=TILE)
    change = priced(rows, jnp.asarray(views.shocks), horizon_years=0.0)
    joined = joined_columns(cube.change, cube.shocks, cube.horizon_years, change, views)
    both = (market, stress_cube(read, names, views, change, joined, venues))
    cube = eqx.tree_at(lambda c: (c.unified, c.stress), cube, both, is_leaf=lambda leaf: leaf is None)
    (headline,) = evaluate_headlines([portfolio], FACTORS, cube, devices=1, policy=POLICY, venues=venues)
    assert headline is not None
    assert headline.stress is not None
    return Stressed(portfolio, read, names, cube, headline, headline.stress)


def line_losses(of: Stressed, moves: np.ndarray) -> np.ndarray:
    """Loss of every line when the factors move by `moves`, repriced row by row in float64."""
    change = np.asarray(of.cube.rows.changes(jnp.asarray(moves), horizon_years=0.0, dtype=jnp.float64))
    out = np.zeros(len(of.portfolio.lines))
    for line, row, coefficient in of.portfolio.legs:
        out[line] -= coefficient * change[row]
    return out


@pytest.mark.parametrize("name", ["crash", "wrong mark", "frozen", "failure", "own rates", "both"])
def test_losses_are_the_twins(stressed: Stressed, name: str) -> None:
    k, portfolio = stressed.names.index(name), stressed.portfolio
    moves = stress_moves(stressed.library.parts(name), FACTORS, ())
    at_market = line_losses(stressed, moves.market)
    price, total = np.zeros(len(portfolio.nodes)), np.zeros(len(portfolio.nodes))
    fails = {v for part in stressed.library.parts(name) for v, what in part.venues.items() if what.fails}
    equity = np.zeros(len(portfolio.nodes))
    for n, (line, node) in enumerate(zip(portfolio.lines, portfolio.line_node, strict=True)):
        price[node] += at_market[n]
        equity[node] += portfolio.line_equity[n]
        if line.is_perpetual:
            for part in stressed.library.parts(name):
                own = part.venues[line.venue].funding if line.venue in part.venues else None
                # The venue states its rate for an hour (the policy above), the others for eight.
                hours = 1.0 if line.venue == "hyperliquid" else 8.0
                paid = part.funding if own is None else own * part.funding_days * 24.0 / hours
                total[node] += paid * line.value_usd
    total += price
    for node, (_, venue) in enumerate(portfolio.nodes):
        if venue in fails:
            total[node] += 0.5 * max(equity[node] - total[node], 0.0)
    count = len(portfolio.nodes)
    np.testing.assert_allclose(stressed.figures.node_price_loss[:count, k], price, rtol=2e-6, atol=0.05)
    np.testing.assert_allclose(stressed.figures.node_loss[:count, k], total, rtol=2e-6, atol=0.05)


def liquidated(of: Stressed, name: str) -> set[str]:
    hit = np.asarray(of.figures.liquidated)[:, of.names.index(name)]
    return {info.account_id for info, gone in zip(of.portfolio.accounts, hit, strict=False) if gone}


def test_a_wrong_mark_liquidates_at_its_venue_alone(stressed: Stressed) -> None:
    assert liquidated(stressed, "wrong mark") == {"hyperliquid:north:cross"}
    # The market has not moved: nobody has lost anything yet.
    assert not np.asarray(stressed.figures.node_loss)[:, stressed.names.index("wrong mark")].any()


def test_a_frozen_oracle_liquidates_nobody_and_hides_who_is_broke(stressed: Stressed) -> None:
    assert liquidated(stressed, "frozen") == set()
    broke = np.asarray(stressed.figures.insolvent)[:, stressed.names.index("frozen")]
    ids = {info.account_id for info, hit in zip(stressed.portfolio.accounts, broke, strict=False) if hit}
    assert "hyperliquid:north:cross" in ids


def test_a_binding_stress_enters_the_requirement(stressed: Stressed) -> None:
    assert stressed.headline.unified is not None
    components = stressed.headline.unified.components
    k = stressed.names.index("crash")
    figures, nodes = stressed.figures, np.asarray(stressed.figures.node_loss)[:, k]
    whole = np.append(nodes, nodes.sum()) + np.asarray(figures.depth_loss)[:, k]
    np.testing.assert_allclose(figures.binding_loss[:, k], whole, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(components.stress)[:, 0], np.maximum(whole, 0.0), rtol=1e-12)
    assert np.asarray(components.stress)[-1, 0] > 0.0
    largest = np.maximum(
        np.maximum(components.es_blend, components.grid), np.maximum(components.stress, components.floor)
    )
    np.testing.assert_allclose(components.base, largest, rtol=1e-12)


def test_losses_of_depth_are_the_requirements_own_at_thinner_books(stressed: Stressed) -> None:
    """The stack charges half the spread and square-root impact; both are restated here at the depth of the stress."""
    assert stressed.headline.unified is not None
    assert stressed.cube.unified is not None
    liquidity = np.asarray(stressed.headline.unified.components.liquidity)[:, 0]
    spread = np.asarray(stressed.headline.unified.spread_cost)
    assert liquidity[-1] > spread[-1] > 0.0
    assert liquidity[-1] > liquidity[:-1].max()
    (bucket,) = bucketed([stressed.portfolio], FACTORS, multiple=1, most_buckets=1)
    arrays = jax.tree.map(lambda leaf: leaf[0], bucket.arrays)
    depths = np.array([1.0, 0.25, 0.02, 4.0])
    found = np.asarray(jax.jit(depth_loss)(arrays, stressed.cube.unified, jnp.asarray(depths)))
    for k, depth in enumerate(depths):
        at_depth = spread / depth + (liquidity - spread) / math.sqrt(depth)
        np.testing.assert_allclose(found[:, k], at_depth - liquidity, rtol=1e-9, atol=1e-9)
    assert not found[:, 0].any()
    assert found[-1, 2] > found[-1, 1] > 0.0 > found[-1, 3]


@pytest.mark.parametrize("own", [(), ("wstETH",)])
def test_what_binds_is_what_the_requirement_simulates(stressed: Stressed, own: tuple[str, ...]) -> None:
    """Collateral at a haircut and own tokens stand still in the binding loss, and in no figure that is reported."""
    venues = {**POLICY.venues, "aave_v3": VenuePolicy(own_tokens=own)}
    policy = POLICY.model_copy(update={"collateral": "simulated" if own else "haircut", "venues": venues})
    portfolio, cube = stressed.portfolio, stressed.cube
    assert cube.stress is not None
    (bucket,) = bucketed([portfolio], FACTORS, multiple=1, most_buckets=1)
    names = sorted({info.venue for info in portfolio.accounts})
    arrays = stress_arrays(bucket, [portfolio], names, policy)
    simulated = unified_arrays(bucket, [portfolio], FACTORS, policy).line_simulated
    np.testing.assert_array_equal(arrays.line_binds, simulated)
    both = jax.tree.map(lambda leaf: leaf[0], (bucket.arrays, arrays))
    figures = _figures(*both, cube)
    np.testing.assert_array_equal(figures.node_loss, stressed.figures.node_loss)
    k = stressed.names.index("both")
    at_market = line_losses(stressed, stress_moves(stressed.library.parts("both"), FACTORS, ()).market)
    expected, equity = np.zeros(len(portfolio.nodes)), np.zeros(len(portfolio.nodes))
    still = 0
    for n, (line, node) in enumerate(zip(portfolio.lines, portfolio.line_node, strict=True)):
        is_own = line.venue == "aave_v3" and line.kind == "collateral" and line.symbol in own
        stands = is_own or (not own and line.kind == "collateral" and line.factor != "")
        still += stands
        expected[node] += 0.0 if stands else at_market[n]
        equity[node] += 0.0 if is_own else portfolio.line_equity[n]
        if line.is_perpetual:
            expected[node] += 0.01 * line.value_usd
    assert still
    for node, (_, venue) in enumerate(portfolio.nodes):
        if venue == "binance":
            expected[node] += 0.5 * max(equity[node] - expected[node], 0.0)
    count = len(portfolio.nodes)
    np.testing.assert_allclose(np.asarray(figures.binding_loss)[:count, k], expected, rtol=2e-6, atol=0.05)
    assert np.abs(expected - np.asarray(figures.node_loss)[:count, k]).max() > 1.0


@jax.jit
def _figures(rows: PortfolioArrays, stress: StressArrays, cube: Cube) -> StressFigures:
    assert cube.stress is not None
    views = cube.stress.joined.shocks[cube.weights.shape[0] :]
    margin = scenario_margin(rows, cube.today, cube.stress.change, views, cube.rows, horizon_years=0.0)
    return stress_figures(rows, stress, cube.stress, margin)


def test_the_desk_holds_what_it_holds(stressed: Stressed) -> None:
    held = held_by(stressed.portfolio, stressed.cube.rows, FACTORS)
    assert {"price:ETH", "price:BTC", "vol:ETH", "peg:USDC"} <= held.factors <= set(FACTORS)
    assert held.funded <= held.venues == {info.venue for info in stressed.portfolio.accounts}
    assert "ethereum" in held.chains
    rows = stress_rows(Evaluated(stressed.portfolio, stressed.headline), stressed.library, stressed.names, held)
    (crash,) = (row for row in rows if row["stress"] == "crash")
    assert crash["without_effect"] == "[]"


def test_rows_say_what_cannot_be_used(stressed: Stressed) -> None:
    rows: dict[str, Any] = {
        row["stress"]: row
        for row in stress_rows(Evaluated(stressed.portfolio, stressed.headline), stressed.library, stressed.names)
    }
    assert list(rows) == stressed.names
    for name, values in stressed.figures._asdict().items():
        assert np.isfinite(values).all(), name
    equity = math.fsum(stressed.portfolio.line_equity)
    whole = np.asarray(stressed.figures.node_loss).sum(axis=0) + np.asarray(stressed.figures.depth_loss)[-1]
    for row, loss in zip(rows.values(), whole, strict=True):
        assert row["loss_usd"] == pytest.approx(float(loss), rel=1e-9, abs=1e-6)
        assert row["equity_after_usd"] == pytest.approx(equity - row["loss_usd"], rel=1e-9)
        assert row["uncovered_usd"] >= row["uncovered_pooled_usd"] >= 0
        assert row["unavailable_usd"] >= 0
    assert rows["both"]["transfers"] == "shut"
    assert rows["both"]["unavailable_usd"] >= rows["both"]["equity_after_usd"]
    at_hyperliquid = [n for n, (_, venue) in enumerate(stressed.portfolio.nodes) if venue == "hyperliquid"]
    k = stressed.names.index("wrong mark")
    held = [
        math.fsum(
            e for e, at in zip(stressed.portfolio.line_equity, stressed.portfolio.line_node, strict=True) if at == n
        )
        - float(stressed.figures.node_loss[n, k])
        for n in at_hyperliquid
    ]
    assert rows["wrong mark"]["unavailable_usd"] == pytest.approx(sum(max(x, 0.0) for x in held), rel=1e-9)
    on_chain = [n for n, (node, _) in enumerate(stressed.portfolio.nodes) if node.startswith("aave_v3")]
    assert on_chain
    assert rows["failure"]["unavailable_usd"] > 0
