"""Every venue's sample payloads, and seeded ways to spoil them, for the suites that run over all venues.

A venue's `sample_<venue>.py` lists its own payloads: requests, files and owners. A mutation takes one place of one
payload's parsed body and puts something else there. It knows what the place held, so that a test can say what must not
come of it.
"""

from __future__ import annotations

import importlib
import random
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from adapters.adapter import Adapter, Context, adapter_names, find_adapter
from adapters.asset_book import AssetBook, read_asset_book
from adapters.transport import Payload, PayloadRequest, RecordedTransport

ROOT = Path(__file__).resolve().parent.parent
AS_OF = datetime(2024, 6, 30, tzinfo=UTC)
"""The instant of every sample."""

# Its rows are canonical tables already; `test_tables.py` spoils them cell by cell.
WITHOUT_SAMPLE = frozenset({"tables"})

Place = tuple[str | int, ...]
Effect = Literal["invalid", "absent", "number", "text", "flag", "shape", "copies", "fewer", "order", "lost"]
"""What a mutation does to its place.

invalid: a number became what no reader may take for one. absent: a value is gone, null, empty or under another key.
number: another number of the same type. text, flag: another text or flag. shape: a value, list or object of another
kind. copies, fewer, order: entries of a list. lost: the body as a whole.
"""


@dataclass(frozen=True)
class Sample:
    """A venue's own payloads with everything that its adapter needs to read them."""

    venue: str
    adapter: Adapter
    payloads: tuple[Payload, ...]
    context: Context


def venues() -> list[str]:
    """Every registered venue that has payloads."""
    return [name for name in adapter_names() if name not in WITHOUT_SAMPLE]


def has_sample(venue: str) -> bool:
    """Whether the venue's payloads are listed."""
    return (ROOT / "tests" / f"sample_{venue}.py").is_file()


@cache
def _assets() -> AssetBook:
    return read_asset_book(ROOT / "configs" / "assets.toml")


@cache
def sample(venue: str) -> Sample:
    """The sample of a venue, read from its files; a file that cannot be read is a mistake of the sample."""
    listed = importlib.import_module(f"tests.sample_{venue}")
    transport = RecordedTransport(ROOT / "tests" / "payloads" / venue)
    payloads = []
    for request, file, owner in listed.PAYLOADS:
        payload = transport.fetch(venue, PayloadRequest(request, file, owner))
        assert isinstance(payload, Payload), payload
        payloads.append(payload)
    parameters = tomllib.loads((ROOT / listed.PARAMETERS).read_text(encoding="utf-8")) if listed.PARAMETERS else {}
    return Sample(venue, find_adapter(venue), tuple(payloads), Context(_assets(), parameters))


# ---- mutations -------------------------------------------------------------------------------------------------------


class Mutation(NamedTuple):
    """One change of one payload: the payload's number, the place in its body, what was done and what stands there now.

    `numeric` says whether the place held a number, or a text that is one.
    """

    payload: int
    place: Place
    operation: str
    effect: Effect
    numeric: bool
    value: Any

    @property
    def field(self) -> str:
        """The innermost name on the way to the place."""
        return next((key for key in reversed(self.place) if isinstance(key, str)), "")

    def __str__(self) -> str:
        path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.place) or "."
        return f"payload {self.payload} at {path}: {self.operation} -> {ascii(self.value)[:60]}"


class _Gone:
    def __repr__(self) -> str:
        return "(gone)"


GONE = _Gone()
"""The value of a mutation that takes its place away."""

