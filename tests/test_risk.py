"""Weighted VaR and expected shortfall against exact fractions, invariants, closed forms and their own bits."""

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from scipy import integrate, stats

from aggregator import closed_forms, pricing, risk
from aggregator.rounding import rounded

VECTORS = Path(__file__).resolve().parent / "vectors"

# float64 sums of a few hundred terms against exact fractions, relative to the largest loss.
SUM_TOLERANCE = 1e-12
# Monte Carlo against the truth, in asymptotic standard errors: 1 in 16 000 by chance, and the seeds are fixed.
STANDARD_ERRORS = 4.0
SCENARIOS = 1 << 18

CONFIDENCES = ("0.5", "0.7", "0.9", "0.95", "0.975", "0.99", "0.995")

_tail_risk = jax.jit(lambda losses, weights, a: risk.tail_risk(losses, weights, confidence=a))
_euler = jax.jit(risk.euler_allocation)
_tail_weights = jax.jit(lambda losses, weights, a: risk.tail_weights(losses, weights, confidence=a))


class Sample(NamedTuple):
    """Losses with integer weights (of which at least one is positive), and a confidence as decimal text."""

    losses: list[float]
    counts: list[int]
    confidence: str

    def weights(self) -> np.ndarray:
        return np.asarray(self.counts, dtype=np.float64) / sum(self.counts)

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        return risk.padded_scenarios(np.asarray(self.losses), self.weights())


def samples(losses: st.SearchStrategy[float]) -> st.SearchStrategy[Sample]:
    rows = st.lists(st.tuples(losses, st.integers(0, 5)), min_size=1, max_size=60).filter(
        lambda r: any(c for _, c in r)
    )
    return st.builds(lambda r, a: Sample([x for x, _ in r], [c for _, c in r], a), rows, st.sampled_from(CONFIDENCES))


# Small integers make ties, the boundary atoms; floats of all sizes make none.
TIED = st.integers(-4, 4).map(float)
ANY = st.floats(-1e9, 1e9, allow_subnormal=False)
SAMPLES = st.one_of(samples(TIED), samples(ANY))


def exact_tail(sample: Sample) -> tuple[Fraction, Fraction, list[Fraction]]:
    """VaR, ES and tail weights by the definitions, in exact fractions."""
    a = Fraction(sample.confidence)
    total = sum(sample.counts)
    weights = [Fraction(count, total) for count in sample.counts]
    losses = [Fraction(loss) for loss in sample.losses]
    pairs = list(zip(losses, weights, strict=True))
    var = min(x for x, w in pairs if w > 0 and sum(v for y, v in pairs if y <= x) >= a)
    shortfall = var + sum((w * max(x - var, Fraction(0)) for x, w in pairs), Fraction(0)) / (1 - a)
    boundary = 1 - a - sum((w for x, w in pairs if x > var), Fraction(0))
    tied = sum(w for x, w in pairs if x == var)
    tail = [(w if x > var else boundary * w / tied if x == var else Fraction(0)) / (1 - a) for x, w in pairs]
    return var, shortfall, tail


@given(sample=SAMPLES)
def test_measures_equal_exact_fractions(sample: Sample) -> None:
    var, shortfall, tail = exact_tail(sample)
    losses, weights = sample.padded()
    found = _tail_risk(losses, weights, float(sample.confidence))
    scale = max(1.0, *map(abs, sample.losses))
    assert Fraction(float(found.value_at_risk)) == var
    # A sum of the tail divided by 1 - a >= 0.005.
    assert float(found.expected_shortfall) == pytest.approx(float(shortfall), rel=0, abs=SUM_TOLERANCE * scale)
    got = np.asarray(_tail_weights(losses, weights, float(sample.confidence)))
    np.testing.assert_allclose(got[: len(tail)], [float(w) for w in tail], rtol=0, atol=SUM_TOLERANCE)
    assert not got[len(tail) :].any()


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("count", [10, 100, 1_000, 10_000, 100_000])
def test_with_equal_weights_value_at_risk_is_the_order_statistic(count: int, confidence: str) -> None:
    losses = np.random.default_rng(count).standard_normal(count)
    padded, weights = risk.padded_scenarios(losses, np.full(count, 1.0 / count))
    rank = math.ceil(Fraction(confidence) * count)
    ordered = np.sort(losses)
    found = _tail_risk(padded, weights, float(confidence))
    assert float(found.value_at_risk) == ordered[rank - 1]
    beyond = math.fsum(ordered[rank:] - ordered[rank - 1]) / count / float(1 - Fraction(confidence))
    assert float(found.expected_shortfall) == pytest.approx(ordered[rank - 1] + beyond, rel=SUM_TOLERANCE)


