"""Collateral of a run: what is in force, what its weights should be, and what stays."""

from __future__ import annotations

import functools
import math
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.config import Resolved, load_configuration
from aggregator.errors import FailureReason
from aggregator.factors import MarketSize
from aggregator.run_inputs import read_inputs
from aggregator.snapshot import Snapshot
from models.bounded_step import Reason
from models.collateral_haircuts import collateral_tiers, peg_weights
from models.collateral_in_force import CollateralInForce, Slice, collateral_in_force, with_weights
from models.collateral_outlooks import PegLaw, collateral_outlook, required_weights, slice_caps, what_is_missing
from models.collateral_recommendation import in_force_figures, laws_of_run, recommend_collateral
from models.recommendation import LAW, MarketOutlook
from models.tier_ladder import BaseRates
from models.tier_policy import BPS, read_policy
from models.tier_requirement import UnitRequirement
from tests.quickstart_book import QUICKSTART

POLICY = read_policy(Path(__file__).parent.parent / "configs" / "governance.toml")
NOW = datetime(2024, 6, 30, tzinfo=UTC)
SIZE = MarketSize(daily_volume=5e9, daily_vol=0.03, spread=0.0004)
AAVE = "aave_v3:ethereum-core"


@functools.cache
def resolved() -> Resolved:
    return load_configuration(QUICKSTART)


@functools.cache
def snapshots() -> dict[str, Snapshot]:
    return dict(read_inputs(resolved(), lambda stage, done, total: None).snapshots)


def changed(table: str, change: Any) -> dict[str, Snapshot]:
    snapshot = snapshots()["main"]
    rows = [dict(row) for row in snapshot.tables[table]]
    change(rows)
    tables = {**snapshot.tables, table: tuple(rows)}
    return {"main": Snapshot(tables, snapshot.failures, snapshot.incomplete, snapshot.as_of, snapshot.content_hash)}


def price(name: str, *, scale: float = 0.05, model: str = "learned") -> MarketOutlook:
    margin = scale * np.array([[0.7], [1.0]])
    sides = tuple(BaseRates(side, (0.99,), (1.0 / 3.0, 1.0), margin, 1.3 * margin) for side in ("long", "short"))
    return MarketOutlook(name, sides, SIZE, 400.0, model)


def needed(rate: float) -> UnitRequirement:
    return UnitRequirement((1.0,), (rate,), (rate,))


@functools.cache
def laws() -> dict[str, PegLaw]:
    return laws_of_run(resolved())


def one(**fields: Any) -> CollateralInForce:
    given: dict[str, Any] = {
        "rule_set": "venue:rules",
        "asset_id": "ETH",
        "slices": (Slice(0.0, 9000, 8500),),
        "symbol": "ETH",
        "peg": None,
        "multiplier": Decimal(1),
        "discount": 0.0,
        "bonus": 0.0,
        "held_usd": 0.0,
    }
    return CollateralInForce(**(given | fields))


# ---- in force --------------------------------------------------------------------------------------------------------


def test_the_collateral_of_the_quickstart_is_read_with_what_moves_it() -> None:
    found, failures = collateral_in_force(snapshots())
    assert not failures
    staked = found[f"{AAVE}/wstETH@ethereum"]
    assert staked.factors == ("price:ETH", "peg:wstETH")
    assert staked.slices == (Slice(0.0, 8100, 7850),)
    # 1500.42 tokens at the oracle's price
    assert staked.held_usd == pytest.approx(1500.418273640912837464 * 3952.28098332)
    assert 0.0 < staked.bonus < 0.2
    dollar = found["binance:multi_assets/USDT"]
    assert (dollar.symbol, dollar.peg, dollar.slices) == (None, "USDT", (Slice(0.0, 9999, 9999),))
    assert found[f"{AAVE}/USDT@ethereum"].discount == pytest.approx(0.0005)
    assert dollar.held_usd > 0.0 == found["derive:sm:major/USDT"].held_usd
    # what counts in full by its rule set, and what no rule set weighs, is none
    assert not [name for name in found if name.startswith(("binance:usdm", "hyperliquid"))]
    assert in_force_figures(found)[f"{AAVE}/wstETH@ethereum", "collateral_weights"] == [8100, 7850]


