"""Canonical Arrow tables: one schema per table, with name and version in the metadata and the unit of every field.

Conventions of every table: ids are strings; times `timestamp[us, UTC]`; exact quantities and money at the edge are
`decimal128(38, 18)`, measured values `float64`; long positive; balances carry a side instead of a sign; rates are
fractions (0.02 is 2 %). `cast_table` is the one door: what passed it may be trusted to have these types.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from .errors import DataError, Failure, FailureReason, nearest_name

DECIMAL = pa.decimal128(38, 18)
TIME = pa.timestamp("us", tz="UTC")
# Arrow casts and sums decimals without noticing an overflow; beyond this bound decimal128(38, 18) is garbage.
DECIMAL_BOUND = Decimal(10) ** 20

MARK_FIELDS = (
    "mark",
    "index",
    "oracle",
    "oracle_twap",
    "stable_price",
    "price_min",
    "price_max",
    "bid",
    "ask",
    "forward",
    "rate",
    "implied_vol",
    "delta",
    "funding_rate",
    "borrow_rate",
    "spread",
    "adv",
    "depth_bid",
    "depth_ask",
)
"""Closed list of mark fields. Prices per unit of the subject in the mark's own quote; vols and rates as fractions.

`funding_rate` is for the venue's own interval, `borrow_rate` what a debt of the asset costs a year, not compounded.
"""


def _field(name: str, kind: pa.DataType, unit: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"unit": unit})


def _information(field: pa.Field) -> pa.Field:
    """The field marked as one that people and other programs may read and that no figure of a run looks at."""
    return field.with_metadata({**field.metadata, "use": "information"})


def _text(name: str, unit: str = "id", *, nullable: bool = False) -> pa.Field:
    return _field(name, pa.string(), unit, nullable=nullable)


def _decimal(name: str, unit: str, *, nullable: bool = False) -> pa.Field:
    return _field(name, DECIMAL, unit, nullable=nullable)


def _float(name: str, unit: str, *, nullable: bool = False) -> pa.Field:
    return _field(name, pa.float64(), unit, nullable=nullable)


def _time(name: str, *, nullable: bool = False) -> pa.Field:
    return _field(name, TIME, "UTC time", nullable=nullable)


def _flag(name: str, *, nullable: bool = False) -> pa.Field:
    return _field(name, pa.bool_(), "flag", nullable=nullable)


def _schema(name: str, version: int, fields: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema(list(fields), metadata={"crossmargin.table": name, "crossmargin.version": str(version)})


ACCOUNTS = _schema(
    "accounts",
    1,
    [
        _text("account_id"),
        _information(_text("parent_account_id", nullable=True)),
        _text("node"),
        _text("venue"),
        _text("chain", nullable=True),
        _text("owner"),
        _text("margin_mode", "cross | isolated | portfolio | lending"),
        _text("rule_set"),
        _text("settlement_asset", "asset whose unit the venue's own numbers carry; USD for a plain dollar base"),
        _text("emode", "lending category", nullable=True),
        _information(_flag("multi_assets_mode", nullable=True)),
        _time("event_at", nullable=True),
        _time("received_at", nullable=True),
        _decimal("reported_equity", "settlement asset", nullable=True),
        _decimal("reported_initial_margin", "settlement asset", nullable=True),
        _decimal("reported_maintenance_margin", "settlement asset", nullable=True),
        _decimal("reported_health", "ratio as the venue defines it", nullable=True),
    ],
)

BALANCES = _schema(
    "balances",
    1,
    [
        _text("account_id"),
        _text("asset_id"),
        _text("side", "asset | liability"),
        _decimal("quantity", "tokens, positive"),
        _decimal("accrued_interest", "tokens not yet in quantity", nullable=True),
        _flag("collateral_enabled"),
        _decimal("locked", "tokens not withdrawable", nullable=True),
    ],
)

POSITIONS = _schema(
    "positions",
    1,
    [
        _text("account_id"),
        _text("instrument_id"),
        _text("side_mode", "net | long | short"),
        _decimal("quantity", "contracts, signed, long positive"),
        _decimal("entry_price", "quote per unit", nullable=True),
        _decimal("unsettled_funding", "settlement asset, positive when owed to the account", nullable=True),
        _decimal("realized_pnl", "settlement asset, not yet in the balance", nullable=True),
        _decimal("leverage", "chosen leverage", nullable=True),
        _decimal("initial_rate_override", "fraction of notional", nullable=True),
        _information(_decimal("isolated_collateral", "settlement asset", nullable=True)),
        _decimal("reported_initial_margin", "settlement asset", nullable=True),
        _decimal("reported_maintenance_margin", "settlement asset", nullable=True),
        _decimal("reported_liquidation_price", "quote per unit", nullable=True),
    ],
)

OPEN_ORDERS = _schema(
    "open_orders",
    1,
    [
        _text("order_id"),
        _text("account_id"),
        _text("instrument_id"),
        _text("side", "buy | sell"),
        _decimal("remaining_quantity", "contracts, positive"),
        _decimal("limit_price", "quote per unit", nullable=True),
        _flag("reduce_only"),
    ],
)

ASSETS = _schema(
    "assets",
    1,
    [
        _text("asset_id"),
        _text("symbol"),
        _text("chain", nullable=True),
        _field("decimals", pa.int32(), "digits of a token integer", nullable=True),
        _text("risk_factor", "price factor that moves the asset; empty for a pure stable asset", nullable=True),
        _decimal("multiplier", "units of the risk factor's asset per unit of this asset"),
        _text("peg_of", "peg factor of the asset (a stable or a wrapped token)", nullable=True),
        _text("issuer", "issuer group", nullable=True),
    ],
)

INSTRUMENTS = _schema(
    "instruments",
    1,
    [
        _text("instrument_id"),
        _text("venue"),
        _text("symbol"),
        _text("kind", "spot | perp | future | option"),
        _text("underlying", "asset_id of the unit that the price refers to"),
        _text("settlement_asset", "asset_id of profit and loss"),
        _text("payoff", "linear | inverse"),
        _decimal("contract_size", "linear: units per contract; inverse: USD per contract"),
        _decimal("strike", "quote per unit", nullable=True),
        _time("expiry", nullable=True),
        _text("option_type", "call | put", nullable=True),
    ],
)

MARKS = _schema(
    "marks",
    3,
    [
        _text("venue"),
        _text("account_id", "set when the mark came inside this account's own payload", nullable=True),
        _text("subject", "instrument_id, asset_id, `<underlying>@<expiry>` or pair"),
        _text("field", " | ".join(MARK_FIELDS)),
        _float("value", "as the field says"),
        _float("confidence", "0 to 1", nullable=True),
        _time("as_of", nullable=True),
        _text("source"),
    ],
)

MARKET_STATE = _schema(
    "market_state",
    1,
    [
        _text("venue"),
        _text("market"),
        _text("field"),
        _float("value", "base units or as the field says", nullable=True),
        _text("text", "status words", nullable=True),
        _time("as_of", nullable=True),
        _text("source"),
    ],
)

RULE_SETS = _schema(
    "rule_sets",
    1,
    [
        _text("rule_set"),
        _field("component_no", pa.int32(), "order within the rule set"),
        _text("form"),
        _text("side", "equity | requirement | verdict"),
        _text("level", "initial | maintenance | both"),
        _text("group_by", "position | instrument | expiry | underlying | settlement_asset | risk_unit | account"),
        _text("parameters", "JSON text of the form's model, numbers as decimal strings"),
        _time("valid_from", nullable=True),
        _text("source"),
        _time("read_at", nullable=True),
    ],
)

MARGIN_TIERS = _schema(
    "margin_tiers",
    2,
    [
        _text("rule_set"),
        _text("market", "instrument_id"),
        _field("tier", pa.int32(), "1 is the smallest notional"),
        _decimal("notional_floor", "settlement asset, or contracts where the component says so"),
        _information(
            _decimal("notional_cap", "settlement asset, or contracts where the component says so", nullable=True)
        ),
        _decimal("initial_rate", "fraction of notional"),
        _decimal("maintenance_rate", "fraction of notional, marginal"),
        _decimal("deduction", "settlement asset"),
        _decimal("size_coefficient", "growth of the rate with size, as the component's law says", nullable=True),
        _text("source", "venue | model"),
    ],
)

COLLATERAL_TIERS = _schema(
    "collateral_tiers",
    2,
    [
        _text("rule_set"),
        _text("asset_id", "id; an instrument's id for the profit of its positions"),
        _text("emode", "lending category, empty for none"),
        _field("tier", pa.int32(), "1 is the smallest floor"),
        _decimal("floor", "tokens, or value in the account's unit by floor_in"),
        _text("floor_in", "tokens | value; null is tokens", nullable=True),
        _decimal("asset_weight_initial", "fraction of value that counts for initial margin"),
        _decimal("asset_weight_maintenance", "fraction of value that counts for maintenance margin"),
        _decimal("liability_weight_initial", "multiple of value that a debt counts for initial margin"),
        _decimal("liability_weight_maintenance", "multiple of value that a debt counts for maintenance margin"),
        _information(_decimal("liquidation_bonus", "fraction", nullable=True)),
        _information(_decimal("cap", "tokens", nullable=True)),
        _text("source"),
    ],
)

ROUTES = _schema(
    "routes",
    1,
    [
        _text("source_node"),
        _text("target_node"),
        _text("asset_id"),
        _float("transfer_median_s", "s"),
        _float("transfer_p99_s", "s"),
        _float("capacity_usd", "USD", nullable=True),
        _float("fee_rate", "fraction"),
        _float("failure_probability", "probability per transfer"),
    ],
)

FAILURES = _schema(
    "failures",
    1,
    [
        _text("venue", nullable=True),
        _text("payload", nullable=True),
        _text("path", "path of the field", nullable=True),
        _text("subject", nullable=True),
        _text("account_id", "account made incomplete by this failure", nullable=True),
        _text("reason", " | ".join(FailureReason)),
        _text("message"),
    ],
)

CANONICAL: Mapping[str, pa.Schema] = {
    "accounts": ACCOUNTS,
    "balances": BALANCES,
    "positions": POSITIONS,
    "open_orders": OPEN_ORDERS,
    "assets": ASSETS,
    "instruments": INSTRUMENTS,
    "marks": MARKS,
    "market_state": MARKET_STATE,
    "rule_sets": RULE_SETS,
    "margin_tiers": MARGIN_TIERS,
    "collateral_tiers": COLLATERAL_TIERS,
    "routes": ROUTES,
    "failures": FAILURES,
}
"""Every canonical table by name."""

KEYS: Mapping[str, tuple[str, ...]] = {
    "accounts": ("account_id",),
    "balances": ("account_id", "asset_id", "side"),
    "positions": ("account_id", "instrument_id", "side_mode"),
    "open_orders": ("order_id",),
    "assets": ("asset_id",),
    "instruments": ("instrument_id",),
    "marks": ("venue", "account_id", "subject", "field"),
    "market_state": ("venue", "market", "field"),
    "rule_sets": ("rule_set", "component_no"),
    "margin_tiers": ("rule_set", "market", "tier"),
    "collateral_tiers": ("rule_set", "asset_id", "emode", "tier"),
    "routes": ("source_node", "target_node", "asset_id"),
}
"""Key columns by table: two rows of equal key are duplicates and all copies are rejected."""


@dataclass(frozen=True)
class ArrowStream:
    """Anything that speaks the Arrow C stream interface, as one pyarrow table."""

    table: pa.Table

    @classmethod
    def of(cls, source: Any) -> ArrowStream:
        """Take a pyarrow table, a record batch, or any object with `__arrow_c_stream__` or `__arrow_c_array__`."""
        if isinstance(source, pa.Table):
            return cls(source)
        if hasattr(source, "__arrow_c_stream__"):
            return cls(pa.table(source))
        if hasattr(source, "__arrow_c_array__"):
            return cls(pa.Table.from_batches([pa.record_batch(source)]))
        raise TypeError(f"expected an object with the Arrow C interface, got {type(source).__name__}")


def describe(schema: pa.Schema) -> list[dict[str, Any]]:
    """Name, type, unit and nullability of every column, and the use of one that is information alone, for people and
    for machines.
    """
    return [
        {
            "name": f.name,
            "type": str(f.type),
            "unit": (f.metadata or {}).get(b"unit", b"").decode(),
            "nullable": f.nullable,
        }
        | ({"use": f.metadata[b"use"].decode()} if b"use" in (f.metadata or {}) else {})
        for f in schema
    ]


def table_version(schema: pa.Schema) -> tuple[str, str]:
    """(table name, version) from a schema's metadata; empty strings when the schema carries none."""
    metadata = schema.metadata or {}
    return metadata.get(b"crossmargin.table", b"").decode(), metadata.get(b"crossmargin.version", b"").decode()


