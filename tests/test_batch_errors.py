"""Standard errors from batches: the plain formula, weights, ragged sets, padding, and what they say of many samples."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from aggregator.batch_errors import BATCHES, LEAST_SCENARIOS, batch_standard_error, tail_standard_errors

SEED = 20261121
LEVELS = (0.99, 0.995)


@jax.jit
def _errors(losses: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    return tail_standard_errors(losses, weights, LEVELS)


def errors(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[measures, levels] of any number of scenarios, padded to whole tiles."""
    missing = -len(losses) % 256
    # What stands in the padding must not matter.
    padded = np.append(losses, np.full(missing, 1e9)), np.append(weights, np.zeros(missing))
    return np.array(_errors(jnp.asarray(padded[0]), jnp.asarray(padded[1])))


def tail(losses: np.ndarray, weights: np.ndarray, level: float) -> tuple[float, float]:
    order = np.argsort(losses, kind="stable")
    reached = np.cumsum(weights[order])
    var = float(losses[order][np.searchsorted(reached, level - 1e-12)])
    return var, var + float(np.sum(weights * np.maximum(losses - var, 0.0))) / (1.0 - level)


def twin(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same by loops: contiguous parts of equal number, every scenario in one, masses from the weights."""
    count = len(losses)
    parts = [range(b * count // BATCHES, (b + 1) * count // BATCHES) for b in range(BATCHES)]
    assert sum(map(len, parts)) == count
    mass = np.array([weights[list(part)].sum() for part in parts])
    mass = mass / mass.sum()
    out = np.zeros((2, len(LEVELS)))
    for at, level in enumerate(LEVELS):
        figures = []
        for part in parts:
            own = weights[list(part)]
            figures.append(tail(losses[list(part)], own / own.sum(), level))
        for measure, values in enumerate(np.array(figures).T):
            mean = float(mass @ values)
            second, third = float(np.sum(mass**2)), float(np.sum(mass**3))
            spread = sum(m**2 * (x - mean) ** 2 for m, x in zip(mass, values, strict=True))
            out[measure, at] = math.sqrt(spread / (1.0 - 2.0 * third / second + second))
    return out


def aged(count: int, half_life: float) -> np.ndarray:
    weights = 0.5 ** (np.arange(count)[::-1] / half_life)
    return weights / weights.sum()


@pytest.mark.parametrize("count", [2048, 2500, 3001, 4096, 9999])
@pytest.mark.parametrize("half_life", [math.inf, 1500.0])
def test_errors_are_the_twins_for_any_number_and_any_weights(count: int, half_life: float) -> None:
    losses = np.random.default_rng(SEED).standard_t(4, count) * 1e5
    weights = aged(count, half_life)
    np.testing.assert_allclose(errors(losses, weights), twin(losses, weights), rtol=1e-9)


def test_equal_batches_are_the_plain_formula_and_padding_changes_no_bit() -> None:
    losses = np.random.default_rng(SEED).normal(size=4096)
    weights = np.full(4096, 1.0 / 4096)
    figures = np.array([[tail(row, np.full(512, 1 / 512), a) for a in LEVELS] for row in losses.reshape(8, -1)])
    expected = np.std(figures, axis=0, ddof=1).T / math.sqrt(8)
    found = errors(losses, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    longer = np.append(losses, np.full(1024, math.nan)), np.append(weights, np.zeros(1024))
    np.testing.assert_array_equal(errors(*longer), found)


def test_what_is_dropped_at_the_end_would_be_missed() -> None:
    """Every date of a history: a crash in its last days, beyond the last whole tile of eight, is in the error."""
    losses = np.random.default_rng(SEED).normal(size=2500)
    weights = np.full(2500, 1.0 / 2500)
    crash = losses.copy()
    crash[-60:] += 50.0
    assert (errors(crash, weights) > 5.0 * errors(losses, weights)).all()


def test_the_mean_of_batches_of_unequal_mass_has_the_error_that_many_samples_show() -> None:
    rng, masses = np.random.default_rng(SEED), np.array([1.0, 1.0, 2.0, 3.0, 1.0, 4.0, 2.0, 2.0])
    share = masses / masses.sum()
    values = rng.normal(3.0, 2.0, size=(20_000, 8))
    found = np.asarray(jax.vmap(lambda row: batch_standard_error(row, jnp.asarray(masses)))(jnp.asarray(values)))
    true_variance = 4.0 * np.sum(share**2)
    # The variance is estimated without bias: 20,000 samples of it, each within a factor of about sqrt(2 / 7).
    assert float(np.mean(found**2)) == pytest.approx(true_variance, rel=4.0 * math.sqrt(2.0 / 5.0 / 20_000))


def test_the_error_of_aged_and_ragged_scenarios_is_what_many_sets_of_them_show() -> None:
    """400 sets of 2,600 normal losses: the spread of the weighted VaR against the mean of its reported errors."""
    rng, weights = np.random.default_rng(SEED), aged(2600, 2000.0)
    sets = rng.normal(size=(400, 2600))
    spread = np.std([tail(row, weights, 0.99)[0] for row in sets], ddof=1)
    told = np.sqrt(np.mean([errors(row, weights)[0, 0] ** 2 for row in sets]))
    # The variance of a quantile from batches of 325 is 1.0 to 1.4 times that of the whole.
    density = float(norm.pdf(norm.ppf(0.99)))
    asymptotic = math.sqrt(0.99 * 0.01 * float(np.sum(weights**2))) / density
    assert spread == pytest.approx(asymptotic, rel=0.15)
    assert 0.9 * spread <= told <= 1.3 * spread


def test_nothing_is_said_of_too_few_scenarios_or_of_one_that_weighs_all() -> None:
    losses = np.random.default_rng(SEED).normal(size=4096)
    for count in (1, 256, LEAST_SCENARIOS - 1):
        weights = np.where(np.arange(4096) < count, 1.0 / count, 0.0)
        assert np.isnan(errors(losses, weights)).all()
    assert np.isfinite(errors(losses, np.where(np.arange(4096) < LEAST_SCENARIOS, 1.0 / LEAST_SCENARIOS, 0.0))).all()
    # Half of the mass within a hundred days: the older batches say nothing of the newest.
    assert np.isnan(errors(losses, aged(4096, 100.0))).all()
    assert np.isnan(errors(losses, np.where(np.arange(4096) < 2048, 0.0, 1.0 / 2048))).all()
    one = batch_standard_error(jnp.asarray([1.0]), jnp.asarray([1.0]))
    assert math.isnan(float(one))
    assert float(batch_standard_error(jnp.asarray([1.0, 3.0]), jnp.asarray([0.5, 0.5]))) == pytest.approx(
        1.0, rel=1e-15
    )
