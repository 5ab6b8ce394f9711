"""OKX: payloads to canonical tables, every way to be wrong, mechanics against published figures and the engine's forms.

The payloads in `payloads/okx` are written for this suite (see its SOURCE.md). Recorded payloads are read where the
folder of recorded material is at hand.
"""

import copy
import json
import random
import tomllib
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter, Context, Normalized, find_adapter
from adapters.asset_book import read_asset_book
from adapters.okx import ADAPTER, FACTS, mechanics
from adapters.okx.mechanics import DiscountTier, PositionTier, RiskParts
from adapters.okx.parse import name_of
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.errors import ConfigurationError, Failure
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.rule_forms import DebtCharge, Fixed, PriceVolGrid, TieredNotional, WeightedValue, parse_parameters
from aggregator.snapshot import take_snapshot
from tests.sample_okx import PAYLOADS

TESTS = Path(__file__).resolve().parent
FOLDER = TESTS / "payloads" / "okx"
CONFIGS = TESTS.parent / "configs"
PARAMETERS = tomllib.loads((CONFIGS / "venues" / "okx.toml").read_text(encoding="utf-8"))
ASSETS = read_asset_book(CONFIGS / "assets.toml")
REQUESTS = {file: (request, owner) for request, file, owner in PAYLOADS}

# Figures are given to 12 decimals.
VENUE_RELATIVE, VENUE_ROUNDING = 1e-12, 5e-11
# Native margin at current prices is float64.
ENGINE_RELATIVE = 1e-9

NORTH, SOUTH_BTC, SOUTH_USDT = "okx:north:cross", "okx:south:BTC", "okx:south:USDT"
EAST, WEST, QUAY = "okx:east:portfolio", "okx:west:cross", "okx:quay:cross"
ISOLATED_SOL = "okx:north:isolated:SOL-USDT-SWAP:short"
ISOLATED_ETH = "okx:north:isolated:ETH-USD-240927:long"
ACCOUNTS = (NORTH, SOUTH_BTC, SOUTH_USDT, EAST, WEST, QUAY, ISOLATED_SOL, ISOLATED_ETH)


def fetched(file: str, *, root: Path = FOLDER, request: str = "", owner: str = "") -> Payload:
    stated = REQUESTS.get(file, (request, owner)) if root == FOLDER else (request, owner)
    payload = RecordedTransport(root).fetch("okx", PayloadRequest(stated[0], file, stated[1]))
    assert isinstance(payload, Payload), payload
    return payload


def desk() -> list[Payload]:
    return [fetched(file) for file in REQUESTS]


def normalized(payloads: list[Payload], parameters: Any = None) -> Normalized:
    return ADAPTER.normalize(payloads, Context(ASSETS, PARAMETERS if parameters is None else parameters))


def changed(payload: Payload, change: Callable[[Any], None]) -> Payload:
    body = copy.deepcopy(payload.body)
    change(body)
    return replace(payload, body=body)


def desk_with(file: str, change: Callable[[Any], None]) -> list[Payload]:
    return [changed(payload, change) if payload.name == file else payload for payload in desk()]


def desk_without(*files: str) -> list[Payload]:
    return [payload for payload in desk() if payload.name not in files]


def rows_of(result: Normalized, table: str, **where: Any) -> list[dict[str, Any]]:
    return [r for r in result.batches[table].to_pylist() if all(r[key] == value for key, value in where.items())]


def only(result: Normalized, table: str, **where: Any) -> dict[str, Any]:
    found = rows_of(result, table, **where)
    assert len(found) == 1, (table, where, found)
    return found[0]


def forms_of(result: Normalized, account: str, kind: type[Any]) -> list[Any]:
    rule_set = only(result, "accounts", account_id=account)["rule_set"]
    forms = [parse_parameters(r["form"], r["parameters"]) for r in rows_of(result, "rule_sets", rule_set=rule_set)]
    return [form for form in forms if isinstance(form, kind)]


def failures_of(result: Normalized, account: str | None) -> list[Failure]:
    return [failure for failure in result.failures if failure.account_id == account]


def exact(value: Any) -> Fraction:
    return Fraction(str(value))


# ---------------------------------------------------------------------------------------------------------------------
# The desk


def test_the_adapter_is_registered() -> None:
    found: Any = find_adapter("okx")
    assert found is ADAPTER
    assert isinstance(found, Adapter)
    assert FACTS.title == "OKX v5"
    assert {file for _, file, _ in PAYLOADS} == {path.name for path in FOLDER.glob("*.json")}


