"""All overlays on one normal generator, with the law of one step for the common suite, and quadratures for more tests.

Expectations are Gauss-Legendre sums over the uniforms behind the draws, written from the formulas of the overlays and
not from their code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

from aggregator.generators.merton_jumps import MertonJumps, merton_jumps
from aggregator.overlays.funding import Funding, FundingLaw, funding
from aggregator.overlays.jump_strata import JumpDesign
from aggregator.overlays.liquidity_drought import DroughtLaw, LiquidityDrought, liquidity_drought
from aggregator.overlays.lst_discount import DiscountLaw, LstDiscount, lst_discount
from aggregator.overlays.oracle_error import OracleError, OracleLaw, oracle_error
from aggregator.overlays.partial_default import DefaultLaw, Stress
from aggregator.overlays.rare_jumps import RareJumps, rare_jumps
from aggregator.overlays.spot_vol import SpotVol, SpotVolRule, spot_vol
from aggregator.scenarios import ScenarioGenerator
from tests.generator_entry import Entry, KnownLaw

STD = {"peg:USDC": 0.0005, "price:BTC": 0.03, "price:ETH": 0.04, "price:AAVE": 0.05, "price:SOL": 0.05}
BASE_FACTORS = ("peg:USDC", "price:BTC", "price:ETH")
MORE_FACTORS = ("peg:USDC", "price:AAVE", "price:BTC", "price:ETH", "price:SOL")
DAYS_PER_YEAR = 365.0
_NODES, _MASS = np.polynomial.legendre.leggauss(64)
UNIFORM, MASS = (_NODES + 1.0) / 2.0, _MASS / 2.0

VOL = SpotVolRule(beta=-0.5, eta=0.04, beta_abs=0.6, mean_abs=0.02)
CALM_COIN = DefaultLaw(60.0, 2.0, 3.0, 0.4, 0.5, 0.25)
STRESSED_COIN = DefaultLaw(40.0, 1.0, 4.0, 0.3, 0.5, 0.1, stress_loading=0.5)
STRESS = Stress("price:BTC", 0.03)
LATEST = -0.01
DISCOUNT = DiscountLaw(0.004, 9.0, -0.002, 0.1, latest=LATEST)
TOKEN = DefaultLaw(30.0, 2.0, 4.0, 0.15, DISCOUNT.reversion_per_day, 0.05)
FUNDING = FundingLaw(interval_hours=8.0, kappa=0.3, theta=1e-4, sigma=2e-4, cap=1.0, latest=5e-4)
FROZEN = OracleLaw("price:BTC", outages_per_year=100.0, outage_steps=2)
WRONG = OracleLaw("price:ETH", errors_per_year=150.0, error_mean=0.02, error_std=0.1, error_steps=2)
DROUGHT = DroughtLaw(daily_std=0.03, sensitivity=0.7, least=0.3)


def base_moves(factors: tuple[str, ...] = BASE_FACTORS) -> MertonJumps:
    """Independent normal prices and a coin: a jump diffusion without jumps, which compiles fastest."""
    return merton_jumps(factors, STD, {}, correlation=np.eye(len(factors)))


def with_spot_vol(base: ScenarioGenerator, names: tuple[str, ...] = ("vol:ETH",)) -> SpotVol:
    """Implied volatilities by rule."""
    return spot_vol(base, dict.fromkeys(names, VOL))


def with_discount(base: ScenarioGenerator, more: tuple[str, ...] = ()) -> LstDiscount:
    """A staked token on ordinary days."""
    return lst_discount(base, {"discount:wstETH": DISCOUNT} | dict.fromkeys(more, DISCOUNT))


def with_jumps(
    base: ScenarioGenerator, more: Mapping[str, DefaultLaw] | None = None, design: JumpDesign | None = None
) -> RareJumps:
    """USDC, which the base moves already, the staked token, and DAI, which also follows the stress of BTC."""
    laws = {"peg:USDC": CALM_COIN, "peg:DAI": STRESSED_COIN, "discount:wstETH": TOKEN}
    return rare_jumps(base, laws | dict(more or {}), stress=STRESS, design=design)


def with_funding(base: ScenarioGenerator, more: tuple[str, ...] = ()) -> Funding:
    """Funding every eight hours, of further perpetuals every hour."""
    return funding(base, {"funding:BTC": FUNDING} | dict.fromkeys(more, FUNDING._replace(interval_hours=1.0)))


def with_oracles(base: ScenarioGenerator, more: tuple[str, ...] = ()) -> OracleError:
    """An oracle that freezes and one that is wrong."""
    laws = {"oracle:BTC": FROZEN, "oracle:aave": WRONG}
    return oracle_error(base, laws | dict.fromkeys(more, FROZEN._replace(delay_steps=3, feed="shared")))


def with_drought(base: ScenarioGenerator, names: tuple[str, ...] = ("depth:BTC",)) -> LiquidityDrought:
    """Books that thin out."""
    return liquidity_drought(base, dict.fromkeys(names, DROUGHT))


def all_overlays() -> LiquidityDrought:
    """Every overlay on the normal moves."""
    return with_drought(with_oracles(with_funding(with_jumps(with_discount(with_spot_vol(base_moves()))))))


def more_of_all_overlays() -> LiquidityDrought:
    """The same with further factors in the base and in every overlay."""
    generator: ScenarioGenerator = with_spot_vol(base_moves(MORE_FACTORS), ("vol:AAVE", "vol:ETH", "vol:SOL"))
    generator = with_discount(generator, ("discount:mSOL",))
    generator = with_jumps(generator, {"peg:USDe": CALM_COIN, "discount:mSOL": TOKEN})
    generator = with_oracles(with_funding(generator, ("funding:SOL",)), ("oracle:SOL", "oracle:drift"))
    return with_drought(generator, ("depth:SOL", "depth:BTC"))


OVERLAY_FACTORS = (
    *BASE_FACTORS, "vol:ETH", "discount:wstETH", "peg:DAI", "funding:BTC", "oracle:BTC", "oracle:aave", "depth:BTC",
)  # fmt: skip


# ---- expectations ----------------------------------------------------------------------------------------------------


class MeanAndVariance(NamedTuple):
    """Of one factor over one step."""

    mean: float
    variance: float


def of_normal(function: Callable[[np.ndarray], np.ndarray], std: float) -> MeanAndVariance:
    """Of a function of one normal variable; the two halves apart, because |x| has a kink at 0."""
    u = np.concatenate([UNIFORM / 2.0, 0.5 + UNIFORM / 2.0])
    mass = np.concatenate([MASS, MASS]) / 2.0
    values = function(std * stats.norm.ppf(u))
    mean = float(mass @ values)
    return MeanAndVariance(mean, float(mass @ (values - mean) ** 2))


def default_moments(law: DefaultLaw, days: float, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """E[f(D)] and E[f(D)^2] of a function with f(0) = 0 of the discount after `days`, without stress."""
    return _default_moments(law, days, law.jumps_per_year * days / DAYS_PER_YEAR, function)


def _default_moments(
    law: DefaultLaw, days: float, expected: float, function: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    jumps = -math.expm1(-expected)
    until = -np.log1p(-UNIFORM * jumps) / expected  # share of the step before the jump, given that there is one
    depth = law.depth_cap * stats.beta.ppf(UNIFORM, law.depth_a, law.depth_b)
    healed = function(depth[None, :] * np.exp(-law.recovery_per_day * days * (1.0 - until))[:, None])
    kept = function(depth)
    p = law.absorbing_probability
    powers = [(1.0 - p) * (MASS @ healed**k @ MASS) + p * (MASS @ kept**k) for k in (1, 2)]
    return jumps * np.array(powers)


def log_price(discount: np.ndarray) -> np.ndarray:
    """ln(1 - D)."""
    return np.log1p(-discount)


def _stressed_moments() -> MeanAndVariance:
    """ln(1 - D) of DAI over a day, over the stress of BTC."""
    falls = -STD["price:BTC"] * stats.norm.ppf(UNIFORM / 2.0) / STRESS.daily_std
    normal_rate = STRESSED_COIN.jumps_per_year / DAYS_PER_YEAR
    given = [
        _default_moments(STRESSED_COIN, 1.0, normal_rate * math.exp(STRESSED_COIN.stress_loading * fall), log_price)
        for fall in falls
    ]
    first, second = 0.5 * (MASS @ np.array(given)) + 0.5 * default_moments(STRESSED_COIN, 1.0, log_price)
    return MeanAndVariance(first, second - first**2)


def funding_moments(law: FundingLaw, intervals: int) -> MeanAndVariance:
    """Of the sum of `intervals` rates that no cap holds: f_j = theta + (f_0 - theta) e^j + sum_i e^{j-i} s Z_i."""
    decay = math.exp(-law.kappa)
    spread = law.sigma * math.sqrt((1.0 - decay**2) / (2.0 * law.kappa))
    mean = sum(law.theta + (law.latest - law.theta) * decay**j for j in range(1, intervals + 1))
    loads = [sum(decay**k for k in range(intervals - i)) for i in range(intervals)]
    return MeanAndVariance(mean, spread**2 * sum(load**2 for load in loads))


def _overlay_law() -> KnownLaw:
    names = OVERLAY_FACTORS
    std_btc, std_eth = STD["price:BTC"], STD["price:ETH"]
    size = of_normal(np.abs, std_eth)
    usdc = default_moments(CALM_COIN, 1.0, log_price)
    token = default_moments(TOKEN, 1.0, log_price)
    frozen = -math.expm1(-FROZEN.outages_per_year / DAYS_PER_YEAR)
    wrong = -math.expm1(-WRONG.errors_per_year / DAYS_PER_YEAR)
    moments = {
        **{name: MeanAndVariance(0.0, STD[name] ** 2) for name in BASE_FACTORS},
        "vol:ETH": MeanAndVariance(
            VOL.beta_abs * (size.mean - VOL.mean_abs),
            (VOL.beta * std_eth) ** 2 + VOL.beta_abs**2 * size.variance + VOL.eta**2,
        ),
        "peg:USDC": MeanAndVariance(usdc[0], STD["peg:USDC"] ** 2 + usdc[1] - usdc[0] ** 2),
        "peg:DAI": _stressed_moments(),
        "discount:wstETH": MeanAndVariance(
            (DISCOUNT.mean - LATEST) * -math.expm1(-DISCOUNT.reversion_per_day) + token[0],
            DISCOUNT.daily_std**2 + token[1] - token[0] ** 2,
        ),
        "funding:BTC": funding_moments(FUNDING, 3),
        "oracle:BTC": MeanAndVariance(0.0, frozen * std_btc**2),
        "oracle:aave": MeanAndVariance(
            wrong * WRONG.error_mean,
            wrong * (WRONG.error_std**2 + WRONG.error_mean**2) - (wrong * WRONG.error_mean) ** 2,
        ),
        "depth:BTC": of_normal(
            lambda r: np.maximum(math.log(DROUGHT.least), -DROUGHT.sensitivity * np.abs(r) / DROUGHT.daily_std), std_btc
        ),
    }
    covariance = np.diag([moments[name].variance for name in names])
    known = {
        ("price:ETH", "vol:ETH"): VOL.beta * std_eth**2,
        ("price:BTC", "oracle:BTC"): -frozen * std_btc**2,
        # the stress of DAI is a function of BTC
        **dict.fromkeys([("peg:DAI", name) for name in ("price:BTC", "oracle:BTC", "depth:BTC")], math.nan),
    }
    for (first, second), value in known.items():
        i, j = names.index(first), names.index(second)
        covariance[i, j] = covariance[j, i] = value
    return KnownLaw(np.array([moments[name].mean for name in names]), covariance)


OVERLAYS_REFUSED = (
    (lambda: spot_vol(base_moves(), {"vol:ETH": VOL._replace(beta=math.nan)}), "beta of vol:ETH is nan"),
    (lambda: spot_vol(base_moves(), {"vol:ETH": VOL._replace(eta=-0.1)}), "eta of vol:ETH is -0.1"),
    (lambda: spot_vol(base_moves(), {"vol:SOL": VOL}), "vol:SOL follows price:SOL, which the generator does not move"),
    (lambda: spot_vol(base_moves(), {"price:ETH": VOL}), "spot_vol: price:ETH is no factor of its kind"),
    (lambda: spot_vol(base_moves(), {}), "spot_vol: no factor is given"),
    (lambda: spot_vol(base_moves(), {"vol:ETH": VOL}, step_days=0.0), "step_days is 0.0"),
    (lambda: with_spot_vol(with_spot_vol(base_moves())), "vol:ETH is moved by the generator already"),
    (
        lambda: rare_jumps(base_moves(), {"peg:DAI": CALM_COIN._replace(jumps_per_year=math.nan)}),
        "jumps_per_year of peg:DAI",
    ),
    (lambda: rare_jumps(base_moves(), {"peg:DAI": CALM_COIN._replace(depth_cap=1.0)}), "depth_cap of peg:DAI is 1.0"),
    (lambda: rare_jumps(base_moves(), {"peg:DAI": CALM_COIN._replace(depth_a=0.01)}), "depth_a of peg:DAI is 0.01"),
    (
        lambda: rare_jumps(base_moves(), {"peg:DAI": CALM_COIN._replace(absorbing_probability=1.5)}),
        "absorbing_probability",
    ),
    (
        lambda: rare_jumps(base_moves(), {"peg:DAI": STRESSED_COIN}),
        "peg:DAI has a stress_loading of 0.5, and no stress",
    ),
    (
        lambda: rare_jumps(base_moves(), {"peg:DAI": STRESSED_COIN}, stress=Stress("price:SOL", 0.05)),
        "stress is read from price:SOL",
    ),
    (
        lambda: rare_jumps(base_moves(), {"peg:DAI": STRESSED_COIN}, stress=Stress("price:BTC", math.nan)),
        "stress of rare_jumps is nan",
    ),
    (lambda: with_discount(with_jumps(with_jumps(base_moves()))), "rare_jumps: peg:USDC has one already"),
    (lambda: with_discount(with_discount(base_moves())), "lst_discount: discount:wstETH has one already"),
    (lambda: lst_discount(base_moves(), {"discount:X": DISCOUNT._replace(nu=2.0)}), "nu of discount:X is 2.0"),
    (
        lambda: lst_discount(base_moves(), {"discount:X": DISCOUNT._replace(latest=math.inf)}),
        "latest discount of discount:X",
    ),
    (
        lambda: lst_discount(base_moves(), {"discount:X": DISCOUNT._replace(daily_std=0.0)}),
        "daily_std of discount:X is 0.0",
    ),
    (lambda: funding(base_moves(), {"funding:BTC": FUNDING._replace(kappa=0.0)}), "kappa of funding:BTC is 0.0"),
    (
        lambda: funding(base_moves(), {"funding:BTC": FUNDING._replace(latest=math.nan)}),
        "latest rate of funding:BTC is nan",
    ),
    (lambda: funding(base_moves(), {"funding:BTC": FUNDING}, step_days=1.0 / 24.0), "1 hours has 0.125 intervals"),
    (
        lambda: oracle_error(base_moves(), {"oracle:X": FROZEN._replace(deviation=math.nan)}),
        "deviation of oracle:X is nan",
    ),
    (
        lambda: oracle_error(base_moves(), {"oracle:X": FROZEN._replace(delay_steps=-1)}),
        "delay_steps of oracle:X is -1",
    ),
    (
        lambda: oracle_error(base_moves(), {"oracle:X": FROZEN._replace(heartbeat_steps=0)}),
        "heartbeat_steps of oracle:X is 0",
    ),
    (lambda: oracle_error(base_moves(), {"oracle:X": OracleLaw("price:SOL")}), "oracle:X follows price:SOL"),
    (
        lambda: liquidity_drought(base_moves(), {"depth:BTC": DROUGHT._replace(least=0.0)}),
        "least depth of depth:BTC is 0.0",
    ),
    (
        lambda: liquidity_drought(base_moves(), {"depth:BTC": DROUGHT._replace(sensitivity=math.inf)}),
        "sensitivity of depth:BTC is inf",
    ),
)


STRATIFIED = 65_536

STRATA_REFUSED = (
    (lambda: with_jumps(base_moves(), design=JumpDesign(jax.random.key(0), 128)), "128 scenarios are too few for 4"),
    (lambda: with_jumps(base_moves(), design=JumpDesign(jax.random.key(0), 512, share=math.nan)), "jumps is nan"),
)


def _jump_law() -> KnownLaw:
    """Of the jumps and what they stand on: a part of the law of all overlays."""
    whole = _overlay_law()
    names = (*BASE_FACTORS, "discount:wstETH", "peg:DAI")
    places = [OVERLAY_FACTORS.index(name) for name in names]
    return KnownLaw(whole.mean[places], whole.covariance[np.ix_(places, places)])


OVERLAY_ENTRIES: dict[str, Entry] = {
    "overlays": Entry(
        lambda key: all_overlays(),
        _overlay_law(),
        lambda key: (all_overlays(), more_of_all_overlays()),
        OVERLAYS_REFUSED,
    ),
    "jumps_in_strata": Entry(
        lambda key: with_jumps(with_discount(base_moves()), design=JumpDesign(key, STRATIFIED)),
        _jump_law(),
        None,
        STRATA_REFUSED,
        STRATIFIED,
    ),
}
