"""Deribit: payloads to canonical tables, every way to be wrong, mechanics against published figures and slow twins.

The payloads in `payloads/deribit` are written for this suite (see its SOURCE.md). Recorded payloads are read where the
folder of recorded material is at hand.
"""

import copy
import json
import math
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
from adapters.deribit import ADAPTER, FACTS, mechanics
from adapters.deribit.mechanics import MatrixParameters, MatrixPosition, OptionTerms
from adapters.deribit.parse import instrument_of
from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.errors import ConfigurationError, Failure
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.rule_forms import ContractMargin, Fixed, PriceVolGrid, RateOfSize, WeightedValue, parse_parameters
from aggregator.snapshot import take_snapshot
from tests.sample_deribit import PAYLOADS

TESTS = Path(__file__).resolve().parent
FOLDER = TESTS / "payloads" / "deribit"
CONFIGS = TESTS.parent / "configs"
PARAMETERS = tomllib.loads((CONFIGS / "venues" / "deribit.toml").read_text(encoding="utf-8"))
ASSETS = read_asset_book(CONFIGS / "assets.toml")
REQUESTS = {file: (request, owner) for request, file, owner in PAYLOADS}

# The venue rounds margins to 9 decimals of a coin or dollar; a cross account adds up a few of them.
VENUE_ROUNDING = 5e-9
# Native margin at current prices is float64.
ENGINE_RELATIVE = 1e-9

NORTH_BTC, NORTH_USDC, SOUTH = "deribit:north:BTC", "deribit:north:USDC", "deribit:south:cross"
EAST, WEST, QUAY = "deribit:east:BTC", "deribit:west:cross", "deribit:quay:USDT"


def fetched(file: str, *, root: Path = FOLDER, request: str = "", owner: str = "") -> Payload:
    stated = REQUESTS.get(file, (request, owner)) if root == FOLDER else (request, owner)
    payload = RecordedTransport(root).fetch("deribit", PayloadRequest(stated[0], file, stated[1]))
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


# ---------------------------------------------------------------------------------------------------------------------
# The desk


def test_the_adapter_is_registered() -> None:
    found: Any = find_adapter("deribit")
    assert found is ADAPTER
    assert isinstance(found, Adapter)
    assert FACTS.title == "Deribit"
    assert {file for _, file, _ in PAYLOADS} == {path.name for path in FOLDER.glob("*.json")}


def test_the_desk_is_read_whole() -> None:
    result = normalized(desk())
    assert result.failures == []
    snapshot = take_snapshot([result.batches], result.failures)
    assert (snapshot.failures, snapshot.incomplete) == ((), frozenset())
    accounts = {r["account_id"]: r for r in rows_of(result, "accounts")}
    assert set(accounts) == {NORTH_BTC, NORTH_USDC, SOUTH, EAST, WEST, QUAY}
    assert {name: (r["settlement_asset"], r["margin_mode"]) for name, r in accounts.items()} == {
        NORTH_BTC: ("BTC", "cross"),
        NORTH_USDC: ("USDC", "cross"),
        SOUTH: ("USD", "cross"),
        EAST: ("BTC", "portfolio"),
        WEST: ("USD", "portfolio"),
        QUAY: ("USDT", "cross"),
    }
    assert all(r["node"] == name for name, r in accounts.items())
    assert accounts[EAST]["event_at"].isoformat() == "2024-06-29T23:59:59.600000+00:00"
    assert accounts[QUAY]["event_at"] is None  # a message states no time


def test_exact_rows_of_north() -> None:
    result = normalized(desk())
    # 4.21875 of balance less 0.00041 realized in the session
    assert only(result, "balances", account_id=NORTH_BTC)["quantity"] == Decimal("4.21834")
    held = {r["instrument_id"]: r for r in rows_of(result, "positions", account_id=NORTH_BTC)}
    assert set(held) == {
        "deribit:BTC-PERPETUAL",
        "deribit:BTC-27SEP24",
        "deribit:BTC-27SEP24-70000-C",
        "deribit:BTC-27SEP24-55000-P",
        "deribit:BTC-26JUL24-65000-C",
    }
    assert held["deribit:BTC-PERPETUAL"]["quantity"] == 250_000
    assert held["deribit:BTC-27SEP24-55000-P"]["quantity"] == -2
    option = only(result, "instruments", instrument_id="deribit:BTC-27SEP24-55000-P")
    assert (option["kind"], option["payoff"], option["strike"], option["option_type"]) == (
        "option",
        "inverse",
        55_000,
        "put",
    )
    assert option["expiry"].isoformat() == "2024-09-27T08:00:00+00:00"
    linear = only(result, "instruments", instrument_id="deribit:SOL_USDC-PERPETUAL")
    assert (linear["payoff"], linear["settlement_asset"], linear["underlying"]) == ("linear", "USDC", "SOL")
    orders = rows_of(result, "open_orders", account_id=NORTH_BTC)
    assert {(o["side"], o["remaining_quantity"], o["reduce_only"]) for o in orders} == {
        ("buy", Decimal(37_500), False),
        ("buy", Decimal(1), True),
    }
    tier = only(result, "margin_tiers", rule_set="deribit:sm:north:USDC", market="deribit:SOL_USDC-PERPETUAL")
    # charged at the index, valued at the mark
    assert abs(tier["maintenance_rate"] - Decimal("0.02") * Decimal("140.21") / Decimal("140.25")) < Decimal("1e-17")
    marks = {(r["subject"], r["field"]): r["value"] for r in rows_of(result, "marks", account_id=None)}
    assert marks["BTC", "index"] == 60970.12
    assert marks["USDT", "index"] == 0.9992
    assert marks["deribit:BTC-27SEP24-70000-C", "implied_vol"] == 0.524
    assert marks["BTC@2024-09-27T08:00:00Z", "forward"] == 62310.25
    assert marks["deribit:BTC-PERPETUAL", "funding_rate"] == 0.00003125
    assert marks["deribit:BTC-PERPETUAL", "depth_bid"] == 84210.0


