"""Netted portfolios as padded arrays for the devices: rows in groups, portfolios dealt out by their work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .netted_kernel import ROWS_TOGETHER, ShardArrays
from .netting import NettedBook

# Few sizes, because each is a compilation; slots without an account cost nothing.
_ACCOUNT_SLOTS = (8, 64, 512)


class _Groups(NamedTuple):
    """Rows of accounts in groups of `ROWS_TOGETHER`: first group and number of groups of each account."""

    first: np.ndarray
    number: np.ndarray
    row: np.ndarray
    coefficient: np.ndarray


def _groups(netted: NettedBook, accounts: int) -> _Groups:
    rows = netted.rows
    held = np.bincount(rows.account, minlength=accounts)
    count = -(-held // ROWS_TOGETHER)
    first = np.cumsum(count) - count
    place = np.arange(len(rows.account)) - np.repeat(np.cumsum(held) - held, held)
    at = (first[rows.account] * ROWS_TOGETHER) + place
    total = int(count.sum())
    row = np.zeros(total * ROWS_TOGETHER, np.int32)
    coefficient = np.zeros((2, total * ROWS_TOGETHER), np.float32)
    row[at] = rows.row
    coefficient[0, at], coefficient[1, at] = rows.market, rows.headroom
    shape = (2, total, ROWS_TOGETHER)
    return _Groups(
        first.astype(np.int32),
        count.astype(np.int32),
        row.reshape(total, ROWS_TOGETHER),
        np.ascontiguousarray(coefficient.reshape(shape).transpose(1, 0, 2)),
    )


def _power_of_two(count: int, least: int) -> int:
    return max(least, 1 << max(count - 1, 0).bit_length())


def _ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """All of first .. first + count - 1, range after range."""
    ends = np.cumsum(count)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - count, count) + np.repeat(first, count)


class Bucket(NamedTuple):
    """Arrays of portfolios of one number of slots, and which portfolios lie where [devices, P] (-1 is padding)."""

    members: np.ndarray
    arrays: ShardArrays


def buckets(netted: NettedBook, portfolio: np.ndarray, *, devices: int) -> Iterator[Bucket]:
    """The portfolios of a shard, numbered from 0 in `portfolio` of each account, by slots and dealt to the devices."""
    accounts = len(portfolio)
    groups = _groups(netted, accounts)
    held = np.bincount(portfolio)
    first_account = np.cumsum(held) - held
    hinges = netted.hinges
    hinge_count = np.bincount(hinges.account, minlength=accounts)
    hinge_first = np.cumsum(hinge_count) - hinge_count
    room = -np.bincount(portfolio, weights=netted.headroom)
    single = room.astype(np.float32)
    unified_limit = np.where(single < room, np.nextafter(single, np.float32(np.inf), dtype=np.float32), single)
    slots_of = np.asarray(_ACCOUNT_SLOTS)[np.searchsorted(_ACCOUNT_SLOTS, held)]
    work = np.bincount(portfolio, weights=groups.number)
    for slots in np.unique(slots_of).tolist():
        members = np.flatnonzero(slots_of == slots)
        # Dealt out from the largest down, so that every device has about the same work.
        dealt = members[np.argsort(-work[members], kind="stable")]
        parts = [np.sort(dealt[device::devices]) for device in range(devices)]
        size = _power_of_two(max(len(part) for part in parts), 16)
        slot = np.arange(slots)
        of_part = []
        for part in parts:
            account = first_account[part][:, None] + slot
            real = slot < held[part][:, None]
            account = np.where(real, account, 0)
            counts = np.where(real, groups.number[account], 0)
            flat = _ranges(groups.first[account].ravel(), counts.ravel())
            starts = (np.cumsum(counts.ravel()) - counts.ravel()).reshape(counts.shape)
            h_counts = np.where(real, hinge_count[account], 0)
            h_flat = _ranges(hinge_first[account].ravel(), h_counts.ravel())
            of_part.append((part, account, real, counts, flat, starts, h_counts, h_flat))
        group_size = _power_of_two(max(len(p[4]) for p in of_part), 64)
        hinge_size = _power_of_two(max(len(p[7]) for p in of_part), 16)

        def stacked(values: Sequence[np.ndarray], length: int, dtype: Any) -> np.ndarray:
            out = np.zeros((len(values), length, *values[0].shape[1:]), dtype)
            for device, value in enumerate(values):
                out[device, : len(value)] = value
            return out

        host: dict[str, Any] = {
            "real": np.array([len(p[0]) for p in of_part], np.int32),
            "accounts": stacked([held[p[0]] for p in of_part], size, np.int32),
            "first": stacked([p[5] for p in of_part], size, np.int32),
            "groups": stacked([p[3] for p in of_part], size, np.int32),
            "limit": stacked([np.where(p[2], netted.limit[p[1]], -np.inf) for p in of_part], size, np.float32),
            "equity": stacked([np.where(p[2], netted.equity[p[1]], 0.0) for p in of_part], size, np.float32),
            "unified_limit": stacked([unified_limit[p[0]] for p in of_part], size, np.float32),
            "hinge_first": stacked(
                [(np.cumsum(p[6].ravel()) - p[6].ravel()).reshape(p[6].shape) for p in of_part], size, np.int32
            ),
            "hinge_count": stacked([p[6] for p in of_part], size, np.int32),
            "row": stacked([groups.row[p[4]] for p in of_part], group_size, np.int32),
            "coefficient": stacked([groups.coefficient[p[4]] for p in of_part], group_size, np.float32),
            "hinge_rows": stacked(
                [np.stack([hinges.notional_row[p[7]], hinges.settlement_row[p[7]]], axis=1) for p in of_part],
                hinge_size,
                np.int32,
            ),
            "hinge_figures": stacked(
                [np.stack([column[p[7]] for column in hinges[3:]], axis=1) for p in of_part], hinge_size, np.float32
            ),
        }
        arrays = ShardArrays(**host)
        placed = np.full((devices, size), -1, np.int64)
        for device, part in enumerate(parts):
            placed[device, : len(part)] = part
        yield Bucket(placed, arrays)
