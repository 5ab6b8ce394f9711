"""Hyperliquid: perpetuals on chain with cross and isolated margin, margin tiers, and a spot wallet.

Requests understood (POST /info; each is the `type` of the request):

- per owner: `clearinghouseState` (positions and margin; `clearinghouseState:<dex>` for an account on a builder dex
  without positions, which nothing in its body tells apart), `spotClearinghouseState` (balances of the spot wallet),
  `openOrders` and `frontendOpenOrders` (`openOrders:<dex>` on a builder dex), `activeAssetData` (chosen leverage and
  mark in one coin);
- market-wide: `metaAndAssetCtxs`, `meta`, `allPerpMetas` (markets, margin tables, collateral tokens; the first also
  prices), `spotMeta` (names of tokens and pairs), `marginTable:<id>` (one margin table, whose answer has no id).

Open orders reserve no margin in the account totals and enter no requirement. Not read: portfolio margin, borrowed spot
balances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from aggregator.errors import FailureReason

from ..adapter import Context, Normalized
from ..amounts import FieldError, integer_at, joined, members
from ..catalog import Catalog
from ..facts import VenueFacts
from ..questions import Question, by_question, owner_of, reject_copies
from ..rows import Rows
from ..transport import Payload
from .markets import (
    VENUE,
    Market,
    Reading,
    add_index_prices,
    add_markets,
    add_shared_rows,
    dex_of,
    read_contexts,
    read_tokens,
)
from .orders import read_active_assets, read_open_orders
from .parse import add_bare_account, dex_of_account, plain_perp_positions, read_perp_accounts, read_spot_account
from .rules import USDC_TOKEN, dated_parameters, dated_tokens, partial_liquidation
from .universe import merged_markets, read_margin_tables, read_markets

PERP_ACCOUNT = "clearinghouseState"
SPOT_ACCOUNT = "spotClearinghouseState"
MARKETS = "meta"
MARKETS_AND_CONTEXTS = "metaAndAssetCtxs"
ALL_MARKETS = "allPerpMetas"
TOKENS = "spotMeta"
MARGIN_TABLE = "marginTable"
OPEN_ORDERS, FRONTEND_ORDERS, ACTIVE_ASSET = "openOrders", "frontendOpenOrders", "activeAssetData"
OWNER_REQUESTS = (PERP_ACCOUNT, SPOT_ACCOUNT, OPEN_ORDERS, FRONTEND_ORDERS, ACTIVE_ASSET)


@dataclass(frozen=True)
class HyperliquidAdapter:
    """Normalizes payloads of Hyperliquid; see the package's docstring for the requests."""

    venue: str = VENUE
    requests: tuple[str, ...] = (
        *OWNER_REQUESTS,
        MARKETS,
        MARKETS_AND_CONTEXTS,
        ALL_MARKETS,
        TOKENS,
        MARGIN_TABLE,
    )

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables of one snapshot, and what could not be read; the order of `payloads` does not matter.

        Raises `ConfigurationError` when the parameter file selects what it does not hold.
        """
        rows = Rows(VENUE)
        reading = Reading(rows, context, Catalog(VENUE, context.assets))
        groups = list(by_question(rows, payloads, _question).values())
        kinds: dict[str, list[Payload]] = {name: [] for name in self.requests}
        for copies in groups:
            if len(copies) == 1:
                kinds[_kind(copies[0])].append(copies[0])

        names, pairs = dated_tokens(context.parameters), dict[str, tuple[int, int]]()
        for payload in kinds[TOKENS]:
            listed_names, listed_pairs = read_tokens(rows, payload)
            names |= listed_names
            pairs |= listed_pairs
        reading.tokens, reading.pairs = names, pairs
        asked = read_margin_tables(rows, kinds[MARGIN_TABLE])

        listed: list[Market] = []
        metas: list[tuple[Payload, object, str]] = []
        contexts: list[Payload] = []
        for payload in kinds[MARKETS_AND_CONTEXTS]:
            with rows.guard(payload.name, subject=payload.request):
                _check_contexts(payload)
                metas.append((payload, payload.body[0], "[0]"))
                contexts.append(payload)
        metas += [(payload, payload.body, "") for payload in kinds[MARKETS]]
        for payload in kinds[ALL_MARKETS]:
            if isinstance(payload.body, list):
                metas += [(payload, meta, f"[{i}]") for i, meta in enumerate(payload.body)]
            else:
                rows.fail(
                    FailureReason.MALFORMED, "expected a list of metas", payload=payload.name, subject=payload.request
                )
        dated = dated_parameters(context.parameters)
        partial_liquidation(context.parameters)  # what is wrong with it is said now, not when somebody needs it
        stated: dict[str, int] = {}
        for payload, meta, path in metas:
            markets = read_markets(rows, payload, meta, path=path, dated=dated, asked=asked)
            listed += markets
            with rows.guard(payload.name, subject=payload.request):
                _note_collateral(stated, meta, markets, path=path)
        reading.markets = merged_markets(rows, listed)
        reading.collateral = {"": USDC_TOKEN} | stated
        add_markets(reading)
        oracles: dict[str, tuple[str, Decimal, Payload]] = {}
        for payload in contexts:
            oracles |= read_contexts(reading, payload)
        add_index_prices(reading, oracles)

        perps = kinds[PERP_ACCOUNT]
        compared = {payload.account for payload in kinds[ACTIVE_ASSET]}
        for payload, plain in zip(perps, plain_perp_positions(reading, perps, but=compared), strict=True):
            read_perp_accounts(reading, payload, plain)
        for payload in kinds[SPOT_ACCOUNT]:
            read_spot_account(reading, payload)
        for copies in groups:
            if len(copies) > 1:
                _reject(reading, copies)
        read_open_orders(reading, [*kinds[FRONTEND_ORDERS], *kinds[OPEN_ORDERS]])
        read_active_assets(reading, kinds[ACTIVE_ASSET])
        add_shared_rows(reading)
        return Normalized(rows.batches(), rows.failures)


def _kind(payload: Payload) -> str:
    return payload.request.partition(":")[0]


def _question(payload: Payload) -> Question:
    kind = _kind(payload)
    owner = owner_of(payload, kind, requests=ADAPTER.requests, owned=OWNER_REQUESTS)
    return Question(kind, owner, _part(kind, payload))


def _part(kind: str, payload: Payload) -> str:
    """What tells a payload from others of its kind and owner: a dex, a coin, the id of a table."""
    if kind == PERP_ACCOUNT:
        return dex_of_account(payload)
    if kind == ACTIVE_ASSET and isinstance(payload.body, Mapping):
        return str(payload.body.get("coin"))
    if kind in (OPEN_ORDERS, FRONTEND_ORDERS, MARGIN_TABLE):
        return payload.request.partition(":")[2]
    return _dex_of_markets(payload)


def _dex_of_markets(payload: Payload) -> str:
    """Builder dex whose markets a `meta` or `metaAndAssetCtxs` payload lists; empty for the venue's own."""
    meta = payload.body[0] if isinstance(payload.body, list) and payload.body else payload.body
    universe = meta.get("universe") if isinstance(meta, Mapping) else None
    first = universe[0] if isinstance(universe, list) and universe else None
    coin = first.get("name") if isinstance(first, Mapping) else None
    if _kind(payload) not in (MARKETS, MARKETS_AND_CONTEXTS) or not isinstance(coin, str):
        return ""
    return dex_of(coin)


