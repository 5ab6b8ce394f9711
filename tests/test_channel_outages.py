"""Channels that fail: how often, together for all routes through them, and apart from each other."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.channel_outages import channel_scenarios, market_factor, market_stress
from aggregator.errors import ConfigurationError
from aggregator.routes import Outage

SCENARIOS = 8192
ERRORS = 4.0  # standard errors of a share that are accepted
EXACT = 1e-12  # sums of a thousand float64 terms

CHANNELS = {
    "quiet": (Outage(intercept=-3.0, slope=0.0), 0.0),
    "clogging": (Outage(intercept=-3.0, slope=1.5), 0.0),
    "losing": (Outage(intercept=-4.0, slope=0.0), 200.0),
}
STRESS = np.repeat([0.0, 1.0, 2.0, 4.0], SCENARIOS // 4)


def drawn(channels: dict[str, tuple[Outage, float]] = CHANNELS, **changed: object) -> tuple[np.ndarray, np.ndarray]:
    """(up, lost) [S, C]."""
    given = {"seed": 11, "horizon_days": 1.0, "kind": "scenarios"} | changed
    found = channel_scenarios(channels, jnp.asarray(STRESS), **given)  # type: ignore[arg-type]
    return np.asarray(found.up), np.asarray(found.lost)


def close(events: np.ndarray, chance: float) -> None:
    error = math.sqrt(chance * (1.0 - chance) / events.size)
    assert events.mean() == pytest.approx(chance, abs=ERRORS * error)


def test_outages_are_as_frequent_as_the_logistic_function_says_at_each_stress() -> None:
    up, _ = drawn()
    for stress in np.unique(STRESS):
        at = stress == STRESS
        close(~up[at, 0], 1.0 / (1.0 + math.exp(3.0)))
        close(~up[at, 1], 1.0 / (1.0 + math.exp(3.0 - 1.5 * stress)))
    assert up[STRESS == 0.0, 1].mean() > up[STRESS == 4.0, 1].mean() + 0.5


def test_losses_come_at_their_yearly_rate_and_take_the_channel_down() -> None:
    up, lost = drawn()
    chance = 1.0 - math.exp(-200.0 / 365.0)
    close(lost[:, 2], chance)
    assert not lost[:, :2].any()
    assert not (lost & up).any()
    down = 1.0 / (1.0 + math.exp(4.0))
    close(~up[:, 2], 1.0 - (1.0 - down) * (1.0 - chance))
    _, over_two_days = drawn(horizon_days=2.0)
    close(over_two_days[:, 2], 1.0 - math.exp(-400.0 / 365.0))
    # What fails within a day has failed within two.
    assert (over_two_days | ~lost).all()


def test_channels_fail_apart_from_each_other() -> None:
    up, _ = drawn({"a": (Outage(intercept=0.0, slope=0.0), 0.0), "b": (Outage(intercept=0.0, slope=0.0), 0.0)})
    close(up[:, 0] & up[:, 1], 0.25)


def test_one_more_channel_and_another_order_leave_the_others_draws() -> None:
    up, lost = drawn()
    names = list(CHANNELS)
    more = {"first": (Outage(intercept=0.0, slope=0.0), 50.0)} | {name: CHANNELS[name] for name in reversed(names)}
    with_more = drawn(more)
    for number, name in enumerate(names):
        place = list(more).index(name)
        np.testing.assert_array_equal(with_more[0][:, place], up[:, number])
        np.testing.assert_array_equal(with_more[1][:, place], lost[:, number])


def test_more_scenarios_leave_the_first_ones() -> None:
    up, _ = drawn()
    fewer = channel_scenarios(CHANNELS, jnp.asarray(STRESS[:1000]), seed=11, horizon_days=1.0, kind="scenarios")
    np.testing.assert_array_equal(np.asarray(fewer.up), up[:1000])


def test_seeds_and_kinds_have_draws_of_their_own() -> None:
    even = {"even": (Outage(intercept=0.0, slope=0.0), 0.0)}
    of_run, again = drawn(even)[0], drawn(even)[0]
    np.testing.assert_array_equal(of_run, again)
    for other in (drawn(even, seed=12)[0], drawn(even, kind="paths")[0]):
        close(of_run == other, 0.5)


def test_more_stress_never_opens_a_channel() -> None:
    """The same uniform is held against a larger probability."""
    calm, _ = drawn()
    stressed = channel_scenarios(CHANNELS, jnp.asarray(STRESS + 1.0), seed=11, horizon_days=1.0, kind="scenarios")
    assert (calm | ~np.asarray(stressed.up)).all()


def test_without_channels_there_is_nothing_to_fail() -> None:
    up, lost = drawn({})
    assert up.shape == lost.shape == (SCENARIOS, 0)


# ---- stress ----------------------------------------------------------------------------------------------------------


def test_stress_is_the_deepest_fall_in_standard_deviations_of_the_whole_move() -> None:
    random = np.random.default_rng(3)
    moves = np.cumsum(random.normal(0.001, 0.02, size=(1024, 5)), axis=1)
    weights = random.random(1024) * (random.random(1024) < 0.8)
    weights /= weights.sum()
    end = moves[:, -1]
    mean = math.fsum(w * m for w, m in zip(weights, end, strict=True))
    spread = math.sqrt(math.fsum(w * (m - mean) ** 2 for w, m in zip(weights, end, strict=True)))
    expected = [max(0.0, *(-m for m in row)) / spread for row in moves]
    found = np.asarray(market_stress(jnp.asarray(moves), jnp.asarray(weights)))
    np.testing.assert_allclose(found, expected, rtol=EXACT)
    assert (found == 0.0).any(), "some path never falls"
    recovered = (end > 0.0) & (moves.min(axis=1) < 0.0)
    assert (found[recovered] > 0.0).all()
    uneven = np.asarray(market_stress(jnp.asarray(moves), jnp.full(1024, 1.0 / 1024)))
    assert abs(uneven[0] / found[0] - 1.0) > 1e-3 or found[0] == 0.0


def test_a_market_that_stands_still_stresses_nobody() -> None:
    found = market_stress(jnp.zeros((256, 2)), jnp.full(256, 1.0 / 256))
    np.testing.assert_array_equal(found, 0.0)


def test_a_market_that_no_scenario_moves_is_refused() -> None:
    factors = ("price:BTC", "price:ETH", "vol:BTC")
    assert market_factor(factors, "ETH") == 1
    with pytest.raises(ConfigurationError, match=r"deadline.market is 'ETC'.*did you mean.*(ETH|BTC)"):
        market_factor(factors, "ETC")
