"""Reconciliation: every status and reason from evidence that covers the difference, and none without; the verb.

The small book here is one perpetual account of a made-up venue whose figures can be checked by hand: 20,000 USDC and 2
BTC bought at 48,000, marked at 50,000, leverage 10, maintenance 1 % up to 50,000 and 2 % above.
"""

import copy
import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy.special import ndtr

from aggregator.config import Reconcile
from aggregator.differences import RELATIVE, TIER_CHANGE, Native, reconciliation_rows
from aggregator.errors import ConfigurationError, Failure, FailureReason
from aggregator.evidence import Evidence, place_of
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.reconciliation import (
    FIGURES,
    Reason,
    Status,
    by_size,
    reconciliation_findings,
    worth_showing,
)
from aggregator.rule_forms import Component, Fixed, TieredNotional, Verdict, WeightedValue, component_rows
from aggregator.schema.casting import table_from_rows
from aggregator.schema.results import RESULTS
from aggregator.snapshot import take_snapshot
from tests.sample_desk import CONFIGS, Answer, Desk, command, sample_desk

NOW = datetime(2024, 6, 30, tzinfo=UTC)
ACCOUNT = "v:east"
BTC = "v:BTC"
BOUND = Reconcile()
EQUITY, INITIAL, MAINTENANCE, HEALTH = 24_000.0, 10_000.0, 1_500.0, 16.0

Rows = dict[str, list[dict[str, Any]]]
Change = Callable[[Rows], None]


def components(*extra: Component, verdict: str = "equity_over_requirement") -> list[dict[str, Any]]:
    listed = (
        Component(side="equity", parameters=WeightedValue(weights="unit")),
        Component(side="requirement", parameters=TieredNotional(initial="leverage"), group_by="position"),
        *extra,
        Component(
            side="verdict",
            parameters=Verdict(liquidates_when="below", health=verdict),  # type: ignore[arg-type]
        ),
    )
    return component_rows("v:perp", listed, source="a page", read_at=NOW)


def book_rows() -> Rows:
    """The account of the module's docstring; the venue reports nothing yet."""
    tier = {"rule_set": "v:perp", "market": BTC, "source": "venue", "initial_rate": "0.05"}
    return {
        "accounts": [
            {
                "account_id": ACCOUNT, "node": ACCOUNT, "venue": "v", "owner": "east", "margin_mode": "cross",
                "rule_set": "v:perp", "settlement_asset": "USDC", "event_at": NOW,
            }
        ],
        "balances": [
            {
                "account_id": ACCOUNT, "asset_id": "USDC", "side": "asset", "quantity": Decimal("20000"),
                "collateral_enabled": True,
            }
        ],
        "positions": [
            {
                "account_id": ACCOUNT, "instrument_id": BTC, "side_mode": "net", "quantity": Decimal(2),
                "entry_price": Decimal(48_000), "leverage": Decimal(10),
            }
        ],
        "assets": [
            {"asset_id": "USDC", "symbol": "USDC", "multiplier": 1, "peg_of": "USDC"},
            {"asset_id": "BTC", "symbol": "BTC", "multiplier": 1, "risk_factor": "BTC"},
        ],
        "instruments": [
            {
                "instrument_id": BTC, "venue": "v", "symbol": "BTC", "kind": "perp", "underlying": "BTC",
                "settlement_asset": "USDC", "payoff": "linear", "contract_size": 1,
            }
        ],
        "marks": [
            {"venue": "v", "subject": BTC, "field": "mark", "value": 50_000.0, "as_of": NOW, "source": "feed"},
            {"venue": "v", "subject": "BTC", "field": "index", "value": 50_000.0, "as_of": NOW, "source": "feed"},
        ],
        "rule_sets": components(),
        "margin_tiers": [
            tier | {"tier": 1, "notional_floor": 0, "maintenance_rate": "0.01", "deduction": 0},
            tier | {"tier": 2, "notional_floor": 50_000, "maintenance_rate": "0.02", "deduction": 500},
        ],
        "market_state": [],
        "open_orders": [],
    }  # fmt: skip


def reported(rows: Rows, *, account: int = 0, **figures: str) -> None:
    """Figures that the venue states of an account, as texts."""
    for name, text in figures.items():
        rows["accounts"][account][f"reported_{name}"] = Decimal(text)


def state(rows: Rows, field: str, value: float | None, text: str | None = None) -> None:
    rows["market_state"].append(
        {"venue": "v", "market": ACCOUNT, "field": field, "value": value, "text": text, "source": "adapter"}
    )


def evidence_of(rows: Rows, failures: tuple[Failure, ...] = ()) -> Evidence:
    snapshot = take_snapshot([{name: table_from_rows(name, of) for name, of in rows.items()}], failures, as_of=NOW)
    return Evidence({"main": snapshot}, snapshot.failures, NOW)


def compared(
    rows: Rows,
    *,
    failures: tuple[Failure, ...] = (),
    bound: Reconcile = BOUND,
    portfolio: tuple[str, ...] = ("v",),
) -> list[dict[str, Any]]:
    """Rows of `reconciliation` of the book."""
    evidence = evidence_of(rows, failures)
    book, unclaimed = pack_book(evidence.snapshots, {"desk": portfolio}, as_of=NOW)
    assert not unclaimed
    computed = [
        Native(p, f, [True] * len(p.accounts)) for p, f in zip(book.portfolios, native_today(book), strict=True)
    ]
    return reconciliation_rows(computed, evidence, bound)


