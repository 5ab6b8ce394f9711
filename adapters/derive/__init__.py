"""Derive: options, perpetuals and collateral in subaccounts under portfolio or standard margin, settled in USDC.

Requests understood (JSON-RPC; the result alone or wrapped in `result`):

- per owner: `private/get_subaccount` (collateral, positions, open orders, net margins) and `private/get_positions`
  (which must hold the same positions as the subaccount, and then gives the fresher marks);
- market-wide: `public/get_ticker` (perpetuals: mark and index; options: implied vol, forward, discount; tokens: index).

A subaccount is one account. Its risk parameters are not in any payload: they come from the dated parameter file.
Not read: open-order margin (the venue's liquidation ignores orders), oracle confidences (no payload carries them; 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aggregator.errors import FailureReason

from ..adapter import Context, Normalized
from ..amounts import FieldError, member
from ..rows import Rows
from ..symbols import account_id
from ..transport import Payload
from .markets import VENUE, Reading, read_ticker, result_of
from .parse import read_subaccount
from .rules import read_rule_book

SUBACCOUNT = "private/get_subaccount"
POSITIONS = "private/get_positions"
TICKER = "public/get_ticker"


@dataclass(frozen=True)
class DeriveAdapter:
    """Normalizes payloads of Derive; see the package's docstring for the requests."""

    venue: str = VENUE
    requests: tuple[str, ...] = (SUBACCOUNT, POSITIONS, TICKER)

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables of one snapshot, and what could not be read; the order of `payloads` does not matter.

        Raises `ConfigurationError` when the parameter file is not of the documented shape.
        """
        reading = Reading(Rows(VENUE), context, read_rule_book(context.parameters))
        answers = _sorted_out(reading, payloads)
        for (request, _, _), payload in answers.items():
            if request == TICKER:
                with reading.rows.guard(payload.name, subject=payload.request):
                    read_ticker(reading, payload)
        for (request, owner, part), payload in answers.items():
            if request == SUBACCOUNT:
                read_subaccount(reading, payload, answers.get((POSITIONS, owner, part)))
            elif request == POSITIONS and (SUBACCOUNT, owner, part) not in answers:
                account = account_id(VENUE, owner, part)
                reading.rows.fail(
                    FailureReason.MISSING_FIELD,
                    f"positions without {SUBACCOUNT}: collateral and margin type are unknown",
                    payload=payload.name,
                    subject=account,
                    account_id=account,
                )
        reading.add_shared_rows()
        return Normalized(reading.rows.batches(), reading.rows.failures)


def _sorted_out(reading: Reading, payloads: Sequence[Payload]) -> dict[tuple[str, str, str], Payload]:
    """Payload by (request, owner, subaccount or instrument); copies of one question are all rejected."""
    groups: dict[tuple[str, str, str], list[Payload]] = {}
    for payload in sorted(payloads, key=lambda p: (p.request, p.account, p.name, p.sha256)):
        with reading.rows.guard(payload.name, subject=payload.account or payload.request):
            if payload.request not in ADAPTER.requests:
                known = ", ".join(ADAPTER.requests)
                raise FieldError("request", FailureReason.UNSUPPORTED, f"{payload.request!r} is none of {known}")
            result = result_of(payload)
            if payload.request == TICKER:
                key = (TICKER, "", str(member(result, "instrument_name")))
            elif not payload.account:
                message = f"{payload.request} needs the owner's label in the configuration"
                raise FieldError("account", FailureReason.MISSING_FIELD, message)
            else:
                key = (payload.request, payload.account, str(member(result, "subaccount_id")))
            groups.setdefault(key, []).append(payload)
    for (request, owner, part), copies in groups.items():
        if len(copies) > 1:
            account = account_id(VENUE, owner, part) if owner else None
            reading.rows.fail(
                FailureReason.DUPLICATE,
                f"{len(copies)} payloads of {request} for {owner or part}: {', '.join(p.name for p in copies)}",
                payload=copies[0].name,
                subject=account or part,
                account_id=account,
            )
    return {key: copies[0] for key, copies in groups.items() if len(copies) == 1}


ADAPTER = DeriveAdapter()
