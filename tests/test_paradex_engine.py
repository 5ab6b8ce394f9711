"""Paradex: the engine's forms against the mechanics, on the sample and on generated books."""

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any, NamedTuple

import pytest

from adapters.adapter import Normalized
from adapters.paradex import mechanics
from adapters.paradex import portfolio_margin as pm
from adapters.paradex.accounts import portfolio_configuration
from adapters.paradex.mechanics import OptionFractions, OptionMarket, Order, PerpMarket
from adapters.paradex.rules import portfolio_parameters
from adapters.transport import Payload
from aggregator.native import native_today
from aggregator.portfolio import pack_book
from aggregator.snapshot import take_snapshot
from tests.desk_paradex import AS_OF, LEVEL, normalized, sample
from tests.normalized_rows import only

# Sums of some ten float64 products.
ENGINE_RELATIVE = 1e-9


def today(result: Normalized, as_of: datetime = AS_OF) -> dict[str, tuple[float, float, float]]:
    """(equity, initial, maintenance) of every account, packed and computed by the engine at current prices."""
    snapshot = take_snapshot([result.batches], result.failures, as_of=as_of)
    assert snapshot.failures == ()
    ids = [row["account_id"] for row in snapshot.tables["accounts"]]
    book, unclaimed = pack_book({"": snapshot}, {"all": ids}, as_of=as_of)
    assert (book.failures, unclaimed) == ((), [])
    [native] = native_today(book)
    assert native is not None
    return {
        info.account_id: (float(native.equity[i]), float(native.initial[i]), float(native.maintenance[i]))
        for i, info in enumerate(book.portfolios[0].accounts)
    }


def test_the_engine_reproduces_the_venues_figures() -> None:
    result = normalized(*sample().values())
    for account, figures in today(result).items():
        row = only(result, "accounts", account_id=account)
        names = ("reported_equity", "reported_initial_margin", "reported_maintenance_margin")
        for name, ours in zip(names, figures, strict=True):
            assert ours == pytest.approx(float(row[name]), rel=ENGINE_RELATIVE), (account, name)


class Books(NamedTuple):
    """Generated books over the sample's markets: positions and orders by owner, as (symbol, size, price)."""

    positions: dict[str, list[tuple[str, Decimal, Decimal]]]
    orders: dict[str, list[tuple[str, Decimal, Decimal]]]


def generated_books(seed: int, owners: int) -> Books:
    random = Random(seed)
    symbols = [row["symbol"] for row in sample()["markets"].body["results"] if row["base_currency"] in ("BTC", "ETH")]
    marks = {row["symbol"]: Decimal(row["mark_price"]) for row in sample()["markets_summary"].body["results"]}

    def entries(most: int) -> list[tuple[str, Decimal, Decimal]]:
        chosen = random.sample(symbols, random.randint(0, most))
        out = []
        for symbol in chosen:
            size = Decimal(random.randint(-4000, 4000)) / 1000
            if size:
                price = (marks[symbol] * Decimal(random.randint(800, 1250)) / 1000).quantize(Decimal("0.01"))
                out.append((symbol, size, max(price, Decimal("0.01"))))
        return out

    names = [f"book{number}" for number in range(owners)]
    return Books({name: entries(5) for name in names}, {name: entries(3) for name in names})


def payloads_of(books: Books, *, methodology: str) -> list[Payload]:
    out = []
    for owner, positions in books.positions.items():
        bodies = {
            "v1/positions": {
                "results": [
                    {
                        "market": m,
                        "side": "LONG" if q > 0 else "SHORT",
                        "size": str(q),
                        "average_entry_price": str(p),
                        "unrealized_funding_pnl": "0",
                    }
                    for m, q, p in positions
                ]
            },
            "v1/orders": {
                "results": [
                    {
                        "id": f"{owner}-{number}",
                        "market": m,
                        "side": "BUY" if q > 0 else "SELL",
                        "size": str(abs(q)),
                        "price": str(p),
                    }
                    for number, (m, q, p) in enumerate(books.orders[owner])
                ]
            },
            "v1/balance": {"results": [{"token": "USDC", "size": "1000"}]},
            "v1/account/margin": {"margin_methodology": methodology, "configs": LARGEST_LEVERAGES},
        }
        out += [Payload(request, f"{owner} {request}", owner, AS_OF, "", body) for request, body in bodies.items()]
    return out


LARGEST_LEVERAGES = [
    {"market": row["symbol"], "leverage": str(1 / Decimal(row["delta1_cross_margin_params"]["imf_base"]))}
    for row in sample()["markets"].body["results"]
    if row["asset_kind"] == "PERP"
]
"""A margin answer of an account that chose the most that each market lends."""


def market_payloads(change: Callable[[Any, Any], None] = lambda specs, summaries: None) -> dict[str, Payload]:
    names = ("markets", "markets_summary", "margin_config")
    payloads = {name: replace(payload, body=copy.deepcopy(payload.body)) for name, payload in sample().items()}
    change(payloads["markets"].body["results"], payloads["markets_summary"].body["results"])
    return {name: payloads[name] for name in names}


