"""What the venues' tests ask of normalized payloads: rows of a table, forms of a rule set, failures of an account."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from adapters.adapter import Normalized
from aggregator.errors import Failure
from aggregator.rule_forms import parse_parameters
from aggregator.schema.canonical import CANONICAL, KEYS


def rows_of(result: Normalized, table: str, **where: Any) -> list[dict[str, Any]]:
    """The rows of `table` whose columns are those of `where`, in their order."""
    return [row for row in result.batches[table].to_pylist() if all(row[key] == value for key, value in where.items())]


def only(result: Normalized, table: str, **where: Any) -> dict[str, Any]:
    """The one row of `table` whose columns are those of `where`; none or several are an error of the test."""
    found = rows_of(result, table, **where)
    assert len(found) == 1, (table, where, found)
    return found[0]


def failures_of(result: Normalized, account: str | None) -> list[Failure]:
    """The failures of an account; of None those that concern no single account."""
    return [failure for failure in result.failures if failure.account_id == account]


def incomplete(result: Normalized) -> set[str | None]:
    """Whom the failures name; None stands for a failure of no single account."""
    return {failure.account_id for failure in result.failures}


def forms_of(result: Normalized, account: str, kind: type[Any] = object) -> list[Any]:
    """The rule forms of `kind` in the account's rule set."""
    rule_set = only(result, "accounts", account_id=account)["rule_set"]
    return [form for _, form in components_of(result, rule_set) if isinstance(form, kind)]


def components_of(result: Normalized, rule_set: str) -> list[tuple[str, Any]]:
    """Side and form of every component of a rule set, by their number."""
    rows = sorted(rows_of(result, "rule_sets", rule_set=rule_set), key=lambda row: row["component_no"])
    return [(row["side"], parse_parameters(row["form"], row["parameters"])) for row in rows]


def check_canonical(result: Normalized) -> None:
    """Every canonical table but the failures is there, in its schema to the last mark, and no key stands twice."""
    assert set(result.batches) == set(CANONICAL) - {"failures"}
    for name, table in result.batches.items():
        assert table.schema.equals(CANONICAL[name], check_metadata=True), name
        keys = [tuple(row[key] for key in KEYS[name]) for row in table.to_pylist()]
        assert len(keys) == len(set(keys)), name


def tables_as_json(result: Normalized) -> dict[str, list[dict[str, Any]]]:
    """The tables that have rows as JSON values: decimals as plain text, times in UTC, without nulls."""

    def plain(value: Any) -> Any:
        if isinstance(value, Decimal):
            return format(value.normalize(), "f") if value else "0"
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if isinstance(value, datetime) else value

    tables = {
        name: [{key: plain(value) for key, value in row.items() if value is not None} for row in table.to_pylist()]
        for name, table in result.batches.items()
        if table.num_rows
    }
    for row in tables.get("rule_sets", ()):
        # What a form leaves at its default is not the adapter's word.
        form = parse_parameters(row["form"], row["parameters"])
        row["parameters"] = form.model_dump(mode="json", exclude_defaults=True)
    return tables
