"""Aave v3 payloads of several markets, of older releases and in the shapes of decoders; the state of reserves.

`june_*.json` are three markets of one instant: Core with named objects (v3.7), Prime with tuples in ABI order inside
wrappers (v3.7), and an older deployment whose reserves state their e-mode category (v3.0).
"""

import copy
import json
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from adapters.aave_v3 import ADAPTER, FACTS, mechanics, shapes
from adapters.adapter import Context, Normalized
from adapters.asset_book import read_asset_book
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.errors import ConfigurationError
from aggregator.snapshot import take_snapshot
from tests.native_figures import native_figures
from tests.normalized_rows import rows_of
from tests.sample_aave_v3 import PAYLOADS as CORE

ROOT = Path(__file__).resolve().parent.parent
PAYLOADS = ROOT / "tests" / "payloads" / "aave_v3"
BOOK = read_asset_book(ROOT / "configs" / "assets.toml")
AS_OF = datetime(2024, 6, 30, tzinfo=UTC)
NORTH_CORE, NORTH_PRIME = "aave_v3:north:ethereum-core", "aave_v3:north:ethereum-prime"
SOUTH = "aave_v3:south:polygon-old"
PROVIDER = "0x" + "Ab" * 20
POOL = "0x" + "cd" * 20

PRIME = (
    ("getReservesData:ethereum-prime", "june_prime_reserves.json", ""),
    ("getEModes:ethereum-prime", "june_prime_emodes.json", ""),
    ("getUserReservesData:ethereum-prime", "june_prime_user_north.json", "north"),
    ("getUserAccountData:ethereum-prime", "june_prime_data_north.json", "north"),
)
LEGACY = (
    ("getReservesData:polygon-old", "june_legacy_reserves.json", ""),
    ("getUserReservesData:polygon-old", "june_legacy_user_south.json", "south"),
    ("getUserAccountData:polygon-old", "june_legacy_data_south.json", "south"),
    ("getLiquidationGracePeriod:polygon-old", "june_legacy_grace.json", ""),
)
WETH, WSTETH, USDC = range(3)

Body = Any


def _parameters(**changes: Any) -> dict[str, Any]:
    """The parameter file of the repository with two more markets."""
    text = (ROOT / "configs" / "venues" / "aave_v3.toml").read_text(encoding="utf-8")
    more = {
        "ethereum-prime": {"chain": "ethereum", "rules": "v3.7", "addresses": [PROVIDER, POOL]},
        "polygon-old": {"chain": "polygon", "rules": "v3.0"},
    }
    return tomllib.loads(text) | {"markets": more} | changes


def _fetched(*entries: tuple[str, str, str]) -> dict[str, Payload]:
    found = {}
    for request, file, owner in entries:
        payload = RecordedTransport(PAYLOADS).fetch("aave_v3", PayloadRequest(request, file, owner))
        assert isinstance(payload, Payload), payload
        found[file.removeprefix("june_").removesuffix(".json")] = payload
    return found


def _normalize(payloads: dict[str, Payload] | list[Payload], **changes: Any) -> Normalized:
    listed = list(payloads.values()) if isinstance(payloads, dict) else payloads
    return ADAPTER.normalize(listed, Context(BOOK, _parameters(**changes)))


def _changed(payload: Payload, change: Callable[[Body], Any], **fields: Any) -> Payload:
    """A copy with a changed body (in place, or what `change` returns) and changed fields."""
    body = copy.deepcopy(payload.body)
    answer = change(body)
    values = {
        "request": payload.request,
        "name": payload.name,
        "account": payload.account,
        "received_at": payload.received_at,
        "sha256": payload.sha256,
        "body": body if answer is None else answer,
    }
    return Payload(**(values | fields))


def _tables(normalized: Normalized) -> dict[str, list[dict[str, Any]]]:
    return {name: table.to_pylist() for name, table in normalized.batches.items()}


def _failed(normalized: Normalized) -> list[tuple[str, str | None, str | None]]:
    return [(f.reason, f.path, f.account_id) for f in normalized.failures]


def _state(normalized: Normalized, market: str) -> dict[str, Any]:
    return {
        row["field"]: row["text"] if row["value"] is None else row["value"]
        for row in rows_of(normalized, "market_state", market=market)
    }


# Several markets ------------------------------------------------------------------------------------------------------


def test_an_owner_in_three_markets_has_three_accounts() -> None:
    normalized = _normalize(_fetched(*CORE, *PRIME, *LEGACY))
    assert normalized.failures == []
    accounts = {row["account_id"]: row for row in rows_of(normalized, "accounts")}
    owners = ("north", "staking", "treasury")
    assert set(accounts) == {f"aave_v3:{owner}:ethereum-core" for owner in owners} | {NORTH_PRIME, SOUTH}
    prime = accounts[NORTH_PRIME]
    assert (prime["node"], prime["rule_set"], prime["chain"]) == (NORTH_PRIME, "aave_v3:ethereum-prime", "ethereum")
    assert (prime["owner"], prime["emode"], accounts[SOUTH]["chain"]) == ("north", "1", "polygon")
    rule_sets = {row["rule_set"] for row in rows_of(normalized, "rule_sets")}
    assert rule_sets == {"aave_v3:ethereum-core", "aave_v3:ethereum-prime", "aave_v3:polygon-old"}
    tiers = {(r["rule_set"], r["emode"]) for r in rows_of(normalized, "collateral_tiers", asset_id="WETH@ethereum")}
    assert ("aave_v3:ethereum-prime", "1") in tiers
    snapshot = take_snapshot([normalized.batches], normalized.failures, max_mark_gap=0.02)
    assert (snapshot.failures, snapshot.incomplete) == ((), frozenset())
    assert snapshot.as_of == AS_OF
    assert FACTS.title == "Aave v3"


