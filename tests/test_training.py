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
    Pairs,
    fit,
    forecast,
    input_moments,
    pooled_start,
    roughness,
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


def pairs(before: np.ndarray | None = None, log_scale: np.ndarray | None = None) -> Pairs:
    """Rows without one before, or with those of `before`; scales of one unless given; no input follows the clock."""
    none = np.full(ROWS, -1) if before is None else before
    scale = np.zeros(ROWS) if log_scale is None else log_scale
    return Pairs(jnp.asarray(scale, jnp.float32), jnp.asarray(none, jnp.int32), jnp.ones(2, jnp.float32))


def fitted(
    inputs: np.ndarray, loss: np.ndarray, count: int, paired: Pairs | None = None, training: Training = TRAINING
) -> Fit:
    return fit(
        jnp.asarray(inputs),
        jnp.asarray(loss),
        count,
        pairs=pairs() if paired is None else paired,
        moments=input_moments(inputs[:count]),
        start=pooled_start(loss[:count], NETWORK.levels),
        network=NETWORK,
        training=training,
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


def test_roughness_is_the_mean_squared_change_of_the_log_rates(made: Fit) -> None:
    """Against the two forecasts taken one by one; a row beside itself, at the same scale, is not rough at all."""
    network = jax.tree.map(lambda leaf: leaf[0], made.networks)
    now, before = jnp.array([0.5, -1.0], jnp.float32), jnp.array([-0.5, 2.0], jnp.float32)
    change = np.asarray(network(now).log_margin) + 0.3 - np.asarray(network(before).log_margin)
    steady, moved = jnp.ones(2, jnp.float32), jnp.asarray(0.3, jnp.float32)
    found = roughness(network, now, before, moved, steady, None)
    assert float(found) == pytest.approx(float(np.mean(change**2)), rel=1e-5)
    # what follows the clock is no roughness, and both of a pair lose the same hidden values
    clock = jnp.array([1.0, 0.0], jnp.float32)
    other, still = now.at[1].set(7.0), jnp.asarray(0.0, jnp.float32)
    assert float(roughness(network, now, other, still, clock, jax.random.key(1))) == 0.0


def test_smoothness_calms_an_input_that_comes_and_goes_and_leans_against_a_scale_that_jumps() -> None:
    """The anchor jumps by 0.4 from row to row and the losses with it, which the first input tells; by the second,
    which lasts, losses are larger still. A fit that pays for changes takes the jumps out again and keeps what lasts;
    one whose rows have none before them is the same to the bit whatever the weight."""
    generator = np.random.default_rng(2)
    jump = 0.2 * generator.choice([-1.0, 1.0], ROWS)
    lasting = np.repeat(generator.choice([-1.0, 1.0], ROWS // 100), 100)
    inputs = np.stack([jump / 0.2, lasting], axis=1).astype(np.float32)
    loss = (np.exp(0.3 * lasting) * generator.standard_normal(ROWS)).astype(np.float32)
    chain = pairs(np.arange(ROWS) - 1, jump)
    rows = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]], dtype=np.float32)

    def effects(weight: float, paired: Pairs) -> np.ndarray:
        training = Training.model_validate(TRAINING.model_dump() | {"smoothness_weight": weight, "steps": 200})
        log_margin = forecast(fitted(inputs, loss, ROWS, paired, training).networks, rows).log_margin.mean(axis=-1)
        return np.array([log_margin[1] - log_margin[0] + 0.4, log_margin[3] - log_margin[2]])

    free, paid = effects(0.0, chain), effects(30.0, chain)
    assert abs(free[0] - 0.4) < 0.15
    assert abs(paid[0]) < 0.1
    assert paid[1] > 0.6 * free[1] > 0.2
    assert np.array_equal(effects(0.0, pairs()), effects(30.0, pairs()))
