"""Generators built from the calibration that ships: every law, mixture and overlay has the file's figures."""

import functools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats

from aggregator.calibrated import (
    calibrated_factors,
    calibrated_generator,
    correlation_with_mean,
    market_figures,
    scenario_count,
    stressed_names,
)
from aggregator.calibrated_history import HistoryTables
from aggregator.calibrated_overlays import drought_law, of_step
from aggregator.calibration_file import CURRENT, CalibrationFile, read_calibration
from aggregator.config import CalibratedFigures
from aggregator.errors import ConfigurationError
from aggregator.factors import Generation, MarketSize, StressedLaw
from aggregator.generators.merton_jumps import MertonJumps
from aggregator.history_tables import ReturnPanel
from aggregator.overlays.liquidity_drought import tail_depth
from aggregator.overlays.rare_jumps import RareJumps
from aggregator.run_market import requirement_gaps
from aggregator.scenarios import ScenarioGenerator, draw_all, draw_paths

SHIPPED = Path(__file__).resolve().parent.parent / "configs" / "calibrated" / "2024-06-30.toml"
CHOSEN = ("price:BTC", "price:ETH", "price:SOL", "vol:BTC", "peg:USDC", "peg:wstETH")
SCENARIOS = 8192


@functools.cache
def file() -> CalibrationFile:
    return read_calibration(SHIPPED)


def figures(**changes: Any) -> CalibratedFigures:
    return CalibratedFigures(generator="calibrated", calibration="x.toml", factors=CHOSEN, **changes)


@functools.cache
def moments(law_name: str, **changes: Any) -> dict[str, tuple[float, float]]:
    """Weighted mean and standard deviation of every factor."""
    of = figures(**{name: dict(value) if name == "mixture" else value for name, value in changes.items()})
    names = calibrated_factors(file(), of)
    generator = calibrated_generator(file(), law_name, names, of, seed=3, scenarios=SCENARIOS, horizon_days=1.0)
    assert sorted(generator.factors) == list(names)
    drawn = draw_all(generator, jax.random.key(3), scenario_count(generator, SCENARIOS))
    shocks, weights = np.asarray(drawn.shocks), np.asarray(drawn.weights)
    assert np.isfinite(shocks).all()
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    mean = (weights[:, None] * shocks).sum(axis=0)
    std = np.sqrt((weights[:, None] * (shocks - mean) ** 2).sum(axis=0))
    return {name: (float(m), float(s)) for name, m, s in zip(generator.factors, mean, std, strict=True)}


@pytest.mark.parametrize("law", ["t_copula", "multivariate_t"])
@pytest.mark.parametrize("law_name", [CURRENT, "stressed_2020"])
def test_elliptical_laws_have_the_standard_deviations_of_the_file(law: str, law_name: str) -> None:
    for name, (mean, std) in moments(law_name, law=law).items():
        # Pegs have hardly a variance (a tail index near 2): their sample's comes from below, more slowly.
        slack = 0.10 if name.startswith("peg:") else 0.05
        assert std == pytest.approx(file().laws[law_name].daily_std[name], rel=slack), name
        assert abs(mean) < 0.05 * std, name


def test_a_peg_has_the_quantiles_of_its_t() -> None:
    of = figures(points="random")
    names = calibrated_factors(file(), of)
    generator = calibrated_generator(file(), CURRENT, names, of, seed=3, scenarios=SCENARIOS, horizon_days=1.0)
    moves = np.asarray(draw_all(generator, jax.random.key(3), SCENARIOS).shocks)[:, generator.factors.index("peg:USDC")]
    law = stats.t(file().pegs["USDC"].nu)
    # The table's law is scaled to unit variance, which cuts none of the tail: compare the shape, then the size.
    low, high = np.quantile(moves, [0.05, 0.25])
    assert low / high == pytest.approx(float(law.ppf(0.05) / law.ppf(0.25)), rel=0.06)
    assert -low == pytest.approx(-float(law.ppf(0.05)) / law.std() * file().pegs["USDC"].daily_std, rel=0.10)


