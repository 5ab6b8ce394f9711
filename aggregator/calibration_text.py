"""The calibration file as text: ordered, commented, one line per factor where that can be read; reads back equal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any

from pydantic import BaseModel

from .calibration_file import CURRENT, CalibrationFile, Law

_WIDTH = 120
_BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")

_LARGE = 1e6
"""From here on a number is written with an exponent."""

_ASSUMED = "ASSUMED"


def calibration_text(file: CalibrationFile) -> str:
    """TOML with comments; every number is written so that reading gives the same float64."""
    parts = [
        _head(file),
        *_laws(file),
        _margins(file),
        _rows("garch", file.garch, _GARCH),
        _jumps(file),
        _regimes(file),
        *_tables("vol_rules", file.vol_rules, _VOL_RULES),
        *_tables("pegs", file.pegs, _PEGS),
        *_tables("discounts", file.discounts, _DISCOUNTS),
        *_tables("funding", file.funding, _FUNDING),
        _rows("liquidity", file.liquidity, _LIQUIDITY),
        _rows("basis", file.basis, _BASIS),
        _diagnostics(file),
        _refused(file),
        *_correlations(file),
    ]
    return "\n".join(part for part in parts if part)


_GARCH = """
GARCH(1,1) per factor by Gaussian quasi maximum likelihood on all daily log changes (omega per day squared):
sigma2' = omega + (alpha + gamma 1{r < 0}) r^2 + beta sigma2. gjr (gamma free) where it has the lower Bayesian
information criterion. daily_std_next: the day after last_date; daily_std_long_run means little when alpha + gamma/2 +
beta is near its bound 0.999. A vol without a history has the figures of its lender (see vol_rules).
"""
_VOL_RULES = """
Implied volatility: dln sigma = beta r + beta_abs (|r| - mean_abs) + eta Z per day, by least squares on daily closes.
beta_linear, eta_linear: the same without |r|; compare r_squared and r_squared_linear. skew_tilt: change of the
25-delta risk reversal (1 = 100 volatility points) per unit of log return.
"""
_PEGS = """
Stablecoins: ordinary days are t with nu and daily_std (closes in USDT, for USDT dollars per USDT from BTC, an upper
estimate; days of a depeg left out). A depeg, a close below 0.99, comes jumps_per_year = (events + 1/2) / years, both of
all sampled coins together, has a depth Beta(depth_a, depth_b) * depth_cap, decays at recovery_per_day, or never with
absorbing_probability. Fewer than five events say nothing about depth and recovery: those are assumed.
"""
_DISCOUNTS = """
Staked tokens: log of the token over its underlying, mean reverting (mean, reversion_per_day from a regression on the
day before), daily_std of its daily changes, and a stress jump of depth Beta(depth_a, depth_b) * depth_cap.
"""
_FUNDING = """
Funding rate, fraction per interval, Ornstein-Uhlenbeck by regression on the interval before:
f' = theta + (f - theta) e^-kappa + sigma sqrt((1 - e^-2kappa) / (2 kappa)) Z, |f| <= cap. latest: the last one known.
"""
_LIQUIDITY = """
Depth by proxy, per asset. adv_usd: median daily quote volume of the last 30 days, USD (USDT taken as USD). daily_std:
as in laws.current. spread: relative bid-ask spread, ASSUMED to follow volatility and volume by trading invariance;
wide for the largest markets. amihud: mean |daily return| per USD of volume over the same 30 days.
"""
_BASIS = """
Perpetual against spot of one asset: es_99 is the 99 % expected shortfall of the size of a day's change of
ln(perp/spot), closes, all common days; charge = max(es_99, floor) per unit of matched notional. days = 0: no spot
history, the charge is the floor, ASSUMED.
"""
_JUMPS = """
Merton jumps. A day is a jump when |r| > threshold * sqrt(bipower variation per day of the window_days before); common
when at least half of the assets jump. per_year: jumps per 365 days. mean, std: of the log jump. beta: an asset's return
on the mean return of a common jump. diffusive_std: root mean square return of the other days. pooled = true: fewer than
5 jumps of its own, mean and std are those of all assets' own jumps.
"""
_REGIMES = """
Hidden Markov model of the market, the mean daily log return of the anchors, by maximum likelihood (EM) on all days; the
number of states has the lowest bic. transition: row from, column to, per day. filtered: today's probabilities.
stationary: the long-run ones. std_multiplier: market_std over that of the whole sample. mean_correlation: average
over pairs of long-lived assets. daily_std per factor: weighted by the probability of the state; in the market's
proportion where an asset saw less than 20 days of it.
"""
_MARGINS = """
Semi-parametric law of the standardised residual (daily change over the volatility known before it), mean 0 and variance
1: quantiles at margin_probabilities, linear between, and beyond 5 % and 95 % a generalised-Pareto tail by maximum
likelihood, P(excess > y) = (1 + shape y / scale)^(-1/shape), shape held within -0.25..0.45. exceedances: its sample.
"""
_DIAGNOSTICS = """
Checks. spectrum: shares of the first three eigenvalues of prices and vols. largest_repair: the most that the repair to
a positive definite matrix moved a correlation. copula_profile: log-likelihood at nu below the best of the grid.
factors: days with an own return, share of the sample's dates without one, wicks (bars with high or low over 5 daily
standard deviations beyond open and close; highs and lows enter no figure), Hill tail index of the 5 % largest losses
(left) and gains (right), Kolmogorov-Smirnov distance of the two tail fits, GARCH persistence (0.999 is the bound).
"""


def _head(file: CalibrationFile) -> str:
    used = file.calibration
    lines = _comment(
        f"""
