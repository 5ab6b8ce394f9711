"""Hyperliquid: perpetuals on chain with cross and isolated margin, margin tiers, and a spot wallet.

Requests understood (POST /info; each is the `type` of the request):

- per owner: `clearinghouseState` (positions and margin; `clearinghouseState:<dex>` for an account on a builder dex
  without positions, which nothing in its body tells apart), `spotClearinghouseState` (balances of the spot wallet);
- market-wide: `metaAndAssetCtxs`, `meta`, `allPerpMetas` (markets, margin tables, collateral tokens; the first also
  prices), `spotMeta` (names of tokens).

Not read: open orders (they reserve no margin in the account totals), portfolio margin, borrowed spot balances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from aggregator.errors import FailureReason

from ..adapter import Context, Normalized
from ..amounts import FieldError, integer_at, joined, members
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
    merged_markets,
    read_contexts,
    read_markets,
    read_tokens,
)
from .parse import add_bare_account, dex_of_account, read_perp_accounts, read_spot_account
from .rules import USDC_TOKEN, dated_parameters, dated_tokens

PERP_ACCOUNT = "clearinghouseState"
SPOT_ACCOUNT = "spotClearinghouseState"
MARKETS = "meta"
MARKETS_AND_CONTEXTS = "metaAndAssetCtxs"
ALL_MARKETS = "allPerpMetas"
TOKENS = "spotMeta"


@dataclass(frozen=True)
class HyperliquidAdapter:
    """Normalizes payloads of Hyperliquid; see the package's docstring for the requests."""

    venue: str = VENUE
    requests: tuple[str, ...] = (PERP_ACCOUNT, SPOT_ACCOUNT, MARKETS, MARKETS_AND_CONTEXTS, ALL_MARKETS, TOKENS)

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables of one snapshot, and what could not be read; the order of `payloads` does not matter.

        Raises `ConfigurationError` when the parameter file selects what it does not hold.
        """
        rows = Rows(VENUE)
        reading = Reading(rows, context)
        accepted, rejected = _sorted_out(reading, payloads)
        kinds: dict[str, list[Payload]] = {name: [] for name in self.requests}
        for payload in accepted:
            kinds[_kind(payload)].append(payload)

        names = dated_tokens(context.parameters)
        for payload in kinds[TOKENS]:
            names |= read_tokens(rows, payload)
        reading.tokens = names

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
        stated: dict[str, int] = {}
        for payload, meta, path in metas:
            markets = read_markets(rows, payload, meta, path=path, dated=dated)
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

        for payload in kinds[PERP_ACCOUNT]:
            read_perp_accounts(reading, payload)
        for payload in kinds[SPOT_ACCOUNT]:
            read_spot_account(reading, payload)
        for copies in rejected:
            _reject(reading, copies)
        add_shared_rows(reading)
        return Normalized(rows.batches(), rows.failures)


def _kind(payload: Payload) -> str:
    return payload.request.partition(":")[0]


def _sorted_out(reading: Reading, payloads: Sequence[Payload]) -> tuple[list[Payload], list[list[Payload]]]:
    """(payloads to read, groups of payloads that answer the same question); anything else becomes a failure."""
    groups: dict[tuple[str, str, str], list[Payload]] = {}
    for payload in sorted(payloads, key=lambda p: (p.request, p.account, p.name, p.sha256)):
        with reading.rows.guard(payload.name, subject=payload.account or payload.request):
            kind = _kind(payload)
            if kind not in ADAPTER.requests:
                known = ", ".join(ADAPTER.requests)
                raise FieldError("request", FailureReason.UNSUPPORTED, f"{payload.request!r} is none of {known}")
            is_account = kind in (PERP_ACCOUNT, SPOT_ACCOUNT)
            if is_account and not payload.account:
                message = f"{payload.request} needs the owner's label in the configuration"
                raise FieldError("account", FailureReason.MISSING_FIELD, message)
            dex = dex_of_account(payload) if kind == PERP_ACCOUNT else _dex_of_markets(payload)
            groups.setdefault((kind, payload.account if is_account else "", dex), []).append(payload)
    accepted = [copies[0] for copies in groups.values() if len(copies) == 1]
    return accepted, [copies for copies in groups.values() if len(copies) > 1]


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
    for payload in copies:
        reading.rows.fail(
            FailureReason.DUPLICATE,
            f"{payload.request} came {len(copies)} times, all copies are rejected",
            payload=payload.name,
            subject=payload.account or payload.request,
            account_id=account,
        )


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