def of(rows: list[dict[str, Any]], figure: str, account: str = ACCOUNT) -> dict[str, Any]:
    (row,) = [row for row in rows if row["account_id"] == account and row["figure"] == figure]
    return row


def said(rows: list[dict[str, Any]], figure: str) -> tuple[str, str | None]:
    row = of(rows, figure)
    return row["status"], row["reason"]


def words(change: Change, figure: str) -> tuple[str, str | None]:
    rows = book_rows()
    change(rows)
    return said(compared(rows), figure)


UNEXPLAINED = ("unexplained", None)


# ---- matches ---------------------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_a_sheet_of_paper_and_match() -> None:
    rows = book_rows()
    reported(rows, equity="24000", initial_margin="10000", maintenance_margin="1500", health="16")
    found = compared(rows)
    assert [row["figure"] for row in found] == list(FIGURES)
    expected = dict(zip(FIGURES, (EQUITY, INITIAL, MAINTENANCE, HEALTH), strict=True))
    for row in found:
        assert row["ours"] == pytest.approx(expected[row["figure"]], rel=1e-12)
        assert row["reported"] == expected[row["figure"]]
        assert (row["status"], row["reason"], row["beyond_bound"]) == ("match", None, False)
        assert abs(row["difference"]) <= RELATIVE * row["reported"]
    assert [row["unit"] for row in found] == ["USDC", "USDC", "USDC", "ratio"]


def test_what_no_payload_states_is_not_compared() -> None:
    found = compared(book_rows())
    assert {row["status"] for row in found} == {"not_reported"}
    assert all(row["reported"] is row["difference"] is row["difference_usd"] is row["reason"] is None for row in found)
    assert of(found, "equity")["ours"] == pytest.approx(EQUITY)
    assert worth_showing(found) == []


def test_a_health_that_is_stated_the_other_way_round() -> None:
    rows = book_rows()
    rows["rule_sets"] = components(verdict="requirement_over_equity")
    reported(rows, health="0.0625")
    row = of(compared(rows), "health")
    assert (row["status"], row["ours"]) == ("match", pytest.approx(0.0625))


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("24000.12", ("match", "venue_rounding")),  # ours is 24000.123456
        ("24000.123456", ("match", None)),
        ("24000.13", ("explained", "venue_rounding")),  # two rows and their sum: three units of 0.01
        ("24000.10", ("explained", "venue_rounding")),  # one decimal shows; no more than half a cent is granted
        ("24000.16", UNEXPLAINED),
        ("24000.08", UNEXPLAINED),
    ],
)
def test_rounding_is_judged_by_the_digits_that_are_stated(stated: str, expected: tuple[str, str | None]) -> None:
    rows = book_rows()
    rows["balances"][0]["quantity"] = Decimal("20000.123456")
    reported(rows, equity=stated)
    assert said(compared(rows), "equity") == expected


def test_another_account_shows_how_many_digits_the_venue_states() -> None:
    rows = book_rows()
    rows["balances"][0]["quantity"] = Decimal("20000.123456")
    rows["accounts"].append(rows["accounts"][0] | {"account_id": "v:west", "node": "v:west", "owner": "west"})
    reported(rows, account=0, equity="24000.12")
    reported(rows, account=1, equity="0.0001")
    assert said(compared(rows), "equity") == UNEXPLAINED


@pytest.mark.parametrize(("stated", "quantity"), [("24000", "20000.4"), ("24000", "20000.15"), ("30000", "20000")])
def test_a_round_figure_is_not_taken_for_a_rounded_one(stated: str, quantity: str) -> None:
    rows = book_rows()
    rows["balances"][0]["quantity"] = Decimal(quantity)
    reported(rows, equity=stated)
    assert said(compared(rows), "equity") == UNEXPLAINED


def test_digits_of_a_number() -> None:
    for text, digits in (("0", 0), ("1E+3", 0), ("100", 0), ("1.50", 1), ("0.000000000000000001", 18)):
        assert place_of(Decimal(text)) == digits
    assert place_of(Decimal("12345678901234567890.123456789012345678")) == 18


def test_what_is_taken_as_reported_matches_by_construction_and_says_so() -> None:
    rows = book_rows()
    fixed = Fixed(initial=Decimal(250), basis="reported order margin")
    rows["rule_sets"] = components(Component(side="requirement", parameters=fixed, level="initial"))
    reported(rows, initial_margin="10250", maintenance_margin="1500")
    found = compared(rows)
    assert said(found, "initial_margin") == ("match", "reported_parts")
    assert "250 USDC of it are taken as reported (reported order margin)" in of(found, "initial_margin")["message"]
    assert said(found, "maintenance_margin") == ("match", None)
    reported(rows, initial_margin="10260")
    assert said(compared(rows), "initial_margin") == UNEXPLAINED


def test_what_the_adapter_computed_is_no_reported_part() -> None:
    rows = book_rows()
    fixed = Fixed(maintenance=Decimal(250), basis="computed by the index rule")
    rows["rule_sets"] = components(Component(side="requirement", parameters=fixed, level="maintenance"))
    reported(rows, maintenance_margin="1750")
    assert said(compared(rows), "maintenance_margin") == ("match", None)


def own_mark(rows: Rows, value: float, *, source: str, account: str = ACCOUNT) -> None:
    """A mark that came inside an account's own payload."""
    rows["marks"].append(
        {"venue": "v", "account_id": account, "subject": BTC, "field": "mark", "value": value, "as_of": NOW,
         "source": source}
    )  # fmt: skip


