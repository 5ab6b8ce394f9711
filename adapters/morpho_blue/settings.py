"""What the parameter file of Morpho Blue says: chains, names of markets, tokens behind addresses."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from aggregator.errors import ConfigurationError, FailureReason

from ..adapter import parameter_table
from ..amounts import FieldError, time_of
from .snapshots import VENUE, Snapshot


class Token(NamedTuple):
    """Symbol in the asset book and decimals; what is not said is None."""

    symbol: str | None
    decimals: int | None


class Settings(NamedTuple):
    """The parameter file. Ids and addresses are in lower case."""

    chain: str
    chains: Mapping[str, str]
    names: Mapping[str, str]
    """market id -> its name"""
    tokens: Mapping[tuple[str, str], Token]
    """(chain, address) -> token"""
    source: str
    as_of: datetime | None

    def chain_of(self, snapshot: Snapshot) -> str:
        """Name of the chain that a snapshot states by name or id, else the default one.

        Raises `PlacedError` for one that the parameter file does not have.
        """
        if not snapshot.has("chain"):
            return self.chain
        stated = snapshot.read(lambda value, _: str(value), "chain")
        if stated in self.chains:
            return self.chains[stated]
        if stated == self.chain or stated in self.chains.values():
            return stated
        message = f"chain {stated[:40]!r} is not in [chains] of the parameter file"
        raise snapshot.error("chain", FailureReason.UNSUPPORTED, message)

    def label(self, chain: str, market_id: str) -> str:
        """The market's name, else its id; with the chain where it is not the default one."""
        name = self.names.get(market_id, market_id)
        return name if chain == self.chain else f"{chain}:{name}"

    def market_id(self, named: str) -> str:
        """The id behind a name of the file; an id as it is."""
        return next((key for key, name in self.names.items() if name == named), named.lower())


def settings_of(parameters: Mapping[str, Any]) -> Settings:
    """The parameter file; raises `ConfigurationError` for a missing or unusable entry."""

    def wrong(what: str) -> ConfigurationError:
        return ConfigurationError(f"{VENUE} parameters: {what}")

    chain = parameters.get("chain")
    if not isinstance(chain, str) or not chain:
        raise wrong("'chain' is missing or no text")
    as_of = parameters.get("as_of")
    try:
        moment = as_of if as_of is None or isinstance(as_of, datetime) else time_of(as_of, "as_of")
    except FieldError as error:
        raise wrong(f"as_of: {error.message}") from None
    chains, markets = (parameter_table(parameters, key, venue=VENUE) for key in ("chains", "markets"))
    if not all(isinstance(entry, str) for table in (chains, markets) for entry in table.values()):
        raise wrong("[chains] must map ids to names, and [markets] names to ids")
    names = {market_id.lower(): name for name, market_id in markets.items()}
    if len(names) < len(markets):
        raise wrong("[markets] names one id twice")
    tokens: dict[tuple[str, str], Token] = {}
    listed = parameter_table(parameters, "tokens", venue=VENUE)
    for on in listed:
        for address, entry in parameter_table(listed, on, venue=VENUE).items():
            symbol, digits = (
                (entry.get("symbol"), entry.get("decimals")) if isinstance(entry, Mapping) else (None, None)
            )
            if not isinstance(symbol, str) or isinstance(digits, bool) or not isinstance(digits, int | None):
                raise wrong(f"[tokens.{on}] {address}: expected {{ symbol, decimals }}")
            tokens[on, address.lower()] = Token(symbol, digits)
    return Settings(chain, dict(chains), names, tokens, str(parameters.get("source", "")), moment)