def cast_table(name: str, source: Any) -> pa.Table:
    """The canonical table `name` from any Arrow source: columns by name, types cast, metadata set.

    All missing and unknown columns are listed in one error. A source that states another table name or version than the
    canonical one is refused. Decimals are bound-checked, because Arrow overflows silently. Nullable columns may be
    absent. Raises `DataError` with reason malformed, missing_field, not_a_number or out_of_range.
    """
    schema = CANONICAL[name]
    table = ArrowStream.of(source).table
    if table.schema.equals(schema, check_metadata=True):
        for column, values in zip(_columns(name), table.columns, strict=True):
            if column.is_decimal and not _within_bound(values):
                exact_decimals(values.to_pylist(), where=f"{name}.{column.name}")  # says which
            _check(name, column, values)
        return table
    stated = table_version(table.schema)
    if stated != ("", "") and stated != table_version(schema):
        raise DataError(
            Failure(
                FailureReason.MALFORMED,
                f"schema says table {stated[0]!r} version {stated[1]!r}, "
                f"expected {name!r} version {table_version(schema)[1]!r}",
                subject=name,
            )
        )
    names = table.column_names
    twice = sorted({column for column in names if names.count(column) > 1})
    if twice:
        raise DataError(Failure(FailureReason.MALFORMED, f"table {name!r}: columns {twice} stand twice", subject=name))
    unknown = [column for column in names if column not in schema.names]
    missing = [f.name for f in schema if f.name not in names and not f.nullable]
    if unknown or missing:
        problems = [f"missing columns {missing}"] if missing else []
        problems += [f"unknown {column!r}{nearest_name(column, schema.names)}" for column in unknown]
        raise DataError(
            Failure(
                FailureReason.MISSING_FIELD if missing else FailureReason.MALFORMED,
                f"table {name!r}: {'; '.join(problems)}",
                subject=name,
            )
        )
    columns = [_cast_column(name, table, column) for column in _columns(name)]
    return pa.Table.from_arrays(columns, schema=schema)


