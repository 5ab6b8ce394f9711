"""The accounts of a whole book: sorted, with the rules and the kind of each, and why some are not covered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .column_codes import Codes, distinct, encoded, order_by, places, repeated, whole
from .covered_rules import CoveredRules, NotCoveredError, covered_rule_sets
from .errors import ConfigurationError

Found = TypeVar("Found")


class Kind(NamedTuple):
    """What accounts with the same rules share; `rules` is None where the rule set is not covered."""

    venue: str
    rule_set: str
    unit: str
    emode: str
    rules: CoveredRules | None


class Owned(NamedTuple):
    """Rows of accounts in the order of their keys: account, code of the subject (asset or instrument), and the row of
    the table.
    """

    account: np.ndarray
    subject: np.ndarray
    row: np.ndarray


def _checked_map(portfolios: pa.Table) -> pa.Table:
    """The map of accounts to portfolios as texts; `ConfigurationError` for a column or an id that is not there."""
    columns = {}
    for name in ("portfolio_id", "account_id"):
        if name not in portfolios.column_names:
            raise ConfigurationError(f"the map of portfolios has no column {name}; found {portfolios.column_names}")
        given = portfolios[name]
        kind = given.type.value_type if pa.types.is_dictionary(given.type) else given.type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise ConfigurationError(f"the map of portfolios: {name} is {given.type}; expected texts")
        columns[name] = given.cast(pa.string())
        if columns[name].null_count or pc.any(pc.equal(columns[name], "")).as_py():
            raise ConfigurationError(f"the map of portfolios: {name} is missing in some row")
    return pa.table(columns)


def _repeats(place: np.ndarray, ids: pa.ChunkedArray) -> bool:
    """Whether an id stands twice, given where each lies among ids of another table (-1: nowhere)."""
    unknown = ids.filter(pa.array(place < 0))
    return bool(np.bincount(place[place >= 0]).max(initial=0) > 1) or pc.count_distinct(unknown).as_py() < len(unknown)


class BookAccounts:
    """The accounts by portfolio, node and id, and the reasons of those that are not covered, by number."""

    def __init__(self, accounts: pa.Table, portfolios: pa.Table, rule_sets: pa.Table) -> None:
        portfolios = _checked_map(portfolios)
        owner = places(accounts["account_id"], portfolios["account_id"])
        place = places(portfolios["account_id"], accounts["account_id"])
        if _repeats(place, portfolios["account_id"]):
            raise ConfigurationError("an account is in two portfolios")
        if (owner < 0).any():
            example = accounts["account_id"][int(np.flatnonzero(owner < 0)[0])].as_py()
            raise ConfigurationError(f"{int((owner < 0).sum())} accounts are in no portfolio, {example!r} among them")
        if np.bincount(owner).max(initial=0) > 1:
            raise ConfigurationError("accounts: an account_id stands twice; check the tables with a snapshot")
        self.unread = portfolios.filter(pa.array(place < 0))
        portfolio_id = whole(portfolios["portfolio_id"]).take(pa.array(owner))
        named = accounts.select(["node", "account_id"]).append_column("portfolio_id", portfolio_id)
        order = pc.sort_indices(named, sort_keys=[(n, "ascending") for n in ("portfolio_id", "node", "account_id")])
        names = ("account_id", "node", "venue", "rule_set", "settlement_asset", "emode")
        accounts = accounts.select(names).take(order)
        self.ids = whole(accounts["account_id"])
        self.portfolio = encoded(portfolio_id.take(order))
        self.node, self.venue = encoded(accounts["node"]), encoded(accounts["venue"])
        rule_set, unit = encoded(accounts["rule_set"]), encoded(accounts["settlement_asset"])
        emode = encoded(accounts["emode"].fill_null(""))
        self.reasons: dict[int, str] = {}
        found = covered_rule_sets(rule_sets)
        rules_of = [found.get(name, f"rule set {name!r} is not known") for name in rule_set.texts]
        for code, rules in enumerate(rules_of):
            if isinstance(rules, str):
                self.drop(np.flatnonzero(rule_set.code == code), rules)
        kinds = distinct(self.venue.code, rule_set.code, unit.code, emode.code)
        self.kind = kinds.number
        self.kinds: list[Kind] = []
        for at in kinds.example.tolist():
            rules = rules_of[rule_set.code[at]]
            self.kinds.append(
                Kind(
                    venue=self.venue.texts[self.venue.code[at]],
                    rule_set=rule_set.texts[rule_set.code[at]],
                    unit=unit.texts[unit.code[at]],
                    emode=emode.texts[emode.code[at]],
                    rules=None if isinstance(rules, str) else rules,
                )
            )

    def __len__(self) -> int:
        return len(self.ids)

    def drop(self, accounts: np.ndarray, reason: str) -> None:
        """These accounts are not covered; the first reason stays."""
        for account in np.unique(accounts).tolist():
            self.reasons.setdefault(account, reason)

    def drop_ids(self, ids: pa.Array, reason: str) -> None:
        """The accounts of these ids are not covered."""
        if len(ids):
            self.drop(np.flatnonzero(places(self.ids, ids) >= 0), reason)

    def of_rules(self, read: Callable[[CoveredRules], Any], dtype: Any) -> np.ndarray:
        """A figure of every account's rule set [accounts]; 0 where it is not covered."""
        return np.array([read(k.rules) if k.rules is not None else 0 for k in self.kinds], dtype)[self.kind]

    def each(
        self, account: np.ndarray, subject: np.ndarray, read: Callable[[Kind, int], Found]
    ) -> tuple[list[Found | None], np.ndarray]:
        """(`read` of every distinct pair of a kind and a subject's code, which of them a row has).

        Rows whose pair cannot be read have their account dropped and point at a None.
        """
        kind = self.kind[account]
        pairs = distinct(kind, subject)
        found: list[Found | None] = []
        for number, at in enumerate(pairs.example.tolist()):
            try:
                found.append(read(self.kinds[kind[at]], int(subject[at])))
            except NotCoveredError as problem:
                found.append(None)
                self.drop(account[pairs.number == number], str(problem))
        return found, pairs.number

    def owned(self, table: pa.Table, subject: Codes, side: str) -> Owned:
        """The rows of a table by account, subject and side; accounts with a key twice are dropped."""
        account = places(table["account_id"], self.ids)
        if (account < 0).any():
            raise ConfigurationError("rows of an account that is not in the table accounts; check with a snapshot")
        keys = (account, subject.code, encoded(table[side]).code)
        order = order_by(*keys)
        self.drop(account[repeated(order, *keys)], "a row twice")
        return Owned(account[order], subject.code[order], order)

    def lost_portfolios(self) -> np.ndarray:
        """Whether each portfolio [portfolios] has an account that is not covered or was not read."""
        lost = np.zeros(len(self.portfolio.texts), bool)
        lost[self.portfolio.code[np.array(list(self.reasons), np.int64)]] = True
        if self.unread.num_rows:
            of_unread = places(self.unread["portfolio_id"], pa.array(self.portfolio.texts, pa.string()))
            lost[of_unread[of_unread >= 0]] = True
        return lost

    def refused(self) -> list[tuple[str, str, str]]:
        """(portfolio, account, reason) of whatever is not covered, sorted."""
        rows = [
            (self.portfolio.texts[self.portfolio.code[a]], self.ids[a].as_py(), reason)
            for a, reason in self.reasons.items()
        ]
        unread: list[Mapping[str, str]] = self.unread.to_pylist()
        return sorted(rows + [(r["portfolio_id"], r["account_id"], "no account of this id") for r in unread])