def test_the_desk_is_read_whole() -> None:
    result = normalized(desk())
    assert result.failures == []
    snapshot = take_snapshot([result.batches], result.failures)
    assert (snapshot.failures, snapshot.incomplete) == ((), frozenset())
    accounts = {r["account_id"]: r for r in rows_of(result, "accounts")}
    assert set(accounts) == set(ACCOUNTS)
    assert {name: (r["margin_mode"], r["settlement_asset"]) for name, r in accounts.items()} == {
        NORTH: ("cross", "USD"),
        SOUTH_BTC: ("cross", "BTC"),
        SOUTH_USDT: ("cross", "USDT"),
        EAST: ("portfolio", "USD"),
        WEST: ("cross", "USD"),
        QUAY: ("cross", "USD"),
        ISOLATED_SOL: ("isolated", "USDT"),
        ISOLATED_ETH: ("isolated", "ETH"),
    }
    assert accounts[ISOLATED_SOL]["parent_account_id"] == NORTH
    assert all(r["node"] == name for name, r in accounts.items())


def test_exact_rows_of_north() -> None:
    result = normalized(desk())
    held = {r["instrument_id"]: r for r in rows_of(result, "positions", account_id=NORTH)}
    assert {name: (r["quantity"], r["side_mode"], r["leverage"]) for name, r in held.items()} == {
        "okx:BTC-USDT-SWAP": (850, "long", 10),
        "okx:BTC-USDT-240927": (-300, "short", 5),
        "okx:ETH-USD-SWAP": (-2400, "short", 8),
    }
    contracts = {r["instrument_id"]: r for r in rows_of(result, "instruments")}
    assert (contracts["okx:ETH-USD-SWAP"]["payoff"], contracts["okx:ETH-USD-SWAP"]["contract_size"]) == ("inverse", 10)
    assert contracts["okx:BTC-USDT-240927"]["expiry"].isoformat() == "2024-09-27T08:00:00+00:00"
    option = contracts["okx:ETH-USD-240927-4000-C"]
    assert (option["kind"], option["contract_size"], option["strike"], option["payoff"]) == (
        "option",
        Decimal("0.1"),
        4000,
        "inverse",
    )
    balances = {r["asset_id"]: r for r in rows_of(result, "balances", account_id=NORTH)}
    assert balances["USDT"]["quantity"] == Decimal("48360.25")  # with 150 of strategy equity
    owed = balances["USDC"]
    assert (owed["side"], owed["quantity"], owed["accrued_interest"]) == ("liability", 12_000, Decimal("14.75"))
    assert only(result, "balances", account_id=ISOLATED_ETH)["quantity"] == Decimal("0.45")
    orders = {r["order_id"]: r for r in rows_of(result, "open_orders")}
    assert orders["okx:north:91"]["remaining_quantity"] == 48
    assert orders["okx:north:92"]["account_id"] == ISOLATED_SOL
    assert orders["okx:north:93"]["instrument_id"] == "okx:ETH-USDT"
    marks = {(r["subject"], r["field"]): r["value"] for r in rows_of(result, "marks", account_id=None)}
    assert marks["BTC", "index"] == 60968.4
    assert marks["BTC/USDT", "index"] == 61021.1
    assert marks["okx:BTC-USDT-SWAP", "depth_bid"] == pytest.approx(251.5 * 0.01 * 61012.3)
    assert marks["okx:ETH-USD-SWAP", "depth_ask"] == 9120.0
    assert marks["okx:BTC-USDT-SWAP", "funding_rate"] == 0.0001012
    assert marks["ETH@2024-09-27T08:00:00Z", "forward"] == 3456.2
    assert only(result, "market_state", field="open_interest")["value"] == 24123.0


def test_ladders_hold_the_fee_and_the_family() -> None:
    result = normalized(desk())
    rule_set = only(result, "accounts", account_id=NORTH)["rule_set"]
    swap = rows_of(result, "margin_tiers", rule_set=rule_set, market="okx:BTC-USDT-SWAP")
    assert [(t["notional_floor"], t["notional_cap"], t["maintenance_rate"], t["deduction"]) for t in swap] == [
        (0, 1000, Decimal("0.0045"), 0),
        (1000, 5000, Decimal("0.0055"), 0),
        (5000, 10_000, Decimal("0.0105"), 0),
        (10_000, None, Decimal("0.0205"), 0),
    ]

    # 300 more contracts of another expiry count for the tier of the first
    def with_another(body: Any) -> None:
        body["data"].append({**body["data"][1], "instId": "BTC-USDT-241227", "posId": "7"})

    def with_its_contract(body: Any) -> None:
        body["data"].append({**body["data"][0], "instId": "BTC-USDT-241227", "expTime": ""})

    files = {"north_positions.json": with_another, "instruments_futures.json": with_its_contract}
    both = normalized([changed(p, files[p.name]) if p.name in files else p for p in desk()])
    shifted = rows_of(both, "margin_tiers", rule_set=rule_set, market="okx:BTC-USDT-240927")
    assert [(t["notional_floor"], t["notional_cap"]) for t in shifted][:2] == [(0, 700), (700, 4700)]
    shared = rows_of(both, "margin_tiers", rule_set="okx:multi_currency", market="okx:BTC-USDT-241227")
    assert [t["maintenance_rate"] for t in shared][:2] == [Decimal("0.004"), Decimal("0.005")]


