"""What a reserve says about itself beside its risk parameters, as rows of `market_state`.

Tokens are whole tokens, rates fractions per year, limits dollars or tokens as the contracts count them. A limit of 0 is
no limit and left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import FieldError, joined, member
from ..fields import flag_at
from ..market_rows import add_market_state
from ..rows import Rows
from ..transport import Payload
from .deployments import Deployment
from .mechanics import PERCENTAGE_FACTOR, RAY, UINT256_MAX, owed_amount
from .parse import Reserve, unsigned_at
from .shapes import opened

_GRACE_FIELD = "liquidationGracePeriodUntil"
_GRACE_VALUES = (_GRACE_FIELD, "result", "data")
_DEFAULT_CEILING_DECIMALS, _MOST_DECIMALS = 2, 36
_LATEST_S = 2**40 - 1  # the contract's uint40


class Grace(NamedTuple):
    """The end of one reserve's grace period, and the payload that says so."""

    until_s: int
    payload: Payload
    path: str


def read_graces(payloads: list[Payload], rows: Rows) -> dict[str, Grace]:
    """Ends of grace periods by underlying address, from answers to `getLiquidationGracePeriod`.

    An answer alone does not say whose it is: a payload is `{asset, liquidationGracePeriodUntil}` (or `{asset, result}`
    or `data`), a list of such objects or of pairs, or an object from address to end. What cannot be read is a failure
    and stops nobody; several ends of one reserve are all rejected.
    """
    found: dict[str, list[Grace]] = defaultdict(list)
    for payload in payloads:
        with rows.guard(payload.name, subject=payload.request):
            entries, path = _grace_entries(payload.body)
            for place, entry in entries:
                where = path if place == "" else joined(path, place)
                with rows.guard(payload.name, subject=payload.request):
                    address, until = _grace(entry, where)
                    found[address].append(Grace(until, payload, where))
    for address, copies in found.items():
        for copy in copies if len(copies) > 1 else ():
            message = f"{len(copies)} grace periods of {address}; all rejected"
            rows.fail(FailureReason.DUPLICATE, message, payload=copy.payload.name, path=copy.path, subject=address)
    return {address: copies[0] for address, copies in found.items() if len(copies) == 1}


def _grace_entries(body: Any) -> tuple[list[tuple[str | int, Any]], str]:
    """Entries with their keys or places: one object, a list, or an object from address to end."""
    if isinstance(body, Mapping) and "asset" in body:
        return [("", body)], ""
    value, path = opened(body, ())
    if isinstance(value, list):
        return list(enumerate(value)), path
    if isinstance(value, Mapping) and "asset" not in value:
        return [(key, [key, until]) for key, until in value.items() if str(key).lower().startswith("0x")], path
    return [("", value)], path


def _grace(entry: Any, path: str) -> tuple[str, int]:
    if isinstance(entry, list) and len(entry) == 2:
        entry = {"asset": entry[0], _GRACE_FIELD: entry[1]}
    address = member(entry, "asset", path)
    if not isinstance(address, str) or not address:
        raise FieldError(joined(path, "asset"), FailureReason.MALFORMED, "'asset' must be an address")
    key = next((key for key in _GRACE_VALUES if entry.get(key) is not None), _GRACE_FIELD)
    return address.lower(), unsigned_at(entry, key, path, largest=_LATEST_S)


def add_state(
    rows: Rows,
    record: Any,
    reserve: Reserve,
    path: str,
    *,
    payload: Payload,
    deployment: Deployment,
    grace: Grace | None,
) -> None:
    """Rows of `market_state` of one reserve; a field that cannot be read is a failure that stops nobody."""
    market = deployment.state_name(reserve.asset_id)

    def add(field: str, value: float | str, source: Payload) -> None:
        add_market_state(rows, market, field, value, as_of=source.received_at, source=source.request)

    with rows.guard(payload.name, subject=reserve.asset_id):
        for field, value in _read_state(record, reserve, path, payload, deployment).items():
            add(field, value, payload)
        if record.get(_GRACE_FIELD) is not None:
            until = unsigned_at(record, _GRACE_FIELD, path, largest=_LATEST_S)
            if grace is not None and grace.until_s != until:
                message = f"{until}, but getLiquidationGracePeriod says {grace.until_s}"
                raise FieldError(joined(path, _GRACE_FIELD), FailureReason.INCONSISTENT, message)
            if until:
                add("liquidation_grace_until", float(until), payload)
        elif grace is not None and grace.until_s:
            add("liquidation_grace_until", float(grace.until_s), grace.payload)


