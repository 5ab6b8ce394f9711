"""Properties of every venue's margin over made-up worlds: its sample accounts with other sizes, prices and balances.

A world multiplies what each underlying costs, what each account holds and what it owes by numbers from a seed. In every
world each venue's accounts are margined as they are, with all positions larger, with every position split in two, with
everything doubled, and with all rows in reverse order. All of it is packed into one book and evaluated at once. What
an adapter computes itself from its payload (form `fixed`) stays what it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from aggregator.batch import bucketed
from aggregator.config import TILE
from aggregator.margin import scenario_margin
from aggregator.native import native_today
from aggregator.portfolio import Book, pack_book
from aggregator.rule_forms import Fixed, Form, PriceVolGrid, RateOfSize, TieredNotional, WeightedValue, parse_parameters
from aggregator.schema.casting import table_from_rows
from aggregator.snapshot import Snapshot, take_snapshot
from tests.payload_mutations import AS_OF, has_sample, sample, venues

VENUES = [venue for venue in venues() if has_sample(venue)]
WORLDS = 3
LARGER = Decimal("1.5")
# Sums of the same numbers in another order, in float64.
ROUNDING = 1e-9
# Contract of a requirement in scenarios: risk units are evaluated in float32.
BAND = 1e-4

pytestmark = pytest.mark.slow

Row = dict[str, Any]
Tables = Mapping[str, Sequence[Row]]
PRICES = frozenset(
    ("mark", "index", "oracle", "oracle_twap", "price_min", "price_max", "bid", "ask", "forward", "stable_price")
)


class Figures(NamedTuple):
    """Of one account in one variant, in the account's unit."""

    equity: float
    initial: float
    maintenance: float


class Case(NamedTuple):
    """A venue's accounts in one world, one of the ways to hold them."""

    venue: str
    world: int
    variant: str


# ---- worlds and variants ---------------------------------------------------------------------------------------------


@cache
def _checked(venue: str) -> Snapshot:
    of = sample(venue)
    normalized = of.adapter.normalize(of.payloads, of.context)
    return take_snapshot([normalized.batches], normalized.failures, as_of=AS_OF)


def world(venue: str, number: int) -> Tables:
    """The venue's tables, in world 0 as they are."""
    tables = _checked(venue).tables
    if number == 0:
        return tables
    rng = random.Random(f"{venue}:{number}")
    factors = {row["asset_id"]: row["risk_factor"] for row in tables["assets"]}
    underlyings = {row["instrument_id"]: row["underlying"] for row in tables["instruments"]}
    level = {name: rng.uniform(0.6, 1.6) for name in sorted({f for f in factors.values() if f})}

    def scale_of(subject: str) -> float:
        asset = underlyings.get(subject, subject.partition("@")[0] if subject not in factors else subject)
        return level.get(factors.get(asset) or "", 1.0)

    def moved(row: Row) -> Row:
        if row["field"] in PRICES:
            return row | {"value": row["value"] * scale_of(row["subject"])}
        return row

    def sized(row: Row) -> Row:
        return row | {"quantity": _times(row["quantity"], rng.choice(("0.1", "0.4", "0.9", "1.3", "2.5")))}

    return {
        **tables,
        "marks": [moved(row) for row in tables["marks"]],
        "positions": [sized(row) for row in tables["positions"]],
        "balances": [sized(row) for row in tables["balances"]],
    }


def _times(number: Decimal | None, factor: str | Decimal) -> Decimal | None:
    return None if number is None else (number * Decimal(factor)).quantize(Decimal("1e-18"))


_MONEY_OF_POSITION = ("unsettled_funding", "realized_pnl", "isolated_collateral")


def larger(tables: Tables) -> Tables:
    """Every position half as large again at the same entry price."""
    positions = [row | {"quantity": _times(row["quantity"], LARGER)} for row in tables["positions"]]
    return {**tables, "positions": positions}