def test_discount_slices_in_both_units() -> None:
    result = normalized(desk())
    rule_set = only(result, "accounts", account_id=NORTH)["rule_set"]
    slices: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows_of(result, "collateral_tiers", rule_set=rule_set):
        entry = (row["floor_in"], row["floor"], row["asset_weight_maintenance"])
        slices.setdefault(row["asset_id"], []).append(entry)
    assert slices["BTC"] == [
        ("tokens", 0, Decimal("0.98")),
        ("tokens", 20, Decimal("0.975")),
        ("tokens", 25, Decimal("0.95")),
    ]
    assert slices["SOL"] == [
        ("value", 0, Decimal("0.95")),
        ("value", 2_000_000, Decimal("0.5")),
        ("value", 8_000_000, 0),
    ]

    # the same slices stated in the older list, but a discount that only coins give
    def older(body: Any) -> None:
        for entry in body["data"]:
            entry["discountInfo"] = entry.pop("details")

    again = normalized(desk_with("discounts.json", older))
    units = {r["asset_id"]: r["floor_in"] for r in rows_of(again, "collateral_tiers", rule_set=rule_set)}
    assert units["BTC"] == "tokens"
    assert units["SOL"] == "value"


def test_rules_of_the_modes() -> None:
    result = normalized(desk())
    assert [(form.floors, form.initial) for form in forms_of(result, NORTH, TieredNotional)] == [
        ("quantity", "leverage")
    ]
    charge = forms_of(result, NORTH, DebtCharge)[0]
    assert (charge.initial_rates["USDC"], charge.maintenance_rates["USDC"]) == (Decimal("0.11"), Decimal("0.03"))
    assert charge.maintenance_rates["BTC"] == Decimal("0.02")  # dated
    assert [form.initial for form in forms_of(result, NORTH, Fixed)] == [Decimal("412.5")]
    loss = next(form for form in forms_of(result, WEST, Fixed) if form.equity)
    assert loss.equity == pytest.approx(Decimal("-35.2"), abs=Decimal("1e-9"))
    assert loss.basis.startswith("reported")
    assert forms_of(result, SOUTH_BTC, WeightedValue)[0].weights == "unit"
    grids = {form.underlyings[0]: form for form in forms_of(result, EAST, PriceVolGrid)}
    assert [float(point.spot) for point in grids["BTC"].scenarios] == [
        1,
        0.96,
        1.04,
        0.92,
        1.08,
        0.88,
        1.12,
        0.76,
        1.24,
    ]
    assert [float(point.dampening) for point in grids["BTC"].scenarios[-2:]] == [0.5, 0.5]
    assert grids["BTC"].roll.minimum == Decimal("0.002")
    assert grids["BTC"].minimum.delta_rate == Decimal("0.0045")
    assert grids["BTC"].reported_worst == 0
    eth = reported_unit("ETH")
    assert grids["ETH"].reported_worst == max(Decimal(eth["mr1"]), Decimal(eth["mr6"]))
    assert grids["ETH"].reported_worst + grids["ETH"].reported_add_on == Decimal(eth["mmr"])
    notes = {r["market"]: r for r in rows_of(result, "market_state") if r["field"].startswith("reconciliation_note")}
    assert set(notes) == {NORTH, SOUTH_BTC, SOUTH_USDT, EAST, WEST, ISOLATED_SOL, ISOLATED_ETH}
    assert notes[EAST]["field"] == "reconciliation_note.health"


def reported_unit(name: str) -> dict[str, Any]:
    units = fetched("east_position_builder.json").body["data"][0]["riskUnitData"]
    return next(unit for unit in units if unit["riskUnit"] == name)


# ---------------------------------------------------------------------------------------------------------------------
# Mechanics, engine and the venue's own figures agree


