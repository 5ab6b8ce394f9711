"""Sobol points: the laws of the drivers under the weights, principal components, reproducibility, error against closed
forms.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from aggregator.batch_errors import batch_standard_error
from aggregator.correlation import correlation_matrix
from aggregator.errors import ConfigurationError
from aggregator.generators.multivariate_t import multivariate_t
from aggregator.risk import expected_shortfall
from aggregator.scenarios import Scenarios, draw_all, draw_paths, draw_scenarios, padded_count, scenario_weights
from aggregator.sobol_points import ScenarioPoints, SobolDesign, principal_root, sobol_points
from tests.generator_suite import DAILY_STD, FACTORS, PAIRS, desk_t

RTOL_FLOAT64 = 1e-12  # float64 against float64, a few operations
STANDARD_ERRORS = 4.0  # of a Monte Carlo estimate at a fixed seed
NU = 4.0


def some_points(seed: int = 1, *, components: int = 3, nu: float = NU, log2_points: int = 10, **options: Any) -> Any:
    design = SobolDesign(jax.random.key(seed), log2_points, **options)
    return sobol_points(design, components=components, degrees_of_freedom=nu)


def host(points: ScenarioPoints) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.asarray(points.normals), np.asarray(points.widths), np.asarray(points.weights)


@pytest.mark.parametrize("nu", [2.5, 4.0, 30.0])
def test_drivers_follow_their_laws_under_the_weights(nu: float) -> None:
    normals, widths, weights = host(some_points(nu=nu, log2_points=13))
    chi_squares = nu / widths**2
    for p in (1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999):
        for values, quantile in (
            *((normals[:, k], special.ndtri(p)) for k in range(3)),
            (chi_squares, stats.chi2.ppf(p, nu)),
        ):
            hit = values <= quantile
            error = math.sqrt(weights**2 @ (hit - p) ** 2)  # of independent points; these lie more evenly
            assert abs(weights @ hit - p) <= error, (p, weights @ hit)
    together = weights @ (normals[:, 0] * chi_squares)
    assert abs(together) <= math.sqrt(weights**2 @ (normals[:, 0] * chi_squares) ** 2)


def test_without_widening_every_point_weighs_the_same() -> None:
    normals, _, weights = host(some_points(common_share=0.0, width_share=0.0))
    np.testing.assert_allclose(weights, 1.0 / len(weights), rtol=RTOL_FLOAT64)
    for block in normals.reshape(8, 1024, 3):  # a net: every 1024th of each normal is hit once
        for k in range(3):
            cells = np.floor(special.ndtr(block[:, k]) * 1024.0).astype(int)
            assert len(np.unique(cells)) == 1024


def test_widening_moves_points_into_the_tails() -> None:
    plain, wide = some_points(common_share=0.0, width_share=0.0), some_points()
    assert np.mean(np.abs(np.asarray(wide.normals)[:, 0]) > 2.5) > 5.0 * np.mean(np.abs(plain.normals[:, 0]) > 2.5)
    far = math.sqrt(NU / stats.chi2.ppf(0.03, NU))
    assert np.mean(np.asarray(wide.widths) > far) > 8.0 * np.mean(np.asarray(plain.widths) > far)


def test_weights_of_every_block_sum_to_its_share() -> None:
    weights = np.asarray(some_points(blocks=5).weights).reshape(5, 1024)
    for block in weights:
        assert math.isclose(math.fsum(block), 0.2, rel_tol=RTOL_FLOAT64)
    assert (weights > 0.0).all()
    # the ratio of the densities is at most 1 / ((1 - 0.25) (1 - 0.5)), and on average 1
    assert weights.max() * 5 * 1024 < 1.1 / 0.375


def test_points_are_a_function_of_the_key() -> None:
    first, again, other = some_points(1), some_points(1), some_points(2)
    for one, two, three in zip(host(first), host(again), host(other), strict=True):
        np.testing.assert_array_equal(one, two)
        assert not np.array_equal(one, three)
    normals = np.asarray(first.normals).reshape(8, 1024, 3)
    assert not np.array_equal(normals[0], normals[1])  # scrambles of their own
    # fewer scrambles are the first ones of more
    np.testing.assert_array_equal(some_points(1, blocks=2).normals, np.asarray(first.normals)[:2048])


def test_the_root_is_that_of_the_principal_components() -> None:
    matrix = correlation_matrix(FACTORS, PAIRS)
    root = principal_root(matrix)
    np.testing.assert_allclose(root @ root.T, matrix, rtol=0.0, atol=1e-14)
    gram = root.T @ root
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0.0, atol=1e-14)
    assert (np.diff(np.diag(gram)) < 0.0).all()
    assert (root[np.abs(root).argmax(axis=0), np.arange(4)] > 0.0).all()
    assert np.abs(root[:, 0]).argmin() == FACTORS.index("peg:USDC")  # the market is the first component
    with pytest.raises(ConfigurationError, match="not positive definite"):
        principal_root(np.ones((2, 2)) - 0.1 * np.eye(2) + np.diag([0.1, 0.1]))


def test_scenarios_are_the_rows_of_the_table() -> None:
    design = SobolDesign(jax.random.key(5), 6, blocks=3)
    generator = desk_t(NU, points=design)
    drawn = draw_all(generator, jax.random.key(99))
    assert drawn.shocks.shape == (padded_count(3 * 64), 4)
    points = sobol_points(design, components=4, degrees_of_freedom=NU)
    normals, widths, weights = host(points)
    std = np.array([DAILY_STD[name] for name in FACTORS]) * math.sqrt((NU - 2.0) / NU)
    expected = widths[:, None] * (normals @ (std[:, None] * principal_root(correlation_matrix(FACTORS, PAIRS))).T)
    np.testing.assert_allclose(drawn.shocks[:192], expected, rtol=1e-11, atol=1e-16)  # sums that cancel
    np.testing.assert_array_equal(drawn.weights[:192], weights)
    assert not np.asarray(drawn.weights[192:]).any()
    assert np.isfinite(np.asarray(drawn.shocks)).all()
    # the key of the draw decides nothing: the points were made with the generator
    np.testing.assert_array_equal(draw_scenarios(generator, jax.random.key(1), 0, 256), drawn.shocks)


def test_later_steps_of_a_path_come_from_the_streams_and_keep_the_law() -> None:
    generator = desk_t(9.0, points=SobolDesign(jax.random.key(5), 11))
    key = jax.random.key(7)
    paths = np.asarray(draw_paths(generator, key, 0, 8 * 2048, steps=2))
    weights = np.asarray(scenario_weights(generator))
    np.testing.assert_array_equal(paths[:, 0], draw_scenarios(generator, key, 0, 8 * 2048))
    other = np.asarray(draw_paths(generator, jax.random.key(8), 0, 256, steps=2))
    np.testing.assert_array_equal(other[:, 0], paths[:256, 0])
    assert not np.array_equal(other[:, 1], paths[:256, 1])
    variance = np.array([DAILY_STD[name] ** 2 for name in FACTORS])
    for power, expected in ((1, np.zeros(4)), (2, variance)):
        moment = paths[:, 1] ** power
        error = np.sqrt(weights**2 @ (moment - expected) ** 2)
        assert (np.abs(weights @ moment - expected) <= STANDARD_ERRORS * error).all()
    product = paths[:, 0] * paths[:, 1]  # the steps are independent
    assert (np.abs(weights @ product) <= STANDARD_ERRORS * np.sqrt(weights**2 @ product**2)).all()


def t_shortfall(scale: float, confidence: float) -> float:
    q = stats.t.ppf(confidence, NU)
    return scale * stats.t.pdf(q, NU) / (1.0 - confidence) * (NU + q * q) / (NU - 1.0)


def test_expected_shortfall_of_a_linear_book_has_a_small_error_that_the_blocks_tell() -> None:
    weights_usd = np.array([0.0, 2.0, 1.0, 0.5])
    std = np.array([DAILY_STD[name] for name in FACTORS])
    variance = weights_usd @ (correlation_matrix(FACTORS, PAIRS) * np.outer(std, std)) @ weights_usd
    exact = t_shortfall(math.sqrt((NU - 2.0) / NU * variance), 0.99)

    measure = jax.jit(partial(expected_shortfall, confidence=0.99))  # its loops compile in every call outside of one

    def shortfall(drawn: Scenarios, rows: slice = slice(None), share: float = 1.0) -> float:
        losses = -np.asarray(drawn.shocks)[rows] @ weights_usd
        return float(measure(losses, np.asarray(drawn.weights)[rows] / share))

    plain, sobol, told = [], [], []
    for seed in range(10):
        key = jax.random.key(seed)
        plain.append(shortfall(draw_all(desk_t(NU), key, 16_384)))
        drawn = draw_all(desk_t(NU, points=SobolDesign(key, 11)), key)
        sobol.append(shortfall(drawn))
        blocks = [shortfall(drawn, slice(k * 2048, (k + 1) * 2048), 1.0 / 8.0) for k in range(8)]
        told.append(float(batch_standard_error(jnp.asarray(blocks), jnp.ones(8))))
    errors = [math.sqrt(np.mean((np.array(found) / exact - 1.0) ** 2)) for found in (plain, sobol)]
    assert errors[1] < 0.2 * errors[0]  # the page asks for half; ten repetitions know an error to a quarter
    assert 0.5 < np.mean(told) / exact / errors[1] < 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log2_points": 4}, "log2_points is 4"),
        ({"log2_points": 25}, "log2_points is 25"),
        ({"blocks": 0}, "blocks is 0"),
        ({"common_share": 1.0}, "common_share is 1"),
        ({"width_share": math.nan}, "width_share is nan"),
        ({"common_widening": 0.5}, "common_widening is 0"),
        ({"common_widening": math.inf}, "common_widening is inf"),
        ({"width_quantile": 0.0}, "width_quantile is 0"),
        ({"components": 30_000}, "30001 dimensions"),
    ],
)
def test_designs_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        some_points(**change)


def test_a_standard_error_needs_two_blocks() -> None:
    assert math.isclose(float(batch_standard_error(jnp.array([1.0, 3.0]), jnp.ones(2))), 1.0)
    assert math.isnan(float(batch_standard_error(jnp.array([1.0]), jnp.ones(1))))


def test_a_plain_generator_is_left_as_it_is() -> None:
    generator = multivariate_t(FACTORS, DAILY_STD, correlation=correlation_matrix(FACTORS, PAIRS), nu=NU)
    assert generator.points is None
    assert generator.own_weights is None
    assert generator.start(jax.random.key(0), jax.numpy.uint32(0)) == ()
