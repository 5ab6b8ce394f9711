"""Oracle confidences of Derive, from the signed feeds (`public/get_latest_signed_feeds`).

A feed's confidence stands beside the mark that it is the source of: spot beside the index, the perpetual's feed of type
P beside its mark, forward, rate and vol of an expiry beside theirs. Prices of the feeds are not read: the tickers state
them. A confidence that cannot be read takes its marks with it, so that whoever needs them is incomplete rather than
charged as if the feed were certain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from aggregator.errors import FailureReason

from ..amounts import FieldError, decimal_at, joined, member, time_of
from ..symbols import expiry_subject, instrument_id
from ..transport import Payload
from .markets import VENUE, Reading, result_of

_PERP_FEEDS = frozenset({"P", "A", "B"})
_PERP_FEED = "P"
"""Feed of the perpetual's price; A and B are those of its ask and bid impact prices."""
_BY_EXPIRY = (("fwd_data", "forward"), ("rate_data", "rate"), ("vol_data", "implied_vol"))


def read_feeds(reading: Reading, payload: Payload) -> None:
    """Confidences of one `public/get_latest_signed_feeds` payload; of two payloads on one feed the lower counts."""
    feeds = result_of(payload)
    if not any(str(key).endswith("_data") for key in feeds):
        reading.rows.fail(
            FailureReason.MISSING_FIELD,
            "the answer has no feed of any kind",
            payload=payload.name,
            path="result",
            subject=payload.request,
        )
    for path, currency, entry in _entries(reading, payload, feeds, "spot_data"):
        asset = reading.catalog.resolved(currency)
        if asset is not None:
            _note(reading, payload, (asset.symbol, "index"), entry, path)
    for path, currency, by_type in _entries(reading, payload, feeds, "perp_data"):
        if not isinstance(by_type, Mapping) or not by_type.keys() & _PERP_FEEDS:
            _not_by(reading, payload, "type", by_type, path)
        elif _PERP_FEED in by_type:
            subject = instrument_id(VENUE, f"{currency}-PERP")
            _note(reading, payload, (subject, "mark"), by_type[_PERP_FEED], joined(path, _PERP_FEED))
    for key, name in _BY_EXPIRY:
        for path, currency, by_expiry in _entries(reading, payload, feeds, key):
            asset = reading.catalog.resolved(currency)
            if asset is None:
                continue
            if not isinstance(by_expiry, Mapping):
                _not_by(reading, payload, "expiry", by_expiry, path)
                continue
            for seconds, entry in by_expiry.items():
                place = joined(path, str(seconds))
                with reading.rows.guard(payload.name, subject=currency):
                    subject = expiry_subject(asset.symbol, time_of(seconds, place))
                    _note(reading, payload, (subject, name), entry, place)


def _entries(reading: Reading, payload: Payload, feeds: Mapping[str, Any], key: str) -> Iterator[tuple[str, str, Any]]:
    """(path, currency, entry) of one kind of feed; none where the payload has none of the kind."""
    listed = feeds.get(key)
    if listed is None:
        return
    if not isinstance(listed, Mapping):
        message = f"expected an object by currency, found {type(listed).__name__}"
        reading.rows.fail(FailureReason.MALFORMED, message, payload=payload.name, path=key, subject=payload.request)
        return
    for currency, entry in listed.items():
        yield joined(key, str(currency)), str(currency), entry


def _not_by(reading: Reading, payload: Payload, what: str, found: Any, path: str) -> None:
    message = f"expected an object by {what}, found {type(found).__name__}"
    reading.rows.fail(FailureReason.MALFORMED, message, payload=payload.name, path=path, subject=payload.request)


def _note(reading: Reading, payload: Payload, key: tuple[str, str], entry: Any, path: str) -> None:
    known = reading.confidences.get(key, Decimal(1))
    reading.confidences[key] = None
    with reading.rows.guard(payload.name, subject=key[0]):
        member(entry, "confidence", path)
        value = decimal_at(entry, "confidence", path)
        if not 0 <= value <= 1:
            raise FieldError(joined(path, "confidence"), FailureReason.OUT_OF_RANGE, f"{value} is not in 0..1")
        reading.confidences[key] = None if known is None else min(known, value)
