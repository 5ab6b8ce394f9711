"""Recommendations: the wish and the step, what governance reads, and what the next run learns from the last."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aggregator.errors import ConfigurationError, DataError, FailureReason
from aggregator.factors import MarketSize
from aggregator.overlays.partial_default import DefaultLaw
from models.bounded_step import Reason, Standing
from models.collateral_haircuts import CollateralTier, PegMoves, collateral_tiers, peg_weights
from models.market_history import Side
from models.recommendation import (
    FALLBACK,
    MODEL,
    Figure,
    MarketOutlook,
    Outcome,
    Parameter,
    Recommendation,
    applied,
    recommend,
    recommend_position_limit,
    recommend_rates,
    recommend_weights,
    wished_ladder,
)
from models.recommendation_files import (
    RECOMMENDATIONS,
    Origin,
    governance_document,
    read_document,
    recommendation_rows,
    standings,
)
from models.tier_ladder import BaseRates, Ladder, Tier
from models.tier_policy import read_policy
from models.tier_requirement import UnitRequirement, required_rates

POLICY = read_policy(Path(__file__).parent.parent / "configs" / "governance.toml")
NOW = datetime(2024, 6, 30, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
FRESH = Standing()
SIZE = MarketSize(daily_volume=2e8, daily_vol=0.05, spread=0.0004)
ORIGIN = Origin("learned", "a" * 64, {"market_history": "b" * 64, "snapshot": "c" * 64})
CURRENT = Ladder("SOL", (Tier(0.0, 1e6, 400, 900), Tier(1e6, 6e7, 1500, 2000)))


def rates(side: Side, scale: float) -> BaseRates:
    margin = scale * np.array([[0.7, 1.0], [1.1, 1.6]])
    return BaseRates(side, (0.95, 0.99), (1.0 / 3.0, 1.0), margin, 1.3 * margin)


def outlook(market: str = "SOL", *, scale: float = 0.05, history_days: float = 400.0, **size: float) -> MarketOutlook:
    sides = (rates("long", scale), rates("short", scale))
    return MarketOutlook(market, sides, SIZE._replace(**size), history_days)


def needed(rate: float) -> UnitRequirement:
    """`rate` of a long position and of a short one over a day."""
    return UnitRequirement((1.0,), (rate,), (rate,))


def rates_of(market: MarketOutlook, *, standing: Standing = FRESH, requirement: float = 0.01) -> Recommendation:
    return recommend_rates(CURRENT, market, needed(requirement), standing, POLICY, now=NOW)


def values(made: Recommendation) -> list[int]:
    return [figure.value for figure in made.figures]


def test_wish_and_step_stand_side_by_side() -> None:
    made = rates_of(outlook())
    wished = wished_ladder(CURRENT, outlook(), POLICY)
    assert [tier.notional_cap for tier in wished.tiers] == [1e6, 6e7]
    assert [figure.wish for figure in made.figures] == [
        *(tier.maintenance_bps for tier in wished.tiers),
        *(tier.initial_bps for tier in wished.tiers),
    ]
    assert [(figure.parameter, figure.tier, figure.previous) for figure in made.figures] == [
        (Parameter.MAINTENANCE_RATE, 1, 400),
        (Parameter.MAINTENANCE_RATE, 2, 1500),
        (Parameter.INITIAL_RATE, 1, 900),
        (Parameter.INITIAL_RATE, 2, 2000),
    ]
    for figure in made.figures:
        assert figure.value == min(max(figure.wish, figure.previous - 100), figure.previous + 200)
    assert (made.created_at, made.expires_at) == (NOW, NOW + 6 * HOUR)


def test_never_below_the_requirement() -> None:
    made = rates_of(outlook(scale=0.001), requirement=0.07)
    required = [figure.requirement or 0 for figure in made.figures]
    assert Reason.REQUIREMENT_FLOOR in made.reasons
    assert all(figure.wish >= least for figure, least in zip(made.figures, required, strict=True))
    # 400 lies below: it may move up, and nothing goes down through what is required
    assert made.figures[0].previous < required[0]
    assert values(made)[0] == required[0]
    assert all(f.value >= min(f.previous, least) for f, least in zip(made.figures, required, strict=True))
    for wrong in (math.nan, -0.1, math.inf):
        with pytest.raises(DataError, match="requirement of SOL"):
            rates_of(outlook(), requirement=wrong)


def test_the_requirement_is_that_of_the_days_and_the_sale_of_each_tier() -> None:
    """A day's 7 % over eight hours for maintenance and a day for initial, by the slow way: days, sides and slices."""
    required = required_rates(CURRENT, SIZE, needed(0.07), POLICY)
    assert required is not None
    caps, rules = [1e6, 6e7], POLICY.close_out
    sums: list[float] = []
    initial: list[float] = []
    for cap in caps:
        sale = cap / (rules.participation * SIZE.daily_volume)
        cost = 0.5 * SIZE.spread + rules.impact * SIZE.daily_vol * math.sqrt(cap / SIZE.daily_volume)
        for days, rows in ((max(1.0 / 3.0, sale), sums), (max(1.0, sale), initial)):
            long = 1.0 - math.exp(math.sqrt(days) * math.log(1.0 - 0.07))
            short = math.exp(math.sqrt(days) * math.log(1.0 + 0.07)) - 1.0
            rows.append((max(long, short) + cost) * (cap if rows is sums else 1.0))
    slopes = [sums[0] / caps[0], (sums[1] - sums[0]) / (caps[1] - caps[0])]
    maintenance = [min(10_000, math.ceil(1e4 * rate)) for rate in slopes]
    assert required == (*maintenance, *(max(a, math.ceil(1e4 * b)) for a, b in zip(maintenance, initial, strict=True)))
    # eight hours need less than a day, and both less than twice the danger
    assert required[0] < required[2]
    twice = required_rates(CURRENT, SIZE, needed(0.14), POLICY)
    assert twice is not None
    assert all(a < b for a, b in zip(required, twice, strict=True))


