"""Paradex: perpetuals and dated options with cross, isolated and portfolio margin, settled in USDC.

Requests understood, by their path with or without version (`/v1/positions`, `positions`); answers wrapped in
`{"results": [...]}`, as a bare list or as one bare object:

- per owner: `/v1/positions` and `/v1/balance` (an account needs both), `/v1/orders`, `/v1/account` (the venue's own
  figures; `/v1/account/summary` is the list of them), `/v1/account/info` (fee rates, which account is isolated),
  `/v1/account/margin` (margin methodology, chosen leverages: an account with positions or orders needs them, and the
  venue answers for one market at a time);
- market-wide: `/v1/markets` (specifications; also joined with marks as `market_specs` and `market_data`),
  `/v1/markets/summary` (marks), `/v1/bbo`, `/v1/system/margin-config` and its older path
  `/v1/system/portfolio-margin-config`, `/v1/system/config` (liquidation parameters).

What stands behind a colon or a question mark tells questions apart: `/v1/balance:0x12...` is the balance of the
subaccount with that address, `/v1/markets/summary:BTC-USD-PERP` the summary of one market.

Figures are in dollars: the account value is USDC at its price plus profit at dollar marks. Not read: algo orders, RFQ
bounds, transfers. Perpetual options (which have no expiry) and dated futures under portfolio margin are unsupported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..adapter import Context, Normalized
from ..catalog import Catalog
from ..facts import VenueFacts
from ..questions import Question, by_question, owner_of, reject_copies
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from .accounts import add_bare_account, add_owner
from .market_payloads import read_book_top, read_configurations, read_markets, read_summaries, read_system_config
from .markets import VENUE, Reading, add_market_rows
from .parse import OWNER_REQUESTS
from .rules import read_parameter_file

MARKETS, MARKET_SUMMARIES, BOOK_TOP = "markets", "markets/summary", "bbo"
MARGIN_CONFIG, PORTFOLIO_CONFIG, SYSTEM_CONFIG = (
    "system/margin-config",
    "system/portfolio-margin-config",
    "system/config",
)
_READERS = {
    MARKETS: read_markets,
    MARKET_SUMMARIES: read_summaries,
    MARGIN_CONFIG: read_configurations,
    PORTFOLIO_CONFIG: read_configurations,
    SYSTEM_CONFIG: read_system_config,
    BOOK_TOP: read_book_top,  # after the markets and their summaries
}


@dataclass(frozen=True)
class ParadexAdapter:
    """Normalizes payloads of Paradex; see the package's docstring for the requests."""

    venue: str = VENUE
    requests: tuple[str, ...] = tuple(f"v1/{name}" for name in (*OWNER_REQUESTS, *_READERS))

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables of one snapshot, and what could not be read; the order of `payloads` does not matter.

        Raises `ConfigurationError` when the parameter file is not of the documented shape.
        """
        reading = Reading(Rows(VENUE), context, Catalog(VENUE, context.assets), read_parameter_file(context.parameters))
        accepted, rejected = _sorted_out(reading, payloads)
        market_wide = sorted((key, payload) for key, payload in accepted.items() if not key[1])
        order = list(_READERS)
        for (request, _, _), payload in sorted(market_wide, key=lambda item: order.index(item[0][0])):
            _READERS[request](reading, payload)
        add_market_rows(reading)
        by_owner: dict[str, dict[tuple[str, str], Payload]] = {}
        for (request, owner, part), payload in accepted.items():
            by_owner.setdefault(owner, {})[request, part] = payload
        for owner in sorted({key[1] for key in (*accepted, *rejected) if key[1]}):
            if of_owner := by_owner.get(owner):
                add_owner(reading, owner, of_owner)
            else:
                add_bare_account(reading, owner, next(p for key, p in rejected.items() if key[1] == owner))
        reading.catalog.write(reading.rows)
        return Normalized(reading.rows.batches(), reading.rows.failures)


def request_of(text: str) -> tuple[str, str]:
    """(path without version, what tells this question from others of its path) of a payload's request."""
    path, _, rest = text.strip().partition("://")
    path = rest.partition("/")[2] if rest else path
    cut = min((path.find(mark) for mark in "?:" if mark in path), default=len(path))
    path, tail = path[:cut], path[cut + 1 :]
    segments = [part for part in path.split("/") if part and part != "v1"]
    if segments[:1] == [BOOK_TOP] and len(segments) == 2:
        return BOOK_TOP, segments[1]
    name, _, value = tail.partition("=")
    return "/".join(segments), value if value and "&" not in value and name else tail


