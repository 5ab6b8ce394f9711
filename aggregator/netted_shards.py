"""Netted portfolios as padded arrays for the devices: rows in groups, portfolios dealt out by their work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .netted_arrays import KNEES_TOGETHER, ROWS_TOGETHER, ShardArrays
from .netting import Hinges, NettedBook, Rows

# Few sizes, because each is a compilation; slots without an account cost nothing.
_FEWEST_SLOTS = 8
_MORE_SLOTS = 8


class _Groups(NamedTuple):
    """Entries of accounts in groups of some: first group and number of groups of each account, the rows of the cube
    [groups, some] and two figures of each [groups, two, some].
    """

    first: np.ndarray
    number: np.ndarray
    row: np.ndarray
    figures: np.ndarray


def _groups(
    account: np.ndarray,
    row: np.ndarray,
    figures: tuple[np.ndarray, np.ndarray],
    *,
    accounts: int,
    together: int,
    least: int = 0,
) -> _Groups:
    held = np.bincount(account, minlength=accounts)
    count = np.maximum(-(-held // together), least)
    first = np.cumsum(count) - count
    place = np.arange(len(account)) - np.repeat(np.cumsum(held) - held, held)
    at = (first[account] * together) + place
    total = int(count.sum())
    rows = np.zeros(total * together, np.int32)
    both = np.zeros((2, total * together), np.float32)
    rows[at] = row
    both[0, at], both[1, at] = figures
    return _Groups(
        first.astype(np.int32),
        count.astype(np.int32),
        rows.reshape(total, together),
        np.ascontiguousarray(both.reshape(2, total, together).transpose(1, 0, 2)),
    )


def _knees(hinges: Hinges, *, accounts: int) -> tuple[_Groups, Hinges]:
    """The hinges in USD without a jump, which the change of one row decides, as (weight, knee); the other hinges."""
    plain = (hinges.settlement_row == 0) & (hinges.jump == 0) & (hinges.notional > 0)
    of = Hinges(*(column[plain] for column in hinges))
    figures = (of.slope * of.notional, -of.distance / of.notional)
    knees = _groups(of.account, of.notional_row, figures, accounts=accounts, together=KNEES_TOGETHER)
    return knees, Hinges(*(column[~plain] for column in hinges))


def _pooled(rows: Rows, portfolio: np.ndarray) -> _Groups:
    """Rows of all accounts of a portfolio together, as losses; the second figure is always zero."""
    width = int(rows.row.max(initial=0)) + 1
    # Runs that are sorted already, account by account: a stable sort merges them.
    key = portfolio[rows.account].astype(np.int64) * width + rows.row
    order = np.argsort(key, kind="stable")
    key, market = key[order], rows.market[order]
    is_first = np.concatenate([[True], key[1:] != key[:-1]])[: len(key)]
    first = np.flatnonzero(is_first)
    summed = np.add.reduceat(market, first) if len(first) else market
    portfolios = int(portfolio[-1]) + 1
    figures = (-summed, np.zeros(len(first)))
    owner, row = np.divmod(key[first], width)
    return _groups(owner, row, figures, accounts=portfolios, together=ROWS_TOGETHER, least=1)


class _Runs(NamedTuple):
    """Which of an array's entries the accounts or portfolios of a device take, and where those of each then lie."""

    taken: np.ndarray
    first: np.ndarray
    number: np.ndarray


def _runs(first: np.ndarray, count: np.ndarray) -> _Runs:
    flat = count.ravel()
    return _Runs(_ranges(first.ravel(), flat), (np.cumsum(flat) - flat).reshape(count.shape), count)


def _slots(held: np.ndarray) -> np.ndarray:
    """Account slots of portfolios that have so many accounts: the least 8, 64, 512, ... that has room for them."""
    sizes = [_FEWEST_SLOTS]
    while sizes[-1] < held.max(initial=0):
        sizes.append(sizes[-1] * _MORE_SLOTS)
    return np.asarray(sizes)[np.searchsorted(sizes, held)]


def _power_of_two(count: int, least: int) -> int:
    return max(least, 1 << max(count - 1, 0).bit_length())


def _ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """All of first .. first + count - 1, range after range."""
    ends = np.cumsum(count)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - count, count) + np.repeat(first, count)


class _Part(NamedTuple):
    """What one device computes: portfolios, their accounts by slot (0 where there is none), whether there is one."""

    members: np.ndarray
    account: np.ndarray
    real: np.ndarray
    groups: _Runs
    pooled: _Runs
    knees: _Runs
    hinges: _Runs


