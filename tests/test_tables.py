"""Canonical tables that a user brings: every file format gives the same rows, every bad row names itself and no other.

The CSV files in `payloads/tables` are a made-up desk; the other formats are written from them into a temporary folder.
"""

import io
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter, AssetBook, Context, Normalized, find_adapter
from adapters.tables import ADAPTER, TABLES, read_tables
from adapters.tables.cells import csv_rows, csv_table
from adapters.transport import CsvLines, Payload, PayloadRequest, RecordedTransport
from aggregator.errors import DataError, Failure, FailureReason
from aggregator.schema.canonical import CANONICAL, KEYS
from aggregator.schema.casting import cast_table, table_from_rows
from aggregator.snapshot import take_snapshot
from tests.payload_files import read_payload

PAYLOADS = Path(__file__).resolve().parent / "payloads" / "tables"
NAMES = tuple(sorted(path.stem for path in PAYLOADS.glob("*.csv")))
AS_OF = datetime(2024, 6, 30, tzinfo=UTC)
BLUE, GREEN, LOAN = "otc:blue", "otc:green", "prime:loan-7"
EVERYONE = {BLUE, GREEN, LOAN}


def fetched(name: str, file: str = "", *, root: Path = PAYLOADS, account: str = "") -> Payload:
    return read_payload("tables", root, name, file or f"{name}.csv", account)


def desk() -> list[Payload]:
    return [fetched(name) for name in NAMES]


def normalized(*payloads: Payload) -> Normalized:
    return ADAPTER.normalize(payloads, Context(AssetBook({}), {}))


def edited(name: str, change: Callable[[list[list[str]]], None]) -> list[Payload]:
    """The desk with the cells of one file changed; row 0 is the header."""
    payloads = []
    for payload in desk():
        if payload.request == name:
            cells = [list(payload.body.header), *(list(line) for line in payload.body.lines)]
            change(cells)
            body = CsvLines(tuple(cells[0]), tuple(tuple(line) for line in cells[1:]))
            payload = Payload(name, payload.name, "", None, payload.sha256, body)
        payloads.append(payload)
    return payloads


def set_cell(name: str, row: int, column: str, text: str) -> list[Payload]:
    def change(cells: list[list[str]]) -> None:
        cells[row + 1][cells[0].index(column)] = text

    return edited(name, change)


def concerned(result: Normalized) -> set[str | None]:
    return {failure.account_id for failure in result.failures}


def reasons(result: Normalized) -> set[FailureReason]:
    return {failure.reason for failure in result.failures}


@pytest.fixture(scope="module")
def whole() -> Normalized:
    return normalized(*desk())


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def test_the_desk_is_read_without_a_failure(whole: Normalized) -> None:
    assert whole.failures == []
    assert set(whole.batches) == set(TABLES) == set(CANONICAL) - {"failures"}
    for name, table in whole.batches.items():
        assert table.schema.equals(CANONICAL[name], check_metadata=True)
        lines = fetched(name).body.lines if name in NAMES else ()
        assert table.num_rows == len(lines), name