def _reject(reading: Reading, copies: list[Payload]) -> None:
    first = copies[0]
    account = add_bare_account(reading, first) if _kind(first) in (PERP_ACCOUNT, SPOT_ACCOUNT) else None
    reject_copies(reading.rows, copies, account_id=account)


def _check_contexts(payload: Payload) -> None:
    """Raises `FieldError` unless the body is [meta, contexts] with one context per market."""
    body = payload.body
    if not isinstance(body, list) or len(body) != 2 or not isinstance(body[1], list):
        raise FieldError("", FailureReason.MALFORMED, "expected [meta, list of contexts]")
    count = len(members(body[0], "universe", "[0]"))
    if count != len(body[1]):
        message = f"{count} markets but {len(body[1])} contexts, which are matched by position"
        raise FieldError("[1]", FailureReason.INCONSISTENT, message)


def _note_collateral(stated: dict[str, int], meta: object, markets: list[Market], *, path: str) -> None:
    if not isinstance(meta, Mapping) or meta.get("collateralToken") is None:
        return
    token = integer_at(meta, "collateralToken", path)
    for dex in {dex_of(market.coin) for market in markets}:
        if stated.setdefault(dex, token) != token:
            message = f"dex {dex!r} has collateral token {stated[dex]} in another payload, {token} here"
            raise FieldError(joined(path, "collateralToken"), FailureReason.INCONSISTENT, message)


ADAPTER = HyperliquidAdapter()

FACTS = VenueFacts(
    title="Hyperliquid",
    accounts=(
        "cross account of each dex: its positions share the collateral of that dex, a node of its own",
        "isolated position: an account and a node of its own below the cross account",
        "spot wallet: in the node of the main dex's cross account, since collateral moves at once between the two",
    ),
    equity="raw USD plus signed notional at the mark (accountValue); of the spot wallet its balances at index prices",
    requirement=(
        "tiered_notional: initial is notional over the chosen leverage, maintenance the integral of rates of half the "
        "initial rate at each tier's maximum leverage; the spot wallet has none"
    ),
    verdict="liquidated when equity is below the maintenance requirement; at equality it stands",
    cross_or_isolated="chosen per coin by the trader; some markets are isolated only",
    orders="rows only: resting orders reserve no margin in the account totals, so that no requirement has them",
    liquidation=(
        "liquidation price in closed form by tier; a dated share of a position above a dated notional at first, "
        "else the whole; backstop below two thirds of maintenance"
    ),
    rules=(
        "Hyperliquid docs, pages Margining, Margin tiers, Liquidations (read 2026-11-21)",
        "liquidation price of 2023: recorded account states of that time",
    ),
    parameters=(
        "tiers from metaAndAssetCtxs, meta, allPerpMetas or marginTable:<id>; without them the dated file "
        "configs/venues/hyperliquid.toml, else the account's own maxLeverage as one tier"
    ),
    gaps=(
        "portfolio margin and borrowed spot balances are not read",
        "a builder dex in a collateral token that the asset book does not list leaves its accounts incomplete",
        "whether withdrawals keep a tenth of notional could not be seen in recorded states",
    ),
)