def test_profit_outside_of_the_balance_is_the_session_s() -> None:
    result = normalized(desk())
    for account in (NORTH_BTC, NORTH_USDC, SOUTH, EAST, WEST):
        for row in rows_of(result, "positions", account_id=account):
            instrument = only(result, "instruments", instrument_id=row["instrument_id"])
            if instrument["kind"] == "option":
                assert row["realized_pnl"] is None
                continue
            mark = Fraction(
                str(only(result, "marks", account_id=account, subject=row["instrument_id"], field="mark")["value"])
            )
            entry, size = Fraction(row["entry_price"]), Fraction(row["quantity"])
            inverse = instrument["payoff"] == "inverse"
            profit = size * (1 / entry - 1 / mark) if inverse else size * (mark - entry)
            floating = profit + Fraction(row["realized_pnl"])
            stated = floating_of(account, row["instrument_id"])
            assert abs(floating - stated) <= Fraction(1, 10**18)


def floating_of(account: str, instrument: str) -> Fraction:
    owner = account.split(":")[1]
    for file, (request, of) in REQUESTS.items():
        if of == owner and request.startswith("private/get_positions"):
            for record in fetched(file).body["result"]:
                if f"deribit:{record['instrument_name']}" == instrument:
                    return Fraction(record["floating_profit_loss"])
    raise AssertionError(instrument)


