"""Fitting: it learns what there is to learn, sees no row after the cut, and gives the same bits again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from models.tier_model_settings import Network, Training
from models.training import (
    LARGEST_INPUT,
    Fit,
    fit,
    forecast,
    input_moments,
    pooled_start,
    row_cost,
    standardised,
)
from tests.small_tier_market import SETTINGS

NETWORK = Network(levels=(0.9, 0.99), layers=1, width=8, dropout=0.0)
TRAINING = Training.model_validate(
    SETTINGS.training.model_dump() | {"steps": 300, "batch": 512, "learning_rate": 0.02, "weight_decay": 0.0}
)
ROWS = 6000


def sample(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Normal losses whose log scale is half the first input; the second input says nothing."""
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((ROWS, 2)).astype(np.float32)
    return inputs, (np.exp(0.5 * inputs[:, 0]) * generator.standard_normal(ROWS)).astype(np.float32)


def fitted(inputs: np.ndarray, loss: np.ndarray, count: int) -> Fit:
    return fit(
        jnp.asarray(inputs),
        jnp.asarray(loss),
        count,
        moments=input_moments(inputs[:count]),
        start=pooled_start(loss[:count], NETWORK.levels),
        network=NETWORK,
        training=TRAINING,
    )


@pytest.fixture(scope="module")
def made() -> Fit:
    return fitted(*sample(), count=5000)


def test_the_quantile_follows_the_scale_of_the_losses(made: Fit) -> None:
    """True quantiles are exp(x / 2) z_p; 300 small steps reach them within 15 %, the pooled start misses by 60 %."""
    rows = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], dtype=np.float32)
    out = forecast(made.networks, rows)
    for place, level in enumerate(NETWORK.levels):
        wanted = 0.5 * rows[:, 0] + np.log(norm.ppf(level))
        assert np.abs(np.asarray(out.log_margin[:, place]) - wanted).max() < 0.15
        beyond = 0.5 * rows[:, 0] + np.log(norm.pdf(norm.ppf(level)) / (1.0 - level))
        assert np.abs(np.asarray(out.log_shortfall[:, place]) - beyond).max() < 0.25
    start = pooled_start(sample()[1], NETWORK.levels)[0]
    assert abs(start[1] - (-0.5 + np.log(norm.ppf(0.99)))) > 0.6


def test_rows_after_the_cut_do_not_matter_and_the_same_rows_give_the_same_bits(made: Fit) -> None:
    inputs, loss = sample()
    inputs[5000:], loss[5000:] = 77.0, -5.0
    again = fitted(inputs, loss, count=5000)
    for one, other in zip(jax.tree.leaves(made.networks), jax.tree.leaves(again.networks), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(made.training_loss, again.training_loss)
    fewer = fitted(inputs, loss, count=4000)
    assert not np.array_equal(made.networks.bias, fewer.networks.bias)


def test_seeds_differ_and_are_averaged(made: Fit) -> None:
    assert made.networks.bias.shape == (TRAINING.seeds, 4)
    assert not np.array_equal(made.networks.bias[0], made.networks.bias[1])
    rows = sample()[0][:3]
    single = [
        forecast(jax.tree.map(lambda leaf, seed=seed: leaf[seed : seed + 1], made.networks), rows).log_margin
        for seed in range(TRAINING.seeds)
    ]
    assert np.allclose(np.mean(single, axis=0), forecast(made.networks, rows).log_margin, atol=1e-6)


def test_a_forecast_does_not_depend_on_the_rows_beside_it(made: Fit) -> None:
    rows = sample(4)[0][:50]
    together = forecast(made.networks, rows).log_margin
    assert np.array_equal(together[7:8], forecast(made.networks, rows[7:8]).log_margin)
    assert forecast(made.networks, rows[:0]).log_margin.shape == (0, 2)


def test_standardising_takes_what_is_there_and_puts_the_mean_where_nothing_is() -> None:
    inputs = np.array([[1.0, np.nan, 5.0], [3.0, np.nan, 5.0], [np.nan, np.nan, 5.0]])
    moments = input_moments(inputs)
    assert moments.mean.tolist() == [2.0, 0.0, 5.0]
    assert moments.spread[0] == 1.0
    assert moments.spread[1] == 1.0
    scaled = standardised(np.array([[2.5, 9.0, 5.0], [np.nan, np.nan, np.nan], [1e9, -1e9, 6.0]]), moments)
    assert scaled.dtype == np.float32
    assert scaled.tolist() == [
        [0.5, LARGEST_INPUT, 0.0],
        [0.0, 0.0, 0.0],
        [LARGEST_INPUT, -LARGEST_INPUT, LARGEST_INPUT],
    ]


def test_the_pooled_start_rises_even_where_nothing_moved() -> None:
    still = np.zeros(100)
    margin, beyond = pooled_start(still, (0.9, 0.95, 0.99))
    assert np.all(np.diff(margin) > 0.0)
    assert np.all(beyond > margin)
    moved = np.arange(1.0, 1001.0)
    margin, beyond = pooled_start(moved, (0.9, 0.99))
    assert np.exp(margin[0]) == pytest.approx(np.quantile(moved, 0.9), rel=1e-12)
    assert np.exp(beyond[0]) == pytest.approx(moved[moved >= np.quantile(moved, 0.9)].mean(), rel=1e-12)


def test_the_shortfall_term_moves_the_shortfall_alone(made: Fit) -> None:
    """The gradient of a row's cost in the margin's outputs is that of its pinball."""
    network = jax.tree.map(lambda leaf: leaf[0], made.networks)
    levels = jnp.asarray(NETWORK.levels, jnp.float32)
    row, loss = jnp.ones(2, jnp.float32), jnp.asarray(9.0, jnp.float32)

    def slope(weight: float) -> np.ndarray:
        training = Training.model_validate(TRAINING.model_dump() | {"shortfall_weight": weight})
        gradient = jax.grad(lambda net: row_cost(net, row, loss, None, levels=levels, training=training))(network)
        return np.asarray(gradient.bias)

    plain, both = slope(0.0), slope(1.0)
    assert np.allclose(plain[:2], both[:2], rtol=1e-5)
    assert np.allclose(plain[2:], 0.0)
    assert np.all(np.abs(both[2:]) > 0.0)