def test_a_forecast_of_the_classical_member_says_so() -> None:
    made = rates_of(outlook()._replace(model=FALLBACK))
    assert (made.model, made.reasons[0]) == (FALLBACK, Reason.FALLBACK)
    own = rates_of(outlook())
    assert own.model == MODEL
    assert made.figures == own.figures
    text = governance_document(Outcome((made,), ()), ORIGIN, POLICY)
    update = read_document(text, now=NOW)["updates"][0]["additional_data"]
    assert update["model"] == FALLBACK
    assert "guard rail" in update["explanation"]


def test_applied_twice_changes_nothing() -> None:
    made = rates_of(outlook())
    once = applied(CURRENT, made, now=NOW + HOUR)
    assert [tier.maintenance_bps for tier in once.tiers] == values(made)[:2]
    assert applied(once, made, now=NOW + 2 * HOUR) == once
    # recommended again with the tiers in force, nothing moves: the change has to cool down
    again = recommend_rates(once, outlook(), needed(0.01), Standing(NOW + HOUR), POLICY, now=NOW + 2 * HOUR)
    assert not again.changes
    limit = recommend_position_limit(CURRENT, outlook(daily_volume=1e8), Standing(), POLICY, now=NOW)
    assert limit is not None
    assert limit.figures == (Figure(Parameter.POSITION_LIMIT, 2, "usd", 60_000_000, 30_000_000, 45_000_000),)
    assert applied(CURRENT, limit, now=NOW).tiers[-1].notional_cap == 45e6


def test_what_does_not_fit_is_not_applied() -> None:
    made = rates_of(outlook())
    for at in (NOW - HOUR, NOW + 6 * HOUR):
        with pytest.raises(ConfigurationError, match="holds from 2024-06-30T00:00"):
            applied(CURRENT, made, now=at)
    with pytest.raises(ConfigurationError, match="rates of SOL does not fit the tiers of BTC"):
        applied(CURRENT._replace(market="BTC"), made, now=NOW)
    moved = Ladder("SOL", (CURRENT.tiers[0]._replace(maintenance_bps=333), CURRENT.tiers[1]))
    with pytest.raises(ConfigurationError, match=r"maintenance_rate of tier 1 of SOL is 333; .* made for 400"):
        applied(moved, made, now=NOW)