def test_prices_of_one_chain_are_the_venues_where_markets_agree_and_the_accounts_where_not() -> None:
    normalized = _normalize(_fetched(*CORE, *PRIME, *LEGACY))
    marks = {(r["subject"], r["account_id"]): r["value"] for r in rows_of(normalized, "marks", field="oracle")}
    # USDC is 0.9999 in both markets of the one chain at one time; nobody of Core holds it against the other's price
    assert marks["USDC@ethereum", None] == 0.9999
    assert marks["USDC@polygon", None] == 0.99985
    assert ("WETH@ethereum", None) not in marks
    assert marks["WETH@ethereum", NORTH_PRIME] == 3377.01112
    assert marks["wstETH@ethereum", NORTH_PRIME] == 3952.39417283
    assert marks["wstETH@ethereum", NORTH_CORE] == 3952.28098332
    assert marks["WBTC@ethereum", None] == 60952.38820618
    held = {(row["asset_id"], row["account_id"]) for row in rows_of(normalized, "balances")}
    assert {key for key in marks if key[1] is not None} <= held
    # each market alone states its prices for the venue
    for alone in (CORE, PRIME):
        rows = rows_of(_normalize(_fetched(*alone)), "marks", field="oracle")
        assert {row["account_id"] for row in rows} == {None}
    # the same price at another time is another price: a stale market must not lend its neighbor's freshness
    payloads = _fetched(*CORE, *PRIME)
    payloads["prime_reserves"] = _changed(payloads["prime_reserves"], lambda body: None, received_at=AS_OF)
    subjects = [row["subject"] for row in rows_of(_normalize(payloads), "marks", account_id=None)]
    assert "USDC@ethereum" not in subjects


def test_every_account_is_the_venues_own_figure_and_the_engines() -> None:
    payloads = _fetched(*CORE, *PRIME, *LEGACY)
    normalized = _normalize(payloads)
    figures = native_figures(normalized, as_of=AS_OF)
    accounts = {row["account_id"]: row for row in rows_of(normalized, "accounts")}
    assert set(figures) == set(accounts)
    for account, row in accounts.items():
        ours = figures[account]
        assert ours.equity == pytest.approx(float(row["reported_equity"]), rel=1e-9, abs=1e-7), account
        if row["reported_maintenance_margin"] is not None:
            assert ours.maintenance == pytest.approx(float(row["reported_maintenance_margin"]), rel=1e-9, abs=1e-6)
        assert ours.initial >= ours.maintenance
    # health: (equity - maintenance + debt) / debt, with the debt that the venue reports
    for name, account in (("prime_data_north", NORTH_PRIME), ("legacy_data_south", SOUTH)):
        body = payloads[name].body
        collateral, debt, health = (
            (body["data"][0], body["data"][1], body["data"][5])
            if "data" in body
            else (body["totalCollateralBase"], body["totalDebtBase"], body["healthFactor"])
        )
        owed = int(debt) / 1e8
        found = (figures[account].equity - figures[account].maintenance + owed) / owed
        # before v3.5 the venue's is of the average threshold, a basis point below at most
        slack = int(collateral) / int(debt) / 1e4 if account == SOUTH else 1e-9
        assert 0 <= found - int(health) / 1e18 + 1e-9 <= slack + 2e-9


def test_the_order_of_payloads_does_not_matter() -> None:
    payloads = list(_fetched(*CORE, *PRIME, *LEGACY).values())
    assert _tables(_normalize(payloads)) == _tables(_normalize(payloads[::-1]))
    assert _tables(_normalize(payloads)) == _tables(_normalize(payloads[5:] + payloads[:5]))


def test_an_address_in_the_body_names_the_market_as_well() -> None:
    by_name = _fetched(*PRIME)
    by_address = [
        _changed(payload, lambda body: body | {"provider": PROVIDER.lower()}, request=payload.request.partition(":")[0])
        for payload in by_name.values()
    ]
    named = _tables(_normalize(by_name))
    found = _tables(_normalize(by_address))
    for table in ("accounts", "balances", "collateral_tiers"):
        assert found[table] == named[table]
    agreeing = [_changed(payload, lambda body: body | {"pool": POOL}) for payload in by_name.values()]
    assert _tables(_normalize(agreeing)) == named