PROFIT = "entryPrice + unrealizedPnl / size"


@pytest.mark.parametrize(("source", "reason"), [(PROFIT, "reported_parts"), ("GET /positions", None)])
def test_a_profit_from_which_the_mark_was_worked_out_comes_back_as_it_was_stated(
    source: str, reason: str | None
) -> None:
    rows = book_rows()
    own_mark(rows, 50_000.0, source=source)
    reported(rows, equity="24000", initial_margin="10000", maintenance_margin="1500", health="16")
    found = compared(rows)
    assert said(found, "equity") == said(found, "health") == ("match", reason)
    # What is asked for is the rates' own doing.
    assert said(found, "initial_margin") == said(found, "maintenance_margin") == ("match", None)
    if reason:
        message = of(found, "equity")["message"]
        assert message.startswith(
            "by construction, as far as 4000 USDC of it are taken as reported (1 prices from entry"
        )
        assert "4000 USDC of what it is made of" in of(found, "health")["message"]
    reported(rows, equity="24100")
    assert said(compared(rows), "equity") == UNEXPLAINED, "another balance is no profit"


def test_an_inverse_profit_and_a_balance_s_worth_count_in_the_account_s_unit() -> None:
    rows = book_rows()
    rows["instruments"][0] |= {"payoff": "inverse", "settlement_asset": "BTC", "contract_size": 100}
    rows["positions"][0] |= {"quantity": Decimal(960), "entry_price": Decimal(48_000)}  # bought for 2 BTC
    own_mark(rows, 50_000.0, source=PROFIT)
    coins = {"account_id": ACCOUNT, "asset_id": "BTC", "side": "asset", "quantity": Decimal("0.25")}
    rows["balances"].append(coins | {"collateral_enabled": True})
    worth = {"venue": "v", "account_id": ACCOUNT, "subject": "BTC", "field": "index", "value": 40_000.0}
    rows["marks"].append(worth | {"as_of": NOW, "source": "eqUsd over eq"})
    # 2 - 96,000 / 50,000 = 0.08 BTC at 40,000, and a quarter of one
    reported(rows, equity=str(20_000 + 3_200 + 10_000))
    row = of(compared(rows), "equity")
    assert (row["status"], row["reason"]) == ("match", "reported_parts")
    assert (
        "13200 USDC of it are taken as reported (1 prices from entryPrice + unrealizedPnl / size; 1 prices"
        in row["message"]
    )


def test_marks_of_one_instant_that_differ_between_accounts_are_named() -> None:
    rows = book_rows()
    rows["accounts"].append(rows["accounts"][0] | {"account_id": "v:west", "node": "v:west", "owner": "west"})
    own_mark(rows, 50_000.0, source=PROFIT)
    own_mark(rows, 50_400.0, source=PROFIT, account="v:west")
    named = "inconsistent marks of v:BTC: 50000 here, 50400 of the same instant for v:west"
    reported(rows, equity="24000")
    assert of(compared(rows), "equity")["message"].endswith(f"; {named}")
    reported(rows, equity="23000")
    row = of(compared(rows), "equity")
    assert (row["status"], row["reason"]) == UNEXPLAINED
    assert row["message"] == f"nothing in the inputs accounts for it; beside it: {named}"
    rows["marks"][-1]["as_of"] = NOW + timedelta(seconds=1)
    assert "inconsistent" not in of(compared(rows), "equity")["message"]


def test_a_finding_that_prices_lie_apart_is_named_for_those_who_hold_the_asset() -> None:
    def message(subject: str) -> str:
        rows = book_rows()
        reported(rows, equity="23000")
        gap = Failure(FailureReason.INCONSISTENT, "prices of it differ by 3.0%", path="marks", subject=subject)
        return str(of(compared(rows, failures=(gap,)), "equity")["message"])

    assert message("BTC").endswith("beside it: a finding: prices of it differ by 3.0%")
    assert "finding" not in message("ETH")


# ---- the account's own time ------------------------------------------------------------------------------------------

EXPIRY = NOW + timedelta(days=2)
CALL = "v:BTC-CALL"


def call_price(moment: datetime) -> float:
    """Black's price of the call in the sheet below: forward 50,000, strike 51,000, vol 60 %, rate 0."""
    deviation = 0.6 * math.sqrt((EXPIRY - moment).total_seconds() / (365 * 86_400))
    d1 = math.log(50_000 / 51_000) / deviation + deviation / 2
    return float(50_000 * ndtr(d1) - 51_000 * ndtr(d1 - deviation))


def with_call(rows: Rows) -> None:
    """Three sold calls in place of the perpetual, under a fixed requirement."""
    rows["rule_sets"] = component_rows(
        "v:perp",
        [
            Component(side="equity", parameters=WeightedValue(weights="unit")),
            Component(
                side="requirement",
                parameters=Fixed(initial=Decimal(900), maintenance=Decimal(600), basis="computed for the test"),
            ),
            Component(side="verdict", parameters=Verdict(liquidates_when="below")),
        ],
        source="a page",
        read_at=NOW,
    )
    rows["instruments"] = [
        {
            "instrument_id": CALL, "venue": "v", "symbol": "BTC-CALL", "kind": "option", "underlying": "BTC",
            "settlement_asset": "USDC", "payoff": "linear", "contract_size": 1, "strike": 51_000, "expiry": EXPIRY,
            "option_type": "call",
        }
    ]  # fmt: skip
    rows["margin_tiers"] = []
    rows["positions"] = [{"account_id": ACCOUNT, "instrument_id": CALL, "side_mode": "net", "quantity": Decimal(-3)}]
    common = {"venue": "v", "as_of": NOW, "source": "feed"}
    rows["marks"] = [
        rows["marks"][1],
        common | {"subject": f"BTC@{EXPIRY:%Y-%m-%dT%H:%M:%SZ}", "field": "forward", "value": 50_000.0},
        common | {"subject": CALL, "field": "implied_vol", "value": 0.6},
    ]