class Bucket(NamedTuple):
    """Arrays of portfolios of one number of slots, and which portfolios lie where [devices, P] (-1 is padding)."""

    members: np.ndarray
    arrays: ShardArrays


def buckets(netted: NettedBook, portfolio: np.ndarray, *, devices: int) -> Iterator[Bucket]:
    """The portfolios of a shard, numbered from 0 in `portfolio` of each account, by slots and dealt to the devices."""
    accounts = len(portfolio)
    rows = netted.rows
    groups = _groups(
        rows.account, rows.row, (rows.market, rows.headroom), accounts=accounts, together=ROWS_TOGETHER, least=1
    )
    knees, hinges = _knees(netted.hinges, accounts=accounts)
    pooled = _pooled(rows, portfolio)
    held = np.bincount(portfolio)
    first_account = np.cumsum(held) - held
    hinge_count = np.bincount(hinges.account, minlength=accounts)
    hinge_first = np.cumsum(hinge_count) - hinge_count
    room = -np.bincount(portfolio, weights=netted.headroom)
    single = room.astype(np.float32)
    unified_limit = np.where(single < room, np.nextafter(single, np.float32(np.inf), dtype=np.float32), single)
    slots_of = _slots(held)
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
            of_part.append(
                _Part(
                    part,
                    account,
                    real,
                    _runs(groups.first[account], np.where(real, groups.number[account], 0)),
                    _runs(pooled.first[part], pooled.number[part]),
                    _runs(knees.first[account], np.where(real, knees.number[account], 0)),
                    _runs(hinge_first[account], np.where(real, hinge_count[account], 0)),
                )
            )
        group_size = _power_of_two(max(len(p.groups.taken) for p in of_part), 64)
        pooled_size = _power_of_two(max(len(p.pooled.taken) for p in of_part), 64)
        knee_size = _power_of_two(max(len(p.knees.taken) for p in of_part), 64)
        hinge_size = _power_of_two(max(len(p.hinges.taken) for p in of_part), 16)

        def stacked(values: Sequence[np.ndarray], length: int, dtype: Any) -> np.ndarray:
            out = np.zeros((len(values), length, *values[0].shape[1:]), dtype)
            for device, value in enumerate(values):
                out[device, : len(value)] = value
            return out

        host: dict[str, Any] = {
            "real": np.array([len(p.members) for p in of_part], np.int32),
            "accounts": stacked([held[p.members] for p in of_part], size, np.int32),
            "first": stacked([p.groups.first for p in of_part], size, np.int32),
            "groups": stacked([p.groups.number for p in of_part], size, np.int32),
            "limit": stacked([np.where(p.real, netted.limit[p.account], -np.inf) for p in of_part], size, np.float32),
            "equity": stacked([np.where(p.real, netted.equity[p.account], 0.0) for p in of_part], size, np.float32),
            "unified_limit": stacked([unified_limit[p.members] for p in of_part], size, np.float32),
            "pooled_first": stacked([p.pooled.first for p in of_part], size, np.int32),
            "pooled_groups": stacked([p.pooled.number for p in of_part], size, np.int32),
            "knee_first": stacked([p.knees.first for p in of_part], size, np.int32),
            "knee_groups": stacked([p.knees.number for p in of_part], size, np.int32),
            "hinge_first": stacked([p.hinges.first for p in of_part], size, np.int32),
            "hinge_count": stacked([p.hinges.number for p in of_part], size, np.int32),
            "row": stacked([groups.row[p.groups.taken] for p in of_part], group_size, np.int32),
            "coefficient": stacked([groups.figures[p.groups.taken] for p in of_part], group_size, np.float32),
            "pooled_row": stacked([pooled.row[p.pooled.taken] for p in of_part], pooled_size, np.int32),
            "pooled": stacked([pooled.figures[p.pooled.taken, 0] for p in of_part], pooled_size, np.float32),
            "knee_row": stacked([knees.row[p.knees.taken] for p in of_part], knee_size, np.int32),
            "knee": stacked([knees.figures[p.knees.taken] for p in of_part], knee_size, np.float32),
            "hinge_rows": stacked(
                [np.stack([hinges.notional_row, hinges.settlement_row], axis=1)[p.hinges.taken] for p in of_part],
                hinge_size,
                np.int32,
            ),
            "hinge_figures": stacked(
                [np.stack(hinges[3:], axis=1)[p.hinges.taken] for p in of_part], hinge_size, np.float32
            ),
        }
        arrays = ShardArrays(**host)
        placed = np.full((devices, size), -1, np.int64)
        for device, part in enumerate(parts):
            placed[device, : len(part)] = part
        yield Bucket(placed, arrays)