@pytest.mark.parametrize(
    ("request_", "body", "parameters", "failure"),
    [
        ("getUserReservesData:ethereum-prim", {}, {}, ("unknown_market", "request", "aave_v3:north:ethereum-prim")),
        ("getUserReservesData:ethereum-core", {"provider": PROVIDER}, {},
         ("inconsistent", "request", "aave_v3:north:ethereum-core")),
        ("getUserReservesData:ethereum-prime", {"pool": "0x" + "12" * 20}, {},
         ("inconsistent", "pool", "aave_v3:north:ethereum-prime")),
        ("getUserReservesData", {"provider": "0x" + "12" * 20}, {"default_market": "ethereum-prime"},
         ("unknown_market", "provider", "aave_v3:north")),
        ("getUserReservesData", {}, {"chain": None, "market": None, "rules": None},
         ("unknown_market", "request", "aave_v3:north")),
        ("getReservesData:nowhere", {}, {}, ("unknown_market", "request", None)),
    ],
)  # fmt: skip
def test_a_payload_of_no_market_is_refused(
    request_: str, body: Body, parameters: dict[str, Any], failure: tuple[str, str, str | None]
) -> None:
    owner = "north" if "User" in request_ else ""
    payload = Payload(request_, "x.json", owner, None, "", body)
    normalized = _normalize([payload], **parameters)
    assert _failed(normalized) == [failure]
    assert normalized.failures[0].venue == "aave_v3"


def test_payloads_are_duplicates_within_a_market_alone() -> None:
    payloads = _fetched(*CORE, *PRIME)
    normalized = _normalize([*payloads.values(), payloads["prime_user_north"]])
    assert [f for f in _failed(normalized) if f[0] == "duplicate"] == [("duplicate", "", NORTH_PRIME)] * 2
    assert {f.account_id for f in normalized.failures} == {NORTH_PRIME}
    assert len(rows_of(normalized, "balances", account_id=NORTH_CORE)) == len(
        rows_of(_normalize(_fetched(*CORE)), "balances", account_id=NORTH_CORE)
    )


def test_tokens_of_one_name_on_one_chain_are_told_apart_across_markets() -> None:
    other = "0x" + "77" * 20

    def rename(body: Body) -> None:
        body["result"][0][USDC][0] = other

    payloads = _fetched(*CORE, *PRIME)
    payloads["prime_reserves"] = _changed(payloads["prime_reserves"], rename)

    def follow(body: Body) -> None:
        body["result"][0][USDC][0] = other

    payloads["prime_user_north"] = _changed(payloads["prime_user_north"], follow)
    refused = _normalize(payloads)
    assert {(f.reason, f.account_id) for f in refused.failures} == {
        ("duplicate", None),
        ("duplicate", NORTH_CORE),
        ("duplicate", NORTH_PRIME),
        ("duplicate", "aave_v3:treasury:ethereum-core"),
    }
    prime = _parameters()["markets"]["ethereum-prime"] | {"symbols": {other: "GHO"}}
    told = _normalize(payloads, markets={"ethereum-prime": prime})
    assert told.failures == []
    # on another chain the same name is another asset anyway
    assert _normalize(_fetched(*CORE, *LEGACY)).failures == []


def test_a_market_without_reserves_makes_its_own_accounts_incomplete() -> None:
    payloads = _fetched(*CORE, *PRIME)
    del payloads["prime_reserves"]
    normalized = _normalize(payloads)
    assert {f.account_id for f in normalized.failures} == {NORTH_PRIME}
    assert {f.reason for f in normalized.failures} == {"missing_mark"}
    assert len(rows_of(normalized, "accounts")) == 4


MARKETS: dict[str, Any] = {
    "ethereum-core": {"chain": "ethereum", "rules": "v3.7"},
    "ethereum-prime": {"chain": "ethereum", "rules": "v3.7"},
}
TABLE_ALONE = {"chain": None, "market": None, "rules": None, "markets": MARKETS}


def test_markets_may_all_stand_in_the_table() -> None:
    payloads = _fetched(*CORE, *PRIME)
    normalized = _normalize(payloads, **TABLE_ALONE, default_market="ethereum-core")
    assert normalized.failures == []
    assert {row["account_id"] for row in rows_of(normalized, "accounts", owner="north")} == {NORTH_CORE, NORTH_PRIME}
    assert _state(normalized, "ethereum-core:WETH@ethereum")["status"] == "active"
    assert _state(normalized, "ethereum-prime:WETH@ethereum")["status"] == "active"
    one = {"markets": {"ethereum-prime": MARKETS["ethereum-prime"]}}
    alone = _normalize(_fetched(*PRIME), **(TABLE_ALONE | one))
    assert [row["account_id"] for row in rows_of(alone, "accounts")] == [NORTH_PRIME]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"markets": ["prime"]}, "must be tables"),
        ({"markets": {"prime": "v3.7"}}, "market 'prime' is no table"),
        ({"markets": {"prime": {"chain": "ethereum"}}}, "market 'prime': 'rules' is missing"),
        ({"markets": {"prime": {"chain": "", "rules": "v3.7"}}}, "market 'prime': 'chain' is missing"),
        ({"markets": {"prime": {"chain": "base", "rules": "v4"}}}, "market 'prime': unknown rules 'v4'"),
        ({"markets": {"prime": {"chain": "base", "rules": "v3.7", "adresses": []}}}, "did you mean 'addresses'"),
        ({"markets": {"prime": {"chain": "base", "rules": "v3.7", "addresses": "0x1"}}}, "list of texts"),
        ({"markets": {"prime": {"chain": "base", "rules": "v3.7", "symbols": []}}}, "'symbols' must map"),
        ({"markets": {"ethereum-core": MARKETS["ethereum-core"]}}, "stands twice"),
        ({"markets": {name: entry | {"addresses": [POOL]} for name, entry in MARKETS.items()}, "chain": None,
          "market": None, "rules": None}, "is claimed by ethereum-core and ethereum-prime"),
        ({"default_market": "ethereum-cor"}, "none of its markets .did you mean 'ethereum-core'"),
        ({"chain": None}, "'chain' is missing"),
    ],
)  # fmt: skip
def test_contradictory_markets_are_a_configuration_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _normalize([], **changes)