@pytest.mark.parametrize("seconds", [-7200, -3, 0, 60])
@pytest.mark.parametrize("column", ["event_at", "received_at"])
def test_options_are_worth_what_they_were_at_the_account_s_own_time(seconds: int, column: str) -> None:
    rows = book_rows()
    with_call(rows)
    moment = NOW + timedelta(seconds=seconds)
    rows["accounts"][0] |= {"event_at": None, column: moment}
    equity = 20_000 - 3 * call_price(moment)
    reported(rows, equity=f"{equity:.12f}", maintenance_margin="600", health=f"{equity / 600:.12f}")
    found = compared(rows)
    assert {said(found, figure) for figure in ("equity", "maintenance_margin", "health")} == {("match", None)}
    row = of(found, "equity")
    assert row["ours"] == pytest.approx(equity, rel=RELATIVE)
    side = "before" if seconds < 0 else "after"
    assert ("own time" in row["message"]) is (seconds != 0)
    assert seconds == 0 or row["message"].endswith(f"; at the account's own time, {abs(seconds)} s {side} the run's")
    if seconds == -7200:
        assert abs(equity - (20_000 - 3 * call_price(NOW))) > 50, "two hours would show"
        reported(rows, equity=f"{20_000 - 3 * call_price(NOW):.12f}")
        assert said(compared(rows), "equity") == UNEXPLAINED, "the run's time is not the account's"


def test_figures_that_do_not_depend_on_the_time_are_those_of_the_run() -> None:
    rows = book_rows()
    rows["accounts"][0]["event_at"] = NOW - timedelta(hours=2)
    reported(rows, equity="24000")
    assert of(compared(rows), "equity")["message"] == "equal"


# ---- explanations, each with what it must not explain ----------------------------------------------------------------


@pytest.mark.parametrize("field", ["reconciliation_note", "reconciliation_note.initial_margin"])
def test_a_note_of_the_adapter_explains_as_much_as_it_states(field: str) -> None:
    def change(size: float | None, stated: str = "9400") -> Change:
        def apply(rows: Rows) -> None:
            reported(rows, initial_margin=stated)
            state(rows, field, size, "the venue's own figure leaves out the open interest")

        return apply

    assert words(change(600.0), "initial_margin") == ("explained", "venue_note")
    assert words(change(-600.0), "initial_margin") == ("explained", "venue_note")
    assert words(change(600.0, "10600"), "initial_margin") == ("explained", "venue_note")
    assert words(change(599.0), "initial_margin") == UNEXPLAINED
    assert words(change(None), "initial_margin") == UNEXPLAINED


def test_a_finding_about_the_account_is_named_and_explains_nothing() -> None:
    rows = book_rows()
    reported(rows, equity="23000")
    finding = Failure(FailureReason.INCONSISTENT, "two statements of one balance", "v", subject=ACCOUNT)
    row = of(compared(rows, failures=(finding,)), "equity")
    assert (row["status"], row["reason"]) == UNEXPLAINED
    assert row["message"].endswith("beside it: a finding: two statements of one balance")


def test_a_note_on_one_figure_says_nothing_of_another() -> None:
    rows = book_rows()
    reported(rows, equity="23000")
    state(rows, "reconciliation_note.initial_margin", 5_000.0, "something else")
    assert said(compared(rows), "equity") == UNEXPLAINED
    assert "something else" in of(compared(rows), "equity")["message"]


def moved_marks(rows: Rows) -> None:
    """The mark came three seconds after the account, and a hundred dollars higher."""
    rows["marks"][0] |= {"value": 50_100.0, "as_of": NOW + timedelta(seconds=3)}
    rows["positions"][0]["reported_initial_margin"] = Decimal("10000")
    reported(rows, equity="24000", initial_margin="10000", maintenance_margin="1500", health="16")


def test_marks_of_another_time_explain_what_the_account_s_own_margins_undo() -> None:
    rows = book_rows()
    moved_marks(rows)
    found = compared(rows)
    assert of(found, "equity")["ours"] == pytest.approx(24_200.0)
    for figure in FIGURES:
        assert said(found, figure) == ("explained", "stale_mark"), figure
    assert "v:BTC 50000, not 50100, which is of 3 s later" in of(found, "equity")["message"]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda rows: rows["marks"][0].update(as_of=NOW),  # the mark is of the account's own time
        lambda rows: rows["positions"][0].update(reported_initial_margin=None),
        lambda rows: rows["positions"][0].update(reported_initial_margin=Decimal("10010")),
        lambda rows: reported(rows, equity="23990"),
        lambda rows: rows["accounts"][0].pop("reported_equity"),  # margins alone would prove themselves
        lambda rows: rows["positions"][0].update(initial_rate_override=Decimal("0.2")),
    ],
    ids=["same_time", "no_margin", "other_margin", "other_equity", "no_equity", "override"],
)
def test_marks_of_another_time_explain_nothing_on_their_own(break_it: Change) -> None:
    rows = book_rows()
    moved_marks(rows)
    break_it(rows)
    found = compared(rows)
    assert {said(found, "initial_margin"), said(found, "maintenance_margin")} == {UNEXPLAINED}


