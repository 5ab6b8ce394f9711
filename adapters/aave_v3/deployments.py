"""The markets that the parameter file describes, and which of them a payload comes from.

One market stands at the top of the file (`chain`, `market`, `rules`, `[symbols]`), more under `[markets.<name>]`
(`chain`, `rules`, `addresses`, `symbols`), or all of them there with `default_market`. A payload belongs to the market
that its request names (`getReservesData:ethereum-prime`), else to the one whose address its body states (`provider` or
`pool`), else to the default: the market at the top, `default_market`, or the only one.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from aggregator.errors import ConfigurationError, FailureReason, nearest_name

from ..amounts import FieldError, time_of
from ..transport import Payload
from .mechanics import GENERATIONS, Generation

VENUE = "aave_v3"

_TOP = ("chain", "market", "rules")
_MARKET_KEYS = ("chain", "rules", "addresses", "symbols", "as_of", "source")
_STATED_ADDRESSES = ("provider", "addressesProvider", "poolAddressesProvider", "pool")


class Deployment(NamedTuple):
    """One market: where it is, which release it runs, and where the statement comes from."""

    chain: str
    market: str
    generation: Generation
    symbols: Mapping[str, str]
    """Underlying address in lower case -> the symbol to use in place of the token's own."""
    source: str
    as_of: datetime | None
    addresses: frozenset[str] = frozenset()
    """In lower case: the market's addresses provider and pool, as payloads may state them."""
    is_top: bool = True
    """Whether it stands at the top of the file: its reserves go by asset id alone in `market_state`."""

    def state_name(self, asset_id: str) -> str:
        """`market` of a reserve's rows in `market_state`: `WETH@ethereum`, or `ethereum-prime:WETH@ethereum`."""
        return asset_id if self.is_top else f"{self.market}:{asset_id}"


class Deployments(NamedTuple):
    """All markets by name, and the one of payloads that name none."""

    markets: Mapping[str, Deployment]
    default: str | None

    def of(self, payload: Payload) -> Deployment:
        """The market of a payload; raises `FieldError`: unknown_market for a name or an address that is in no market
        and where there is no default, inconsistent where name and address contradict each other.
        """
        name = payload.request.partition(":")[2].strip()
        if name and name not in self.markets:
            hint = nearest_name(name, self.markets)
            message = f"no market {name[:60]!r} in the parameter file{hint}"
            raise FieldError("request", FailureReason.UNKNOWN_MARKET, message)
        stated = _stated_address(payload.body)
        by_address = [d for d in self.markets.values() if stated is not None and stated[1] in d.addresses]
        if not by_address:
            chosen = self.markets.get(name or self.default or "")
            if stated is not None and chosen is not None and chosen.addresses:
                message = f"{stated[1]} is no address of the market {chosen.market}"
                reason = FailureReason.INCONSISTENT if name else FailureReason.UNKNOWN_MARKET
                raise FieldError(stated[0], reason, message)
            if chosen is None:
                message = f"names none of the markets {', '.join(self.markets)}"
                raise FieldError("request", FailureReason.UNKNOWN_MARKET, message)
            return chosen
        if name and self.markets[name] not in by_address:
            message = f"the request says {name}, the address {stated[1] if stated else ''} {by_address[0].market}"
            raise FieldError("request", FailureReason.INCONSISTENT, message)
        return self.markets[name] if name else by_address[0]


def _stated_address(body: Any) -> tuple[str, str] | None:
    """(field, address in lower case) of the market that a body states, or None."""
    if isinstance(body, Mapping):
        for key in _STATED_ADDRESSES:
            value = body.get(key)
            if isinstance(value, str) and value.lower().startswith("0x"):
                return key, value.lower()
    return None


def deployments_of(parameters: Mapping[str, Any]) -> Deployments:
    """The markets of a parameter file; raises `ConfigurationError` for a missing, unknown or contradictory entry."""
    table = parameters.get("markets", {})
    if not isinstance(table, Mapping):
        raise ConfigurationError("parameters of aave_v3: 'markets' must be tables [markets.<name>]")
    found: dict[str, Deployment] = {}
    top = None
    if not table or any(parameters.get(key) is not None for key in _TOP):
        for key in _TOP:
            if not isinstance(parameters.get(key), str) or not parameters[key]:
                raise ConfigurationError(f"parameters of aave_v3: {key!r} is missing or no text")
        top = parameters["market"]
        found[top] = _deployment(parameters, top, parameters, "parameters of aave_v3", is_top=True)
    for name, entry in table.items():
        where = f"parameters of aave_v3: market {name!r}"
        if name in found:
            raise ConfigurationError(f"{where} stands twice")
        if not isinstance(entry, Mapping):
            raise ConfigurationError(f"{where} is no table")
        for key in entry:
            if key not in _MARKET_KEYS:
                raise ConfigurationError(f"{where}: unknown key {key!r}{nearest_name(key, _MARKET_KEYS)}")
        for key in ("chain", "rules"):
            if not isinstance(entry.get(key), str) or not entry[key]:
                raise ConfigurationError(f"{where}: {key!r} is missing or no text")
        found[name] = _deployment(entry, name, parameters, where, is_top=False)
    owners: dict[str, str] = {}
    for deployment in found.values():
        for address in deployment.addresses:
            other = owners.setdefault(address, deployment.market)
            if other != deployment.market:
                raise ConfigurationError(
                    f"parameters of aave_v3: {address} is claimed by {other} and {deployment.market}"
                )
    return Deployments(found, _default(parameters, found, top))


def _default(parameters: Mapping[str, Any], found: Mapping[str, Deployment], top: str | None) -> str | None:
    stated = parameters.get("default_market")
    if stated is None:
        return top or (next(iter(found)) if len(found) == 1 else None)
    if stated not in found:
        hint = nearest_name(str(stated), found)
        raise ConfigurationError(f"parameters of aave_v3: default_market {stated!r} is none of its markets{hint}")
    return str(stated)


def _deployment(
    entry: Mapping[str, Any], name: str, parameters: Mapping[str, Any], where: str, *, is_top: bool
) -> Deployment:
    rules = entry["rules"]
    if rules not in GENERATIONS:
        hint = nearest_name(rules, GENERATIONS)
        raise ConfigurationError(f"{where}: unknown rules {rules!r}{hint}; known: {', '.join(GENERATIONS)}")
    addresses = entry.get("addresses", [])
    if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
        raise ConfigurationError(f"{where}: 'addresses' must be a list of texts")
    as_of = entry.get("as_of", parameters.get("as_of"))
    try:
        moment = as_of if as_of is None or isinstance(as_of, datetime) else time_of(as_of, "as_of")
    except FieldError as error:
        raise ConfigurationError(f"{where}: as_of: {error.message}") from None
    return Deployment(
        chain=entry["chain"],
        market=name,
        generation=GENERATIONS[rules],
        # What is written for one market goes before what is written for all.
        symbols=_symbols(parameters, "parameters of aave_v3") | _symbols(entry, where),
        source=str(entry.get("source", parameters.get("source", ""))),
        as_of=moment,
        addresses=frozenset(address.lower() for address in addresses),
        is_top=is_top,
    )


def _symbols(entry: Mapping[str, Any], where: str) -> dict[str, str]:
    symbols = entry.get("symbols", {})
    if not isinstance(symbols, Mapping) or not all(isinstance(symbol, str) for symbol in symbols.values()):
        raise ConfigurationError(f"{where}: 'symbols' must map addresses to symbols")
    return {address.lower(): symbol for address, symbol in symbols.items()}