def doubled(tables: Tables) -> Tables:
    """Twice of everything that an account holds, owes or has ordered."""

    def twice(row: Row, *columns: str) -> Row:
        return row | {column: _times(row[column], "2") for column in columns}

    return {
        **tables,
        "positions": [twice(row, "quantity", *_MONEY_OF_POSITION) for row in tables["positions"]],
        "balances": [twice(row, "quantity", "accrued_interest", "locked") for row in tables["balances"]],
        "open_orders": [twice(row, "remaining_quantity") for row in tables["open_orders"]],
    }


def split(tables: Tables) -> Tables:
    """Every position in two halves, the second in an instrument of its own that is the first but for its name."""

    def named(row: Row, column: str) -> Row:
        return row | {column: f"{row[column]}~"}

    held = {row["instrument_id"] for row in tables["positions"]}

    def halves(row: Row) -> Iterator[Row]:
        money = {column: _times(row[column], "0.5") for column in ("quantity", *_MONEY_OF_POSITION)}
        yield row | money
        yield named(row | money, "instrument_id")

    def again(table: str, column: str) -> list[Row]:
        return [*tables[table], *(named(row, column) for row in tables[table] if row[column] in held)]

    return {
        **tables,
        "positions": [half for row in tables["positions"] for half in halves(row)],
        "instruments": again("instruments", "instrument_id"),
        "marks": again("marks", "subject"),
        "margin_tiers": again("margin_tiers", "market"),
        "collateral_tiers": again("collateral_tiers", "asset_id"),
    }


def backwards(tables: Tables) -> Tables:
    """All rows in reverse order, as they come into a snapshot."""
    batch = {name: table_from_rows(name, list(reversed(rows))) for name, rows in tables.items()}
    return take_snapshot([batch], as_of=AS_OF).tables


VARIANTS: Mapping[str, Callable[[Tables], Tables]] = {
    "plain": lambda tables: tables,
    "larger": larger,
    "split": split,
    "doubled": doubled,
    "backwards": backwards,
}


def _renamed(tables: Tables, case: Case) -> Tables:
    """Accounts under names of their own: one book holds each account once."""

    def named(row: Row) -> Row:
        known = row.get("account_id")
        return row if known is None else row | {"account_id": _name(known, case)}

    return {name: tuple(named(row) for row in rows) for name, rows in tables.items()}


def _name(account: str, case: Case) -> str:
    return f"{account}~{case.world}~{case.variant}"


# ---- one evaluation --------------------------------------------------------------------------------------------------


class Evaluated(NamedTuple):
    """Figures by case and account (under its own name), and what they were computed from."""

    book: Book
    figures: Mapping[tuple[Case, str], Figures]

    def pairs(self, one: str, other: str) -> Iterator[tuple[Case, str, Figures, Figures]]:
        """Every account of every world in two variants."""
        for (case, account), figures in self.figures.items():
            if case.variant == one:
                yield case, account, figures, self.figures[case._replace(variant=other), account]


@pytest.fixture(scope="module")
def evaluated() -> Evaluated:
    snapshots: dict[str, Snapshot] = {}
    portfolios: dict[str, list[str]] = {}
    cases: dict[str, Case] = {}
    for venue in VENUES:
        checked = _checked(venue)
        assert checked.failures == (), venue
        for number in range(WORLDS):
            tables = world(venue, number)
            for variant, held in VARIANTS.items():
                case = Case(venue, number, variant)
                name = f"{venue}~{number}~{variant}"
                cases[name] = case
                snapshots[name] = replace(
                    checked, tables={k: tuple(v) for k, v in _renamed(held(tables), case).items()}
                )
                portfolios[name] = [row["account_id"] for row in snapshots[name].tables["accounts"]]
    book, unclaimed = pack_book(snapshots, portfolios, as_of=AS_OF)
    assert unclaimed == []
    assert book.failures == ()
    figures = {}
    for portfolio, found in zip(book.portfolios, native_today(book), strict=True):
        assert found is not None
        case = cases[portfolio.portfolio_id]
        for place, account in enumerate(portfolio.accounts):
            name = account.account_id.removesuffix(_name("", case))
            figures[case, name] = Figures(*(float(values[place]) for values in found))
    return Evaluated(book, figures)


# ---- what accounts are made of ---------------------------------------------------------------------------------------


