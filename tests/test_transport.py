"""Recorded payloads: envelope, bare body, `raw`; what cannot be brought is a failure that says why."""

import hashlib
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from adapters.transport import Payload, PayloadRequest, RecordedTransport
from aggregator.errors import Failure, FailureReason


def fetched(root: Path, data: bytes | str, request: str = "account") -> Payload | Failure:
    (root / "answer.json").write_bytes(data.encode() if isinstance(data, str) else data)
    return RecordedTransport(root).fetch("binance", PayloadRequest(request, "answer.json", "east"))


def brought(root: Path, data: bytes | str, request: str = "account") -> Payload:
    answer = fetched(root, data, request)
    assert isinstance(answer, Payload), answer
    return answer


def failed(root: Path, data: bytes | str, request: str = "account") -> Failure:
    answer = fetched(root, data, request)
    assert isinstance(answer, Failure), answer
    return answer


def test_an_envelope_gives_request_time_and_body(tmp_path: Path) -> None:
    envelope = {"request": "fapi/account", "received_at": "2024-06-25T14:00:02Z", "sha256": None, "body": {"a": [1]}}
    payload = brought(tmp_path, json.dumps(envelope), request="")
    assert payload.request == "fapi/account"
    assert payload.received_at == datetime(2024, 6, 25, 14, 0, 2, tzinfo=UTC)
    assert payload.body == {"a": [1]}
    assert payload.name == "answer.json"
    assert payload.account == "east"


def test_the_configuration_names_the_request_before_the_envelope_does(tmp_path: Path) -> None:
    assert brought(tmp_path, '{"request": "a", "body": []}', request="b").request == "b"


@pytest.mark.parametrize("body", ["[]", "{}", "null", "5", '"text"', '{"body": 1}', '{"request": "x"}'])
def test_any_other_document_is_a_bare_body(tmp_path: Path, body: str) -> None:
    payload = brought(tmp_path, body)
    assert payload.body == json.loads(body)
    assert payload.request == "account"
    assert payload.received_at is None


def test_a_body_under_raw_leaves_its_provenance_behind(tmp_path: Path) -> None:
    payload = brought(tmp_path, '{"raw": {"x": "1"}, "source": "somewhere", "received_at": "2024-06-25T14:00:02Z"}')
    assert payload.body == {"x": "1"}
    assert payload.received_at is None


def test_an_envelope_with_raw_inside_its_body_is_opened_once(tmp_path: Path) -> None:
    assert brought(tmp_path, '{"request": "a", "body": {"raw": 1}}').body == {"raw": 1}


def test_numbers_of_the_body_are_exact(tmp_path: Path) -> None:
    body = brought(tmp_path, '{"price": 0.1, "raw_amount": 340282366920938463463374607431768211456}').body
    assert body == {"price": Decimal("0.1"), "raw_amount": 2**128}


@pytest.mark.parametrize("data", [b'{"a":1}', b' {"a": 1}\n', '{"a": "ä"}'.encode()])
def test_the_hash_is_that_of_the_bytes_of_the_file(tmp_path: Path, data: bytes) -> None:
    assert brought(tmp_path, data).sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("received_at", ["null", "absent"])
def test_an_envelope_may_leave_the_receive_time_out(tmp_path: Path, received_at: str) -> None:
    extra = ', "received_at": null' if received_at == "null" else ""
    assert brought(tmp_path, '{"request": "a", "body": []' + extra + "}").received_at is None


def test_a_missing_file_is_unreachable_and_names_venue_file_and_account(tmp_path: Path) -> None:
    answer = RecordedTransport(tmp_path).fetch("binance", PayloadRequest("account", "deep/none.json", "east"))
    assert isinstance(answer, Failure)
    assert answer.reason is FailureReason.UNREACHABLE
    assert (answer.venue, answer.payload, answer.subject) == ("binance", "none.json", "east")
    assert "No such file" in answer.message
    assert str(tmp_path) not in answer.message


def test_a_folder_is_unreachable_and_the_request_is_the_subject_of_a_market_payload(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    answer = RecordedTransport(tmp_path).fetch("binance", PayloadRequest("exchangeInfo", "folder.json"))
    assert isinstance(answer, Failure)
    assert answer.reason is FailureReason.UNREACHABLE
    assert answer.subject == "exchangeInfo"


def test_an_absolute_location_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.json"
    file.write_text("[]")
    answer = RecordedTransport(tmp_path / "root").fetch("binance", PayloadRequest("a", str(file)))
    assert isinstance(answer, Payload)
    assert answer.name == "elsewhere.json"


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"request": "a", "body": {"x": 1', b"<html>", b"\xff\xfe", b'{"a": "\xe4"}']
)
def test_what_is_no_json_is_malformed(tmp_path: Path, data: bytes) -> None:
    failure = failed(tmp_path, data)
    assert failure.reason is FailureReason.MALFORMED
    assert (failure.venue, failure.payload, failure.subject) == ("binance", "answer.json", "east")


def test_every_truncation_of_an_envelope_is_a_failure(tmp_path: Path) -> None:
    text = '{"request": "a", "received_at": "2024-06-25T14:00:02Z", "body": {"x": [1.5, "ä"]}}'.encode()
    for length in range(len(text)):
        assert failed(tmp_path, text[:length]).reason is FailureReason.MALFORMED


@pytest.mark.parametrize(
    "document", ['{"x": 1}', '{"raw": []}', '{"request": null, "body": []}', '{"request": "", "body": []}']
)
def test_a_request_that_nobody_names_is_missing(tmp_path: Path, document: str) -> None:
    failure = failed(tmp_path, document, request="")
    assert failure.reason is FailureReason.MISSING_FIELD
    assert failure.path == "request"


@pytest.mark.parametrize("request_of_file", [5, {"method": "a"}, ["a"], True])
def test_a_request_that_is_no_text_is_malformed(tmp_path: Path, request_of_file: Any) -> None:
    failure = failed(tmp_path, json.dumps({"request": request_of_file, "body": []}), request="")
    assert failure.reason is FailureReason.MALFORMED
    assert failure.path == "request"


@pytest.mark.parametrize(
    ("received_at", "reason"),
    [
        ("noon", FailureReason.MALFORMED),
        ("2024-06-25T14:00:02", FailureReason.MALFORMED),
        (-5, FailureReason.OUT_OF_RANGE),
        (1.5, FailureReason.NOT_A_NUMBER),
        ([], FailureReason.NOT_A_NUMBER),
    ],
)
def test_a_wrong_receive_time_is_a_failure(tmp_path: Path, received_at: Any, reason: FailureReason) -> None:
    failure = failed(tmp_path, json.dumps({"request": "a", "received_at": received_at, "body": []}))
    assert failure.reason is reason
    assert failure.path == "received_at"


def test_a_receive_time_in_epoch_milliseconds_is_read(tmp_path: Path) -> None:
    payload = brought(tmp_path, '{"request": "a", "received_at": 1719324002000, "body": []}')
    assert payload.received_at == datetime(2024, 6, 25, 14, 0, 2, tzinfo=UTC)