def _read_state(
    record: Any, reserve: Reserve, path: str, payload: Payload, deployment: Deployment
) -> dict[str, float | str]:
    """The reserve's state by field: `status` as words, the rest as numbers, each where the payload has it.

    Words: active or inactive, frozen, paused. Indices as stored; `total_debt` accrued to the receive time and
    `total_supply` what is owed and what is there (the virtual balance, else that of the tokens); caps in tokens;
    `debt_ceiling` and `isolation_mode_total_debt` in dollars; the protocol's fee as a part of the bonus.
    `liquidation_grace_until` is in epoch seconds: until then nobody can be liquidated over this reserve.
    """
    words = ["active" if flag_at(record, "isActive", path) else "inactive"]
    words += ["frozen"] if flag_at(record, "isFrozen", path) else []
    words += ["paused"] if flag_at(record, "isPaused", path) else []
    unit = 10**reserve.decimals
    state: dict[str, float | str] = {
        "status": " ".join(words),
        "liquidity_index": reserve.liquidity_index / RAY,
        "variable_borrow_index": reserve.borrow_index / RAY,
        "liquidity_rate": reserve.liquidity_rate / RAY,
        "variable_borrow_rate": reserve.borrow_rate / RAY,
    }
    for key, field in (("supplyCap", "supply_cap"), ("borrowCap", "borrow_cap")):
        if value := _optional(record, key, path):
            state[field] = float(value)
    for key, field in (
        ("availableLiquidity", "available_liquidity"),
        ("virtualUnderlyingBalance", "virtual_balance"),
        ("deficit", "deficit"),
    ):
        if (amount := _optional(record, key, path)) is not None:
            state[field] = amount / unit
    if (scaled := _optional(record, "totalScaledVariableDebt", path)) is not None:
        _, borrow_index = reserve.indices_at(payload.received_at, deployment.generation)
        owed = owed_amount(scaled, borrow_index, deployment.generation)
        state["total_debt"] = owed / unit
        # A virtual balance of 0 says nothing where a reserve has none (before v3.1; GHO before v3.4).
        there = state.get("virtual_balance") or state.get("available_liquidity")
        if there is not None:
            state["total_supply"] = float(there) + owed / unit
    state |= _isolation(record, path)
    if (fee := _optional(record, "liquidationProtocolFee", path, largest=PERCENTAGE_FACTOR)) is not None:
        state["liquidation_protocol_fee"] = fee / PERCENTAGE_FACTOR
    return state


def _optional(record: Any, key: str, path: str, *, largest: int = UINT256_MAX) -> int | None:
    """The integer under `key`, None where the payload does not have it."""
    return unsigned_at(record, key, path, largest=largest) if record.get(key) is not None else None


def _isolation(record: Any, path: str) -> dict[str, float | str]:
    """Debt ceiling of an isolated collateral and what is borrowed against it, in dollars; nothing without both."""
    ceiling = _optional(record, "debtCeiling", path) or 0
    borrowed = _optional(record, "isolationModeTotalDebt", path) or 0
    decimals = _optional(record, "debtCeilingDecimals", path, largest=_MOST_DECIMALS)
    scale = 10 ** (_DEFAULT_CEILING_DECIMALS if decimals is None else decimals)
    state: dict[str, float | str] = {"debt_ceiling": ceiling / scale} if ceiling else {}
    if ceiling or borrowed:
        state["isolation_mode_total_debt"] = borrowed / scale
    return state