class Twin:
    """An account's figures by the exact mechanics, from its canonical rows. `fees` are those of liquidation."""

    def __init__(self, result: Normalized, account: str) -> None:
        self.result, self.account = result, account
        self.row = only(result, "accounts", account_id=account)
        self.multi = self.row["settlement_asset"] == "USD"
        public = rows_of(result, "marks", account_id=None)
        self.index = {
            r["subject"]: exact(r["value"]) for r in public if r["field"] == "index" and ":" not in r["subject"]
        }
        self.marks = {
            (r["subject"], r["field"]): exact(r["value"])
            for r in [*public, *rows_of(result, "marks", account_id=account)]
        }
        self.contracts = {r["instrument_id"]: r for r in rows_of(result, "instruments")}
        self.held = rows_of(result, "positions", account_id=account)

    def unit(self, currency: str) -> Fraction:
        return self.index[currency] if self.multi else Fraction(1)

    def equities(self) -> dict[str, Fraction]:
        out: dict[str, Fraction] = {}
        for row in rows_of(self.result, "balances", account_id=self.account):
            amount = Fraction(row["quantity"]) + Fraction(row["accrued_interest"] or 0)
            sign = 1 if row["side"] == "asset" else -1
            out[row["asset_id"]] = out.get(row["asset_id"], Fraction(0)) + sign * amount
        for row in self.held:
            contract, contracts = self.contracts[row["instrument_id"]], Fraction(row["quantity"])
            size, mark = Fraction(contract["contract_size"]), self.marks[row["instrument_id"], "mark"]
            entry, currency = Fraction(row["entry_price"]), contract["settlement_asset"]
            if contract["kind"] == "option":
                value = contracts * size * mark
            elif contract["payoff"] == "inverse":
                value = mechanics.inverse_profit(contracts, size, Fraction(1), entry=entry, mark=mark)
            else:
                value = mechanics.linear_profit(contracts, size, Fraction(1), entry=entry, mark=mark)
            out[currency] = out.get(currency, Fraction(0)) + value
        return out

    def discounted(self, currency: str, amount: Fraction) -> Fraction:
        for request, file, _ in PAYLOADS:
            if not request.startswith("public/discount"):
                continue
            for entry in fetched(file).body["data"]:
                if entry["ccy"] == currency:
                    listed = entry.get("details") or entry["discountInfo"]
                    tiers = [
                        DiscountTier(
                            exact(s["minAmt"]), exact(s["maxAmt"]) if s["maxAmt"] else None, exact(s["discountRate"])
                        )
                        for s in listed
                    ]
                    return mechanics.discounted_usd(
                        amount, self.index[currency], tiers, tiers_in_usd="details" not in entry
                    )
        raise AssertionError(currency)

    def equity(self) -> Fraction:
        if not self.multi:
            return sum(self.equities().values(), Fraction(0))
        values = {currency: self.discounted(currency, amount) for currency, amount in self.equities().items()}
        loss = sum((Fraction(form.equity) for form in forms_of(self.result, self.account, Fixed)), Fraction(0))
        return mechanics.adjusted_equity(values, order_loss=-loss)

    def notional(self, row: dict[str, Any]) -> Fraction:
        contract, contracts = self.contracts[row["instrument_id"]], Fraction(row["quantity"])
        mark, size = self.marks[row["instrument_id"], "mark"], Fraction(contract["contract_size"])
        inverse = contract["payoff"] == "inverse"
        function = mechanics.inverse_notional if inverse else mechanics.linear_notional
        return function(contracts, size, Fraction(1), mark)

    def futures(self) -> list[dict[str, Any]]:
        return [row for row in self.held if self.contracts[row["instrument_id"]]["kind"] != "option"]

    def fees(self) -> Fraction:
        total = Fraction(0)
        for row in self.futures():
            currency = self.contracts[row["instrument_id"]]["settlement_asset"]
            total += self.notional(row) * self.unit(currency) * exact("0.0005")
        return total

    def margin(self) -> mechanics.Margin:
        """Requirement without fees."""
        if self.account == EAST:
            return self._portfolio()
        initial = maintenance = Fraction(0)
        for row in self.futures():
            contract = self.contracts[row["instrument_id"]]
            family = "-".join(contract["symbol"].split("-")[:2])
            kind = "SWAP" if contract["kind"] == "perp" else "FUTURES"
            margin = mechanics.position_margin(
                self.notional(row), Fraction(row["quantity"]), ladder(kind, family), leverage=Fraction(row["leverage"])
            )
            initial += margin.initial * self.unit(contract["settlement_asset"])
            maintenance += margin.maintenance * self.unit(contract["settlement_asset"])
        borrowing = self._borrowing()
        fixed = sum((Fraction(form.initial) for form in forms_of(self.result, self.account, Fixed)), Fraction(0))
        return mechanics.Margin(initial + borrowing.initial + fixed, maintenance + borrowing.maintenance)

    def _borrowing(self) -> mechanics.Margin:
        initial = maintenance = Fraction(0)
        for currency, amount in self.equities().items():
            if self.multi and amount < 0:
                tiers = ladder("MARGIN", currency)
                tier = (
                    mechanics.tier_of(-amount, tiers)
                    if tiers
                    else PositionTier(None, exact("0.1"), exact("0.02"), exact(10))
                )
                margin = mechanics.borrow_margin(
                    -amount * self.index[currency], tier.initial_rate, tier.maintenance_rate
                )
                initial, maintenance = initial + margin.initial, maintenance + margin.maintenance
        return mechanics.Margin(initial, maintenance)

    def btc_unit(self) -> RiskParts:
        grid = coins = Fraction(0)
        for row in self.futures():
            contract = self.contracts[row["instrument_id"]]
            if contract["underlying"] != "BTC":
                continue
            size = Fraction(row["quantity"]) * Fraction(contract["contract_size"])
            mark = self.marks[row["instrument_id"], "mark"]
            inverse = contract["payoff"] == "inverse"
            grid += size if inverse else size * mark * self.index[contract["settlement_asset"]]
            coins += size / mark if inverse else size
        delta = coins * self.index["BTC"]
        moves = [sign * exact(move) for move in ("0", "0.04", "0.08", "0.12") for sign in (1, -1)]
        slices = PARAMETERS["groups"]["btc"]["charge_slices"]
        bounds = [exact(floor) for floor, _ in slices[1:]]
        tiers = [(bound, exact(factor)) for bound, (_, factor) in zip([*bounds, None], slices, strict=True)]
        zero = Fraction(0)
        return RiskParts(
            mr1=mechanics.spot_shock_of_delta(grid, moves),
            mr2=zero,
            mr3=zero,
            mr4=mechanics.basis_risk([delta], [exact("0.002")]),
            mr5=zero,
            mr6=mechanics.extreme_move(mechanics.spot_shock_of_delta(grid, [exact("0.24"), exact("-0.24")])),
            mr7=mechanics.scaled_minimum_charge(mechanics.minimum_charge(delta, exact("0.0045")), tiers),
        )

    def _portfolio(self) -> mechanics.Margin:
        eth = reported_unit("ETH")
        parts = RiskParts(*(exact(eth[f"mr{number}"]) for number in (1, 2, 3, 4, 5, 6, 7, 9)))
        units = []
        for unit in (self.btc_unit(), parts):
            maintenance = mechanics.unit_maintenance(unit)
            units.append(mechanics.Margin(mechanics.unit_initial(maintenance, exact("1.3")), maintenance))
        owed = sum((-a * self.index[c] for c, a in self.equities().items() if a < 0), Fraction(0))
        totals = mechanics.portfolio_totals(units, owed, borrow_initial=exact("0.1"), borrow_maintenance=exact("0.02"))
        return totals.total


