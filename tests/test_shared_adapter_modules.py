"""What venues' adapters share: fields, the catalog, questions, lines, findings, and rows that every venue writes."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from adapters.account_rows import add_balance, spread_failures
from adapters.amounts import FieldError, decimal_at, first_decimal_at, member
from adapters.asset_book import Asset, AssetBook
from adapters.catalog import Catalog, asset_row
from adapters.collateral import LENDER_COMPONENTS, weight_row
from adapters.fields import (
    flag_at,
    flag_of,
    mapping_at,
    optional_flag_at,
    optional_mapping_at,
    records_of,
    struct_of,
    text_at,
    text_of,
)
from adapters.findings import PlacedError, noted, or_failure, or_finding
from adapters.lines import unique_lines
from adapters.market_rows import add_mark, add_market_state, add_reconciliation_note
from adapters.questions import Question, by_question, in_order, owner_of, reject_copies, single_answers
from adapters.rows import Rows
from adapters.transport import Payload
from aggregator.errors import FailureReason
from aggregator.rule_forms import component_rows
from aggregator.schema.canonical import CANONICAL

MOMENT = datetime(2024, 6, 25, 14, 0, 2, tzinfo=UTC)
BTC = Asset("BTC", "BTC", Decimal(1), None, None)
USDC = Asset("USDC", None, Decimal(1), "USDC", "circle")
BOOK = AssetBook({"BTC": BTC, "USDC": USDC})
REQUESTS, OWNED = ("account", "fees", "markets"), ("account",)


def refused(reason: FailureReason, path: str, call: Callable[[], Any]) -> FieldError:
    with pytest.raises(FieldError) as caught:
        call()
    assert (caught.value.reason, caught.value.path) == (reason, path)
    return caught.value


def payload(request: str, account: str = "", name: str = "") -> Payload:
    return Payload(request, name or f"{request}.json", account, MOMENT, "", {})


def question_of(of: Payload) -> Question:
    request, _, part = of.request.partition(":")
    return Question(request, owner_of(of, request, requests=REQUESTS, owned=OWNED, either=("fees",)), part)


def whole_account(question: Question) -> str | None:
    return f"v:{question.owner}" if question.owner else None


# Fields ---------------------------------------------------------------------------------------------------------------


def test_texts_are_not_empty_and_not_anything_else() -> None:
    assert text_at({"a": "x"}, "a", "b") == text_of("x") == "x"
    refused(FailureReason.MISSING_FIELD, "b.a", lambda: text_at({}, "a", "b"))
    assert "an empty one" in refused(FailureReason.MALFORMED, "b.a", lambda: text_at({"a": ""}, "a", "b")).message
    assert "found int" in refused(FailureReason.MALFORMED, "b.a", lambda: text_at({"a": 1}, "a", "b")).message


@pytest.mark.parametrize("value", [0, 1, "true", [], Decimal(1)])
def test_a_strict_flag_is_a_truth_value(value: Any) -> None:
    assert flag_at({"a": True}, "a") is True
    assert flag_at({"a": False}, "a") is False
    refused(FailureReason.MALFORMED, "a", lambda: flag_at({"a": value}, "a"))


def test_a_flag_in_words() -> None:
    assert [flag_of(value) for value in (True, "true", False, "false")] == [True, True, False, False]
    assert [optional_flag_at(record, "a") for record in ({}, {"a": None}, {"a": ""}, {"a": "false"})] == [
        None,
        None,
        None,
        False,
    ]


@pytest.mark.parametrize("value", [0, 1, "yes", "True"])
def test_other_words_are_no_flag(value: Any) -> None:
    refused(FailureReason.MALFORMED, "p.a", lambda: optional_flag_at({"a": value}, "a", "p"))


def test_objects_structs_and_records() -> None:
    assert mapping_at({"a": {"b": 1}}, "a") == optional_mapping_at({"a": {"b": 1}}, "a") == {"b": 1}
    assert optional_mapping_at({"a": None}, "a") == {}
    refused(FailureReason.MALFORMED, "a", lambda: optional_mapping_at({"a": []}, "a"))
    assert struct_of([1, 2], ("a", "b")) == struct_of({"a": 1, "b": 2}, ("a", "b"))
    assert "a list of 1" in refused(FailureReason.MALFORMED, "p", lambda: struct_of([1], ("a", "b"), "p")).message
    assert records_of([1, 2]) == [1, 2]
    assert records_of({"a": 1}) == [{"a": 1}]
    refused(FailureReason.MALFORMED, "", lambda: records_of("text"))


def test_the_first_field_that_has_a_number() -> None:
    record = {"new": "", "old": "2", "older": "3"}
    assert first_decimal_at(record, ("newest", "new", "old", "older")) == 2
    assert first_decimal_at(record, ("newest", "new")) is None
    refused(FailureReason.NOT_A_NUMBER, "p.old", lambda: first_decimal_at({"old": "x"}, ("new", "old"), "p"))


# Catalog --------------------------------------------------------------------------------------------------------------


def test_every_asset_and_instrument_has_one_row_by_id() -> None:
    rows, catalog = Rows("v"), Catalog("v", BOOK, {"XBT": "BTC"})
    assert catalog.asset("XBT") == catalog.known_asset("BTC", path="") == "BTC"
    assert catalog.asset("USDC") == "USDC"
    for symbol in ("B-PERP", "A-PERP", "A-PERP"):
        catalog.instrument(symbol, kind="perp", underlying="BTC", settlement_asset="USDC")
    catalog.write(rows)
    batches = rows.batches()
    assert batches["assets"]["asset_id"].to_pylist() == ["BTC", "USDC"]
    assert batches["instruments"]["instrument_id"].to_pylist() == ["v:A-PERP", "v:B-PERP"]
    assert batches["instruments"]["contract_size"].to_pylist() == [1, 1]
    assert not rows.failures


def test_a_prefix_is_a_multiple_off_chain_and_no_token_on_a_chain() -> None:
    catalog = Catalog("v", BOOK)
    assert catalog.known_asset("1000BTC", path="") == "1000BTC"
    assert catalog.assets["1000BTC"]["multiplier"] == 1000
    assert catalog.risk_symbol("1000BTC") == "BTC"
    found = refused(FailureReason.UNKNOWN_ASSET, "p", lambda: catalog.token("kBTC", "chain", 8, path="p"))
    assert found.message == "token 'kBTC' is not in the asset book"
    assert catalog.token("BTC", "chain", 8, path="") == "BTC@chain"
    assert catalog.assets["BTC@chain"] == asset_row(BTC, chain="chain", decimals=8)


def test_an_unknown_symbol_is_never_guessed() -> None:
    catalog = Catalog("v", BOOK)
    assert catalog.asset("DOGE") is None
    assert not catalog.knows("BTC", "DOGE")
    assert catalog.is_stable("USDC")
    assert not catalog.is_stable("BTC")
    assert not catalog.is_stable("DOGE")
    market = refused(FailureReason.UNKNOWN_MARKET, "p", lambda: catalog.pair("DOGE", "USDC", of="DOGE-PERP", path="p"))
    assert market.message == "'DOGE' of DOGE-PERP is not in the asset book"
    refused(FailureReason.UNKNOWN_ASSET, "p", lambda: catalog.pair("BTC", "DOGE", of="BTCDOGE", path="p"))
    with pytest.raises(KeyError):
        catalog.risk_symbol("DOGE")


def test_the_dollar_is_an_asset_that_nothing_moves() -> None:
    rows, catalog = Rows("v"), Catalog("v", BOOK)
    assert catalog.dollar() == "USD"
    catalog.write(rows)
    [row] = rows.batches()["assets"].to_pylist()
    assert (row["asset_id"], row["risk_factor"], row["peg_of"], row["multiplier"]) == ("USD", None, None, 1)


# Questions ------------------------------------------------------------------------------------------------------------


def test_an_owner_is_needed_where_the_request_is_owned() -> None:
    def of(request: str, account: str) -> str:
        name = request.partition(":")[0]
        return owner_of(payload(request, account), name, requests=REQUESTS, owned=OWNED, either=("fees",))

    assert [of("account", "ann"), of("fees", "ann"), of("fees", ""), of("markets", "ann")] == ["ann", "ann", "", ""]
    assert "account:1" in refused(FailureReason.MISSING_FIELD, "account", lambda: of("account:1", "")).message
    assert "account, fees, markets" in refused(FailureReason.UNSUPPORTED, "request", lambda: of("x", "ann")).message


@pytest.mark.parametrize("reverse", [False, True])
def test_two_answers_to_one_question_are_both_rejected(reverse: bool) -> None:
    given = [
        payload("markets:spot"),
        payload("account", "ann", "one.json"),
        payload("account", "ann", "two.json"),
        payload("account", "bob"),
        payload("account"),
        payload("candles"),
    ]
    rows = Rows("v")
    groups = by_question(rows, given[::-1] if reverse else given, question_of)
    assert list(groups) == [Question("account", "ann"), Question("account", "bob"), Question("markets", "", "spot")]
    assert [(f.reason, f.subject) for f in rows.failures] == [
        (FailureReason.MISSING_FIELD, "account"),
        (FailureReason.UNSUPPORTED, "candles"),
    ]
    shared, owners = single_answers(rows, groups, account_of=whole_account)
    assert shared == {"markets": [given[0]]}
    assert owners == {"ann": {"account": []}, "bob": {"account": [given[3]]}}
    failure = rows.failures[-1]
    assert (failure.reason, failure.account_id, failure.payload) == (FailureReason.DUPLICATE, "v:ann", "two.json")
    assert failure.message == "2 answers to account; all rejected: one.json, two.json"
    reject_copies(rows, groups[Question("account", "ann")], account_id="v:ann")
    assert [f.payload for f in rows.failures[-2:]] == ["one.json", "two.json"]


def test_an_answer_of_an_owner_may_be_read_with_the_market_wide_ones() -> None:
    rows, fees = Rows("v"), payload("fees", "ann")
    groups = by_question(rows, [fees], question_of)
    found = single_answers(rows, groups, account_of=whole_account, market_wide=lambda q: q.request == "fees")
    assert found == ({"fees": [fees]}, {})


def test_payloads_have_one_order() -> None:
    given = [payload("b"), payload("a", "z"), payload("a", "y", "2"), payload("a", "y", "1")]
    assert (
        [p.name for p in in_order(given)] == [p.name for p in in_order(given[::-1])] == ["1", "2", "a.json", "b.json"]
    )


# Lines and findings ---------------------------------------------------------------------------------------------------


def test_a_key_stands_once() -> None:
    rows = Rows("v")
    records: Sequence[Any] = [{"k": "a", "x": 1}, {"k": "b", "x": 2}, {"k": "a", "x": 3}, {"k": "c", "x": "?"}]
    found = unique_lines(
        rows,
        "p.json",
        [(f"[{n}]", record) for n, record in enumerate(records)],
        lambda record, path: (member(record, "k", path), decimal_at(record, "x", path)),
        key=lambda line: line[0],
        subject=lambda record: str(record["k"]),
        account=lambda record: "v:ann" if record["k"] == "a" else None,
    )
    assert list(found) == [(("b", Decimal(2)), "[1]")]
    assert [(f.reason, f.path, f.subject, f.account_id) for f in rows.failures] == [
        (FailureReason.NOT_A_NUMBER, "[3].x", "c", None),
        (FailureReason.DUPLICATE, "[2]", "a", "v:ann"),
    ]


def test_a_finding_is_said_once_and_a_failure_by_every_account() -> None:
    rows = Rows("v")

    def wrong() -> int:
        raise PlacedError("p.json", FieldError("a.b", FailureReason.MISSING_MARK, "no price"))

    for account in ("v:ann", "v:bob"):
        assert or_finding(rows, wrong, "market") is None
        with noted(rows, "market"):
            wrong()
        assert or_failure(rows, wrong, account) is None
    assert or_failure(rows, lambda: 7, "v:ann") == or_finding(rows, lambda: 7, "market") == 7
    assert [(f.account_id, f.subject) for f in rows.failures] == [
        (None, "market"),
        ("v:ann", "v:ann"),
        ("v:bob", "v:bob"),
    ]
    assert {(f.payload, f.path, f.message) for f in rows.failures} == {("p.json", "a.b", "no price")}


# Rows -----------------------------------------------------------------------------------------------------------------


def test_marks_and_states_have_their_venue() -> None:
    rows = Rows("v")
    add_mark(rows, "BTC", "index", Fraction(1, 4), as_of=MOMENT, source="s", account_id="v:ann")
    add_market_state(rows, "v:BTC", "status", "open", as_of=None, source="s")
    add_market_state(rows, "v:BTC", "open_interest", Decimal("2.5"), as_of=MOMENT, source="s")
    add_reconciliation_note(rows, "v:ann", "health", 0.5, "why", as_of=MOMENT, source="s")
    batches = rows.batches()
    [mark] = batches["marks"].to_pylist()
    assert (mark["venue"], mark["account_id"], mark["field"], mark["value"]) == ("v", "v:ann", "index", 0.25)
    assert [(row["field"], row["value"], row["text"]) for row in batches["market_state"].to_pylist()] == [
        ("status", None, "open"),
        ("open_interest", 2.5, None),
        ("reconciliation_note.health", 0.5, "why"),
    ]


def test_a_balance_is_held_or_owed_and_0_is_no_row() -> None:
    rows, exact = Rows("v"), Decimal("-12345678901234567890.123456789012345678")
    for quantity in (Decimal(2), Decimal(0), exact):
        add_balance(rows, "v:ann", "USDC", quantity, enabled=False)
    table = rows.batches()["balances"].to_pylist()
    assert [(row["side"], row["quantity"]) for row in table] == [("asset", 2), ("liability", exact.copy_negate())]
    assert not any(row["collateral_enabled"] for row in table)


def test_failures_of_an_owner_fall_on_its_accounts() -> None:
    rows = Rows("v")
    for account in ("v:ann", None, "v:ann:x", "v:annie"):
        rows.fail(FailureReason.MALFORMED, "m", account_id=account)
    spread_failures(rows, "v:ann", ["v:ann:x", "v:ann:y"])
    assert [f.account_id for f in rows.failures] == ["v:ann:x", "v:ann:y", None, "v:ann:x", "v:annie"]


def test_weights_count_in_full_what_is_not_stated() -> None:
    rows = Rows("v")
    rows.rows["collateral_tiers"] += [
        weight_row("v:r", "A", Decimal("0.5")),
        weight_row("v:r", "B", Decimal("0.5"), Decimal("0.75"), liability=(Decimal(2), Decimal(0)), tier=2),
    ]
    rows.rows["rule_sets"] += component_rows("v:r", LENDER_COMPONENTS, source="s")
    batches = rows.batches()
    assert not rows.failures
    names = [f"{side}_weight_{level}" for side in ("asset", "liability") for level in ("initial", "maintenance")]
    weights = [[float(row[name]) for name in names] for row in batches["collateral_tiers"].to_pylist()]
    assert weights == [[0.5, 0.5, 1.0, 1.0], [0.5, 0.75, 2.0, 0.0]]
    assert [row["side"] for row in batches["rule_sets"].to_pylist()] == ["equity", "requirement", "verdict"]
    assert set(weight_row("", "", Decimal(1))) <= set(CANONICAL["collateral_tiers"].names)
