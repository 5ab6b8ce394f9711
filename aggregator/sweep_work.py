"""What the shards of a sweep are computed from and written to, and which portfolio lies in which shard."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .config import Reconcile, Run
from .engine import Cube, Detail, Headline, evaluate_details
from .evidence import Evidence
from .factors import Generation
from .path_margin import PathLaw
from .policy import Requirement
from .portfolio import Book, PackedPortfolio
from .progress import Progress
from .results import result_table
from .store import ResultStore
from .stress import StressLibrary
from .transfer_run import TransferLaw


class SweepWork(NamedTuple):
    """What the shards of one run are computed from and written to.

    `shards` are those of portfolios; the shard after them is that of the detail.
    """

    store: ResultStore
    run_id: str
    shards: int
    book: Book
    generation: Generation
    cube: Cube
    paths: PathLaw | None
    transfer: TransferLaw | None
    devices: int
    run: Run
    policy: Requirement
    grid_labels: tuple[str, ...]
    venues: Sequence[str]
    library: StressLibrary | None
    stresses: Sequence[str]
    evidence: Evidence
    rates: Mapping[str, float]
    """`borrow_rates` of what was read."""
    leaving: Mapping[str, float]
    """`withdrawal_shares` of what was read."""
    bound: Reconcile
    say: Progress


def shard_of(portfolio_id: str, shards: int) -> int:
    """Shard of a portfolio: its hash range among `shards`, the same whatever else is in the book."""
    return int.from_bytes(hashlib.sha256(portfolio_id.encode()).digest()[:8], "big") * shards >> 64


def figures_in_detail(work: SweepWork, members: Sequence[PackedPortfolio]) -> dict[str, tuple[Headline, Detail]]:
    """Headline and detail by portfolio id of those that have figures."""
    found = evaluate_details(
        members,
        work.generation.factors,
        work.cube,
        devices=work.devices,
        worst=work.run.worst_scenarios,
        policy=work.policy,
        venues=work.venues,
    )
    return {p.portfolio_id: both for p, both in zip(members, found, strict=True) if both is not None}


def write_rows(work: SweepWork, shard: int, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the rows of one shard, by result table; nothing is written twice."""
    tables = {name: result_table(name, work.run_id, of) for name, of in rows.items()}
    work.store.write_shard(work.run_id, shard, tables)