def ladder(kind: str, family: str) -> list[PositionTier]:
    key = "ccy" if kind == "MARGIN" else "instFamily"
    out = []
    for request, file, _ in PAYLOADS:
        if request.startswith(f"public/position-tiers:{kind}"):
            for entry in fetched(file).body["data"]:
                if entry[key] == family:
                    cap = exact(entry["maxSz"]) if entry["maxSz"] else None
                    out.append(PositionTier(cap, exact(entry["imr"]), exact(entry["mmr"]), exact(entry["maxLever"])))
    return out


@pytest.mark.parametrize("account", ACCOUNTS)
def test_the_venue_s_own_figures_are_those_of_its_rules(account: str) -> None:
    twin = Twin(normalized(desk()), account)
    margin = twin.margin()
    figures = {"equity": twin.equity(), "initial_margin": margin.initial, "maintenance_margin": margin.maintenance}
    for name, ours in figures.items():
        reported = twin.row[f"reported_{name}"]
        if reported is not None:
            assert float(ours) == pytest.approx(float(reported), rel=VENUE_RELATIVE, abs=VENUE_ROUNDING), name
    if twin.row["reported_health"] is not None and account != EAST:
        ratio = mechanics.margin_ratio(twin.equity(), margin.maintenance, twin.fees())
        assert ratio is not None
        assert float(ratio) == pytest.approx(float(twin.row["reported_health"]), rel=1e-11)


def native_figures(result: Normalized, account: str) -> tuple[float, float, float]:
    """(equity, initial, maintenance) of one account as the engine has them today."""
    snapshot = take_snapshot([result.batches], result.failures)
    assert snapshot.as_of is not None
    book, _ = pack_book({"okx": snapshot}, {account: [account]}, as_of=snapshot.as_of)
    found = native_today(book)[0]
    assert found is not None
    return float(found.equity[0]), float(found.initial[0]), float(found.maintenance[0])


@pytest.fixture(scope="module")
def engine_figures() -> dict[str, tuple[float, float, float]]:
    result = normalized(desk())
    snapshot = take_snapshot([result.batches], result.failures)
    assert snapshot.as_of is not None
    names = sorted(row["account_id"] for row in snapshot.tables["accounts"])
    book, unclaimed = pack_book({"okx": snapshot}, {name: [name] for name in names}, as_of=snapshot.as_of)
    assert (unclaimed, book.failures) == ([], ())
    out = {}
    for portfolio, found in zip(book.portfolios, native_today(book), strict=True):
        assert found is not None
        out[portfolio.portfolio_id] = (float(found.equity[0]), float(found.initial[0]), float(found.maintenance[0]))
    return out