# What no reader of numbers may take for one: Python alone reads `1_000` and the digits of other scripts.
NO_NUMBERS: tuple[Any, ...] = (
    "abc",
    "1_000",
    "\u0661\u0662\u0663",
    "\u09e7\u09e8",
    "\uff11\uff12",
    "NaN",
    "-Infinity",
    "sNaN",
    "1,000.5",
    "1.2.3",
    "--5",
    "1e",
    "\ud800",
    "12\x0034",
    "<b>7</b>",
    "../../7",
    True,
    False,
    [],
    ["5"],
    {},
    {"value": "5"},
    Decimal("NaN"),
    Decimal("Infinity"),
    Decimal("-Infinity"),
    "1e99999999999999999999",
)
EXTREMES: tuple[str, ...] = (
    "1e30",
    "-1e30",
    "1e400",
    "1e-40",
    "-1e-40",
    "1e-9999999",
    "1e9999999",
    "-1",
    "0",
    "-0",
    "1",
    "0.000000000000000001",
    "99999999999999999999",
    "340282366920938463463374607431768211456",
    "9" * 90,
    "9" * 4200,
)
HOSTILE: tuple[str, ...] = (
    "\ud800",
    "BTC\udfff",
    "\u0000",
    "a\x1b[31mred\nline\r\t",
    "\u202eCTB",
    "x" * 20_000,
    "\u0411\u0422\u0421",
    "\u0661\u0662",
    "<script>alert(1)</script>",
    "../../../etc/passwd",
    "'; DROP TABLE positions; --",
    "a:b|c@d",
    "{}",
    "null",
    " ",
    "-",
    "0",
)
OTHER_KINDS: tuple[Any, ...] = (None, True, "", "text", [], [1, "a", None], {}, {"a": {"b": [1]}}, Decimal("NaN"))
WRAPPERS: tuple[Callable[[Any], Any], ...] = (
    lambda body: {"result": body},
    lambda body: {"data": body},
    lambda body: {"result": {"list": body}},
    lambda body: [body],
    lambda body: [body, body],
    lambda body: {"code": 0, "msg": "ok", "data": [body]},
    lambda body: next(iter(body.values())) if isinstance(body, dict) and body else body,
    lambda body: body[0] if isinstance(body, list) and body else body,
    lambda body: {"error": {"code": -1003, "message": "Too many requests"}},
    lambda body: {"retCode": 10002, "retMsg": "invalid request", "result": {}},
)

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def is_number(value: Any) -> bool:
    """Whether a value of a payload is a number or the text of one."""
    if isinstance(value, str):
        return value.isascii() and _NUMBER.fullmatch(value) is not None
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


class _Site(NamedTuple):
    payload: int
    place: Place
    value: Any


@cache
def _sites(venue: str) -> tuple[tuple[tuple[_Site, ...], ...], ...]:
    """For each payload its leaves, and its lists and objects, the body itself left out."""
    out = []
    for number, payload in enumerate(sample(venue).payloads):
        leaves: list[_Site] = []
        nodes: list[_Site] = []

        def walk(value: Any, place: Place, number: int = number, leaves: Any = leaves, nodes: Any = nodes) -> None:
            children: Any = ()
            if isinstance(value, dict):
                children = value.items()
            elif isinstance(value, list):
                children = enumerate(value)
            else:
                leaves.append(_Site(number, place, value))
            if place and isinstance(value, dict | list):
                nodes.append(_Site(number, place, value))
            for key, child in children:
                walk(child, (*place, key))

        walk(payload.body, ())
        out.append((tuple(leaves), tuple(nodes)))
    return tuple(out)


def mutations(venue: str, rng: random.Random) -> list[Mutation]:
    """One mutation of the venue's sample, or in one of six cases two, of two payloads."""
    count = len(sample(venue).payloads)
    chosen = rng.sample(range(count), 2 if count > 1 and rng.randrange(6) == 0 else 1)
    return [_mutation(venue, number, rng) for number in chosen]


def _mutation(venue: str, number: int, rng: random.Random) -> Mutation:
    leaves, nodes = _sites(venue)[number]
    body = sample(venue).payloads[number].body
    kind = rng.random()
    if kind < 0.06:
        return _of_body(number, body, rng)
    if kind < 0.26 and nodes:
        return _of_node(rng.choice(nodes), rng)
    if not leaves:
        return _of_body(number, body, rng)
    return _of_leaf(rng.choice(leaves), rng)


def _of_body(number: int, body: Any, rng: random.Random) -> Mutation:
    if rng.random() < 0.5:
        value: Any = rng.choice(
            ({}, [], None, "", 0, True, "<html>502 Bad Gateway</html>", Decimal("NaN"), [None], [[]])
        )
        # An empty list may be the venue's answer: nothing held, nothing ordered.
        return Mutation(number, (), "body", "fewer" if value == [] else "lost", False, value)
    place = rng.randrange(len(WRAPPERS))
    return Mutation(number, (), f"wrapper {place}", "lost", False, WRAPPERS[place](body))


