"""Sections of the calibration file that come from levels: pegs, discounts of staked tokens, funding, basis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from .calibration.basis import gap_law
from .calibration.mean_reversion import MeanReversion, mean_reversion_fit
from .calibration.pegs import MINIMUM_DEPEGS, PegHistory, depeg_law, event_rate, peg_history
from .calibration.sample import NO_LEVELS, Levels, joined_levels
from .calibration_file import Basis, Discount, Funding, Peg
from .calibration_request import CalibrationRequest
from .calibration_sections import significant
from .errors import Failure, FailureReason

DOLLAR_MARKET = "spot_long"
"""Market whose closes of the first anchor are in dollars; against those in USDT they give the peg of USDT."""

DOLLAR_COIN = "USDT"

_RECOVERY = ("recovery_per_day", "absorbing_probability")

_T = TypeVar("_T")


class Findings:
    """Failures in the order found, each once."""

    def __init__(self, payload: str) -> None:
        self.payload = payload
        self._found: dict[tuple[str, str, str], Failure] = {}

    def add(self, *failures: Failure) -> None:
        """Keep the failures that are not there yet."""
        for failure in failures:
            self._found.setdefault((failure.reason, failure.path, failure.message), failure)

    def lacking(self, subject: str, message: str) -> None:
        """Keep one more: `subject` cannot be calibrated because of `message`."""
        self.add(Failure(FailureReason.MISSING_PARAMETER, message, payload=self.payload, subject=subject))

    def attempt(self, subject: str, estimate: Callable[[], _T]) -> _T | None:
        """The estimate, or None and a failure when it has too little data (ValueError)."""
        try:
            return estimate()
        except ValueError as error:
            self.lacking(subject, f"{subject}: {error}")
            return None

    def all(self) -> tuple[Failure, ...]:
        """What was found so far."""
        return tuple(self._found.values())


def level_sources(request: CalibrationRequest) -> tuple[str, ...]:
    """Assets whose levels the pegs and discounts need, beside the dollar market of the first anchor."""
    coins = (*request.depeg_sample, *request.pegs.values())
    pairs = (name for pair in request.discounts.values() for name in (pair.token, pair.underlying))
    return tuple(dict.fromkeys((*coins, *pairs, request.anchors[0])))


def pegs_section(request: CalibrationRequest, levels: Levels, findings: Findings) -> dict[str, Peg]:
    """Stablecoins: ordinary law of their own source, depegs of all sampled coins; of few depegs only the rate."""
    histories: dict[str, PegHistory] = {}
    for source in dict.fromkeys((*request.depeg_sample, *request.pegs.values())):
        days, closes = _coin_levels(request, levels, source)
        if not len(days) and not {"pegs", "depeg_sample"} & request.model_fields_set:
            continue  # a coin that nobody asked for
        history = findings.attempt(
            f"peg of {source}", partial(peg_history, days, closes, ordinary_days=request.peg_days)
        )
        if history is not None:
            histories[source] = history
    pooled = [histories[source] for source in request.depeg_sample if source in histories]
    depegs = [depeg for history in pooled for depeg in history.depegs]
    years = sum(history.years for history in pooled)
    law = request.depeg.model_dump()
    assumed: tuple[str, ...] = ("depth_a", "depth_b", "depth_cap", *_RECOVERY)
    if len(depegs) >= MINIMUM_DEPEGS:
        found = findings.attempt("depth of depegs", partial(depeg_law, depegs, request.depeg.depth_cap))
        if found is not None:
            law |= {field: significant(value, 3) for field, value in found._asdict().items()}
            assumed = ("depth_cap",)
    return {
        name: Peg(
            daily_std=significant(histories[source].daily_std, 3),
            nu=histories[source].nu,
            jumps_per_year=significant(event_rate(len(depegs), years), 2),
            **law,
            days=histories[source].days,
            events=len(depegs),
            years=significant(years, 3),
            assumed=assumed if source == name else ("daily_std", "nu", *assumed),
        )
        for name, source in request.pegs.items()
        if source in histories and years
    }


def _coin_levels(request: CalibrationRequest, levels: Levels, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Days and dollar levels of a stablecoin: its closes, or for USDT the first anchor in dollars over it in USDT."""
    if source == DOLLAR_COIN:
        anchor = request.anchors[0]
        dollars = levels.get((anchor, DOLLAR_MARKET), NO_LEVELS)
        days, above, below = joined_levels(dollars, levels.get((anchor, "spot"), NO_LEVELS))
        closes = above / below
    else:
        days, closes = levels.get((source, "spot"), NO_LEVELS)
    known = np.isfinite(closes)
    return days[known], closes[known]


