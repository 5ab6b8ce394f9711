"""Filtered history along paths: volatility recursions, floors, blocks of dates, joint columns of the history."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from jax import lax

from aggregator.errors import ConfigurationError, DataError
from aggregator.generators.filtered_historical import FilteredHistorical, PathState, filtered_historical
from aggregator.history import FactorHistory, factor_history
from aggregator.history_tables import JointSeries, ReturnPanel, joint_changes, read_history_table, return_panel
from aggregator.scenarios import draw_all, draw_paths, draw_scenarios, step_keys
from aggregator.volatility_filter import VolatilityRecursion, exponential_weighting, filter_volatility
from tests.generator_suite import small_history

RTOL_FLOAT64 = 1e-12  # float64 against float64, a few operations
RTOL_RECURSION = 1e-10  # the same through hundreds of steps
STANDARD_ERRORS = 4.0  # of a Monte Carlo estimate at a fixed seed
PATHS = 16_384
STEPS = 12
NAMES = ("price:BTC", "price:ETH", "price:SOL", "vol:BTC")
GARCH = VolatilityRecursion(omega=4e-5, alpha=0.10, beta=0.82)
LEVERAGED = VolatilityRecursion(omega=4e-5, alpha=0.04, beta=0.85, gamma=0.10)


def history(recursion: VolatilityRecursion | None = None, *, floor: float = 0.0) -> FactorHistory:
    """The complete history of the suite, without floors unless said, and all factors under one recursion."""
    whole = small_history(gaps=False)
    given = exponential_weighting(0.9) if recursion is None else recursion
    return replace(whole, floor=floor * whole.sigma_next, recursions=(given,) * len(whole.sources))


def generator_of(given: FactorHistory, **options: Any) -> FilteredHistorical:
    return filtered_historical(NAMES, given, key=jax.random.key(0), **({"mode": "draw"} | options))


def states(generator: FilteredHistorical, key: jax.Array, paths: int = PATHS) -> tuple[PathState, np.ndarray]:
    """The state after each step and the log-changes of each step: [paths, STEPS, ...]."""

    def walk(index: jax.Array) -> Any:
        def advance(state: PathState, of_step: jax.Array) -> Any:
            state, moves = generator.step(state, of_step, index)
            return state, (state, moves)

        return lax.scan(advance, generator.start(key, index), step_keys(key, STEPS))[1]

    after, moves = jax.jit(jax.vmap(walk))(jnp.arange(paths, dtype=jnp.uint32))
    return PathState(*(np.asarray(part) for part in after)), np.asarray(moves)  # type: ignore[arg-type]


# ---- recursions along a path -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recursion", [exponential_weighting(0.9), GARCH, LEVERAGED])
def test_mean_variance_along_a_path_follows_the_closed_form(recursion: VolatilityRecursion) -> None:
    given = history(recursion)
    after, _ = states(generator_of(given), jax.random.key(1))
    z = given.residuals
    # E[v'] = omega + E[(alpha + gamma 1[z < 0]) z^2 + beta] v, the dates being drawn independently of v
    carried = recursion.beta + (np.where(z < 0.0, recursion.alpha + recursion.gamma, recursion.alpha) * z**2).mean(
        axis=0
    )
    start = given.variance_next
    if recursion.omega == 0.0:
        expected = start * carried ** np.arange(1, STEPS + 1)[:, None]
    else:
        mean = recursion.omega / (1.0 - carried)  # the level it reverts to, at the rate `carried`
        expected = mean + carried ** np.arange(1, STEPS + 1)[:, None] * (start - mean)
    got, error = after.variance.mean(axis=0), after.variance.std(axis=0) / math.sqrt(PATHS)
    assert (np.abs(got - expected) <= STANDARD_ERRORS * error).all()
    assert (np.abs(expected[-1] - start) > 10.0 * error[-1]).any()  # something moved


@pytest.mark.parametrize("horizon_days", [1.0, 4.0])
def test_a_path_is_that_of_the_plain_recursion(horizon_days: float) -> None:
    given = history(LEVERAGED, floor=0.9)
    after, moves = states(generator_of(given, horizon_days=horizon_days), jax.random.key(2), 256)
    root, floored = math.sqrt(horizon_days), 0
    for path in range(256):
        variance, sigma = given.variance_next.copy(), given.sigma_next.copy()
        for step in range(STEPS):
            move = sigma * given.residuals[after.date[path, step]]
            np.testing.assert_allclose(moves[path, step], root * move, rtol=RTOL_RECURSION)
            pull = np.where(move < 0.0, LEVERAGED.alpha + LEVERAGED.gamma, LEVERAGED.alpha)
            variance = LEVERAGED.omega + pull * move**2 + LEVERAGED.beta * variance
            sigma = np.maximum(np.sqrt(variance), given.floor)
            floored += int((sigma == given.floor).sum())
        np.testing.assert_allclose(after.variance[path, -1], variance, rtol=RTOL_RECURSION)
    assert floored > 100


def test_the_first_step_is_exactly_the_filtered_law() -> None:
    given = history()
    paths = np.asarray(draw_paths(generator_of(given, mode="every_date"), jax.random.key(3), 0, 512, steps=2))
    np.testing.assert_array_equal(paths[:300, 0], given.sigma_next * given.residuals)
    # later steps do not replay the first date, and start from the volatility that it left behind
    sigma = np.sqrt(0.9 * given.variance_next + 0.1 * paths[:, 0] ** 2)
    z = paths[:, 1] / sigma
    distance = np.abs(z[:, None, :] - given.residuals[None]).max(axis=2)
    np.testing.assert_allclose(distance.min(axis=1), 0.0, atol=1e-12)  # rows of a date are never mixed
    assert len(np.unique(distance[:300].argmin(axis=1))) > 150
    assert np.mean(distance[:300].argmin(axis=1) == np.arange(300)) < 0.05


def test_a_proxy_has_the_recursion_of_its_asset() -> None:
    given = history(GARCH)
    given = replace(given, columns=dict(given.columns) | {"price:WIF": (2, 1.5)})
    generator = filtered_historical(("price:SOL", "price:WIF"), given, key=jax.random.key(0), mode="draw")
    paths = np.asarray(draw_paths(generator, jax.random.key(4), 0, 256, steps=5))
    np.testing.assert_allclose(paths[:, :, 1], 1.5 * paths[:, :, 0], rtol=RTOL_RECURSION)


# ---- blocks of dates -------------------------------------------------------------------------------------------------


def test_blocks_of_dates_have_their_mean_length() -> None:
    given, length = history(), 4.0
    after, _ = states(generator_of(given, mean_block_steps=length), jax.random.key(5))
    following = (after.date[:, 1:] - after.date[:, :-1]) % 300 == 1
    p = (1.0 - 1.0 / length) + 1.0 / length / 300.0  # a new block may begin where the old one would have gone on
    error = math.sqrt(p * (1.0 - p) / following.size)
    assert abs(following.mean() - p) <= STANDARD_ERRORS * error
    assert ((after.date[:, 1:] == 0) & (after.date[:, :-1] == 299)).any()  # after the last date comes the first
    count = np.bincount(after.date[:, -1], minlength=300)  # the law of one date stays the same
    assert ((count - PATHS / 300.0) ** 2 / (PATHS / 300.0)).sum() < 300.0 + STANDARD_ERRORS * math.sqrt(600.0)


def test_without_blocks_every_step_draws_its_own_date() -> None:
    after, _ = states(generator_of(history()), jax.random.key(5))
    following = (after.date[:, 1:] - after.date[:, :-1]) % 300 == 1
    p = 1.0 / 300.0
    assert abs(following.mean() - p) <= STANDARD_ERRORS * math.sqrt(p * (1.0 - p) / following.size)


def test_blocks_leave_the_first_step_as_it_is() -> None:
    key = jax.random.key(6)
    plain, blocks = (generator_of(history(), mean_block_steps=length) for length in (1.0, 10.0))
    np.testing.assert_array_equal(draw_scenarios(plain, key, 0, 256), draw_scenarios(blocks, key, 0, 256))
    with pytest.raises(ConfigurationError, match=r"mean_block_steps is 0\.5"):
        generator_of(history(), mean_block_steps=0.5)
    bad = history()
    bad.residuals[7, 1] = np.inf
    with pytest.raises(ConfigurationError, match="history of price:ETH has a volatility or residual"):
        generator_of(bad)


# ---- the filter ------------------------------------------------------------------------------------------------------


def slow_variance(changes: list[float], recursion: VolatilityRecursion, burn_in: int) -> list[float]:
    found, variance = [math.nan], math.nan
    first: list[float] = []
    for r in changes:
        if not math.isnan(r):
            if len(first) < burn_in:
                first.append(r * r)
                variance = sum(first) / burn_in if len(first) == burn_in else math.nan
            else:
                pull = recursion.alpha + (recursion.gamma if r < 0.0 else 0.0)
                variance = recursion.omega + pull * r * r + recursion.beta * variance
        found.append(variance)
    return found


def test_filter_is_that_of_the_definition() -> None:
    changes = 0.03 * np.random.default_rng(1).standard_normal((200, 3))
    changes[50:60, 1] = np.nan
    recursions = [exponential_weighting(0.94), GARCH, LEVERAGED]
    got = filter_volatility(changes, recursions, burn_in=20, floor_fraction=0.5, floor_window=90)
    for column, recursion in enumerate(recursions):
        expected = slow_variance(list(changes[:, column]), recursion, 20)
        np.testing.assert_allclose(got.variance[:, column], expected, rtol=RTOL_FLOAT64)
    there = np.isfinite(got.variance)
    np.testing.assert_array_equal(got.volatility[there], np.maximum(np.sqrt(got.variance), got.floor)[there])


def daily_panel(days: int = 400) -> ReturnPanel:
    returns = 0.03 * np.random.default_rng(2).standard_normal((days, 2))
    returns[:, 1] = 0.8 * returns[:, 0] + 0.6 * returns[:, 1]
    return ReturnPanel(np.datetime64("2023-01-01") + np.arange(days), ("BTC", "ETH"), returns, ("perp", "perp"), (0, 1))


def test_a_factor_is_filtered_by_its_own_recursion() -> None:
    panel = daily_panel()
    names = ("price:BTC", "price:ETH")
    result = factor_history(panel, names, recursions={"price:ETH": LEVERAGED, "price:UNUSED": GARCH})
    plain = factor_history(panel, names)
    assert result.recursions == (exponential_weighting(0.97), LEVERAGED)
    np.testing.assert_array_equal(result.residuals[:, 0], plain.residuals[:, 0])
    variance = slow_variance(list(panel.returns[:, 1]), LEVERAGED, 30)
    assert math.isclose(result.variance_next[1], variance[-1], rel_tol=RTOL_RECURSION)
    assert math.isclose(result.residuals[-1, 1], panel.returns[-1, 1] / math.sqrt(variance[-2]), rel_tol=RTOL_RECURSION)
    year = math.sqrt(np.mean(panel.returns[-365:, 1] ** 2))
    assert math.isclose(result.floor[1], 0.5 * year, rel_tol=RTOL_RECURSION)


@pytest.mark.parametrize(
    ("recursion", "message"),
    [
        (VolatilityRecursion(math.nan, 0.1, 0.8), "not finite"),
        (VolatilityRecursion(-1e-6, 0.1, 0.8), "must not be negative"),
        (VolatilityRecursion(1e-6, 0.1, 0.8, -0.2), "must not be negative"),
        (VolatilityRecursion(0.0, 0.5, 0.0), "not both 0"),
        (VolatilityRecursion(1e-6, 0.1, 0.9, 0.1), "above 1"),
    ],
)
def test_recursions_that_explode_are_refused_by_name(recursion: VolatilityRecursion, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"price:ETH.*{message}"):
        factor_history(daily_panel(), ("price:ETH",), recursions={"price:ETH": recursion})


# ---- joint columns ---------------------------------------------------------------------------------------------------

JOINT = ("basis:BTC", "depth:BTC", "funding:BTC", "peg:USDC")


def context(days: int = 400) -> pa.Table:
    """Daily values of four series: a rate that stays at its cap and changes sign, positive levels, and one bad cell."""
    rng = np.random.default_rng(3)
    funding = np.clip(0.0001 + 0.0002 * rng.standard_normal(days), -0.0003, 0.0003)
    series = {
        "funding": funding,
        "basis": 0.002 * rng.standard_normal(days),
        "depth": np.exp(15.0 + rng.standard_normal(days)),
        "usdc": np.exp(0.0005 * rng.standard_normal(days)),
    }
    series["depth"][100] = -1.0
    opened = np.datetime64("2023-01-01") + np.arange(days)
    return pa.table(
        {
            "asset": np.repeat("BTC", 4 * days),
            "series": np.repeat(list(series), days),
            "ts": pa.array(np.tile(opened, 4).astype("datetime64[us]"), type=pa.timestamp("us", tz="UTC")),
            "value": np.concatenate(list(series.values())),
        }
    )


SERIES = {
    "basis:BTC": JointSeries("BTC", "basis", "difference"),
    "depth:BTC": JointSeries("BTC", "depth", "log"),
    "funding:BTC": JointSeries("BTC", "funding", "difference"),
    "peg:USDC": JointSeries("BTC", "usdc", "log"),
    "funding:ETH": JointSeries("ETH", "funding", "difference"),
}


def test_joint_columns_keep_their_date_with_the_prices() -> None:
    panel = daily_panel()
    changes, failures = joint_changes(context(), SERIES, dates=panel.dates)
    assert sorted(changes) == sorted(JOINT)
    assert [(f.path, f.reason.value) for f in failures] == [("BTC/depth/2023-04-11", "out_of_range")]
    assert np.isfinite(changes["funding:BTC"][1:]).all()  # a rate may repeat and may be negative
    values = context().filter(pa.compute.equal(context()["series"], "funding"))["value"].to_numpy()
    np.testing.assert_allclose(changes["funding:BTC"][1:], np.diff(values), rtol=RTOL_FLOAT64)
    names = (*JOINT, "price:BTC", "price:ETH")
    result = factor_history(panel, names, joint=changes)
    assert result.failures == ()
    assert {d.factor: d.origin for d in result.diagnostics} == dict.fromkeys(names, "own")
    generator = filtered_historical(names, result, key=jax.random.key(0))
    drawn = np.asarray(draw_all(generator, jax.random.key(1)).shocks)[: len(result.dates)]
    for column, name in enumerate(names):
        source = result.columns[name][0]
        there = np.isfinite(result.residuals[:, source])
        assert there.sum() >= len(result.dates) - 30
        expected = result.sigma_next[source] * result.residuals[there, source]
        np.testing.assert_array_equal(drawn[there, column], expected)


def test_joint_columns_that_are_not_there_fail_by_name() -> None:
    panel = daily_panel()
    changes, _ = joint_changes(context(200), SERIES, dates=panel.dates)
    changes["basis:BTC"] = np.where(np.arange(400) < 300, 0.001 * np.sin(np.arange(400.0)), np.nan)
    names = ("basis:BTC", "discount:wstETH", "funding:BTC", "peg:DAI", "price:BTC")
    result = factor_history(panel, names, joint=changes)
    assert {f.subject: (f.reason.value, f.message) for f in result.failures} == {
        "basis:BTC": ("stale", "the history of basis:BTC ended before the end of the panel"),
        "discount:wstETH": ("missing_parameter", "discount:wstETH has no history"),
        "funding:BTC": ("missing_parameter", "the history of funding:BTC has fewer than 250 daily changes"),
    }  # a peg has a parametric law instead
    assert list(result.columns) == ["price:BTC"]
    with pytest.raises(DataError, match=r"basis:BTC has the volatility 0\.0"):
        factor_history(panel, names[:1] + names[-1:], joint={"basis:BTC": np.zeros(400)})
    with pytest.raises(ConfigurationError, match="change of funding:BTC is 'level'"):
        joint_changes(context(), {"funding:BTC": JointSeries("BTC", "funding", "level")}, dates=panel.dates)  # type: ignore[arg-type]


def test_recorded_history_along_paths(recorded: Path) -> None:
    as_of = datetime(2024, 7, 1, tzinfo=UTC)
    bars = read_history_table(recorded / "market" / "ohlcv_1d.parquet")
    series = read_history_table(recorded / "market" / "context.parquet")
    panel, _ = return_panel(bars, ["BTC", "ETH", "SOL"], as_of=as_of)
    wanted = {"funding:BTC": JointSeries("BTC", "funding_daily_mean", "difference")}
    changes, failures = joint_changes(series, wanted, dates=panel.dates, as_of=as_of)
    assert failures == ()
    names = ("funding:BTC", "price:BTC", "price:ETH", "price:SOL")
    maximum_age_days = int((panel.dates[-1] - panel.dates[np.isfinite(changes["funding:BTC"])][-1]).astype(int))
    result = factor_history(panel, names, joint=changes, maximum_age_days=max(maximum_age_days, 7))
    assert result.failures == ()
    generator = filtered_historical(names, result, key=jax.random.key(0), mode="draw", mean_block_steps=5.0)
    paths = np.asarray(draw_paths(generator, jax.random.key(1), 0, 4096, steps=10))
    assert np.isfinite(paths).all()
    ten_days = paths[:, :, 1:].sum(axis=1)
    day = paths[:, 0, 1:]
    ratio = ten_days.std(axis=0) / day.std(axis=0) / math.sqrt(10.0)
    assert (
        (ratio > 0.8) & (ratio < 1.8)
    ).all()  # volatility is below its mean in June 2024 and reverts by the residuals
    assert 0.6 < np.corrcoef(ten_days.T)[0, 1] < 0.95
