"""The asset book: which factor moves a token, read from one TOML file that a person keeps."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

from aggregator.errors import ConfigurationError, nearest_name

_PREFIX = re.compile(r"(1000000|1M|10000|1000|k)([A-Z][A-Z0-9]*)")
_PREFIX_SCALE = {"k": 1000, "1M": 1_000_000}
_WRAPPED_KEYS = ("of", "issuer", "peg")
_YIELD_KEYS = ("of", "issuer", "index", "as_of", "source")
_SECTIONS = ("factors", "stables", "wrapped", "yield_bearing", "spellings")


LARGEST_INDEX = 10
"""Dollars that one unit of a yield-bearing dollar may have grown to; more is a slip of the pen."""


@dataclass(frozen=True)
class Earnings:
    """That a dollar earns in its own price, and the index that it was at on a day; without one only a price will do."""

    index: Decimal | None
    as_of: date | None
    source: str


class Asset(NamedTuple):
    """What moves a token: units of a risk factor's asset (dollars without one), a peg factor, an issuer group."""

    symbol: str
    risk_factor: str | None
    multiplier: Decimal
    peg_of: str | None
    issuer: str | None
    earnings: Earnings | None = None


@dataclass(frozen=True)
class AssetBook:
    """The known assets by symbol; a symbol that is not listed is unknown, never guessed."""

    assets: Mapping[str, Asset]

    def resolve(self, symbol: str) -> Asset | None:
        """The asset of a venue's token or underlying symbol, or None if unknown.

        A contract prefix (`1000X`, `10000X`, `1000000X`, `1MX`, `kX`) becomes a multiplier of the asset X, if a price
        factor moves it: nobody writes contracts on thousands of a stable.
        """
        if symbol in self.assets:
            return self.assets[symbol]
        match = _PREFIX.fullmatch(symbol)
        if match is None or match[2] not in self.assets:
            return None
        base = self.assets[match[2]]
        if base.risk_factor is None:
            return None
        scale = _PREFIX_SCALE.get(match[1]) or int(match[1])
        return base._replace(symbol=symbol, multiplier=base.multiplier * scale)


def read_asset_book(path: Path) -> AssetBook:
    """The asset book in a TOML file with `factors`, `[stables]`, `[wrapped]`, `[yield_bearing]` and `[spellings]`.

    Raises `ConfigurationError` for an unreadable file, an unknown key, a symbol listed twice, a wrapped token of an
    unknown factor, a yield-bearing one of an unknown stable, another spelling of an unknown token, and for entries of
    another shape.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the asset book {path.name!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"asset book {path.name}: {error}") from None
    for key in document:
        if key not in _SECTIONS:
            raise ConfigurationError(f"asset book {path.name}: unknown key {key!r}{nearest_name(key, _SECTIONS)}")
    if not (
        _texts(document.get("factors", []), list)
        and _texts(document.get("stables", {}), dict)
        and isinstance(document.get("wrapped", {}), dict)
        and isinstance(document.get("yield_bearing", {}), dict)
        and _texts(document.get("spellings", {}), dict)
    ):
        raise ConfigurationError(
            f"asset book {path.name}: expected `factors` as a list of symbols, `[stables]` as symbol = issuer, "
            "`[wrapped]` as symbol = {of, issuer, peg}, `[yield_bearing]` as symbol = {of, issuer, index, as_of, "
            "source}, and `[spellings]` as symbol = listed symbol"
        )
    entries = [Asset(symbol, symbol, Decimal(1), None, None) for symbol in document.get("factors", [])]
    entries += [Asset(s, None, Decimal(1), s, issuer) for s, issuer in document.get("stables", {}).items()]
    factors = {entry.symbol for entry in entries if entry.risk_factor}
    for symbol, wrapped in document.get("wrapped", {}).items():
        if not isinstance(wrapped, dict) or not _texts({k: v for k, v in wrapped.items() if k != "peg"}, dict):
            raise ConfigurationError(f"asset book {path.name}: wrapped token {symbol!r} is no {{of, issuer, peg}}")
        for key in wrapped:
            if key not in _WRAPPED_KEYS:
                hint = nearest_name(key, _WRAPPED_KEYS)
                raise ConfigurationError(f"asset book {path.name}: wrapped token {symbol!r}: unknown key {key!r}{hint}")
        if wrapped.get("of") not in factors:
            raise ConfigurationError(f"asset book {path.name}: wrapped token {symbol!r} needs `of` a listed factor")
        peg = symbol if wrapped.get("peg") else None
        entries.append(Asset(symbol, wrapped["of"], Decimal(1), peg, wrapped.get("issuer")))
    stables = document.get("stables", {})
    for symbol, earning in document.get("yield_bearing", {}).items():
        entries.append(_yield_bearing(f"asset book {path.name}: yield-bearing {symbol!r}", symbol, earning, stables))
    listed = {entry.symbol: entry for entry in entries}
    for symbol, same in document.get("spellings", {}).items():
        if same not in listed:
            hint = nearest_name(same, listed)
            raise ConfigurationError(f"asset book {path.name}: {symbol!r} spells {same!r}, which is not listed{hint}")
        entries.append(listed[same]._replace(symbol=symbol))
    book: dict[str, Asset] = {}
    for entry in entries:
        if entry.symbol in book:
            raise ConfigurationError(f"asset book {path.name}: {entry.symbol!r} is listed twice")
        book[entry.symbol] = entry
    return AssetBook(book)


def _yield_bearing(place: str, symbol: str, entry: Any, stables: Mapping[str, str]) -> Asset:
    """A dollar that earns in its own price: `index` dollars per unit where nobody states a price of today; without an
    index such a price is needed.
    """
    if not isinstance(entry, dict) or not _texts(entry, dict):
        raise ConfigurationError(f"{place} is no {{of, issuer, index, as_of, source}}")
    for key in entry:
        if key not in _YIELD_KEYS:
            raise ConfigurationError(f"{place}: unknown key {key!r}{nearest_name(key, _YIELD_KEYS)}")
    if "of" in entry and entry["of"] not in stables:
        raise ConfigurationError(f"{place} needs `of` a listed stable")
    earnings = Earnings(None, None, "")
    if any(key in entry for key in ("index", "as_of", "source")):
        earnings = _index(place, entry)
    return Asset(symbol, None, earnings.index or Decimal(1), entry.get("of", symbol), entry.get("issuer"), earnings)


def _index(place: str, entry: Mapping[str, str]) -> Earnings:
    """The index of a yield-bearing dollar, which is nothing without its day and its source."""
    for key in ("index", "as_of", "source"):
        if not entry.get(key):
            raise ConfigurationError(f"{place} needs `{key}`")
    try:
        index = Decimal(entry["index"])
    except InvalidOperation:
        index = Decimal(0)
    if not index.is_finite() or not 1 < index <= LARGEST_INDEX:
        raise ConfigurationError(f"{place}: index {entry['index']!r} is no number above 1 and up to {LARGEST_INDEX}")
    try:
        as_of = date.fromisoformat(entry["as_of"])
    except ValueError:
        raise ConfigurationError(f"{place}: as_of {entry['as_of']!r} is no date like 2026-01-31") from None
    return Earnings(index, as_of, entry["source"])


def _texts(value: Any, kind: type[list[Any]] | type[dict[str, Any]]) -> bool:
    """Whether `value` is a list of texts, or a mapping to texts."""
    if not isinstance(value, kind):
        return False
    return all(isinstance(entry, str) for entry in (value.values() if isinstance(value, dict) else value))
