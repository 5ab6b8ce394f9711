"""Figures that a venue's governance sets stand in the dated parameter files: another file gives another figure, and
without one whoever needs it is incomplete.
"""

import copy
import tomllib
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from adapters.adapter import Context, Normalized, find_adapter
from adapters.asset_book import read_asset_book
from adapters.binance.portfolio_market import uni_mmr_statuses
from adapters.hyperliquid.rules import partial_liquidation
from adapters.paradex.mechanics import LiquidationTerms, liquidation
from adapters.paradex.rules import read_parameter_file
from aggregator.errors import ConfigurationError
from aggregator.rule_forms import ContractMargin, PriceVolGrid, Verdict
from tests import sample_binance, sample_hyperliquid, sample_okx, sample_paradex
from tests.normalized_rows import components_of, failures_of, forms_of
from tests.payload_files import read_payload

TESTS = Path(__file__).resolve().parent
CONFIGS = TESTS.parent / "configs"
ASSETS = read_asset_book(CONFIGS / "assets.toml")
SAMPLES = {
    "okx": sample_okx.PAYLOADS,
    "binance": sample_binance.PAYLOADS,
    "paradex": sample_paradex.PAYLOADS,
    "hyperliquid": sample_hyperliquid.PAYLOADS,
}


def parameters_of(venue: str, change: Callable[[Any], Any] = lambda parameters: None) -> dict[str, Any]:
    parameters = tomllib.loads((CONFIGS / "venues" / f"{venue}.toml").read_text(encoding="utf-8"))
    out = copy.deepcopy(parameters)
    change(out)
    return out


def normalized(venue: str, change: Callable[[Any], Any] = lambda parameters: None) -> Normalized:
    folder = TESTS / "payloads" / venue
    payloads = [read_payload(venue, folder, request, file, owner) for request, file, owner in SAMPLES[venue]]
    return find_adapter(venue).normalize(payloads, Context(ASSETS, parameters_of(venue, change)))


def test_okx_initial_over_maintenance_of_a_risk_unit() -> None:
    east = "okx:east:portfolio"
    (grid, *_) = forms_of(normalized("okx"), east, PriceVolGrid)
    assert grid.initial_factor == Decimal("1.3")
    (grid, *_) = forms_of(normalized("okx", lambda p: p.update(initial_factor="1.45")), east, PriceVolGrid)
    assert grid.initial_factor == Decimal("1.45")
    (failure,) = failures_of(normalized("okx", lambda p: p.pop("initial_factor")), east)
    assert (failure.reason, failure.path) == ("missing_parameter", "initial_factor")


def test_binance_uni_mmr_at_which_the_venue_liquidates() -> None:
    account = "binance:delta:portfolio"
    (verdict,) = forms_of(normalized("binance"), account, Verdict)
    assert verdict.trigger == Decimal("1.05")
    (verdict,) = forms_of(
        normalized("binance", lambda p: p["portfolio_margin"].update(trigger="1.1")), account, Verdict
    )
    assert verdict.trigger == Decimal("1.1")
    (failure,) = failures_of(normalized("binance", lambda p: p["portfolio_margin"].pop("trigger")), account)
    assert (failure.reason, failure.path) == ("missing_parameter", "portfolio_margin.trigger")


def test_binance_statuses_by_uni_mmr() -> None:
    assert uni_mmr_statuses(parameters_of("binance")) == (
        ("normal", Decimal("1.5")),
        ("warning", Decimal("1.2")),
        ("reduce_only", Decimal("1.05")),
        ("liquidation", Decimal(1)),
    )
    assert uni_mmr_statuses({}) == ()


def test_paradex_cap_of_an_options_fee() -> None:
    def caps(result: Normalized) -> set[Decimal | None]:
        return {
            rate.fee_cap
            for rule_set in ("paradex:cross:desk", "paradex:portfolio:grid")
            for _, form in components_of(result, rule_set)
            if isinstance(form, ContractMargin)
            for rate in (form.short_call_initial, form.long_put_maintenance)
            if rate is not None
        }

    assert caps(normalized("paradex")) == {Decimal("0.125")}
    assert caps(normalized("paradex", lambda p: p["fees"].update(option_cap="0.1"))) == {Decimal("0.1")}
    without = normalized("paradex", lambda p: p["fees"].pop("option_cap"))
    for account in ("paradex:desk", "paradex:grid"):
        (failure,) = failures_of(without, account)
        assert (failure.reason, failure.path) == ("missing_parameter", "fees.option_cap")


def test_paradex_terms_of_a_liquidation() -> None:
    terms = read_parameter_file(parameters_of("paradex")).liquidation
    assert terms == (Fraction(7, 10), Fraction(9, 10), Fraction(1, 5))
    assert read_parameter_file({}).liquidation is None


def test_hyperliquid_terms_of_a_partial_liquidation() -> None:
    assert partial_liquidation(parameters_of("hyperliquid")) == (Fraction(100_000), Fraction(1, 5), 30)
    assert partial_liquidation({}) is None
    with pytest.raises(ConfigurationError, match=r"\[partial_liquidation\] share"):
        partial_liquidation({"partial_liquidation": {"notional": "1", "share": "0", "cooldown_s": "30"}})


@pytest.mark.parametrize("key", ["target_margin_ratio", "share_increment", "fee"])
@pytest.mark.parametrize("value", ["0", "-0.2", "1", "3"])
def test_paradex_terms_that_cannot_be(key: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"parameters of paradex: liquidation\.{key}: {value} "):
        normalized("paradex", lambda p: p["liquidation"].update({key: value}))


def test_paradex_an_increment_of_nothing_ends_at_once() -> None:
    terms = LiquidationTerms(Fraction(1, 2), Fraction(9, 10), Fraction(0))
    with pytest.raises(ValueError, match="share increment 0 is not above 0"):
        liquidation(1, 2, terms)


@pytest.mark.parametrize(
    ("change", "useful"),
    [
        ({"normal": "1.1"}, "uni_mmr_statuses.warning: 1.2 is not below the 1.1 of normal"),
        ({"liquidation": "1.05"}, "uni_mmr_statuses.liquidation: 1.05 is not below the 1.05 of reduce_only"),
        ({"warning": "0"}, "uni_mmr_statuses.warning: 0 must be positive"),
        ({"warning": "much"}, "uni_mmr_statuses.warning"),
        ({"calm": "2"}, "unknown status 'calm'"),
    ],
)
def test_binance_statuses_that_cannot_be(change: dict[str, str], useful: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        normalized("binance", lambda p: p["portfolio_margin"]["uni_mmr_statuses"].update(change))
    assert useful in str(caught.value)
    with pytest.raises(ConfigurationError, match="warning"):
        normalized("binance", lambda p: p["portfolio_margin"]["uni_mmr_statuses"].pop("warning"))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"share": "0"}, "share"),
        ({"share": "1"}, "share"),
        ({"notional": "-1"}, "notional"),
        ({"cooldown_s": "-30"}, "cooldown_s"),
        ({"cooldown_s": "soon"}, "cooldown_s"),
    ],
)
def test_hyperliquid_terms_that_cannot_be(change: dict[str, str], key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"\[partial_liquidation\] {key}"):
        normalized("hyperliquid", lambda p: p["partial_liquidation"].update(change))
