"""Limits of metrics that portfolios and accounts share, and what decides them."""

from typing import Any

import pytest

from aggregator.conditions import limit_conditions
from aggregator.config import Limit
from aggregator.errors import ExitCode

PORTFOLIOS: list[dict[str, Any]] = [
    {
        "portfolio_id": name,
        "status": "ok",
        "complete": True,
        "p_liquidation_path": path,
        "requirement_effective_usd": 1000.0,
        "health_unified": 1.5,
    }
    for name, path in (("north", 0.10), ("treasury", 0.02))
]
ACCOUNTS: list[dict[str, Any]] = [
    {"account_id": name, "status": status, "health": health, "p_liquidation_path": path}
    for name, status, health, path in (
        ("venue:a", "ok", 2.0, 0.08),
        ("venue:b", "no_requirement", None, 0.0),
        ("other:c", "ok", 3.0, 0.02),
    )
]


def conditions(limit: dict[str, Any], *, without: str | None = None) -> list[tuple[str, int, str]]:
    """What the limit leads to; the figure `without` is null everywhere."""
    portfolios, accounts = (
        [{k: None if k == without else v for k, v in row.items()} for row in rows] for rows in (PORTFOLIOS, ACCOUNTS)
    )
    found = limit_conditions(Limit.model_validate(limit), portfolios, accounts)
    return [(c.condition, c.code, c.message) for c in found]


def breach(message: str) -> tuple[str, int, str]:
    return "limit_breached", ExitCode.LIMIT_BREACHED, message


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        ("*", ["north is 0.1", "treasury is 0.02"]),
        ("north", ["north is 0.1"]),
        ("venue:a", ["venue:a is 0.08"]),
        ("venue", ["venue:a is 0.08"]),
        ("other", ["other:c is 0.02"]),
    ],
)
def test_a_liquidation_on_the_way_is_bounded_for_portfolios_and_accounts(scope: str, names: list[str]) -> None:
    found = conditions({"metric": "p_liquidation_path", "scope": scope, "maximum": 0.01})
    assert found == [breach(f"p_liquidation_path of {name}, above the limit 0.01") for name in names]
    assert conditions({"metric": "p_liquidation_path", "scope": scope, "maximum": 0.1}) == []


@pytest.mark.parametrize(
    ("metric", "kept", "broken", "words"),
    [
        ("requirement_effective_usd", {"maximum": 1000.0}, {"maximum": 999.0}, "is 1000, above the limit 999"),
        ("health_unified", {"minimum": 1.5}, {"minimum": 1.51}, "is 1.5, below the limit 1.51"),
    ],
)
def test_unified_figures_are_bounded_by_portfolio(
    metric: str, kept: dict[str, float], broken: dict[str, float], words: str
) -> None:
    assert conditions({"metric": metric, **kept}) == []
    assert conditions({"metric": metric, **broken}) == [
        breach(f"{metric} of {name} {words}") for name in ("north", "treasury")
    ]
    (nobody,) = conditions({"metric": metric, "scope": "venue:a", **kept})
    assert nobody == ("limit_undecided", ExitCode.BAD_DATA, f"{metric} of venue:a: nothing of that name in this run")


def test_a_limit_on_paths_is_undecided_where_a_run_has_none() -> None:
    for scope, names in (("*", ["north", "treasury"]), ("venue", ["venue:a", "venue:b"])):
        limit = {"metric": "p_liquidation_path", "scope": scope, "maximum": 1.0}
        assert conditions(limit, without="p_liquidation_path") == [
            (
                "limit_undecided",
                ExitCode.BAD_DATA,
                f"p_liquidation_path of {name} is undecided (no value in this run)",
            )
            for name in names
        ], "an account without a requirement is no exception"


def test_a_missing_health_of_an_account_without_requirement_is_no_breach() -> None:
    assert conditions({"metric": "health", "scope": "venue", "minimum": 1.0}) == []