def test_jumps_leave_the_variance_of_the_law() -> None:
    found = moments(CURRENT, law="merton_jumps")
    for name in ("price:BTC", "price:ETH", "price:SOL", "vol:BTC", "peg:USDC"):
        # Jumps are rare and large: a few of them decide the sample's variance.
        assert 0.75 < found[name][1] / file().laws[CURRENT].daily_std[name] < 1.6, name


def test_regimes_lie_between_the_calmest_and_the_wildest() -> None:
    states = file().regimes.states
    today, stressed = moments(CURRENT, law="regime_switching"), moments("stressed_2020", law="regime_switching")
    for name in ("price:BTC", "price:ETH"):
        low, high = states[0].daily_std[name], states[-1].daily_std[name]
        assert 0.95 * low < today[name][1] < 1.05 * high
        assert today[name][1] < stressed[name][1]


def test_a_mixture_takes_its_parts_by_weight() -> None:
    parts = {law: moments(CURRENT, law=law, points="random")["price:BTC"][1] for law in ("t_copula", "merton_jumps")}
    mixed = moments(CURRENT, mixture=(("t_copula", 0.5), ("merton_jumps", 0.5)))["price:BTC"][1]
    expected = np.sqrt(0.5 * parts["t_copula"] ** 2 + 0.5 * parts["merton_jumps"] ** 2)
    assert mixed == pytest.approx(float(expected), rel=0.12)


def test_overlays_leave_the_prices_and_add_bad_days() -> None:
    plain, covered = moments(CURRENT), moments(CURRENT, overlays=("depeg", "lst_discount", "spot_vol"))
    for name in ("price:BTC", "price:ETH", "price:SOL"):
        assert covered[name][1] == pytest.approx(plain[name][1], rel=0.03)
    assert covered["peg:USDC"][0] < plain["peg:USDC"][0] + 1e-6
    assert covered["peg:USDC"][1] > plain["peg:USDC"][1]
    assert covered["vol:BTC"][1] == pytest.approx(file().laws[CURRENT].daily_std["vol:BTC"], rel=0.6)


def built(steps: int | None = None, horizon_days: float = 1.0, scenarios: int = SCENARIOS, **changes: Any) -> Any:
    of = figures(**changes)
    names = calibrated_factors(file(), of)
    return calibrated_generator(
        file(), CURRENT, names, of, seed=3, scenarios=scenarios, horizon_days=horizon_days, steps=steps
    )


