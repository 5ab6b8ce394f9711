"""OKX: the venue's own figures, its rules in exact numbers and the engine's forms agree."""

from fractions import Fraction
from typing import Any

import pytest

from adapters.adapter import Normalized
from adapters.okx import mechanics
from adapters.okx.mechanics import DiscountTier, PositionTier, RiskParts
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.rule_forms import Fixed
from aggregator.snapshot import take_snapshot
from tests.desk_okx import (
    ACCOUNTS,
    EAST,
    ISOLATED_ETH,
    ISOLATED_SOL,
    PARAMETERS,
    desk,
    exact,
    fetched,
    ladder,
    normalized,
    reported_unit,
)
from tests.normalized_rows import forms_of, only, rows_of
from tests.sample_okx import PAYLOADS

# Figures are given to 12 decimals.
VENUE_RELATIVE, VENUE_ROUNDING = 1e-12, 5e-11
# Native margin at current prices is float64.
ENGINE_RELATIVE = 1e-9


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