Calibration as of {used.as_of:%Y-%m-%d %H:%M} UTC from daily closes of {used.first_date} .. {used.last_date}: written by
`crossmargin calibrate`, made to be read and edited. What each estimator is and how sure it is: docs/calibration.md.

Log changes per day; standard deviations are of the whole law, not the scale of a t; rates and depths are fractions;
per_year is per 365 days. {_ASSUMED} marks a figure that this history cannot tell. Editing a correlation may make the
matrix inconsistent: reading the file says so.
"""
    )
    lines += ["", f"factors = {_array(file.factors)}", ""]
    lines += ["# probabilities of the quantiles in [margins]"]
    lines += [f"margin_probabilities = {_array(file.margin_probabilities)}", ""]
    lines += _rule("what was read")
    lines += _comment("Tables by the SHA-256 of their bytes. decay, floor_fraction: of the EWMA volatility.")
    lines += ["[calibration]", *_fields(used, skip=("tables", "estimators")), ""]
    for table in used.tables:
        lines += ["[[calibration.tables]]", *_fields(table), ""]
    lines += ["[calibration.estimators]", *(f"{_key(k)} = {_value(v)}" for k, v in used.estimators.items()), ""]
    return "\n".join(lines)


def _laws(file: CalibrationFile) -> Iterable[str]:
    yield "\n".join(
        [
            *_rule("laws: how wide, how fat"),
            *_comment(
                f"""
nu: tail index of the t copula by pseudo-likelihood on the assets of largest volume, with its 95 % profile interval.
Correlations: sin(pi tau / 2) of Kendall's tau, at the end of this file. filled: factors without enough own history in
the sample, by their beta on the anchors, by their vol rule, by [pegs] or [discounts]; all others are measured.