def test_rare_jumps_of_all_overlays_share_one_design() -> None:
    generator = built(overlays=("depeg", "lst_discount"))
    assert generator.names == ("peg:USDC", "peg:wstETH")
    jumped = np.asarray(generator.strata.coin)
    # a quarter of the scenarios, in every scramble alike
    assert [int((block < 2).sum()) for block in jumped.reshape(8, -1)] == [SCENARIOS // 32] * 8
    weights = np.asarray(generator.own_weights)
    hazard = {"USDC": file().pegs["USDC"].jumps_per_year, "wstETH": file().discounts["wstETH"].jumps_per_year}
    everybody = sum(hazard.values()) / 365.0
    drawn = np.asarray(draw_all(generator, jax.random.key(3)).shocks)
    deep = (drawn[:, generator.factors.index("peg:USDC")] < -0.02).astype(float)
    # depth 0.4 Beta(1, 4) beyond 2 % at the jump: P = 0.95^4, a little less once it has healed for half a day
    expected = hazard["USDC"] / 365.0 * 0.95**4
    assert 0.7 * expected < weights @ deep < 1.6 * expected  # stress makes it more
    assert everybody < 0.002 < weights[jumped < 2].sum() < 0.02


def test_stress_of_a_stressed_law_hastens_its_jumps() -> None:
    of = figures(overlays=("depeg",), jumps={"stress_loading": 0.5})
    calm = figures(overlays=("depeg",), jumps={"stress_loading": 0.0})
    names = calibrated_factors(file(), of)

    def probability(law_name: str, chosen: CalibratedFigures) -> float:
        generator = calibrated_generator(file(), law_name, names, chosen, seed=3, scenarios=16_384, horizon_days=1.0)
        drawn = draw_all(generator, jax.random.key(3))
        assert isinstance(generator, RareJumps)
        below = generator.base
        before = np.asarray(draw_all(below, jax.random.key(3)).shocks)[:, below.factors.index("peg:USDC")]
        moves = np.asarray(drawn.shocks)[:, generator.factors.index("peg:USDC")]
        return float(np.asarray(drawn.weights) @ (moves - before < -1e-9))

    rate = -np.expm1(-file().pegs["USDC"].jumps_per_year / 365.0)
    for law_name in (CURRENT, "stressed_2020"):
        assert probability(law_name, calm) == pytest.approx(rate, rel=0.02)
    # E exp(b max(-Z, 0)) of a normal is 1.28; the wider tails of the law, and twice its width in 2020, make more
    assert 1.2 * rate < probability(CURRENT, of) < 1.6 * rate
    assert 1.6 * rate < probability("stressed_2020", of) < 4.0 * rate


def test_common_jumps_come_more_often_under_a_stressed_law() -> None:
    def per_year(law_name: str) -> float:
        of = figures(law="merton_jumps")
        names = calibrated_factors(file(), of)
        generator = calibrated_generator(file(), law_name, names, of, seed=3, scenarios=4096, horizon_days=1.0)
        assert isinstance(generator, MertonJumps)
        assert generator.common_counts is not None
        return -math.log(float(generator.common_counts[0])) * 365.0  # of none in a day

    wider = file().laws["stressed_2020"].daily_std["price:BTC"] / file().laws[CURRENT].daily_std["price:BTC"]
    assert per_year(CURRENT) == pytest.approx(file().jumps.common.per_year)
    assert per_year("stressed_2020") == pytest.approx(file().jumps.common.per_year * math.exp(0.5 * (wider - 1.0)))


def test_few_scenarios_draw_rare_jumps_as_they_come() -> None:
    generator = built(overlays=("depeg",), points="random", scenarios=100)
    assert generator.own_weights is None


def test_paths_have_oracles_and_funding_behind_the_factors_of_the_run() -> None:
    overlays = ("depeg", "oracle_error", "funding", "liquidity_drought")
    assert built(overlays=overlays).factors == built(overlays=("depeg",)).factors
    paths = built(12, 1.0 / 12.0, points="random", overlays=overlays)
    behind = ("oracle:BTC", "oracle:ETH", "oracle:SOL", "funding:BTC", "funding:ETH")
    assert paths.factors == (*built(overlays=("depeg",)).factors, *behind)
    # two hours of an eight-hour rate: a quarter of it a step, and after four steps the law of one interval
    found = file().funding["BTC"]
    law = of_step(found, 1.0 / 12.0)
    rate, variance = law.latest, 0.0
    for _ in range(4):
        decay = math.exp(-law.kappa)
        rate = law.theta + (rate - law.theta) * decay
        variance = variance * decay**2 + law.sigma**2 * -math.expm1(-2.0 * law.kappa) / (2.0 * law.kappa)
    decay = math.exp(-found.kappa)
    assert 4.0 * rate == pytest.approx(found.theta + (found.latest - found.theta) * decay)
    assert 16.0 * variance == pytest.approx(found.sigma**2 * -math.expm1(-2.0 * found.kappa) / (2.0 * found.kappa))
    assert of_step(found, 1.0).interval_hours == found.interval_hours


def test_a_proxy_goes_along_with_its_model() -> None:
    of = figures(proxies={"price:XYZ": {"factor": "price:SOL", "scale": 1.5}})
    names = calibrated_factors(file(), of)
    assert "price:XYZ" in names
    generator = calibrated_generator(file(), CURRENT, names, of, seed=3, scenarios=SCENARIOS, horizon_days=1.0)
    shocks = np.asarray(draw_all(generator, jax.random.key(3)).shocks)
    own, model = shocks[:, generator.factors.index("price:XYZ")], shocks[:, generator.factors.index("price:SOL")]
    np.testing.assert_allclose(own, 1.5 * model, rtol=0.05, atol=0.01)


def test_the_horizon_widens_every_factor() -> None:
    of = figures()
    names = calibrated_factors(file(), of)
    drawn = [
        np.asarray(
            draw_all(
                calibrated_generator(file(), CURRENT, names, of, seed=3, scenarios=2048, horizon_days=days),
                jax.random.key(3),
            ).shocks
        )
        for days in (1.0, 4.0)
    ]
    np.testing.assert_allclose(drawn[1], 2.0 * drawn[0], rtol=1e-12, atol=1e-15)


def test_stressed_laws_and_market_sizes_are_those_of_the_file() -> None:
    every = stressed_names(file(), figures())
    assert every == tuple(name for name in file().laws if name != CURRENT)
    assert stressed_names(file(), figures(stressed=("stressed_2021",))) == ("stressed_2021",)
    assert stressed_names(file(), figures(stressed=())) == ()
    found = market_figures(file())["price:BTC"]
    assert found.daily_volume == file().liquidity["BTC"].adv_usd
    assert found.basis == file().basis["BTC"].charge


def test_a_mean_correlation_is_met_and_the_matrix_stays_one() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    matrix = np.atleast_2d(np.corrcoef(root @ root.T))
    names = [f"price:{i}" for i in range(4)] + ["vol:0", "peg:0"]
    for mean in (0.0, 0.2, 0.85, 0.99):
        moved = correlation_with_mean(matrix, names, mean)
        block = moved[:4, :4]
        found = (block.sum() - 4) / 12
        now = (matrix[:4, :4].sum() - 4) / 12
        if mean >= now or now > 0:
            assert found == pytest.approx(mean, abs=1e-12)
        np.testing.assert_allclose(np.diag(moved), 1.0)
        assert np.linalg.eigvalsh(moved)[0] > -1e-12


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factors": ("price:BTCC",)}, "factor 'price:BTCC' is not in the calibration"),
        ({"proxies": {"price:X": {"factor": "price:Y"}}}, "factor 'price:Y' is not in the calibration"),
        ({"scenarios": 10_000}, "the nearest are 8192 and 16384"),
        ({"stressed": ("stressed_2019",)}, "stressed law 'stressed_2019' is not in the calibration"),
        ({"mixture": {"t_copula": 1.0}}, "a mixture of 1 components"),
        ({"mixture": {"t_copula": 0.5, "merton_jumps": 0.6}}, "expected 1"),
    ],
)
def test_what_the_file_cannot_give_is_refused(changes: dict[str, Any], words: str) -> None:
    of = CalibratedFigures(**({"generator": "calibrated", "calibration": "x.toml", "factors": CHOSEN} | changes))

    def build() -> None:
        names = calibrated_factors(file(), of)
        stressed_names(file(), of)
        calibrated_generator(file(), CURRENT, names, of, seed=1, scenarios=of.scenarios, horizon_days=1.0)

    with pytest.raises(ConfigurationError) as found:
        build()
    assert words in str(found.value)


