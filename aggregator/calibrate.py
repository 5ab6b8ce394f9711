"""The verb `calibrate`: market history up to as_of in, a dated calibration file out. Host code, no device, no clock."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from .calibration.sample import Sample, daily_levels, funding_rates, read_sample, without
from .calibration_file import CURRENT, CalibrationFile, Diagnostics, Funding, Liquidity, Provenance, TableUsed
from .calibration_laws import (
    Filled,
    LawResult,
    VolFactor,
    current_law,
    stressed_law,
    vol_factors,
    vol_rule_section,
)
from .calibration_levels import (
    DOLLAR_MARKET,
    Findings,
    basis_sections,
    discounts_section,
    funding_section,
    level_sources,
    pegs_section,
)
from .calibration_request import CalibrationRequest, read_request, request_path
from .calibration_sections import (
    FactorFits,
    Residuals,
    factor_check,
    factor_fits,
    jumps_section,
    liquidity_section,
    margin_grid,
    regimes_section,
    standardised,
)
from .calibration_text import calibration_text
from .errors import ConfigurationError, DataError, ExitCode, Failure, FailureReason
from .history_tables import read_history_table

ESTIMATORS = {
    "ewma": "2",
    "rank_correlation": "1",
    "t_copula": "1",
    "semi_parametric_law": "1",
    "garch": "1",
    "jumps": "1",
    "regimes": "1",
    "vol_rule": "1",
    "pegs": "1",
    "mean_reversion": "1",
    "liquidity": "1",
    "basis": "1",
}
"""Versions of the estimators: a change that moves figures raises one."""


class Calibrated(NamedTuple):
    """The file's content and what could not be used on the way."""

    file: CalibrationFile
    failures: tuple[Failure, ...]


class Written(NamedTuple):
    """Where the file lies, its content, what could not be used, and the exit code."""

    path: Path
    calibrated: Calibrated
    exit_code: ExitCode


class _Tables(NamedTuple):
    history: pa.Table
    context: pa.Table | None
    used: tuple[TableUsed, ...]
    names: tuple[str, str]


def run_calibrate(config: Path, *, out: Path | None = None) -> Written:
    """Calibrate as the request `config` says and write the file: `out`, else calibrated/<as_of date>.toml beside it.

    Raises ConfigurationError for a request or path that is wrong, DataError for tables that cannot be used.
    """
    request = read_request(config)
    folder = config.resolve().parent
    calibrated = calibrate(request, folder)
    path = out if out is not None else folder / "calibrated" / f"{request.as_of:%Y-%m-%d}.toml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(calibration_text(calibrated.file), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write the calibration to {path.name!r}: {error.strerror}") from None
    code = ExitCode.BAD_DATA if calibrated.failures else ExitCode.OK
    return Written(path, calibrated, code)


def calibrate(request: CalibrationRequest, folder: Path) -> Calibrated:
    """The calibration of the tables that the request names, relative to `folder`."""
    tables = _read_tables(request, folder)
    with _readable(tables.names[0]):
        return _calibrated(request, tables)


def _read_tables(request: CalibrationRequest, folder: Path) -> _Tables:
    used, read, names = [], [], []
    for text in (request.history, request.context):
        if text is None:
            continue
        path = request_path(text, folder)
        with _readable(path.name):
            table = read_history_table(path)
        used.append(
            TableUsed(name=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), rows=table.num_rows)
        )
        read.append(table)
        names.append(path.name)
    return _Tables(read[0], read[1] if len(read) > 1 else None, tuple(used), (names[0], names[-1]))


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """A table that Arrow cannot read, or whose columns have the wrong type, is bad data and no internal error."""
    try:
        yield
    except pa.ArrowException as error:
        message = f"the table cannot be read: {str(error).partition(chr(10))[0]}"
        raise DataError(Failure(FailureReason.MALFORMED, message, payload=name)) from None


