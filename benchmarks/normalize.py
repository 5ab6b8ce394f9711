"""Rows per second of every adapter: payloads in memory to canonical tables.

    .venv/bin/python -m benchmarks.normalize [VENUE ...] [--rows 100000] [--rounds 5] [--write] [--profile]

Shapes of a venue, all made of its own sample payloads by repetition with ids of their own:

- `accounts`: all of the sample's owners again and again under other labels, beside the market-wide payloads once: what
  a desk of many owners reads. Ids that the venue itself gives out (order ids, addresses) repeat, as they would not.
- `positions`: the same with one owner, of whom nothing is read but positions and what they need.
- a list: one payload with one long flat list (open orders, tickers), where the venue has one whose entries need not be
  markets of the sample.

Time is processor time of `normalize` alone: payloads are parsed JSON before, checks across tables come after. The
shapes alternate within a round, so that a busy machine disturbs them alike; of the rounds the median counts. `--write`
puts the figures into `benchmarks/results/normalize.json`, `--profile` prints where the time of each shape goes.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import platform
import pstats
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from adapters.adapter import Context, find_adapter
from adapters.asset_book import read_asset_book
from adapters.transport import Payload
from aggregator.errors import FailureReason
from tests.payload_mutations import ROOT, has_sample, sample, venues

RESULTS = Path(__file__).resolve().parent / "results" / "normalize.json"

Record = dict[str, Any]
Place = tuple[str | int, ...]


class Shape(NamedTuple):
    """One thing to time: payloads of a venue; `entries` counts what was repeated."""

    venue: str
    name: str
    entries: int
    payloads: Sequence[Payload]
    context: Context


class List(NamedTuple):
    """A list to lengthen: file of the sample, place of the list in its body, and how entry `n` differs from the model
    entry `of`.
    """

    name: str
    file: str
    place: Place
    of: int
    made: Callable[[Record, int], Record]


def _option(field: str, name: str) -> Callable[[Record, int], Record]:
    """Entries named by option strikes that count up; `{}` is where the strike goes."""
    return lambda record, n: record | {field: name.format(1000 + n)}


def _numbered(field: str) -> Callable[[Record, int], Record]:
    """Entries with an id that counts up, text where the sample's is."""
    return lambda record, n: record | {field: n if isinstance(record[field], int) else str(n)}


POSITIONS: Mapping[str, tuple[str, ...]] = {
    "binance": ("alpha_account.json", "alpha_position_risk.json"),
    "bybit": ("positions_south_linear.json", "positions_south_inverse.json", "wallet_south.json"),
    "deribit": ("south_summaries.json", "south_positions.json"),
    "dydx_v4": ("north_parent_subaccount.json",),
    "hyperliquid": ("june_clearinghouse_state.json",),
    "okx": ("south_balance.json", "south_positions.json", "south_config.json"),
}
"""Payloads of an owner whose positions are read alone."""

LISTS: Mapping[str, List] = {
    "binance": List("open orders", "alpha_open_orders.json", (), 0, _numbered("orderId")),
    "bybit": List(
        "option tickers", "tickers_option.json", ("result", "list"), 0, _option("symbol", "BTC-27SEP24-{}-C")
    ),
    "deribit": List(
        "book summary",
        "book_summary_btc_27sep24.json",
        ("result",),
        0,
        _option("instrument_name", "BTC-27SEP24-{}-C"),
    ),
    "dydx_v4": List("open orders", "south_orders.json", (), 0, _numbered("id")),
    "hyperliquid": List("open orders", "june_open_orders.json", (), 0, _numbered("oid")),
    "okx": List("option summary", "opt_summary.json", ("data",), 0, _option("instId", "ETH-USD-240927-{}-C")),
    "paradex": List("open orders", "desk_orders.json", ("results",), 0, _numbered("id")),
}