# ---- filtered history ------------------------------------------------------------------------------------------------

DATES = np.arange(np.datetime64("2020-01-02"), np.datetime64("2024-06-30"))
HISTORY = {"table": "bars.csv"}
REPLAYED = ("price:BTC", "price:ETH", "price:SOL", "vol:BTC", "peg:USDC", "peg:wstETH")


@functools.cache
def tables() -> HistoryTables:
    """Returns of three assets, of which SOL lists on the first day of 2021, and a volatility from 2023 on."""
    rng = np.random.default_rng(4)
    wild = np.where(np.datetime64("2021-01-01") > DATES, 1.8, 1.0)
    market = 0.03 * wild * rng.standard_t(5, len(DATES))
    returns = np.stack([market, 1.1 * market, 1.4 * market], axis=1) + 0.01 * rng.standard_normal((len(DATES), 3))
    returns[np.datetime64("2021-01-01") > DATES, 2] = np.nan
    vols = 0.05 * rng.standard_normal(len(DATES)) - 0.3 * returns[:, 0]
    vols[np.datetime64("2023-01-01") > DATES] = np.nan
    panel = ReturnPanel(DATES, ("BTC", "ETH", "SOL"), returns, ("perp", "perp", "perp"), (0, 1))
    return HistoryTables(panel, {"BTC": vols})