def test_rule_sets_of_the_four_models() -> None:
    result = normalized(desk())
    assert forms_of(result, NORTH_BTC, WeightedValue)[0].options == "excluded"
    assert forms_of(result, EAST, WeightedValue)[0].options == "mark"
    assert forms_of(result, SOUTH, WeightedValue)[0].weights == "collateral_tiers"
    assert {form.underlyings for form in forms_of(result, SOUTH, ContractMargin)} == {("BTC",), ("ETH",)}
    assert [form.law for form in forms_of(result, NORTH_USDC, RateOfSize)] == ["linear"]
    grid = forms_of(result, EAST, PriceVolGrid)[0]
    assert (len(grid.scenarios), grid.profit_in, grid.round_digits) == (35, "coin", 9)
    assert grid.scenarios[0].spot == Decimal("0.84")
    # -66 %: 1 * 0.16/0.66 * 0.34/0.84, dampened by (0.66/0.16 - 1) * 100 000 / 0.84
    tail = grid.scenarios[27]
    assert float(tail.dampening) == pytest.approx(0.16 / 0.66 * 0.34 / 0.84, rel=1e-15)
    assert float(tail.dampener) == pytest.approx(3.125 * 100_000 / 0.84, rel=1e-15)
    assert {form.underlyings: form.grid_collateral for form in forms_of(result, WEST, PriceVolGrid)} == {
        ("BTC",): ("BTC",),
        ("ETH",): ("ETH",),
    }
    assert [form.initial for form in forms_of(result, EAST, Fixed)] == [Decimal("0.078212")]
    assert [form.basis.split()[0] for form in forms_of(result, NORTH_BTC, Fixed)] == ["reported"]
    weights = {
        r["asset_id"]: (r["asset_weight_initial"], r["asset_weight_maintenance"])
        for r in rows_of(result, "collateral_tiers", rule_set="deribit:sm:south:cross")
    }
    assert weights["USDT"] == (Decimal("0.98"), 1)
    assert weights["BTC"] == (1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Mechanics, engine and the venue's own figures agree


def exact(value: Any) -> Fraction:
    return Fraction(str(value))


def matrix_parameters(coin: str) -> MatrixParameters:
    general = PARAMETERS["portfolio_margin"]["general"]
    pair = PARAMETERS["portfolio_margin"]["currency_pair"][f"{coin}_usd"]
    currency = PARAMETERS["portfolio_margin"]["currency"][coin]
    return MatrixParameters(
        exact(pair["price_range"]),
        general["buckets_count"],
        general["vol_scenarios_count"],
        exact(currency["pnl_offset"]),
        exact(currency["annualised_move_risk"]),
        exact(currency["min_annualised_move"]),
        exact(currency["extended_dampener"]),
        exact(pair["extended_table_factor"]),
        exact(pair["delta_total_liq_shock_threshold"]),
        exact(pair["max_delta_shock"]),
        exact(general["mm_factor"]),
        exact(pair["m_inc"]),
        exact(pair["volatility_range_up"]),
        exact(pair["volatility_range_down"]),
        exact(pair["min_volatility_for_shock_up"]),
        exact(pair["short_term_vega_power"]),
        exact(pair["long_term_vega_power"]),
    )


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


# ---------------------------------------------------------------------------------------------------------------------
# Published figures


@pytest.mark.parametrize(
    ("size", "index", "rates", "initial", "maintenance"),
    [
        # Support article "Linear Perpetual": BTC at 100 000, SOL at 200
        ("350", "100000", ("0.02", "0.01", "0.00005"), "1312500", "962500"),
        ("6000", "200", ("0.04", "0.02", "0.000005"), "84000", "60000"),
        ("0", "100000", ("0.02", "0.01", "0.00005"), "0", "0"),
    ],
)
def test_linear_perpetuals_of_the_support_article(
    size: str, index: str, rates: tuple[str, str, str], initial: str, maintenance: str
) -> None:
    levels = dict(zip(("initial", "maintenance", "slope"), map(exact, rates), strict=True))
    for side in (1, -1):
        margin = mechanics.linear_future_margin(side * exact(size), exact(index), **levels)
        assert margin == (exact(initial), exact(maintenance))


def test_inverse_perpetual_of_the_api_reference() -> None:
    # private/get_positions: 50 USD at a mark of 7476.65; the example's rates are 2.95 % and 2.15 %
    margin = mechanics.inverse_future_margin(
        exact(50), exact("7476.65"), initial=exact("0.0295"), maintenance=exact("0.0215"), slope=exact("0.00005")
    )
    assert float(margin.initial) == pytest.approx(0.000197283, abs=5e-10)
    assert float(margin.maintenance) == pytest.approx(0.000143783, abs=5e-10)


def test_equity_and_margin_balance_of_the_api_reference() -> None:
    # private/get_account_summary: BTC with short options of -0.0086
    equity = mechanics.equity_of(
        exact("302.60065765"),
        futures_unrealized=exact("0.05921555"),
        futures_realized=exact("-0.03258105"),
        options_value=exact("-0.0086"),
    )
    assert abs(equity - exact("302.61869214")) <= exact("1e-8")
    balance = mechanics.margin_balance(exact("302.61869214"), exact("-0.0086"), portfolio_margin=False)
    assert balance == exact("302.62729214")
    assert mechanics.margin_balance(equity, exact("-0.0086"), portfolio_margin=True) == equity


def test_captured_eth_simulation() -> None:
    # private/pme/simulate of February 2026, one short perpetual; gains count 60 %
    held = [MatrixPosition("ETH-PERPETUAL", exact("-0.999487053"), exact("1949.49"), Fraction(0))]
    matrix = mechanics.risk_matrix(held, matrix_parameters("eth"), index_price=exact("1949.34"), in_coin=True)
    assert float(matrix.worst.loss) == pytest.approx(0.15246412672881357, rel=1e-15)
    assert (matrix.worst.place, matrix.worst.source, matrix.worst.bucket) == (25, "standard", 9)
    assert float(matrix.standard[0]) == pytest.approx(0.13163975819999998, rel=1e-15)
    assert float(matrix.standard[3]) == pytest.approx(0.09359358530982659, rel=1e-15)
    assert not any(matrix.extended)
    assert matrix.roll_shock == exact("0.004997435265")
    assert matrix.margin == exact("0.157461562265")
    margin = mechanics.portfolio_margin(matrix.margin, exact("0.8"))
    assert margin == (exact("0.157461562"), exact("0.125969249812"))


def test_haircuts_of_a_recorded_cross_account() -> None:
    # 55.00055 USDT and no position: initial margin 1.100011 USDT, maintenance 0
    charge = mechanics.haircut_margin({"USDT": exact("55.00055")}, {"USDT": Fraction(1)}, {"USDT": exact("0.02")})
    assert charge == exact("1.100011")
    assert mechanics.haircut_margin({"USDT": exact(-5)}, {"USDT": Fraction(1)}, {"USDT": exact("0.02")}) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Mechanics at their edges, and against independent twins


def test_delta_shock_needs_a_large_delta() -> None:
    parameters = matrix_parameters("btc")
    index = exact(60_000)

    def shock(size: str, terms: OptionTerms | None = None, more: list[MatrixPosition] | None = None) -> Fraction:
        held = [MatrixPosition("a", exact(size), index, Fraction(0), terms), *(more or [])]
        return mechanics.delta_shock(held, parameters, index_price=index, in_coin=False)

    assert shock("333") == 0  # 19.98 million
    assert shock("400") == 4_000_000 * 400 * exact("0.00005")
    assert shock("-400") == shock("400")
    assert shock("100000") == exact("0.1") * index * 100_000  # the cap
    # a deep long put of 300 coins takes 300 off a long future, never more
    put = MatrixPosition("p", exact(300), index, exact("0.1"), OptionTerms(exact(10**7), False, 0.5))
    assert shock("700", more=[put]) == shock("400")
    assert shock("200", more=[put]) == 0
    assert shock("-700", more=[put]) == shock("700")  # of the same sign: it adds nothing
    with pytest.raises(ValueError, match="m_inc"):
        mechanics.delta_shock(
            [MatrixPosition("a", exact(400), index, Fraction(0))],
            parameters._replace(delta_increment=None),
            index_price=index,
            in_coin=True,
        )


def test_options_need_three_vol_states_and_their_parameters() -> None:
    held = [MatrixPosition("o", exact(1), exact(60_000), exact("0.1"), OptionTerms(exact(60_000), True, 0.5))]
    with pytest.raises(ValueError, match="only 3 are known"):
        mechanics.standard_vector(held, matrix_parameters("btc")._replace(vol_scenarios=5), in_coin=True)
    with pytest.raises(ValueError, match="are needed for options"):
        mechanics.standard_vector(held, matrix_parameters("btc")._replace(volatility_range_up=None), in_coin=True)
    flat = [MatrixPosition("f", exact(1), exact(60_000), Fraction(0))]
    assert len(mechanics.standard_vector(flat, matrix_parameters("btc")._replace(vol_scenarios=5), in_coin=True)) == 45


def test_roll_shock_by_expiry_and_pair() -> None:
    parameters = matrix_parameters("btc")
    index = exact(60_000)
    perp = MatrixPosition("p", exact(2), index, Fraction(0), group="btc_usd")
    same = MatrixPosition("q", exact(-2), index, Fraction(0), group="btc_usd")
    linear = MatrixPosition("l", exact(-2), index, Fraction(0), group="btc_usdc")
    far = MatrixPosition("f", exact(-2), index, Fraction(1))
    roll = {"index_price": index, "in_coin": True}
    assert mechanics.roll_shock([perp, same], parameters, **roll) == 0  # type: ignore[arg-type]
    assert mechanics.roll_shock([perp, linear], parameters, **roll) == exact("0.04")  # type: ignore[arg-type]
    rate = mechanics.roll_rate(Fraction(1), parameters)
    assert float(rate) == pytest.approx(math.exp(0.075) - 1, rel=1e-15)
    assert mechanics.roll_shock([perp, far], parameters, **roll) == exact("0.02") + 2 * rate  # type: ignore[arg-type]


def numeric_matrix(held: list[MatrixPosition], p: MatrixParameters, index: float, *, in_coin: bool) -> float:
    """The matrix margin by plain floats and a price function of its own (trapezoidal integral of the payoff)."""

    def price(forward: float, strike: float, years: float, vol: float, *, is_call: bool) -> float:
        deviation = vol * math.sqrt(years)
        total, steps, width = 0.0, 2000, 8.0
        for step in range(steps + 1):
            z = -width + 2 * width * step / steps
            spot = forward * math.exp(deviation * z - deviation * deviation / 2)
            payoff = max(spot - strike, 0.0) if is_call else max(strike - spot, 0.0)
            weight = 0.5 if step in (0, steps) else 1.0
            total += weight * payoff * math.exp(-z * z / 2)
        return total * 2 * width / steps / math.sqrt(2 * math.pi)

    def worth(position: MatrixPosition, move: float, state: str) -> float:
        shocked = float(position.forward) * (1 + move)
        if position.option is None:
            value = float(position.size) * float(position.forward) * move
            return value / shocked if in_coin else value
        days = float(position.years) * 365
        tenor = (30 / days) ** (0.3 if days < 30 else 0.13)
        vol = position.option.vol
        if state == "up":
            vol = max(vol * (1 + tenor * float(p.volatility_range_up or 0)), float(p.min_volatility_for_shock_up or 0))
        elif state == "down":
            vol = vol * max(0.0, 1 - tenor * float(p.volatility_range_down or 0))
        strike, years, call = float(position.option.strike), float(position.years), position.option.is_call
        after = price(shocked, strike, years, vol, is_call=call)
        before = price(float(position.forward), strike, years, position.option.vol, is_call=call)
        if in_coin:
            return float(position.size) * (after / shocked - before / float(position.forward))
        return float(position.size) * (after - before)

    pr, losses = float(p.price_range), [0.0]
    for bucket in range(-4, 5):
        for state in ("up", "same", "down"):
            losses.append(-sum(worth(held_one, pr * bucket / 4, state) for held_one in held))
    for move in (-0.66, -0.33, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0):
        edge = 1 + math.copysign(pr, move)
        profit = sum(worth(held_one, move, "up") for held_one in held) * pr / abs(move)
        damp = max(abs(move) / pr - 1, 0.0) * float(p.extended_dampener_usd)
        if in_coin:
            profit, damp = profit * (1 + move) / edge, damp / (edge * index)
        losses.append(max(-profit - damp, 0.0))
    return max(losses)


@pytest.mark.parametrize("in_coin", [True, False])
def test_the_matrix_against_a_numerical_twin(in_coin: bool) -> None:
    index = exact(61_000)
    held = [
        MatrixPosition("f", exact("0.5"), exact(61_400), exact("0.25")),
        MatrixPosition("c", exact(-60), exact(61_400), exact("0.25"), OptionTerms(exact(150_000), True, 0.62)),
        MatrixPosition("p", exact(-25), exact(61_100), exact("0.04"), OptionTerms(exact(35_000), False, 0.71)),
        MatrixPosition("l", exact(3), exact(61_100), exact("0.04"), OptionTerms(exact(64_000), True, 0.55)),
    ]
    parameters = matrix_parameters("btc")._replace(extended_dampener_usd=exact(1_000))
    matrix = mechanics.risk_matrix(held, parameters, index_price=index, in_coin=in_coin)
    twin = numeric_matrix(held, parameters, float(index), in_coin=in_coin)
    # the twin's integral of a kink is good to about 1e-6
    assert float(matrix.worst.loss) == pytest.approx(twin, rel=1e-5)
    assert matrix.worst.source == "extended"  # short far options: the tail is the worst


def test_liquidation_prices_where_none_is() -> None:
    rates = {"maintenance": exact("0.01"), "slope": exact("0.00005")}
    assert mechanics.linear_liquidation_price(exact(1), exact(60_000), exact(70_000), **rates) is None
    assert mechanics.inverse_liquidation_price(exact(60_000), exact(60_000), exact(-2), **rates) is None
    assert mechanics.linear_liquidation_price(Fraction(0), exact(60_000), exact(1), **rates) is None


SIZES = st.fractions(min_value=Fraction(1, 100), max_value=500, max_denominator=100)
PRICES = st.integers(min_value=100, max_value=200_000).map(Fraction)


@settings(max_examples=60, deadline=None)
@given(
    SIZES, PRICES, st.sampled_from([1, -1]), st.fractions(min_value=Fraction(1, 20), max_value=3, max_denominator=50)
)
def test_a_linear_liquidation_price_is_the_zero_of_the_account(
    size: Fraction, entry: Fraction, side: int, margin: Fraction
) -> None:
    rates = {"maintenance": Fraction(1, 100), "slope": Fraction(5, 100_000)}
    cash = margin * size * entry
    price = mechanics.linear_liquidation_price(side * size, entry, cash, **rates)
    if price is None:
        # collateral for the whole position cannot run out
        assert side > 0
        assert margin >= 1
        return
    required = mechanics.linear_future_margin(side * size, price, initial=Fraction(1), **rates).maintenance
    assert cash + side * size * (price - entry) == required


@settings(max_examples=60, deadline=None)
@given(
    SIZES, PRICES, st.sampled_from([1, -1]), st.fractions(min_value=Fraction(1, 20), max_value=1, max_denominator=50)
)
def test_an_inverse_liquidation_price_is_the_zero_of_the_account(
    coins: Fraction, entry: Fraction, side: int, margin: Fraction
) -> None:
    rates = {"maintenance": Fraction(1, 100), "slope": Fraction(5, 100_000)}
    contracts, cash = side * coins * entry, margin * coins
    price = mechanics.inverse_liquidation_price(contracts, entry, cash, **rates)
    if price is None:
        assert side < 0
        return
    at = Fraction(price)
    required = mechanics.inverse_future_margin(contracts, at, initial=Fraction(1), **rates).maintenance
    excess = cash + contracts * (1 / entry - 1 / at) - required
    # a root by floating-point square root
    scale = max(Fraction(1), entry / at)
    assert abs(excess) <= Fraction(1, 10**10) * coins * scale * scale


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, PRICES)
def test_more_size_never_needs_less_and_initial_covers_maintenance(a: Fraction, b: Fraction, price: Fraction) -> None:
    rates = {"initial": Fraction(2, 100), "maintenance": Fraction(1, 100), "slope": Fraction(5, 100_000)}
    small, large = sorted((a, b))
    for function in (mechanics.linear_future_margin, mechanics.inverse_future_margin):
        less, more = function(small, price, **rates), function(large, price, **rates)
        assert more.initial >= less.initial
        assert more.maintenance >= less.maintenance
        assert less.initial >= less.maintenance
    # the surcharge of size: splitting a position over accounts is cheaper, never dearer
    whole = mechanics.linear_future_margin(a + b, price, **rates)
    parts = [mechanics.linear_future_margin(part, price, **rates) for part in (a, b)]
    assert whole.maintenance >= sum(part.maintenance for part in parts)


