"""The overlays of a run on a calibration file: which factors each one moves, with which figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from .calibration_file import CURRENT, CalibrationFile
from .calibration_file import Funding as FundingFit
from .config import CalibratedFigures
from .overlays.funding import FundingLaw, funding
from .overlays.jump_strata import JumpDesign
from .overlays.liquidity_drought import DroughtLaw
from .overlays.lst_discount import DiscountLaw, lst_discount
from .overlays.oracle_error import OracleLaw, oracle_error
from .overlays.partial_default import DefaultLaw, Stress
from .overlays.rare_jumps import rare_jumps
from .overlays.spot_vol import SpotVolRule, spot_vol
from .scenarios import ScenarioGenerator

Figures = TypeVar("Figures")

_WHOLE = 1e-9
_DEEPEST_CAP = 0.99  # a token that lost everything has no logarithm


def made_by_overlays(file: CalibrationFile, figures: CalibratedFigures, factors: Sequence[str]) -> set[str]:
    """Factors that an overlay makes whole, so that the law below must not draw them."""
    made: set[str] = set()
    if "spot_vol" in figures.overlays:
        made |= _of_kind("vol", factors, file.vol_rules).keys()
    if "lst_discount" in figures.overlays:
        made |= _of_kind("peg", factors, file.discounts).keys()
    return made


def with_overlays(
    base: ScenarioGenerator,
    file: CalibrationFile,
    figures: CalibratedFigures,
    factors: Sequence[str],
    *,
    step_days: float,
    design: JumpDesign | None,
) -> ScenarioGenerator:
    """`base` with the overlays of the run over those of `factors` that the file has figures for; a step of `step_days`.

    Ordinary moves go first, in the order of the run; the rare jumps of all of them are one overlay at the end.
    """
    for overlay in figures.overlays:
        if overlay == "spot_vol":
            base = _with_vols(base, file, factors, step_days)
        elif overlay == "lst_discount":
            base = _with_discounts(base, file, factors, step_days)
    jumps = _jumps(file, figures, factors)
    if not jumps:
        return base
    stress = _stress(file, factors)
    if stress is None:
        jumps = {name: law._replace(stress_loading=0.0) for name, law in jumps.items()}
    return rare_jumps(base, jumps, stress=stress, step_days=step_days, design=design)


def with_path_overlays(
    base: ScenarioGenerator,
    file: CalibrationFile,
    figures: CalibratedFigures,
    factors: Sequence[str],
    *,
    step_days: float,
) -> ScenarioGenerator:
    """`base` with what only paths read behind its factors (see `path_views`): marks of oracles, funding.

    Funding needs figures in the file; an asset without any keeps today's rate.
    """
    prices = [name for name in factors if name.startswith("price:")]
    if "oracle_error" in figures.overlays and prices:
        laws = {f"oracle:{name.removeprefix('price:')}": oracle_law(name, figures, step_days) for name in prices}
        base = oracle_error(base, laws, step_days=step_days)
    if "funding" in figures.overlays:
        rates = {
            name.replace("price:", "funding:", 1): of_step(found, step_days)
            for name, found in _of_kind("price", prices, file.funding).items()
        }
        base = funding(base, rates, step_days=step_days) if rates else base
    return base


def oracle_law(price: str, figures: CalibratedFigures, step_days: float) -> OracleLaw:
    """The oracle of a price in steps of `step_days`; what ends within a step is over at its end."""
    oracle, steps_per_hour = figures.oracle_error, 1.0 / (24.0 * step_days)
    return OracleLaw(
        price,
        deviation=oracle.deviation,
        heartbeat_steps=max(1, round(oracle.heartbeat_hours * steps_per_hour)),
        delay_steps=round(oracle.delay_hours * steps_per_hour),
        outages_per_year=oracle.outages_per_year,
        outage_steps=max(1, round(oracle.outage_hours * steps_per_hour)),
        errors_per_year=oracle.errors_per_year,
        error_std=oracle.error_std,
        error_steps=max(1, round(oracle.error_hours * steps_per_hour)),
        feed="network",
    )


def of_step(found: FundingFit, step_days: float) -> FundingLaw:
    """The law of a rate for steps of `step_days`: as it stands for whole intervals, else one accrual per step.

    A share s of an interval pays s times the rate; the process over it has decay kappa s and diffusion sigma sqrt(s).
    """
    law = FundingLaw(found.interval_hours, found.kappa, found.theta, found.sigma, found.cap, found.latest)
    share = 24.0 * step_days / law.interval_hours
    if share >= 1.0 and abs(share - round(share)) <= _WHOLE * share:
        return law
    return FundingLaw(
        interval_hours=24.0 * step_days,
        kappa=law.kappa * share,
        theta=law.theta * share,
        sigma=law.sigma * math.sqrt(share) * share,
        cap=law.cap * share,
        latest=law.latest * share,
    )


def drought_law(figures: CalibratedFigures, daily_std: float) -> DroughtLaw:
    """How the order book of an asset thins out as its price moves."""
    drought = figures.liquidity_drought
    return DroughtLaw(daily_std, drought.sensitivity, drought.least)


def _of_kind(kind: str, factors: Sequence[str], table: Mapping[str, Figures]) -> dict[str, Figures]:
    """By factor, in the order of `factors`: the entries of a table of the file by name."""
    parts = {name: name.partition(":") for name in factors}
    return {name: table[of] for name, (k, _, of) in parts.items() if k == kind and of in table}


def _with_vols(
    base: ScenarioGenerator, file: CalibrationFile, factors: Sequence[str], step_days: float
) -> ScenarioGenerator:
    rules = {
        name: SpotVolRule(rule.beta, rule.eta, rule.beta_abs, rule.mean_abs)
        for name, rule in _of_kind("vol", factors, file.vol_rules).items()
    }
    return spot_vol(base, rules, step_days=step_days) if rules else base


def _with_discounts(
    base: ScenarioGenerator, file: CalibrationFile, factors: Sequence[str], step_days: float
) -> ScenarioGenerator:
    laws = {
        name: DiscountLaw(found.daily_std, found.nu, found.mean, found.reversion_per_day)
        for name, found in _of_kind("peg", factors, file.discounts).items()
    }
    return lst_discount(base, laws, step_days=step_days) if laws else base


def _jumps(file: CalibrationFile, figures: CalibratedFigures, factors: Sequence[str]) -> dict[str, DefaultLaw]:
    """Of stablecoins, which the law below moves on ordinary days, and of staked tokens, which heal as they revert.

    A proxied one jumps as its model does, at times of its own.
    """
    jumps, loading = {}, figures.jumps.stress_loading
    model = {name: figures.proxies[name].factor if name in figures.proxies else name for name in factors}
    pegs = _of_kind("peg", [*model.values()], file.pegs)
    discounts = _of_kind("peg", [*model.values()], file.discounts)
    for name, behind in model.items():
        if "depeg" in figures.overlays and behind in pegs:
            peg = pegs[behind]
            jumps[name] = DefaultLaw(
                peg.jumps_per_year,
                peg.depth_a,
                peg.depth_b,
                min(peg.depth_cap, _DEEPEST_CAP),
                peg.recovery_per_day,
                peg.absorbing_probability,
                loading,
            )
        if "lst_discount" in figures.overlays and behind in discounts:
            token = discounts[behind]
            jumps[name] = DefaultLaw(
                token.jumps_per_year,
                token.depth_a,
                token.depth_b,
                min(token.depth_cap, _DEEPEST_CAP),
                token.reversion_per_day,
                figures.jumps.absorbing_share,
                loading,
            )
    return jumps


def jump_stress(file: CalibrationFile, law_name: str, factors: Sequence[str]) -> float:
    """Standard deviations of a day like today that a law's typical move is wider than today's; at least 0."""
    stress = _stress(file, factors)
    if stress is None:
        return 0.0
    return max(file.laws[law_name].daily_std[stress.factor] / stress.daily_std - 1.0, 0.0)


def _stress(file: CalibrationFile, factors: Sequence[str]) -> Stress | None:
    """Falls of the first anchor that is drawn, in deviations of the current law under every law; None without one."""
    for anchor in file.calibration.anchors:
        name = f"price:{anchor}"
        if name in factors:
            return Stress(name, file.laws[CURRENT].daily_std[name])
    return None
