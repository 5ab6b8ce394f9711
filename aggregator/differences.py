"""Our figures of today beside the venues' own: what matches, what explains a difference, and what nothing explains.

Four figures per account: equity, initial and maintenance margin in the account's unit, health as the venue states it.
Ours are those of the account's own time, to which the venue's figures belong: an option loses value until the run's. A
difference is ours minus reported. It is explained only by evidence that covers its size; what merely stands beside it
is named in the sentence and explains nothing. Sweep, report and `crossmargin reconcile` all read these rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from .account import AccountInfo
from .config import Reconcile
from .errors import FailureReason
from .evidence import Evidence, Prices
from .margin import NativeMargin
from .native import native_today
from .portfolio import PackedPortfolio
from .reconciliation import FIGURES, Reason, Status
from .results import native_health
from .snapshot import Row

RELATIVE = 1e-9
"""A figure within this of the venue's own is the venue's own: native margin is float64 from exact inputs."""

TIER_CHANGE = 2.0
"""Outdated tiers explain a requirement between half and twice ours, no more."""

_LEVELS = {"initial_margin": "initial", "maintenance_margin": "maintenance"}


_OF_FAILURE = {
    FailureReason.MISSING_MARK: Reason.MISSING_MARK,
    FailureReason.MISSING_PARAMETER: Reason.MISSING_PARAMETER,
    FailureReason.STALE: Reason.STALE,
    FailureReason.UNSUPPORTED: Reason.UNSUPPORTED,
    FailureReason.UNREACHABLE: Reason.UNREACHABLE,
    FailureReason.CALCULATION: Reason.CALCULATION,
}
"""Reason of an account without figures by the failure that left it so; of every other failure: a row is missing."""


class Native(NamedTuple):
    """A packed portfolio with its native figures; None, or an account that is not finite: not computed."""

    portfolio: PackedPortfolio
    figures: NativeMargin | None
    finite: Sequence[bool]


def reconciliation_rows(computed: Sequence[Native], evidence: Evidence, bound: Reconcile) -> list[Row]:
    """Rows of `reconciliation`: one for every figure of every account of the portfolios, read or not."""
    accounts = _at_own_time([account for native in computed for account in _accounts(native, evidence)], evidence)
    open_ones = {a.account_id for a in accounts if any(a.is_open(figure) for figure in FIGURES)}
    again = _at_own_marks(sorted(open_ones), evidence)
    rows = []
    for account in accounts:
        found = _findings(account, again.get(account.account_id), evidence)
        rows += [account.row(figure, found[figure], bound) for figure in FIGURES]
    return rows


# ---- one account -----------------------------------------------------------------------------------------------------


class _Finding(NamedTuple):
    """A status with its reason and the sentence that says why."""

    status: Status
    reason: Reason | None
    sentence: str


class _Account(NamedTuple):
    """An account with both sides' figures; `ours` is None where nothing was computed, `info` where nothing was read.

    `base`: what health is over, in the account's unit: the requirement, of a lender the debt. `half_places`: half a
    unit in the last place of each reported figure. `seconds`: how far behind the run's time the figures are taken.
    """

    portfolio_id: str
    account_id: str
    info: AccountInfo | None
    ours: Mapping[str, float | None] | None
    base: float
    reported: Mapping[str, Decimal | None]
    half_places: Mapping[str, float]
    seconds: float = 0.0

    def difference(self, figure: str) -> float | None:
        """Ours minus reported, None when either is not there; the subtraction is exact."""
        return _difference((self.ours or {}).get(figure), self.reported[figure])

    def size(self, figure: str) -> float:
        """Absolute value of a reported figure."""
        return abs(float(self.reported[figure] or 0))

    def allowed(self, figure: str) -> float:
        """Largest difference of a match."""
        return RELATIVE * self.size(figure) + self.half_places[figure]

    def is_open(self, figure: str) -> bool:
        difference = self.difference(figure)
        return difference is not None and abs(difference) > self.allowed(figure)

    def usd(self, figure: str, amount: float) -> float:
        """USD of an amount of a figure's unit; a ratio counts as the equity that would make up for it."""
        assert self.info is not None
        return amount * self.info.unit_price_usd * (self.base if figure == "health" else 1.0)

    @property
    def _time(self) -> str:
        if not self.seconds:
            return ""
        side = "after" if self.seconds > 0 else "before"
        return f"; at the account's own time, {abs(self.seconds):g} s {side} the run's"

    def row(self, figure: str, found: _Finding, bound: Reconcile) -> Row:
        difference, reported = self.difference(figure), self.reported[figure]
        unit = self.info.unit if self.info else ""
        size, beyond = None, False
        if difference is not None:
            size = self.usd(figure, difference)
            largest = max(bound.bound_usd, bound.bound_relative * self.usd(figure, self.size(figure)))
            lacking = found.status is Status.UNEXPLAINED or found.reason is Reason.MISSING_ROW
            beyond = lacking and abs(size) > largest
        return {
            "portfolio_id": self.portfolio_id,
            "account_id": self.account_id,
            "venue": self.info.venue if self.info else self.account_id.partition(":")[0],
            "figure": figure,
            "unit": "ratio" if figure == "health" else unit,
            "ours": (self.ours or {}).get(figure),
            "reported": None if reported is None else float(reported),
            "difference": difference,
            "difference_relative": difference / self.size(figure) if difference is not None and reported else None,
            "difference_usd": size,
            "status": str(found.status),
            "reason": None if found.reason is None else str(found.reason),
            "message": found.sentence + (self._time if difference is not None else ""),
            "beyond_bound": beyond,
        }