class _Column(NamedTuple):
    """A field of a canonical table as it is asked for again and again: Arrow makes its answers anew each time."""

    name: str
    type: pa.DataType
    nullable: bool
    is_decimal: bool
    is_integer: bool
    is_floating: bool


@cache
def _columns(name: str) -> tuple[_Column, ...]:
    kinds = (pa.types.is_decimal, pa.types.is_integer, pa.types.is_floating)
    return tuple(_Column(f.name, f.type, f.nullable, *(kind(f.type) for kind in kinds)) for f in CANONICAL[name])


def _cast_column(name: str, table: pa.Table, target: _Column) -> pa.ChunkedArray:
    if target.name not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, target.type)])
    column = table.column(target.name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    where = f"{name}.{target.name}"
    try:
        if column.type == target.type == DECIMAL and _within_bound(column):
            pass  # as exact as the door could make it
        elif target.is_decimal:
            column = pa.chunked_array([exact_decimals(column.to_pylist(), where=where)])
        elif column.type != target.type:
            column = column.cast(target.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(Failure(FailureReason.MALFORMED, f"{where}: {error}", subject=name)) from None
    _check(name, target, column)
    return column


def _check(name: str, target: _Column, column: pa.Array | pa.ChunkedArray) -> None:
    """No null where none may be, nothing but finite numbers."""
    nulls = column.null_count
    if nulls and not target.nullable:
        message = f"{name}.{target.name}: {nulls} rows are null"
        raise DataError(Failure(FailureReason.MISSING_FIELD, message, subject=name))
    if target.is_floating and nulls < len(column) and pc.all(pc.is_finite(column)).as_py() is False:
        raise DataError(Failure(FailureReason.NOT_A_NUMBER, f"{name}.{target.name}: not finite", subject=name))


def exact_decimals(values: Iterable[Any], *, where: str) -> pa.Array:
    """`decimal128(38, 18)` from decimals, integers, floats or decimal strings; null stays null.

    Digits beyond the 18th decimal are rounded half to even. Raises `DataError` (not_a_number, out_of_range) instead of
    the silent garbage that a cast of an overlong string or an overflowing value would give.
    """

    def refusal(reason: FailureReason, message: str) -> DataError:
        return DataError(Failure(reason, f"{where}: {message}", subject=where.partition(".")[0]))

    listed = list(values)
    # Most columns hold nothing to refuse; which value is wrong, and why, is only asked of those that do.
    if (found := _quickly(listed)) is not None:
        return found
    out: list[Decimal | None] = []
    for value in listed:
        if value is None:
            out.append(None)
            continue
        try:
            number = value if isinstance(value, Decimal) else Decimal(str(value))
        except ArithmeticError:
            raise refusal(FailureReason.NOT_A_NUMBER, f"{str(value)[:40]!r} is not a number") from None
        if not number.is_finite():
            raise refusal(FailureReason.NOT_A_NUMBER, f"{number} is not finite")
        if _reaches_bound(number) or _reaches_bound(rounded := quantize(number)):
            raise refusal(FailureReason.OUT_OF_RANGE, f"|{number:.3e}| is not below 1e20")
        out.append(rounded)
    return pa.array(out, DECIMAL)


def _quickly(values: Sequence[Any]) -> pa.Array | None:
    """`exact_decimals` of values that are all fit for it, otherwise None."""
    try:
        array = pa.array(
            [
                None
                if value is None
                else (value if type(value) is Decimal else Decimal(str(value))).quantize(_QUANTUM, context=_EXACT)
                for value in values
            ],
            DECIMAL,
        )
    except (ArithmeticError, pa.ArrowInvalid):
        return None
    return array if _within_bound(array) else None


def _within_bound(decimals: pa.Array | pa.ChunkedArray) -> bool:
    ends = pc.min_max(decimals).as_py()
    return not any(_reaches_bound(end) for end in ends.values() if end is not None)


def _reaches_bound(number: Decimal) -> bool:
    # By the exponent: abs() would round to the context's 28 digits and raises on exponents beyond its range.
    return bool(number) and number.adjusted() >= DECIMAL_BOUND.adjusted()


_QUANTUM = Decimal(1).scaleb(-18)
# Its own, not the caller's: Arrow ends the process on some exponents that no quantization has taken away.
_EXACT = decimal.Context(prec=60, rounding=decimal.ROUND_HALF_EVEN, traps=[decimal.InvalidOperation])


def quantize(number: Decimal) -> Decimal:
    """`number` with exactly 18 decimals, rounded half to even; |number| must be below 1e20."""
    return number.quantize(_QUANTUM, context=_EXACT)


def decimal_sum(column: pa.ChunkedArray | pa.Array) -> Decimal:
    """Exact sum of a decimal128 column (Arrow's own decimal128 sum wraps silently); 0 for an empty column."""
    total = pc.sum(column.cast(pa.decimal256(76, 18))).as_py()
    return Decimal(0) if total is None else total


def table_from_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The canonical table `name` from Python rows (one mapping per row; absent keys are null), checked like any other.

    Raises `DataError` as `cast_table` does, malformed also for a value that its column cannot hold, and `KeyError` for
    a column that the table does not have.
    """
    schema = CANONICAL[name]
    if not rows:
        return schema.empty_table()
    present = set[str]().union(*rows)
    if unknown := present - set(schema.names):
        raise KeyError(f"table {name!r} has no column {sorted(unknown)}")
    arrays = []
    for column in _columns(name):
        if column.name not in present:
            arrays.append(pa.nulls(len(rows), column.type))
            continue
        values = [row.get(column.name) for row in rows]
        if column.is_decimal:
            arrays.append(exact_decimals(values, where=f"{name}.{column.name}"))
            continue
        try:
            # Given an integer type, pa.array would cut fractions off in silence; a cast does not.
            arrays.append(pa.array(values).cast(column.type) if column.is_integer else pa.array(values, column.type))
        except (pa.ArrowException, TypeError, OverflowError, UnicodeEncodeError) as error:
            message = f"{name}.{column.name}: {error}"
            raise DataError(Failure(FailureReason.MALFORMED, message, subject=name)) from None
    for column, array in zip(_columns(name), arrays, strict=True):
        _check(name, column, array)
    return pa.Table.from_arrays(arrays, schema=schema)


def failures_table(failures: Sequence[Failure]) -> pa.Table:
    """The canonical failures table."""
    return table_from_rows(
        "failures",
        [
            {
                "venue": f.venue,
                "payload": f.payload,
                "path": f.path,
                "subject": f.subject,
                "account_id": f.account_id,
                "reason": str(f.reason),
                "message": f.message,
            }
            for f in failures
        ],
    )


def _result(name: str, fields: Sequence[pa.Field], *, version: int = 1) -> pa.Schema:
    return _schema(name, version, [_text("run_id"), *fields])


RUNS = _result(
    "runs",
    [
        _time("started_at"),
        _time("finished_at"),
        _float("duration_s", "s"),
        _time("as_of"),
        _text("snapshot_hash", "SHA-256"),
        _text("configuration_digest", "SHA-256"),
        _text("run_digest", "SHA-256 of snapshot, files, configuration, seed and code version"),
        _text("configuration", "resolved configuration, JSON"),
        _text("inputs", "JSON list of {venue, request, name, sha256}: payloads, parameter files, history"),
        _text("code_version"),
        _text("versions", "JSON of library versions"),
        _text("device", "device kind and count"),
        _field("seed", pa.int64(), "seed"),
        _text("generator"),
        _field("scenarios", pa.int64(), "count"),
        _float("horizon_days", "days"),
        _field("shards", pa.int32(), "count"),
        _field("portfolios", pa.int64(), "count"),
        _field("portfolios_incomplete", pa.int64(), "count"),
        _field("accounts", pa.int64(), "count"),
        _field("failures", pa.int64(), "count"),
        _text("conditions", "JSON list of {condition, code, message}"),
        _text("notes", "JSON list of what the requirement leaves out, and why", nullable=True),
        _text("kind", "sweep | screen; null is a sweep", nullable=True),
    ],
    version=3,
)

PORTFOLIO_MARGIN = _result(
    "portfolio_margin",
    [
        _text("portfolio_id"),
        _flag("complete"),
        _text("accounts_left_out", "JSON list of account ids"),
        _float("left_out_gross_usd", "USD, last known gross value of what is left out", nullable=True),
        _text("status", "ok | incomplete | no_complete_account | calculation"),
        _field("accounts", pa.int64(), "complete accounts counted"),
        _field("positions", pa.int64(), "balances and positions counted"),
        _float("equity_usd", "USD at market value", nullable=True),
        _float("gross_notional_usd", "USD, sum of absolute values", nullable=True),
        _float("native_initial_usd", "USD, sum over accounts", nullable=True),
        _float("native_maintenance_usd", "USD, sum over accounts", nullable=True),
        _float("health_minimum", "ratio, smallest over accounts", nullable=True),
        _text("health_minimum_account", nullable=True),
        _float("p_liquidation_any_at_horizon", "probability", nullable=True),
        _float("p_liquidation_largest", "probability, of the account most likely to be liquidated", nullable=True),
        _text("p_liquidation_largest_account", nullable=True),
        _float("mean_loss_usd", "USD over the horizon", nullable=True),
        _float("worst_loss_usd", "USD over the horizon", nullable=True),
        _float("var_99_pooled_usd", "USD", nullable=True),
        _float("es_99_pooled_usd", "USD", nullable=True),
        _float("var_995_pooled_usd", "USD", nullable=True),
        _float("es_995_pooled_usd", "USD", nullable=True),
        _float("var_99_silo_sum_usd", "USD, sum over nodes", nullable=True),
        _float("es_99_silo_sum_usd", "USD, sum over nodes", nullable=True),
        _float("var_995_silo_sum_usd", "USD, sum over nodes", nullable=True),
        _float("es_995_silo_sum_usd", "USD, sum over nodes", nullable=True),
        _float("es_99_isolated_sum_usd", "USD, sum over positions alone", nullable=True),
        _float("es_995_isolated_sum_usd", "USD, sum over positions alone", nullable=True),
        _float("offset_within_nodes_99_usd", "USD, isolated sum minus silo sum", nullable=True),
        _float("offset_across_nodes_99_usd", "USD, silo sum minus pooled", nullable=True),
        _float("pooled_to_silo_99", "ratio", nullable=True),
        _float("equity_to_es_99", "equity over pooled ES", nullable=True),
        _float("var_99_pooled_error_usd", "USD, standard error", nullable=True),
        _float("es_99_pooled_error_usd", "USD, standard error", nullable=True),
        _float("var_995_pooled_error_usd", "USD, standard error", nullable=True),
        _float("es_995_pooled_error_usd", "USD, standard error", nullable=True),
        _float("unified_equity_usd", "USD, collateral at its haircut where it is not simulated", nullable=True),
        _float("requirement_silo_usd", "USD, sum of the nodes' requirements, each alone, maintenance", nullable=True),
        _float("requirement_ideal_usd", "USD, everything pooled, maintenance", nullable=True),
        _float("requirement_effective_usd", "USD, after the offset cap: the unified maintenance margin", nullable=True),
        _float("requirement_initial_usd", "USD, the unified initial margin", nullable=True),
        _float("offset_share", "fraction of the offset across nodes that is granted", nullable=True),
        _float("offset_benefit_usd", "USD, silo minus effective, negative for hidden illiquidity", nullable=True),
        _float("margin_efficiency", "effective over silo requirement", nullable=True),
        _float("health_unified", "unified equity over the unified maintenance margin", nullable=True),
        _float("unmeasured_usd", "USD, exposure to assets whose market is unknown to the add-ons", nullable=True),
        _float(
            "capital_cost_usd",
            "USD a year, of what the venues lock, borrow and fund; null if a rate is unknown",
            nullable=True,
        ),
        _float("p_liquidation_path", "probability that some account is liquidated on the way", nullable=True),
        _float("hours_to_liquidation", "hours to the first liquidation, mean over paths that have one", nullable=True),
        _float("hours_to_liquidation_10", "hours, by which a tenth of them have it", nullable=True),
        _float("hours_to_liquidation_50", "hours, by which half of them have it", nullable=True),
        _float("funding_paid_path_usd", "USD expected until liquidation or horizon; negative is income", nullable=True),
        _text("deadlines", "path | fixed: how long transfers have; null without routes", nullable=True),
        _text("transfer_method", "closed_form (up to 8 points with a route) | cuts | no_routes", nullable=True),
        _float("es_99_fungible_usd", "USD, least collateral if it were everywhere at once", nullable=True),
        _float("es_99_transfer_usd", "USD, least collateral that covers what arrives in time: TCES", nullable=True),
        _float("es_99_transfer_gap_usd", "USD, largest distance to the true minimum", nullable=True),
        _float("es_99_transfer_error_usd", "USD, standard error", nullable=True),
        _float("es_99_alone_usd", "USD, least collateral if nothing travels", nullable=True),
        _float("fungibility_99", "share of the pooling benefit that transfers realise", nullable=True),
        _float("fungibility_995", "share, at the initial level", nullable=True),
        _float("usable_saving", "share of the saving of pooling that is granted", nullable=True),
        _float("p_uncovered", "probability that today's collateral is not where it is needed", nullable=True),
        _float("uncovered_mean_usd", "USD lacking where some is", nullable=True),
        _float("uncovered_es_99_usd", "USD, expected shortfall of what lacks", nullable=True),
        _float("uncovered_transit_usd", "USD lacking, mean over all scenarios", nullable=True),
        _float("stranded_usd", "USD that cannot reach a deficit, mean where some lacks", nullable=True),
        _float("top_up_usd", "USD to add at the nodes, given what is there", nullable=True),
        _float("top_up_total_usd", "USD, that and what it leaves uncovered, over the tail: T(K)", nullable=True),
        _text("binding_failure", "channel whose failure asks for most; all routes: nothing arrives", nullable=True),
        _float("binding_failure_usd", "USD that it adds at most; all routes: to what pooling needs", nullable=True),
    ],
    version=5,
)

STRESS = _result(
    "stress",
    [
        _text("portfolio_id"),
        _text("stress", "name in the library"),
        _text("description", "what happens"),
        _flag("binding"),
        _float("loss_usd", "USD, prices, funding, failures of venues, and depth"),
        _float("price_loss_usd", "USD, prices alone"),
        _float("depth_loss_usd", "USD, rise of the cost of liquidating everything at its depth", nullable=True),
        _float("liquidity_usd", "USD, cost of liquidating everything at the depth of the stress", nullable=True),
        _float("equity_after_usd", "USD, equity less the loss"),
        _float("unavailable_usd", "USD of that which lies where nothing can be withdrawn"),
        _float("uncovered_usd", "USD lacking at nodes whose loss exceeds their equity, if nothing can be moved"),
        _float("uncovered_pooled_usd", "USD lacking if everything could be moved"),
        _text("transfers", "open | shut"),
        _text("liquidated", "JSON list of accounts that their venue liquidates"),
        _text("insolvent", "JSON list of accounts whose equity, as the venue counts it, ends below zero"),
        _text("without_effect", "JSON list of keys of the stress that act on nothing held here", nullable=True),
        _text("drivers", "JSON list of the lines with the largest losses and gains: key, loss_usd"),
    ],
    version=2,
)

REQUIREMENT = _result(
    "requirement",
    [
        _text("portfolio_id"),
        _text("scope", "node id, or unified: everything pooled"),
        _text("level", "maintenance (99 %) | initial (99.5 %)"),
        _float("es_current_usd", "USD, expected shortfall under current volatility of what is simulated"),
        _float("es_current_error_usd", "USD, its standard error; of everything pooled alone", nullable=True),
        _float("es_horizon_usd", "USD, the same over the liquidity horizons of what is held"),
        _float("es_stressed_usd", "USD, the largest over the stressed laws, at the same horizons", nullable=True),
        _float("es_blend_usd", "USD"),
        _float("grid_usd", "USD, worst of the scenario grid"),
        _float("stress_usd", "USD, worst of the stresses that are binding"),
        _float("floor_usd", "USD"),
        _float("base_usd", "USD, the largest of blend, grid, binding stress and floor"),
        _float("liquidity_usd", "USD; null where nothing of what is held has a known market", nullable=True),
        _float("concentration_usd", "USD; likewise", nullable=True),
        _float("basis_usd", "USD"),
        _float("wrong_way_usd", "USD"),
        _float("venue_usd", "USD"),
        _float("requirement_usd", "USD, base and add-ons"),
        _float("unmeasured_usd", "USD, exposure that the add-ons lack market figures for"),
        _float(
            "beyond_horizons_usd",
            "USD, positions slower than the last liquidity horizon, up to which they count; likewise",
            nullable=True,
        ),
        _text("grid_point", "worst point of the grid", nullable=True),
    ],
    version=2,
)

RESULT_NODES = _result(
    "nodes",
    [
        _text("portfolio_id"),
        _text("point", "node id, withdrawal limit, shared limit or broker"),
        _text("kind", "node | limit | shared | broker"),
        _text("venue", "of a node", nullable=True),
        _float("equity_usd", "USD at market value", nullable=True),
        _float("surplus_usd", "USD above the level of liquidation today", nullable=True),
        _float("withdrawable_usd", "USD that the venue lets out today", nullable=True),
        _float("es_99_alone_usd", "USD, least collateral if the node stood alone", nullable=True),
        _float("placement_usd", "USD that a best placement of the TCES puts there"),
        _float("p_deficit", "probability that the node falls short, before transfers", nullable=True),
        _float("top_up_usd", "USD to add, given what is there", nullable=True),
        _float("buffer_value", "probability that a dollar more there is missing, over the tail's", nullable=True),
        _float("prefunding_usd", "USD that the reactive policy needs there", nullable=True),
        _float("reactive_buffer_usd", "USD at which the policy calls for collateral", nullable=True),
        _float("hedge_break_usd", "USD that the book loses where the node is liquidated, mean of those", nullable=True),
        _float("move_now_usd", "USD to move in (positive) or out now", nullable=True),
    ],
    version=2,
)

RESULT_ROUTES = _result(
    "routes",
    [
        _text("portfolio_id"),
        _text("kind", "route | channel | all"),
        _text("name", "way or channel"),
        _text("source", "point", nullable=True),
        _text("target", "point", nullable=True),
        _text("asset", nullable=True),
        _text("through", "JSON list of channels", nullable=True),
        _float("median_hours", "hours", nullable=True),
        _float("p99_hours", "hours", nullable=True),
        _float("capacity_usd", "USD that leave at most; null without a limit", nullable=True),
        _float("fee", "fraction that does not arrive", nullable=True),
        _float("p_open", "probability that it is up, of a route in time as well", nullable=True),
        _float("value", "USD less of TCES per USD of capacity", nullable=True),
        _float("worst_flow_usd", "USD that pass in time in the worst scenarios, mean", nullable=True),
        _float("move_now_usd", "USD to send now", nullable=True),
        _float("without_usd", "USD, bound of the TCES without it", nullable=True),
        _float("without_increase_usd", "USD that its failure adds at most", nullable=True),
    ],
    version=2,
)

ACCOUNT_MARGIN = _result(
    "account_margin",
    [
        _text("portfolio_id"),
        _text("account_id"),
        _text("node"),
        _text("venue"),
        _text("margin_mode"),
        _text("status", "ok | no_requirement | incomplete | calculation"),
        _text("unit", "asset whose unit the native figures carry"),
        _float("unit_price_usd", "USD per unit", nullable=True),
        _float("equity", "unit, as the venue counts it", nullable=True),
        _float("initial_requirement", "unit", nullable=True),
        _float("maintenance_requirement", "unit", nullable=True),
        _float("health", "ratio as the venue defines it", nullable=True),
        _float("trigger", "health at which the venue liquidates", nullable=True),
        _flag("liquidatable", nullable=True),
        _flag("near_boundary", nullable=True),
        _float("p_liquidation_at_horizon", "probability", nullable=True),
        _float("equity_usd", "USD at market value", nullable=True),
        _float("gross_notional_usd", "USD", nullable=True),
        _float("reported_equity", "unit", nullable=True),
        _float("reported_initial_margin", "unit", nullable=True),
        _float("reported_maintenance_margin", "unit", nullable=True),
        _float("reported_health", "ratio", nullable=True),
        _float("equity_difference", "unit, recomputed minus reported", nullable=True),
        _float("maintenance_difference", "unit, recomputed minus reported", nullable=True),
        _flag("reported_parts", nullable=True),
        _float("p_liquidation_path", "probability of a liquidation on the way to the horizon", nullable=True),
        _float("hours_to_liquidation", "hours, mean over the paths that end in one", nullable=True),
        _float("hours_to_liquidation_10", "hours, by which a tenth of them have ended", nullable=True),
        _float("hours_to_liquidation_50", "hours, by which half of them have ended", nullable=True),
        _float("funding_paid_path", "unit, expected until liquidation or horizon; negative is income", nullable=True),
    ],
    version=2,
)

NODE_MARGIN = _result(
    "node_margin",
    [
        _text("portfolio_id"),
        _text("node"),
        _text("venue"),
        _float("equity_usd", "USD at market value"),
        _float("var_99_usd", "USD"),
        _float("es_99_usd", "USD"),
        _float("var_995_usd", "USD"),
        _float("es_995_usd", "USD"),
        _float("requirement_usd", "USD, the node alone, maintenance", nullable=True),
        _float("locked_usd", "USD, initial margin that the venue itself asks for", nullable=True),
        _float("opportunity_cost_usd", "USD a year on what is locked", nullable=True),
        _float("borrow_cost_usd", "USD a year on debts at their rates of today; null if one is unknown", nullable=True),
        _float(
            "funding_cost_usd",
            "USD a year at the funding rates of today; negative is income, null if one is unknown",
            nullable=True,
        ),
        _float("uncosted_usd", "USD of debts and perpetuals whose rate no payload states", nullable=True),
    ],
    version=3,
)

ALLOCATION = _result(
    "allocation",
    [
        _text("portfolio_id"),
        _text("level", "venue | asset | position"),
        _text("key", "venue id, asset symbol, or account and position"),
        _text("venue", nullable=True),
        _text("asset", nullable=True),
        _text("account_id", nullable=True),
        _float("value_usd", "USD, signed market value of the exposure"),
        _float("es_99_usd", "USD, Euler contribution to the pooled ES"),
        _float("es_995_usd", "USD, Euler contribution to the pooled ES"),
        _float("es_99_isolated_usd", "USD, ES of the position alone", nullable=True),
        _float("es_995_isolated_usd", "USD, ES of the position alone", nullable=True),
        _float("var_99_isolated_usd", "USD", nullable=True),
        _float("var_995_isolated_usd", "USD", nullable=True),
    ],
)

SCENARIOS_WORST = _result(
    "scenarios_worst",
    [
        _text("portfolio_id"),
        _field("rank", pa.int32(), "1 is the worst"),
        _field("scenario", pa.int64(), "scenario index"),
        _float("weight", "probability weight"),
        _float("loss_usd", "USD"),
        _text("drivers", "JSON list of {key, loss_usd}, largest first"),
        _text("moves", "JSON of factor to relative move"),
        _text("liquidated", "JSON list of account ids liquidated in it"),
    ],
)

GREEKS = _result(
    "greeks",
    [
        _text("portfolio_id"),
        _text("underlying"),
        _float("delta_usd", "USD of profit per +100 % of the underlying, linearised"),
        _float("gamma_usd", "0.01 * S^2 * d2V/dS2, USD: change of the hedge per +1 % of the underlying"),
        _float("vega_usd", "USD of profit per +1 vol point"),
        _float("theta_usd", "USD of profit per day"),
    ],
)

LIQUIDATION_PRICES = _result(
    "liquidation_prices",
    [
        _text("portfolio_id"),
        _text("account_id"),
        _text("venue"),
        _text("subject", "instrument (with /long or /short where both sides are held) or asset"),
        _text("kind", "position | balance | underlying | factor"),
        _text("factor", "what is moved: mark:INSTRUMENT alone, or price:ASSET with all that depends on it"),
        _text("status", "ok | none | liquidatable_now | calculation"),
        _float("price", "today's mark in its quote, or asset price in USD", nullable=True),
        _float("log_move_down", "log move of what is moved, negative; within 1e-6 of today's price", nullable=True),
        _float("price_down", "as price", nullable=True),
        _float("log_move_up", "log move of what is moved, positive; within 1e6 times today's price", nullable=True),
        _float("price_up", "as price", nullable=True),
        _float("reported_liquidation_price", "as price, the venue's own", nullable=True),
        _float("difference", "as price, recomputed minus reported, on the reported one's side", nullable=True),
    ],
    version=2,
)

REVERSE_STRESS = _result(
    "reverse_stress",
    [
        _text("portfolio_id"),
        _text("kind", "joint: the portfolio | account | asset: one price alone"),
        _text("subject", "portfolio, account id, or price factor"),
        _text("account_id", "the account that is liquidated first", nullable=True),
        _text("venue", nullable=True),
        _text("status", "ok | none | liquidatable_now | calculation"),
        _float("distance", "standard deviations (Mahalanobis) under the covariance of the scenarios", nullable=True),
        _text("moves", "JSON of factor to relative move", nullable=True),
        _float("probability", "weight of the scenarios beyond the plane through the move", nullable=True),
    ],
)

LOSS_HISTOGRAM = _result(
    "loss_histogram",
    [
        _text("portfolio_id"),
        _field("bin", pa.int32(), "0 is the largest profit"),
        _float("loss_from_usd", "USD, inclusive"),
        _float("loss_to_usd", "USD, exclusive (the last bin inclusive)"),
        _float("probability", "probability"),
    ],
)

FACTORS = _result(
    "factors",
    [
        _text("factor", "price:ASSET | vol:ASSET | peg:ASSET"),
        _float("std_horizon", "weighted standard deviation of the log move over the horizon"),
        _float("filled_share", "fraction of history cells that were filled"),
        _text("source", "history | proxy | rule | figures"),
    ],
)

RECONCILIATION = _result(
    "reconciliation",
    [
        _text("portfolio_id"),
        _text("account_id"),
        _text("venue"),
        _text("figure", "equity | initial_margin | maintenance_margin | health"),
        _text("unit", "asset whose unit the figure carries, or ratio"),
        _float("ours", "unit, recomputed today", nullable=True),
        _float("reported", "unit, the venue's own", nullable=True),
        _float("difference", "unit, recomputed minus reported", nullable=True),
        _float("difference_relative", "fraction of the venue's figure", nullable=True),
        _float("difference_usd", "USD; of a ratio the equity that would make up for it", nullable=True),
        _text("status", "match | explained | unexplained | not_reported | incomplete"),
        _text("reason", "code of a closed list", nullable=True),
        _text("message"),
        _flag("beyond_bound"),
    ],
)

SCREEN_PORTFOLIOS = _result(
    "screen_portfolios",
    [
        _text("portfolio_id"),
        _text("engine", "netted | general"),
        _text("engine_reason", "why the fast engine does not cover it; null where it does", nullable=True),
        _flag("complete"),
        _text("accounts_left_out", "JSON list of account ids"),
        _float("left_out_gross_usd", "USD, last known gross value of what is left out", nullable=True),
        _text("status", "ok | incomplete | no_complete_account | calculation"),
        _field("accounts", pa.int64(), "complete accounts counted"),
        _float("equity_usd", "USD at market value", nullable=True),
        _float("mean_loss_usd", "USD", nullable=True),
        _float("worst_loss_usd", "USD", nullable=True),
        _float("var_99_pooled_usd", "USD", nullable=True),
        _float("es_99_pooled_usd", "USD", nullable=True),
        _float("var_995_pooled_usd", "USD", nullable=True),
        _float("es_995_pooled_usd", "USD", nullable=True),
        _float("equity_to_es_99", "ratio", nullable=True),
        _float("p_liquidation_any_at_horizon", "probability", nullable=True),
        _float("p_liquidation_largest", "probability", nullable=True),
        _text("p_liquidation_largest_account", nullable=True),
        _float(
            "p_liquidation_unified_at_horizon",
            "probability that all accounts as one would be liquidated; null of the general engine",
            nullable=True,
        ),
        _float(
            "bad_debt_usd",
            "USD, expected sum over accounts of what their equity falls below zero; null of the general engine",
            nullable=True,
        ),
    ],
)

SCREEN_ACCOUNTS = _result(
    "screen_accounts",
    [
        _text("portfolio_id"),
        _text("account_id"),
        _text("node"),
        _text("venue"),
        _text("engine", "netted | general"),
        _text("status", "ok | incomplete | calculation"),
        _float("equity_usd", "USD at market value", nullable=True),
        _float("equity_mean_usd", "USD at the horizon; null of the general engine", nullable=True),
        _float("p_liquidation_at_horizon", "probability", nullable=True),
        _float("bad_debt_usd", "USD, expected; null of the general engine", nullable=True),
    ],
)

RUN_FAILURES = pa.schema([_text("run_id"), *FAILURES], metadata=FAILURES.metadata)

RESULTS: Mapping[str, pa.Schema] = {
    "runs": RUNS,
    "portfolio_margin": PORTFOLIO_MARGIN,
    "account_margin": ACCOUNT_MARGIN,
    "node_margin": NODE_MARGIN,
    "requirement": REQUIREMENT,
    "nodes": RESULT_NODES,
    "routes": RESULT_ROUTES,
    "stress": STRESS,
    "allocation": ALLOCATION,
    "scenarios_worst": SCENARIOS_WORST,
    "greeks": GREEKS,
    "liquidation_prices": LIQUIDATION_PRICES,
    "reverse_stress": REVERSE_STRESS,
    "loss_histogram": LOSS_HISTOGRAM,
    "factors": FACTORS,
    "reconciliation": RECONCILIATION,
    "screen_portfolios": SCREEN_PORTFOLIOS,
    "screen_accounts": SCREEN_ACCOUNTS,
    "failures": RUN_FAILURES,
}
"""Every result table by name. `runs` is written last; readers ignore rows of a run that has no row in it."""

RESULT_KEYS: Mapping[str, tuple[str, ...]] = {
    "runs": ("run_id",),
    "portfolio_margin": ("run_id", "portfolio_id"),
    "account_margin": ("run_id", "portfolio_id", "account_id"),
    "node_margin": ("run_id", "portfolio_id", "node"),
    "requirement": ("run_id", "portfolio_id", "scope", "level"),
    "nodes": ("run_id", "portfolio_id", "point"),
    "routes": ("run_id", "portfolio_id", "kind", "name", "source", "target"),
    "stress": ("run_id", "portfolio_id", "stress"),
    "allocation": ("run_id", "portfolio_id", "level", "key"),
    "scenarios_worst": ("run_id", "portfolio_id", "rank"),
    "greeks": ("run_id", "portfolio_id", "underlying"),
    "liquidation_prices": ("run_id", "portfolio_id", "account_id", "subject"),
    "reverse_stress": ("run_id", "portfolio_id", "kind", "subject"),
    "loss_histogram": ("run_id", "portfolio_id", "bin"),
    "factors": ("run_id", "factor"),
    "reconciliation": ("run_id", "portfolio_id", "account_id", "figure"),
    "screen_portfolios": ("run_id", "portfolio_id"),
    "screen_accounts": ("run_id", "portfolio_id", "account_id"),
    "failures": ("run_id", "venue", "payload", "path", "subject", "reason", "message"),
}
"""Key columns by result table, which is also its sort order."""