# Shapes ---------------------------------------------------------------------------------------------------------------


def _tuple_of(record: dict[str, Any], layout: tuple[str, ...]) -> list[Any]:
    return [record.get(name, 0) for name in layout]


def _as_tuples(name: str, body: Body) -> Body:
    """A named body of Core as the nested lists that an ABI decoder gives."""
    if name == "reserves":
        reserves = [_tuple_of(reserve, shapes.RESERVE[0]) for reserve in body["reserves"]]
        return [reserves, _tuple_of(body["baseCurrencyInfo"], shapes.BASE_CURRENCY)]
    if name == "emodes":
        return [[entry["id"], _tuple_of(entry["eMode"], shapes.EMODE[0])] for entry in body["eModes"]]
    if name.startswith("user"):
        held = [_tuple_of(record, shapes.USER_RESERVE[0]) for record in body["userReserves"]]
        return [held, body["userEmodeCategoryId"]]
    return _tuple_of(body, shapes.ACCOUNT_OUTPUTS)


def _numbered(name: str, body: Body) -> Body:
    """Outputs and structs as objects with the keys "0", "1", ..."""

    def numbered(value: list[Any]) -> dict[str, Any]:
        return {str(place): entry for place, entry in enumerate(value)}

    listed = _as_tuples(name, body)
    if name == "reserves":
        return numbered([[numbered(reserve) for reserve in listed[0]], numbered(listed[1])])
    if name == "emodes":
        return {"0": [numbered([entry[0], numbered(entry[1])]) for entry in listed]}
    if name.startswith("user"):
        return numbered([[numbered(record) for record in listed[0]], listed[1]])
    return numbered(listed)


def _as_integers(name: str, body: Body) -> Body:
    """Every number in text as a JSON integer."""
    if isinstance(body, dict):
        return {key: _as_integers(name, value) for key, value in body.items()}
    if isinstance(body, list):
        return [_as_integers(name, value) for value in body]
    return int(body) if isinstance(body, str) and body.isdigit() else body


def _single_output_in_a_tuple(name: str, body: Body) -> Body:
    return [_as_tuples(name, body)] if name == "emodes" else _as_tuples(name, body)


