"""Deribit: the venue's own figures, its rules in exact numbers and the engine's forms agree."""

from fractions import Fraction

import pytest

from adapters.adapter import Normalized
from adapters.deribit import mechanics
from adapters.deribit.mechanics import MatrixPosition, OptionTerms
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.rule_forms import Fixed
from aggregator.snapshot import take_snapshot
from tests.desk_deribit import (
    EAST,
    NORTH_BTC,
    NORTH_USDC,
    PARAMETERS,
    QUAY,
    SOUTH,
    WEST,
    desk,
    exact,
    matrix_parameters,
    normalized,
    option_rates,
)
from tests.normalized_rows import forms_of, only, rows_of

# The venue rounds margins to 9 decimals of a coin or dollar; a cross account adds up a few of them.
VENUE_ROUNDING = 5e-9
# Native margin at current prices is float64.
ENGINE_RELATIVE = 1e-9


class Twin:
    """An account's figures by the exact mechanics, from its canonical rows."""

    def __init__(self, result: Normalized, account: str) -> None:
        self.result, self.account = result, account
        self.row = only(result, "accounts", account_id=account)
        self.model = self.row["rule_set"].split(":")[1]
        self.cross = self.row["settlement_asset"] == "USD"
        self.index = {
            r["subject"]: exact(r["value"])
            for r in rows_of(result, "marks", field="index", account_id=None)
            if ":" not in r["subject"]
        }
        self.instruments = {r["instrument_id"]: r for r in rows_of(result, "instruments")}
        self.held = rows_of(result, "positions", account_id=account)
        self.marks = {
            (r["subject"], r["field"]): exact(r["value"]) for r in rows_of(result, "marks", account_id=account)
        }
        self.public = {(r["subject"], r["field"]): exact(r["value"]) for r in rows_of(result, "marks", account_id=None)}

    def unit(self, currency: str) -> Fraction:
        return self.index[currency] if self.cross else Fraction(1)

    def equities(self) -> dict[str, Fraction]:
        """Margin balance by currency."""
        out: dict[str, Fraction] = {}
        for row in rows_of(self.result, "balances", account_id=self.account):
            sign = 1 if row["side"] == "asset" else -1
            out[row["asset_id"]] = out.get(row["asset_id"], Fraction(0)) + sign * Fraction(row["quantity"])
        for row in self.held:
            instrument, size = self.instruments[row["instrument_id"]], Fraction(row["quantity"])
            mark, currency = self.marks[row["instrument_id"], "mark"], instrument["settlement_asset"]
            if instrument["kind"] == "option":
                value = size * mark if self.model == "pm" else Fraction(0)
            else:
                entry = Fraction(row["entry_price"])
                inverse = instrument["payoff"] == "inverse"
                value = size * (1 / entry - 1 / mark) if inverse else size * (mark - entry)
                value += Fraction(row["realized_pnl"])
            out[currency] = out.get(currency, Fraction(0)) + value
        return out

    def equity(self) -> Fraction:
        return sum((amount * self.unit(c) for c, amount in self.equities().items()), Fraction(0))

    def haircuts(self) -> Fraction:
        if not self.cross:
            return Fraction(0)
        rates = {name: exact(rate) for name, rate in PARAMETERS["haircuts"].items()}
        return mechanics.haircut_margin(self.equities(), self.index, rates)

    def margin(self) -> mechanics.Margin:
        own = self._portfolio() if self.model == "pm" else self._standard()
        fixed = [form.initial for form in forms_of(self.result, self.account, Fixed)]
        initial = own.initial + sum(map(Fraction, fixed), Fraction(0)) + self.haircuts()
        return mechanics.Margin(initial, own.maintenance)

    def _standard(self) -> mechanics.Margin:
        initial = maintenance = Fraction(0)
        for row in self.held:
            instrument, size = self.instruments[row["instrument_id"]], Fraction(row["quantity"])
            mark, index = self.marks[row["instrument_id"], "mark"], self.marks[row["instrument_id"], "index"]
            if instrument["kind"] == "option":
                margin = mechanics.inverse_option_margin(
                    instrument["option_type"] == "call",
                    size,
                    strike=Fraction(instrument["strike"]),
                    index_price=index,
                    mark_price=mark,
                    rates=option_rates(instrument["underlying"]),
                )
            else:
                rates = PARAMETERS["futures"][instrument["underlying"]]
                levels = {name: exact(rates[name]) for name in ("initial", "maintenance", "slope")}
                if instrument["payoff"] == "inverse":
                    margin = mechanics.inverse_future_margin(size, mark, **levels)
                else:
                    margin = mechanics.linear_future_margin(size, index, **levels)
            initial += margin.initial * self.unit(instrument["settlement_asset"])
            maintenance += margin.maintenance * self.unit(instrument["settlement_asset"])
        return mechanics.Margin(initial, maintenance)

    def units(self) -> dict[str, list[MatrixPosition]]:
        out: dict[str, list[MatrixPosition]] = {}
        for row in self.held:
            instrument, size = self.instruments[row["instrument_id"]], Fraction(row["quantity"])
            mark = self.marks[row["instrument_id"], "mark"]
            expiry = instrument["expiry"]
            seconds = 0 if expiry is None else int((expiry - self.row["received_at"]).total_seconds())
            years, terms, forward = Fraction(seconds, 365 * 86400), None, mark
            if instrument["kind"] == "option":
                subject = f"{instrument['underlying']}@{expiry:%Y-%m-%dT%H:%M:%SZ}"
                vol = float(self.public[row["instrument_id"], "implied_vol"])
                forward = self.public[subject, "forward"]
                terms = OptionTerms(Fraction(instrument["strike"]), instrument["option_type"] == "call", vol)
            elif instrument["payoff"] == "inverse":
                size /= mark
            else:
                forward *= self.unit(instrument["settlement_asset"])
            held = MatrixPosition(row["instrument_id"], size, forward, years, terms)
            out.setdefault(instrument["underlying"], []).append(held)
        return out

    def matrices(self) -> dict[str, mechanics.RiskMatrix]:
        units = self.units()
        if not self.cross:
            return {
                coin: mechanics.risk_matrix(
                    held, matrix_parameters(coin.lower()), index_price=self.index[coin], in_coin=True
                )
                for coin, held in units.items()
            }
        out = {}
        for coin in ("BTC", "ETH"):
            exposure = mechanics.currency_exposure(self.equities()[coin], "both")
            out[coin] = mechanics.cross_risk_matrix(
                units.get(coin, []), exposure, matrix_parameters(coin.lower()), index_price=self.index[coin]
            )
        return out

    def _portfolio(self) -> mechanics.Margin:
        total = sum((matrix.margin for matrix in self.matrices().values()), Fraction(0))
        return mechanics.portfolio_margin(total, exact("0.8"))