def test_a_month_of_history_tightens_and_does_not_loosen() -> None:
    young = rates_of(outlook(scale=0.001, history_days=30.0), requirement=0.0)
    assert (young.changes, young.reasons) == ((), (Reason.SHORT_HISTORY,))
    assert {figure.requirement for figure in young.figures} == {None}
    assert rates_of(outlook(scale=0.001), requirement=0.0).changes != ()
    assert rates_of(outlook(scale=0.2, history_days=30.0)).changes != ()


def test_a_halted_market_keeps_its_tiers_and_says_why() -> None:
    found = recommend({"SOL": CURRENT}, [outlook(daily_volume=0.0)], {"SOL": needed(0.05)}, {}, POLICY, now=NOW)
    assert found.recommendations == ()
    (failure,) = found.failures
    assert (failure.reason, failure.subject) == (FailureReason.MISSING_MARK, "SOL")
    assert "does not trade" in failure.message


def test_one_bad_market_does_not_spoil_another() -> None:
    names = ("ADA", "BTC", "DOT", "ETC", "SOL", "XRP")
    current = {name: CURRENT._replace(market=name) for name in names}
    unknown = outlook("ETC")
    unknown = unknown._replace(sides=(unknown.sides[0]._replace(margin=np.full((2, 2), np.nan)),))
    outlooks = [outlook("SOL", daily_volume=math.nan), outlook("BTC"), outlook("ADA"), outlook("DOT"), unknown]
    rates_needed = {"SOL": 0.05, "BTC": 0.05, "ADA": math.nan, "ETC": 0.05, "XRP": 0.05}
    requirements = {name: needed(rate) for name, rate in rates_needed.items()}
    found = recommend(current, outlooks, requirements, {}, POLICY, now=NOW)
    assert [(made.market, made.kind) for made in found.recommendations] == [
        ("BTC", "rates"),
        ("BTC", "position_limits"),
    ]
    expected = {
        "ADA": (FailureReason.OUT_OF_RANGE, "requirement of ADA is nan"),
        "DOT": (FailureReason.MISSING_PARAMETER, "no requirement for DOT: its tiers stay"),
        "ETC": (FailureReason.OUT_OF_RANGE, "rates of ETC, long: margin at 0.33"),
        "SOL": (FailureReason.MISSING_MARK, "daily_volume of SOL is not known"),
        "XRP": (FailureReason.MISSING_PARAMETER, "no forecast for XRP"),
    }
    assert {failure.subject: failure.reason for failure in found.failures} == {
        name: reason for name, (reason, _) in expected.items()
    }
    assert all(failure.message.startswith(expected[failure.subject][1]) for failure in found.failures)


def test_wrong_requests_are_refused() -> None:
    def ask(current: Ladder, *outlooks: MarketOutlook) -> None:
        recommend({current.market: current}, outlooks, {"SOL": needed(0.05)}, {}, POLICY, now=NOW)

    with pytest.raises(ConfigurationError, match=r"'SOLL': no such market .*did you mean 'SOL'"):
        ask(CURRENT, outlook("SOLL"))
    with pytest.raises(ConfigurationError, match="'SOL' is there twice"):
        ask(CURRENT, outlook(), outlook())
    falling = Ladder("SOL", (CURRENT.tiers[0], CURRENT.tiers[1]._replace(maintenance_bps=300)))
    with pytest.raises(ConfigurationError, match=r"tier 2 of SOL: its rates .* fall below"):
        ask(falling, outlook())


def test_an_open_last_bracket_has_no_limit_to_recommend() -> None:
    open_ended = Ladder("SOL", (CURRENT.tiers[0], CURRENT.tiers[1]._replace(notional_cap=None)))
    assert recommend_position_limit(open_ended, outlook(), Standing(), POLICY, now=NOW) is None
    # priced like a position of the limit that the market would bear, here the same 60 million
    closed = wished_ladder(CURRENT, outlook(), POLICY)
    wished = wished_ladder(open_ended, outlook(), POLICY)
    assert [tier[2:] for tier in wished.tiers] == [tier[2:] for tier in closed.tiers]
    assert wished.tiers[-1].notional_cap is None


