"""OKX: every way for a payload to be wrong or incomplete, and whom it concerns."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from adapters.adapter import Normalized
from adapters.transport import Payload
from aggregator.errors import ConfigurationError
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.rule_forms import Fixed, PriceVolGrid
from aggregator.snapshot import take_snapshot
from tests.desk_okx import (
    ACCOUNTS,
    EAST,
    ISOLATED_ETH,
    ISOLATED_SOL,
    NORTH,
    PARAMETERS,
    QUAY,
    SOUTH_BTC,
    SOUTH_USDT,
    WEST,
    desk,
    desk_with,
    desk_without,
    fetched,
    normalized,
    reported_unit,
)
from tests.normalized_rows import failures_of, forms_of, only, rows_of
from tests.payload_files import changed, dropping, setting


def native_figures(result: Normalized, account: str) -> tuple[float, float, float]:
    """(equity, initial, maintenance) of one account as the engine has them today."""
    snapshot = take_snapshot([result.batches], result.failures)
    assert snapshot.as_of is not None
    book, _ = pack_book({"okx": snapshot}, {account: [account]}, as_of=snapshot.as_of)
    found = native_today(book)[0]
    assert found is not None
    return float(found.equity[0]), float(found.initial[0]), float(found.maintenance[0])


def row(number: int) -> Callable[[Any], Any]:
    return lambda body: body["data"][number]


def detail(number: int) -> Callable[[Any], Any]:
    return lambda body: body["data"][0]["details"][number]


BAD = [
    ("north_positions.json", dropping(row(0), "pos"), "data[0].pos", "missing_field", NORTH),
    ("north_positions.json", setting(row(0), "pos", "many"), "data[0].pos", "not_a_number", NORTH),
    ("north_positions.json", setting(row(0), "pos", "NaN"), "data[0].pos", "not_a_number", NORTH),
    ("north_positions.json", setting(row(0), "pos", "-850"), "data[0].pos", "inconsistent", NORTH),
    ("north_positions.json", setting(row(0), "pos", "1e30"), "data[0].pos", "out_of_range", NORTH),
    ("north_positions.json", setting(row(0), "posSide", "up"), "data[0].posSide", "malformed", NORTH),
    ("north_positions.json", dropping(row(0), "posSide"), "data[0].posSide", "missing_field", NORTH),
    ("north_positions.json", setting(row(0), "markPx", "-1"), "data[0].markPx", "out_of_range", NORTH),
    ("north_positions.json", setting(row(1), "markPx", ""), "data[1].markPx", "missing_mark", NORTH),
    ("north_positions.json", setting(row(0), "avgPx", ""), "data[0].avgPx", "not_a_number", NORTH),
    ("north_positions.json", setting(row(0), "lever", ""), "data[0].lever", "missing_field", NORTH),
    ("north_positions.json", setting(row(0), "mgnMode", "both"), "data[0].mgnMode", "malformed", NORTH),
    ("north_positions.json", setting(row(0), "instId", "BTC-PERP-X"), "data[0].instId", "unknown_market", NORTH),
    ("north_positions.json", setting(row(0), "instId", "NOSUCH-USDT-SWAP"), "data[0].instId", "unknown_market", NORTH),
    ("north_positions.json", setting(row(0), "instId", "BTC-NOSUCH-SWAP"), "data[0].instId", "unknown_asset", NORTH),
    ("north_positions.json", setting(row(0), "instId", "SOL-USD-SWAP"), "data[0].instId", "missing_parameter", NORTH),
    ("north_positions.json", setting(row(0), "instId", "BTC-USDT"), "data[0].instType", "unsupported", NORTH),
    ("north_positions.json", lambda body: body["data"].append(body["data"][0]), "data[6]", "duplicate", NORTH),
    ("north_positions.json", lambda body: body["data"].append(5), "data[6]", "malformed", NORTH),
    ("north_positions.json", lambda body: body.update(data={}), "data", "malformed", NORTH),
    ("north_positions.json", setting(row(3), "margin", ""), "data[3].margin", "missing_field", ISOLATED_SOL),
    ("north_positions.json", setting(row(3), "upl", "x"), "data[3].upl", "not_a_number", ISOLATED_SOL),
    ("north_balance.json", dropping(detail(0), "cashBal"), "data[0].details[0].cashBal", "missing_field", NORTH),
    ("north_balance.json", dropping(detail(0), "stgyEq"), "data[0].details[0].stgyEq", "missing_field", NORTH),
    ("north_balance.json", setting(detail(0), "eq", "x"), "data[0].details[0].eq", "not_a_number", NORTH),
    ("north_balance.json", setting(detail(4), "interest", "-1"), "data[0].details[4].interest", "out_of_range", NORTH),
    ("north_balance.json", setting(detail(1), "ccy", "USDT"), "data[0].details[1].ccy", "duplicate", NORTH),
    ("north_balance.json", setting(detail(3), "ccy", "NOSUCH"), "data[0].details[3].ccy", "unknown_asset", NORTH),
    ("north_balance.json", lambda body: body["data"][0]["details"].pop(1), "data[0].totalEq", "inconsistent", NORTH),
    ("north_balance.json", lambda body: body.update(code="50011"), "code", "malformed", NORTH),
    ("north_balance.json", lambda body: body["data"].append({}), "data", "malformed", NORTH),
    ("north_config.json", setting(row(0), "acctLv", "9"), "data[0].acctLv", "malformed", NORTH),
    ("north_orders.json", setting(row(0), "side", "up"), "data[0].side", "malformed", NORTH),
    ("north_orders.json", setting(row(0), "accFillSz", "61"), "data[0].accFillSz", "inconsistent", NORTH),
    ("north_orders.json", dropping(row(0), "accFillSz"), "data[0].accFillSz", "missing_field", NORTH),
    ("north_orders.json", setting(row(1), "ordId", "91"), "data[1].ordId", "duplicate", NORTH),
    ("east_positions.json", setting(row(2), "markPx", "-0.1"), "data[2].markPx", "out_of_range", EAST),
]


@pytest.mark.parametrize(("file", "change", "path", "reason", "account"), BAD)
def test_bad_input_is_a_failure_of_its_account(
    file: str, change: Callable[[Any], None], path: str, reason: str, account: str
) -> None:
    result = normalized(desk_with(file, change))
    found = [f for f in failures_of(result, account) if f.reason == reason and f.payload == file]
    assert any(f.path == path for f in found), result.failures
    snapshot = take_snapshot([result.batches], result.failures)
    assert account in snapshot.incomplete
    assert not snapshot.incomplete & ({SOUTH_BTC, SOUTH_USDT, QUAY, WEST})
    assert account in {r["account_id"] for r in rows_of(result, "accounts")}


@pytest.mark.parametrize(
    ("file", "change", "reason", "accounts"),
    [
        ("mark_price_swap.json", setting(row(0), "markPx", "-1"), "out_of_range", set()),
        ("mark_price_swap.json", dropping(row(0), "markPx"), "missing_field", set()),
        ("mark_price_swap.json", lambda body: body["data"].append(body["data"][0]), "duplicate", set()),
        ("index_tickers_usd.json", setting(row(2), "idxPx", "x"), "not_a_number", set()),
        ("funding_rate.json", setting(row(0), "ts", "1e17"), "malformed", set()),
        ("open_interest.json", setting(row(0), "oiCcy", "-3"), "out_of_range", set()),
        ("instruments_swap.json", setting(row(1), "ctVal", "0"), "out_of_range", {NORTH}),
        ("instruments_swap.json", setting(row(1), "ctType", "linear"), "inconsistent", {NORTH}),
        ("instruments_option.json", setting(row(0), "stk", "4100"), "inconsistent", {EAST}),
        ("opt_summary.json", dropping(row(0), "markVol"), "missing_field", {EAST}),
        ("position_tiers_swap.json", setting(row(0), "mmr", "2"), "out_of_range", {NORTH, SOUTH_USDT}),
        ("position_tiers_swap.json", setting(row(1), "minSz", "900"), "inconsistent", {NORTH, SOUTH_USDT}),
        ("position_tiers_swap.json", setting(row(1), "tier", "1"), "duplicate", {NORTH, SOUTH_USDT}),
        ("position_tiers_swap.json", lambda body: body["data"].pop(1), "inconsistent", {NORTH, SOUTH_USDT}),
        ("instruments_swap.json", dropping(row(1), "ctMult"), "missing_field", {NORTH}),
        ("discounts.json", lambda body: body["data"][0]["details"][1].update(minAmt="21"), "inconsistent", set()),
        (
            "discounts.json",
            lambda body: body["data"][0]["details"][0].update(discountRate="1.2"),
            "out_of_range",
            set(),
        ),
    ],
)
def test_bad_market_answers(file: str, change: Callable[[Any], None], reason: str, accounts: set[str]) -> None:
    result = normalized(desk_with(file, change))
    assert reason in [f.reason for f in result.failures if f.payload == file]
    assert {f.account_id for f in result.failures if f.account_id} >= accounts
    # a currency whose slices could not be read falls back to the discount that the balance reports
    snapshot = take_snapshot([result.batches], result.failures)
    assert snapshot.incomplete >= accounts
    assert not snapshot.incomplete & ({SOUTH_BTC} if SOUTH_BTC not in accounts else set())


def test_answers_that_are_missing() -> None:
    bare = normalized(desk_without("north_positions.json"))
    assert {f.reason for f in failures_of(bare, NORTH)} == {"missing_field"}
    assert {f.path for f in failures_of(bare, NORTH)} == {
        "data[0].details[0].upl",
        "data[0].details[2].upl",
    }
    nothing = normalized(desk_without("west_balance.json"))
    assert "missing_field" in {f.reason for f in failures_of(nothing, WEST)}
    # an owner of isolated positions alone needs no balance
    isolated = changed(fetched("north_positions.json"), lambda body: body.update(data=body["data"][3:5]))
    alone = normalized([*[p for p in desk() if not p.account], isolated])
    assert alone.failures == []
    assert {r["account_id"] for r in rows_of(alone, "accounts")} == {ISOLATED_SOL, ISOLATED_ETH}
    no_builder = normalized(desk_without("east_position_builder.json"))
    assert [f.reason for f in failures_of(no_builder, EAST)] == ["unsupported"]
    no_file = normalized(desk(), {"as_of": "2024-01-01", "source": "-"})
    assert {f.reason for f in no_file.failures} == {"missing_parameter"}
    no_instruments = normalized(desk_without("instruments_swap.json"))
    assert {f.reason for f in failures_of(no_instruments, SOUTH_BTC)} == {"missing_parameter"}


def test_a_builder_of_another_portfolio_is_not_taken() -> None:
    def other(body: Any) -> None:
        body["data"][0]["riskUnitData"][0]["portfolios"][0]["amt"] = "-901"

    result = normalized(desk_with("east_position_builder.json", other))
    assert [(f.reason, f.account_id) for f in result.failures if f.path.endswith("riskUnitData")] == [
        ("inconsistent", None)
    ]
    assert [f.reason for f in failures_of(result, EAST)] == ["unsupported"]  # the options have no parts now


def test_a_unit_that_spot_hedges_is_taken_as_reported() -> None:
    def hedged(body: Any) -> None:
        body["data"][0]["assets"].append({"ccy": "BTC", "availEq": "1", "spotInUse": "0.4", "borrowImr": ""})

    result = normalized(desk_with("east_position_builder.json", hedged))
    btc = reported_unit("BTC")
    fixed = next(form for form in forms_of(result, EAST, Fixed) if "BTC" in form.basis)
    assert (fixed.initial, fixed.maintenance) == (Decimal(btc["imr"]), Decimal(btc["mmr"]))
    assert [form.underlyings for form in forms_of(result, EAST, PriceVolGrid)] == [("ETH",)]


def test_rates_of_a_coin_that_only_an_answer_states() -> None:
    def swaps_alone(body: Any) -> None:
        body["data"].pop(2)

    def without_option(body: Any) -> None:
        unit = body["data"][0]["riskUnitData"][1]
        unit["portfolios"].pop(0)
        # 5277.077214 + 455.25 + 209.32 + 61.75, and with the 35211.52039279 of BTC and the 303.3087762 of the debt
        unit.update(delta="104660", mr4="209.32", mr7="470.97", mmr="6003.397214")
        body["data"][0]["totalMmr"] = "41518.22638299"

    def without_value(body: Any) -> None:
        body["data"][0]["details"][1].update(upl="0")

    files = {
        "east_positions.json": swaps_alone,
        "east_position_builder.json": without_option,
        "east_balance.json": without_value,
    }
    payloads = [changed(p, files[p.name]) if p.name in files else p for p in desk()]
    grids = {form.underlyings[0]: form for form in forms_of(normalized(payloads), EAST, PriceVolGrid)}
    assert float(grids["ETH"].roll.minimum) == pytest.approx(0.002)
    assert float(grids["ETH"].minimum.delta_rate) == pytest.approx(0.0045)
    alone = normalized([p for p in payloads if p.name != "east_position_builder.json"])
    assert [f.reason for f in failures_of(alone, EAST)] == ["missing_parameter"]


def test_discounts_as_reported_where_no_slices_are_at_hand() -> None:
    result = normalized(desk_without("discounts.json"))
    rule_set = only(result, "accounts", account_id=WEST)["rule_set"]
    rows = {r["asset_id"]: r for r in rows_of(result, "collateral_tiers", rule_set=rule_set)}
    assert rows["BTC"]["asset_weight_maintenance"] == pytest.approx(Decimal("0.98"), abs=Decimal("1e-9"))
    assert rows["BTC"]["source"] == "reported disEq over eqUsd"
    assert failures_of(result, WEST) == []
    assert {f.reason for f in failures_of(result, QUAY)} == {"missing_parameter"}  # its answer has no value in USD


def test_short_options_outside_of_portfolio_margin() -> None:
    def short(body: Any) -> None:
        body["data"][1].update(pos="-200", imr="0.31", mmr="0.22")

    result = normalized(desk_with("west_positions.json", short))
    fixed = next(form for form in forms_of(result, WEST, Fixed) if "BTC-USD-240927" in form.basis)
    assert fixed.maintenance == Decimal("0.22") * Decimal("60968.4")
    none = normalized(desk_with("west_positions.json", lambda body: body["data"][1].update(pos="-200", mmr="")))
    assert "unsupported" in {f.reason for f in failures_of(none, WEST)}


def test_figures_that_do_not_add_up_are_findings() -> None:
    gone = normalized(desk_with("north_positions.json", lambda body: body["data"].pop(1)))
    assert [(f.reason, f.path, f.account_id) for f in gone.failures] == [
        ("inconsistent", "data[0].details[0].upl", None)
    ]
    silent = normalized(desk_with("west_balance.json", lambda body: body["data"][0]["details"][0].pop("disEq")))
    assert ("missing_field", "data[0].details[0].disEq", None) in [
        (f.reason, f.path, f.account_id) for f in silent.failures
    ]
    short = normalized(desk_with("quay_position_risk.json", lambda body: body["data"][0]["balData"].pop()))
    assert [(f.reason, f.path) for f in failures_of(short, QUAY)] == [("inconsistent", "data[0].adjEq")]


def switched(number: int, value: Any) -> Normalized:
    return normalized(desk_with("north_balance.json", setting(detail(number), "collateralEnabled", value)))


def test_a_coin_that_is_no_collateral_does_not_count() -> None:
    before = native_figures(normalized(desk()), NORTH)[0]
    for value in (True, "true", "", None):
        assert native_figures(switched(3, value), NORTH)[0] == before
    for value in (False, "false"):
        result = switched(3, value)
        assert only(result, "balances", account_id=NORTH, asset_id="SOL")["collateral_enabled"] is False
        assert before - native_figures(result, NORTH)[0] == pytest.approx(41274.175, rel=1e-9)
    # a debt counts all the same
    debt = switched(4, False)
    assert only(debt, "balances", account_id=NORTH, asset_id="USDC")["collateral_enabled"] is True
    assert native_figures(debt, NORTH)[0] == before
    # positions gain in USDT, and neither the gain nor the balance counts
    result = switched(0, False)
    assert only(result, "balances", account_id=NORTH, asset_id="USDT")["collateral_enabled"] is False
    cross = Decimal("68331.05") - Decimal("12152")
    assert before - native_figures(result, NORTH)[0] == pytest.approx(float(cross * Decimal("0.9991")), rel=1e-9)
    wrong = failures_of(switched(3, "maybe"), NORTH)
    assert ("malformed", "data[0].details[3].collateralEnabled") in [(f.reason, f.path) for f in wrong]
    # a currency that is margin for itself alone has no such switch
    alone = normalized(desk_with("south_balance.json", setting(detail(0), "collateralEnabled", False)))
    assert only(alone, "balances", account_id=SOUTH_BTC)["collateral_enabled"] is True


def test_what_is_no_collateral_is_no_loss_of_orders() -> None:
    def off(body: Any) -> None:
        body["data"][0]["adjEq"] = str(Decimal("110911.475628796") - Decimal("79151.215663296"))
        body["data"][0]["details"][1]["collateralEnabled"] = False

    result = normalized(desk_with("west_balance.json", off))
    loss = next(form for form in forms_of(result, WEST, Fixed) if form.equity)
    assert loss.equity == pytest.approx(Decimal("-35.2"), abs=Decimal("1e-9"))


def test_an_adjusted_equity_below_its_currencies_is_a_finding() -> None:
    def less(amount: str) -> list[Payload]:
        return desk_with(
            "east_balance.json",
            lambda body: body["data"][0].update(adjEq=str(Decimal("487597.413988567152") - Decimal(amount))),
        )

    assert [(f.reason, f.path, f.subject, f.account_id) for f in normalized(less("100")).failures] == [
        ("inconsistent", "data[0].adjEq", EAST, None)
    ]
    assert normalized(less("1")).failures == []  # within the digits and moments of one answer
    # a coin that is no collateral is not part of it
    still = normalized(desk_with("east_balance.json", setting(detail(1), "collateralEnabled", False)))
    assert [(f.reason, f.path, f.account_id) for f in still.failures] == [("inconsistent", "data[0].adjEq", None)]

    def without(body: Any) -> None:
        body["data"][0]["adjEq"] = str(Decimal("487597.413988567152") - Decimal("112283.47567248"))
        body["data"][0]["details"][1]["collateralEnabled"] = False

    assert normalized(desk_with("east_balance.json", without)).failures == []


BLANK = dict.fromkeys(("adjEq", "imr", "mmr", "mgnRatio", "ordFroz"), "")


@pytest.mark.parametrize(
    "change",
    [
        setting(row(0), "ordFroz", ""),
        setting(row(0), "ordFroz", None),
        dropping(row(0), "ordFroz"),
        lambda body: row(0)(body).update(BLANK),
    ],
)
def test_orders_without_their_margin_make_the_account_incomplete(change: Callable[[Any], Any]) -> None:
    result = normalized(desk_with("north_balance.json", change))
    assert [(f.reason, f.path, f.payload) for f in failures_of(result, NORTH)] == [
        ("missing_field", "data[0].ordFroz", "north_balance.json")
    ]
    assert NORTH in take_snapshot([result.batches], result.failures).incomplete
    # orders that only reduce, or none, need none
    others = [p for p in desk_with("north_balance.json", change) if p.name != "north_orders.json"]

    def reduce(body: Any) -> None:
        for one in body["data"]:
            one["reduceOnly"] = "true"

    reducing = changed(fetched("north_orders.json"), reduce)
    for payloads in (others, [*others, reducing]):
        assert failures_of(normalized(payloads), NORTH) == []


def test_a_frozen_margin_without_the_account_s_total() -> None:
    def frozen(body: Any) -> None:
        body["data"][0]["ordFroz"] = ""
        body["data"][0]["details"][0]["ordFrozen"] = "12"

    result = normalized([p for p in desk_with("north_balance.json", frozen) if p.name != "north_orders.json"])
    assert [(f.reason, f.path) for f in failures_of(result, NORTH)] == [("missing_field", "data[0].ordFroz")]


def test_orders_of_a_currency_that_states_no_margin_of_them() -> None:
    def order(inst_id: str, kind: str) -> Payload:
        line = {**fetched("north_orders.json").body["data"][0], "instId": inst_id, "instType": kind, "posSide": "net"}
        return Payload(
            **{
                **{f: getattr(fetched("north_orders.json"), f) for f in Payload.__dataclass_fields__},
                "name": "south_orders.json",
                "account": "south",
                "body": {"code": "0", "data": [line]},
            }
        )

    blank = desk_with("south_balance.json", setting(detail(1), "ordFrozen", ""))
    missing = normalized([*blank, order("BTC-USDT-SWAP", "SWAP")])
    assert [(f.reason, f.path) for f in failures_of(missing, SOUTH_USDT)] == [
        ("missing_field", "data[0].details[1].ordFrozen")
    ]
    assert failures_of(missing, SOUTH_BTC) == []
    assert failures_of(normalized([*blank, order("ETH-USDT", "SPOT")]), SOUTH_USDT) == []
    assert failures_of(normalized([*desk(), order("BTC-USDT-SWAP", "SWAP")]), SOUTH_USDT) == []


def test_two_answers_to_one_question() -> None:
    twice = normalized([*desk(), replace(fetched("north_positions.json"), name="again.json")])
    assert "duplicate" in {f.reason for f in failures_of(twice, NORTH)}
    market = normalized([*desk(), replace(fetched("discounts.json"), name="again.json")])
    assert ("duplicate", None) in [(f.reason, f.account_id) for f in market.failures]


def test_requests_that_nobody_knows() -> None:
    odd = replace(fetched("funding_rate.json"), request="public/time")
    mine = replace(fetched("north_balance.json"), account="")
    result = normalized([odd, mine])
    assert [(f.reason, f.path) for f in result.failures] == [("missing_field", "account"), ("unsupported", "request")]


def test_a_wrong_parameter_file_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"borrow\.initial"):
        normalized([], {**PARAMETERS, "borrow": {"maintenance": "0.02"}})


def test_the_newest_mark_wins_and_two_of_one_time_are_none() -> None:
    def older(body: Any) -> None:
        for entry in body["data"]:
            entry.update(markPx="1", ts=str(int(entry["ts"]) - 10_000))

    def rival(body: Any) -> None:
        for entry in body["data"]:
            entry.update(markPx="1")

    payload = fetched("mark_price_swap.json")
    before = replace(changed(payload, older), request="public/mark-price:BTC-USDT-SWAP", name="before.json")
    result = normalized([payload, before])
    assert only(result, "marks", subject="okx:BTC-USDT-SWAP", field="mark")["value"] == 61012.3
    clash = normalized([payload, replace(changed(payload, rival), request="mark-price:BTC", name="b.json")])
    assert {f.reason for f in clash.failures} == {"inconsistent"}
    assert rows_of(clash, "marks", field="mark") == []


def test_the_order_of_payloads_does_not_matter() -> None:
    def tables(payloads: list[Payload]) -> Any:
        result = normalized(payloads)
        return {
            name: sorted(json.dumps(entry, default=str, sort_keys=True) for entry in table.to_pylist())
            for name, table in result.batches.items()
        }, sorted(str(failure) for failure in result.failures)

    bad = desk_with("north_positions.json", setting(row(0), "pos", "x"))
    for payloads in (desk(), bad):
        expected = tables(payloads)
        for seed in range(3):
            shuffled = payloads[:]
            random.Random(seed).shuffle(shuffled)
            assert tables(shuffled) == expected


def test_bare_rows_and_full_paths() -> None:
    bare = [replace(p, body=p.body["data"], request=f"/api/v5/{p.request}") for p in desk()]
    bare = [replace(p, request="opt-summary:BTC-USD") if p.name == "opt_summary_message.json" else p for p in bare]
    result = normalized(bare)
    assert result.failures == []
    assert {r["account_id"] for r in rows_of(result, "accounts")} == set(ACCOUNTS)


# Position builder


def unit(number: int, key: str, value: Any) -> Callable[[Any], None]:
    return lambda body: body["data"][0]["riskUnitData"][number].update({key: value})


@pytest.mark.parametrize(
    ("change", "reason", "path"),
    [
        *(
            (unit(1, key, ""), "not_a_number", f"data[0].riskUnitData[1].{key}")
            for key in ("mr1", "mr2", "mr3", "mr4", "mr5", "mr6", "mr7", "mr8", "mr9")
        ),
        (unit(1, "mr3", None), "missing_field", "data[0].riskUnitData[1].mr3"),
        (unit(1, "mr8", None), "missing_field", "data[0].riskUnitData[1].mr8"),
        (unit(1, "mr3", "0"), "inconsistent", "data[0].riskUnitData[1].mmr"),
        (unit(1, "mr6", "5276"), "inconsistent", "data[0].riskUnitData[1].mmr"),
        (unit(0, "mr7", "40000"), "inconsistent", "data[0].riskUnitData[0].mmr"),
        (unit(0, "mmr", "35210"), "inconsistent", "data[0].riskUnitData[0].mmr"),
        (setting(row(0), "totalMmr", "41000"), "inconsistent", "data[0].totalMmr"),
        (setting(row(0), "borrowMmr", ""), "inconsistent", "data[0].totalMmr"),
        (lambda body: body["data"][0]["riskUnitData"].pop(0), "inconsistent", "data[0].totalMmr"),
    ],
)
def test_a_builder_whose_parts_do_not_make_its_totals(change: Callable[[Any], Any], reason: str, path: str) -> None:
    """The unit of ETH: max(3247.29, 812.4, 5277.077214) + 455.25 + 310.5 + 61.75 = 6104.577214."""
    result = normalized(desk_with("east_position_builder.json", change))
    failures = failures_of(result, EAST)
    assert (reason, path) in [(f.reason, f.path) for f in failures if f.payload == "east_position_builder.json"]


def test_a_builder_without_the_later_parts_is_of_an_older_answer() -> None:
    def older(body: Any) -> None:
        for entry in body["data"][0]["riskUnitData"]:
            del entry["mr8"], entry["mr9"]

    assert failures_of(normalized(desk_with("east_position_builder.json", older)), EAST) == []


@pytest.mark.parametrize("change", [dropping(row(0), "adjEq"), setting(row(0), "adjEq", None)])
def test_without_a_configuration_the_mode_needs_the_adjusted_equity(change: Callable[[Any], Any]) -> None:
    """Only an empty one says single-currency margin."""
    result = normalized(desk_with("quay_position_risk.json", change))
    assert ("missing_field", "data[0].adjEq") in [(f.reason, f.path) for f in failures_of(result, QUAY)]
    accounts = {r["account_id"] for r in rows_of(result, "accounts") if r["account_id"].startswith("okx:quay")}
    assert accounts == {QUAY}
    empty = normalized(desk_with("quay_position_risk.json", setting(row(0), "adjEq", "")))
    accounts = {r["account_id"] for r in rows_of(empty, "accounts") if r["account_id"].startswith("okx:quay")}
    assert accounts == {"okx:quay:BTC", "okx:quay:USDT"}


def test_a_balance_without_the_adjusted_equity_and_without_a_configuration() -> None:
    result = normalized(desk_with("west_balance.json", dropping(row(0), "adjEq")))
    assert ("missing_field", "data[0].adjEq") in [(f.reason, f.path) for f in failures_of(result, WEST)]