@settings(max_examples=60, deadline=None)
@given(st.booleans(), SIZES, PRICES, PRICES, st.fractions(min_value=0, max_value=1, max_denominator=10_000))
def test_short_options(call: bool, size: Fraction, strike: Fraction, index: Fraction, mark: Fraction) -> None:
    place = {"strike": strike, "index_price": index, "mark_price": mark}
    margin = mechanics.inverse_option_margin(call, -size, **place)  # type: ignore[arg-type]
    assert margin.initial >= margin.maintenance >= size * mark
    assert not any(mechanics.inverse_option_margin(call, size, **place))  # type: ignore[arg-type]
    double = mechanics.inverse_option_margin(call, -2 * size, **place)  # type: ignore[arg-type]
    assert double == (2 * margin.initial, 2 * margin.maintenance)
    linear = mechanics.linear_option_margin(call, -size, strike=strike, index_price=index, mark_price=mark * index)
    assert linear == (margin.initial * index, margin.maintenance * index)


POSITIONS = st.lists(
    st.tuples(
        st.fractions(min_value=-20, max_value=20, max_denominator=100),
        st.sampled_from([Fraction(0), Fraction(1, 25), Fraction(1, 4)]),
        st.sampled_from([None, (50_000, True), (60_000, False), (90_000, True)]),
    ),
    min_size=1,
    max_size=4,
)