def _difference(ours: float | None, reported: Decimal | None) -> float | None:
    return None if ours is None or reported is None else float(Decimal(ours) - reported)


def _accounts(native: Native, evidence: Evidence) -> list[_Account]:
    portfolio, figures, finite = native
    out = []
    for n, info in enumerate(portfolio.accounts):
        ours, base = None, 0.0
        if figures is not None and finite[n]:
            ours, base = _figures(portfolio, figures, n), _base(portfolio, figures, n)
        out.append(_account(portfolio, info, ours, base, evidence))
    out += [_account(portfolio, info, None, 0.0, evidence) for info in portfolio.left_out]
    unread = sorted(set(portfolio.accounts_left_out) - {account.account_id for account in out})
    nothing: Mapping[str, Decimal | None] = dict.fromkeys(FIGURES)
    no_place = dict.fromkeys(FIGURES, 0.0)
    out += [_Account(portfolio.portfolio_id, entry, None, None, 0.0, nothing, no_place) for entry in unread]
    return out


def _figures(portfolio: PackedPortfolio, native: NativeMargin, account: int) -> dict[str, float | None]:
    """Our figures of an account, health by the venue's own definition."""
    equity, initial, maintenance = (float(values[account]) for values in native)
    ratio = native_health(portfolio, native, account)
    if ratio and portfolio.accounts[account].health == "requirement_over_equity":
        ratio = 1.0 / ratio
    if ratio is not None and not math.isfinite(ratio):
        ratio = None
    return {"equity": equity, "initial_margin": initial, "maintenance_margin": maintenance, "health": ratio}


def _base(portfolio: PackedPortfolio, native: NativeMargin, account: int) -> float:
    lender = portfolio.accounts[account].lender
    return portfolio.debts.get(account, 0.0) if lender else float(native.maintenance[account])


def _at_own_time(accounts: Sequence[_Account], evidence: Evidence) -> list[_Account]:
    """The accounts, those that hold something that expires and that the venue reports figures of at their own time."""
    seconds = {
        account.account_id: apart
        for account in accounts
        if account.ours is not None and any(value is not None for value in account.reported.values())
        if (apart := evidence.seconds_apart(account.account_id))
    }
    again = _alone({account_id: {} for account_id in seconds}, evidence)
    return [
        account._replace(ours=found[0], base=found[1], seconds=seconds[account.account_id])
        if (found := again.get(account.account_id)) is not None
        else account
        for account in accounts
    ]


