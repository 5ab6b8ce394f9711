"""A recommendation on disk: the JSON that governance applies, and the rows of the table `recommendations`.

The JSON is canonical: sorted keys, no spaces, integers and text alone, so that equal recommendations are equal bytes
and its reference id, a digest of the content, can be checked by whoever applies it. The rows also keep the figures that
do not move, because the next run reads from them what was wished before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa

from aggregator.errors import ConfigurationError, Failure
from aggregator.schema.fields import TIME

from .bounded_step import SENTENCES, Standing
from .recommendation import Kind, Outcome, Recommendation
from .tier_policy import GovernancePolicy, Review

SCHEMA, VERSION = "crossmargin.recommendation", 1
LONGEST_UPDATE_TYPE = 64


def _field(name: str, kind: pa.DataType, unit: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"unit": unit})


RECOMMENDATIONS = pa.schema(
    [
        _field("reference_id", pa.string(), "digest of the governance JSON"),
        _field("created_at", TIME, "UTC time"),
        _field("expires_at", TIME, "UTC time"),
        _field("market", pa.string(), "market, or asset of a collateral weight"),
        _field("kind", pa.string(), "rates | position_limits | collateral_weights"),
        _field("place", pa.int32(), "order within market and kind, from 0"),
        _field("parameter", pa.string(), "what the figure is"),
        _field("tier", pa.int32(), "1 is the smallest notional"),
        _field("unit", pa.string(), "bps | usd"),
        _field("previous_value", pa.int64(), "in unit, in force when it was made"),
        _field("wished_value", pa.int64(), "in unit, before bounds and delays"),
        _field("new_value", pa.int64(), "in unit, to be applied"),
        _field("reasons", pa.string(), "JSON list of reasons"),
        _field("short_since", TIME, "UTC time since which the wish has been tighter", nullable=True),
        _field("requirement_bps", pa.int64(), "bps, the engine's requirement", nullable=True),
        _field("history_days", pa.int64(), "days"),
        _field("model", pa.string(), "learned | classical | jump_law: what made the forecast"),
        _field("model_sha256", pa.string(), "SHA-256"),
        _field("policy_sha256", pa.string(), "SHA-256"),
        _field("inputs", pa.string(), "JSON object of name to SHA-256"),
    ],
    metadata={"crossmargin.table": "recommendations", "crossmargin.version": "1"},
)
"""One row per figure of a recommendation; unique by reference_id, market, kind and place."""


class Origin(NamedTuple):
    """What a recommendation was computed from: the model's name and hash, and the hashes of its inputs by name.

    `monitoring` is what was watched of the model, integers and text alone.
    """

    model: str
    model_sha256: str
    inputs: Mapping[str, str]
    monitoring: Mapping[str, Any] = MappingProxyType({})


def governance_document(outcome: Outcome, origin: Origin, policy: GovernancePolicy) -> bytes:
    """The canonical JSON of an outcome; equal arguments give equal bytes, whatever the order of its parts.

    `updates` has one entry per figure that moves: market, update_type (at most 64 characters), new_value,
    previous_value, reference_id, timestamp, expires_at, additional_data. Raises ConfigurationError for an outcome
    without recommendations and failures, hashes that are none, and recommendations of different times.
    """
    body = _body(outcome, origin, policy)
    reference = _digest(body)
    for number, update in enumerate(body["updates"], start=1):
        update["reference_id"] = f"{reference}-{number:05d}"
    return _canonical({**body, "reference_id": reference})


def read_document(content: bytes, *, now: datetime) -> dict[str, Any]:
    """The document of `governance_document`, checked; what cannot be applied at `now` is refused.

    Raises ConfigurationError when it is truncated, altered since it was written, of another schema or version, expired,
    or dated after `now`.
    """
    try:
        document = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigurationError(f"recommendation: not complete JSON ({error})") from None
    if not isinstance(document, dict) or (document.get("schema"), document.get("version")) != (SCHEMA, VERSION):
        raise ConfigurationError(f"recommendation: expected schema {SCHEMA} version {VERSION}")
    body = {name: value for name, value in document.items() if name != "reference_id"}
    try:
        body["updates"] = [{k: v for k, v in update.items() if k != "reference_id"} for update in body["updates"]]
        references = [update["reference_id"] for update in document["updates"]]
        created, expires = _time(document["timestamp"]), _time(document["expires_at"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"recommendation: a field is missing or of the wrong kind ({error})") from None
    reference = _digest(body)
    numbered = [f"{reference}-{number:05d}" for number in range(1, len(references) + 1)]
    if document.get("reference_id") != reference or references != numbered:
        raise ConfigurationError("recommendation: the reference id does not fit the content; it was altered")
    if not created <= now < expires:
        raise ConfigurationError(
            f"recommendation holds from {document['timestamp']} to {document['expires_at']}; now is {_text(now)}"
        )
    return document


def recommendation_rows(outcome: Outcome, origin: Origin, policy: GovernancePolicy) -> pa.Table:
    """The rows (`RECOMMENDATIONS`) of an outcome, in order of market, kind and place. Errors as for the document."""
    reference = _digest(_body(outcome, origin, policy))
    common = {
        "reference_id": reference,
        "model_sha256": origin.model_sha256,
        "policy_sha256": policy.digest(),
        "inputs": json.dumps(dict(origin.inputs), sort_keys=True, separators=(",", ":")),
    }
    rows = [
        {
            **common,
            "created_at": made.created_at,
            "expires_at": made.expires_at,
            "market": made.market,
            "kind": made.kind,
            "place": place,
            "parameter": str(figure.parameter),
            "tier": figure.tier,
            "unit": figure.unit,
            "previous_value": figure.previous,
            "wished_value": figure.wish,
            "new_value": figure.value,
            "reasons": json.dumps([str(reason) for reason in made.reasons]),
            "short_since": made.short_since,
            "requirement_bps": figure.requirement,
            "history_days": made.history_days,
            "model": made.model,
        }
        for made in _ordered(outcome)
        for place, figure in enumerate(made.figures)
    ]
    return pa.Table.from_pylist(rows, schema=RECOMMENDATIONS)


def standings(
    records: pa.Table, in_force: Mapping[tuple[str, Kind], Sequence[int]], review: Review, *, now: datetime
) -> dict[tuple[str, Kind], Standing]:
    """What earlier recommendations say of the figures `in_force` now (in the order of `Recommendation.figures`).

    A change counts from the first run that found other figures in force than the run before it; one that no run has
    seen yet counts from now. The calmest wish is that of the window of the way out. Records after `now` and of figures
    that are not in force are left out, and the same record twice counts once.
    """
    runs: dict[tuple[str, Kind], dict[datetime, dict[int, dict[str, Any]]]] = {}
    for row in records.select(_STANDING_COLUMNS).to_pylist():
        key = (row["market"], row["kind"])
        if row["created_at"] <= now and key in in_force:
            runs.setdefault(key, {}).setdefault(row["created_at"], {})[row["place"]] = row
    return {key: _standing(key[1], by_time, list(in_force[key]), review, now) for key, by_time in sorted(runs.items())}


_STANDING_COLUMNS = ["created_at", "market", "kind", "place", "previous_value", "wished_value", "short_since"]


def _standing(
    kind: Kind,
    by_time: Mapping[datetime, Mapping[int, Mapping[str, Any]]],
    in_force: list[int],
    review: Review,
    now: datetime,
) -> Standing:
    times = sorted(by_time)
    found = [*([by_time[at][place]["previous_value"] for place in sorted(by_time[at])] for at in times), in_force]
    changed = [at for at, before, after in zip([*times[1:], now], found, found[1:], strict=False) if before != after]
    window = timedelta(seconds=review.way_out_window_s)
    wishes = [by_time[at][0]["wished_value"] for at in times if now - at <= window]
    calmest = (min if kind == "rates" else max)(wishes, default=None)
    return Standing(max(changed, default=None), by_time[times[-1]][0]["short_since"], calmest)


def _body(outcome: Outcome, origin: Origin, policy: GovernancePolicy) -> dict[str, Any]:
    made = _ordered(outcome)
    if not made:
        raise ConfigurationError("recommendation: there is none for any market")
    if len({(one.created_at, one.expires_at) for one in made}) != 1:
        raise ConfigurationError("recommendation: its parts were made at different times")
    hashes = {"model": origin.model_sha256, **origin.inputs}
    for name, value in hashes.items():
        if len(value) != 64 or set(value) - set("0123456789abcdef"):
            raise ConfigurationError(f"recommendation: the hash of {name!r} is no SHA-256 in hex")
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "timestamp": _text(made[0].created_at),
        "expires_at": _text(made[0].expires_at),
        "model": {"name": origin.model, "sha256": origin.model_sha256},
        "monitoring": dict(origin.monitoring),
        "policy_sha256": policy.digest(),
        "inputs": dict(origin.inputs),
        "updates": [update for one in made for update in _updates(one)],
        "unchanged": [
            {
                "market": one.market,
                "kind": one.kind,
                "model": one.model,
                "reasons": [str(reason) for reason in one.reasons],
            }
            for one in made
            if not one.changes
        ],
        "failures": [_failure(failure) for failure in sorted(outcome.failures, key=lambda one: one.subject)],
    }


def _updates(made: Recommendation) -> list[dict[str, Any]]:
    updates = []
    for figure in made.changes:
        update_type = f"{figure.parameter}.tier_{figure.tier}"
        if len(update_type) > LONGEST_UPDATE_TYPE:
            raise ConfigurationError(f"update type {update_type!r} is longer than {LONGEST_UPDATE_TYPE} characters")
        updates.append(
            {
                "market": made.market,
                "update_type": update_type,
                "unit": figure.unit,
                "new_value": figure.value,
                "previous_value": figure.previous,
                "timestamp": _text(made.created_at),
                "expires_at": _text(made.expires_at),
                "additional_data": {
                    "wished_value": figure.wish,
                    "requirement_bps": figure.requirement,
                    "model": made.model,
                    "history_days": made.history_days,
                    "reasons": [str(reason) for reason in made.reasons],
                    "explanation": "; ".join(SENTENCES[reason] for reason in made.reasons),
                },
            }
        )
    return updates


def _failure(failure: Failure) -> dict[str, str]:
    return {"market": failure.subject, "reason": str(failure.reason), "message": failure.message}


def _ordered(outcome: Outcome) -> list[Recommendation]:
    return sorted(outcome.recommendations, key=lambda one: (one.market, one.kind))


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()[:32]


def _canonical(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode() + b"\n"


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
