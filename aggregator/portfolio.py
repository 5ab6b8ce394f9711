"""Snapshots to book: the accounts of every portfolio, packed as rows over the instrument cube and rows of their rule
sets.

Host code in NumPy and plain Python; batch.py pads and stacks the result. Everything is sorted by id before it is
packed, so the order of input rows never reaches a result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from .account import AccountDraft, AccountInfo, Line, OwnMark, TierEntry, ValueGroup, account_info
from .cube import CubeBuilder
from .errors import ConfigurationError, Failure, FailureReason
from .market import IncompleteAccountError, Market
from .risk_units import UnitRow
from .rule_forms import Verdict
from .snapshot import Snapshot


@dataclass
class PackedPortfolio:
    """All complete accounts of one owner as unpadded rows; index arrays refer to its own accounts, lines, nodes,
    groups.

    `legs` of a line: (line, row in USD, coefficient in USD); coefficients are money today per unit of the row's value.
    `native_legs`: (group, row, coefficient in the account's unit). `groups`: (account, group). `requirements`:
    (account, row, initial coefficient, maintenance coefficient). `tiers`: (account, entry). `fixed`: initial and
    maintenance requirement and equity of each account that nothing moves.
    """

    portfolio_id: str
    accounts: list[AccountInfo] = field(default_factory=list)
    nodes: list[tuple[str, str]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    line_node: list[int] = field(default_factory=list)
    legs: list[tuple[int, int, float]] = field(default_factory=list)
    native_legs: list[tuple[int, int, float]] = field(default_factory=list)
    leg_marks: dict[int, OwnMark] = field(default_factory=dict)
    """Marks that can move alone, by the number of the native leg that they move."""
    groups: list[tuple[int, ValueGroup]] = field(default_factory=list)
    requirements: list[tuple[int, int, float, float]] = field(default_factory=list)
    tiers: list[tuple[int, TierEntry]] = field(default_factory=list)
    fixed: list[tuple[float, float, float]] = field(default_factory=list)
    line_equity: list[float] = field(default_factory=list)
    """What each line adds to market equity today, USD: its value, for a perp or future its profit."""
    debts: dict[int, float] = field(default_factory=dict)
    """Debt of each account in its unit, for a lender's own health."""
    units: list[UnitRow] = field(default_factory=list)
    accounts_left_out: list[str] = field(default_factory=list)
    left_out_gross_usd: float | None = None
    left_out: list[AccountInfo] = field(default_factory=list)


@dataclass(frozen=True)
class Book:
    """Packed portfolios sorted by id, the builder of the cube rows they share, and the failures of packing."""

    portfolios: tuple[PackedPortfolio, ...]
    cube: CubeBuilder
    failures: tuple[Failure, ...]

    def factors(self) -> tuple[str, ...]:
        """Every factor that moves something in the book, sorted."""
        units = [unit for portfolio in self.portfolios for unit in portfolio.units]
        of_units = {unit.price_factor for unit in units if unit.price_factor}
        return tuple(sorted({*self.cube.factors(), *of_units}))


def pack_book(
    snapshots: Mapping[str, Snapshot],
    portfolios: Mapping[str, Sequence[str]],
    *,
    as_of: datetime,
    missing: frozenset[str] = frozenset(),
    moments: Mapping[str, datetime] | None = None,
) -> tuple[Book, list[str]]:
    """The book of all snapshots, and the account ids that no portfolio claims (the caller refuses them).

    Accounts that need one of the `missing` factors are left out: nothing can move what they hold. `moments` are the
    instants at which some accounts are valued in place of `as_of`.

    Who has which account: `claimed_accounts`. A portfolio whose entry finds no account is incomplete, with a failure
    that says so. An account that cannot be packed is left out whole.
    """
    cube = CubeBuilder()
    markets = {name: Market(snapshot, cube, as_of, missing) for name, snapshot in sorted(snapshots.items())}
    claims = claimed_accounts(snapshots, portfolios)
    failures: list[Failure] = []
    packed = []
    moments = moments or {}
    for portfolio_id, claim in claims.portfolios.items():
        portfolio = PackedPortfolio(portfolio_id)
        for entry in claim.not_found:
            portfolio.accounts_left_out.append(entry)
            message = f"no account {entry!r} was read for portfolio {portfolio_id!r}"
            failures.append(
                Failure(FailureReason.MISSING_FIELD, message, entry.partition(":")[0], path="portfolios", subject=entry)
            )
        for account_id in claim.accounts:
            market = markets[claims.snapshots[account_id]]
            if account_id in moments:
                market = market.at(moments[account_id])
            _pack_account(portfolio, market, account_id, failures)
        packed.append(portfolio)
    for portfolio in packed:
        _resolve_rows(portfolio, cube)
    return Book(tuple(packed), cube, tuple(failures)), claims.unclaimed


class Claim(NamedTuple):
    """The accounts of a portfolio, sorted, and the entries of the configuration for which nothing was read."""

    accounts: list[str]
    not_found: list[str]


class Claims(NamedTuple):
    """What every portfolio claims, by its id and sorted; the snapshot of every account; accounts nobody claims."""

    portfolios: dict[str, Claim]
    snapshots: dict[str, str]
    unclaimed: list[str]


def claimed_accounts(snapshots: Mapping[str, Snapshot], portfolios: Mapping[str, Sequence[str]]) -> Claims:
    """Which accounts every portfolio has: an entry claims the account of that id and all whose id starts with it and a
    colon.

    An id without an accounts row stands for what an unreadable payload would have brought: it falls on every portfolio
    that maps a part of it. Raises `ConfigurationError` for an account in two snapshots or two portfolios.
    """
    owners: dict[str, str] = {}
    read: set[str] = set()
    for name, snapshot in sorted(snapshots.items()):
        rows = {row["account_id"] for row in snapshot.tables["accounts"]}
        for account_id in sorted(rows | snapshot.incomplete):
            if account_id in owners:
                raise ConfigurationError(
                    f"account {account_id!r} is in two snapshots; give their sources different owners"
                )
            owners[account_id] = name
        read |= rows
    within: dict[str, list[str]] = defaultdict(list)
    for account_id in owners:
        for part in _parts(account_id):
            within[part].append(account_id)
    claimed: set[str] = set()
    found: dict[str, Claim] = {}
    for portfolio_id, entries in sorted(portfolios.items()):
        members: set[str] = set()
        not_found = []
        for entry in entries:
            unread = [part for part in _parts(entry) if part in owners and part not in read]
            if entry not in within and not unread:
                not_found.append(entry)
            members.update(within.get(entry, ()), unread)
        if again := sorted(a for a in members & claimed if a in read):
            raise ConfigurationError(f"accounts in two portfolios: {', '.join(again)}")
        claimed |= members
        found[portfolio_id] = Claim(sorted(members), not_found)
    return Claims(found, owners, sorted(set(owners) - claimed))


def _parts(name: str) -> list[str]:
    """The id and everything that it begins with up to a colon."""
    words = name.split(":")
    return [":".join(words[:count]) for count in range(1, len(words) + 1)]


def _resolve_rows(portfolio: PackedPortfolio, cube: CubeBuilder) -> None:
    """Row numbers of options are only known once all factor rows are; this writes them in."""
    at = cube.finished_row
    portfolio.legs = [(line, at(row), coefficient) for line, row, coefficient in portfolio.legs]
    portfolio.native_legs = [(group, at(row), coefficient) for group, row, coefficient in portfolio.native_legs]


def _pack_account(portfolio: PackedPortfolio, market: Market, account_id: str, failures: list[Failure]) -> None:
    """Add one account, or leave it out whole with a failure."""
    if account_id in market.snapshot.incomplete or account_id not in market.accounts:
        _leave_out(portfolio, market, account_id)
        return
    draft = AccountDraft(market, market.accounts[account_id])
    try:
        draft.pack()
    except IncompleteAccountError as problem:
        failures.append(
            Failure(problem.reason, str(problem), draft.venue, "", "", problem.subject or account_id, account_id)
        )
        _leave_out(portfolio, market, account_id)
        return
    _append(portfolio, draft)


def _leave_out(portfolio: PackedPortfolio, market: Market, account_id: str) -> None:
    portfolio.accounts_left_out.append(account_id)
    gross = market.last_known_gross(account_id)
    if gross is not None:
        portfolio.left_out_gross_usd = (portfolio.left_out_gross_usd or 0.0) + gross
    row = market.accounts.get(account_id)
    if row is not None:
        portfolio.left_out.append(
            account_info(row, float("nan"), Verdict(liquidates_when="below"), reported_parts=False)
        )


def _append(portfolio: PackedPortfolio, draft: AccountDraft) -> None:
    """Move the finished account into the portfolio, indices shifted."""
    account = len(portfolio.accounts)
    first_line, first_group, first_leg = len(portfolio.lines), len(portfolio.groups), len(portfolio.native_legs)
    node = (draft.row["node"], draft.venue)
    if node not in portfolio.nodes:
        portfolio.nodes.append(node)
    portfolio.accounts.append(draft.info)
    portfolio.lines += draft.lines
    portfolio.line_node += [portfolio.nodes.index(node)] * len(draft.lines)
    portfolio.legs += [(first_line + h.line, h.usd_row, h.usd_coefficient) for h in draft.holdings]
    portfolio.groups += [(account, group) for group in draft.groups]
    portfolio.native_legs += [(first_group + group, row, coefficient) for group, row, coefficient in draft.native_legs]
    portfolio.leg_marks |= {first_leg + leg: mark for leg, mark in draft.leg_marks.items()}
    portfolio.requirements += [(account, *entry) for entry in draft.requirements]
    portfolio.tiers += [(account, entry) for entry in draft.tiers]
    portfolio.fixed.append((draft.fixed[0], draft.fixed[1], draft.fixed[2]))
    portfolio.line_equity += draft.line_equity
    debt = sum(-h.native_coefficient for h in draft.holdings if h.balance_side == "liability")
    if debt > 0:
        portfolio.debts[account] = debt
    portfolio.units += [unit._replace(account=account) for unit in draft.units]