def _calibrated(request: CalibrationRequest, tables: _Tables) -> Calibrated:
    payload = tables.names[0]
    findings = Findings(payload)
    sample = read_sample(
        tables.history,
        tables.context,
        as_of=request.as_of,
        assets=request.assets,
        anchors=request.anchors,
        markets=request.markets,
        vols=request.vols,
        not_priced=_not_priced(request),
        minimum_days=request.minimum_days,
        payload=payload,
        context_payload=tables.names[1],
    )
    sample, prices, price_fits = _price_fits(request, sample)
    findings.add(*sample.failures)
    vols, vol_residuals, vol_fits = _vol_fits(request, sample, findings)
    fits = {**price_fits, **vol_fits}
    if not vols and ("vols" in request.model_fields_set or tables.context is not None) and request.vols:
        named = ", ".join(request.vols)
        findings.lacking("vol", f"no implied volatility history of {named}; the calibration has no vol factor")

    standing, rejected = daily_levels(
        tables.history,
        level_sources(request),
        ("spot", DOLLAR_MARKET),
        as_of=request.as_of,
        payload=payload,
        may_stand_still=True,
    )
    findings.add(*rejected)
    pegs = pegs_section(request, standing, findings)
    discounts = discounts_section(request, standing, findings)
    fixed: dict[str, tuple[float, Filled]] = {
        **{f"peg:{name}": (peg.daily_std, "peg") for name, peg in pegs.items()},
        **{f"peg:{name}": (discount.daily_std, "discount") for name, discount in discounts.items()},
    }
    laws = _laws(request, sample, vols, fixed, prices, vol_residuals, findings)
    factors = tuple(laws[CURRENT].law.daily_std)
    liquidity = {
        asset: section
        for i, asset in enumerate(sample.assets)
        if (section := _liquidity(sample, i, float(prices.next_std[i]), findings)) is not None
    }
    levels, _ = daily_levels(tables.history, sample.assets, ("perp", "spot"), as_of=request.as_of, payload=payload)
    file = CalibrationFile(
        factors=factors,
        margin_probabilities=margin_grid(),
        calibration=Provenance(
            as_of=request.as_of,
            first_date=date.fromisoformat(str(sample.dates[0])),
            last_date=date.fromisoformat(str(sample.dates[-1])),
            days=len(sample.dates),
            anchors=request.anchors,
            markets=request.markets,
            decay=request.decay,
            floor_fraction=request.floor_fraction,
            tables=tables.used,
            estimators=ESTIMATORS,
        ),
        laws={name: result.law for name, result in laws.items()},
        margins={name: fit.margin for name, fit in fits.items()},
        garch={name: fit.garch for name, fit in fits.items()},
        jumps=jumps_section(sample),
        regimes=regimes_section(sample, request.anchors),
        vol_rules={vol.asset: vol_rule_section(vol, skew_tilt=request.skew_tilt) for vol in vols},
        pegs=pegs,
        discounts=discounts,
        funding=_funding(request, tables, sample.assets, findings),
        liquidity=liquidity,
        basis=basis_sections(request, levels, sample.assets),
        diagnostics=Diagnostics(
            spectrum={name: result.spectrum for name, result in laws.items()},
            copula_profile={name: result.profile for name, result in laws.items()},
            largest_repair={name: result.repair for name, result in laws.items()},
            factors={
                f"price:{asset}": factor_check(sample, i, fits[f"price:{asset}"])
                for i, asset in enumerate(sample.assets)
            },
        ),
        refused=dict(sorted(sample.refused.items())),
    )
    return Calibrated(file, findings.all())


def _not_priced(request: CalibrationRequest) -> tuple[str, ...]:
    """Assets that are a peg or a discount and no price factor of their own."""
    coins = {*request.pegs, *request.pegs.values(), *request.depeg_sample}
    tokens = {*request.discounts, *(discount.token for discount in request.discounts.values())}
    return tuple(sorted(coins | tokens))


