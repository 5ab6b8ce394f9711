"""The rule sets that the sweep of whole books covers, read from their JSON without the models of `rule_forms`.

A machine that only sweeps needs no pydantic. The parameters of the five forms that are read here, their defaults and
their choices are those of the models; a test holds the two together. Every other form makes its rule set one that is
not covered.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from .errors import ConfigurationError


class NotCoveredError(Exception):
    """An account, asset, instrument or rule set needs what only the engine does."""


class CoveredRules(NamedTuple):
    """A covered rule set; rates of debts by asset id (a common one for the others), None without a charge."""

    trigger: float
    at_or_below: bool
    needs_requirement: bool
    unit_weights: bool
    full_liabilities: bool
    haircut: bool
    debt_rate: float
    debt_rates: Mapping[str, float] | None
    tiered: bool
    tiers_by_entry: bool
    fixed_equity: float
    fixed_maintenance: float


class Text(NamedTuple):
    """A parameter that is a text: any, or one of `choices`; required when there is no default."""

    default: str | None = None
    choices: tuple[str, ...] = ()


_WEIGHTS = Text("unit", ("unit", "collateral_tiers"))
_ORDERS = Text("ignore", ("ignore", "worst_side", "worst_side_initial"))
_HEALTH = Text(
    "equity_over_requirement",
    ("equity_over_requirement", "requirement_over_equity", "weighted_collateral_over_debt"),
)
_NO_RATES: Mapping[str, float] = {}

PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "verdict": {
        "liquidates_when": Text(None, ("below", "at_or_below")),
        "trigger": 1.0,
        "health": _HEALTH,
        "needs_requirement": False,
    },
    "weighted_value": {
        "weights": _WEIGHTS,
        "net_by_asset": False,
        "weighted_at": Text("unit", ("unit", "usd")),
        "liabilities": Text("weighted", ("weighted", "unit")),
        "options": Text("model", ("model", "mark", "excluded")),
    },
    "debt_charge": {
        "initial_rate": 0.0,
        "maintenance_rate": 0.0,
        "initial_rates": _NO_RATES,
        "maintenance_rates": _NO_RATES,
        "net_by_asset": False,
    },
    "tiered_notional": {
        "initial": Text("leverage", ("leverage", "tier_rate", "tier_integral")),
        "basis": Text("mark", ("mark", "entry")),
        "floors": Text("notional", ("notional", "quantity")),
        "minimum": 0.0,
        "initial_at_least_maintenance": False,
        "orders": _ORDERS,
        "per_order": 0.0,
    },
    "fixed": {"initial": 0.0, "maintenance": 0.0, "equity": 0.0, "basis": Text()},
}
"""By form: every parameter with its default, numbers as floats; texts say what they may be."""


class _Component(NamedTuple):
    form: str
    side: str
    level: str
    given: Mapping[str, Any]


def covered_rule_sets(rule_sets: pa.Table) -> dict[str, CoveredRules | str]:
    """Every rule set of the canonical table, or why it is not covered.

    Raises `ConfigurationError` for parameters of a covered form that are not what the form takes.
    """
    columns = ("rule_set", "component_no", "form", "side", "level", "parameters")
    rows = sorted(zip(*(rule_sets[name].to_pylist() for name in columns), strict=True), key=lambda row: row[:2])
    texts: dict[str, list[tuple[str, str, str, str]]] = {}
    for name, _, *component in rows:
        texts.setdefault(name, []).append((component[0], component[1], component[2], component[3]))
    out: dict[str, CoveredRules | str] = {}
    for name, members in texts.items():
        other = next((form for form, *_ in members if form not in PARAMETERS), None)
        if other is not None:
            out[name] = f"the rule form {other}"
            continue
        components = [
            _Component(form, side, level, _parameters(f"rule set {name}, {form}", PARAMETERS[form], text))
            for form, side, level, text in members
        ]
        try:
            out[name] = _covered(components)
        except NotCoveredError as problem:
            out[name] = str(problem)
    return out


def _parameters(where: str, form: Mapping[str, Any], text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except ValueError as problem:
        raise ConfigurationError(f"{where}: parameters are no JSON: {problem}") from None
    if not isinstance(given, dict) or not set(given) <= set(form):
        raise ConfigurationError(f"{where}: expected the parameters {sorted(form)}, found {text!r}"[:300])
    return {
        name: _value(f"{where}: {name}", default, given[name]) if name in given else _default(where, name, default)
        for name, default in form.items()
    }


def _default(where: str, name: str, default: Any) -> Any:
    value = default.default if isinstance(default, Text) else default
    if value is None:
        raise ConfigurationError(f"{where}: {name} is missing")
    return value


def _value(where: str, default: Any, given: Any) -> Any:
    if isinstance(default, Text):
        if not isinstance(given, str) or (default.choices and given not in default.choices):
            raise ConfigurationError(f"{where} is {given!r}; expected one of {default.choices or 'any text'}")
        return given
    if isinstance(default, bool):
        if not isinstance(given, bool):
            raise ConfigurationError(f"{where} is {given!r}; expected true or false")
        return given
    if isinstance(default, Mapping):
        if not isinstance(given, dict):
            raise ConfigurationError(f"{where} is {given!r}; expected rates by asset")
        return {asset: _number(f"{where} of {asset}", rate) for asset, rate in given.items()}
    return _number(where, given)


def _number(where: str, given: Any) -> float:
    try:
        value = float(given) if isinstance(given, (str, int, float)) and not isinstance(given, bool) else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigurationError(f"{where} is {given!r}; expected a finite number")
    return value


def _covered(components: Sequence[_Component]) -> CoveredRules:
    """The rule set in the terms of this module; `NotCoveredError` says what it has beyond them."""

    def of(form: str, side: str = "") -> list[_Component]:
        return [c for c in components if c.form == form and (not side or c.side == side)]

    verdicts, equities = of("verdict"), of("weighted_value", "equity")
    debts, tiers = of("debt_charge"), of("tiered_notional")
    haircuts = [c for c in of("weighted_value", "requirement") if c.given["weights"] != "unit"]
    for c in components:
        if c.side == "requirement" and c.level != "both" and c.form != "fixed":
            raise NotCoveredError(f"{c.form} at one level alone")
    if len(verdicts) != 1 or len(equities) != 1 or max(len(haircuts), len(debts), len(tiers)) > 1:
        raise NotCoveredError("not one verdict, one equity and at most one of every requirement")
    verdict, equity = verdicts[0].given, equities[0].given
    if equity["weights"] != "unit" and equity["net_by_asset"]:
        raise NotCoveredError("balances netted with profits by asset")
    if equity["options"] != "model":
        raise NotCoveredError(f"options counted as {equity['options']!r}")
    if haircuts and haircuts[0].given["weighted_at"] != "unit":
        raise NotCoveredError("a haircut weighted at the dollar price")
    if debts and debts[0].given["net_by_asset"]:
        raise NotCoveredError("debts netted by asset")
    for form in tiers:
        given = form.given
        plain = given["floors"] == "notional" and given["orders"] == "ignore"
        if not plain or given["minimum"] or given["per_order"]:
            raise NotCoveredError("tiers counted in contracts, with a minimum or with orders")
    fixed = of("fixed")
    return CoveredRules(
        trigger=verdict["trigger"],
        at_or_below=verdict["liquidates_when"] == "at_or_below",
        needs_requirement=verdict["needs_requirement"],
        unit_weights=equity["weights"] == "unit",
        full_liabilities=equity["liabilities"] == "unit",
        haircut=bool(haircuts),
        debt_rate=debts[0].given["maintenance_rate"] if debts else 0.0,
        debt_rates=debts[0].given["maintenance_rates"] if debts else None,
        tiered=bool(tiers),
        tiers_by_entry=bool(tiers) and tiers[0].given["basis"] == "entry",
        fixed_equity=sum(c.given["equity"] for c in fixed if c.side == "equity"),
        fixed_maintenance=sum(c.given["maintenance"] for c in fixed if c.side != "equity" and c.level != "initial"),
    )