{CURRENT}: daily_std is the EWMA volatility (decay {file.calibration.decay:g}, floored) for the day after last_date
times the root mean square of the residuals over that volatility, all days of the sample: an average of past squares
lags, and its residuals are larger than 1. nu and correlations from those residuals, first_date .. last_date of the law.
stressed_*: daily_std is the root mean square of the window's returns; nu and correlations from its returns.
"""
            ),
        ]
    )
    for name, law in file.laws.items():
        lines = ["", f"[laws.{_key(name)}]", *_fields(law, skip=("daily_std", "filled", "correlation"))]
        lines += ["", f"[laws.{_key(name)}.daily_std]"]
        lines += [
            f"{_key(factor)} = {_value(std)}" + (f" # {law.filled[factor]}" if factor in law.filled else "")
            for factor, std in law.daily_std.items()
        ]
        if law.filled:
            lines += ["", f"[laws.{_key(name)}.filled]"]
            lines += [f"{_key(factor)} = {_value(origin)}" for factor, origin in law.filled.items()]
        yield "\n".join(lines)
    yield ""


def _correlations(file: CalibrationFile) -> Iterable[str]:
    for name, law in file.laws.items():
        lines = _rule(f"correlations of {name}")
        lines += _comment(_sample(law) + " A pair that is not listed is 0.")
        lines += [f"[laws.{_key(name)}.correlation]"]
        lines += [f"{_key(pair)} = {_value(value)}" for pair, value in law.correlation.items()]
        yield "\n".join([*lines, ""])


def _sample(law: Law) -> str:
    sample = f"{law.first_date} .. {law.last_date}, {law.days} days"
    return f"Rank based, {sample}; smallest eigenvalue {law.smallest_eigenvalue:g}."


def _margins(file: CalibrationFile) -> str:
    lines = [*_rule("margins"), *_comment(_MARGINS)]
    for factor, margin in file.margins.items():
        lines += [f"[margins.{_key(factor)}]", f"quantiles = {_array(margin.quantiles)}"]
        lines += [f"lower = {_inline(margin.lower)}", f"upper = {_inline(margin.upper)}", ""]
    return "\n".join(lines)


def _jumps(file: CalibrationFile) -> str:
    jumps = file.jumps
    lines = [*_rule("jumps"), *_comment(_JUMPS), "[jumps]"]
    lines += [*_fields(jumps, skip=("common", "assets")), f"common = {_inline(jumps.common)}", "", "[jumps.assets]"]
    lines += [f"{_key(factor)} = {_inline(asset)}" for factor, asset in jumps.assets.items()]
    return "\n".join([*lines, ""])


def _regimes(file: CalibrationFile) -> str:
    regimes = file.regimes
    lines = [*_rule("regimes"), *_comment(_REGIMES), "[regimes]"]
    lines += _fields(regimes, skip=("states",))
    for state in regimes.states:
        lines += ["", "[[regimes.states]]", *_fields(state, skip=("daily_std",)), "", "[regimes.states.daily_std]"]
        lines += [f"{_key(factor)} = {_value(std)}" for factor, std in state.daily_std.items()]
    return "\n".join([*lines, ""])


def _diagnostics(file: CalibrationFile) -> str:
    checks = file.diagnostics
    lines = [*_rule("diagnostics"), *_comment(_DIAGNOSTICS)]
    for field in ("spectrum", "copula_profile", "largest_repair", "factors"):
        lines += [f"[diagnostics.{field}]"]
        lines += [f"{_key(name)} = {_value(value)}" for name, value in getattr(checks, field).items()]
        lines += [""]
    return "\n".join(lines)


def _refused(file: CalibrationFile) -> str:
    lines = [*_rule("refused"), *_comment("Assets of the tables that have no law, and why. A proxy may stand for one.")]
    lines += ["[refused]", *(f"{_key(asset)} = {_value(reason)}" for asset, reason in file.refused.items())]
    return "\n".join([*lines, ""])


def _tables(name: str, sections: Mapping[str, BaseModel], text: str) -> Iterable[str]:
    """One table per entry, one line per field, ASSUMED beside the figures that are."""
    if not sections:
        yield "\n".join([*_rule(name), *_comment(text), f"[{name}]", ""])
        return
    yield "\n".join([*_rule(name), *_comment(text)])
    for key, section in sections.items():
        yield "\n".join([f"[{name}.{_key(key)}]", *_fields(section), ""])


def _rows(name: str, sections: Mapping[str, BaseModel], text: str) -> str:
    """One table, one line per entry."""
    lines = [*_rule(name), *_comment(text), f"[{name}]"]
    return "\n".join([*lines, *(f"{_key(key)} = {_inline(section)}" for key, section in sections.items()), ""])


def _rule(title: str) -> list[str]:
    return [f"# ---- {title} ".ljust(_WIDTH, "-"), ""]


def _comment(text: str) -> list[str]:
    lines: list[str] = []
    for paragraph in text.strip("\n").split("\n\n"):
        lines += ["#"] if lines else []
        lines += [f"# {line}" for line in textwrap.wrap(" ".join(paragraph.split()), _WIDTH - 2)]
    return lines


def _fields(section: BaseModel, *, skip: tuple[str, ...] = ()) -> list[str]:
    assumed = getattr(section, "assumed", ())
    lines = []
    for field in type(section).model_fields:
        value = getattr(section, field)
        if field in skip or _is_default(section, field):
            continue
        lines.append(f"{field} = {_value(value)}" + (f" # {_ASSUMED}" if field in assumed else ""))
    return lines


def _is_default(section: BaseModel, field: str) -> bool:
    """Whether an empty optional field may be left out: empty texts, lists and tables, and False."""
    info = type(section).model_fields[field]
    return not info.is_required() and getattr(section, field) == info.default and not getattr(section, field)


def _inline(section: BaseModel) -> str:
    pairs = [
        f"{field} = {_value(getattr(section, field))}"
        for field in type(section).model_fields
        if not _is_default(section, field)
    ]
    return "{ " + ", ".join(pairs) + " }"


def _value(value: Any) -> str:
    if isinstance(value, BaseModel):
        return _inline(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(str(k))} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, float) and abs(value) >= _LARGE:
        # 17 significant digits always read back as the same float; the first shorter text that does is taken
        texts = (f"{value:.{digits}e}" for digits in range(17))
        mantissa, exponent = next(text for text in texts if float(text) == value).split("e")
        return f"{mantissa}e{int(exponent)}"
    return repr(value)


def _array(values: Iterable[Any]) -> str:
    """An array over as many lines as it needs."""
    joined = ", ".join(_value(value) for value in values)
    if len(joined) < _WIDTH - 20:
        return f"[{joined}]"
    wrapped = textwrap.wrap(joined, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return "[\n" + "\n".join(f"  {line}" for line in wrapped) + ",\n]"


def _key(text: str) -> str:
    return text if text and _BARE.issuperset(text) else _text(text)


def _text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    plain = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped)
    return f'"{plain}"'
