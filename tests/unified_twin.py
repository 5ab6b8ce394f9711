"""The unified requirement in plain NumPy, and the quickstart desk in a market that makes every component bind."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np

from aggregator.cube import CubeRows
from aggregator.engine import Cube, Headline, draw_cube, evaluate_headlines
from aggregator.factors import MarketSize, StressedLaw
from aggregator.generators.multivariate_t import multivariate_t
from aggregator.greeks import row_sensitivities
from aggregator.policy import Requirement
from aggregator.portfolio import PackedPortfolio
from aggregator.results import Evaluated
from aggregator.unified import Unified, UnifiedMarket
from aggregator.unified_market import priced_grid, unified_market
from tests.quickstart_book import FACTORS, HORIZON_DAYS, quickstart_book

SEED, SCENARIOS, STRESSED = 5, 4096, 1024
SIZES = {
    "price:BTC": MarketSize(2.0e10, 0.025, 0.0002),
    "price:ETH": MarketSize(4.0e6, 0.030, 0.0005),  # thin, so that horizons and concentration bind
    "price:SOL": MarketSize(1.0e5, 0.045, 0.0020),
}


class Desk(NamedTuple):
    """The packed desk, its cube and the market of its requirement."""

    portfolio: PackedPortfolio
    cube: Cube
    market: UnifiedMarket
    headline: Headline
    unified: Unified
    policy: Requirement
    sizes: dict[str, MarketSize]

    @property
    def evaluated(self) -> Evaluated:
        return Evaluated(self.portfolio, self.headline)


def law(scale: float, correlation: float = 0.0) -> Any:
    """A t law of all factors; prices are correlated with each other."""
    std = {name: scale * (0.001 if name.startswith("peg:") else 0.03) for name in FACTORS}
    prices = np.array([name.startswith("price:") for name in FACTORS])
    matrix = np.where(np.outer(prices, prices), correlation, 0.0)
    np.fill_diagonal(matrix, 1.0)
    return multivariate_t(FACTORS, std, correlation=matrix, nu=4.0)


def north_desk() -> PackedPortfolio:
    return next(p for p in quickstart_book().portfolios if p.portfolio_id == "north-desk")


def desk(
    policy: Requirement,
    sizes: dict[str, MarketSize] = SIZES,
    portfolio: PackedPortfolio | None = None,
    current: Any = None,
) -> Desk:
    """The evaluated desk; another `portfolio` may stand in its rows, another law in its scenarios."""
    portfolio = north_desk() if portfolio is None else portfolio
    rows: CubeRows = quickstart_book().cube.build(FACTORS)
    cube = draw_cube(
        rows, current or law(1.0), seed=SEED, scenarios=SCENARIOS, chunk=SCENARIOS, horizon_days=HORIZON_DAYS
    )
    market = unified_market(
        rows,
        FACTORS,
        priced_grid(rows, FACTORS, policy),
        policy,
        stressed=[StressedLaw("wild", law(2.0), STRESSED), StressedLaw("calm", law(0.5), 2 * STRESSED)],
        sizes=sizes,
        basis={"price:ETH": 0.004},
        seed=SEED,
        chunk=SCENARIOS,
        horizon_days=HORIZON_DAYS,
    )
    cube = eqx.tree_at(lambda c: c.unified, cube, market, is_leaf=lambda leaf: leaf is None)
    (headline,) = evaluate_headlines([portfolio], FACTORS, cube, devices=1, policy=policy)
    assert headline is not None
    assert headline.unified is not None
    return Desk(portfolio, cube, market, headline, headline.unified, policy, sizes)


# ---- the twin --------------------------------------------------------------------------------------------------------


def shortfall(losses: np.ndarray, weights: np.ndarray, confidence: float) -> float:
    order = np.argsort(-losses, kind="stable")
    left, total = 1.0 - confidence, 0.0
    for scenario in order:
        share = min(left, weights[scenario])
        total += share * losses[scenario]
        left -= share
        if left <= 1e-15:
            break
    return total / (1.0 - confidence)


def tail(losses: np.ndarray, weights: np.ndarray, confidence: float) -> np.ndarray:
    out, left = np.zeros_like(losses), 1.0 - confidence
    for scenario in np.argsort(-losses, kind="stable"):
        out[scenario] = min(left, weights[scenario]) / (1.0 - confidence)
        left -= min(left, weights[scenario])
        if left <= 1e-15:
            break
    return out


class Twin:
    """Every component in NumPy from the packed portfolio and the cube's changes."""

    def __init__(self, of: Desk) -> None:
        self.desk, self.market = of, of.market
        portfolio = of.portfolio
        self.nodes = len(portfolio.nodes)
        self.members: list[list[int]] = [
            [n for n, at in enumerate(portfolio.line_node) if at == node] for node in range(self.nodes)
        ]
        self.members.append(list(range(len(portfolio.lines))))
        fixed = of.policy.collateral == "haircut"
        self.own = np.array(
            [
                line.kind == "collateral"
                and bool({line.symbol, line.asset} & set(of.policy.venue(line.venue).own_tokens))
                for line in portfolio.lines
            ]
        )
        still = [fixed and line.kind == "collateral" and bool(line.factor) for line in portfolio.lines]
        self.moves = ~(self.own | np.array(still))

    def line_losses(self, change: Any) -> np.ndarray:
        values = np.asarray(change, dtype=np.float64)
        out = np.zeros((len(self.desk.portfolio.lines), values.shape[1]))
        for line, row, coefficient in self.desk.portfolio.legs:
            out[line] -= coefficient * values[row]
        return np.where(self.moves[:, None], out, 0.0)

    def line_exposure(self) -> np.ndarray:
        """USD per price factor by line, from the Greeks."""
        sensitivities = row_sensitivities(self.desk.cube.rows, FACTORS)
        out = np.zeros((len(self.desk.portfolio.lines), len(FACTORS)))
        for line, row, coefficient in self.desk.portfolio.legs:
            for s in sensitivities[row]:
                if f"price:{s.underlying}" in FACTORS:
                    out[line, FACTORS.index(f"price:{s.underlying}")] += coefficient * s.delta
        return out

    def exposure(self) -> np.ndarray:
        """USD per price factor by node."""
        out = np.zeros((self.nodes, len(FACTORS)))
        for node, of_line in zip(self.desk.portfolio.line_node, self.line_exposure(), strict=True):
            out[node] += of_line
        return out

    def sizes(self) -> np.ndarray:
        exposure = self.exposure()
        sold, bought = np.maximum(exposure, 0).sum(axis=0), np.maximum(-exposure, 0).sum(axis=0)
        return np.concatenate([np.abs(exposure), np.maximum(sold, bought)[None]])

    def shortfalls(self, change: Any, weights: Any, confidence: float) -> np.ndarray:
        losses = self.line_losses(change)
        return np.array([shortfall(losses[m].sum(axis=0), np.asarray(weights), confidence) for m in self.members])

    def days(self, scope: int) -> np.ndarray:
        """Close-out days of every line if the scope is liquidated, at least the horizon of the run."""
        sizes, policy = self.sizes()[scope], self.desk.policy
        out = []
        for line in self.desk.portfolio.lines:
            size = sizes[FACTORS.index(line.factor)] if line.factor in self.desk.sizes else 0.0
            pace = policy.liquidity.participation * self.desk.sizes.get(line.factor, SIZES["price:BTC"]).daily_volume
            out.append(max(HORIZON_DAYS, size / pace))
        return np.array(out)

    def horizon(self, change: Any, weights: Any, confidence: float) -> np.ndarray:
        """Shortfalls of the scopes in one set of scenarios, lines counting again at each horizon they outlast."""
        losses, weights = self.line_losses(change), np.asarray(weights)
        lengths = [HORIZON_DAYS, *(h for h in self.desk.policy.liquidity.horizons if h > HORIZON_DAYS)]
        out = []
        for scope, members in enumerate(self.members):
            days = self.days(scope)
            squares, before = [], 0.0
            for j, length in enumerate(lengths):
                chosen = [n for n in members if j == 0 or days[n] > lengths[j - 1]]
                es = shortfall(losses[chosen].sum(axis=0), weights, confidence) if chosen else 0.0
                squares.append(max(es, 0.0) ** 2 * (length - before) / HORIZON_DAYS)
                before = length
            out.append(math.sqrt(sum(squares)))
        return np.array(out)

    def wrong_way(self) -> np.ndarray:
        """Own tokens posted at their venue whole, and what else falls with a venue by its loss given default."""
        portfolio, policy = self.desk.portfolio, self.desk.policy
        venues = {venue for _, venue in portfolio.nodes}
        exposure = self.line_exposure()
        posted, falls = np.zeros(self.nodes), {venue: np.zeros(self.nodes) for venue in venues}
        for n, (line, node) in enumerate(zip(portfolio.lines, portfolio.line_node, strict=True)):
            if self.own[n]:
                posted[node] += max(portfolio.line_equity[n], 0.0)
                continue
            names = {line.asset} if line.kind in ("linear", "option") else {line.symbol, line.asset}
            held = exposure[n, FACTORS.index(line.factor)] if line.factor else line.value_usd
            for venue in venues:
                if names & set(policy.venue(venue).own_tokens):
                    falls[venue][node] += held
        out, whole = np.zeros(self.nodes), 0.0
        for venue, of_node in falls.items():
            here = np.array([at == venue for _, at in portfolio.nodes])
            lost = np.where(here, np.maximum(of_node, 0.0), of_node)
            rate = policy.venue(venue).loss_given_default
            out += np.where(here, rate * lost, 0.0)
            whole += rate * max(lost.sum(), 0.0)
        return np.append(posted + out, posted.sum() + whole)

    def grid(self) -> np.ndarray:
        losses = self.line_losses(self.market.grid_change)
        weighted = np.array([losses[m].sum(axis=0) for m in self.members]) * np.asarray(self.market.grid_weight)
        return np.maximum(weighted.max(axis=1), 0.0)

    def liquidity(self) -> np.ndarray:
        def cost(size: float, factor: int) -> float:
            if FACTORS[factor] not in self.desk.sizes or size == 0.0:
                return 0.0
            volume, vol, spread = self.desk.sizes[FACTORS[factor]]
            return size * (spread / 2 + self.desk.policy.liquidity.impact * vol * math.sqrt(size / volume))

        exposure = self.exposure()
        alone = [sum(cost(abs(x), f) for f, x in enumerate(row)) for row in exposure]
        sold, bought = np.maximum(exposure, 0).sum(axis=0), np.maximum(-exposure, 0).sum(axis=0)
        return np.array([*alone, sum(cost(sold[f], f) + cost(bought[f], f) for f in range(len(FACTORS)))])

    def concentration(self, confidence: float) -> np.ndarray:
        losses, weights = self.line_losses(self.desk.cube.change), np.asarray(self.desk.cube.weights)
        sizes, out = self.sizes(), []
        for scope, members in enumerate(self.members):
            share = tail(losses[members].sum(axis=0), weights, confidence)
            charge = 0.0
            for f, factor in enumerate(FACTORS):
                if factor not in self.desk.sizes:
                    continue
                limit = self.desk.policy.liquidity.concentration_share * self.desk.sizes[factor].daily_volume
                ratio = max(1.0, math.sqrt(sizes[scope, f] / limit))
                of_asset = [n for n in members if self.desk.portfolio.lines[n].factor == factor]
                part = sum(float((share * losses[n]).sum()) for n in of_asset)
                charge += max(part, 0.0) * (ratio - 1.0)
            out.append(charge)
        return np.array(out)

    def basis(self) -> float:
        venues = sorted({venue for _, venue in self.desk.portfolio.nodes})
        by_venue = np.zeros((len(venues), len(FACTORS)))
        for node, (_, venue) in enumerate(self.desk.portfolio.nodes):
            by_venue[venues.index(venue)] += self.exposure()[node]
        matched = (np.abs(by_venue).sum(axis=0) - np.abs(by_venue.sum(axis=0))) / 2
        rates = {"price:BTC": 0.002, "price:ETH": 0.004, "price:SOL": 0.01}
        return sum(float(matched[f]) * rates.get(name, 0.0) for f, name in enumerate(FACTORS))


def component(of: Desk, name: str, level: int) -> np.ndarray:
    """By scope without the padding: the nodes, then the whole."""
    values = np.asarray(getattr(of.unified.components, name))[:, level]
    return np.concatenate([values[: len(of.portfolio.nodes)], values[-1:]])
