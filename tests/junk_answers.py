"""Junk in place of any value of any answer: an adapter neither raises nor leaves a gap that no failure explains."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from adapters.adapter import Normalized
from adapters.transport import Payload
from aggregator.snapshot import take_snapshot
from tests.normalized_rows import rows_of

JUNK: tuple[Any, ...] = (None, "", "NaN", "-1", "x", -1, 0, True, [], {}, [[]], Decimal("1e30"), "BTCUSDT", {"a": 1})


def _places(body: Any) -> list[tuple[Any, Any]]:
    """Every container of a body with each of its keys or positions."""
    found: list[tuple[Any, Any]] = []
    stack = [body]
    while stack:
        node = stack.pop()
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            found.append((node, key))
            if isinstance(value, dict | list):
                stack.append(value)
    return found


def junk_results(
    normalize: Callable[[Sequence[Payload]], Normalized], payloads: Sequence[Payload], *, seed: int, count: int
) -> Iterator[Normalized]:
    """What `count` times one value replaced by junk is read as.

    Each result has been checked: a failure names an account that is there, an account that vanished left a failure, a
    position, balance or order belongs to an account, and a snapshot takes it all.
    """
    chance = random.Random(seed)
    accounts = {row["account_id"] for row in rows_of(normalize(payloads), "accounts")}
    for _ in range(count):
        number = chance.randrange(len(payloads))
        body = copy.deepcopy(payloads[number].body)
        node, key = chance.choice(_places(body))
        node[key] = chance.choice(JUNK)
        result = normalize([*payloads[:number], replace(payloads[number], body=body), *payloads[number + 1 :]])
        known = {row["account_id"] for row in rows_of(result, "accounts")}
        assert {failure.account_id for failure in result.failures if failure.account_id} <= known
        assert accounts <= known or result.failures
        for table in ("positions", "balances", "open_orders"):
            assert {row["account_id"] for row in rows_of(result, table)} <= known
        take_snapshot([result.batches], result.failures)
        yield result


def check_junk(
    normalize: Callable[[Sequence[Payload]], Normalized], payloads: Sequence[Payload], *, seed: int, count: int
) -> None:
    """The checks of `junk_results` and none besides."""
    assert sum(1 for _ in junk_results(normalize, payloads, seed=seed, count=count)) == count
