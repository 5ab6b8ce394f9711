"""Packing accounts: what each row becomes, what leaves an account out and why, who belongs to whom."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aggregator.errors import ConfigurationError, FailureReason
from aggregator.portfolio import Book, PackedPortfolio, pack_book
from aggregator.rule_forms import Component, OptionFormula, TieredNotional, Verdict, WeightedValue, component_rows
from tests.engine_accounts import BUILDERS, AccountBook, account, amount, balance, position
from tests.engine_book import packed, snapshot_of
from tests.engine_markets import AS_OF, SPOT, USDT_OFF_PEG, Rows, market_rows, merged, option_id, rows
from tests.engine_rules import rule_rows

RTOL = 1e-12  # float64, a few operations

KINDS = {
    "lend": "lend:plain",
    "perps": "perps:cross",
    "multi": "multi:usd",
    "coin": "coin:margined",
    "inverse": "coin:options",
    "grid": "options:grid",
    "standard": "standard:losses",
    "wallet": "wallet:spot",
}


def book_with(mutate: Callable[[Rows], None], kind: str) -> Book:
    """The packed book of one account of a kind and a wallet, after `mutate` changed its rows."""
    name = f"{KINDS[kind]}:0"
    parts = [market_rows(), rule_rows(), BUILDERS[KINDS[kind]](name, np.random.default_rng(5))]
    if kind != "wallet":
        parts.append(BUILDERS["wallet:spot"]("wallet:spot:1", np.random.default_rng(6)))
    tables = copy.deepcopy(merged(*parts))
    mutate(tables)
    return packed(AccountBook(tables, {"desk": (name, "wallet:spot:1") if kind != "wallet" else (name,)}))


def nothing(tables: Rows) -> None:
    pass


def dropped(table: str, **match: Any) -> Callable[[Rows], None]:
    """Drop the rows that match; at least one must."""

    def mutate(tables: Rows) -> None:
        kept = [row for row in tables[table] if not all(row.get(k) == v for k, v in match.items())]
        assert len(kept) < len(tables[table])
        tables[table] = kept

    return mutate


def changed(table: str, match: dict[str, Any], **columns: Any) -> Callable[[Rows], None]:
    """Set columns of the rows that match; at least one must."""

    def mutate(tables: Rows) -> None:
        found = [row for row in tables[table] if all(row.get(k) == v for k, v in match.items())]
        assert found
        for row in found:
            row.update(columns)

    return mutate


def added(**tables_of: list[dict[str, Any]]) -> Callable[[Rows], None]:
    def mutate(tables: Rows) -> None:
        for name, of in tables_of.items():
            tables[name] = tables.get(name, []) + of

    return mutate


def repeated(table: str, match: dict[str, Any], **columns: Any) -> Callable[[Rows], None]:
    """Add a copy of the rows that match with other values in some columns; at least one must."""

    def mutate(tables: Rows) -> None:
        found = [row | columns for row in tables[table] if all(row.get(k) == v for k, v in match.items())]
        assert found
        tables[table] = tables[table] + found

    return mutate


def with_rules(rule_set: str, *components: Component) -> Callable[[Rows], None]:
    """Replace a rule set."""

    def mutate(tables: Rows) -> None:
        tables["rule_sets"] = [row for row in tables["rule_sets"] if row["rule_set"] != rule_set]
        tables["rule_sets"] += component_rows(rule_set, components, source="test")

    return mutate


PERP = {"entry_price": "60000", "leverage": "10"}
VERDICT = Component(side="verdict", parameters=Verdict(liquidates_when="below"))
EQUITY = Component(side="equity", parameters=WeightedValue())
FORMULA = OptionFormula.model_validate(dict.fromkeys(OptionFormula.model_fields, "0.1"))
ETH_OPTION = option_id("options", "ETH", 1, 3300, "call")

LEFT_OUT: dict[str, tuple[str, Callable[[Rows], None], FailureReason, str]] = {
    "no mark of a perp": (
        "perps",
        dropped("marks", subject="perps:ETH-PERP"),
        FailureReason.MISSING_MARK,
        "no mark of perps:ETH-PERP",
    ),
    "no price of a coin": (
        "lend",
        dropped("marks", venue="lend", subject="wstETH"),
        FailureReason.MISSING_MARK,
        "no price of wstETH on lend",
    ),
    "no entry price": (
        "perps",
        changed("positions", {"instrument_id": "perps:BTC-PERP"}, entry_price=None),
        FailureReason.MISSING_FIELD,
        "no entry price of perps:BTC-PERP",
    ),
    "entry price of zero": (
        "perps",
        changed("positions", {"instrument_id": "perps:BTC-PERP"}, entry_price="0"),
        FailureReason.OUT_OF_RANGE,
        "entry price 0.0",
    ),
    "no chosen leverage": (
        "perps",
        changed("positions", {"instrument_id": "perps:SOL-PERP"}, leverage=None),
        FailureReason.MISSING_FIELD,
        "no chosen leverage of perps:SOL-PERP",
    ),
    "no tiers": (
        "coin",
        dropped("margin_tiers", rule_set="coin", market="coin:BTC-JUN"),
        FailureReason.MISSING_PARAMETER,
        "no margin tiers of coin:BTC-JUN",
    ),
    "tiers that start above 0": (
        "coin",
        dropped("margin_tiers", rule_set="coin", market="coin:BTC-JUN", tier=1),
        FailureReason.INCONSISTENT,
        "do not ascend from 0",
    ),
    "tiers that descend": (
        "coin",
        changed("margin_tiers", {"market": "coin:BTC-JUN", "tier": 3}, notional_floor="1"),
        FailureReason.INCONSISTENT,
        "do not ascend from 0",
    ),
    "no collateral weight": (
        "lend",
        dropped("collateral_tiers", rule_set="lend", asset_id="USDC"),
        FailureReason.MISSING_PARAMETER,
        "no collateral weight of USDC",
    ),
    "a haircut in tiers": (
        "lend",
        repeated("collateral_tiers", {"rule_set": "lend", "asset_id": "ETH"}, tier=2, floor="100"),
        FailureReason.UNSUPPORTED,
        "a haircut on ETH in 2 tiers as a requirement",
    ),
    "collateral tiers from nowhere": (
        "multi",
        changed("collateral_tiers", {"rule_set": "multi", "asset_id": "BTC"}, floor="1"),
        FailureReason.INCONSISTENT,
        "collateral tiers of BTC do not ascend from 0",
    ),
    "collateral tiers of two measures": (
        "multi",
        repeated("collateral_tiers", {"rule_set": "multi", "asset_id": "BTC"}, tier=2, floor="9", floor_in="value"),
        FailureReason.INCONSISTENT,
        "collateral tiers of BTC in tokens and in value",
    ),
    "no forward": (
        "grid",
        dropped("marks", venue="options", field="forward"),
        FailureReason.MISSING_MARK,
        "no forward of ETH@",
    ),
    "no implied vol": (
        "inverse",
        dropped("marks", subject=option_id("coin", "BTC", 1, 66000, "call")),
        FailureReason.MISSING_MARK,
        "no implied vol of coin:BTC-1-66000-call",
    ),
    "two verdicts": (
        "wallet",
        with_rules("wallet", EQUITY, VERDICT, VERDICT),
        FailureReason.MISSING_PARAMETER,
        "'wallet' has 2 verdicts",
    ),
    "no equity component": (
        "wallet",
        with_rules("wallet", VERDICT),
        FailureReason.MISSING_PARAMETER,
        "'wallet' has no equity component",
    ),
    "a form at one level alone": (
        "perps",
        with_rules(
            "perps", EQUITY, Component(side="requirement", parameters=TieredNotional(), level="initial"), VERDICT
        ),
        FailureReason.UNSUPPORTED,
        "tiered_notional of rule set 'perps' at level 'initial' alone",
    ),
    "a formula without its expiry form": (
        "grid",
        with_rules("portfolio", EQUITY, Component(side="requirement", parameters=FORMULA), VERDICT),
        FailureReason.UNSUPPORTED,
        "option_formula",
    ),
    "an option under tiers": (
        "grid",
        with_rules("portfolio", EQUITY, Component(side="requirement", parameters=TieredNotional()), VERDICT),
        FailureReason.UNSUPPORTED,
        "under notional tiers",
    ),
    "an option on an asset without a price factor": (
        "grid",
        changed("instruments", {"underlying": "ETH", "venue": "options", "kind": "option"}, underlying="USDC"),
        FailureReason.MISSING_MARK,
        "no forward of USDC@",
    ),
    "several grids": (
        "grid",
        repeated("rule_sets", {"rule_set": "portfolio", "form": "price_vol_grid"}, component_no=90),
        FailureReason.UNSUPPORTED,
        "several grids",
    ),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_missing_leaves_the_whole_account_out(case: str) -> None:
    kind, mutate, reason, message = LEFT_OUT[case]
    book = book_with(mutate, kind)
    (portfolio,) = book.portfolios
    name = f"{KINDS[kind]}:0"
    assert portfolio.accounts_left_out == [name]
    assert [info.account_id for info in portfolio.left_out] == [name]
    (failure,) = book.failures
    assert (failure.reason, failure.account_id) == (reason, name)
    assert message in failure.message
    # Nothing of it is left in the sums; the other account stands.
    kept = [] if kind == "wallet" else ["wallet:spot:1"]
    assert [info.account_id for info in portfolio.accounts] == kept
    assert {line.account_id for line in portfolio.lines} == set(kept)
    assert len(portfolio.line_equity) == len(portfolio.lines) == len(portfolio.line_node)
    assert not portfolio.tiers
    assert not portfolio.units


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_missing_otherwise(kind: str) -> None:
    book = book_with(nothing, kind)
    assert not book.failures
    assert not book.portfolios[0].accounts_left_out
    assert book.portfolios[0].left_out_gross_usd is None


def test_an_account_that_needs_a_factor_that_nothing_moves_is_left_out() -> None:
    name = "options:grid:0"
    tables = merged(market_rows(), rule_rows(), BUILDERS["options:grid"](name, np.random.default_rng(5)))
    for factor, subject in (("vol:ETH", name), ("peg:wstETH", "wstETH"), ("price:ETH", "ETH")):
        book = packed(AccountBook(tables, {"desk": (name,)}), missing=frozenset({factor}))
        (failure,) = book.failures
        assert (failure.reason, failure.account_id) == (FailureReason.MISSING_PARAMETER, name)
        assert factor in failure.message
        assert subject in failure.message or failure.subject
        assert book.portfolios[0].accounts_left_out == [name]


def test_the_gross_value_of_what_is_left_out_is_what_can_be_valued() -> None:
    mutate = dropped("marks", venue="perps", subject="perps:ETH-PERP")
    book = book_with(mutate, "perps")
    tables = merged(BUILDERS["perps:cross"]("perps:cross:0", np.random.default_rng(5)))
    cash = float(tables["balances"][0]["quantity"]) * SPOT["USDC"]
    btc, _, sol = (abs(float(row["quantity"])) for row in tables["positions"])
    expected = cash + btc * SPOT["BTC"] * 1.0008 + sol * SPOT["SOL"] * 1.0021
    assert book.portfolios[0].left_out_gross_usd == pytest.approx(expected, rel=RTOL)


# ---- one account at a time -------------------------------------------------------------------------------------------


def alone(part: Rows, *more: Rows) -> PackedPortfolio:
    """The portfolio of the accounts in `part`."""
    names = tuple(row["account_id"] for row in part["accounts"])
    book = packed(AccountBook(merged(market_rows(), rule_rows(), part, *more), {"desk": names}))
    assert not book.failures, book.failures
    return book.portfolios[0]


def test_lines_say_what_and_where_they_are() -> None:
    name = "coin:x"
    part = rows(
        accounts=[account(name, "coin_options", "BTC", node="desk")],
        balances=[balance(name, "BTC", 2.0), balance(name, "ETH", -3.0, accrued_interest="0.5")],
        positions=[
            position(name, "coin:ETH-PERP", -50.0, side_mode="short", entry_price="3000"),
            position(name, option_id("coin", "BTC", 2, 60000, "call"), 1.5),
        ],
    )
    portfolio = alone(part)
    lines = {line.key: line for line in portfolio.lines}
    coins, debt, perp, option = (
        f"{name}/BTC",
        f"{name}/ETH/debt",
        f"{name}/coin:ETH-PERP/short",
        f"{name}/coin:BTC-2-60000-call",
    )
    assert set(lines) == {coins, debt, perp, option}
    assert {line.node for line in portfolio.lines} == {"desk"}
    assert [lines[key].asset for key in (coins, debt, perp, option)] == ["BTC", "ETH", "ETH", "BTC"]
    assert lines[coins].value_usd == pytest.approx(2 * SPOT["BTC"], rel=RTOL)
    assert lines[debt].value_usd == pytest.approx(-3.5 * SPOT["ETH"], rel=RTOL)
    # An inverse short of 500 dollars is worth -500 dollars of ETH, whatever it owes in coins.
    assert lines[perp].value_usd == pytest.approx(-500.0 / 1.0004, rel=RTOL)
    assert lines[option].value_usd > 0.0
    for key, line in lines.items():
        assert line.gross_usd == pytest.approx(abs(line.value_usd), rel=RTOL), key
    equity = dict(zip([line.key for line in portfolio.lines], portfolio.line_equity, strict=True))
    mark = SPOT["ETH"] * 1.0004
    assert equity[perp] == pytest.approx(-500.0 * (1 / 3000 - 1 / mark) * SPOT["ETH"], rel=1e-9)
    assert equity[option] == pytest.approx(lines[option].value_usd, rel=RTOL)
    assert portfolio.debts == {0: pytest.approx(3.5 * SPOT["ETH"] / SPOT["BTC"], rel=RTOL)}


def test_a_short_inverse_option_has_a_negative_value() -> None:
    name = "coin:x"
    options = [position(name, option_id("coin", "BTC", 2, 60000, "put"), -1.0)]
    part = rows(accounts=[account(name, "coin_options", "BTC")], balances=[], positions=options)
    (line,) = alone(part).lines
    assert line.value_usd < 0.0 < line.gross_usd


def test_disabled_collateral_is_owned_but_does_not_count() -> None:
    name = "lend:x"
    part = rows(
        accounts=[account(name, "lend", "USD", margin_mode="lending")],
        balances=[balance(name, "ETH", 10.0), balance(name, "BTC", 1.0, enabled=False), balance(name, "USDC", -9000.0)],
    )
    portfolio = alone(part)
    assert sum(portfolio.line_equity) == pytest.approx(10 * SPOT["ETH"] + SPOT["BTC"] - 9000 * SPOT["USDC"], rel=RTOL)
    native = sum(coefficient for _, _, coefficient in portfolio.native_legs)
    assert native == pytest.approx(10 * SPOT["ETH"] - 9000 * SPOT["USDC"], rel=RTOL)
    maintenance = sum(row[3] for row in portfolio.requirements)
    assert maintenance == pytest.approx((1 - 0.83) * 10 * SPOT["ETH"], rel=RTOL)


def test_disabled_collateral_offsets_nothing_in_the_grid() -> None:
    def unit(*, enabled: bool) -> Any:
        name = "options:x"
        part = rows(
            accounts=[account(name, "portfolio", "USDC", margin_mode="portfolio")],
            balances=[balance(name, "ETH", 10.0, enabled=enabled, accrued_interest="0.25")],
            positions=[position(name, ETH_OPTION, -4.0)],
        )
        (found,) = alone(part).units
        return found

    (token,) = unit(enabled=True).collateral
    assert token[:4] == (10.25, SPOT["ETH"], 1.0, 1.0)
    assert unit(enabled=False).collateral == ()


def test_the_emode_decides_the_weight() -> None:
    def maintenance(emode: str | None) -> float:
        name = "lend:x"
        part = rows(
            accounts=[account(name, "lend", "USD", margin_mode="lending", emode=emode)],
            balances=[balance(name, "ETH", 1.0)],
        )
        return sum(row[3] for row in alone(part).requirements)

    assert maintenance(None) == pytest.approx((1 - 0.83) * SPOT["ETH"], rel=RTOL)
    assert maintenance("eth") == pytest.approx((1 - 0.95) * SPOT["ETH"], rel=RTOL)
    # A category that says nothing of the asset leaves it its weight outside of any.
    assert maintenance("stables") == pytest.approx((1 - 0.83) * SPOT["ETH"], rel=RTOL)


def test_a_stable_without_a_price_counts_at_par_and_the_accounts_own_mark_wins() -> None:
    name = "options:x"
    part = rows(
        accounts=[account(name, "wallet", "USD")],
        balances=[balance(name, "USDT", 100.0), balance(name, "ETH", 1.0)],
        marks=[
            {
                "venue": "options",
                "account_id": name,
                "subject": "ETH",
                "field": "oracle",
                "value": 5000.0,
                "source": "own",
            }
        ],
    )
    values = {line.key.partition("/")[2]: line.value_usd for line in alone(part).lines}
    assert values == {"USDT": 100.0, "ETH": 5000.0}


def test_own_figures_are_in_the_unit_of_the_account() -> None:
    name = "multi:x"
    part = rows(accounts=[account(name, "wallet", "USDT")], balances=[balance(name, "USDT", 100.0)])
    portfolio = alone(part)
    assert portfolio.accounts[0].unit_price_usd == USDT_OFF_PEG
    assert portfolio.native_legs == [(0, 0, 100.0)]  # row 0 is the constant: the peg does not move it
    ((_, row, coefficient),) = portfolio.legs
    assert row != 0
    assert coefficient == pytest.approx(100.0 * USDT_OFF_PEG, rel=RTOL)


def test_leverage_override_and_tier_rate() -> None:
    def tier(rule_set: str, **columns: Any) -> Any:
        name = "perps:x"
        part = rows(
            accounts=[account(name, rule_set, "USDC")],
            balances=[balance(name, "USDC", 1e5)],
            positions=[position(name, "perps:BTC-PERP", -1.0, entry_price="60000", **columns)],
        )
        ((_, found),) = alone(part).tiers
        return found

    plain = tier("perps", leverage="20")
    assert plain.inverse_leverage == 0.05
    assert not plain.tables.initial_step.any()  # the chosen leverage decides, not the tier's own rate
    assert plain.notional == pytest.approx(SPOT["BTC"] * 1.0008, rel=RTOL)
    assert tier("perps", leverage="20", initial_rate_override="0.031").inverse_leverage == 0.05
    assert tier("perps", leverage="20", initial_rate_override="0.08").inverse_leverage == 0.08
    assert tier("perps_tier_rate").inverse_leverage == 0.0
    assert tier("perps_tier_rate", initial_rate_override="0.08").inverse_leverage == 0.08
    np.testing.assert_allclose(np.cumsum(tier("perps_tier_rate").tables.initial_step), [0.01, 0.02, 0.05, 0.1])


def test_a_position_has_one_profit_where_assets_are_not_netted() -> None:
    name = "multi:x"
    apart = with_rules(
        "multi",
        Component(side="equity", parameters=WeightedValue(weights="collateral_tiers")),
        Component(side="requirement", parameters=TieredNotional()),
        VERDICT,
    )
    part = rows(
        accounts=[account(name, "multi", "USD")],
        balances=[balance(name, "BTC", 1.0), balance(name, "USDT", 50.0)],
        positions=[position(name, "multi:SOL-PERP", 10.0, entry_price="120", leverage="5")],
    )
    tables = merged(market_rows(), rule_rows(), part)
    apart(tables)
    (portfolio,) = packed(AccountBook(tables, {"desk": (name,)})).portfolios
    groups = [group for group, _, _ in portfolio.native_legs]
    assert len(portfolio.groups) == 3
    # The perp's worth and what was paid for it stand in one group: what is weighted is their difference.
    assert sorted(groups) == [0, 1, 2, 2]


def test_contract_forms_mark_options_without_discount() -> None:
    def prices(venue: str, rule_set: str) -> tuple[float, float]:
        name = f"{venue}:x"
        put = position(name, option_id(venue, "ETH", 3, 3300, "put"), 1.0)
        part = rows(accounts=[account(name, rule_set, "USDC")], balances=[], positions=[put])
        portfolio = alone(part)
        return portfolio.lines[0].value_usd, portfolio.units[0].expiries[0][2]

    discounted, rate = prices("options", "portfolio")
    plain, none = prices("standard", "standard")
    assert (rate, none) == (0.045, 0.0)
    assert discounted == pytest.approx(plain * np.exp(-0.045 * 119 / 365), rel=RTOL)


def test_a_stable_beside_two_underlyings_is_a_unit_of_its_own() -> None:
    name = "standard:x"
    part = rows(
        accounts=[account(name, "standard", "USDC")],
        balances=[balance(name, "USDT", 100.0)],
        positions=[
            position(name, "standard:BTC-PERP", 1.0, entry_price="60000"),
            position(name, "standard:ETH-PERP", 1.0, entry_price="3000"),
        ],
    )
    units = alone(part).units
    assert [(unit.underlying, unit.price_factor, len(unit.collateral)) for unit in units] == [
        ("BTC", "price:BTC", 0),
        ("ETH", "price:ETH", 0),
        ("USDT", None, 1),
    ]
    # Beside a single underlying it joins that one's unit: every token stands in one unit.
    part["positions"].pop()
    (unit,) = alone(part).units
    assert (unit.underlying, len(unit.collateral)) == ("BTC", 1)


def test_further_and_inverse_perps_stand_beside_the_first_in_a_risk_unit() -> None:
    name = "coin:x"
    part = rows(
        accounts=[account(name, "standard", "BTC")],
        balances=[balance(name, "BTC", 1.0)],
        positions=[position(name, "coin:BTC-PERP", 3.0, entry_price="60000")],
    )
    tables = merged(market_rows(), rule_rows(), part)
    tables["collateral_tiers"] += [
        row | {"asset_id": "BTC"}
        for row in tables["collateral_tiers"]
        if row["rule_set"] == "standard" and row["asset_id"] == "ETH"
    ]
    book = packed(AccountBook(tables, {"desk": (name,)}))
    assert book.failures == ()
    (unit,) = book.portfolios[0].units
    (held,) = unit.delta_one
    # 3 contracts of 100 dollars, in coins at the mark.
    assert held.quantity == pytest.approx(300 / (SPOT["BTC"] * 1.0004), rel=RTOL)
    assert held.is_inverse


# ---- who belongs to whom ---------------------------------------------------------------------------------------------


def wallets(*names: str) -> Rows:
    return rows(
        accounts=[account(name, "wallet", "USD", node=name.rpartition(":")[0]) for name in names],
        balances=[balance(name, "ETH", 1.0) for name in names],
    )


def test_an_entry_claims_an_account_and_everything_under_it() -> None:
    part = wallets("wallet:a", "wallet:a:1", "wallet:a:2", "wallet:ab", "wallet:c")
    tables = merged(market_rows(), rule_rows(), part)
    book, unclaimed = pack_book({"main": snapshot_of(tables)}, {"z": ("wallet:a",), "b": ("wallet:ab",)}, as_of=AS_OF)
    found = {p.portfolio_id: [info.account_id for info in p.accounts] for p in book.portfolios}
    assert found == {"b": ["wallet:ab"], "z": ["wallet:a", "wallet:a:1", "wallet:a:2"]}
    assert [p.portfolio_id for p in book.portfolios] == ["b", "z"]
    assert unclaimed == ["wallet:c"]


def test_accounts_of_one_node_share_it() -> None:
    part = wallets("wallet:a:1", "wallet:a:2", "wallet:b:1")
    portfolio = alone(part)
    assert portfolio.nodes == [("wallet:a", "wallet"), ("wallet:b", "wallet")]
    assert portfolio.line_node == [0, 0, 1]


def test_an_entry_that_finds_nothing_is_a_failure_of_its_portfolio() -> None:
    tables = merged(market_rows(), rule_rows(), wallets("wallet:a"))
    book, _ = pack_book({"main": snapshot_of(tables)}, {"p": ("wallet:a", "wallet:lost")}, as_of=AS_OF)
    assert book.portfolios[0].accounts_left_out == ["wallet:lost"]
    (failure,) = book.failures
    assert (failure.reason, failure.subject) == (FailureReason.MISSING_FIELD, "wallet:lost")
    assert "no account 'wallet:lost' was read for portfolio 'p'" in failure.message


def test_an_account_belongs_to_one_portfolio_and_one_snapshot() -> None:
    tables = merged(market_rows(), rule_rows(), wallets("wallet:a", "wallet:b"))
    snapshot = snapshot_of(tables)
    with pytest.raises(ConfigurationError, match="two portfolios: wallet:b"):
        pack_book({"main": snapshot}, {"p": ("wallet:a", "wallet:b"), "q": ("wallet:b",)}, as_of=AS_OF)
    with pytest.raises(ConfigurationError, match="'wallet:a' is in two snapshots"):
        pack_book({"main": snapshot, "other": snapshot}, {"p": ("wallet:a",)}, as_of=AS_OF)


def test_an_account_with_a_rejected_row_is_left_out() -> None:
    tables = merged(market_rows(), rule_rows(), wallets("wallet:a", "wallet:b"))
    tables["balances"].append(balance("wallet:a", "NOBODY", 1.0))
    (portfolio,) = packed(AccountBook(tables, {"p": ("wallet:a", "wallet:b")})).portfolios
    assert portfolio.accounts_left_out == ["wallet:a"]
    assert [info.account_id for info in portfolio.accounts] == ["wallet:b"]


def test_factors_are_those_that_move_something() -> None:
    book = packed(AccountBook(merged(market_rows(), rule_rows(), wallets("wallet:a")), {"p": ("wallet:a",)}))
    assert book.factors() == ("price:ETH",)


def test_amounts_are_read_exactly() -> None:
    assert amount(0.1) == "0.100000"
    part = rows(accounts=[account("wallet:a", "wallet", "USD")], balances=[balance("wallet:a", "ETH", 0.1)])
    assert alone(part).line_equity == [0.1 * SPOT["ETH"]]