def test_small_weights_in_the_tail_are_not_lost_in_the_slack() -> None:
    # Tail scenarios of weight 1e-9 each, as importance sampling makes them: a thousand of them hold 1e-6.
    losses = np.concatenate([np.zeros(1000), np.arange(1.0, 1001.0)])
    weights = np.concatenate([np.full(1000, (1 - 1e-6) / 1000), np.full(1000, 1e-9)])
    padded, row = risk.padded_scenarios(losses, weights / weights.sum())
    found = _tail_risk(padded, row, 1 - 1e-7 + 5e-10)
    assert float(found.value_at_risk) == 901.0


@given(sample=SAMPLES, junk=st.sampled_from([0.0, 1e300, -1e300, math.inf, -math.inf, math.nan]))
def test_scenarios_of_weight_zero_never_matter(sample: Sample, junk: float) -> None:
    a = float(sample.confidence)
    losses, weights = sample.padded()
    clean = _tail_risk(np.where(weights > 0, losses, 0.0), weights, a)
    dirty_losses = np.where(weights > 0, losses, junk)
    dirty = _tail_risk(dirty_losses, weights, a)
    assert [float(x) for x in dirty] == [float(x) for x in clean]
    longer = _tail_risk(np.append(dirty_losses, np.full(512, junk)), np.append(weights, np.zeros(512)), a)
    assert [float(x) for x in longer] == [float(x) for x in clean]
    in_tail = _tail_weights(dirty_losses, weights, a)
    np.testing.assert_array_equal(in_tail, _tail_weights(np.where(weights > 0, losses, 0.0), weights, a))
    allocated = _euler(jnp.asarray(dirty_losses)[None, :], in_tail)
    assert np.isfinite(allocated).all()


def test_undefined_and_infinite_losses_show_as_infinity_and_never_as_nan() -> None:
    losses, weights = risk.padded_scenarios(np.arange(10.0), np.full(10, 0.1))
    for position, bad in ((0, math.nan), (9, math.nan), (9, math.inf), (0, -math.inf)):
        row = losses.copy()
        row[position] = bad
        found = _tail_risk(row, weights, 0.9)
        in_tail = np.asarray(_tail_weights(row, weights, 0.9))
        assert not np.isnan(float(found.value_at_risk))
        assert not np.isnan(float(found.expected_shortfall))
        assert in_tail.sum() == pytest.approx(1.0, rel=1e-15)
        assert (float(found.expected_shortfall) == math.inf) == (bad != -math.inf)
    everything = _tail_risk(np.full(256, -math.inf), np.full(256, 1 / 256), 0.9)
    assert float(everything.value_at_risk) == np.finfo(np.float64).min
    assert not any(np.isnan(float(x)) for x in everything)
    assert not any(np.isnan(float(x)) for x in _tail_risk(losses, np.zeros(256), 0.9))


@given(sample=SAMPLES, data=st.data())
def test_order_shift_and_scale(sample: Sample, data: st.DataObject) -> None:
    a = float(sample.confidence)
    losses, weights = sample.padded()
    found = _tail_risk(losses, weights, a)
    size = max(1.0, np.abs(losses).max())

    order = np.asarray(data.draw(st.permutations(range(len(sample.losses)))))
    shuffled = np.concatenate([order, np.arange(len(order), losses.size)])
    other = _tail_risk(losses[shuffled], weights[shuffled], a)
    assert float(other.value_at_risk) == float(found.value_at_risk)
    assert float(other.expected_shortfall) == pytest.approx(float(found.expected_shortfall), abs=SUM_TOLERANCE * size)

    shift = data.draw(st.floats(-1e6, 1e6))
    moved = _tail_risk(losses + shift, weights, a)
    tolerance = SUM_TOLERANCE * (size + abs(shift))
    assert float(moved.value_at_risk) == float(found.value_at_risk) + shift
    assert float(moved.expected_shortfall) == pytest.approx(float(found.expected_shortfall) + shift, abs=tolerance)

    scale = data.draw(st.floats(1e-3, 1e3))
    larger = _tail_risk(losses * scale, weights, a)
    assert float(larger.value_at_risk) == float(found.value_at_risk) * scale
    assert float(larger.expected_shortfall) == pytest.approx(
        float(found.expected_shortfall) * scale, abs=SUM_TOLERANCE * size * scale
    )


