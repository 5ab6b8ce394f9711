# mypy: disable-error-code="assignment, no-untyped-def"
# What Numba compiles carries no annotations: its types are those of the arrays that come in.
"""The engines that a good engineer writes by hand in Numba, on all cores.

`ordinary`: one fused loop per portfolio over its positions and scenarios, every tier of every position, the tail by
`np.partition`. `strong`: the same work with everything that makes it faster in this form: blocks of portfolios over
tiles of scenarios that stay in cache, tiers that the scenarios cannot reach dropped, straight rows four at a time, and
the tail chosen from the few losses beyond a threshold that a sixteenth of the scenarios suggests.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np

from .book_rows import BookRows
from .figures import LEVELS, Figures, empty_figures, rank_of
from .peer_cube import HORIZON_YEARS, CubeTerms

TILE = 512
BLOCK = 64
_LEAST = np.finfo(np.float32).tiny
_PILOT_STRIDE = 16
_PILOT_SHARE = 2.5
_FAST = {"nnan", "ninf", "nsz", "arcp", "contract", "reassoc"}


@numba.njit(parallel=True, fastmath=_FAST)
def _ordinary(
    cube,
    first_account,
    first_row,
    equity_today,
    headroom_base,
    at_or_below,
    row,
    equity_weight,
    headroom_weight,
    first_tier,
    slope,
    level,
    conversion,
    places,
    tail_mass,
    worst_loss,
    var,
    es,
    any_liquidated,
    unified_liquidated,
    liquidated,
    mean_change,
    bad_debt,
):
    scenarios = cube.shape[1]
    for portfolio in numba.prange(first_account.shape[0] - 1):
        total = np.zeros(scenarios, np.float32)
        room = np.zeros(scenarios, np.float32)
        gone = np.zeros(scenarios, np.int32)
        change = np.empty(scenarios, np.float32)
        headroom = np.empty(scenarios, np.float32)
        required = np.empty(scenarios, np.float32)
        for account in range(first_account[portfolio], first_account[portfolio + 1]):
            change[:] = np.float32(0.0)
            headroom[:] = headroom_base[account]
            for r in range(first_row[account], first_row[account + 1]):
                moves = cube[row[r]]
                we, wh = equity_weight[r], headroom_weight[r]
                begin, end = first_tier[r], first_tier[r + 1]
                if end == begin:
                    for s in range(scenarios):
                        x = moves[s]
                        change[s] += we * x
                        headroom[s] += wh * x
                else:
                    converted = cube[conversion[r]]
                    a, b = slope[begin], level[begin]
                    for s in range(scenarios):
                        required[s] = a * moves[s] + b
                    for k in range(begin + 1, end):
                        a, b = slope[k], level[k]
                        for s in range(scenarios):
                            required[s] = max(required[s], a * moves[s] + b)
                    for s in range(scenarios):
                        x = moves[s]
                        change[s] += we * x
                        headroom[s] += wh * x - required[s] * (np.float32(1.0) + converted[s])
            count = 0
            short, moved = np.float32(0.0), np.float32(0.0)
            today = equity_today[account]
            # At or below zero, or at or below the largest number below zero.
            limit = np.float32(0.0) if at_or_below[account] else -_LEAST
            for s in range(scenarios):
                is_gone = np.int32(headroom[s] <= limit)
                count += is_gone
                gone[s] |= is_gone
                short += max(-(today + change[s]), np.float32(0.0))
                moved += change[s]
                total[s] += change[s]
                room[s] += headroom[s]
            liquidated[account] = count
            mean_change[account] = np.float64(moved) / scenarios
            bad_debt[account] = np.float64(short) / scenarios
        any_count = 0
        unified_count = 0
        for s in range(scenarios):
            any_count += gone[s]
            unified_count += np.int32(room[s] < np.float32(0.0))
            total[s] = -total[s]
        any_liquidated[portfolio] = any_count
        unified_liquidated[portfolio] = unified_count
        tail = np.partition(total, places[0])[places[0] :]
        worst_loss[portfolio] = tail.max()
        for number in range(places.shape[0]):
            if number > 0:
                tail = np.partition(tail, places[number] - places[number - 1])[places[number] - places[number - 1] :]
            quantile = np.float64(tail[0])
            beyond = 0.0
            for s in range(tail.shape[0]):
                beyond += tail[s] - quantile
            var[portfolio, number] = quantile
            es[portfolio, number] = quantile + beyond / tail_mass[number]


@numba.njit(parallel=True, fastmath=_FAST)
def _straightened(cube, first_row, row, equity_weight, headroom_weight, first_tier, slope, level, conversion, base):
    """Rows of each account that are straight over the scenarios, in fours, and the others with the tiers in reach.

    Returns (first of straight, rows, equity weights, headroom weights, first of bent, bent rows, first and last tier of
    each row, base with the levels of the straight ones taken off).
    """
    count = cube.shape[0]
    least, most = np.empty(count, np.float32), np.empty(count, np.float32)
    for c in numba.prange(count):
        low, high = cube[c, 0], cube[c, 0]
        for s in range(cube.shape[1]):
            low = min(low, cube[c, s])
            high = max(high, cube[c, s])
        least[c], most[c] = low, high
    accounts = first_row.shape[0] - 1
    from_tier, to_tier = np.empty(row.size, np.int64), np.empty(row.size, np.int64)
    straight_of = np.zeros(accounts + 1, np.int64)
    bent_of = np.zeros(accounts + 1, np.int64)
    for account in numba.prange(accounts):
        straight = 0
        for r in range(first_row[account], first_row[account + 1]):
            begin, end = first_tier[r], first_tier[r + 1]
            low, high = least[row[r]], most[row[r]]
            first, last = begin, begin
            for k in range(begin, end):
                if slope[k] * low + level[k] > slope[first] * low + level[first]:
                    first = k
                if slope[k] * high + level[k] >= slope[last] * high + level[last]:
                    last = k
            from_tier[r], to_tier[r] = first, last + 1
            if end == begin:
                to_tier[r] = first
            straight += end == begin or (first == last and conversion[r] == 0)
        straight_of[account + 1] = (straight + 3) // 4 * 4
        bent_of[account + 1] = first_row[account + 1] - first_row[account] - straight
    straight_of, bent_of = np.cumsum(straight_of), np.cumsum(bent_of)
    # Row 0 is the constant: what fills a four changes nothing.
    rows = np.zeros(straight_of[-1], np.int64)
    of_equity, of_headroom = np.zeros(rows.size, np.float32), np.zeros(rows.size, np.float32)
    bent = np.empty(bent_of[-1], np.int64)
    level_off = base.copy()
    for account in numba.prange(accounts):
        at, other = straight_of[account], bent_of[account]
        for r in range(first_row[account], first_row[account + 1]):
            tiers = to_tier[r] - from_tier[r]
            if tiers == 0 or (tiers == 1 and conversion[r] == 0):
                rows[at], of_equity[at], of_headroom[at] = row[r], equity_weight[r], headroom_weight[r]
                if tiers == 1:
                    of_headroom[at] -= slope[from_tier[r]]
                    level_off[account] -= level[from_tier[r]]
                at += 1
            else:
                bent[other] = r
                other += 1
    return straight_of, rows, of_equity, of_headroom, bent_of, bent, from_tier, to_tier, level_off


@numba.njit(fastmath=_FAST)
def _pilot_tail(loss, place, wanted):
    """The losses from the one of rank `place` on, from those beyond a threshold; all of them where it is too high."""
    pilot = loss[::_PILOT_STRIDE].copy()
    beyond = min(int(_PILOT_SHARE * wanted * pilot.size / loss.size) + 1, pilot.size)
    threshold = np.partition(pilot, pilot.size - beyond)[pilot.size - beyond]
    chosen = np.empty(loss.size, np.float32)
    count = 0
    for s in range(loss.size):
        # Written always and kept where it counts: a branch would be guessed wrong once in forty losses.
        chosen[count] = loss[s]
        count += loss[s] >= threshold
    if count < wanted:
        return np.partition(loss, place)[place:]
    return np.partition(chosen[:count], count - wanted)[count - wanted :]


@numba.njit(parallel=True, fastmath=_FAST)
def _strong(
    cube,
    first_account,
    first_row,
    equity_today,
    headroom_base,
    at_or_below,
    row,
    equity_weight,
    headroom_weight,
    first_tier,
    slope,
    level,
    conversion,
    places,
    tail_mass,
    worst_loss,
    var,
    es,
    any_liquidated,
    unified_liquidated,
    liquidated,
    mean_change,
    bad_debt,
):
    scenarios = cube.shape[1]
    straight_of, straight, of_equity, of_headroom, bent_of, bent, from_tier, to_tier, base = _straightened(
        cube, first_row, row, equity_weight, headroom_weight, first_tier, slope, level, conversion, headroom_base
    )
    portfolios = first_account.shape[0] - 1
    for block in numba.prange((portfolios + BLOCK - 1) // BLOCK):
        from_portfolio, to_portfolio = block * BLOCK, min((block + 1) * BLOCK, portfolios)
        loss = np.empty((to_portfolio - from_portfolio, scenarios), np.float32)
        change, headroom = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
        total, room = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
        gone, required = np.empty(TILE, np.int32), np.empty(TILE, np.float32)
        for start in range(0, scenarios, TILE):
            width = min(TILE, scenarios - start)
            for portfolio in range(from_portfolio, to_portfolio):
                total[:] = np.float32(0.0)
                room[:] = np.float32(0.0)
                gone[:] = 0
                for account in range(first_account[portfolio], first_account[portfolio + 1]):
                    change[:] = np.float32(0.0)
                    headroom[:] = base[account]
                    for r in range(straight_of[account], straight_of[account + 1], 4):
                        x0 = cube[straight[r], start : start + width]
                        x1 = cube[straight[r + 1], start : start + width]
                        x2 = cube[straight[r + 2], start : start + width]
                        x3 = cube[straight[r + 3], start : start + width]
                        e0, e1, e2, e3 = of_equity[r], of_equity[r + 1], of_equity[r + 2], of_equity[r + 3]
                        h0, h1, h2, h3 = of_headroom[r], of_headroom[r + 1], of_headroom[r + 2], of_headroom[r + 3]
                        for s in range(width):
                            change[s] += e0 * x0[s] + e1 * x1[s] + e2 * x2[s] + e3 * x3[s]
                            headroom[s] += h0 * x0[s] + h1 * x1[s] + h2 * x2[s] + h3 * x3[s]
                    for place in range(bent_of[account], bent_of[account + 1]):
                        r = bent[place]
                        moves = cube[row[r], start : start + width]
                        converted = cube[conversion[r], start : start + width]
                        we, wh = equity_weight[r], headroom_weight[r]
                        begin, end = from_tier[r], to_tier[r]
                        if end - begin == 2:
                            s0, s1, l0, l1 = slope[begin], slope[begin + 1], level[begin], level[begin + 1]
                            for s in range(width):
                                x = moves[s]
                                change[s] += we * x
                                headroom[s] += wh * x - max(s0 * x + l0, s1 * x + l1) * (np.float32(1.0) + converted[s])
                        else:
                            a, b = slope[begin], level[begin]
                            for s in range(width):
                                required[s] = a * moves[s] + b
                            for k in range(begin + 1, end):
                                a, b = slope[k], level[k]
                                for s in range(width):
                                    required[s] = max(required[s], a * moves[s] + b)
                            for s in range(width):
                                x = moves[s]
                                change[s] += we * x
                                headroom[s] += wh * x - required[s] * (np.float32(1.0) + converted[s])
                    count = 0
                    short, moved = np.float32(0.0), np.float32(0.0)
                    today = equity_today[account]
                    limit = np.float32(0.0) if at_or_below[account] else -_LEAST
                    for s in range(width):
                        is_gone = np.int32(headroom[s] <= limit)
                        count += is_gone
                        gone[s] |= is_gone
                        short += max(-(today + change[s]), np.float32(0.0))
                        moved += change[s]
                        total[s] += change[s]
                        room[s] += headroom[s]
                    liquidated[account] += count
                    mean_change[account] += np.float64(moved) / scenarios
                    bad_debt[account] += np.float64(short) / scenarios
                own = loss[portfolio - from_portfolio, start : start + width]
                any_count, unified_count = 0, 0
                for s in range(width):
                    any_count += gone[s]
                    unified_count += np.int32(room[s] < np.float32(0.0))
                    own[s] = -total[s]
                any_liquidated[portfolio] += any_count
                unified_liquidated[portfolio] += unified_count
        for portfolio in range(from_portfolio, to_portfolio):
            tail = _pilot_tail(loss[portfolio - from_portfolio], places[0], scenarios - places[0])
            worst_loss[portfolio] = tail.max()
            for number in range(places.shape[0]):
                if number > 0:
                    tail = np.partition(tail, places[number] - places[number - 1])[
                        places[number] - places[number - 1] :
                    ]
                quantile = np.float64(tail[0])
                beyond = 0.0
                for s in range(tail.shape[0]):
                    beyond += tail[s] - quantile
                var[portfolio, number] = quantile
                es[portfolio, number] = quantile + beyond / tail_mass[number]


def sweep_ordinary(rows: BookRows, cube: np.ndarray) -> Figures:
    """Figures of all portfolios from the cube [rows, scenarios] by the plain fused loop."""
    return _sweep(_ordinary, rows, cube)


def sweep_strong(rows: BookRows, cube: np.ndarray) -> Figures:
    """The same figures by the tuned loop."""
    return _sweep(_strong, rows, cube)


def _sweep(kernel: Callable[..., None], rows: BookRows, cube: np.ndarray) -> Figures:
    scenarios = cube.shape[1]
    out = empty_figures(len(rows.portfolio_id), len(rows.account_id))
    single = (
        values.astype(np.float32)
        for values in (rows.equity_weight, rows.headroom_weight, rows.slope, rows.level, rows.equity_today)
    )
    equity_weight, headroom_weight, slope, level, equity_today = single
    kernel(
        cube,
        rows.first_account,
        rows.first_row,
        equity_today,
        rows.headroom_base.astype(np.float32),
        rows.at_or_below,
        rows.row,
        equity_weight,
        headroom_weight,
        rows.first_tier,
        slope,
        level,
        rows.conversion,
        np.array([rank_of(confidence, scenarios) for confidence in LEVELS]),
        np.array([scenarios * (1.0 - confidence) for confidence in LEVELS]),
        *out,
    )
    return out


# ---- the cube --------------------------------------------------------------------------------------------------------


@numba.njit(inline="always")
def _cdf(x):
    return 0.5 * math.erfc(-x * math.sqrt(0.5))


@numba.njit(parallel=True, fastmath=_FAST)
def _price_options(shocks, forward, strike, years, vol, is_call, price_factor, vol_factor, conversion, out, first):
    for option in numba.prange(strike.shape[0]):
        k, t = strike[option], max(years[option] - HORIZON_YEARS, 0.0)
        steepness = math.sqrt(30.0 / max(years[option] * 365.0, 1.0))
        side = 1.0 if is_call[option] else -1.0
        today = _black(forward[option], k, math.sqrt(years[option]) * vol[option], side)
        of_price, of_vol = shocks[price_factor[option]], shocks[vol_factor[option]]
        converted = out[conversion[option]]
        for s in range(shocks.shape[1]):
            sigma = vol[option] * math.exp(min(max(of_vol[s] * steepness, -2.0), 2.0))
            price = _black(forward[option] * math.exp(of_price[s]), k, sigma * math.sqrt(t), side)
            out[first + option, s] = price * (1.0 + np.float64(converted[s])) - today


@numba.njit(inline="always")
def _black(forward, strike, deviation, side):
    """Undiscounted Black-76 price; the intrinsic value without time. The out-of-the-money one, then parity."""
    if deviation <= 0.0:
        return max(side * (forward - strike), 0.0)
    d1 = math.log(forward / strike) / deviation + 0.5 * deviation
    out = 1.0 if strike >= forward else -1.0
    price = max(out * (forward * _cdf(out * d1) - strike * _cdf(out * (d1 - deviation))), 0.0)
    return price if out == side else price + side * (forward - strike)


@numba.njit(parallel=True, fastmath=_FAST)
def _move_prices(shocks, factors, out):
    for row in numba.prange(factors.shape[0]):
        for s in range(shocks.shape[1]):
            total = 0.0
            for place in range(factors.shape[1]):
                if factors[row, place] < shocks.shape[0]:
                    total += shocks[factors[row, place], s]
            out[row, s] = math.expm1(total)


def cube_changes(terms: CubeTerms, shocks: np.ndarray) -> np.ndarray:
    """As `peer_cube.cube_changes`, compiled and on all cores."""
    out = np.empty((terms.rows, shocks.shape[1]), np.float32)
    _move_prices(shocks, terms.factors, out)
    _price_options(
        shocks,
        terms.forward,
        terms.strike,
        terms.years,
        terms.vol,
        terms.is_call,
        terms.price_factor,
        terms.vol_factor,
        terms.conversion,
        out,
        len(terms.factors),
    )
    return out