@cache
def forms(venue: str, account: str) -> tuple[Form, ...]:
    """The rule forms of an account."""
    tables = _checked(venue).tables
    (row,) = (row for row in tables["accounts"] if row["account_id"] == account)
    components = [c for c in tables["rule_sets"] if c["rule_set"] == row["rule_set"]]
    return tuple(parse_parameters(c["form"], c["parameters"]) for c in components)


def has_minimum(venue: str, account: str) -> bool:
    """Whether each position needs some amount however small it is."""
    return any(isinstance(form, TieredNotional) and form.minimum for form in forms(venue, account))


def has_orders(venue: str, account: str) -> bool:
    return any(row["account_id"] == account for row in _checked(venue).tables["open_orders"])


def _rows(venue: str, account: str, table: str) -> list[Row]:
    """Tiers of the account's rule set."""
    tables = _checked(venue).tables
    (row,) = (row for row in tables["accounts"] if row["account_id"] == account)
    return [tier for tier in tables[table] if tier["rule_set"] == row["rule_set"]]


def is_linear_in_equity(venue: str, account: str) -> bool:
    """Whether equity is a sum of values at one weight each."""
    fixed = [form for form in forms(venue, account) if isinstance(form, Fixed) and form.equity]
    weighted = any(isinstance(form, WeightedValue) and form.weights != "unit" for form in forms(venue, account))
    sliced = weighted and any(tier["tier"] > 1 for tier in _rows(venue, account, "collateral_tiers"))
    return not fixed and not sliced


def is_linear(venue: str, account: str) -> bool:
    """Whether requirements are linear in size too: one tier, no rate that grows, nothing that is fixed or a minimum."""
    for form in forms(venue, account):
        if isinstance(form, RateOfSize) or (isinstance(form, Fixed) and (form.initial or form.maintenance)):
            return False
        if isinstance(form, TieredNotional) and (form.minimum or form.per_order):
            return False
        if isinstance(form, PriceVolGrid) and (form.minimum or form.round_digits or form.reported_worst):
            return False
    tiers = _rows(venue, account, "margin_tiers")
    return is_linear_in_equity(venue, account) and not any(tier["tier"] > 1 or tier["deduction"] for tier in tiers)


def _beyond(smaller: float, larger: float, scale: float) -> bool:
    return smaller > larger + ROUNDING * max(abs(scale), abs(smaller), abs(larger), 1e-9)


# ---- properties ------------------------------------------------------------------------------------------------------

# (venue, part of the account id): why it needs not more for more.
LESS_FOR_MORE: Mapping[tuple[str, str], str] = {
    ("deribit", "west:cross"): "its short perpetuals hedge the coins beside them, whose price risk the grid counts",
}
# (venue, part of the account id): why its initial requirement may be the smaller.
INITIAL_BELOW: Mapping[tuple[str, str], str] = {}


def _excused(exceptions: Mapping[tuple[str, str], str], case: Case, account: str) -> bool:
    return any(case.venue == venue and part in account for venue, part in exceptions)


def test_larger_positions_never_need_less(evaluated: Evaluated) -> None:
    wrong = [
        (case, account, before, after)
        for case, account, before, after in evaluated.pairs("plain", "larger")
        if _beyond(before.maintenance, after.maintenance, 0.0) or _beyond(before.initial, after.initial, 0.0)
        if not _excused(LESS_FOR_MORE, case, account)
    ]
    assert wrong == []


def test_the_initial_requirement_is_at_least_the_maintenance_requirement(evaluated: Evaluated) -> None:
    wrong = [
        (case, account, figures)
        for (case, account), figures in evaluated.figures.items()
        if _beyond(figures.maintenance, figures.initial, 0.0) and not _excused(INITIAL_BELOW, case, account)
    ]
    assert wrong == []


def test_requirements_are_not_negative(evaluated: Evaluated) -> None:
    wrong = [(*key, f) for key, f in evaluated.figures.items() if min(f.initial, f.maintenance) < 0]
    assert wrong == []