def matrix_positions(drawn: list[tuple[Fraction, Fraction, tuple[int, bool] | None]]) -> list[MatrixPosition]:
    out = []
    for number, (size, years, option) in enumerate(drawn):
        terms = None if option is None or years == 0 else OptionTerms(Fraction(option[0]), option[1], 0.6)
        out.append(MatrixPosition(str(number), size, Fraction(60_000 + 900 * years), years, terms))
    return out


@settings(max_examples=30, deadline=None)
@given(POSITIONS, st.booleans(), st.randoms(use_true_random=False))
def test_fills_and_order_change_nothing_in_the_matrix(
    drawn: list[tuple[Fraction, Fraction, tuple[int, bool] | None]], in_coin: bool, shuffle: random.Random
) -> None:
    held, parameters = matrix_positions(drawn), matrix_parameters("btc")
    index = Fraction(60_000)
    matrix = mechanics.risk_matrix(held, parameters, index_price=index, in_coin=in_coin)
    split = [
        position._replace(size=position.size * part) for position in held for part in (Fraction(1, 3), Fraction(2, 3))
    ]
    shuffle.shuffle(split)
    assert mechanics.risk_matrix(split, parameters, index_price=index, in_coin=in_coin) == matrix
    flat = parameters._replace(extended_dampener_usd=Fraction(0), delta_threshold_usd=Fraction(10**12))
    once = mechanics.risk_matrix(held, flat, index_price=index, in_coin=in_coin)
    tripled = [position._replace(size=3 * position.size) for position in held]
    thrice = mechanics.risk_matrix(tripled, flat, index_price=index, in_coin=in_coin)
    assert thrice.worst.loss == 3 * once.worst.loss
    assert thrice.roll_shock == 3 * once.roll_shock
    margin = mechanics.portfolio_margin(matrix.margin, parameters.maintenance_factor)
    assert margin.initial >= margin.maintenance >= 0


# ---------------------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize(
    ("name", "base", "settlement", "kind", "strike"),
    [
        ("BTC-PERPETUAL", "BTC", "BTC", "perp", None),
        ("ETH-5JUL24", "ETH", "ETH", "future", None),
        ("XRP_USDC-27DEC24-0d55-P", "XRP", "USDC", "option", Decimal("0.55")),
        ("BTC_USDT-PERPETUAL", "BTC", "USDT", "perp", None),
        ("ETH_BTC", "ETH", "BTC", "spot", None),
    ],
)
def test_instrument_names(name: str, base: str, settlement: str, kind: str, strike: Decimal | None) -> None:
    instrument = instrument_of(name)
    assert (instrument.base, instrument.settlement, instrument.kind, instrument.strike) == (
        base,
        settlement,
        kind,
        strike,
    )


@pytest.mark.parametrize(
    "name", ["BTC", "BTC-31FEB25", "BTC-27XYZ24", "BTC-PERPETUAL-1-C", "BTC-FS-28JUN24_PERP", "btc-perpetual", ""]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match=r"no instrument name|no expiry date"):
        instrument_of(name)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def result_of(body: Any) -> Any:
    return body["result"]


def first(body: Any) -> Any:
    return body["result"][0]


def summary(body: Any) -> Any:
    return body["result"]["summaries"][0]


def setting(pick: Callable[[Any], Any], key: str, value: Any) -> Callable[[Any], None]:
    return lambda body: pick(body).update({key: value})


def dropping(pick: Callable[[Any], Any], key: str) -> Callable[[Any], None]:
    return lambda body: pick(body).pop(key)