@pytest.mark.parametrize("account", ACCOUNTS)
def test_the_engine_s_forms_are_the_mechanics(
    account: str, engine_figures: dict[str, tuple[float, float, float]]
) -> None:
    twin = Twin(normalized(desk()), account)
    margin = twin.margin()
    fees = Fraction(0) if account == EAST else twin.fees()
    equity, initial, maintenance = engine_figures[account]
    assert equity == pytest.approx(float(twin.equity()), rel=ENGINE_RELATIVE)
    assert initial == pytest.approx(float(margin.initial), rel=ENGINE_RELATIVE)
    assert maintenance == pytest.approx(float(margin.maintenance + fees), rel=ENGINE_RELATIVE)


@pytest.mark.parametrize("account", [ISOLATED_SOL, ISOLATED_ETH])
def test_reported_liquidation_prices_of_isolated_positions(account: str) -> None:
    result = normalized(desk())
    row = only(result, "positions", account_id=account)
    contract = only(result, "instruments", instrument_id=row["instrument_id"])
    size = Fraction(row["quantity"]) * Fraction(contract["contract_size"])
    inverse = contract["payoff"] == "inverse"
    function: Any = mechanics.inverse_liquidation_price if inverse else mechanics.linear_liquidation_price
    rate = exact("0.004") if inverse else exact("0.0065")
    price = function(
        size,
        entry=Fraction(row["entry_price"]),
        margin=Fraction(row["isolated_collateral"]),
        maintenance_rate=rate,
        fee_rate=exact("0.0005"),
    )
    assert float(price) == pytest.approx(float(row["reported_liquidation_price"]), rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Published figures and edges


def test_ratio_of_the_documented_balance() -> None:
    # GET account/balance: the fee is 0.05 % of the notional
    ratio = mechanics.margin_ratio(
        exact("55415.624719833286"), exact("0.3428274116"), exact("85.7068529") * exact("0.0005")
    )
    assert ratio is not None
    assert float(ratio) == pytest.approx(143682.59776662575, rel=1e-12)
    assert mechanics.margin_ratio(exact(5), Fraction(0), Fraction(0)) is None


def test_ratio_and_liquidation_price_of_the_documented_isolated_position() -> None:
    # GET account/positions: one contract of 10 USD; profit and margin say a mark of 2565.656, rate 0.8 %
    entry, margin = exact("2566.31"), exact("0.0003896645377994")
    mark = 10 / (10 / entry - exact("-0.0000009932766034"))
    notional = mechanics.inverse_notional(Fraction(1), Fraction(10), Fraction(1), mark)
    profit = mechanics.inverse_profit(Fraction(1), Fraction(10), Fraction(1), entry=entry, mark=mark)
    maintenance = exact("0.0000311811092368")
    assert float(maintenance / notional) == pytest.approx(0.008, rel=1e-6)
    ratio = mechanics.margin_ratio(margin + profit, maintenance, notional * exact("0.0005"))
    assert ratio is not None
    assert float(ratio) == pytest.approx(11.731726509588816, rel=1e-6)
    price = mechanics.inverse_liquidation_price(
        Fraction(10), entry=entry, margin=margin, maintenance_rate=exact("0.008"), fee_rate=exact("0.0005")
    )
    assert price is not None
    # one price step of 0.01 nearer to the mark than the zero of the account
    assert float(price) == pytest.approx(2352.8496681818233 - 0.01, rel=1e-12)


def test_position_builder_example() -> None:
    # POST account/position-builder: -10 contracts of 0.01 BTC; the grid moves 9703.4244 USD, the delta is 9704.9037
    moves = [exact(move) for move in ("0", "0.04", "-0.04", "0.08", "-0.08", "0.12", "-0.12")]
    assert float(mechanics.spot_shock_of_delta(exact("-9703.424370600"), moves)) == pytest.approx(1164.4109244719994)
    tiers = [(exact(10_000), exact(1)), (exact(70_000), exact(2)), (None, exact(4))]
    charge = mechanics.minimum_charge(exact("-9704.903689800001"), exact("0.0045"))
    assert float(mechanics.scaled_minimum_charge(charge, tiers)) == pytest.approx(43.67206660410001)


def test_minimum_charge_at_its_bounds() -> None:
    tiers = [(exact(10_000), exact(1)), (exact(70_000), exact(2)), (exact(170_000), exact(4))]
    figures = {0: 0, 10_000: 10_000, 10_001: 10_002, 70_000: 130_000, 170_000: 530_000, 200_000: 650_000}
    for raw, scaled in figures.items():
        assert mechanics.scaled_minimum_charge(exact(raw), tiers) == scaled
    assert mechanics.scaled_minimum_charge(exact(7), []) == 7
    assert mechanics.minimum_charge(exact(-100), exact("0.01"), exact(3)) == 4


def test_parts_of_a_unit() -> None:
    zero = Fraction(0)
    assert mechanics.spot_shock([]) == mechanics.spot_shock([exact(3)]) == 0
    assert mechanics.extreme_move(exact(-4)) == 0
    parts = RiskParts(exact(5), exact(9), exact(1), exact(2), exact(3), exact(7), exact(20), exact(4))
    assert mechanics.unit_maintenance(parts) == 24  # the minimum charge binds, and the depeg charge comes on top
    assert mechanics.unit_maintenance(parts._replace(mr7=zero)) == 9 + 1 + 2 + 3 + 4


def test_discount_of_slices_and_debts() -> None:
    tiers = [DiscountTier(exact(0), exact(20), exact("0.98")), DiscountTier(exact(20), exact(25), exact("0.5"))]
    assert mechanics.discounted(exact(-3), tiers) == -3
    assert mechanics.discounted(exact(20), tiers) == exact("19.6")
    assert mechanics.discounted(exact(1000), tiers) == exact("22.1")  # nothing counts above the last cap
    assert mechanics.discounted_usd(exact(30), exact(2), tiers, tiers_in_usd=False) == exact("44.2")
    assert mechanics.discounted_usd(exact(10), exact(2), tiers, tiers_in_usd=True) == exact("19.6")


def test_tier_at_a_cap() -> None:
    tiers = [
        PositionTier(exact(10), exact("0.1"), exact("0.01"), exact(10)),
        PositionTier(None, exact("0.2"), exact("0.05"), exact(5)),
    ]
    at = mechanics.position_margin(exact(1000), exact(10), tiers, leverage=exact(4))
    above = mechanics.position_margin(exact(1000), exact("-10.01"), tiers, leverage=exact(4))
    assert [at.maintenance, above.maintenance, at.initial] == [10, 50, 250]


SIZES = st.fractions(min_value=Fraction(1, 100), max_value=500, max_denominator=100)
PRICES = st.integers(min_value=10, max_value=200_000).map(Fraction)
RATES = st.fractions(min_value=Fraction(1, 1000), max_value=Fraction(1, 10), max_denominator=1000)


@settings(max_examples=80, deadline=None)
@given(
    SIZES,
    PRICES,
    st.sampled_from([1, -1]),
    RATES,
    st.fractions(min_value=Fraction(1, 50), max_value=2, max_denominator=50),
)
def test_liquidation_prices_are_zeros_of_the_account(
    size: Fraction, entry: Fraction, side: int, rate: Fraction, share: Fraction
) -> None:
    fee = Fraction(5, 10_000)
    linear = mechanics.linear_liquidation_price(
        side * size, entry=entry, margin=share * size * entry, maintenance_rate=rate, fee_rate=fee
    )
    if linear is not None:
        equity = share * size * entry + side * size * (linear - entry)
        assert equity == size * linear * (rate + fee)
    else:
        assert side > 0
    inverse = mechanics.inverse_liquidation_price(
        side * size * entry, entry=entry, margin=share * size, maintenance_rate=rate, fee_rate=fee
    )
    if inverse is not None:
        contracts = side * size * entry
        assert share * size + contracts * (1 / entry - 1 / inverse) == abs(contracts) / inverse * (rate + fee)
    else:
        assert side < 0


@settings(max_examples=80, deadline=None)
@given(SIZES, SIZES, st.integers(min_value=1, max_value=20))
def test_more_never_needs_less(a: Fraction, b: Fraction, leverage: int) -> None:
    tiers = ladder("SWAP", "BTC-USDT")
    small, large = sorted((a * 100, b * 100))
    less, more = (
        mechanics.position_margin(size * 600, size, tiers, leverage=Fraction(leverage)) for size in (small, large)
    )
    assert more.maintenance >= less.maintenance
    assert more.initial >= less.initial >= 0
    slices = [(Fraction(10_000), Fraction(1)), (Fraction(70_000), Fraction(2)), (None, Fraction(4))]
    assert mechanics.scaled_minimum_charge(large, slices) >= mechanics.scaled_minimum_charge(small, slices) >= small


@settings(max_examples=80, deadline=None)
@given(SIZES, SIZES, st.fractions(min_value=1, max_value=10, max_denominator=10))
def test_discounts_fall_with_size_and_never_gain(a: Fraction, b: Fraction, factor: Fraction) -> None:
    tiers = [DiscountTier(exact(0), exact(20), exact("0.98")), DiscountTier(exact(20), None, exact("0.9"))]
    whole = mechanics.discounted(a + b, tiers)
    assert whole <= mechanics.discounted(a, tiers) + mechanics.discounted(b, tiers)
    assert 0 < whole < a + b
    assert mechanics.discounted(a * factor, tiers) <= factor * mechanics.discounted(a, tiers)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fractions(min_value=0, max_value=1000, max_denominator=10), min_size=8, max_size=8))