@pytest.mark.parametrize("account", [NORTH_BTC, NORTH_USDC, SOUTH, EAST, WEST, QUAY])
def test_the_venue_s_own_figures_are_those_of_its_rules(account: str) -> None:
    twin = Twin(normalized(desk()), account)
    margin = twin.margin()
    assert float(twin.equity()) == pytest.approx(float(twin.row["reported_equity"]), abs=VENUE_ROUNDING)
    assert float(margin.initial) == pytest.approx(float(twin.row["reported_initial_margin"]), abs=VENUE_ROUNDING)
    assert float(margin.maintenance) == pytest.approx(
        float(twin.row["reported_maintenance_margin"]), abs=VENUE_ROUNDING
    )


@pytest.fixture(scope="module")
def engine_figures() -> dict[str, tuple[float, float, float]]:
    result = normalized(desk())
    snapshot = take_snapshot([result.batches], result.failures)
    assert snapshot.as_of is not None
    names = sorted(row["account_id"] for row in snapshot.tables["accounts"])
    book, unclaimed = pack_book({"deribit": snapshot}, {name: [name] for name in names}, as_of=snapshot.as_of)
    assert (unclaimed, book.failures) == ([], ())
    out = {}
    for portfolio, found in zip(book.portfolios, native_today(book), strict=True):
        assert found is not None
        out[portfolio.portfolio_id] = (float(found.equity[0]), float(found.initial[0]), float(found.maintenance[0]))
    return out


@pytest.mark.parametrize("account", [NORTH_BTC, NORTH_USDC, SOUTH, EAST, WEST, QUAY])
def test_the_engine_s_forms_are_the_mechanics(
    account: str, engine_figures: dict[str, tuple[float, float, float]]
) -> None:
    twin = Twin(normalized(desk()), account)
    margin = twin.margin()
    equity, initial, maintenance = engine_figures[account]
    assert equity == pytest.approx(float(twin.equity()), rel=ENGINE_RELATIVE)
    assert initial == pytest.approx(float(margin.initial), rel=ENGINE_RELATIVE, abs=1e-9)
    assert maintenance == pytest.approx(float(margin.maintenance), rel=ENGINE_RELATIVE)