def _question(payload: Payload) -> Question:
    request, part = request_of(payload.request)
    owner = owner_of(payload, request, requests=(*OWNER_REQUESTS, *_READERS), owned=OWNER_REQUESTS)
    return Question(request, owner, part)


def _sorted_out(
    reading: Reading, payloads: Sequence[Payload]
) -> tuple[dict[Question, Payload], dict[Question, Payload]]:
    """(payloads to read, one of each group that answers the same question), by question."""
    accepted, rejected = dict[Question, Payload](), dict[Question, Payload]()
    for question, copies in by_question(reading.rows, payloads, _question).items():
        (accepted if len(copies) == 1 else rejected)[question] = copies[0]
        if len(copies) > 1:
            account = account_id(VENUE, question.owner) if question.owner else None
            reject_copies(reading.rows, copies, account_id=account)
    return accepted, rejected


ADAPTER = ParadexAdapter()

FACTS = VenueFacts(
    title="Paradex",
    accounts=(
        "main account or subaccount with cross margin: one Starknet address, a node of its own",
        "isolated account: a subaccount that trades one market (isolated_market), a node of its own",
        "portfolio-margin account: risk units by base asset; the venue offers it to whitelisted users",
    ),
    equity="account value in USD: USDC and other tokens, size * mark - cost of every position, accrued funding",
    requirement=(
        "cross and isolated: tiered_notional with one tier per perpetual (rate and taker fee) and contract_margin per "
        "option contract, fee included; portfolio: price_vol_grid of 24 scenarios with the minimum delta "
        "requirement as its floor, contingency for funding and perpetual fee, contract_margin for the option fee; "
        "tokens other than USDC are required in full"
    ),
    verdict="liquidated when the account value is below the maintenance requirement; at equality it stands",
    cross_or_isolated="cross by default; isolated margin is a subaccount of its own",
    orders=(
        "enter the initial requirement only: the larger side's open size, its fee and the loss of aggressive limits in "
        "cross margin, losses and deltas that only hurt in portfolio margin; computed exactly today and held fixed"
    ),
    liquidation=(
        "a share of all positions in dated steps until the margin ratio is below a dated target, penalty = share * fee "
        "* maintenance requirement; liquidation price of a perpetual in closed form, else by scan over the spot"
    ),
    rules=(
        "tradeparadex/paradex-docs @9b82a75a, risk-system and dated-options (read 2026-11-21)",
        "tradeparadex/paradex-py @334a7f81, margin package (read 2026-11-21); its polynomial normal distribution: 1e-4",
    ),
    parameters=(
        "fractions from /v1/markets, marks from /v1/markets/summary, grid from /v1/system/margin-config, fees from "
        "/v1/account/info or the market; without them the dated file configs/venues/paradex.toml, which alone has the "
        "cap of an option's fee and the terms of a liquidation"
    ),
    gaps=(
        "profit is in dollars while cost is in USDC: here both are in USDC, so a depeg of USDC moves the notional too",
        "that a chosen leverage leaves the maintenance requirement alone follows from the contract, not from a page",
        "open sizes of options are the rule of perpetuals carried over; the documentation shows perpetuals only",
        "funding of orders is netted with the sign of the published SDK, which is opposite to the positions'",
        "a perpetual's own delta (some 0.9997) counts as 1 where the minimum delta requirement binds",
        "portfolio margin over several base assets is the sum of their requirements: the SDK takes one",
        "an unknown token beside USDC is a finding: the venue's figures hold its value on both sides, ours do not",
        "perpetual options and dated futures under portfolio margin are unsupported",
    ),
)
