"""Training losses: their values by hand, their gradients, and that the truth minimises them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.tail_losses import fissler_ziegel, smooth_pinball

LEVELS = jnp.array([0.9, 0.99])
EXACT = 1e-12  # float64 against float64
DIFFERENCE = 1e-6  # central differences of step 1e-6 on functions of order one


@pytest.mark.parametrize("loss", [0.5, -1.0])
def test_without_width_the_pinball_is_the_textbook_one(loss: float) -> None:
    margin = jnp.array([0.2, 0.3])
    plain = [p * (loss - m) if loss > m else (1 - p) * (m - loss) for p, m in zip([0.9, 0.99], [0.2, 0.3], strict=True)]
    assert np.allclose(smooth_pinball(jnp.array(loss), margin, LEVELS, width=0.0), plain, rtol=EXACT)
    if loss == 0.5:
        assert plain == pytest.approx([0.27, 0.198])


def test_rounding_the_corner_adds_at_most_a_quarter_of_the_width_and_nothing_beyond_it() -> None:
    margins = jnp.linspace(0.0, 2.0, 401)
    for level in (0.9, 0.99):
        levels = jnp.full(401, level)
        plain = smooth_pinball(jnp.array(1.0), margins, levels, width=0.0)
        rounded = smooth_pinball(jnp.array(1.0), margins, levels, width=0.2)
        added = np.asarray(rounded - plain)
        near = np.abs(np.asarray(margins) - 1.0) < 0.2
        assert np.all(added >= -EXACT)
        assert added.max() == pytest.approx(0.05, abs=1e-3)
        assert np.allclose(added[~near], 0.0, atol=EXACT)


@pytest.mark.parametrize("margin", [0.7, 0.99, 1.0, 1.03, 1.6])
def test_the_gradient_of_the_rounded_pinball_is_its_difference_quotient(margin: float) -> None:
    def cost(value: jax.Array) -> jax.Array:
        return smooth_pinball(jnp.array(1.0), value[None], jnp.array([0.99]), width=0.1)[0]

    step = 1e-6
    slope = float(cost(jnp.array(margin + step)) - cost(jnp.array(margin - step))) / (2.0 * step)
    assert float(jax.grad(cost)(jnp.array(margin))) == pytest.approx(slope, abs=DIFFERENCE)


def test_quantile_and_shortfall_of_a_sample_have_the_least_loss() -> None:
    sample = np.random.default_rng(5).exponential(size=4001)
    quantile = np.quantile(sample, 0.9)
    shortfall = sample[sample >= quantile].mean()

    def pinball(margin: float) -> float:
        each = jax.vmap(lambda loss: smooth_pinball(loss, jnp.array([margin]), jnp.array([0.9]), width=0.0)[0])
        return float(each(jnp.asarray(sample)).mean())

    def joint(margin: float, beyond: float) -> float:
        each = jax.vmap(lambda loss: fissler_ziegel(loss, jnp.array([margin]), jnp.array([beyond]), jnp.array([0.9])))
        return float(each(jnp.asarray(sample)).mean())

    assert pinball(quantile) < min(pinball(0.97 * quantile), pinball(1.03 * quantile))
    best = joint(quantile, shortfall)
    assert best < min(joint(0.95 * quantile, shortfall), joint(1.05 * quantile, shortfall))
    assert best < min(joint(quantile, 0.95 * shortfall), joint(quantile, 1.05 * shortfall))


def test_scaling_everything_adds_the_log_of_the_scale() -> None:
    margin, beyond = jnp.array([0.2, 0.4]), jnp.array([0.3, 0.7])
    for loss in (0.1, 0.35, 0.9):
        small = fissler_ziegel(jnp.array(loss), margin, beyond, LEVELS)
        large = fissler_ziegel(jnp.array(7.0 * loss), 7.0 * margin, 7.0 * beyond, LEVELS)
        assert np.allclose(large - small, np.log(7.0), rtol=EXACT)
    # by hand: (0.9 - 0.2) / (0.1 * 0.3) + 0.2 / 0.3 + ln 0.3 - 1
    assert float(fissler_ziegel(jnp.array(0.9), margin, beyond, LEVELS)[0]) == pytest.approx(
        0.7 / 0.03 + 0.2 / 0.3 + np.log(0.3) - 1.0, rel=1e-12
    )