def discounts_section(request: CalibrationRequest, levels: Levels, findings: Findings) -> dict[str, Discount]:
    """Staked tokens: mean reversion of the log of token over underlying, stress jump as assumed."""
    sections = {}
    for name, pair in request.discounts.items():
        token = levels.get((pair.token, "spot"), NO_LEVELS)
        _, above, below = joined_levels(token, levels.get((pair.underlying, "spot"), NO_LEVELS))
        gap = np.log(above) - np.log(below)
        if not len(gap) and "discounts" not in request.model_fields_set:
            continue  # a token that nobody asked for
        reversion = findings.attempt(
            f"discount of {name} by {pair.token}", partial(mean_reversion_fit, gap[:-1], gap[1:])
        )
        if reversion is None:
            continue
        borrowed = pair.token != name
        assumed = ("jumps_per_year", "depth_a", "depth_b", "depth_cap", "nu")
        sections[name] = Discount(
            daily_std=significant(float(np.sqrt(np.nanmean(np.diff(gap) ** 2))), 3),
            nu=request.discount_nu,
            mean=significant(reversion.theta, 2),
            reversion_per_day=significant(reversion.kappa, 2),
            **request.discount_jump.model_dump(),
            days=reversion.steps,
            borrowed_from=pair.token if borrowed else "",
            assumed=(*(("daily_std", "mean", "reversion_per_day") if borrowed else ()), *assumed),
        )
    return sections


def funding_section(times: np.ndarray, rates: np.ndarray, *, cap: float) -> Funding:
    """Mean reversion of funding `rates` [count] at `times` [count] (microseconds, ascending); ValueError with too few.

    The interval is the median step; a step of another length is a gap and no step of the process.
    """
    steps = np.diff(times)
    if not len(steps):
        raise ValueError("fewer than two funding rates")
    interval = int(np.median(steps))
    before = np.where(steps == interval, rates[:-1], np.nan)
    fit: MeanReversion = mean_reversion_fit(before, rates[1:])
    return Funding(
        interval_hours=significant(interval / 3.6e9),
        kappa=significant(fit.kappa, 3),
        theta=significant(fit.theta, 3),
        sigma=significant(fit.sigma, 3),
        cap=cap,
        latest=significant(float(rates[-1]), 3),
        intervals=fit.steps,
        assumed=("cap",),
    )


def basis_sections(request: CalibrationRequest, levels: Levels, assets: Sequence[str]) -> dict[str, Basis]:
    """Perpetual against spot of every asset; without both for long enough the floor, which is then assumed."""
    sections = {}
    for asset in assets:
        floor = request.basis_floor_major if asset in request.majors else request.basis_floor
        spot = levels.get((asset, "spot"), NO_LEVELS)
        _, perp, other = joined_levels(levels.get((asset, "perp"), NO_LEVELS), spot)
        try:
            law = gap_law(perp, other)
        except ValueError:
            sections[asset] = Basis(
                es_99=0.0, floor=floor, charge=floor, gap_mean=0.0, gap_std=0.0, days=0, assumed=("charge",)
            )
            continue
        shortfall = significant(law.es_99, 3)
        sections[asset] = Basis(
            es_99=shortfall,
            floor=floor,
            charge=max(shortfall, floor),
            gap_mean=significant(law.mean, 2),
            gap_std=significant(law.std, 3),
            days=law.days,
        )
    return sections