def _price_fits(request: CalibrationRequest, sample: Sample) -> tuple[Sample, Residuals, dict[str, FactorFits]]:
    """The sample of the assets that can be fitted, their residuals and fits.

    An asset that cannot (its closes repeat so often that quantiles coincide) is refused; an anchor raises DataError.
    """
    prices = _standardised(request, sample.returns)
    fits: dict[str, FactorFits] = {}
    refused: dict[str, str] = {}
    for i, asset in enumerate(sample.assets):
        try:
            fits[f"price:{asset}"] = factor_fits(sample.returns[:, i], prices.values[:, i])
        except ValueError as error:
            refused[asset] = f"cannot be fitted: {error}"
    failures = [
        Failure(FailureReason.CALCULATION, f"{asset} {reason}", subject=asset)
        for asset, reason in refused.items()
        if asset in request.assets or asset in request.anchors
    ]
    for failure in failures:
        if failure.subject in request.anchors:
            raise DataError(failure)
    kept = [i for i, asset in enumerate(sample.assets) if asset not in refused]
    return without(sample, refused, failures), Residuals(prices.values[:, kept], prices.next_std[kept]), fits


def _vol_fits(
    request: CalibrationRequest, sample: Sample, findings: Findings
) -> tuple[tuple[VolFactor, ...], dict[str, Residuals], dict[str, FactorFits]]:
    """Vol factors, residuals of those with own history, and fits; a borrowed factor has the fits of its lender."""
    vols = vol_factors(sample, request.vols, minimum_days=request.minimum_days)
    residuals, fits = {}, {}
    for vol in vols:
        if vol.changes is not None:
            residuals[vol.asset] = _standardised(request, vol.changes[:, None])
            values = residuals[vol.asset].values[:, 0]
            fit = findings.attempt(f"vol:{vol.asset}", partial(factor_fits, vol.changes, values))
            if fit is None:
                others = {asset: changes for asset, changes in sample.vol_changes.items() if asset != vol.asset}
                return _vol_fits(request, replace(sample, vol_changes=others), findings)
            fits[f"vol:{vol.asset}"] = fit
    fits |= {f"vol:{vol.asset}": fits[f"vol:{vol.lender}"] for vol in vols if vol.lender}
    return vols, residuals, {f"vol:{vol.asset}": fits[f"vol:{vol.asset}"] for vol in vols}


def _standardised(request: CalibrationRequest, changes: np.ndarray) -> Residuals:
    return standardised(changes, decay=request.decay, floor_fraction=request.floor_fraction)


def _laws(
    request: CalibrationRequest,
    sample: Sample,
    vols: tuple[VolFactor, ...],
    fixed: dict[str, tuple[float, Filled]],
    prices: Residuals,
    vol_residuals: dict[str, Residuals],
    findings: Findings,
) -> dict[str, LawResult]:
    try:
        current = current_law(
            sample,
            vols,
            fixed,
            prices=prices,
            vol_residuals=vol_residuals,
            correlation_days=request.correlation_days,
            copula_assets=request.copula_assets,
        )
    except ValueError as error:
        failure = Failure(FailureReason.CALCULATION, f"the current law: {error}", payload=findings.payload)
        raise DataError(failure) from None
    laws = {CURRENT: current}
    last = sample.dates[-1]
    for window in request.windows:
        name = f"stressed_{window.name}"
        try:
            if np.datetime64(window.last) > last:
                raise ValueError(f"ends on {window.last}, after the last date {last}")
            laws[name] = stressed_law(
                sample,
                vols,
                fixed,
                first=window.first,
                last=window.last,
                anchors=request.anchors,
                copula_assets=request.copula_assets,
            )
        except ValueError as error:
            # the default windows are crises of the past: a history without one of them lacks nothing that was asked for
            if "windows" in request.model_fields_set:
                findings.lacking(name, f"{name} {error}; it is left out")
    return laws


def _liquidity(sample: Sample, column: int, daily_std: float, findings: Findings) -> Liquidity | None:
    name = f"liquidity of {sample.assets[column]}"
    return findings.attempt(name, partial(liquidity_section, sample, column, daily_std))


def _funding(
    request: CalibrationRequest, tables: _Tables, assets: tuple[str, ...], findings: Findings
) -> dict[str, Funding]:
    """Funding of the assets of which the context table has rates."""
    if tables.context is None:
        return {}
    sections = {}
    for asset in assets:
        times, rates = funding_rates(tables.context, asset, as_of=request.as_of)
        if len(times):
            estimate = partial(funding_section, times, rates, cap=request.funding_cap)
            if (section := findings.attempt(f"funding of {asset}", estimate)) is not None:
                sections[asset] = section
    return sections