def replaying(law_name: str = CURRENT, steps: int | None = None, **changes: Any) -> ScenarioGenerator:
    of = figures(**({"law": "filtered_history", "history": HISTORY} | changes))
    names = calibrated_factors(file(), of)
    assert names == tuple(sorted(REPLAYED))
    return calibrated_generator(
        file(), law_name, names, of, seed=3, scenarios=4096, horizon_days=1.0, steps=steps, tables=tables()
    )


def drawn_of(generator: ScenarioGenerator, name: str) -> np.ndarray:
    drawn = draw_all(generator, jax.random.key(3), scenario_count(generator, 4096))
    return np.asarray(drawn.shocks)[:, generator.factors.index(name)]


def test_a_stressed_period_is_replayed_as_it_was() -> None:
    generator = replaying("stressed_2020")
    law = file().laws["stressed_2020"]
    inside = (np.datetime64(law.first_date) <= DATES) & (np.datetime64(law.last_date) >= DATES)
    returns = tables().panel.returns[inside]
    pairs = np.stack([drawn_of(generator, "price:BTC"), drawn_of(generator, "price:ETH")], axis=1)
    # every draw is one of the period's days, both assets of the same day
    far = np.abs(pairs[:, None, :] - returns[None, :, :2]).max(axis=2).min(axis=1)
    assert far.max() < 1e-12
    assert len(np.unique(np.round(pairs[:, 0], 14))) > 0.99 * inside.sum()
    # SOL did not trade: its loading on the anchors, at the size that the file gives it
    sol = drawn_of(generator, "price:SOL")
    assert np.corrcoef(sol, pairs[:, 0])[0, 1] > 0.8
    assert sol.std() / returns[:, 0].std() == pytest.approx(
        file().laws["stressed_2020"].daily_std["price:SOL"] / file().laws["stressed_2020"].daily_std["price:BTC"],
        rel=0.35,
    )
    # a period that the table does not cover is no law
    short = HistoryTables(
        ReturnPanel(DATES[1200:], tables().panel.assets, tables().panel.returns[1200:], ("", "", ""), (0, 1)), {}
    )
    of = figures(law="filtered_history", history=HISTORY)
    with pytest.raises(ConfigurationError, match="no date of the history lies in stressed_2020"):
        calibrated_generator(
            file(), "stressed_2020", ("price:BTC",), of, seed=3, scenarios=4096, horizon_days=1.0, tables=short
        )