@given(sample=SAMPLES, seed=st.integers(0, 2**32 - 1))
def test_shortfall_is_subadditive_monotone_and_at_least_value_at_risk(sample: Sample, seed: int) -> None:
    a = float(sample.confidence)
    losses, weights = sample.padded()
    generator = np.random.default_rng(seed)
    other = generator.standard_normal(losses.size) * (np.abs(losses).max() + 1.0)
    first, second, both, worse = (
        _tail_risk(row, weights, a) for row in (losses, other, losses + other, losses + np.abs(other))
    )
    slack = SUM_TOLERANCE * (np.abs(losses).max() + np.abs(other).max() + 1.0)
    assert float(both.expected_shortfall) <= float(first.expected_shortfall + second.expected_shortfall) + slack
    assert float(worse.expected_shortfall) >= float(first.expected_shortfall) - slack
    assert float(worse.value_at_risk) >= float(first.value_at_risk)
    assert float(first.expected_shortfall) >= float(first.value_at_risk)


@given(sample=SAMPLES, seed=st.integers(0, 2**32 - 1))
def test_contributions_add_up_to_the_shortfall(sample: Sample, seed: int) -> None:
    a = float(sample.confidence)
    losses, weights = sample.padded()
    in_tail = _tail_weights(losses, weights, a)
    assert float(jnp.min(in_tail)) >= 0.0
    assert math.fsum(np.asarray(in_tail)) == pytest.approx(1.0, abs=1e-14)
    shares = np.random.default_rng(seed).standard_normal((4, losses.size))
    parts = np.vstack([losses * shares, losses - (losses * shares).sum(axis=0)])
    contributions = _euler(jnp.asarray(parts), in_tail)
    shortfall = float(_tail_risk(losses, weights, a).expected_shortfall)
    assert math.fsum(np.asarray(contributions)) == pytest.approx(
        shortfall, abs=SUM_TOLERANCE * np.abs(parts).sum(0).max()
    )