def expected_cross(books: Books, owner: str, payloads: dict[str, Payload]) -> tuple[Fraction, Fraction]:
    specs = {row["symbol"]: row for row in payloads["markets"].body["results"]}
    marks = {row["symbol"]: row for row in payloads["markets_summary"].body["results"]}
    initial = maintenance = Fraction(0)
    for symbol in {entry[0] for entry in (*books.positions[owner], *books.orders[owner])}:
        spec, summary = specs[symbol], marks[symbol]
        market: mechanics.Market
        if spec["asset_kind"] == "PERP":
            rate = Fraction(spec["delta1_cross_margin_params"]["imf_base"])
            market = PerpMarket(Fraction(summary["mark_price"]), rate, Fraction(1, 2), Fraction("0.0003"))
        else:
            imf, mmf = (
                OptionFractions(**{n: Fraction(spec["option_cross_margin_params"][key][n]) for n in LEVEL._fields})
                for key in ("imf", "mmf")
            )
            market = OptionMarket(
                Fraction(summary["mark_price"]),
                Fraction(summary["underlying_price"]),
                Fraction(spec["strike_price"]),
                spec["option_type"] == "CALL",
                imf,
                mmf,
                Fraction("0.0002"),
                Fraction("0.125"),
            )
        size = sum((Fraction(q) for m, q, _ in books.positions[owner] if m == symbol), Fraction(0))
        orders = [Order(Fraction(q), Fraction(p)) for m, q, p in books.orders[owner] if m == symbol]
        margin = mechanics.market_margin(market, size, orders)
        initial, maintenance = initial + margin.imr, maintenance + margin.mmr
    return initial, maintenance


def expected_portfolio(books: Books, owner: str, payloads: dict[str, Payload]) -> tuple[float, float]:
    specs = {row["symbol"]: row for row in payloads["markets"].body["results"]}
    marks = {row["symbol"]: row for row in payloads["markets_summary"].body["results"]}
    configurations = {row["base_asset"]: row for row in payloads["margin_config"].body["results"]}

    def leg(symbol: str, size: Decimal, price: Decimal | None) -> pm.Leg:
        spec, summary, option = specs[symbol], marks[symbol], None
        if spec["asset_kind"] == "OPTION":
            days = (spec["expiry_at"] / 1000 - AS_OF.timestamp()) / 86400
            is_call = spec["option_type"] == "CALL"
            terms = float(spec["strike_price"]), is_call, days, float(summary["mark_iv"])
            option = pm.OptionTerms(*terms, fee_cap=0.125)
        fee = 0.0002 if option else 0.0003
        limit = None if price is None else float(price)
        return pm.Leg(float(size), float(summary["mark_price"]), float(summary["delta"]), fee, option, limit)

    initial = maintenance = 0.0
    for base in ("BTC", "ETH"):
        perp_row = marks[f"{base}-USD-PERP"]
        margin = pm.portfolio_margin(
            [leg(m, q, None) for m, q, _ in books.positions[owner] if m.startswith(base)],
            [leg(m, q, p) for m, q, p in books.orders[owner] if m.startswith(base)],
            underlying=pm.Underlying(
                float(perp_row["underlying_price"]),
                float(perp_row["mark_price"]),
                float(perp_row["funding_rate"]),
                float(perp_row["interest_rate"]),
            ),
            configuration=portfolio_configuration(
                portfolio_parameters(configurations[base], path="", source="payload")
            ),
        )
        initial, maintenance = initial + margin.imr, maintenance + margin.mmr
    return initial, maintenance


def test_the_minimum_delta_binds_in_the_engine_too() -> None:
    """Calls against a perpetual, with scenarios that hardly count: what is left is the charge on the venue's deltas."""

    def own_delta(specs: Any, summaries: Any) -> None:
        for summary in summaries:
            if summary["symbol"].endswith("-PERP"):
                summary |= {"delta": "0.9997", "greeks": {"delta": "0.9997"}}

    pair = [("BTC-USD-27SEP24-70000-C", Decimal(4), Decimal(2500)), ("BTC-USD-PERP", Decimal("-1.4"), Decimal(61000))]
    books, market = Books({"pair": pair}, {"pair": []}), market_payloads(own_delta)
    for record in market["margin_config"].body["results"][:2]:
        for scenario in record["scenarios"]:
            scenario["weight"] = Decimal(scenario["weight"]) / 1000
    _, ours, maintenance = today(normalized(*market.values(), *payloads_of(books, methodology="portfolio_margin")))[
        "paradex:pair"
    ]
    assert (ours, maintenance) == pytest.approx(expected_portfolio(books, "pair", market), rel=ENGINE_RELATIVE)


def near_expiry_and_cheap(specs: Any, summaries: Any) -> None:
    """One option expires in a quarter of an hour, one is worth less than its fee, longs pay funding on both bases."""
    soon = next(spec for spec in specs if spec["symbol"] == "BTC-USD-26JUL24-64000-C")
    soon["expiry_at"] = int(AS_OF.timestamp() * 1000) + 900_000
    for summary in summaries:
        if summary["symbol"] == soon["symbol"]:
            summary["mark_price"] = "0.75"
        if summary["symbol"] == "ETH-USD-26JUL24-3400-C":
            summary["mark_price"] = "2.5"


@pytest.mark.parametrize("change", [lambda specs, summaries: None, near_expiry_and_cheap], ids=["plain", "edges"])
@pytest.mark.parametrize("methodology", ["cross_margin", "portfolio_margin"])
def test_generated_books_are_the_same_in_engine_and_mechanics(
    methodology: str, change: Callable[[Any, Any], None]
) -> None:
    books, market = generated_books(20240630, 14), market_payloads(change)
    result = normalized(*market.values(), *payloads_of(books, methodology=methodology))
    assert result.failures == []
    figures = today(result)
    expected = expected_portfolio if methodology == "portfolio_margin" else expected_cross
    assert any(books.orders.values())
    for owner in books.positions:
        initial, maintenance = expected(books, owner, market)
        _, ours_initial, ours_maintenance = figures[f"paradex:{owner}"]
        assert ours_initial == pytest.approx(float(initial), rel=ENGINE_RELATIVE, abs=1e-7), owner
        assert ours_maintenance == pytest.approx(float(maintenance), rel=ENGINE_RELATIVE, abs=1e-7), owner