def _alone(
    marks: Mapping[str, Mapping[str, float]], evidence: Evidence
) -> dict[str, tuple[Mapping[str, float | None], float]]:
    """(Figures, base) of accounts by themselves at their own times, with these marks by instrument; those that are
    finite.
    """
    if not marks:
        return {}
    out: dict[str, tuple[Mapping[str, float | None], float]] = {}
    book = evidence.book_at(marks)
    for portfolio, native in zip(book.portfolios, native_today(book), strict=True):
        for n, info in enumerate(portfolio.accounts if native is not None else ()):
            assert native is not None
            if all(math.isfinite(values[n]) for values in native):
                out[info.account_id] = _figures(portfolio, native, n), _base(portfolio, native, n)
    return out


def _account(
    portfolio: PackedPortfolio,
    info: AccountInfo,
    ours: Mapping[str, float | None] | None,
    base: float,
    evidence: Evidence,
) -> _Account:
    reported = evidence.reported(info.account_id)
    return _Account(
        portfolio.portfolio_id,
        info.account_id,
        info,
        ours,
        base,
        {figure: reported[f"reported_{figure}"] for figure in FIGURES},
        {f: evidence.half_place(info.account_id, f"reported_{f}", info.unit_price_usd) for f in FIGURES},
    )


def _findings(account: _Account, again: _AtOwnMarks | None, evidence: Evidence) -> dict[str, _Finding]:
    """What is found of every figure; health rests on what was found of the others, margins on equity."""
    if account.ours is None:
        return dict.fromkeys(FIGURES, _why_incomplete(account, evidence))
    found: dict[str, _Finding] = {}
    for figure in FIGURES:
        if account.reported[figure] is None:
            found[figure] = _Finding(Status.NOT_REPORTED, None, "no payload states it")
        elif account.difference(figure) is not None and not account.is_open(figure):
            found[figure] = _match(account, figure, evidence)
        else:
            found[figure] = _explained(_Case(account, figure, found, again, evidence))
    return found


def _why_incomplete(account: _Account, evidence: Evidence) -> _Finding:
    failures = evidence.failures(account.account_id)
    if failures:
        first, more = failures[0], f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        reason = _OF_FAILURE.get(first.reason)
        if reason is None:
            return _Finding(Status.INCOMPLETE, Reason.MISSING_ROW, f"{first.reason}: {first.message}{more}")
        return _Finding(Status.INCOMPLETE, reason, f"{first.message}{more}")
    if account.info is None:
        return _Finding(Status.INCOMPLETE, Reason.MISSING_ROW, "no payload brought this account")
    return _Finding(Status.INCOMPLETE, Reason.CALCULATION, "its figures are not finite")


def _match(account: _Account, figure: str, evidence: Evidence) -> _Finding:
    levels = ("equity", "maintenance") if figure == "health" else (_LEVELS.get(figure, figure),)
    parts = [part for level in levels if (part := evidence.reported_part(account.account_id, level))[1]]
    difference, place = abs(account.difference(figure) or 0.0), 2 * account.half_places[figure]
    if parts:
        unit = account.info.unit if account.info else ""
        amount, basis = math.fsum(amount for amount, _ in parts), "; ".join(basis for _, basis in parts)
        of = "what it is made of" if figure == "health" else "it"
        gaps = "".join(f"; {gap}" for gap in evidence.price_gaps(account.account_id))
        sentence = f"by construction, as far as {amount:.10g} {unit} of {of} are taken as reported ({basis}){gaps}"
        return _Finding(Status.MATCH, Reason.REPORTED_PARTS, sentence)
    if difference > RELATIVE * account.size(figure):
        return _Finding(Status.MATCH, Reason.VENUE_ROUNDING, f"within half a unit of the last place, {place:g}")
    return _Finding(Status.MATCH, None, "equal within a billionth" if difference else "equal")


# ---- explanations ----------------------------------------------------------------------------------------------------