BAD = [
    ("north_positions_btc.json", dropping(first, "size"), "[0].size", "missing_field", NORTH_BTC),
    ("north_positions_btc.json", setting(first, "size", "many"), "[0].size", "not_a_number", NORTH_BTC),
    ("north_positions_btc.json", setting(first, "size", Decimal("NaN")), "[0].size", "not_a_number", NORTH_BTC),
    ("north_positions_btc.json", setting(first, "size", True), "[0].size", "not_a_number", NORTH_BTC),
    ("north_positions_btc.json", setting(first, "direction", "sell"), "[0].direction", "inconsistent", NORTH_BTC),
    (
        "north_positions_btc.json",
        setting(first, "mark_price", Decimal(-1)),
        "[0].mark_price",
        "out_of_range",
        NORTH_BTC,
    ),
    ("north_positions_btc.json", setting(first, "mark_price", Decimal(0)), "[0].mark_price", "out_of_range", NORTH_BTC),
    (
        "north_positions_btc.json",
        setting(first, "average_price", None),
        "[0].average_price",
        "missing_field",
        NORTH_BTC,
    ),
    ("north_positions_btc.json", setting(first, "size", Decimal("1e30")), "[0].size", "out_of_range", NORTH_BTC),
    (
        "north_positions_btc.json",
        setting(first, "instrument_name", "BTC-PERP"),
        "[0].instrument_name",
        "unknown_market",
        NORTH_BTC,
    ),
    (
        "north_positions_btc.json",
        setting(first, "instrument_name", "NOSUCH-PERPETUAL"),
        "[0].instrument_name",
        "missing_field",
        "deribit:north:NOSUCH",
    ),
    ("north_positions_btc.json", lambda body: body.update(result=7), "", "malformed", NORTH_BTC),
    ("north_positions_btc.json", lambda body: body["result"].append("x"), "[6]", "malformed", NORTH_BTC),
    ("north_positions_btc.json", lambda body: body["result"].append(first(body)), "[6]", "duplicate", NORTH_BTC),
    (
        "north_positions_usdc.json",
        dropping(first, "index_price"),
        "[0].index_price",
        "missing_mark",
        NORTH_USDC,
    ),
    ("north_summaries.json", dropping(summary, "equity"), "summaries[0].equity", "missing_field", NORTH_BTC),
    ("north_summaries.json", setting(summary, "equity", "x"), "summaries[0].equity", "not_a_number", NORTH_BTC),
    (
        "north_summaries.json",
        setting(summary, "margin_model", "house"),
        "summaries[0].margin_model",
        "malformed",
        NORTH_BTC,
    ),
    (
        "north_summaries.json",
        setting(summary, "margin_model", ["segregated_sm"]),
        "summaries[0].margin_model",
        "malformed",
        NORTH_BTC,
    ),
    (
        "north_summaries.json",
        setting(summary, "margin_model", "cross_sm"),
        "summaries[0].margin_model",
        "inconsistent",
        NORTH_BTC,
    ),
    (
        "north_summaries.json",
        setting(summary, "initial_margin", Decimal(-1)),
        "summaries[0].initial_margin",
        "out_of_range",
        NORTH_BTC,
    ),
    (
        "north_summaries.json",
        lambda body: body["result"]["summaries"].append(summary(body)),
        "summaries[3].currency",
        "duplicate",
        NORTH_BTC,
    ),
    ("north_summaries.json", lambda body: body.update(error={"code": 13004}), "error", "malformed", NORTH_BTC),
    ("north_open_orders.json", setting(first, "direction", "up"), "[0].direction", "malformed", NORTH_BTC),
    ("north_open_orders.json", setting(first, "filled_amount", 9e9), "[0].filled_amount", "not_a_number", NORTH_BTC),
    (
        "north_open_orders.json",
        setting(first, "filled_amount", Decimal("9e9")),
        "[0].filled_amount",
        "inconsistent",
        NORTH_BTC,
    ),
    ("north_open_orders.json", setting(first, "order_id", "28611"), "[1].order_id", "duplicate", NORTH_BTC),
    ("south_summaries.json", lambda body: body["result"]["summaries"].pop(), "summaries", "inconsistent", SOUTH),
    (
        "ticker_btc_27sep24_70000_c.json",
        dropping(result_of, "mark_iv"),
        "[2].instrument_name",
        "missing_mark",
        NORTH_BTC,
    ),
    (
        "ticker_btc_27sep24_70000_c.json",
        dropping(result_of, "underlying_price"),
        "[2].instrument_name",
        "missing_mark",
        SOUTH,
    ),
]


@pytest.mark.parametrize(("file", "change", "path", "reason", "account"), BAD)
def test_bad_input_is_a_failure_of_its_account(
    file: str, change: Callable[[Any], None], path: str, reason: str, account: str
) -> None:
    result = normalized(desk_with(file, change))
    found = [f for f in failures_of(result, account) if f.reason == reason and f.payload]
    assert any(f.path == path or account == SOUTH for f in found), result.failures
    assert all(f.venue == "deribit" for f in result.failures)
    snapshot = take_snapshot([result.batches], result.failures)
    assert account in snapshot.incomplete
    # the other owners go on
    assert {EAST, WEST, QUAY} - snapshot.incomplete >= ({EAST, WEST, QUAY} if not file.startswith("ticker") else {QUAY})
    assert account in {row["account_id"] for row in rows_of(result, "accounts")}


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("ticker_btc_perpetual.json", dropping(result_of, "instrument_name"), "missing_field"),
        ("ticker_btc_perpetual.json", setting(result_of, "mark_price", Decimal(-1)), "out_of_range"),
        ("ticker_btc_perpetual.json", setting(result_of, "timestamp", 10**17), "out_of_range"),
        ("index_btc_usd.json", setting(result_of, "index_price", "cheap"), "not_a_number"),
        ("instruments_btc.json", setting(first, "settlement_currency", "ETH"), "inconsistent"),
        ("instruments_btc.json", setting(first, "kind", "future_combo"), "unsupported"),
        ("instruments_btc.json", lambda body: body["result"].append(first(body)), "duplicate"),
        ("pme_params.json", lambda body: result_of(body)["general"].pop("mm_factor"), "missing_field"),
        (
            "pme_params.json",
            lambda body: result_of(body)["currency_pair"]["btc_usd"].update(price_range=Decimal(1)),
            "out_of_range",
        ),
        ("east_simulation.json", lambda body: result_of(body).update(margins=[]), "malformed"),
        (
            "east_simulation.json",
            lambda body: result_of(body)["portfolio"]["position"].pop("BTC-PERPETUAL"),
            "inconsistent",
        ),
    ],
)
def test_bad_market_answers_leave_the_accounts_alone(file: str, change: Callable[[Any], None], reason: str) -> None:
    result = normalized(desk_with(file, change))
    assert [f.reason for f in result.failures if f.payload == file] == [reason]
    assert not any(f.account_id for f in result.failures)