def test_what_cannot_be_weighed_stays_with_a_reason() -> None:
    def row_of(rows: list[dict[str, Any]], asset: str) -> dict[str, Any]:
        return next(row for row in rows if row["asset_id"] == asset)

    def unmoved(rows: list[dict[str, Any]]) -> None:
        row_of(rows, "SNX")["risk_factor"] = None

    def no_initial(rows: list[dict[str, Any]]) -> None:
        row_of(rows, "WBTC@ethereum")["asset_weight_initial"] = Decimal(0)

    def twice(rows: list[dict[str, Any]]) -> None:
        rows.append(dict(row_of(rows, "WBTC@ethereum")))

    def worthless(rows: list[dict[str, Any]]) -> None:
        row_of(rows, "WBTC@ethereum")["asset_weight_maintenance"] = Decimal(0)

    for table, change, name, reason in (
        ("assets", unmoved, "derive:sm:major/SNX", FailureReason.UNKNOWN_ASSET),
        ("collateral_tiers", no_initial, f"{AAVE}/WBTC@ethereum", FailureReason.UNSUPPORTED),
        ("collateral_tiers", twice, f"{AAVE}/WBTC@ethereum", FailureReason.INCONSISTENT),
        ("collateral_tiers", worthless, f"{AAVE}/WBTC@ethereum", None),
    ):
        found, failures = collateral_in_force(changed(table, change))
        assert name not in found
        assert [(failure.subject, failure.reason) for failure in failures] == (
            [] if reason is None else [(name, reason)]
        )
        assert all(failure.message.endswith("its weights stay as they are") for failure in failures)


def test_slices_of_tokens_are_read_in_dollars_and_e_modes_keep_their_rows() -> None:
    def sliced(rows: list[dict[str, Any]]) -> None:
        first = next(row for row in rows if row["asset_id"] == "WETH@ethereum")
        rows.append({**first, "tier": 2, "floor": Decimal(1000), "asset_weight_maintenance": Decimal("0.7")})
        rows[-1]["asset_weight_initial"] = Decimal("0.6")
        rows.append({**first, "emode": "1", "asset_weight_maintenance": Decimal("0.95")})

    after = changed("collateral_tiers", sliced)
    found, failures = collateral_in_force(after)
    assert not failures
    weth = found[f"{AAVE}/WETH@ethereum"]
    assert [part[1:] for part in weth.slices] == [(8300, 8050), (7000, 6000)]
    # 1,000 tokens at the oracle's price
    assert weth.slices[1].floor_usd == pytest.approx(3_376_920.695)
    assert slice_caps(weth, price("x"), POLICY)[0] == weth.slices[1].floor_usd
    rows = after["main"].tables["collateral_tiers"]
    moved = with_weights(rows, {weth.name: [(8200, 8050), (7000, 5900)]})
    different = [(new, old) for new, old in zip(moved, rows, strict=True) if new != old]
    assert [(new["emode"], new["tier"], new["source"]) for new, _ in different] == [("", 1, "model"), ("", 2, "model")]
    assert different[0][0]["asset_weight_maintenance"] == Decimal("0.82")
    assert different[0][0]["asset_weight_initial"] == different[0][1]["asset_weight_initial"]


# ---- what they should be ---------------------------------------------------------------------------------------------


def test_a_peg_has_the_haircut_of_its_jump_and_a_staked_token_that_of_both() -> None:
    dollar = collateral_outlook(one(symbol=None, peg="USDC"), None, laws(), needed(0.001), POLICY)
    law = laws()["USDC"]
    assert dollar.wish[0][2:] == peg_weights("USDC", law.jumps, law.moves, POLICY) == (9440, 8400)
    assert (dollar.model, dollar.history_days) == (LAW, float(law.days))
    plain = collateral_outlook(one(), price("ETH"), laws(), needed(0.001), POLICY)
    cap = slice_caps(one(), price("ETH"), POLICY)
    assert plain.wish == collateral_tiers("ETH", price("ETH").sides[0], SIZE, cap, POLICY)
    staked = collateral_outlook(one(peg="wstETH"), price("ETH"), laws(), needed(0.001), POLICY)
    token = laws()["wstETH"]
    peg = peg_weights("wstETH", token.jumps, token.moves, POLICY)
    assert [w for _, _, *w in staked.wish] == [
        [plain.wish[0].maintenance_weight_bps + peg[0] - BPS, plain.wish[0].initial_weight_bps + peg[1] - BPS]
    ]
    # a liquidator who is paid 10 % takes 1 / 11 of what is sold
    paid = collateral_outlook(one(bonus=0.1), price("ETH"), laws(), needed(0.001), POLICY)
    assert plain.wish[0].maintenance_weight_bps - paid.wish[0].maintenance_weight_bps == math.ceil(1e4 / 11)
    broken = collateral_outlook(one(symbol=None, peg="USDC", discount=0.02), None, laws(), needed(0.001), POLICY)
    assert broken.wish[0].maintenance_weight_bps < 7100