def test_a_limit_leaves_its_own_bracket_there() -> None:
    made = recommend_position_limit(CURRENT, outlook(daily_volume=1e5), Standing(NOW, None, 10**12), POLICY, now=NOW)
    assert made is not None
    assert Reason.WAY_OUT in made.reasons
    assert made.figures[0].value == 1_000_001


# ---- over time -------------------------------------------------------------------------------------------------------


def run(
    ladder: Ladder, records: pa.Table, market: MarketOutlook, at: datetime, *, apply: bool = True
) -> tuple[Ladder, pa.Table, Recommendation]:
    """One run: what the records say, the recommendation, its rows; governance applies it at once, or not at all."""
    figures = [tier.maintenance_bps for tier in ladder.tiers] + [tier.initial_bps for tier in ladder.tiers]
    known = standings(records, {("SOL", "rates"): figures}, POLICY.review, now=at)
    made = recommend_rates(ladder, market, needed(0.01), known.get(("SOL", "rates"), Standing()), POLICY, now=at)
    rows = recommendation_rows(Outcome((made,), ()), ORIGIN, POLICY)
    return applied(ladder, made, now=at) if apply else ladder, pa.concat_tables([records, rows]), made


NOTHING = RECOMMENDATIONS.empty_table()
WISHED = wished_ladder(CURRENT, outlook(), POLICY)


def test_a_wick_moves_a_tier_by_one_step_at_most() -> None:
    ladder, records, first = run(WISHED, NOTHING, outlook(), NOW)
    assert not first.changes
    # one run sees 40 % more danger, the following ones what was there before
    ladder, records, jump = run(ladder, records, outlook(scale=0.07), NOW + 6 * HOUR)
    assert all(0 <= figure.value - figure.previous <= 200 for figure in jump.figures)
    assert jump.changes
    high = ladder
    for hours in range(12, 7 * 24, 6):
        ladder, records, made = run(ladder, records, outlook(), NOW + hours * HOUR)
        assert not made.changes
    assert ladder == high
    for day in range(8, 40):
        ladder, records, made = run(ladder, records, outlook(), NOW + day * DAY)
    within = [
        abs(figure.value - figure.wish) * 10 <= figure.previous or figure.value == figure.wish
        for figure in made.figures
    ]
    assert all(within)


def test_a_collapse_is_followed_within_a_run() -> None:
    ladder, records, _ = run(WISHED, NOTHING, outlook(), NOW)
    ladder, records, made = run(ladder, records, outlook(scale=0.07), NOW + 6 * HOUR)
    assert Reason.WAY_OUT not in made.reasons
    # the tier was raised an hour ago, and still follows
    ladder, records, made = run(ladder, records, outlook(scale=0.3), NOW + 7 * HOUR)
    assert Reason.WAY_OUT in made.reasons
    wished = wished_ladder(CURRENT, outlook(scale=0.3), POLICY)
    assert ladder == wished


def test_a_small_rise_is_held_for_three_days_and_no_longer() -> None:
    ladder, records, market = WISHED, NOTHING, outlook(scale=0.0525)
    moved = []
    for hours in range(0, 90, 6):
        ladder, records, made = run(ladder, records, market, NOW + hours * HOUR)
        moved.append(bool(made.changes))
    assert moved.index(True) * 6 == 72
    assert ladder == wished_ladder(CURRENT, market, POLICY)