def test_answers_that_are_missing() -> None:
    positions = normalized(desk_without("north_positions_btc.json"))
    assert [(f.reason, f.path) for f in failures_of(positions, NORTH_BTC)] == [
        ("missing_field", "summaries[0].currency")
    ]
    summaries = normalized(desk_without("north_summaries.json"))
    assert {f.reason for f in failures_of(summaries, NORTH_BTC)} == {"missing_field"}
    assert {row["account_id"] for row in rows_of(summaries, "accounts")} >= {NORTH_BTC, NORTH_USDC}
    # without live parameters the dated ones hold
    dated = normalized(desk_without("pme_params.json", "east_simulation.json"))
    assert dated.failures == []
    assert "configs/venues/deribit.toml" in rows_of(dated, "rule_sets", rule_set="deribit:pm:west:cross")[0]["source"]
    bare = normalized(desk_without("pme_params.json", "east_simulation.json"), {"as_of": "2024-01-01", "source": "-"})
    assert {f.reason for f in bare.failures} == {"missing_parameter"}
    assert {f.account_id for f in bare.failures} == {NORTH_BTC, NORTH_USDC, SOUTH, EAST, WEST}


@pytest.mark.parametrize(("number", "path"), [(1, "futures_session_upl"), (3, "options_value")])
def test_a_position_that_is_missing_is_a_finding(number: int, path: str) -> None:
    result = normalized(desk_with("north_positions_btc.json", lambda body: body["result"].pop(number)))
    assert [(f.reason, f.path, f.account_id) for f in result.failures] == [
        ("inconsistent", f"summaries[0].{path}", None)
    ]


def test_versions_of_a_summary_without_the_parts_of_equity() -> None:
    def older(body: Any) -> None:
        for key in ("futures_session_upl", "options_session_upl", "session_upl", "options_value"):
            summary(body).pop(key)

    result = normalized(desk_with("north_summaries.json", older))
    assert {(f.reason, f.path) for f in failures_of(result, NORTH_BTC)} == {
        ("missing_field", "summaries[0].options_value"),
        ("missing_field", "summaries[0].futures_session_upl"),
    }
    usdc = desk_with("north_summaries.json", lambda body: body["result"]["summaries"][1].pop("futures_session_upl"))
    assert normalized(usdc).failures == []  # session_upl less that of options is the same


@pytest.mark.parametrize("change", [setting(first, "open_orders_margin", None), dropping(first, "open_orders_margin")])
@pytest.mark.parametrize("orders", [True, False])
def test_a_margin_of_orders_that_is_not_stated_makes_the_account_incomplete(
    change: Callable[[Any], Any], orders: bool
) -> None:
    payloads = desk_with("north_positions_btc.json", change)
    result = normalized([p for p in payloads if orders or p.name != "north_open_orders.json"])
    assert [(f.reason, f.path, f.payload) for f in failures_of(result, NORTH_BTC)] == [
        ("missing_field", "[0].open_orders_margin", "north_positions_btc.json")
    ]
    assert take_snapshot([result.batches], result.failures).incomplete == {NORTH_BTC}


def test_an_order_without_a_row_that_states_its_margin() -> None:
    elsewhere = setting(first, "instrument_name", "ETH_USDC-PERPETUAL")
    result = normalized(desk_with("north_open_orders.json", elsewhere))
    assert [(f.reason, f.path, f.payload) for f in failures_of(result, NORTH_USDC)] == [
        ("missing_field", "[0].instrument_name", "north_open_orders.json")
    ]
    assert failures_of(result, NORTH_BTC) == []

    def reducing(body: Any) -> None:
        first(body).update(instrument_name="ETH_USDC-PERPETUAL", reduce_only=True)

    assert normalized(desk_with("north_open_orders.json", reducing)).failures == []

    # a row without a position states it as well
    def idle(body: Any) -> None:
        row = {"instrument_name": "ETH_USDC-PERPETUAL", "direction": "zero", "size": 0, "average_price": 0}
        body["result"].append({**row, "open_orders_margin": Decimal("17.5")})

    stated = [
        changed(p, idle) if p.name == "north_positions_usdc.json" else p
        for p in desk_with("north_open_orders.json", elsewhere)
    ]
    whole = normalized(stated)
    assert whole.failures == []
    assert [form.initial for form in forms_of(whole, NORTH_USDC, Fixed)] == [Decimal("17.5")]
    twice = replace(
        fetched("north_positions_usdc.json"),
        name="again.json",
        body={"result": [{"instrument_name": "ETH_USDC-PERPETUAL", "size": 0, "open_orders_margin": Decimal(3)}]},
    )
    assert "duplicate" in {f.reason for f in failures_of(normalized([*stated, twice]), NORTH_USDC)}
    # under portfolio margin no row states it
    assert (
        normalized(desk_with("east_open_orders.json", setting(first, "instrument_name", "BTC-26JUL24"))).failures == []
    )


def test_a_coin_without_rules() -> None:
    def held(body: Any) -> None:
        first(body).update(instrument_name="DOGE_USDC-PERPETUAL")

    result = normalized(desk_with("north_positions_usdc.json", held))
    assert [(f.reason, f.path) for f in failures_of(result, NORTH_USDC)] == [
        ("missing_parameter", "[0].instrument_name")
    ]


def test_two_answers_to_one_question() -> None:
    positions = fetched("north_positions_btc.json")
    result = normalized([*desk(), replace(positions, name="again.json")])
    assert {f.reason for f in failures_of(result, NORTH_BTC)} >= {"duplicate"}
    assert {f.account_id for f in result.failures} == {NORTH_BTC, NORTH_USDC}
    ticker = fetched("ticker_btc_perpetual.json")
    twice = normalized([*desk(), replace(ticker, name="again.json")])
    assert [(f.reason, f.account_id) for f in twice.failures] == [("duplicate", None)]