def test_numbers_are_exact_and_times_carry_their_offset(whole: Normalized) -> None:
    balance, position = whole.batches["balances"].to_pylist()[0], whole.batches["positions"].to_pylist()[0]
    assert balance["quantity"] == Decimal("250000.123456789012345678")
    assert position["entry_price"] == Decimal("60229.811728394506172839")
    account = whole.batches["accounts"].to_pylist()[0]
    assert account["reported_equity"] == balance["quantity"] + 2 * (60970 - position["entry_price"])
    assert {row["received_at"].isoformat() for row in whole.batches["accounts"].to_pylist()} == {
        "2024-06-30T00:00:00+00:00",
        "2024-06-29T23:59:30+00:00",
    }
    assert {row["venue"] for row in whole.batches["accounts"].to_pylist()} == {"otc", "prime"}
    assert {row["emode"] for row in whole.batches["collateral_tiers"].to_pylist()} == {""}


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _ipc(table: pa.Table, opened: Callable[..., Any]) -> bytes:
    out = io.BytesIO()
    with opened(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


FORMATS: Mapping[str, Callable[[pa.Table], bytes]] = {
    "parquet": _parquet,
    "pq": _parquet,
    "arrow": lambda table: _ipc(table, pa.ipc.new_file),
    "ipc": lambda table: _ipc(table, pa.ipc.new_stream),
    "arrows": lambda table: _ipc(table, pa.ipc.new_stream),
    "FEATHER": lambda table: _ipc(table, pa.ipc.new_file),
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_file_format_gives_the_same_tables(whole: Normalized, tmp_path: Path, suffix: str) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.{suffix}").write_bytes(FORMATS[suffix](whole.batches[name]))
    result = normalized(*(fetched(name, f"{name}.{suffix}", root=tmp_path) for name in NAMES))
    assert result.failures == []
    assert result.batches == whole.batches


def test_json_rows_give_the_same_tables(whole: Normalized, tmp_path: Path) -> None:
    for name in NAMES:
        rows = [
            {
                k: v.isoformat() if isinstance(v, datetime) else str(v) if isinstance(v, Decimal) else v
                for k, v in r.items()
            }
            for r in whole.batches[name].to_pylist()
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps({"request": name, "body": rows}))
    result = normalized(*(fetched("", f"{name}.json", root=tmp_path) for name in NAMES))
    assert result.failures == []
    assert result.batches == whole.batches


class Stream:
    """Something that only speaks the Arrow C stream interface, as a DataFrame of another library does."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


def test_objects_in_memory_go_through_the_same_code(whole: Normalized) -> None:
    for wrap in (lambda table: table, Stream, lambda table: table.to_pylist()):
        result = read_tables({name: wrap(whole.batches[name]) for name in NAMES})
        assert result.failures == []
        assert result.batches == whole.batches
    batch = whole.batches["balances"].to_batches()[0]
    assert read_tables({"balances": batch}).batches["balances"] == whole.batches["balances"]


def test_types_of_other_libraries_are_cast(whole: Normalized) -> None:
    positions = whole.batches["positions"]
    foreign = pa.table(
        {
            "account_id": pa.array(positions["account_id"].to_pylist(), pa.large_string()),
            "instrument_id": pa.array(positions["instrument_id"].to_pylist()).dictionary_encode(),
            "side_mode": pa.array(positions["side_mode"].to_pylist(), pa.string_view()),
            "quantity": pa.array(["2", "-35.25"]),
            "entry_price": pa.array(positions["entry_price"].to_pylist(), pa.decimal256(50, 20)),
        }
    )
    result = read_tables({"positions": Stream(foreign)})
    assert result.failures == []
    assert result.batches["positions"] == positions


def test_the_metadata_of_a_file_may_name_its_table(whole: Normalized, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(_parquet(whole.batches["marks"]))
    assert fetched("", "a.parquet", root=tmp_path).request == "marks"
    (tmp_path / "b.parquet").write_bytes(_parquet(whole.batches["marks"].replace_schema_metadata(None)))
    (tmp_path / "c.csv").write_text("venue,subject\n")
    for file in ("b.parquet", "c.csv"):
        answer = RecordedTransport(tmp_path).fetch("tables", PayloadRequest("", file))
        assert isinstance(answer, Failure)
        assert (answer.reason, answer.path) == (FailureReason.MISSING_FIELD, "request")


def test_the_adapter_is_registered() -> None:
    assert isinstance(find_adapter("tables"), Adapter)


def test_the_order_of_payloads_does_not_matter() -> None:
    payloads = set_cell("positions", 0, "quantity", "two")
    one, two = normalized(*payloads), normalized(*reversed(payloads))
    assert one.failures == two.failures != []
    assert one.batches == two.batches


def test_the_tables_make_a_snapshot_without_a_finding(whole: Normalized) -> None:
    snapshot = take_snapshot([whole.batches], whole.failures, as_of=AS_OF)
    assert snapshot.failures == ()
    assert {row["account_id"] for row in snapshot.tables["accounts"]} == EVERYONE


# ---------------------------------------------------------------------------------------------------------------------
# Bad rows


@pytest.mark.parametrize(
    ("name", "row", "column", "text", "reason", "accounts"),
    [
        ("positions", 0, "quantity", "two", FailureReason.NOT_A_NUMBER, {BLUE}),
        ("positions", 0, "quantity", "NaN", FailureReason.NOT_A_NUMBER, {BLUE}),
        ("positions", 0, "quantity", "1_000", FailureReason.NOT_A_NUMBER, {BLUE}),
        ("positions", 1, "quantity", "1e20", FailureReason.OUT_OF_RANGE, {GREEN}),
        (
            "positions",
            1,
            "entry_price",
            "99999999999999999999.9999999999999999999",
            FailureReason.OUT_OF_RANGE,
            {GREEN},
        ),
        ("positions", 1, "side_mode", "", FailureReason.MISSING_FIELD, {GREEN}),
        ("positions", 1, "account_id", "", FailureReason.MISSING_FIELD, EVERYONE),
        ("balances", 2, "collateral_enabled", "yes", FailureReason.MALFORMED, {LOAN}),
        ("accounts", 1, "received_at", "2024-06-30T00:00:00", FailureReason.MALFORMED, {GREEN}),
        ("accounts", 1, "received_at", "noon", FailureReason.MALFORMED, {GREEN}),
        ("marks", 0, "value", "inf", FailureReason.NOT_A_NUMBER, {BLUE}),
        ("marks", 2, "value", "", FailureReason.MISSING_FIELD, {LOAN}),
        ("marks", 1, "subject", "", FailureReason.MISSING_FIELD, EVERYONE),
        ("instruments", 1, "contract_size", "x", FailureReason.NOT_A_NUMBER, {GREEN}),
        ("assets", 2, "multiplier", "", FailureReason.MISSING_FIELD, EVERYONE),
        ("assets", 0, "multiplier", "", FailureReason.MISSING_FIELD, {BLUE}),
        ("rule_sets", 1, "component_no", "1.5", FailureReason.NOT_A_NUMBER, {BLUE, GREEN}),
        ("rule_sets", 4, "component_no", "99999999999", FailureReason.MALFORMED, {LOAN}),
        ("margin_tiers", 1, "maintenance_rate", "5 %", FailureReason.NOT_A_NUMBER, {BLUE, GREEN}),
        ("margin_tiers", 1, "rule_set", "", FailureReason.MISSING_FIELD, EVERYONE),
        ("collateral_tiers", 0, "floor", "-", FailureReason.NOT_A_NUMBER, {LOAN}),
    ],
)
def test_a_bad_cell_names_itself_and_stops_those_who_need_it(
    whole: Normalized, name: str, row: int, column: str, text: str, reason: FailureReason, accounts: set[str]
) -> None:
    result = normalized(*set_cell(name, row, column, text))
    assert reasons(result) == {reason}
    assert concerned(result) == accounts
    for failure in result.failures:
        assert failure.payload == f"{name}.csv"
        assert failure.path.startswith(f"[{row}]")
        assert column in failure.path + failure.message
    kept = whole.batches[name].to_pylist()
    del kept[row]
    assert result.batches[name].to_pylist() == kept
    for other in set(TABLES) - {name}:
        assert result.batches[other] == whole.batches[other]


def test_a_bad_row_of_an_arrow_table_is_found_by_halves(whole: Normalized) -> None:
    count = 5000
    table = pa.table(
        {
            "account_id": [f"otc:{n}" for n in range(count)],
            "asset_id": ["USDC"] * count,
            "side": ["asset"] * count,
            "quantity": [float("nan") if n in (0, 1234, count - 1) else float(n) for n in range(count)],
            "collateral_enabled": [True] * count,
        }
    )
    result = read_tables({"balances": table})
    assert [(f.path, f.account_id, f.reason) for f in result.failures] == [
        (f"[{n}]", f"otc:{n}", FailureReason.NOT_A_NUMBER) for n in (0, 1234, count - 1)
    ]
    assert result.batches["balances"].num_rows == count - 3


def test_a_table_of_garbage_is_refused_and_not_listed_row_by_row() -> None:
    count = 20_000
    table = pa.table(
        {
            "source_node": ["a"] * count,
            "target_node": [str(n) for n in range(count)],
            "asset_id": ["USDC"] * count,
            "transfer_median_s": [float("nan")] * count,
            **{name: [1.0] * count for name in ("transfer_p99_s", "fee_rate", "failure_probability")},
        }
    )
    result = read_tables({"routes": table})
    assert len(result.failures) == 1001
    assert "19000 more rows" in result.failures[-1].message
    assert result.batches["routes"].num_rows == 0


@pytest.mark.parametrize(
    ("change", "reason", "part"),
    [
        (lambda cells: cells[0].__setitem__(3, "quantty"), FailureReason.MALFORMED, "did you mean 'quantity'"),
        (lambda cells: [line.pop(3) for line in cells], FailureReason.MISSING_FIELD, "['quantity']"),
        (lambda cells: [line.append(line[3]) for line in cells], FailureReason.MALFORMED, "stands twice"),
    ],
)
def test_a_header_that_is_wrong_refuses_the_table(change: Any, reason: FailureReason, part: str) -> None:
    result = normalized(*edited("positions", change))
    assert reasons(result) == {reason}
    assert concerned(result) == EVERYONE
    assert part in result.failures[0].message
    assert result.batches["positions"].num_rows == 0


def test_a_line_with_a_cell_too_many_or_too_few_is_one_failure() -> None:
    for change in (lambda cells: cells[2].append("x"), lambda cells: cells[2].pop()):
        result = normalized(*edited("positions", change))
        assert [(f.reason, f.path, f.account_id) for f in result.failures] == [(FailureReason.MALFORMED, "[1]", GREEN)]
        assert result.batches["positions"].num_rows == 1


def test_rows_of_equal_key_are_all_rejected() -> None:
    result = normalized(*edited("positions", lambda cells: cells.append([*cells[1][:3], "3", "60000"])))
    assert [(f.reason, f.account_id, f.venue) for f in result.failures] == [(FailureReason.DUPLICATE, BLUE, "tables")]
    assert result.batches["positions"]["account_id"].to_pylist() == [GREEN]


def test_shared_rows_that_agree_in_full_count_once(whole: Normalized) -> None:
    for name in ("assets", "marks", "margin_tiers"):
        result = normalized(*edited(name, lambda cells: cells.append(list(cells[1]))))
        assert result.failures == []
        assert result.batches[name] == whole.batches[name]
    result = normalized(*edited("marks", lambda cells: cells.append([*cells[1][:3], "61000", *cells[1][4:]])))
    assert (reasons(result), concerned(result)) == ({FailureReason.DUPLICATE}, {BLUE})
    assert {f.venue for f in result.failures} == {"otc"}


def test_two_files_of_one_table_are_both_rejected_unless_their_owners_differ(whole: Normalized) -> None:
    result = normalized(*desk(), fetched("positions"))
    assert [f.reason for f in result.failures] == [FailureReason.DUPLICATE] * 2 * len(EVERYONE)
    assert concerned(result) == EVERYONE
    assert result.batches["positions"].num_rows == 0
    other = Payload(
        "positions",
        "more.csv",
        "east",
        None,
        "",
        CsvLines((*KEYS["positions"], "quantity"), ((LOAN, "otc:BTC-PERP", "net", "1"),)),
    )
    assert normalized(*desk(), other).batches["positions"].num_rows == whole.batches["positions"].num_rows + 1


@pytest.mark.parametrize("body", [None, 5, "text", {"a": 1}, object()])
def test_a_body_that_is_no_table_is_malformed(body: Any) -> None:
    payloads = [p for p in desk() if p.request != "positions"]
    result = normalized(*payloads, Payload("positions", "x", "", None, "", body))
    assert (reasons(result), concerned(result)) == ({FailureReason.MALFORMED}, EVERYONE)


@pytest.mark.parametrize("row", [None, 5, [1], "x"])
def test_a_json_row_that_is_no_object_is_malformed(row: Any) -> None:
    result = read_tables({"routes": [row]})
    assert [f.reason for f in result.failures] == [FailureReason.MALFORMED]


def test_an_unknown_table_is_unsupported_and_names_the_known_ones() -> None:
    result = normalized(Payload("possitions", "x.csv", "", None, "", []))
    assert [f.reason for f in result.failures] == [FailureReason.UNSUPPORTED]
    assert "positions" in result.failures[0].message
    with pytest.raises(KeyError, match="possitions"):
        read_tables({"possitions": []})


def test_another_version_of_a_table_is_refused(whole: Normalized) -> None:
    metadata = {"crossmargin.table": "accounts", "crossmargin.version": "99"}
    old = whole.batches["accounts"].replace_schema_metadata(metadata)
    result = read_tables({"accounts": old})
    assert reasons(result) == {FailureReason.MALFORMED}
    assert "99" in result.failures[0].message


# ---------------------------------------------------------------------------------------------------------------------
# Files that cannot be read


def _truncations(whole: Normalized) -> list[tuple[str, bytes]]:
    out = []
    for suffix in ("parquet", "arrow", "arrows"):
        data = FORMATS[suffix](whole.batches["positions"])
        out += [(suffix, data[: len(data) * n // 7]) for n in range(7)]
        out.append((suffix, data[:8] + bytes(byte ^ 0x55 for byte in data[8:])))
    out.append(("csv", b""))
    out.append(("csv", b'account_id,"instr'))
    out.append(("csv", b"account_id\xff\n"))
    return out


def test_a_damaged_file_makes_every_account_incomplete(whole: Normalized, tmp_path: Path) -> None:
    others = [p for p in desk() if p.request != "positions"]
    for suffix, data in _truncations(whole):
        (tmp_path / f"positions.{suffix}").write_bytes(data)
        result = normalized(*others, fetched("positions", f"positions.{suffix}", root=tmp_path))
        assert reasons(result) <= {FailureReason.MALFORMED, FailureReason.MISSING_FIELD}, (suffix, len(data))
        assert concerned(result) == EVERYONE


def test_a_missing_file_is_unreachable_for_every_account(tmp_path: Path) -> None:
    others = [p for p in desk() if p.request != "positions"]
    result = normalized(*others, fetched("positions", "none.parquet", root=tmp_path))
    assert (reasons(result), concerned(result)) == ({FailureReason.UNREACHABLE}, EVERYONE)
    assert str(tmp_path) not in result.failures[0].message


def test_a_csv_may_begin_with_a_byte_order_mark_and_hold_blank_lines(tmp_path: Path, whole: Normalized) -> None:
    text = (PAYLOADS / "positions.csv").read_text(encoding="utf-8").replace("\n", "\r\n\r\n")
    (tmp_path / "positions.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    result = normalized(fetched("positions", root=tmp_path))
    assert result.failures == []
    assert result.batches["positions"] == whole.batches["positions"]


# ---------------------------------------------------------------------------------------------------------------------
# Properties

CELLS = st.one_of(
    st.none(),
    st.text(max_size=8),
    st.integers(),
    st.decimals(allow_nan=True, allow_infinity=True),
    st.booleans(),
    st.sampled_from(["2024-06-30T00:00:00Z", "1719705600000", "true", "asset", "otc:blue", "-0.5", "\ud800"]),
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(TABLES)), st.data())
def test_any_rows_give_canonical_tables_and_failures_never_an_exception(name: str, data: st.DataObject) -> None:
    columns = CANONICAL[name].names
    rows = data.draw(st.lists(st.dictionaries(st.sampled_from(columns), CELLS), max_size=4))
    result = read_tables({name: rows})
    table = result.batches[name]
    assert cast_table(name, table) == table
    assert table.num_rows + len({f.path for f in result.failures}) <= len(rows) + 1
    assert table.num_rows == len(rows) or result.failures or len(rows) > table.num_rows
    keys = [tuple(row[key] for key in KEYS[name]) for row in table.to_pylist()]
    assert len(keys) == len(set(keys))


ODD_CELLS = st.sampled_from(
    ["", "1", " 2 ", "-0.5", "+.5", "1e3", "1e25", "1_0", "٣", "nan", "5.", "true", "FALSE ", "yes", "1719705600",
     "2024-06-30T00:00:00Z", "2024-06-30", "USDC", "\t7"]
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["positions", "margin_tiers", "marks", "balances", "accounts"]), st.data())
def test_columns_and_cells_read_a_csv_alike(name: str, data: st.DataObject) -> None:
    schema = CANONICAL[name]
    kinds = {"bool": "true", "string": "a", "int32": "3", "double": "0.25"}
    plain = {f.name: kinds.get(str(f.type), "2024-06-30T00:00:00Z" if "time" in str(f.type) else "1.5") for f in schema}
    lines = []
    for _ in range(data.draw(st.integers(0, 3))):
        line = dict(plain)
        for column in data.draw(st.lists(st.sampled_from(schema.names), max_size=2)):
            line[column] = data.draw(ODD_CELLS)
        lines.append(tuple(line.values()))
    source = CsvLines(tuple(schema.names), tuple(lines))
    found, rows = csv_table(name, source), list(csv_rows(name, source))
    if found is not None:
        assert [row.error for row in rows] == [None] * len(lines)
        assert found == table_from_rows(name, [row.values for row in rows])
    elif all(row.error is None for row in rows) and all("\t" not in cell for line in lines for cell in line):
        with pytest.raises(DataError):
            table_from_rows(name, [row.values for row in rows])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdef"),
            st.decimals(min_value=-(10**19), max_value=10**19, places=18, allow_nan=False),
        ),
        unique_by=lambda pair: pair[0],
    )
)
def test_decimals_survive_text_and_arrow_alike(pairs: list[tuple[str, Decimal]]) -> None:
    rows = [
        {"account_id": "a", "instrument_id": name, "side_mode": "net", "quantity": quantity} for name, quantity in pairs
    ]
    expected = table_from_rows("positions", rows)
    header = ("account_id", "instrument_id", "side_mode", "quantity")
    lines = tuple(("a", name, "net", format(quantity, "f")) for name, quantity in pairs)
    from_text = normalized(Payload("positions", "x.csv", "", None, "", CsvLines(header, lines)))
    assert from_text.failures == []
    assert from_text.batches["positions"] == expected
    assert read_tables({"positions": expected}).batches["positions"] == expected