def test_a_stale_mark_is_named_beside_what_it_does_not_explain() -> None:
    rows = book_rows()
    moved_marks(rows)
    reported(rows, equity="23990")
    message = of(compared(rows), "equity")["message"]
    assert message.startswith("nothing in the inputs accounts for it; beside it: ")
    assert "1 marks of another time than the account (first v:BTC, +3 s)" in message


def test_orders_that_the_account_pays_for_and_no_payload_lists() -> None:
    def change(margin: float, stated: str = "10250", **order: Any) -> Change:
        def apply(rows: Rows) -> None:
            reported(rows, initial_margin=stated)
            state(rows, "order_margin", margin)
            if order:
                rows["open_orders"].append(
                    {"order_id": "1", "account_id": ACCOUNT, "instrument_id": BTC, "side": "buy",
                     "remaining_quantity": 1, "reduce_only": False} | order
                )  # fmt: skip

        return apply

    assert words(change(250.0), "initial_margin") == ("explained", "orders_not_in_payload")
    assert words(change(300.0), "initial_margin") == ("explained", "orders_not_in_payload")
    assert words(change(249.0), "initial_margin") == UNEXPLAINED
    assert words(change(250.0, "9900"), "initial_margin") == UNEXPLAINED
    assert words(change(250.0, limit_price=49_000), "initial_margin") == UNEXPLAINED
    rows = book_rows()
    change(250.0, limit_price=49_000)(rows)
    assert "1 open orders" in of(compared(rows), "initial_margin")["message"]
    rows = book_rows()
    state(rows, "order_margin", 250.0)
    reported(rows, maintenance_margin="1750")
    assert said(compared(rows), "maintenance_margin") == UNEXPLAINED, "orders take no maintenance margin"


def older_tiers(rows: Rows, stated: str = "1800") -> None:
    """Tiers read four weeks before the account, whose maintenance margin the venue states at other rates."""
    for row in rows["rule_sets"]:
        row["read_at"] = NOW - timedelta(days=28)
    rows["positions"][0]["reported_maintenance_margin"] = Decimal(stated)
    reported(rows, equity="24000", maintenance_margin=stated)


def test_older_tiers_explain_what_the_positions_themselves_are_asked_for() -> None:
    rows = book_rows()
    older_tiers(rows)
    found = compared(rows)
    assert said(found, "maintenance_margin") == ("explained", "stale_tier")
    message = of(found, "maintenance_margin")["message"]
    assert "parameters are of 2024-06-02, the account of 2024-06-30" in message


@pytest.mark.parametrize(
    "break_it",
    [
        lambda rows: [row.update(read_at=NOW - timedelta(hours=3)) for row in rows["rule_sets"]],
        lambda rows: [row.update(read_at=None) for row in rows["rule_sets"]],
        lambda rows: reported(rows, equity="23000"),
        lambda rows: rows["accounts"][0].pop("reported_equity"),
        lambda rows: reported(rows, maintenance_margin="1900"),
        lambda rows: rows["positions"][0].pop("reported_maintenance_margin"),
        lambda rows: older_tiers(rows, str(MAINTENANCE * TIER_CHANGE + 1)),
        lambda rows: older_tiers(rows, str(MAINTENANCE / TIER_CHANGE - 1)),
    ],
    ids=["young", "undated", "equity", "no_equity", "more_than_positions", "no_positions", "too_large", "too_small"],
)
def test_older_tiers_explain_nothing_on_their_own(break_it: Change) -> None:
    rows = book_rows()
    older_tiers(rows)
    break_it(rows)
    assert said(compared(rows), "maintenance_margin") == UNEXPLAINED


def test_valid_from_dates_a_rule_set_that_does_not_say_when_it_was_read() -> None:
    rows = book_rows()
    older_tiers(rows)
    for row in rows["rule_sets"]:
        row |= {"read_at": None, "valid_from": NOW - timedelta(days=2)}
    assert said(compared(rows), "maintenance_margin") == ("explained", "stale_tier")


def test_a_row_that_no_payload_brought_is_missing_and_not_explained_away() -> None:
    rows = book_rows()
    rows["positions"][0]["reported_maintenance_margin"] = Decimal("1500")
    reported(rows, equity="24000", maintenance_margin="2100")
    row = of(compared(rows), "maintenance_margin")
    assert (row["status"], row["reason"], row["beyond_bound"]) == ("incomplete", "missing_row", True)
    assert "the 1 positions that were read add up to ours; the other 600 belong to something" in row["message"]
    assert len(reconciliation_findings(compared(rows))) == 1
    reported(rows, maintenance_margin="1400")
    assert said(compared(rows), "maintenance_margin") == UNEXPLAINED, "less than its positions is no missing row"


def test_a_requirement_without_any_position_is_a_missing_row() -> None:
    rows = book_rows()
    rows["positions"] = []
    reported(rows, equity="20000", maintenance_margin="1500")
    assert said(compared(rows), "maintenance_margin") == ("incomplete", "missing_row")


def test_a_placeholder_for_no_health_is_explained_as_long_as_nothing_is_required() -> None:
    rows = book_rows()
    rows["positions"] = []
    reported(rows, equity="20000", maintenance_margin="0", health="999")
    found = compared(rows)
    assert of(found, "health")["ours"] is None
    assert said(found, "health") == ("explained", "no_requirement")
    reported(rows, maintenance_margin="10")
    assert said(compared(rows), "health") == UNEXPLAINED