def test_standings_read_what_happened() -> None:
    ladder, records, made = run(CURRENT, NOTHING, outlook(), NOW, apply=False)
    assert made.changes
    in_force: dict[Any, list[int]] = {("SOL", "rates"): [400, 1500, 900, 2000]}

    def known(now: datetime, rows: pa.Table = records) -> Standing:
        return standings(rows, in_force, POLICY.review, now=now)[("SOL", "rates")]

    # not applied: no change, and the wish has been tighter since
    wish = made.figures[0].wish
    assert known(NOW + HOUR) == Standing(None, NOW, wish)
    # the same record twice, rows of other markets and of the future change nothing
    assert known(NOW + HOUR, pa.concat_tables([records, records])) == Standing(None, NOW, wish)
    assert standings(records, {("BTC", "rates"): [1]}, POLICY.review, now=NOW) == {}
    assert standings(records, in_force, POLICY.review, now=NOW - HOUR) == {}
    # other figures are in force: the change counts from the run that sees it first
    in_force[("SOL", "rates")] = values(made)
    assert known(NOW + HOUR).changed_at == NOW + HOUR
    ladder = applied(CURRENT, made, now=NOW)
    _, records, _ = run(ladder, records, outlook(), NOW + HOUR, apply=False)
    assert known(NOW + DAY, records).changed_at == NOW + HOUR
    # a wish older than the window says nothing of how fast danger grows
    assert known(NOW + 6 * DAY, records).calmest is None


# ---- collateral ------------------------------------------------------------------------------------------------------


def test_collateral_weights_go_the_same_way() -> None:
    in_force = (CollateralTier(0.0, 1e6, 9_500, 9_000), CollateralTier(1e6, 6e7, 8_000, 7_500))
    wish = collateral_tiers("SOL", rates("long", 0.2), SIZE, (1e6, 6e7), POLICY)
    made = recommend_weights("SOL", in_force, wish, Standing(), POLICY, now=NOW, history_days=400.0, model="learned")
    assert made.kind == "collateral_weights"
    for figure in made.figures:
        assert figure.value == min(max(figure.wish, figure.previous - 500), figure.previous + 250)
    with pytest.raises(ConfigurationError, match="other slices"):
        recommend_weights("SOL", in_force[:1], wish, Standing(), POLICY, now=NOW, history_days=400.0, model="learned")


def test_a_broken_peg_is_marked_down_at_once() -> None:
    law, moves = DefaultLaw(0.5, 1.5, 4.0, 0.9, 0.3), PegMoves(0.0005, 4.0)

    def tiers(discount: float) -> tuple[CollateralTier, ...]:
        return (CollateralTier(0.0, 1e9, *peg_weights("USDX", law, moves, POLICY, discount=discount)),)

    calm = tiers(0.0)
    standing = Standing(NOW - HOUR, None, calm[0].maintenance_weight_bps)
    made = recommend_weights("USDX", calm, tiers(0.05), standing, POLICY, now=NOW, history_days=400.0, model="learned")
    assert Reason.WAY_OUT in made.reasons
    assert values(made)[0] < calm[0].maintenance_weight_bps - 500


# ---- what leaves the house -------------------------------------------------------------------------------------------


def outcome() -> Outcome:
    current = {name: CURRENT._replace(market=name) for name in ("SOL", "BTC", "XRP")}
    outlooks = [outlook("SOL"), outlook("BTC", scale=0.02)]
    return recommend(current, outlooks, dict.fromkeys(current, needed(0.05)), {}, POLICY, now=NOW)


def only_integers_and_text(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and only_integers_and_text(one) for key, one in value.items())
    if isinstance(value, list):
        return all(only_integers_and_text(one) for one in value)
    return value is None or (isinstance(value, int | str) and not isinstance(value, bool))


