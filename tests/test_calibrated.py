"""Generators built from the calibration that ships: every law, mixture and overlay has the file's figures."""

import functools
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
from aggregator.calibration_file import CURRENT, CalibrationFile, read_calibration
from aggregator.config import CalibratedFigures
from aggregator.errors import ConfigurationError
from aggregator.scenarios import draw_all

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
    drawn = draw_all(generator, jax.random.key(3), scenario_count(of, SCENARIOS))
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