def test_contributions_equal_the_reference_cases() -> None:
    cases = json.loads((VECTORS / "margin.json").read_text(encoding="utf-8"))["cases"]
    euler = [case for case in cases if case["kind"] == "empirical_euler"]
    assert euler
    for case in euler:
        components = np.asarray(case["inputs"]["loss_components"], dtype=np.float64)
        count = components.shape[1]
        padded, weights = risk.padded_scenarios(components, np.full(count, 1.0 / count))
        losses, a = padded.sum(axis=0), case["inputs"]["alpha"]
        in_tail = _tail_weights(losses, weights, a)
        expected = case["expected"]
        np.testing.assert_allclose(in_tail[:count], expected["tail_weights"], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(_euler(jnp.asarray(padded), in_tail), expected["euler"], rtol=1e-9)
        shortfall = _tail_risk(losses, weights, a).expected_shortfall
        assert float(shortfall) == pytest.approx(expected["ES"], rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Bits


def _tile_sum_numpy(values: np.ndarray) -> Any:
    tiles = values.reshape(-1, risk.SCENARIO_TILE)
    while tiles.shape[1] > 1:
        half = tiles.shape[1] // 2
        tiles = tiles[:, :half] + tiles[:, half:]
    total = values.dtype.type(0)
    for tile in tiles[:, 0]:
        total = total + tile
    return total


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scenarios", [256, 2560])
def test_tile_sum_has_the_bits_of_the_plain_loop_in_any_program(scenarios: int, dtype: type[np.floating[Any]]) -> None:
    generator = np.random.default_rng(7)
    factors = generator.standard_normal((5, scenarios)).astype(dtype)
    values = (generator.standard_normal((5, scenarios)) * 1e6).astype(dtype)
    expected = np.array([_tile_sum_numpy(row) for row in factors * values])

    def weighted(x: jax.Array, y: jax.Array) -> jax.Array:
        return risk.tile_sum(x * y)

    # A product fused into the additions would show here, in one of the shapes.
    for size in (1, 5):
        batched = jax.jit(jax.vmap(weighted))(factors[:size], values[:size])
        np.testing.assert_array_equal(batched, expected[:size])
        streamed = jax.jit(lambda x, y: lax.map(lambda row: weighted(*row), (x, y)))(factors[:size], values[:size])
        np.testing.assert_array_equal(streamed, expected[:size])
    np.testing.assert_array_equal(jax.jit(risk.tile_sum)(factors * values), expected)
    assert risk.tile_sum(jnp.asarray(values)).dtype == dtype


def test_a_rounded_product_does_not_contract_with_an_addition() -> None:
    generator = np.random.default_rng(5)
    x, y, z = generator.standard_normal((3, 2000))
    got = jax.jit(lambda a, b, c: a + rounded(b * c))(x, y, z)
    np.testing.assert_array_equal(got, x + y * z)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_measures_have_the_same_bits_alone_batched_and_streamed(dtype: type[np.floating[Any]]) -> None:
    generator = np.random.default_rng(11)
    losses = (generator.standard_t(3, (6, 1024)) * 1e5).astype(dtype)
    weights = generator.random(1024)
    weights /= weights.sum()

    def measures(row: jax.Array) -> tuple[risk.TailRisk, jax.Array]:
        return risk.tail_risk(row, jnp.asarray(weights), confidence=0.99), risk.tail_weights(
            row, jnp.asarray(weights), confidence=0.99
        )

    alone = [measures(jnp.asarray(row)) for row in losses]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *alone)
    for program in (jax.vmap(measures), lambda rows: lax.map(measures, rows)):
        for size in (1, 6):
            got = jax.jit(program)(losses[:size])
            jax.tree.map(lambda g, e, n=size: np.testing.assert_array_equal(g, e[:n]), got, expected)


def test_float32_losses_give_the_measures_of_their_values() -> None:
    losses = (np.random.default_rng(3).standard_normal(2048) * 1e4).astype(np.float32)
    weights = np.full(2048, 1 / 2048)
    single, double = _tail_risk(losses, weights, 0.99), _tail_risk(losses.astype(np.float64), weights, 0.99)
    assert single.value_at_risk.dtype == single.expected_shortfall.dtype == jnp.float64
    assert [float(x) for x in single] == [float(x) for x in double]


def test_several_confidences_by_vmap() -> None:
    losses, weights = risk.padded_scenarios(np.arange(1000.0), np.full(1000, 1e-3))
    found = jax.vmap(lambda a: risk.value_at_risk(jnp.asarray(losses), jnp.asarray(weights), confidence=a))(
        jnp.asarray([0.9, 0.99, 0.995])
    )
    assert found.tolist() == [899.0, 989.0, 994.0]


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def test_wrong_shapes_dtypes_and_confidences_are_refused() -> None:
    losses, weights = jnp.zeros(256), jnp.full(256, 1 / 256)
    for count in (0, 1, 255, 257):
        with pytest.raises(ValueError, match="multiple of 256"):
            risk.tail_risk(jnp.zeros(count), jnp.zeros(count), confidence=0.99)
        with pytest.raises(ValueError, match="multiple of 256"):
            risk.tile_sum(jnp.zeros((2, count)))
    with pytest.raises(ValueError, match="one row of losses"):
        risk.tail_risk(jnp.zeros((2, 256)), weights, confidence=0.99)
    with pytest.raises(ValueError, match="one row of losses"):
        risk.tail_weights(losses, jnp.zeros(512), confidence=0.99)
    with pytest.raises(ValueError, match="weights in float64"):
        risk.value_at_risk(losses, weights.astype(jnp.float32), confidence=0.99)
    for confidence in (0.0, 1.0, 99.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            risk.value_at_risk(losses, weights, confidence=confidence)


def test_padding_checks_the_weights() -> None:
    losses, weights = risk.padded_scenarios(np.ones((2, 300), dtype=np.float32), np.full(300, 1 / 300))
    assert losses.shape == (2, 512)
    assert losses.dtype == np.float32
    assert weights.shape == (512,)
    assert not weights[300:].any()
    for bad, complaint in (
        ([0.5, 0.6], "sum to 1"),
        ([1.5, -0.5], "not negative"),
        ([math.nan, 1.0], "finite"),
        ([1.0], "found shapes"),
        ([], "found shapes"),
    ):
        with pytest.raises(ValueError, match=complaint):
            risk.padded_scenarios([1.0, 2.0], bad)


# ---------------------------------------------------------------------------------------------------------------------
# The estimator against the closed forms


def _cases(kind: str) -> list[Any]:
    cases = json.loads((VECTORS / "risk_measures.json").read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case["inputs"], id=case["name"]) for case in cases if case["kind"] == kind]


def _hold(losses: np.ndarray | jax.Array, tail: closed_forms.TailLaw, confidence: float) -> None:
    """The engine's estimate from the simulated losses lies within four standard errors of the truth."""
    found = _tail_risk(losses, np.full(SCENARIOS, 1.0 / SCENARIOS), confidence)
    error = closed_forms.monte_carlo_standard_error(tail, confidence=confidence, count=SCENARIOS)
    for name in ("value_at_risk", "expected_shortfall"):
        estimate, truth, sd = float(getattr(found, name)), getattr(tail, name), getattr(error, name)
        assert 0.0 < sd < 0.05 * abs(truth), f"{name}: the standard error {sd} tests nothing against {truth}"
        assert abs(estimate - truth) <= STANDARD_ERRORS * sd, f"{name}: {estimate} for {truth}, standard error {sd}"


def _normals(matrix: Any, seed: int) -> np.ndarray:
    root = np.linalg.cholesky(np.asarray(matrix, dtype=np.float64))
    return np.random.default_rng(seed).standard_normal((SCENARIOS, root.shape[0])) @ root.T


@pytest.mark.parametrize("case", _cases("gaussian_linear"))
def test_gaussian_linear_book(case: dict[str, Any]) -> None:
    returns = _normals(case["cov"], 101) + np.asarray(case["mu"])
    losses = -(returns * np.asarray(case["w"]))
    truth = closed_forms.gaussian_linear(case["w"], case["cov"], mean=case["mu"], confidence=case["alpha"])
    _hold(losses.sum(axis=1), truth.tail, case["alpha"])

    # Contributions: the error of ES_i is that of the mean of L_i in the tail, bounded by its spread there.
    in_tail = np.asarray(_tail_weights(losses.sum(axis=1), np.full(SCENARIOS, 1.0 / SCENARIOS), case["alpha"]))
    contributions = np.asarray(_euler(jnp.asarray(losses.T), jnp.asarray(in_tail)))
    tail_count = (1 - case["alpha"]) * SCENARIOS
    spread = np.sqrt(np.var(losses, axis=0) + truth.euler_expected_shortfall**2) / math.sqrt(tail_count)
    assert np.all(np.abs(contributions - truth.euler_expected_shortfall) <= STANDARD_ERRORS * spread)


@pytest.mark.parametrize("case", _cases("t_linear"))
def test_t_linear_book(case: dict[str, Any]) -> None:
    mixing = np.sqrt(case["nu"] / np.random.default_rng(202).chisquare(case["nu"], SCENARIOS))
    losses = -(_normals(case["scale"], 203) @ np.asarray(case["w"])) * mixing
    truth = closed_forms.t_linear(case["w"], case["scale"], degrees_of_freedom=case["nu"], confidence=case["alpha"])
    _hold(losses, truth.tail, case["alpha"])


@pytest.mark.parametrize("case", _cases("lognormal_long_short"))
def test_lognormal_asset_long_and_short(case: dict[str, Any]) -> None:
    log_returns = case["mu"] + case["s"] * np.random.default_rng(303).standard_normal(SCENARIOS)
    gain = jax.jit(jax.vmap(lambda r: pricing.linear_value_change(case["V"], r)))(log_returns)
    truth = closed_forms.lognormal_long_short(
        case["V"], log_mean=case["mu"], log_sd=case["s"], confidence=case["alpha"]
    )
    _hold(-gain, truth.long, case["alpha"])
    _hold(gain, truth.short, case["alpha"])


@pytest.mark.parametrize("case", _cases("delta_gamma_normal"))
def test_delta_gamma_book(case: dict[str, Any]) -> None:
    x = _normals(case["cov"], 404)
    gain = case["theta"] + x @ np.asarray(case["delta"]) + 0.5 * np.sum((x @ np.asarray(case["gamma"])) * x, axis=1)
    truth = closed_forms.delta_gamma_normal(
        case["delta"], case["gamma"], covariance=case["cov"], theta=case["theta"], confidence=case["alpha"]
    )
    _hold(-gain, truth.tail, case["alpha"])


def _option_gain(case: dict[str, Any], seed: int) -> Callable[[bool], jax.Array]:
    spread = case["sigma"] * math.sqrt(case["h"])
    log_returns = spread * np.random.default_rng(seed).standard_normal(SCENARIOS) - 0.5 * spread**2

    def gain(is_call: bool) -> jax.Array:
        def change(log_return: jax.Array) -> jax.Array:
            return pricing.option_value_change(
                case["F"],
                case["K"],
                years=case["T"],
                vol=case["sigma"],
                is_call=is_call,
                log_return=log_return,
                horizon_years=case["h"],
            )

        return jax.jit(jax.vmap(change))(log_returns)

    return gain


@pytest.mark.parametrize("case", _cases("single_option_full_reval"))
def test_single_option_under_full_revaluation(case: dict[str, Any]) -> None:
    is_call = case["cp"] > 0
    truth = closed_forms.single_option_full_revaluation(
        case["F"],
        case["K"],
        years=case["T"],
        vol=case["sigma"],
        is_call=is_call,
        quantity=case["qty"],
        horizon_years=case["h"],
        confidence=case["alpha"],
    )
    _hold(-case["qty"] * _option_gain(case, 505)(is_call), truth.tail, case["alpha"])


@pytest.mark.parametrize("case", _cases("short_straddle_full_reval"))
def test_short_straddle_under_full_revaluation(case: dict[str, Any]) -> None:
    truth = closed_forms.short_straddle_full_revaluation(
        case["F"],
        case["K"],
        years=case["T"],
        vol=case["sigma"],
        horizon_years=case["h"],
        confidence=case["alpha"],
    )
    gain = _option_gain(case, 606)
    _hold(gain(True) + gain(False), truth.tail, case["alpha"])


def test_an_option_that_expires_inside_the_horizon_has_the_risk_of_its_payoff() -> None:
    case = {"F": 100.0, "K": 100.0, "T": 0.002, "sigma": 0.8, "h": 0.005}
    truth = closed_forms.single_option_full_revaluation(
        100.0, 100.0, years=0.002, vol=0.8, is_call=False, quantity=-1.0, horizon_years=0.005, confidence=0.99
    )
    # The closed form lets the forward move until expiry only; the simulation of the same law uses h = T.
    _hold(_option_gain({**case, "h": 0.002}, 707)(False), truth.tail, 0.99)


def test_the_standard_error_is_the_spread_of_the_estimates() -> None:
    """Without this the four standard errors above could be four times too many."""
    batches, size, a = 256, 4096, 0.95
    losses = np.random.default_rng(808).standard_normal((batches, size))
    found = jax.jit(jax.vmap(lambda row: risk.tail_risk(row, jnp.full(size, 1.0 / size), confidence=a)))(losses)
    error = closed_forms.monte_carlo_standard_error(closed_forms.standard_normal_tail(a), confidence=a, count=size)
    # The spread of 256 estimates is itself known to 1/sqrt(512) = 4.4 %.
    for estimates, expected in zip(found, error, strict=True):
        assert np.std(np.asarray(estimates)) == pytest.approx(expected, rel=0.18)


# ---------------------------------------------------------------------------------------------------------------------
# The closed forms against each other and against quadrature


def _law_by_quadrature(law: Any, a: float) -> closed_forms.TailLaw:
    """Tail of a frozen SciPy law of the loss."""
    q = float(law.ppf(a))
    first, second = (
        integrate.quad(lambda x, k=k: x**k * law.pdf(x), q, math.inf, epsabs=0, epsrel=1e-12)[0] / (1 - a)
        for k in (1, 2)
    )
    return closed_forms.TailLaw(q, first, float(law.pdf(q)), second - first**2)


@pytest.mark.parametrize("a", [0.9, 0.975, 0.99])
def test_standard_tails_equal_quadrature(a: float) -> None:
    np.testing.assert_allclose(closed_forms.standard_normal_tail(a), _law_by_quadrature(stats.norm, a), rtol=1e-8)
    for nu in (3.0, 4.5, 8.0):
        tail = closed_forms.standard_t_tail(a, degrees_of_freedom=nu)
        np.testing.assert_allclose(tail, _law_by_quadrature(stats.t(nu), a), rtol=1e-7)
    short = closed_forms.lognormal_long_short(1.0, log_mean=-0.1, log_sd=0.4, confidence=a).short
    law = stats.lognorm(0.4, loc=-1.0, scale=math.exp(-0.1))
    np.testing.assert_allclose(short, _law_by_quadrature(law, a), rtol=1e-8)


@pytest.mark.parametrize("a", [0.6, 0.9, 0.99, 0.999])
def test_delta_gamma_law_in_the_cases_that_have_a_name(a: float) -> None:
    covariance = np.array([[0.0016, 0.0012], [0.0012, 0.0025]])
    delta = np.array([1e5, -2e5])
    linear = closed_forms.delta_gamma_normal(delta, np.zeros((2, 2)), covariance=covariance, theta=50.0, confidence=a)
    gaussian = closed_forms.gaussian_linear(delta, covariance, confidence=a).tail
    np.testing.assert_allclose(linear.tail, closed_forms._scaled(gaussian, scale=1.0, shift=-50.0), rtol=1e-9)
    assert (linear.skewness, linear.excess_kurtosis) == (0.0, 0.0)
    # Short gamma in one factor: the loss is half a chi-square with one degree of freedom; in four, with four.
    for count in (1, 4):
        short = closed_forms.delta_gamma_normal(np.zeros(count), -np.eye(count), covariance=np.eye(count), confidence=a)
        np.testing.assert_allclose(short.tail, _law_by_quadrature(stats.chi2(count, scale=0.5), a), rtol=1e-7)
    # Long gamma: the loss is bounded above by 0, its law that of minus half a chi-square.
    long = closed_forms.delta_gamma_normal(np.zeros(4), np.eye(4), covariance=np.eye(4), confidence=a)
    law = stats.chi2(4, scale=0.5)
    level = float(law.ppf(1 - a))
    mean = integrate.quad(lambda x: x * law.pdf(x), 0.0, level, epsrel=1e-12)[0] / (1 - a)
    assert long.tail.value_at_risk == pytest.approx(-level, rel=1e-8)
    assert long.tail.expected_shortfall == pytest.approx(-mean, rel=1e-7)
    # A quadratic with the linear part in another factor than the curvature, against the convolution of the two.
    mixed = closed_forms.delta_gamma_normal([1.0, 0.0], [[0.0, 0.0], [0.0, -1.0]], covariance=np.eye(2), confidence=a)
    beyond = integrate.quad(
        lambda z: stats.norm.pdf(z) * stats.norm.sf(mixed.tail.value_at_risk - 0.5 * z * z), -12, 12, epsabs=1e-13
    )[0]
    assert beyond == pytest.approx(1 - a, rel=1e-8)


def test_closed_forms_refuse_what_has_no_answer() -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        closed_forms.gaussian_linear([1.0], [[1.0]], confidence=1.0)
    with pytest.raises(ValueError, match=r"matrix \[n, n\]"):
        closed_forms.t_linear([1.0, 2.0], [[1.0]], degrees_of_freedom=4, confidence=0.99)
    with pytest.raises(ValueError, match="must exceed 2"):
        closed_forms.standard_t_tail(0.99, degrees_of_freedom=2.0)
    with pytest.raises(ValueError, match="no risk"):
        closed_forms.delta_gamma_normal([0.0], [[0.0]], covariance=[[1.0]], confidence=0.99)
    with pytest.raises(ValueError, match="must all be positive"):
        closed_forms.short_straddle_full_revaluation(
            100.0, 100.0, years=0.0, vol=0.5, horizon_years=0.1, confidence=0.99
        )
    with pytest.raises(ValueError, match="quantity must not be 0"):
        closed_forms.single_option_full_revaluation(
            1.0, 1.0, years=1.0, vol=0.5, is_call=True, quantity=0.0, horizon_years=0.1, confidence=0.99
        )