def _of_leaf(site: _Site, rng: random.Random) -> Mutation:
    numeric = is_number(site.value)

    def made(operation: str, effect: Effect, value: Any) -> Mutation:
        return Mutation(site.payload, site.place, operation, effect, numeric, value)

    named = bool(site.place) and isinstance(site.place[-1], str)
    kind = rng.random()
    if kind < 0.2 and named:
        operation = rng.choice(("drop", "drop", "rename"))
        return made(operation, "absent", GONE)
    if kind < 0.28:
        return made("null", "absent", None)
    if kind < 0.32 and isinstance(site.value, str):
        return made("empty", "absent", "")
    if numeric and kind < 0.66:
        return made("no number", "invalid", rng.choice(NO_NUMBERS))
    if numeric:
        text = rng.choice(EXTREMES)
        return made("extreme", "number", text if isinstance(site.value, str) or len(text) > 4000 else _as_json(text))
    if isinstance(site.value, bool):
        value: Any = rng.choice((not site.value, not site.value, "true", "maybe", 0, 1, [], {}))
        return made("flag", "flag", value)
    if kind < 0.55:
        value = rng.choice(OTHER_KINDS)
        effect: Effect = "absent" if value in (None, "") else "text" if value == "text" else "shape"
        return made("kind", effect, value)
    return made("hostile", "text", rng.choice(HOSTILE))


def _as_json(text: str) -> int | Decimal:
    """The number as `parse_json` would give it."""
    try:
        return int(text)
    except ValueError:
        try:
            return Decimal(text)
        except InvalidOperation:  # pragma: no cover - such an exponent does not get through `parse_json`
            return Decimal("Infinity")


def _of_node(site: _Site, rng: random.Random) -> Mutation:
    def made(operation: str, effect: Effect, value: Any) -> Mutation:
        return Mutation(site.payload, site.place, operation, effect, False, value)

    kind = rng.random()
    if kind < 0.15 and isinstance(site.place[-1], str):
        return made(rng.choice(("drop", "rename")), "absent", GONE)
    if kind < 0.35:
        value = rng.choice(OTHER_KINDS)
        # An empty list or object of the same kind holds fewer entries, which may be so.
        emptied = value is None or (value in ([], {}) and isinstance(value, type(site.value)))
        return made("kind", "fewer" if emptied else "shape", value)
    if isinstance(site.value, dict):
        if not site.value:
            return made("kind", "shape", rng.choice(OTHER_KINDS))
        if kind < 0.5:
            return made("in a list", "shape", [site.value])
        if kind < 0.7:
            # Of an object that lists things by name that may be so; a record's field is dropped elsewhere.
            return made("without its first", "fewer", dict(list(site.value.items())[1:]))
        return made("wrapped", "shape", {"value": site.value})
    entries = list(site.value)
    if not entries:
        return made("filled", "shape", [rng.choice(OTHER_KINDS)])
    place = rng.randrange(len(entries))
    if kind < 0.55:
        return made("twice", "copies", [*entries[: place + 1], entries[place], *entries[place + 1 :]])
    if kind < 0.7:
        return made("cut", "fewer", entries[:place])
    if kind < 0.85 and len(entries) > 1 and isinstance(entries[0], dict):  # else the order is the meaning
        shuffled = list(entries)
        rng.shuffle(shuffled)
        return made("shuffled", "order", shuffled)
    if kind < 0.93:
        return made("one spoilt", "shape", [*entries[:place], rng.choice(OTHER_KINDS), *entries[place + 1 :]])
    return made("as an object", "shape", {str(number): entry for number, entry in enumerate(entries)})


def spoilt(payloads: Sequence[Payload], changes: Sequence[Mutation]) -> list[Payload]:
    """The payloads with the changes made; what a change does not touch is shared with the originals."""
    out = list(payloads)
    for change in changes:
        body = _with(out[change.payload].body, change.place, change)
        out[change.payload] = replace(out[change.payload], body=body)
    return out


def _with(node: Any, place: Place, change: Mutation) -> Any:
    if not place:
        return change.value
    key, rest = place[0], place[1:]
    if isinstance(node, dict):
        out = dict(node)
        if not rest and change.value is GONE:
            kept = out.pop(key)
            if change.operation == "rename":
                out[f"{key}_"] = kept
        else:
            out[key] = _with(out[key], rest, change)
        return out
    entries = list(node)
    assert isinstance(key, int)
    entries[key] = _with(entries[key], rest, change)
    return entries


def value_at(body: Any, place: Place) -> Any:
    """What stands at a place of a body."""
    for key in place:
        body = body[key]
    return body