def test_requests_that_nobody_knows() -> None:
    odd = replace(fetched("pme_params.json"), request="public/get_time")
    mine = replace(fetched("north_summaries.json"), account="")
    result = normalized([odd, mine])
    assert [(f.reason, f.path) for f in result.failures] == [("missing_field", "account"), ("unsupported", "request")]


def test_a_wrong_parameter_file_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"futures\.BTC\.slope"):
        normalized([], {**PARAMETERS, "futures": {"BTC": {"initial": "0.02", "maintenance": "0.01"}}})


def test_the_newest_price_wins_and_two_of_one_time_are_none() -> None:
    older = changed(fetched("ticker_btc_perpetual.json"), setting(result_of, "mark_price", Decimal(1)))
    older.body["result"]["timestamp"] -= 5000
    message = replace(older, request="ticker.BTC-PERPETUAL.raw", name="message.json", body=older.body["result"])
    result = normalized([fetched("ticker_btc_perpetual.json"), message])
    mark = only(result, "marks", subject="deribit:BTC-PERPETUAL", field="mark")
    assert mark["value"] == 60975.5
    index = replace(fetched("index_btc_usd.json"), request="public/get_index_price:eth_usd", name="eth.json")
    clash = normalized(
        [fetched("index_eth_usd.json"), replace(index, name="b.json", request="/api/v2/public/get_index_price:ETH_usd")]
    )
    assert [f.reason for f in clash.failures] == ["inconsistent"]
    assert rows_of(clash, "marks", subject="ETH") == []


def test_the_order_of_payloads_does_not_matter() -> None:
    def tables(payloads: list[Payload]) -> Any:
        result = normalized(payloads)
        return {
            name: sorted(json.dumps(row, default=str, sort_keys=True) for row in table.to_pylist())
            for name, table in result.batches.items()
        }, sorted(str(failure) for failure in result.failures)

    bad = desk_with("north_positions_btc.json", setting(first, "size", "x"))
    for payloads in (desk(), bad):
        expected = tables(payloads)
        for seed in range(3):
            shuffled = payloads[:]
            random.Random(seed).shuffle(shuffled)
            assert tables(shuffled) == expected


def test_bare_results_and_other_requests_of_the_same_objects() -> None:
    bare = [replace(payload, body=payload.body.get("result", payload.body)) for payload in desk()]
    result = normalized(bare)
    assert result.failures == []
    single = fetched("north_positions_btc.json")
    singles = [
        replace(
            single,
            request="private/get_position",
            name=f"{number}.json",
            body={"result": record, "usOut": single.body["usOut"]},
        )
        for number, record in enumerate(single.body["result"])
    ]
    parts = normalized([*desk_without("north_positions_btc.json"), *singles])
    assert parts.failures == []
    assert rows_of(parts, "positions", account_id=NORTH_BTC) == rows_of(
        normalized(desk()), "positions", account_id=NORTH_BTC
    )


# ---------------------------------------------------------------------------------------------------------------------
# Recorded payloads


def recorded_payload(recorded: Path, file: str, request: str, owner: str = "") -> Payload:
    return fetched(file, root=recorded / "payloads" / "deribit", request=request, owner=owner)


def test_recorded_cross_account_is_cut_to_four_currencies(recorded: Path) -> None:
    payload = recorded_payload(recorded, "account_summaries_cross_pm.json", "private/get_account_summaries", "a")
    result = normalized([payload])
    assert [(f.reason, f.path, f.account_id) for f in result.failures] == [
        ("inconsistent", "summaries", "deribit:a:cross")
    ]
    account = only(result, "accounts")
    assert account["reported_equity"] == Decimal("25.710502678")  # once, not four times
    assert account["reported_maintenance_margin"] == Decimal("0.2671726792")
    # its matrix is that of the coins it holds: 16 % of the BTC and 18 % of the ETH, to the digits of the equities
    index = {r["subject"]: exact(r["value"]) for r in rows_of(result, "marks", field="index")}
    total = Fraction(0)
    for row in rows_of(result, "balances"):
        if row["asset_id"] in ("BTC", "ETH"):
            coin = row["asset_id"]
            matrix = mechanics.cross_risk_matrix(
                [], Fraction(row["quantity"]), matrix_parameters(coin.lower()), index_price=index[coin]
            )
            total += matrix.margin
    assert float(exact("0.8") * total) == pytest.approx(0.2671726792, rel=1e-3)
    usdt = exact("23.61869") * index["USDT"]
    assert float(total + exact("0.02") * usdt) == pytest.approx(0.806292412, rel=1e-3)


def test_recorded_message_of_a_cross_account(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "ws_portfolio.json", "user.portfolio", "a")])
    assert [(f.reason, f.path) for f in result.failures] == [("inconsistent", "summaries")]  # one currency of several
    assert only(result, "accounts")["reported_initial_margin"] == Decimal("1.099130991")


def test_recorded_simulation(recorded: Path) -> None:
    result = normalized([recorded_payload(recorded, "pme_simulate_doc.json", "private/pme/simulate:BTC", "a")])
    assert [(f.reason, f.account_id) for f in result.failures] == [("missing_field", "deribit:a")]  # no summary
    marks = {(r["subject"], r["field"]): r["value"] for r in rows_of(result, "marks")}
    assert marks["deribit:BTC-28JUN24", "mark"] == 67371.75
    assert marks["BTC", "index"] == 65666.19


def test_recorded_market_answers(recorded: Path) -> None:
    result = normalized(
        [
            recorded_payload(recorded, "ws_ticker.json", "ticker.BTC-PERPETUAL.100ms"),
            recorded_payload(recorded, "instrument_option.json", "public/get_instrument"),
        ]
    )
    assert result.failures == []
    option = only(result, "instruments", kind="option")
    # the sample's hour is noon, and its answer knows better than its name
    assert option["expiry"].isoformat() == "2024-12-27T12:00:00+00:00"
    marks = {r["field"]: r["value"] for r in rows_of(result, "marks", subject="deribit:BTC-PERPETUAL")}
    assert (marks["mark"], marks["depth_ask"]) == (92281.78, 186520.0)
    assert only(result, "market_state")["value"] == pytest.approx(1132329370 / 92281.78, rel=1e-12)