SHAPES: dict[str, Callable[[str, Body], Body]] = {
    "tuples": _as_tuples,
    "numbered": _numbered,
    "integers": _as_integers,
    "one output in a tuple": _single_output_in_a_tuple,
    "in result": lambda name, body: {"jsonrpc": "2.0", "id": 1, "result": body},
    "in data": lambda name, body: {"data": body, "code": 0},
    "tuples in result in data": lambda name, body: {"data": {"result": _as_tuples(name, body)}},
    "names and places": lambda name, body: {**body, **{str(i): v for i, v in enumerate(body.values())}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_a_decoder_is_one_body(shape: str) -> None:
    payloads = _fetched(*CORE)
    assert set(payloads) == {"reserves", "emodes"} | {
        f"{kind}_{owner}" for kind in ("user", "data") for owner in ("north", "staking", "treasury")
    }

    def rewritten(name: str) -> Payload:
        without_call = {key: value for key, value in payloads[name].body.items() if key != "call"}
        body = SHAPES[shape](name, json.loads(json.dumps(without_call)))
        return _changed(payloads[name], lambda _: body)

    assert _tables(_normalize({name: rewritten(name) for name in payloads})) == _tables(_normalize(payloads))


def test_reserves_of_every_release_are_known_by_their_length() -> None:
    assert [len(layout) for layout in shapes.RESERVE] == [40, 42, 41, 56, 54]
    reserve = _fetched(*LEGACY)["legacy_reserves"].body["reserves"][WETH]
    for layout in shapes.RESERVE:
        named = shapes.struct(_tuple_of(reserve | {"isPaused": "here"}, layout), shapes.RESERVE, "")
        assert (named["isPaused"], named["liquidityRate"]) == ("here", reserve["liquidityRate"])
    fields = {"ltv": 1, "liquidationThreshold": 2, "liquidationBonus": 3, "collateralBitmap": 4, "borrowableBitmap": 5}
    for layout in shapes.EMODE:
        assert fields.items() <= shapes.struct(_tuple_of(fields, layout), shapes.EMODE, "").items()


def test_the_legacy_market_may_come_in_tuples_too() -> None:
    payloads = _fetched(*LEGACY)
    named = _normalize(payloads)

    def reserves(body: Body) -> Body:
        records = [_tuple_of(record, shapes.RESERVE[4]) for record in body["reserves"]]
        return {"result": [records, _tuple_of(body["baseCurrencyInfo"], shapes.BASE_CURRENCY)]}

    def user(body: Body) -> Body:
        return [[_tuple_of(record, shapes.USER_RESERVE[1]) for record in body["userReserves"]], 1]

    payloads["legacy_reserves"] = _changed(payloads["legacy_reserves"], reserves)
    payloads["legacy_user_south"] = _changed(payloads["legacy_user_south"], user)
    assert _tables(_normalize(payloads)) == _tables(named)


def _at(*path: Any) -> Callable[[Body], None]:
    """Sets the value at the end of `path` (keys and positions, then the value)."""

    def change(body: Any) -> None:
        for step in path[:-2]:
            body = body[step]
        body[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    ("name", "change", "reason", "path", "account"),
    [
        ("prime_user_north", _at("result", [[], 1, 2]), "malformed", "result", NORTH_PRIME),
        ("prime_user_north", _at("result", "0x00"), "malformed", "result", NORTH_PRIME),
        ("prime_user_north", _at("result", None), "missing_field", "userEmodeCategoryId", NORTH_PRIME),
        ("prime_user_north", _at("result", 1, "x"), "not_a_number", "result.userEmodeCategoryId", NORTH_PRIME),
        ("prime_user_north", _at("result", 0, 1, [1, 2, 3]), "malformed", "result.userReserves[1]", NORTH_PRIME),
        ("prime_user_north", _at("result", 0, 1, 1, "-5"), "out_of_range",
         "result.userReserves[1].scaledATokenBalance", NORTH_PRIME),
        ("prime_user_north", _at("result", 0, 0, 3, True), "not_a_number",
         "result.userReserves[0].scaledVariableDebt", NORTH_PRIME),
        ("prime_reserves", _at("result", 0, 1, []), "malformed", "result.reserves[1]", NORTH_PRIME),
        ("prime_reserves", _at("result", 0, 1, 22, 0), "out_of_range",
         "result.reserves[1].priceInMarketReferenceCurrency", NORTH_PRIME),
        ("prime_reserves", _at("result", 1, [1, 2]), "malformed", "result.baseCurrencyInfo", NORTH_PRIME),
        ("prime_reserves", _at("result", 0, {}), "malformed", "result.reserves", NORTH_PRIME),
        ("prime_emodes", _at("result", 0, 1, [1, 2]), "malformed", "result.eModes[0].eMode", NORTH_PRIME),
        ("prime_emodes", _at("result", 0, 1, 4, 1), "malformed", "result.eModes[0].eMode.isolated", NORTH_PRIME),
        ("prime_emodes", _at("result", 7), "malformed", "result", NORTH_PRIME),
        ("prime_data_north", _at("data", 5, "x"), "not_a_number", "data.healthFactor", None),
        ("prime_data_north", _at("data", [1, 2, 3]), "malformed", "data", None),
    ],
)  # fmt: skip
def test_a_bad_tuple_names_its_field(
    name: str, change: Callable[[Body], None], reason: str, path: str, account: str | None
) -> None:
    payloads = _fetched(*CORE, *PRIME)
    payloads[name] = _changed(payloads[name], change)
    normalized = _normalize(payloads)
    assert any((f.reason, f.path) == (reason, path) for f in normalized.failures), normalized.failures
    assert {f.account_id for f in normalized.failures if f.account_id} == ({account} if account else set())
    assert {row["account_id"] for row in rows_of(normalized, "accounts")} >= {NORTH_CORE, NORTH_PRIME}


@pytest.mark.parametrize("body", [None, 5, "reserves", [], True])
@pytest.mark.parametrize("name", ["reserves", "emodes", "user_north", "data_north"])
def test_a_body_that_is_no_answer_is_malformed(name: str, body: Body) -> None:
    if name == "emodes" and body == []:
        return  # no categories
    payloads = _fetched(*CORE)
    payloads[name] = Payload(payloads[name].request, f"{name}.json", payloads[name].account, AS_OF, "", body)
    normalized = _normalize(payloads)
    assert [f.reason for f in normalized.failures if f.payload == f"{name}.json"] == ["malformed"]
    stopped = {"reserves": 3, "emodes": 1, "user_north": 1, "data_north": 0}[name]
    assert len({f.account_id for f in normalized.failures if f.account_id}) == stopped
    assert len(rows_of(normalized, "accounts")) == 3


def test_sorted_reserves_do_not_tell_the_bits_of_an_emode() -> None:
    payloads = _fetched(*CORE)

    def turn(body: Body) -> None:
        body["reserves"].reverse()

    def number_then_turn(body: Body) -> None:
        for place, reserve in enumerate(body["reserves"]):
            reserve["id"] = place
        body["reserves"].reverse()

    turned = _normalize(payloads | {"reserves": _changed(payloads["reserves"], turn)})
    # only who is in a category is concerned
    assert _failed(turned) == [("inconsistent", "userReserves", "aave_v3:staking:ethereum-core")]
    # a reserve that is missing in front, and a copy in front, move all bits behind
    for change in (
        lambda body: body["reserves"].pop(3) and None,
        lambda body: body["reserves"].insert(1, body["reserves"][3]),
    ):
        moved = _normalize(payloads | {"reserves": _changed(payloads["reserves"], change)})
        assert ("inconsistent", "userReserves", "aave_v3:staking:ethereum-core") in _failed(moved)
    numbered = _normalize(payloads | {"reserves": _changed(payloads["reserves"], number_then_turn)})
    assert numbered.failures == []
    keyed = [
        {(r["asset_id"], r["emode"]): r for r in rows_of(n, "collateral_tiers")}
        for n in (numbered, _normalize(payloads))
    ]
    assert keyed[0] == keyed[1]


def test_a_user_without_any_reserve_in_the_list_is_no_answer() -> None:
    payloads = _fetched(*CORE)
    payloads["user_treasury"] = _changed(payloads["user_treasury"], _at("userReserves", []))
    assert _failed(_normalize(payloads)) == [("missing_field", "userReserves", "aave_v3:treasury:ethereum-core")]


# Older releases -------------------------------------------------------------------------------------------------------


def test_reserves_of_v30_state_their_emode_category() -> None:
    normalized = _normalize(_fetched(*LEGACY))
    assert normalized.failures == []
    tiers = {(r["asset_id"], r["emode"]): r for r in rows_of(normalized, "collateral_tiers")}
    assert set(tiers) == {(f"{token}@polygon", "") for token in ("WETH", "wstETH", "USDC")} | {
        (f"{token}@polygon", "1") for token in ("WETH", "wstETH")
    }
    weights = [tiers["wstETH@polygon", "1"][f"asset_weight_{level}"] for level in ("initial", "maintenance")]
    assert weights == [Decimal("0.9"), Decimal("0.93")]
    assert tiers["wstETH@polygon", "1"]["liquidation_bonus"] == Decimal("0.01")
    (account,) = rows_of(normalized, "accounts")
    assert (account["account_id"], account["emode"]) == (SOUTH, "1")
    assert account["reported_health"] == Decimal("1.529283644664974422")
    assert account["reported_maintenance_margin"] is None


def test_balances_of_v30_are_accrued_by_the_binomial_and_rounded_half_up() -> None:
    payloads = _fetched(*LEGACY)
    record = payloads["legacy_reserves"].body["reserves"][WETH]
    seconds = 1719705600 - int(record["lastUpdateTimestamp"])
    p = Fraction(int(record["variableBorrowRate"]), 31_536_000 * 10**27)
    factor = 1 + seconds * p + Fraction(seconds * (seconds - 1), 2) * p**2
    scaled = int(payloads["legacy_user_south"].body["userReserves"][WETH]["scaledVariableDebt"])
    exact = scaled * factor * int(record["variableBorrowIndex"]) / 10**27
    (row,) = rows_of(_normalize(payloads), "balances", asset_id="WETH@polygon")
    assert row["side"] == "liability"
    # the factor is cut to a ray a few times on the way, the amount is of 9e19: below a unit
    assert abs(int(row["quantity"].scaleb(18)) - exact) < 1


def test_health_before_v35_is_noted_for_reconciliation() -> None:
    normalized = _normalize(_fetched(*LEGACY))
    (note,) = rows_of(normalized, "market_state", market=SOUTH)
    assert (note["field"], note["source"]) == ("reconciliation_note.health", "getUserAccountData:polygon-old")
    assert note["value"] == pytest.approx(53031751244552 / 31802745838581 / 1e4)
    assert "v3.0" in note["text"]
    newer = {name: entry | {"rules": "v3.5"} for name, entry in _parameters()["markets"].items()}
    assert rows_of(_normalize(_fetched(*LEGACY), markets=newer), "market_state", market=SOUTH) == []


def _legacy(change: Callable[[Body], None], name: str = "legacy_reserves") -> Normalized:
    payloads = _fetched(*LEGACY)
    payloads[name] = _changed(payloads[name], change)
    return _normalize(payloads)


def test_an_emode_of_reserves_that_cannot_be_used_stops_who_is_in_it() -> None:
    missing = _legacy(lambda body: body["reserves"][WSTETH].pop("eModeCategoryId") and None)
    assert _failed(missing) == [
        ("missing_field", "reserves[1].eModeCategoryId", None),
        ("missing_field", "userReserves[1].underlyingAsset", SOUTH),
    ]
    oracle = _legacy(_at("reserves", WETH, "eModePriceSource", "0x" + "9" * 40))
    assert ("inconsistent", "reserves.eModeCategoryId", None) in _failed(oracle)

    def own_oracle(body: Body) -> None:
        for place in (WETH, WSTETH):
            body["reserves"][place]["eModePriceSource"] = "0x" + "9" * 40

    assert _failed(_legacy(own_oracle)) == [
        ("unsupported", "reserves.eModePriceSource", None),
        ("unsupported", "getReservesData", SOUTH),
    ]
    differing = _legacy(_at("reserves", WETH, "eModeLtv", 8900))
    assert _failed(differing) == [
        ("inconsistent", "reserves.eModeCategoryId", None),
        ("inconsistent", "getReservesData", SOUTH),
    ]
    unknown = _legacy(_at("userEmodeCategoryId", 4), "legacy_user_south")
    assert _failed(unknown) == [("missing_parameter", "getReservesData", SOUTH)]
    # outside the category nobody asks for it
    outside = _legacy(_at("userEmodeCategoryId", 0), "legacy_user_south")
    assert outside.failures == []
    assert {row["emode"] for row in rows_of(outside, "collateral_tiers")} == {""}


def test_releases_before_v32_have_no_get_emodes_and_no_stable_debt_is_read() -> None:
    payloads = _fetched(*LEGACY, *PRIME)
    payloads["prime_emodes"] = _changed(
        payloads["prime_emodes"], lambda body: None, request="getEModes:polygon-old", name="emodes.json"
    )
    normalized = _normalize(payloads)
    assert ("unsupported", "request", None) in _failed(normalized)
    assert {f.account_id for f in normalized.failures} == {None, NORTH_PRIME}
    stable = _legacy(_at("userReserves", WETH, "principalStableDebt", "7"), "legacy_user_south")
    assert _failed(stable) == [("unsupported", "userReserves[0].principalStableDebt", SOUTH)]


def test_a_health_factor_that_the_average_does_not_give_is_a_finding() -> None:
    normalized = _legacy(_at("healthFactor", "1529283644664974423"), "legacy_data_south")
    assert _failed(normalized) == [("inconsistent", "healthFactor", None)]
    assert rows_of(normalized, "accounts")[0]["reported_health"] is None
    assert _state(normalized, SOUTH) == {}


# State of reserves ----------------------------------------------------------------------------------------------------


def test_a_reserve_tells_its_totals_rates_limits_and_flags() -> None:
    payloads = _fetched(*LEGACY)

    def more(body: Body) -> None:
        body["reserves"][USDC] |= {"isPaused": True, "isFrozen": True, "deficit": "1234567", "supplyCap": "9"}
        body["reserves"][USDC]["liquidationProtocolFee"] = "1000"

    payloads["legacy_reserves"] = _changed(payloads["legacy_reserves"], more)
    normalized = _normalize(payloads)
    assert normalized.failures == []
    record = payloads["legacy_reserves"].body["reserves"][WSTETH]
    state = _state(normalized, "polygon-old:wstETH@polygon")
    assert (state["debt_ceiling"], state["isolation_mode_total_debt"]) == (2_500_000.0, 103_456.78)
    assert state["variable_borrow_rate"] == int(record["variableBorrowRate"]) / 10**27
    assert state["liquidity_rate"] == int(record["liquidityRate"]) / 10**27
    seconds = 1719705600 - int(record["lastUpdateTimestamp"])
    growth = 1 + int(record["variableBorrowRate"]) / 1e27 * seconds / 31_536_000
    debt = int(record["totalScaledVariableDebt"]) * int(record["variableBorrowIndex"]) / 1e45 * growth
    assert state["total_debt"] == pytest.approx(debt, rel=1e-12)
    assert state["total_supply"] == pytest.approx(debt + int(record["availableLiquidity"]) / 1e18, rel=1e-12)
    assert "liquidation_grace_until" not in state
    dollars = _state(normalized, "polygon-old:USDC@polygon")
    assert (dollars["status"], dollars["deficit"]) == ("active frozen paused", 1.234567)
    assert (dollars["liquidation_protocol_fee"], dollars["supply_cap"]) == (0.1, 9.0)
    assert dollars["liquidation_grace_until"] == 1719705000.0
    assert {"debt_ceiling", "isolation_mode_total_debt"}.isdisjoint(dollars)
    as_of = {row["as_of"] for row in rows_of(normalized, "market_state")}
    assert as_of == {AS_OF}
    # what there is virtually goes before what the token holds
    prime = _normalize(_fetched(*PRIME))
    virtual = _state(prime, "ethereum-prime:WETH@ethereum")
    assert virtual["virtual_balance"] == virtual["available_liquidity"] == 206411517203948517203948 / 10**18
    assert virtual["deficit"] == 0.0


USDC_ADDRESS = "0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48"


@pytest.mark.parametrize(
    "body",
    [
        {"asset": USDC_ADDRESS, "liquidationGracePeriodUntil": 1719709200},
        {"asset": USDC_ADDRESS.upper().replace("0X", "0x"), "result": "1719709200"},
        {"asset": USDC_ADDRESS, "data": "1719709200"},
        [{"asset": USDC_ADDRESS, "liquidationGracePeriodUntil": "1719709200"}],
        [[USDC_ADDRESS, 1719709200]],
        {USDC_ADDRESS: "1719709200"},
        {"result": {USDC_ADDRESS: 1719709200}},
        {"data": [[USDC_ADDRESS, "1719709200"]]},
    ],
)
def test_a_grace_period_is_read_in_every_shape(body: Body) -> None:
    grace = Payload("getLiquidationGracePeriod", "grace.json", "", AS_OF, "", body)
    normalized = _normalize([*_fetched(*CORE).values(), grace])
    assert normalized.failures == []
    (row,) = rows_of(normalized, "market_state", market="USDC@ethereum", field="liquidation_grace_until")
    assert (row["value"], row["source"], row["as_of"]) == (1719709200.0, "getLiquidationGracePeriod", AS_OF)


def test_grace_periods_come_one_by_one_and_0_is_none() -> None:
    weth = _fetched(*CORE)["reserves"].body["reserves"][WETH]["underlyingAsset"]
    graces = [
        Payload("getLiquidationGracePeriod", f"{i}.json", "", AS_OF, "", {"asset": asset, "result": until})
        for i, (asset, until) in enumerate(((USDC_ADDRESS, "1719709200"), (weth, "0")))
    ]
    normalized = _normalize([*_fetched(*CORE).values(), *graces])
    assert normalized.failures == []
    rows = rows_of(normalized, "market_state", field="liquidation_grace_until")
    assert [row["market"] for row in rows] == ["USDC@ethereum"]
    twice = _normalize([*_fetched(*CORE).values(), *graces, graces[0]])
    assert [(f.reason, f.payload, f.account_id) for f in twice.failures] == [("duplicate", "0.json", None)] * 2
    assert rows_of(twice, "market_state", field="liquidation_grace_until") == []


@pytest.mark.parametrize(
    ("body", "reason", "path"),
    [
        ({"result": "5"}, "malformed", "result"),
        ({"asset": 5, "result": "5"}, "malformed", "asset"),
        ({"asset": USDC_ADDRESS}, "missing_field", "liquidationGracePeriodUntil"),
        ({"asset": USDC_ADDRESS, "result": "soon"}, "not_a_number", "result"),
        ([[USDC_ADDRESS, -1]], "out_of_range", "[0].liquidationGracePeriodUntil"),
        ([{"asset": "0x" + "1" * 40, "result": 3}], "unknown_market", "[0]"),
        ("0x00", "malformed", ""),
    ],
)
def test_a_grace_period_that_cannot_be_read_stops_nobody(body: Body, reason: str, path: str) -> None:
    grace = Payload("getLiquidationGracePeriod", "grace.json", "", AS_OF, "", body)
    normalized = _normalize([*_fetched(*CORE).values(), grace])
    assert _failed(normalized) == [(reason, path, None)]


def test_a_grace_period_without_reserves_is_a_finding() -> None:
    grace = Payload("getLiquidationGracePeriod", "grace.json", "", AS_OF, "", [[USDC_ADDRESS, 1719709200]])
    assert _failed(_normalize([grace])) == [("missing_field", "[0]", None)]


def test_a_grace_period_that_the_reserve_states_otherwise_is_a_finding() -> None:
    payloads = _fetched(*CORE)
    stated = _at("reserves", 3, "liquidationGracePeriodUntil", 1719709200)
    payloads["reserves"] = _changed(payloads["reserves"], stated)
    same = Payload("getLiquidationGracePeriod", "g.json", "", AS_OF, "", {"asset": USDC_ADDRESS, "result": 1719709200})
    agreed = _normalize([*payloads.values(), same])
    assert agreed.failures == []
    assert len(rows_of(agreed, "market_state", market="USDC@ethereum", field="liquidation_grace_until")) == 1
    other = _changed(same, _at("result", 1719709201))
    differing = _normalize([*payloads.values(), other])
    assert _failed(differing) == [("inconsistent", "reserves[3].liquidationGracePeriodUntil", None)]
    # a state that cannot be read whole is not written in part
    assert _state(differing, "USDC@ethereum") == {}


# Liquidation price of an account as payloads give it ------------------------------------------------------------------


def test_the_liquidation_price_of_a_payload_makes_its_health_one() -> None:
    payloads = _fetched(*PRIME)
    reserves = [
        dict(zip(shapes.RESERVE[0], record, strict=True)) for record in payloads["prime_reserves"].body["result"][0]
    ]
    held = payloads["prime_user_north"].body["result"][0]
    holdings = [
        mechanics.ReserveHolding(
            reserve_id=place,
            decimals=reserve["decimals"],
            price=reserve["priceInMarketReferenceCurrency"],
            parameters=mechanics.CollateralParameters(
                reserve["baseLTVasCollateral"], reserve["reserveLiquidationThreshold"]
            ),
            scaled_supply=int(shares),
            liquidity_index=mechanics.accrued_liquidity_index(
                int(reserve["liquidityIndex"]), int(reserve["liquidityRate"]), 37
            ),
            is_collateral=flag,
            scaled_debt=int(debt),
            borrow_index=mechanics.accrued_borrow_index(
                int(reserve["variableBorrowIndex"]), int(reserve["variableBorrowRate"]), 37
            ),
        )
        for place, (reserve, (_, shares, flag, debt)) in enumerate(zip(reserves, held, strict=True))
    ]
    emode = mechanics.EMode(1, mechanics.CollateralParameters(9350, 9550, 10_100), 3)
    assert str(mechanics.account_data(holdings, emode).health_factor) == payloads["prime_data_north"].body["data"][5]
    found = mechanics.liquidation_prices(holdings, emode)
    assert set(found) == {WETH, WSTETH, USDC}
    for place, price in found.items():
        assert price is not None
        for units, side in ((-2, -1), (2, 1)):
            moved = [h._replace(price=int(price) + units) if h.reserve_id == place else h for h in holdings]
            health = mechanics.account_data(moved, emode).health_factor
            assert health is not None
            # collateral is lost below its price, a debt is too large above it
            assert (health >= 10**18) == (side == (1 if place == WSTETH else -1)), (place, units)