def test_health_follows_from_figures_that_are_explained() -> None:
    rows = book_rows()
    older_tiers(rows)
    reported(rows, health="13.3333333333")
    found = compared(rows)
    assert said(found, "health") == ("explained", "derived")
    reported(rows, health="13.4")
    assert said(compared(rows), "health") == UNEXPLAINED
    reported(rows, health="13.3259300389", maintenance_margin="1801")
    rows["positions"][0]["reported_maintenance_margin"] = Decimal("1750")
    assert said(compared(rows), "health") == UNEXPLAINED, "it follows from a figure that nothing explains"


def test_health_stated_the_other_way_round_follows_too() -> None:
    rows = book_rows()
    older_tiers(rows)
    for row in rows["rule_sets"]:
        if row["side"] == "verdict":
            row["parameters"] = components(verdict="requirement_over_equity")[-1]["parameters"]
    reported(rows, health="0.075")
    assert said(compared(rows), "health") == ("explained", "derived")


# ---- incomplete accounts ---------------------------------------------------------------------------------------------

OF_FAILURE = {
    FailureReason.MISSING_MARK: "missing_mark",
    FailureReason.MISSING_PARAMETER: "missing_parameter",
    FailureReason.STALE: "stale",
    FailureReason.UNSUPPORTED: "unsupported",
    FailureReason.UNREACHABLE: "unreachable",
    FailureReason.CALCULATION: "calculation",
}


@pytest.mark.parametrize("reason", list(FailureReason))
def test_an_account_without_figures_says_which_failure_left_it_so(reason: FailureReason) -> None:
    rows = book_rows()
    reported(rows, equity="24000")
    finding = Failure(FailureReason.INCONSISTENT, "beside it", "v", subject=ACCOUNT)
    found = compared(rows, failures=(finding, Failure(reason, "why", "v", account_id=ACCOUNT)))
    assert {(row["status"], row["reason"]) for row in found} == {("incomplete", OF_FAILURE.get(reason, "missing_row"))}
    row = of(found, "equity")
    assert (row["ours"], row["reported"], row["difference_usd"], row["beyond_bound"]) == (None, EQUITY, None, False)
    assert row["message"].endswith("why (and 1 more)")
    assert (row["message"] == "why (and 1 more)") is (reason in OF_FAILURE)


def test_a_mark_that_is_missing_leaves_no_figure() -> None:
    rows = book_rows()
    del rows["marks"][0]
    evidence = evidence_of(rows)
    book, _ = pack_book(evidence.snapshots, {"desk": ("v",)}, as_of=NOW)
    (portfolio,), (native,) = book.portfolios, native_today(book)
    assert native is None
    evidence = Evidence(evidence.snapshots, book.failures, NOW)
    found = reconciliation_rows([Native(portfolio, None, ())], evidence, BOUND)
    assert said(found, "equity") == ("incomplete", "missing_mark")
    assert "no mark of v:BTC" in of(found, "equity")["message"]


def test_figures_in_single_precision_are_refused() -> None:
    evidence = evidence_of(book_rows())
    book, _ = pack_book(evidence.snapshots, {"desk": ("v",)}, as_of=NOW)
    with jax.enable_x64(False), pytest.raises(ConfigurationError, match="jax_enable_x64"):
        native_today(book)


def test_an_account_that_nobody_read_has_a_row() -> None:
    found = compared(book_rows(), portfolio=("v", "w:lost"))
    row = of(found, "equity", "w:lost")
    assert (row["venue"], row["unit"], row["status"], row["reason"]) == ("w", "", "incomplete", "missing_row")
    assert row["message"] == "no payload brought this account"
    assert [r["account_id"] for r in worth_showing(found)] == ["w:lost"], "once, for nothing of it is reported"


def test_a_figure_that_is_not_finite_is_none() -> None:
    rows = book_rows()
    reported(rows, equity="24000")
    evidence = evidence_of(rows)
    book, _ = pack_book(evidence.snapshots, {"desk": ("v",)}, as_of=NOW)
    found = reconciliation_rows([Native(book.portfolios[0], native_today(book)[0], [False])], evidence, BOUND)
    assert {(row["status"], row["reason"], row["ours"]) for row in found} == {("incomplete", "calculation", None)}


# ---- size and bound --------------------------------------------------------------------------------------------------


def test_differences_are_ours_minus_reported_in_unit_fraction_and_dollars() -> None:
    rows = book_rows()
    rows["marks"].append(
        {"venue": "v", "subject": "USDC", "field": "stable_price", "value": 0.5, "as_of": NOW, "source": "feed"}
    )
    reported(rows, equity="20000", maintenance_margin="2000", health="10")
    found = compared(rows)
    equity, maintenance, health = (of(found, name) for name in ("equity", "maintenance_margin", "health"))
    assert equity["difference"] == pytest.approx(4_000.0)
    assert equity["difference_relative"] == pytest.approx(0.2)
    assert equity["difference_usd"] == pytest.approx(2_000.0)
    assert maintenance["difference"] == pytest.approx(-500.0)
    assert maintenance["difference_relative"] == pytest.approx(-0.25)
    # Six more of a ratio over 1,500 USDC at half a dollar.
    assert health["difference_usd"] == pytest.approx(6.0 * 1_500.0 * 0.5)
    assert [row["figure"] for row in by_size(found)] == ["health", "equity", "maintenance_margin", "initial_margin"]