def test_two_fills_are_one_position(evaluated: Evaluated) -> None:
    """Equity is the same; requirements too where they are linear, and no larger where a larger size has higher rates.

    Orders stand beside one half only; two halves have two minimum amounts.
    """
    wrong = []
    for case, account, whole, halves in evaluated.pairs("plain", "split"):
        if has_orders(case.venue, account) or has_minimum(case.venue, account):
            continue
        scale = abs(whole.equity) + whole.initial
        same_equity = abs(whole.equity - halves.equity) <= ROUNDING * scale
        same = not is_linear(case.venue, account) or abs(whole.maintenance - halves.maintenance) <= ROUNDING * scale
        if not same_equity or not same or _beyond(halves.maintenance, whole.maintenance, scale):
            wrong.append((case, account, whole, halves))
    assert wrong == []


def test_the_order_of_rows_changes_no_bit(evaluated: Evaluated) -> None:
    for case, account, forwards, backwards in evaluated.pairs("plain", "backwards"):
        assert forwards == backwards, (case, account)


def test_twice_of_everything_is_twice_the_figures_where_the_rule_is_linear(evaluated: Evaluated) -> None:
    linear_equity, linear = set[str](), set[str]()
    for case, account, one, two in evaluated.pairs("plain", "doubled"):
        if is_linear_in_equity(case.venue, account):
            linear_equity.add(case.venue)
            assert two.equity == pytest.approx(2 * one.equity, rel=ROUNDING, abs=1e-9), (case, account)
        if is_linear(case.venue, account):
            linear.add(case.venue)
            for name in ("initial", "maintenance"):
                ours = getattr(two, name)
                assert ours == pytest.approx(2 * getattr(one, name), rel=ROUNDING, abs=1e-9), (case, account)
    assert len(linear_equity) > len(VENUES) // 2
    assert linear


def test_without_a_move_the_scenario_form_is_the_form_of_today(evaluated: Evaluated) -> None:
    book = evaluated.book
    factors = book.factors()
    rows = book.cube.build(factors)
    still = jnp.zeros((TILE, len(factors)))

    @jax.jit
    def unmoved(arrays: Any) -> Any:
        today = rows.today()
        change = jnp.tile(rows.changes(still[0], horizon_years=0.0)[:, None], (1, TILE))
        return jax.lax.map(lambda p: scenario_margin(p, today, change, still, rows, horizon_years=0.0), arrays)

    plain = [p for p in book.portfolios if p.portfolio_id.endswith("~plain")]
    (bucket,) = bucketed(plain, factors, multiple=1, most_buckets=1)
    equity, maintenance = (np.asarray(values) for values in unmoved(bucket.arrays))
    checked = 0
    for place, position in enumerate(bucket.members):
        portfolio = plain[position]
        venue, number, variant = portfolio.portfolio_id.split("~")
        case = Case(venue, int(number), variant)
        for account_place, account in enumerate(portfolio.accounts):
            today = evaluated.figures[case, account.account_id.removesuffix(_name("", case))]
            scale = max(abs(today.equity), today.maintenance)
            assert abs(equity[place, account_place, 0] - today.equity) <= ROUNDING * scale, (case, account.account_id)
            gap = abs(maintenance[place, account_place, 0] - today.maintenance)
            assert gap <= BAND * max(today.maintenance, 1e-9), (case, account.account_id)
            checked += 1
    assert checked == sum(case.variant == "plain" for case, _ in evaluated.figures)


def test_every_sample_reads_the_same_in_any_order() -> None:
    for venue in VENUES:
        of = sample(venue)
        batches = of.adapter.normalize(list(reversed(of.payloads)), of.context).batches
        turned = {
            name: table.take(pa.array(range(table.num_rows)[::-1], pa.int64())) for name, table in batches.items()
        }
        assert take_snapshot([turned], as_of=AS_OF).tables == _checked(venue).tables, venue


def _names(rows: Iterable[Row]) -> set[str]:
    return {row["account_id"] for row in rows}


def test_the_exceptions_are_of_accounts_that_exist() -> None:
    for venue, part in [*LESS_FOR_MORE, *INITIAL_BELOW]:
        if venue in VENUES:
            assert any(part in name for name in _names(_checked(venue).tables["accounts"])), (venue, part)