def test_today_is_replayed_at_the_chosen_volatility() -> None:
    widths = {v: replaying(history=HISTORY | {"volatility": v}) for v in ("ewma", "garch", "gjr")}
    recursions = {v: (float(g.alpha[0]), float(g.beta[0]), float(g.gamma[0])) for v, g in widths.items()}  # type: ignore[attr-defined]
    fit = file().garch["price:BTC"]
    assert fit.gamma > 0.0
    assert recursions["ewma"] == pytest.approx((1.0 - file().calibration.decay, file().calibration.decay, 0.0))
    assert recursions["gjr"] == pytest.approx((fit.alpha, fit.beta, fit.gamma))
    assert recursions["garch"] == pytest.approx((fit.alpha + fit.gamma / 2.0, fit.beta, 0.0))
    sizes = {v: drawn_of(g, "price:BTC").std() for v, g in widths.items()}
    assert len({round(size, 9) for size in sizes.values()}) == 3
    assert all(0.02 < size < 0.08 for size in sizes.values())


def test_blocks_of_dates_follow_each_other_on_paths() -> None:
    def following(mean_block: float) -> float:
        generator = replaying("stressed_2021", steps=2, history=HISTORY | {"mean_block": mean_block})
        # without the volatility's own course the second day is the day after the first, or a new draw
        residuals = np.asarray(generator.residuals)[:, 0]  # type: ignore[attr-defined]
        paths = np.asarray(draw_paths(generator, jax.random.key(3), 0, 2048, steps=2))
        column = generator.factors.index("price:BTC")
        first = np.abs(paths[:, :1, column] / generator.sigma_next[0] - residuals[None, :]).argmin(axis=1)  # type: ignore[attr-defined]
        after = residuals[(first + 1) % len(residuals)]
        return float((np.sign(paths[:, 1, column]) == np.sign(after)).mean())

    assert following(1.0) == pytest.approx(0.5, abs=0.05)
    assert following(1e6) > 0.999


@pytest.mark.long
def test_filtered_history_takes_overlays_and_is_part_of_a_mixture() -> None:
    covered = replaying(overlays=("depeg", "lst_discount"))
    assert covered.own_weights is not None
    assert sorted(covered.factors) == sorted(REPLAYED)
    np.testing.assert_array_equal(drawn_of(covered, "price:BTC"), drawn_of(replaying(), "price:BTC"))
    assert drawn_of(covered, "peg:USDC").min() < -0.05
    mixed = replaying(mixture={"filtered_history": 0.5, "t_copula": 0.5})
    parts = [drawn_of(g, "price:BTC") for g in (replaying(), replaying(law="t_copula", history=None, points="random"))]
    whole = drawn_of(mixed, "price:BTC")
    expected = math.sqrt(sum(float(part.var()) for part in parts) / 2.0)
    assert whole.std() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"law": "filtered_history"}, "needs the section scenarios.history"),
        ({"law": "t_copula", "history": HISTORY}, "read by the law filtered_history alone"),
    ],
)
def test_a_history_belongs_to_its_law(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        figures(**changes)


def test_scenarios_without_stress_or_sizes_say_so() -> None:
    whole = Generation(
        replaying(),
        REPLAYED,
        4096,
        {},
        frozenset(),
        (),
        (StressedLaw("stressed_2020", replaying("stressed_2020"), 4096),),
        {"price:BTC": MarketSize(1e9, 0.03, 1e-4)},
    )
    assert requirement_gaps(whole) == ()
    without_stress, without_sizes = requirement_gaps(whole._replace(stressed=(), sizes={}))
    assert "no stressed law" in without_stress
    assert "no market has a known size" in without_sizes
    assert requirement_gaps(whole._replace(stressed=())) == (without_stress,)


def test_a_drought_thins_the_markets_that_have_a_size() -> None:
    moves = np.zeros((256, 1))
    moves[0] = -0.09  # three deviations, in the tail of one scenario in a hundred
    weights = np.full(256, 0.99 / 255)
    weights[0] = 0.01
    law = drought_law(figures(), 0.03)
    depth = tail_depth(law, moves[:, 0], weights, tail=0.01)
    assert depth == pytest.approx(math.exp(-1.5))
    assert tail_depth(law, moves[:, 0], weights, tail=0.02) == pytest.approx((depth + 1.0) / 2.0)