def test_initial_covers_maintenance_of_a_unit(figures: list[Fraction]) -> None:
    maintenance = mechanics.unit_maintenance(RiskParts(*figures))
    assert mechanics.unit_initial(maintenance, exact("1.3")) >= maintenance >= figures[-1]
    assert mechanics.unit_maintenance(RiskParts(*(3 * figure for figure in figures))) == 3 * maintenance


# ---------------------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize(
    ("inst_id", "base", "settlement", "kind", "family"),
    [
        ("BTC-USDT-SWAP", "BTC", "USDT", "perp", "BTC-USDT"),
        ("ETH-USD-240927", "ETH", "ETH", "future", "ETH-USD"),
        ("BTC-USD-240927-70000-C", "BTC", "BTC", "option", "BTC-USD"),
        ("SOL-USDC", "SOL", "USDC", "spot", "SOL-USDC"),
    ],
)
def test_instrument_ids(inst_id: str, base: str, settlement: str, kind: str, family: str) -> None:
    name = name_of(inst_id)
    assert (name.base, name.settlement, name.kind, name.family) == (base, settlement, kind, family)


@pytest.mark.parametrize("inst_id", ["BTC", "BTC-USDT-PERP", "BTC-USD-241399", "BTC-USDT-SWAP-1-C", "btc-usdt", ""])
def test_instrument_ids_that_are_none(inst_id: str) -> None:
    with pytest.raises(ValueError, match=r"no instrument id|no expiry date"):
        name_of(inst_id)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def row(number: int) -> Callable[[Any], Any]:
    return lambda body: body["data"][number]


