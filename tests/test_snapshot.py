"""The snapshot: every check with its reason, what becomes incomplete, and a hash of the content alone."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from aggregator.errors import Failure, FailureReason
from aggregator.rule_forms import Component, Fixed, TieredNotional, Verdict, WeightedValue, component_rows
from aggregator.schema.canonical import CANONICAL, KEYS, MARK_FIELDS
from aggregator.schema.casting import table_from_rows
from aggregator.snapshot import Snapshot, take_snapshot

NOW = datetime(2024, 6, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
EXPIRY = NOW + timedelta(days=30)
HOSTILE = [
    "'; DROP TABLE accounts; --",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "a|b|c",
    "line\nbreak",
    "nul\x00byte",
    "\u202egnp.exe",
    "Ωmega 🜍",
    " ",
    "x" * 10_000,
    "{0}%s{row}",
    '"quoted"',
]

Rows = dict[str, list[dict[str, Any]]]


def desk(venue: str = "binance", owner: str = "east") -> Rows:
    """One account with a balance, a debt, a perpetual, an option and an order, complete by every check."""
    account, rules, perp, option = f"{venue}:{owner}", f"{venue}:rules", f"{venue}:BTC-PERP", f"{venue}:BTC-CALL"
    components = [
        Component(side="equity", parameters=WeightedValue()),
        Component(side="requirement", parameters=TieredNotional(), group_by="position"),
        Component(side="requirement", parameters=Fixed(basis="reported")),
        Component(side="verdict", parameters=Verdict(liquidates_when="below")),
    ]
    mark = {"venue": venue, "as_of": NOW, "source": "test"}
    return {
        "accounts": [
            {
                "account_id": account, "node": account, "venue": venue, "owner": owner, "margin_mode": "cross",
                "rule_set": rules, "settlement_asset": "USDT", "event_at": NOW, "received_at": NOW,
            }
        ],
        "balances": [
            {"account_id": account, "asset_id": "USDT", "side": "asset", "quantity": Decimal("1000.5"),
             "collateral_enabled": True},
            {"account_id": account, "asset_id": "BTC", "side": "liability", "quantity": Decimal("0.1"),
             "collateral_enabled": False},
        ],
        "positions": [
            {"account_id": account, "instrument_id": perp, "side_mode": "net", "quantity": Decimal("-0.5"),
             "entry_price": Decimal(60000), "leverage": Decimal(10)},
            {"account_id": account, "instrument_id": option, "side_mode": "long", "quantity": Decimal(1)},
        ],
        "open_orders": [
            {"order_id": f"{venue}:1", "account_id": account, "instrument_id": perp, "side": "buy",
             "remaining_quantity": Decimal(1), "reduce_only": False},
        ],
        "assets": [
            {"asset_id": "BTC", "symbol": "BTC", "risk_factor": "BTC", "multiplier": Decimal(1)},
            {"asset_id": "USDT", "symbol": "USDT", "peg_of": "USDT", "multiplier": Decimal(1)},
        ],
        "instruments": [
            {"instrument_id": perp, "venue": venue, "symbol": "BTC-PERP", "kind": "perp", "underlying": "BTC",
             "settlement_asset": "USDT", "payoff": "linear", "contract_size": Decimal(1)},
            {"instrument_id": option, "venue": venue, "symbol": "BTC-CALL", "kind": "option", "underlying": "BTC",
             "settlement_asset": "USDT", "payoff": "linear", "contract_size": Decimal(1), "strike": Decimal(70000),
             "expiry": EXPIRY, "option_type": "call"},
        ],
        "marks": [
            {"subject": perp, "field": "mark", "value": 61000.0} | mark,
            {"subject": "BTC", "field": "index", "value": 61010.0, "confidence": 0.99} | mark,
            {"subject": "USDT", "field": "index", "value": 0.9995} | mark,
            {"subject": perp, "field": "funding_rate", "value": -0.0001} | mark,
        ],
        "market_state": [{"venue": venue, "market": perp, "field": "open_interest", "value": 5.0, "source": "test"}],
        "rule_sets": component_rows(rules, components, source="test"),
        "margin_tiers": [
            {"rule_set": rules, "market": perp, "tier": tier, "notional_floor": Decimal(floor),
             "initial_rate": Decimal("0.1"), "maintenance_rate": Decimal(rate), "deduction": Decimal(0),
             "source": "venue"}
            for tier, floor, rate in ((1, 0, "0.01"), (2, 50_000, "0.02"), (10, 250_000, "0.05"))
        ],
        "collateral_tiers": [
            {"rule_set": rules, "asset_id": asset, "emode": "", "tier": 1, "floor": Decimal(0), "source": "test"}
            | {f"{side}_weight_{level}": Decimal(weight) for side, weight in (("asset", "0.9"), ("liability", "1"))
               for level in ("initial", "maintenance")}
            for asset in ("BTC", "USDT")
        ],
        "routes": [
            {"source_node": account, "target_node": "elsewhere", "asset_id": "USDT", "transfer_median_s": 60.0,
             "transfer_p99_s": 600.0, "fee_rate": 0.0, "failure_probability": 0.01},
        ],
    }  # fmt: skip


def tables(rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, pa.Table]:
    return {name: table_from_rows(name, entries) for name, entries in rows.items()}


def taken(rows: Rows, failures: list[Failure] | None = None, **options: Any) -> Snapshot:
    return take_snapshot([tables(rows)], failures or [], **{"as_of": NOW} | options)


def reasons(snapshot: Snapshot) -> list[FailureReason]:
    return [failure.reason for failure in snapshot.failures]


def only_failure(snapshot: Snapshot) -> Failure:
    assert len(snapshot.failures) == 1, snapshot.failures
    return snapshot.failures[0]


def test_a_complete_desk_passes_whole() -> None:
    rows = desk()
    snapshot = taken(rows, max_age=HOUR, max_mark_gap=0.02)
    assert snapshot.failures == ()
    assert snapshot.incomplete == frozenset()
    assert set(snapshot.tables) == set(CANONICAL) - {"failures"}
    assert {name: len(entries) for name, entries in snapshot.tables.items()} == {
        name: len(entries) for name, entries in rows.items()
    }


def test_rows_are_sorted_by_key_and_numbers_of_a_key_as_numbers() -> None:
    rows = desk()
    for entries in rows.values():
        entries.reverse()
    snapshot = taken(rows)
    assert [row["tier"] for row in snapshot.tables["margin_tiers"]] == [1, 2, 10]
    assert [row["component_no"] for row in snapshot.tables["rule_sets"]] == [0, 1, 2, 3]
    assert [row["asset_id"] for row in snapshot.tables["balances"]] == ["BTC", "USDT"]


def test_nothing_at_all_is_an_empty_snapshot_without_a_time() -> None:
    snapshot = take_snapshot([])
    assert snapshot.as_of is None
    assert not any(snapshot.tables.values())
    assert take_snapshot([{}]).content_hash == snapshot.content_hash


# ---- closed lists and signs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "row", "change", "reason"),
    [
        ("accounts", 0, {"margin_mode": "crossed"}, FailureReason.MALFORMED),
        ("balances", 0, {"side": "credit"}, FailureReason.MALFORMED),
        ("balances", 0, {"quantity": Decimal("-0.000000000000000001")}, FailureReason.OUT_OF_RANGE),
        ("positions", 0, {"side_mode": "both"}, FailureReason.MALFORMED),
        ("positions", 0, {"leverage": Decimal(0)}, FailureReason.OUT_OF_RANGE),
        ("positions", 0, {"leverage": Decimal(-3)}, FailureReason.OUT_OF_RANGE),
        ("open_orders", 0, {"side": "long"}, FailureReason.MALFORMED),
        ("open_orders", 0, {"remaining_quantity": Decimal(-1)}, FailureReason.OUT_OF_RANGE),
    ],
)
def test_a_bad_row_of_an_account_is_taken_out_and_its_account_is_incomplete(
    table: str, row: int, change: dict[str, Any], reason: FailureReason
) -> None:
    rows = desk()
    rows[table][row] |= change
    snapshot = taken(rows)
    first = snapshot.failures[0]
    assert (first.reason, first.venue, first.path, first.account_id) == (reason, "binance", table, "binance:east")
    assert len(snapshot.tables[table]) == len(rows[table]) - 1
    assert snapshot.incomplete == {"binance:east"}


@pytest.mark.parametrize(
    ("table", "row", "change", "reason"),
    [
        ("instruments", 0, {"kind": "swap"}, FailureReason.MALFORMED),
        ("instruments", 0, {"payoff": "quanto"}, FailureReason.MALFORMED),
        ("instruments", 0, {"contract_size": Decimal(0)}, FailureReason.OUT_OF_RANGE),
        ("instruments", 1, {"option_type": "C"}, FailureReason.MALFORMED),
        ("instruments", 1, {"strike": None}, FailureReason.MISSING_FIELD),
        ("instruments", 1, {"expiry": None}, FailureReason.MISSING_FIELD),
        ("instruments", 1, {"option_type": None}, FailureReason.MISSING_FIELD),
        ("instruments", 1, {"strike": Decimal(0)}, FailureReason.OUT_OF_RANGE),
        ("marks", 0, {"field": "last"}, FailureReason.MALFORMED),
        ("marks", 0, {"value": 0.0}, FailureReason.OUT_OF_RANGE),
        ("marks", 1, {"confidence": 1.01}, FailureReason.OUT_OF_RANGE),
        ("marks", 1, {"confidence": -0.01}, FailureReason.OUT_OF_RANGE),
        ("rule_sets", 0, {"side": "asset"}, FailureReason.MALFORMED),
        ("rule_sets", 0, {"level": "all"}, FailureReason.MALFORMED),
        ("rule_sets", 0, {"group_by": "chain"}, FailureReason.MALFORMED),
        ("rule_sets", 1, {"form": "haircut"}, FailureReason.UNSUPPORTED),
        ("rule_sets", 1, {"parameters": '{"initial": "levrage"}'}, FailureReason.MALFORMED),
        ("rule_sets", 1, {"parameters": "{"}, FailureReason.MALFORMED),
        ("margin_tiers", 0, {"source": "guess"}, FailureReason.MALFORMED),
        ("margin_tiers", 0, {"maintenance_rate": Decimal("-0.01")}, FailureReason.OUT_OF_RANGE),
        ("margin_tiers", 0, {"maintenance_rate": Decimal("1.01")}, FailureReason.OUT_OF_RANGE),
        ("margin_tiers", 0, {"initial_rate": Decimal(0)}, FailureReason.OUT_OF_RANGE),
        ("margin_tiers", 0, {"initial_rate": Decimal(2)}, FailureReason.OUT_OF_RANGE),
    ],
)
def test_a_bad_reference_row_is_taken_out_with_its_reason(
    table: str, row: int, change: dict[str, Any], reason: FailureReason
) -> None:
    rows = desk()
    rows[table][row] |= change
    snapshot = taken(rows)
    first = snapshot.failures[0]
    assert (first.reason, first.path, first.account_id) == (reason, table, None)
    assert first.subject
    assert len(snapshot.tables[table]) == len(rows[table]) - 1


def test_every_field_of_the_closed_list_is_accepted_and_prices_must_be_positive() -> None:
    signed = {"rate", "borrow_rate", "funding_rate", "delta", "spread", "adv", "depth_bid", "depth_ask"}
    rows = desk()
    rows["marks"] = [
        {"venue": "binance", "subject": "X", "field": field, "value": -0.5, "source": "test"} for field in MARK_FIELDS
    ]
    snapshot = taken(rows)
    assert {row["field"] for row in snapshot.tables["marks"]} == signed
    assert {failure.reason for failure in snapshot.failures} == {FailureReason.OUT_OF_RANGE}
    for row in rows["marks"]:
        row["value"] = 0.5
    assert len(taken(rows).tables["marks"]) == len(MARK_FIELDS)


def test_an_option_may_be_worth_nothing_and_a_perp_may_not() -> None:
    rows = desk()
    option = rows["instruments"][0] | {
        "instrument_id": "binance:OPT", "kind": "option", "strike": Decimal(9), "expiry": NOW, "option_type": "put",
    }  # fmt: skip
    rows["instruments"].append(option)
    perp = rows["instruments"][0]["instrument_id"]
    rows["marks"] = [
        {"venue": "binance", "subject": subject, "field": "mark", "value": 0.0, "source": "test"}
        for subject in ("binance:OPT", perp)
    ]
    snapshot = taken(rows)
    assert [row["subject"] for row in snapshot.tables["marks"]] == ["binance:OPT"]
    assert [(f.reason, f.subject) for f in snapshot.failures] == [(FailureReason.OUT_OF_RANGE, perp)]


# ---- tables of the wrong shape ---------------------------------------------------------------------------------------


def of_version_9(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({b"crossmargin.table": b"marks", b"crossmargin.version": b"9"})


def test_a_wrong_version_in_one_venues_table_does_not_stop_the_others() -> None:
    bad = tables(desk("binance"))
    bad["positions"] = of_version_9(bad["positions"])
    snapshot = take_snapshot([bad, tables(desk("derive", "west"))], as_of=NOW)
    assert {row["account_id"] for row in snapshot.tables["positions"]} == {"derive:west"}
    assert snapshot.incomplete == {"binance:east"}
    assert snapshot.failures[0].venue == "binance"
    assert "version '9'" in snapshot.failures[0].message
    assert {failure.reason for failure in snapshot.failures} == {FailureReason.MALFORMED}


def test_a_refused_table_of_accounts_concerns_those_that_it_names() -> None:
    rows = desk()
    rows["accounts"].append(rows["accounts"][0] | {"account_id": "binance:idle"})
    batch = tables(rows)
    batch["balances"] = batch["balances"].append_column("colour", pa.array(["red", "blue"]))
    snapshot = take_snapshot([batch], as_of=NOW)
    assert snapshot.incomplete == {"binance:east"}
    assert [failure.account_id for failure in snapshot.failures] == [None, "binance:east"]


@pytest.mark.parametrize("name", ["marks", "rule_sets", "margin_tiers", "collateral_tiers", "instruments"])
def test_a_refused_reference_table_concerns_every_account_of_its_batch(name: str) -> None:
    bad = tables(desk("binance"))
    bad[name] = bad[name].drop_columns([bad[name].column_names[-1]]).append_column("zzz", pa.nulls(bad[name].num_rows))
    snapshot = take_snapshot([bad, tables(desk("derive", "west"))], as_of=NOW)
    assert snapshot.incomplete == {"binance:east"}


def test_a_refused_account_table_without_readable_ids_still_leaves_a_failure() -> None:
    rows = desk()
    batch = tables(rows)
    batch["accounts"] = batch["accounts"].rename_columns(
        ["id" if name == "account_id" else name for name in batch["accounts"].column_names]
    )
    snapshot = take_snapshot([batch], as_of=NOW)
    assert snapshot.failures[0].reason is FailureReason.MISSING_FIELD
    assert snapshot.incomplete == {"binance:east"}, "its balances are of an account that is not there"


def test_a_null_in_a_required_column_refuses_the_table() -> None:
    batch = tables(desk())
    column = pa.array([None] * batch["marks"].num_rows, pa.float64())
    loose = batch["marks"].schema.field("value").with_nullable(True)
    batch["marks"] = batch["marks"].set_column(batch["marks"].schema.get_field_index("value"), loose, column)
    snapshot = take_snapshot([batch], as_of=NOW)
    assert snapshot.failures[0].reason is FailureReason.MISSING_FIELD
    assert snapshot.tables["marks"] == ()


def test_a_mark_that_is_no_number_never_gets_in() -> None:
    batch = tables(desk())
    marks = batch["marks"]
    at = marks.schema.get_field_index("value")
    batch["marks"] = marks.set_column(at, marks.schema.field(at), pa.array([float("nan"), 1.0, 1.0, 1.0]))
    snapshot = take_snapshot([batch], as_of=NOW)
    assert snapshot.failures[0].reason is FailureReason.NOT_A_NUMBER
    assert snapshot.tables["marks"] == ()
    assert snapshot.incomplete == {"binance:east"}


# ---- duplicates ------------------------------------------------------------------------------------------------------

REFERENCE = ("assets", "instruments", "marks", "market_state", "rule_sets", "margin_tiers", "collateral_tiers")


@pytest.mark.parametrize("table", sorted(set(KEYS) - set(REFERENCE)))
@pytest.mark.parametrize("copies", [2, 3])
def test_all_copies_of_a_row_are_rejected_even_when_they_agree(table: str, copies: int) -> None:
    rows = desk()
    rows[table] += [dict(rows[table][0]) for _ in range(copies - 1)]
    snapshot = taken(rows)
    duplicate = [failure for failure in snapshot.failures if failure.reason is FailureReason.DUPLICATE]
    assert len(duplicate) == 1
    assert f"{copies} rows of {table} with" in duplicate[0].message
    assert len(snapshot.tables[table]) == len(desk()[table]) - 1
    assert ("binance:east" in snapshot.incomplete) == (table != "routes")


@pytest.mark.parametrize("table", REFERENCE)
def test_reference_rows_that_agree_in_full_are_one_row(table: str) -> None:
    rows = desk()
    rows[table] += [dict(row) for row in rows[table]]
    snapshot = taken(rows)
    assert snapshot.failures == ()
    assert snapshot.content_hash == taken(desk()).content_hash


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("assets", {"symbol": "other"}),
        ("instruments", {"contract_size": Decimal(2)}),
        ("marks", {"value": 60999.0}),
        ("market_state", {"value": 6.0}),
        ("rule_sets", {"level": "initial"}),
        ("margin_tiers", {"deduction": Decimal(1)}),
        ("collateral_tiers", {"floor": Decimal(1)}),
    ],
)
def test_reference_rows_that_disagree_are_all_rejected(table: str, change: dict[str, Any]) -> None:
    rows = desk()
    rows[table].append(rows[table][0] | change)
    snapshot = taken(rows)
    assert FailureReason.DUPLICATE in reasons(snapshot)
    assert len(snapshot.tables[table]) == len(desk()[table]) - 1


def test_copies_in_two_batches_are_duplicates_too() -> None:
    snapshot = take_snapshot([tables(desk()), tables({"balances": desk()["balances"][:1]})], as_of=NOW)
    assert only_failure(snapshot).reason is FailureReason.DUPLICATE


@pytest.mark.parametrize("swapped", [False, True])
def test_one_order_id_on_two_accounts_makes_both_incomplete_in_any_order(swapped: bool) -> None:
    rows = desk()
    rows["accounts"].append(rows["accounts"][0] | {"account_id": "binance:west"})
    rows["open_orders"].append(rows["open_orders"][0] | {"account_id": "binance:west"})
    if swapped:
        rows["open_orders"].reverse()
    assert taken(rows).incomplete == {"binance:east", "binance:west"}


def test_a_mark_of_an_account_and_one_of_the_venue_are_not_copies() -> None:
    rows = desk()
    own = rows["marks"][0] | {"account_id": "binance:east", "value": 61001.0}
    rows["marks"].append(own)
    assert taken(rows).failures == ()
    rows["marks"].append(own | {"value": 61002.0})
    snapshot = taken(rows)
    assert only_failure(snapshot).reason is FailureReason.DUPLICATE
    assert snapshot.incomplete == {"binance:east"}


# ---- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "change", "reason", "subject"),
    [
        ("balances", {"asset_id": "DOGE"}, FailureReason.UNKNOWN_ASSET, "DOGE"),
        ("positions", {"instrument_id": "binance:DOGE"}, FailureReason.UNKNOWN_MARKET, "binance:DOGE"),
        ("open_orders", {"instrument_id": "binance:DOGE"}, FailureReason.UNKNOWN_MARKET, "binance:DOGE"),
        ("accounts", {"rule_set": "binance:none"}, FailureReason.MISSING_PARAMETER, "binance:none"),
        ("accounts", {"settlement_asset": "BUSD"}, FailureReason.UNKNOWN_ASSET, "binance:rules"),
    ],
)
def test_a_reference_to_nothing_makes_the_account_incomplete(
    table: str, change: dict[str, Any], reason: FailureReason, subject: str
) -> None:
    rows = desk()
    rows[table][0] |= change
    snapshot = taken(rows)
    failure = only_failure(snapshot)
    assert (failure.reason, failure.account_id, failure.subject) == (reason, "binance:east", subject)


@pytest.mark.parametrize("table", ["balances", "positions", "open_orders"])
def test_a_row_of_an_account_that_is_not_there_is_inconsistent(table: str) -> None:
    rows = desk()
    rows[table][0] |= {"account_id": "binance:nobody"}
    failure = only_failure(taken(rows))
    assert (failure.reason, failure.account_id) == (FailureReason.INCONSISTENT, "binance:nobody")


@pytest.mark.parametrize("column", ["underlying", "settlement_asset"])
def test_a_position_needs_the_assets_of_its_instrument(column: str) -> None:
    rows = desk()
    rows["instruments"][1] |= {column: "DOGE"}
    failure = only_failure(taken(rows))
    assert failure.reason is FailureReason.UNKNOWN_ASSET
    assert column in failure.message
    assert failure.account_id == "binance:east"


def test_an_account_in_plain_dollars_needs_no_dollar_asset() -> None:
    rows = desk()
    rows["accounts"][0] |= {"settlement_asset": "USD"}
    assert taken(rows).failures == ()


def test_one_incomplete_account_never_spoils_another() -> None:
    rows = desk("binance", "east")
    rows["accounts"].append(rows["accounts"][0] | {"account_id": "binance:west"})
    rows["balances"][0] |= {"asset_id": "DOGE"}
    assert taken(rows).incomplete == {"binance:east"}


# ---- what rejected rows mean for those who need them -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "row", "change"),
    [
        ("rule_sets", 2, {"form": "haircut"}),
        ("rule_sets", 1, {"parameters": "{}}"}),
        ("margin_tiers", 1, {"maintenance_rate": Decimal(2)}),
    ],
)
def test_an_account_whose_rules_lost_a_row_is_incomplete_and_not_computed_by_the_rest(
    table: str, row: int, change: dict[str, Any]
) -> None:
    rows = desk()
    rows[table][row] |= change
    snapshot = taken(rows)
    assert snapshot.incomplete == {"binance:east"}
    assert snapshot.failures[-1].reason is FailureReason.MISSING_PARAMETER
    assert snapshot.failures[-1].account_id == "binance:east"


def test_conflicting_weights_of_a_held_asset_make_the_account_incomplete() -> None:
    rows = desk()
    rows["collateral_tiers"].append(rows["collateral_tiers"][0] | {"asset_weight_initial": Decimal("0.5")})
    assert taken(rows).incomplete == {"binance:east"}


def test_a_lost_tier_or_weight_that_an_account_does_not_need_leaves_it_complete() -> None:
    rows = desk()
    rows["margin_tiers"].append(rows["margin_tiers"][0] | {"market": "binance:ETH-PERP", "initial_rate": Decimal(0)})
    rows["margin_tiers"].append(rows["margin_tiers"][0] | {"rule_set": "binance:other", "initial_rate": Decimal(0)})
    rows["collateral_tiers"] += [rows["collateral_tiers"][0] | {"asset_id": "ETH", "floor": Decimal(n)} for n in (1, 2)]
    snapshot = taken(rows)
    assert reasons(snapshot) == [FailureReason.OUT_OF_RANGE, FailureReason.OUT_OF_RANGE, FailureReason.DUPLICATE]
    assert snapshot.incomplete == frozenset()


@pytest.mark.parametrize(
    "change", [{"value": -1.0}, {"as_of": NOW - 3 * HOUR}, {"as_of": NOW + HOUR}, {"confidence": 2.0}]
)
def test_a_stable_whose_only_price_was_rejected_is_not_counted_at_par(change: dict[str, Any]) -> None:
    rows = desk()
    rows["marks"][2] |= change
    snapshot = taken(rows, max_age=HOUR)
    assert snapshot.incomplete == {"binance:east"}
    failure = snapshot.failures[-1]
    assert (failure.reason, failure.subject) == (FailureReason.MISSING_MARK, "USDT")


def test_a_rejected_price_is_not_replaced_by_another_field() -> None:
    rows = desk()
    rows["marks"].append(rows["marks"][2] | {"field": "oracle", "value": -1.0})
    assert taken(rows).incomplete == {"binance:east"}


def test_a_stable_without_any_price_stays_at_par() -> None:
    rows = desk()
    del rows["marks"][2]
    assert taken(rows).failures == ()


def test_a_rejected_stable_price_of_one_venue_concerns_no_other_venue() -> None:
    bad = desk("binance")
    bad["marks"][2] |= {"value": -1.0}
    snapshot = take_snapshot([tables(bad), tables(desk("derive", "west"))], as_of=NOW)
    assert snapshot.incomplete == {"binance:east"}


# ---- time ------------------------------------------------------------------------------------------------------------


def test_the_default_as_of_is_the_newest_time_of_an_account() -> None:
    rows = desk()
    rows["accounts"].append(
        rows["accounts"][0] | {"account_id": "binance:west", "received_at": NOW + HOUR, "event_at": None}
    )
    assert taken(rows, as_of=None).as_of == NOW + HOUR
    for row in rows["accounts"]:
        row["received_at"] = row["event_at"] = None
    snapshot = taken(rows, as_of=None, max_age=HOUR)
    assert snapshot.as_of is None
    assert snapshot.failures == ()


def test_age_is_judged_at_the_as_of_and_never_by_the_clock() -> None:
    assert taken(desk(), max_age=HOUR, as_of=NOW + HOUR).failures == ()
    late = taken(desk(), max_age=HOUR, as_of=NOW + HOUR + timedelta(seconds=1))
    assert set(reasons(late)) == {FailureReason.STALE, FailureReason.MISSING_MARK}
    assert late.tables["marks"] == ()
    assert late.incomplete == {"binance:east"}
    assert taken(desk(), max_age=None, as_of=NOW + 10_000 * HOUR).failures == ()


def test_a_stale_mark_is_taken_out_and_its_age_stated() -> None:
    rows = desk()
    rows["marks"][0] |= {"as_of": NOW - 2 * HOUR}
    snapshot = taken(rows, max_age=HOUR)
    failure = only_failure(snapshot)
    assert failure.reason is FailureReason.STALE
    assert "7200 s old, allowed are 3600 s" in failure.message
    assert failure.subject == "binance:BTC-PERP"
    assert len(snapshot.tables["marks"]) == 3


def test_a_stale_account_is_incomplete_by_its_event_time_even_when_just_received() -> None:
    rows = desk()
    rows["accounts"][0] |= {"event_at": NOW - 2 * HOUR, "received_at": NOW}
    assert taken(rows, max_age=HOUR).incomplete == {"binance:east"}
    rows["accounts"][0] |= {"event_at": None}
    assert taken(rows, max_age=HOUR).incomplete == frozenset()


def test_the_future_is_inconsistent_beyond_the_tolerance_of_a_clock() -> None:
    rows = desk()
    rows["marks"][0] |= {"as_of": NOW + timedelta(minutes=5)}
    rows["accounts"][0] |= {"event_at": NOW + timedelta(minutes=5)}
    assert taken(rows).failures == ()
    rows["marks"][0] |= {"as_of": NOW + timedelta(minutes=5, seconds=1)}
    rows["accounts"][0] |= {"event_at": NOW + timedelta(minutes=5, seconds=1)}
    snapshot = taken(rows)
    assert reasons(snapshot) == [FailureReason.INCONSISTENT, FailureReason.INCONSISTENT]
    assert "after the run's as-of" in snapshot.failures[0].message
    assert snapshot.incomplete == {"binance:east"}
    assert len(snapshot.tables["marks"]) == 3


# ---- marks of several venues -----------------------------------------------------------------------------------------


def two_venues(price: float) -> list[dict[str, pa.Table]]:
    other = desk("derive", "west")
    for number in (0, 1):
        other["marks"][number] |= {"value": price}
    return [tables(desk()), tables(other)]


def test_prices_further_apart_than_allowed_are_a_finding_that_stops_nobody() -> None:
    snapshot = take_snapshot(two_venues(61010.0 * 1.021), as_of=NOW, max_mark_gap=0.02)
    failure = only_failure(snapshot)
    assert (failure.reason, failure.subject, failure.account_id) == (FailureReason.INCONSISTENT, "BTC", None)
    assert "binance mark 61000" in failure.message
    assert "derive mark 62291" in failure.message or "derive index 62291" in failure.message
    assert "2.1%" in failure.message
    assert snapshot.incomplete == frozenset()
    assert len(snapshot.tables["marks"]) == 8


@pytest.mark.parametrize("price", [61010.0, 61000.0 * 1.0199, 61010.0 / 1.0199])
def test_prices_within_the_gap_are_no_finding(price: float) -> None:
    assert take_snapshot(two_venues(price), as_of=NOW, max_mark_gap=0.02).failures == ()


def test_a_mark_in_an_account_s_own_payload_is_compared_too() -> None:
    rows = desk()
    rows["marks"].append(rows["marks"][0] | {"account_id": "binance:east", "value": rows["marks"][0]["value"] / 2})
    failure = only_failure(taken(rows, max_mark_gap=0.02))
    assert "binance:east mark 30500" in failure.message


def test_without_a_bound_no_gap_is_looked_for() -> None:
    assert take_snapshot(two_venues(1.0), as_of=NOW).failures == ()


def test_a_perpetual_is_compared_where_a_venue_states_no_price_of_the_asset() -> None:
    batches = [desk(), desk("derive", "west")]
    del batches[1]["marks"][1]
    batches[1]["marks"][0] |= {"value": 70000.0}
    snapshot = take_snapshot([tables(rows) for rows in batches], as_of=NOW, max_mark_gap=0.02)
    assert "derive mark 70000" in only_failure(snapshot).message


def test_prices_inside_one_venue_are_compared_and_their_order_does_not_matter() -> None:
    rows = desk()
    for chain, price in (("base", 61010.0), ("optimism", 50000.0)):
        rows["assets"].append({"asset_id": f"BTC@{chain}", "symbol": "BTC", "risk_factor": "BTC", "multiplier": 1})
        rows["marks"].append(rows["marks"][1] | {"subject": f"BTC@{chain}", "value": price})
    other = tables(desk("derive", "west"))
    assert "22.0%" in only_failure(taken(rows, max_mark_gap=0.02)).message
    there = take_snapshot([tables(rows), other], as_of=NOW, max_mark_gap=0.02)
    rows["marks"].reverse()
    back = take_snapshot([other, tables(rows)], as_of=NOW, max_mark_gap=0.02)
    assert there.failures == back.failures
    assert there.content_hash == back.content_hash


# ---- failures of reading ---------------------------------------------------------------------------------------------


def test_failures_of_reading_are_kept_first_and_make_their_accounts_incomplete() -> None:
    read = [
        Failure(FailureReason.MALFORMED, "cut", "binance", "a.json", "x", "BTC", "binance:east"),
        Failure(FailureReason.UNREACHABLE, "no answer", "derive", "b.json"),
    ]
    rows = desk()
    rows["balances"][0] |= {"asset_id": "DOGE"}
    snapshot = taken(rows, read)
    assert list(snapshot.failures[:2]) == read
    assert len(snapshot.failures) == 3
    assert snapshot.incomplete == {"binance:east"}
    assert len(read) == 2, "the caller's list is left alone"


# ---- content hash ----------------------------------------------------------------------------------------------------


def test_the_hash_does_not_depend_on_the_order_of_rows_batches_or_failures() -> None:
    read = [Failure(FailureReason.STALE, "a", "binance"), Failure(FailureReason.STALE, "b", "derive")]
    rows, other = desk(), desk("derive", "west")
    rows["balances"][0] |= {"asset_id": "DOGE"}
    there = take_snapshot([tables(rows), tables(other)], read, as_of=NOW)
    for entries in (*rows.values(), *other.values()):
        entries.reverse()
    split = [{name: table} for name, table in reversed(tables(rows).items())]
    back = take_snapshot([tables(other), *split], read[::-1], as_of=NOW)
    assert back.content_hash == there.content_hash
    assert back.tables == there.tables


OTHER_WORDS = {
    ("accounts", "margin_mode"): "isolated",
    ("balances", "side"): "asset",
    ("positions", "side_mode"): "short",
    ("open_orders", "side"): "sell",
    ("instruments", "kind"): "future",
    ("instruments", "payoff"): "inverse",
    ("instruments", "option_type"): "put",
    ("marks", "field"): "spread",
    ("rule_sets", "side"): "equity",
    ("rule_sets", "level"): "initial",
    ("rule_sets", "group_by"): "position",
    ("rule_sets", "parameters"): '{"liquidates_when": "at_or_below"}',
    ("margin_tiers", "source"): "model",
}
"""Another word of each closed list: a rejected row would leave the tables, whatever was wrong with it."""


def test_the_hash_depends_on_every_value() -> None:
    """Change one value after another, in every column of every table; no two hashes are equal."""
    seen = {taken(desk()).content_hash}
    count = 1
    for name, schema in CANONICAL.items():
        if name == "failures":
            continue
        for field in schema:
            rows = desk()
            row = rows[name][-1]
            before = row.get(field.name)
            if pa.types.is_boolean(field.type):
                row[field.name] = not before
            elif pa.types.is_timestamp(field.type):
                row[field.name] = (before or NOW) + timedelta(microseconds=1)
            elif pa.types.is_decimal(field.type):
                row[field.name] = (before or Decimal(0)) + Decimal("1e-18")
            elif pa.types.is_floating(field.type):
                row[field.name] = before * (1 + 2**-52) if before else 0.5
            elif pa.types.is_integer(field.type):
                row[field.name] = (before or 0) + 1
            else:
                row[field.name] = OTHER_WORDS.get((name, field.name), f"{before or ''}x")
            seen.add(taken(rows).content_hash)
            count += 1
    assert len(seen) == count


def test_the_hash_keeps_the_last_digit_of_the_longest_decimal() -> None:
    rows = desk()
    rows["balances"][0] |= {"quantity": Decimal("12345678901234567890.123456789012345678")}
    one = taken(rows).content_hash
    rows["balances"][0] |= {"quantity": Decimal("12345678901234567890.123456789012345679")}
    assert taken(rows).content_hash != one


def test_equal_decimals_of_other_spelling_are_one_hash() -> None:
    rows = desk()
    rows["balances"][0] |= {"quantity": Decimal("1000.500")}
    assert taken(rows).content_hash == taken(desk()).content_hash


def test_the_hash_depends_on_what_failed() -> None:
    failure = Failure(FailureReason.STALE, "x", "binance", "a|b", "c")
    assert taken(desk(), [failure]).content_hash != taken(desk()).content_hash
    shifted = Failure(FailureReason.STALE, "x", "binance", "a", "b|c")
    assert taken(desk(), [failure]).content_hash != taken(desk(), [shifted]).content_hash


def test_absent_is_not_empty() -> None:
    rows = desk()
    rows["accounts"][0] |= {"emode": ""}
    assert taken(rows).content_hash != taken(desk()).content_hash


# ---- hostile ids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_id_is_an_id_like_any_other(text: str) -> None:
    rows = desk("binance", text)
    snapshot = taken(rows, max_age=HOUR, max_mark_gap=0.02)
    assert snapshot.failures == ()
    assert snapshot.tables["accounts"][0]["account_id"] == f"binance:{text}"
    rows["balances"][0] |= {"asset_id": text}
    broken = taken(rows)
    assert broken.incomplete == {f"binance:{text}"}
    assert only_failure(broken).reason is FailureReason.UNKNOWN_ASSET


def test_ids_that_differ_only_in_what_is_not_seen_stay_apart() -> None:
    rows = desk()
    twins = ["binance:east", "binance:east ", "binance:east\u200b", "binance:eаst", "binance:East"]
    rows["accounts"] = [rows["accounts"][0] | {"account_id": twin} for twin in twins]
    snapshot = taken(rows)
    assert len(snapshot.tables["accounts"]) == len(twins)
    assert snapshot.failures == ()


@pytest.mark.parametrize(
    ("column", "value"),
    [("asset_weight_initial", "1.01"), ("asset_weight_maintenance", "-0.1"), ("liability_weight_initial", "-1")],
)
def test_collateral_weights_out_of_range_are_rejected(column: str, value: str) -> None:
    rows = desk()
    rows["collateral_tiers"][0][column] = Decimal(value)
    snapshot = taken(rows)
    assert FailureReason.OUT_OF_RANGE in {failure.reason for failure in snapshot.failures}
    assert snapshot.incomplete == {"binance:east"}