def test_the_engine_leaves_room_for_no_more_than_its_own_shortfall() -> None:
    of_peg = required_weights(one(symbol=None, peg="USDC"), [1.0], None, needed(0.02), POLICY)
    days = [POLICY.collateral.maintenance.least_days, POLICY.collateral.initial.least_days]
    assert of_peg == tuple(BPS - math.ceil(round(1e4 * (1.0 - 0.98 ** math.sqrt(d)), 6)) for d in days)
    for rate in (0.001, 0.2, 0.9):
        for thing, outlook in ((one(), price("ETH")), (one(symbol=None, peg="USDC"), None)):
            changes, failures = recommend_collateral(
                {thing.name: thing},
                [] if outlook is None else [outlook._replace(market=thing.name)],
                laws(),
                {thing.name: needed(rate)},
                {},
                POLICY,
                now=NOW,
            )
            assert not failures
            made = changes[0].recommendation
            for figure in made.figures:
                assert figure.requirement is not None
                assert figure.wish <= figure.requirement
                assert figure.value <= max(figure.previous, figure.requirement)
            assert (Reason.BELOW_REQUIREMENT in made.reasons) == any(
                figure.value > (figure.requirement or 0) for figure in made.figures
            )
    assert required_weights(one(), [1e6], price("ETH"), needed(0.2), POLICY)[0] < BPS - 2000


def test_a_large_holding_counts_at_its_own_size() -> None:
    small, large = (one(held_usd=held) for held in (0.0, 5e9))
    first, second = (collateral_outlook(thing, price("ETH"), {}, needed(0.01), POLICY) for thing in (small, large))
    assert slice_caps(small, price("ETH"), POLICY) == [POLICY.close_out.participation * SIZE.daily_volume]
    assert second.wish[0].maintenance_weight_bps < first.wish[0].maintenance_weight_bps


def test_what_is_missing_is_said_once_for_what_nobody_holds() -> None:
    things = {
        "a/X": one(rule_set="a", asset_id="X", symbol=None, peg="X"),
        "a/Y": one(rule_set="a", asset_id="Y", symbol=None, peg="Y"),
        "a/Z": one(rule_set="a", asset_id="Z", symbol=None, peg="Z", held_usd=5.0),
        "a/ETH": one(rule_set="a"),
        "a/BTC": one(rule_set="a", asset_id="BTC", symbol="BTC"),
    }
    requirements = {name: needed(0.01) for name in things if name != "a/BTC"}
    changes, failures = recommend_collateral(things, [price("a/BTC")], laws(), requirements, {}, POLICY, now=NOW)
    assert not changes
    assert {failure.subject: failure.message.partition(";")[0] for failure in failures} == {
        "a/BTC": "a: the scenarios do not move it (BTC)",
        "a/ETH": "a: no forecast of its price (ETH)",
        "a/X": "a: no law of its peg (X, Y)",
        "a/Z": "a/Z: no law of its peg",
    }
    assert what_is_missing(things["a/ETH"], price("a/ETH"), laws(), needed(0.1)) is None


def test_a_fallback_of_the_price_is_said_of_the_collateral() -> None:
    thing = one()
    outlooks = [price(thing.name, model="classical")]
    [change], _ = recommend_collateral(
        {thing.name: thing}, outlooks, laws(), {thing.name: needed(0.01)}, {}, POLICY, now=NOW
    )
    assert change.recommendation.model == "classical"
    assert change.recommendation.reasons[0] == Reason.FALLBACK
    assert change.after == tuple((f.value, g.value) for f, g in [change.recommendation.figures])