def test_the_document_has_what_governance_needs() -> None:
    content = governance_document(outcome(), ORIGIN, POLICY)
    document = read_document(content, now=NOW + HOUR)
    assert only_integers_and_text(document)
    assert (document["timestamp"], document["expires_at"]) == (
        "2024-06-30T00:00:00.000000Z",
        "2024-06-30T06:00:00.000000Z",
    )
    assert document["inputs"] == dict(ORIGIN.inputs)
    assert document["model"] == {"name": "learned", "sha256": "a" * 64}
    assert document["policy_sha256"] == POLICY.digest()
    assert [failure["market"] for failure in document["failures"]] == ["XRP"]
    in_order = sorted(outcome().recommendations, key=lambda made: (made.market, made.kind))
    changes = [(made, figure) for made in in_order for figure in made.changes]
    assert len(document["updates"]) == len(changes) > 3
    for update, (made, figure) in zip(document["updates"], changes, strict=True):
        assert update["market"] == made.market
        assert update["update_type"] == f"{figure.parameter}.tier_{figure.tier}"
        assert len(update["update_type"]) <= 64
        assert (update["new_value"], update["previous_value"]) == (figure.value, figure.previous)
        assert update["new_value"] > 0
        assert update["additional_data"]["wished_value"] == figure.wish
        assert update["reference_id"].startswith(document["reference_id"])


def test_equal_content_is_equal_bytes() -> None:
    content = governance_document(outcome(), ORIGIN, POLICY)
    turned = outcome()
    turned = Outcome(turned.recommendations[::-1], turned.failures[::-1])
    inputs = dict(reversed(list(ORIGIN.inputs.items())))
    assert governance_document(turned, ORIGIN._replace(inputs=inputs), POLICY) == content
    assert content == json.dumps(json.loads(content), sort_keys=True, separators=(",", ":")).encode() + b"\n"
    other = ORIGIN._replace(model_sha256="d" * 64)
    assert governance_document(outcome(), other, POLICY) != content


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c[:-40], "not complete JSON"),
        (lambda c: b"\xff" + c, "not complete JSON"),
        (lambda c: b"[]", "expected schema"),
        (lambda c: c.replace(b'"version":1', b'"version":2'), "expected schema crossmargin.recommendation version 1"),
        (lambda c: c.replace(b'"new_value":', b'"new_value":1', 1), "it was altered"),
        (lambda c: c.replace(b'"learned"', b'"another"'), "it was altered"),
        (lambda c: c.replace(b'"updates"', b'"update"'), "a field is missing"),
        (lambda c: c.replace(b'-00001"', b'-00002"'), "it was altered"),
    ],
)
def test_a_damaged_document_is_refused(damage: Any, message: str) -> None:
    content = damage(governance_document(outcome(), ORIGIN, POLICY))
    with pytest.raises(ConfigurationError, match=message):
        read_document(content, now=NOW)


def test_an_expired_document_is_refused() -> None:
    content = governance_document(outcome(), ORIGIN, POLICY)
    read_document(content, now=NOW + 6 * HOUR - timedelta(seconds=1))
    for at in (NOW - HOUR, NOW + 6 * HOUR):
        with pytest.raises(ConfigurationError, match="holds from 2024-06-30T00:00"):
            read_document(content, now=at)


def test_wrong_origins_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="hash of 'model' is no SHA-256"):
        governance_document(outcome(), ORIGIN._replace(model_sha256="learned"), POLICY)
    with pytest.raises(ConfigurationError, match="there is none"):
        governance_document(Outcome((), ()), ORIGIN, POLICY)
    early = outcome().recommendations[0]._replace(created_at=NOW - HOUR)
    with pytest.raises(ConfigurationError, match="different times"):
        governance_document(Outcome((early, *outcome().recommendations[1:]), ()), ORIGIN, POLICY)


def test_rows_carry_every_figure_and_the_same_reference() -> None:
    made = outcome()
    rows = recommendation_rows(made, ORIGIN, POLICY)
    assert rows.schema.equals(RECOMMENDATIONS, check_metadata=True)
    assert rows.num_rows == sum(len(one.figures) for one in made.recommendations)
    document = read_document(governance_document(made, ORIGIN, POLICY), now=NOW)
    assert set(rows["reference_id"].to_pylist()) == {document["reference_id"]}
    moved = [row for row in rows.to_pylist() if row["new_value"] != row["previous_value"]]
    assert [(row["market"], f"{row['parameter']}.tier_{row['tier']}", row["new_value"]) for row in moved] == [
        (update["market"], update["update_type"], update["new_value"]) for update in document["updates"]
    ]
    assert {json.loads(row["inputs"])["snapshot"] for row in moved} == {"c" * 64}