def test_rows_without_a_size_stand_behind_the_others_the_incomplete_first() -> None:
    def row(status: str, usd: float | None, account: str = "a") -> dict[str, Any]:
        return {"status": status, "difference_usd": usd, "portfolio_id": "p", "account_id": account, "figure": "equity"}

    rows = [
        row("not_reported", None), row("match", 1e-9), row("incomplete", None, "b"), row("incomplete", None),
        row("unexplained", -7.0), row("explained", 5.0),
    ]  # fmt: skip
    found = [(r["status"], r["account_id"]) for r in by_size(rows)]
    assert found == [
        ("unexplained", "a"), ("explained", "a"), ("match", "a"),
        ("incomplete", "a"), ("incomplete", "b"), ("not_reported", "a"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stated", "bound", "beyond"),
    [
        ("23998", Reconcile(), False),  # 2 USD, but not a thousandth of it
        ("23970", Reconcile(), True),
        ("23998", Reconcile(bound_relative=0.0), True),
        ("23998", Reconcile(bound_usd=2.5, bound_relative=0.0), False),
        ("23970", Reconcile(bound_usd=31.0), False),
        ("23970", Reconcile(bound_usd=29.0), True),
        ("23999.999", Reconcile(bound_usd=0.0, bound_relative=0.0), False),  # explained by rounding
    ],
)
def test_a_difference_has_to_be_beyond_both_bounds(stated: str, bound: Reconcile, beyond: bool) -> None:
    rows = book_rows()
    reported(rows, equity=stated)
    found = compared(rows, bound=bound)
    assert of(found, "equity")["beyond_bound"] is beyond
    findings = reconciliation_findings(found)
    assert len(findings) == beyond
    for finding in findings:
        assert (finding.reason, finding.account_id, finding.subject) == (FailureReason.INCONSISTENT, None, ACCOUNT)
        assert finding.message.startswith(f"recomputed equity 24000.000000 is not the venue's own {float(stated):.6f}")


def test_what_is_explained_is_never_beyond_the_bound() -> None:
    rows = book_rows()
    older_tiers(rows)
    row = of(compared(rows, bound=Reconcile(bound_usd=0.0, bound_relative=0.0)), "maintenance_margin")
    assert (row["status"], row["difference"], row["beyond_bound"]) == ("explained", pytest.approx(-300.0), False)


def test_the_lists_of_words_are_closed_and_used() -> None:
    assert [str(status) for status in Status] == ["match", "explained", "unexplained", "not_reported", "incomplete"]
    text = Path(__file__).read_text(encoding="utf-8")
    for reason in Reason:
        assert f'"{reason}"' in text, f"no test produces {reason}"


def test_the_figures_of_many_portfolios_are_those_of_each() -> None:
    rows = book_rows()
    for number in range(3):
        account = f"v:{number}"
        rows["accounts"].append(rows["accounts"][0] | {"account_id": account, "node": account, "owner": str(number)})
        rows["balances"].append(rows["balances"][0] | {"account_id": account, "quantity": Decimal(1000 * number + 1)})
    evidence = evidence_of(rows)
    portfolios = {f"p{number}": (f"v:{number}",) for number in range(3)} | {"east": (ACCOUNT,)}
    book, _ = pack_book(evidence.snapshots, portfolios, as_of=NOW)
    found = dict(zip([p.portfolio_id for p in book.portfolios], native_today(book), strict=True))
    for number in range(3):
        native = found[f"p{number}"]
        assert native is not None
        assert float(native.equity[0]) == 1000.0 * number + 1
        assert float(native.maintenance[0]) == 0.0
    east = found["east"]
    assert east is not None
    assert [float(np.asarray(values)[0]) for values in east] == pytest.approx([EQUITY, INITIAL, MAINTENANCE])


# ---- the verb --------------------------------------------------------------------------------------------------------

COLUMNS = [name for name in RESULTS["reconciliation"].names if name != "run_id"]


def reconciled(desk: Desk, *arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON object of the verb on a desk."""
    answer = command("reconcile", str(desk.write()), "--json", *arguments, environment=environment)
    assert answer.stdout.count("\n") == 1, answer.stderr
    return answer.exit_code, json.loads(answer.stdout)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return sample_desk(tmp_path_factory.mktemp("reconcile") / "desk")


def again(desk: Desk, tmp_path: Path) -> Desk:
    other = desk.copied(tmp_path / "desk")
    other.document = copy.deepcopy(desk.document)
    return other


def test_one_json_object_with_every_figure_and_nothing_is_stored(desk: Desk) -> None:
    code, document = reconciled(desk)
    assert (code, document["conditions"], document["as_of"]) == (0, [], "2024-06-25T14:00:02+00:00")
    assert document.keys() == {"as_of", "conditions", "counts", "rows"}
    assert document["counts"].keys() == {str(status) for status in Status}
    assert sum(document["counts"].values()) == len(document["rows"]) == 4 * 8
    assert all(list(row) == COLUMNS for row in document["rows"])
    assert document["rows"] == by_size(document["rows"])
    # The sample states its total at plain index prices; ours counts the buffers.
    assert [(r["account_id"], r["figure"]) for r in document["rows"] if r["status"] == "unexplained"] == [
        ("binance:south:multi", "equity")
    ]
    assert not (desk.folder / "results").exists()


def test_the_sweep_writes_the_same_rows_and_a_finding_beyond_the_bound(tmp_path: Path, desk: Desk) -> None:
    other = again(desk, tmp_path)
    code, document = reconciled(other, "--set", "reconcile.bound_relative=0.01")
    assert code == 4
    run = other.sweep("--set", "reconcile.bound_relative=0.01")
    assert run.exit_code == 3
    stored = [{name: row[name] for name in COLUMNS} for row in run.rows("reconciliation")]
    assert by_size(stored) == document["rows"]
    (finding,) = run.failures(reason="inconsistent")
    assert (finding["subject"], finding["path"], finding["account_id"]) == ("binance:south:multi", "equity", None)
    assert "is not the venue's own 61272.7" in finding["message"]
    kept = other.sweep()
    assert kept.exit_code == 0
    assert kept.rows("failures") == []


def test_the_table_on_stdout_and_the_talk_on_stderr(desk: Desk) -> None:
    answer = command(
        "reconcile", str(desk.write()), "--set", "reconcile.bound_usd=0", "--set", "reconcile.bound_relative=0"
    )
    assert answer.exit_code == 4
    lines = answer.stdout.splitlines()
    assert lines[0].strip() == "Reconciliation (ours minus reported)"
    body = [line.strip("│").split("│") for line in lines if line.startswith("│")]
    cells = [[cell.strip() for cell in line] for line in body if line[0].strip()]
    assert cells[0][:2] == ["binance:south:multi", "equity"]
    assert cells[0][8] == "unexplained"
    assert cells[0][7].startswith("-2,806.")
    assert {"match", "unexplained"} == {line[8] for line in cells}
    assert lines[-1].startswith("figures  ")
    assert lines[-1].endswith("as of 2024-06-25T14:00:02Z")
    assert "unexplained: 1 differences beyond [reconcile] bounds" in answer.stderr
    assert "accounts: 1/1" in answer.stderr
    assert "accounts: 1/1" not in answer.stdout


def test_market_history_is_not_read(tmp_path: Path, desk: Desk) -> None:
    other = again(desk, tmp_path)
    other.document["scenarios"] = {"generator": "filtered_history", "history": "nowhere.parquet"}
    code, document = reconciled(other)
    assert code == 0
    assert document["rows"] == reconciled(desk)[1]["rows"]


def test_codes_of_incomplete_data_and_of_payloads_that_are_not_there(tmp_path: Path, desk: Desk) -> None:
    other = again(desk, tmp_path)
    (other.folder / "payloads" / "trader_clearinghouse_state.json").write_text("{")
    code, document = reconciled(other)
    assert code == 3
    assert [c["condition"] for c in document["conditions"]] == ["incomplete"]
    (row,) = [r for r in document["rows"] if r["figure"] == "equity" and r["status"] == "incomplete"]
    assert (row["venue"], row["reason"], row["ours"]) == ("hyperliquid", "missing_row", None)
    (other.folder / "payloads" / "trader_spot_clearinghouse_state.json").unlink()
    code, document = reconciled(other)
    assert code == 5
    assert [(c["condition"], c["code"]) for c in document["conditions"]] == [("unreachable", 5), ("incomplete", 3)]
    code, document = reconciled(other, "--set", "reconcile.bound_relative=0.001")
    assert code == 4
    assert [c["condition"] for c in document["conditions"]] == ["unexplained", "unreachable", "incomplete"]
    message = document["conditions"][0]["message"]
    assert message.startswith("1 differences beyond [reconcile] bounds that nothing explains, the largest 2,806.")
    assert message.endswith("USD: equity of binance:south:multi")


def test_a_bound_in_dollars_that_the_difference_keeps(desk: Desk) -> None:
    for bound, code in (("2800", 4), ("2810", 0)):
        found, _ = reconciled(desk, "--set", "reconcile.bound_relative=0", "--set", f"reconcile.bound_usd={bound}")
        assert found == code


def test_the_environment_counts_and_the_line_wins(desk: Desk) -> None:
    environment = {"CROSSMARGIN__RECONCILE__BOUND_RELATIVE": "0.001"}
    assert reconciled(desk, environment=environment)[0] == 4
    assert reconciled(desk, "--set", "reconcile.bound_relative=0.05", environment=environment)[0] == 0


def test_what_cannot_be_run_is_a_mistake_of_the_configuration(tmp_path: Path, desk: Desk) -> None:
    other = again(desk, tmp_path)
    code, document = reconciled(other, "--set", "reconcile.bound=1")
    assert code == 2
    assert "unknown key reconcile.bound (did you mean 'bound_usd'?)" in document["conditions"][0]["message"]
    other.document["portfolios"] = {"fund": ["aave_v3:treasury"]}
    code, document = reconciled(other)
    assert code == 2
    assert "accounts that no portfolio maps: binance:north" in document["conditions"][0]["message"]
    answer: Answer = command("reconcile", str(tmp_path / "nothing.toml"))
    assert (answer.exit_code, answer.stdout) == (2, "")


def test_the_quickstart_is_the_venues_own_to_the_last_figure() -> None:
    answer = command("reconcile", str(CONFIGS / "quickstart.toml"), "--json")
    assert answer.exit_code == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert document["conditions"] == []
    counts = {status: count for status, count in document["counts"].items() if count}
    assert counts == {"match": 19, "not_reported": 17}
    assert all(abs(row["difference_usd"]) < 1e-6 for row in document["rows"] if row["status"] == "match")
    named = {row["account_id"] for row in document["rows"]}
    assert len(named) == 9