class _Case(NamedTuple):
    """A figure that does not match, what was found of the figures before it, and the evidence."""

    account: _Account
    figure: str
    found: Mapping[str, _Finding]
    again: _AtOwnMarks | None
    evidence: Evidence

    @property
    def account_id(self) -> str:
        return self.account.account_id

    @property
    def ours(self) -> float | None:
        return (self.account.ours or {}).get(self.figure)

    @property
    def difference(self) -> float | None:
        return self.account.difference(self.figure)

    @property
    def allowed(self) -> float:
        return self.account.allowed(self.figure)

    def is_settled(self, *figures: str) -> bool:
        """Whether these figures match or are explained."""
        return all(f in self.found and self.found[f].status in (Status.MATCH, Status.EXPLAINED) for f in figures)


def _explained(case: _Case) -> _Finding:
    """The first explanation that covers the difference, else what lies beside it."""
    for explanation in _EXPLANATIONS:
        finding = explanation(case)
        if finding is not None:
            return finding
    beside = case.evidence.circumstances(case.account_id, orders=case.figure == "initial_margin")
    told = f"; beside it: {'; '.join(beside)}" if beside else ""
    return _Finding(Status.UNEXPLAINED, None, f"nothing in the inputs accounts for it{told}")


def _by_rounding(case: _Case) -> _Finding | None:
    """A sum of amounts each rounded or cut to the last place: at most one unit of it for each row, and for the sum."""
    place = 2 * case.account.half_places[case.figure]
    if case.figure == "health" or case.difference is None or not place:
        return None
    rows = case.evidence.row_count(case.account_id)
    if abs(case.difference) > RELATIVE * case.account.size(case.figure) + place * (rows + 1):
        return None
    sentence = f"at most a unit of the last place, {place:g}, for each of {rows} rows and for their sum"
    return _Finding(Status.EXPLAINED, Reason.VENUE_ROUNDING, sentence)


def _by_note(case: _Case) -> _Finding | None:
    """The venue's adapter says what the venue does otherwise, and how much that is in this account."""
    note = case.evidence.note(case.account_id, case.figure)
    if note is None or case.difference is None or abs(case.difference) > note.size + case.allowed:
        return None
    return _Finding(Status.EXPLAINED, Reason.VENUE_NOTE, f"{note.text} (up to {note.size:g})")


def _by_own_marks(case: _Case) -> _Finding | None:
    """Recomputed at the marks behind the account's own initial margins it matches.

    Equity has to match too: it is not made from those margins, so it tells whether the marks are the reason.
    """
    again, account = case.again, case.account
    if again is None:
        return None
    equity = _difference(again.figures["equity"], account.reported["equity"])
    difference = _difference(again.figures[case.figure], account.reported[case.figure])
    if equity is None or abs(equity) > account.allowed("equity") + again.slack:
        return None
    slack = again.slack
    if case.figure == "health":
        slack = slack * (1 + abs(case.ours or 0.0)) / account.base if account.base > 0 else 0.0
    if difference is None or abs(difference) > case.allowed + slack:
        return None
    return _Finding(Status.EXPLAINED, Reason.STALE_MARK, again.sentence)


def _by_orders(case: _Case) -> _Finding | None:
    """The account states what its orders take, and no order was read."""
    margin = case.evidence.order_margin(case.account_id)
    if case.figure != "initial_margin" or margin is None or case.difference is None:
        return None
    if case.evidence.orders(case.account_id) or not 0 < -case.difference <= margin + case.allowed:
        return None
    sentence = f"the account states {margin:.10g} of margin for its orders, and no order was read"
    return _Finding(Status.EXPLAINED, Reason.ORDERS_NOT_IN_PAYLOAD, sentence)