def detail(number: int) -> Callable[[Any], Any]:
    return lambda body: body["data"][0]["details"][number]


def setting(pick: Callable[[Any], Any], key: str, value: Any) -> Callable[[Any], None]:
    return lambda body: pick(body).update({key: value})


def dropping(pick: Callable[[Any], Any], key: str) -> Callable[[Any], None]:
    return lambda body: pick(body).pop(key)


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
        unit.update(delta="104660", mr4="209.32", mr7="470.97")

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


# ---------------------------------------------------------------------------------------------------------------------
# Recorded payloads


def recorded_payload(recorded: Path, file: str, request: str, owner: str = "") -> Payload:
    return fetched(file, root=recorded / "payloads" / "okx", request=request, owner=owner)


def test_recorded_balance_is_cut_to_one_currency(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "account_balance.json", "account/balance", "a")])
    assert [(f.reason, f.path) for f in result.failures] == [
        ("inconsistent", "data[0].totalEq"),
        ("inconsistent", "data[0].adjEq"),
        ("missing_field", "data[0].details[0].upl"),  # no positions answer
    ]
    account = only(result, "accounts")
    assert (account["reported_health"], account["reported_equity"]) == (
        Decimal("143682.59776662575"),
        Decimal("55415.624719833286"),
    )
    assert only(result, "balances")["quantity"] == Decimal("5000.435693622894")


def test_recorded_isolated_position_lacks_its_contract(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "positions_future_isolated.json", "account/positions", "a")])
    assert {(f.reason, f.account_id) for f in result.failures} == {
        ("missing_parameter", "okx:a:isolated:ETH-USD-210430:long")
    }
    account = only(result, "accounts")
    assert account["reported_health"] == Decimal("11.731726509588816")


def test_recorded_position_builder(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "position_builder_doc.json", "account/position-builder", "a")])
    assert [f.reason for f in result.failures] == ["missing_field"]  # no balance
    account = only(result, "accounts")
    assert account["reported_health"] == Decimal("-25.95365779811705")
    assert account["reported_maintenance_margin"] == Decimal("2946.5480841048")


def test_recorded_position_risk_states_no_prices_and_not_all_currencies(recorded: Path) -> None:
    payload = recorded_payload(recorded, "account_position_risk.json", "account/account-position-risk", "a")
    result = normalized([payload])
    assert [(f.reason, f.path, f.subject) for f in result.failures] == [
        ("inconsistent", "data[0].adjEq", "okx:a:cross"),
        ("missing_parameter", "", "BTC"),
        ("missing_parameter", "", "USDT"),
    ]


def test_recorded_market_answers(recorded: Path) -> None:
    names = {
        "discount_info.json": "public/discount-rate-interest-free-quota",
        "funding_rate.json": "public/funding-rate",
        "option_summary.json": "public/opt-summary",
        "position_tiers.json": "public/position-tiers",
        "tickers.json": "market/tickers",
    }
    result = normalized([recorded_payload(recorded, file, request) for file, request in names.items()])
    assert result.failures == []
    marks = {(r["subject"], r["field"]): r["value"] for r in rows_of(result, "marks")}
    assert marks["okx:BTC-USDT-SWAP", "funding_rate"] == 0.0000792386885340
    assert marks["okx:BTC-USD-200103-6500-C", "implied_vol"] == 0.9987
    assert marks["okx:LTC-USD-SWAP", "bid"] == 8888.88
    slices = rows_of(result, "collateral_tiers", asset_id="LTC")
    assert [(r["floor_in"], r["floor"]) for r in slices] == [
        ("value", 0),
        ("value", 2_000_000),
        ("value", 4_000_000),
        ("value", 8_000_000),
    ]