def accounts_shape(venue: str, rows: int, *, only: Sequence[str] = ()) -> Shape:
    """The sample's owners (or `only` some of their files) under as many labels as give about that many rows."""
    of = sample(venue)
    shared = [payload for payload in of.payloads if not payload.account]
    owned = [payload for payload in of.payloads if payload.account and (not only or payload.name in only)]
    assert owned

    def payloads(copies: int) -> list[Payload]:
        return [
            *shared,
            *(
                replace(
                    p, account=f"{p.account}{n}", name=f"{n}_{p.name}", sha256=f"{n}{p.sha256}", body=deepcopy(p.body)
                )
                for n in range(copies)
                for p in owned
            ),
        ]

    one, three = (count_rows(venue, payloads(copies), of.context) for copies in (1, 3))
    copies = max(1, 2 * rows // max(three - one, 1))
    return Shape(
        venue,
        "positions" if only else "accounts",
        copies * len({p.account for p in owned}),
        payloads(copies),
        of.context,
    )


def list_shape(venue: str, entries: int) -> Shape:
    """The sample with one long list."""
    of, listed = sample(venue), LISTS[venue]

    def lengthened(node: Any, place: Place) -> Any:
        if place:
            return node | {place[0]: lengthened(node[place[0]], place[1:])}
        return [listed.made(node[listed.of], n) for n in range(entries)]

    payloads = [
        replace(payload, body=lengthened(payload.body, listed.place)) if payload.name == listed.file else payload
        for payload in of.payloads
    ]
    assert any(payload.name == listed.file for payload in of.payloads), listed.file
    return Shape(venue, listed.name, entries, payloads, of.context)


def table_shape(entries: int) -> Shape:
    """Positions as an Arrow table: the reader of canonical tables."""
    table = pa.table(
        {
            "account_id": [f"otc:desk:{n % 1000}" for n in range(entries)],
            "instrument_id": [f"otc:BTC-{n}" for n in range(entries)],
            "side_mode": ["net"] * entries,
            "quantity": [Decimal(n % 977 + 1) / 8 for n in range(entries)],
            "entry_price": [Decimal(60_000 + n % 1009) for n in range(entries)],
        }
    )
    payload = Payload("positions", "positions.parquet", "desk", datetime(2024, 6, 30, tzinfo=UTC), "0" * 64, table)
    return Shape("tables", "positions", entries, [payload], Context(read_asset_book(ROOT / "configs/assets.toml"), {}))


def count_rows(venue: str, payloads: Sequence[Payload], context: Context) -> int:
    """Rows of all canonical tables, failures too."""
    batches, failures = find_adapter(venue).normalize(payloads, context)
    return sum(table.num_rows for table in batches.values()) + len(failures)


def shapes(chosen: Sequence[str], rows: int) -> list[Shape]:
    """Everything to time."""
    out = []
    for venue in chosen:
        if venue == "tables":
            out.append(table_shape(rows))
            continue
        out.append(accounts_shape(venue, rows))
        if venue in POSITIONS:
            out.append(accounts_shape(venue, rows, only=POSITIONS[venue]))
        if venue in LISTS:
            out.append(list_shape(venue, rows))
    return out


class Timing(NamedTuple):
    """Median of the rounds, what came out, and the failures that are not of ids that repeat."""

    shape: Shape
    seconds: float
    rows: int
    failures: int

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


def measure(chosen: Sequence[Shape], rounds: int) -> list[Timing]:
    """Every shape once per round; garbage is collected between, not during."""
    seconds: list[list[float]] = [[] for _ in chosen]
    counted = [(0, 0)] * len(chosen)
    for _ in range(rounds):
        for place, shape in enumerate(chosen):
            adapter = find_adapter(shape.venue)
            gc.collect()
            started = time.process_time()
            batches, failures = adapter.normalize(shape.payloads, shape.context)
            seconds[place].append(time.process_time() - started)
            other = sum(failure.reason is not FailureReason.DUPLICATE for failure in failures)
            counted[place] = sum(table.num_rows for table in batches.values()) + len(failures), other
    return [
        Timing(shape, statistics.median(of), rows, other)
        for shape, of, (rows, other) in zip(chosen, seconds, counted, strict=True)
    ]


def profile(shape: Shape) -> None:
    """Where the time of one shape goes."""
    profiler = cProfile.Profile()
    profiler.runcall(find_adapter(shape.venue).normalize, shape.payloads, shape.context)
    print(f"\n{shape.venue}, {shape.name}, {shape.entries} entries")
    pstats.Stats(profiler, stream=sys.stdout).strip_dirs().sort_stats("tottime").print_stats(18)


def document(timings: Sequence[Timing], rounds: int) -> Mapping[str, Any]:
    """The figures with what they depend on beside the code."""
    return {
        "machine": {
            "cpu_count": os.cpu_count(),
            "architecture": platform.machine(),
            "system": platform.system(),
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
        },
        "rounds": rounds,
        "shapes": [
            {
                "venue": timing.shape.venue,
                "shape": timing.shape.name,
                "entries": timing.shape.entries,
                "rows": timing.rows,
                "seconds": round(timing.seconds, 4),
                "rows_per_second": round(timing.rows_per_second),
            }
            for timing in timings
        ],
    }


def main() -> None:
    """The command line."""
    known = [venue for venue in venues() if has_sample(venue)] + ["tables"]
    parser = argparse.ArgumentParser(prog="benchmarks.normalize", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("venues", nargs="*", help=f"of {', '.join(known)}; all of them unless given")
    parser.add_argument("--rows", type=int, default=100_000, help="rows per shape, about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.venues) - set(known):
        parser.error(f"no payloads of {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    chosen = shapes(arguments.venues or known, arguments.rows)
    if arguments.profile:
        for shape in chosen:
            profile(shape)
        return
    timings = measure(chosen, arguments.rounds)
    print(f"{'venue':12} {'shape':16} {'entries':>8} {'rows':>8} {'seconds':>8} {'rows/s':>9} failures")
    for timing in timings:
        venue, name, entries = timing.shape[:3]
        print(
            f"{venue:12} {name:16} {entries:8,} {timing.rows:8,} {timing.seconds:8.3f} {timing.rows_per_second:9,.0f} "
            f"{timing.failures}"
        )
    if arguments.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(document(timings, arguments.rounds), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