def _by_tiers(case: _Case) -> _Finding | None:
    """Parameters are older than the account, and the whole difference lies in what the venue asks of the positions.

    Equity agrees, so quantities and prices do; the venue's own figures of the positions add up to that of the account,
    so nothing else is in it; the rates are left.
    """
    level, age = _LEVELS.get(case.figure), case.evidence.older_parameters(case.account_id)
    if level is None or age is None or not case.ours or not case.is_settled("equity"):
        return None
    stated = case.evidence.stated_of_positions(case.account_id, level)
    reported = case.account.size(case.figure)
    if stated is None or not stated.rows or abs(stated.amount - reported) > case.allowed + stated.slack:
        return None
    if not 1 / TIER_CHANGE <= reported / case.ours <= TIER_CHANGE:
        return None
    sentence = f"{age}; equity agrees, and the venue's own figures of the positions add up to its figure"
    return _Finding(Status.EXPLAINED, Reason.STALE_TIER, sentence)


def _by_missing_row(case: _Case) -> _Finding | None:
    """The venue's own figures of the positions that were read add up to ours: the rest of its figure has no row."""
    level, difference = _LEVELS.get(case.figure), case.difference
    if level is None or difference is None or difference >= 0 or case.ours is None:
        return None
    if level == "initial" and case.evidence.orders(case.account_id):
        return None
    stated = case.evidence.stated_of_positions(case.account_id, level)
    if stated is None or abs(stated.amount - case.ours) > case.allowed + stated.slack:
        return None
    sentence = (
        f"the venue's own figures of the {stated.rows} positions that were read add up to ours; "
        f"the other {-difference:.10g} belong to something that no payload brought"
    )
    return _Finding(Status.INCOMPLETE, Reason.MISSING_ROW, sentence)


def _by_no_requirement(case: _Case) -> _Finding | None:
    """Without a requirement there is no ratio; what the venue states then is its word for none."""
    if case.figure != "health" or case.ours is not None or case.account.reported["maintenance_margin"]:
        return None
    return _Finding(Status.EXPLAINED, Reason.NO_REQUIREMENT, "nothing is required, so there is no ratio")


def _by_its_parts(case: _Case) -> _Finding | None:
    """The venue's ratio is that of its own equity and maintenance margin, each of which matches or is explained."""
    account, info = case.account, case.account.info
    equity, maintenance = account.reported["equity"], account.reported["maintenance_margin"]
    if case.figure != "health" or info is None or equity is None or maintenance is None:
        return None
    if not case.is_settled("equity", "maintenance_margin"):
        return None
    above, below = float(equity), float(maintenance)
    if info.lender:
        above, below = above + account.base - below, account.base
    elif info.health == "requirement_over_equity":
        above, below = below, above
    if not below:
        return None
    ratio = above / below
    rounding = (account.half_places["equity"] + account.half_places["maintenance_margin"]) * (1 + abs(ratio))
    if abs(ratio - float(account.reported["health"] or 0)) > case.allowed + rounding / abs(below):
        return None
    sentence = "the ratio of the venue's own equity and maintenance margin"
    return _Finding(Status.EXPLAINED, Reason.DERIVED, sentence)


_EXPLANATIONS: tuple[Callable[[_Case], _Finding | None], ...] = (
    _by_rounding,
    _by_note,
    _by_own_marks,
    _by_orders,
    _by_tiers,
    _by_missing_row,
    _by_no_requirement,
    _by_its_parts,
)


# ---- once more, at the marks behind the account's own margins --------------------------------------------------------


class _AtOwnMarks(NamedTuple):
    """Figures of an account at the marks that its own reported margins imply; `slack` is what their rounding leaves
    open, in the account's unit.
    """

    figures: Mapping[str, float | None]
    slack: float
    sentence: str


def _at_own_marks(account_ids: Sequence[str], evidence: Evidence) -> dict[str, _AtOwnMarks]:
    """The accounts whose marks are of another time than they are, recomputed where their own margins imply marks."""
    implied: dict[str, Prices] = {a: p for a in account_ids if (p := evidence.implied_marks(a)) is not None}
    again = _alone({account: prices.marks for account, prices in implied.items()}, evidence)
    return {a: _AtOwnMarks(figures, implied[a].slack, implied[a].sentence) for a, (figures, _) in again.items()}
