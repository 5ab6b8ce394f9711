"""A perfect hedge across two venues: how much collateral it needs when money takes hours to travel.

    .venv/bin/python docs/examples/hedge_experiment.py [--plot FILE.svg]

10 million USD long on venue A, the same short on venue B, 24 hourly steps. Hourly log-returns are t with 4 degrees of
freedom and a standard deviation of 0.55 %, and with a probability of 0.1 % an hour a jump of mean 0 and standard
deviation 6 % on top (about one path in 42 has one; both figures are this example's choice, and the options try others).
Both venues hold half of the collateral; at each hour what a venue lacks of its buffer is sent from the other, any
amount, and arrives after the route time. The table shows the least collateral with which at most 1 % of the paths see a
liquidation, for the better of buffers of 50 % and 80 % of the collateral.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aggregator.reactive_transfer import Prefunding, prefunding
from aggregator.transfer_shortfall import pooled_shortfall, siloed_shortfall

SEED = 20240630
PATHS = 16_384
HOURS = 24
NOTIONAL_USD = 10e6
HOURLY_STD = 0.0055
NU = 4.0
JUMPS_PER_HOUR = 0.001
JUMP_STD = 0.06
CONFIDENCE = 0.99
BUFFER_SHARES = (0.5, 0.8)
ROUTE_HOURS = (1, 2, 4, 8, 12)


class Experiment(NamedTuple):
    """USD. `funded` is by route time in hours, in rising order, the last one (None) without a route."""

    pooled: float
    siloed: float
    funded: tuple[tuple[int | None, Prefunding], ...]

    def saving(self, found: Prefunding) -> float:
        """Share that a route saves of the collateral without one."""
        return 1.0 - found.total / self.funded[-1][1].total


def cumulative_losses(paths: int, jumps_per_hour: float, jump_std: float) -> np.ndarray:
    """Losses [paths, hours, 2] in USD of the long and the short leg since the start."""
    random = np.random.default_rng(SEED)
    shape = (paths, HOURS)
    returns = random.standard_t(NU, shape) * HOURLY_STD / np.sqrt(NU / (NU - 2.0))
    returns += (random.random(shape) < jumps_per_hour) * random.normal(0.0, 1.0, shape) * jump_std
    gain = NOTIONAL_USD * np.expm1(np.cumsum(returns, axis=1))
    return np.stack([-gain, gain], axis=2)


def experiment(paths: int = PATHS, jumps_per_hour: float = JUMPS_PER_HOUR, jump_std: float = JUMP_STD) -> Experiment:
    """All figures of the experiment; `paths` is a multiple of 256."""
    losses = jnp.asarray(cumulative_losses(paths, jumps_per_hour, jump_std))
    weights = jnp.full(paths, 1.0 / paths)
    last = losses[:, -1]
    siloed = float(siloed_shortfall(last, weights, confidence=CONFIDENCE))
    pooled = float(pooled_shortfall(last, weights, confidence=CONFIDENCE))
    funded = []
    for hours in (*ROUTE_HOURS, None):
        found = prefunding(
            losses,
            np.full((2, 2), hours or 1),
            np.full((2, 2), 0.0 if hours is None else np.inf),
            weights,
            split=(0.5, 0.5),
            buffer_shares=BUFFER_SHARES,
            confidence=CONFIDENCE,
            most=10.0 * siloed,
        )
        funded.append((hours, found))
    return Experiment(pooled, siloed, tuple(funded))


def table(found: Experiment) -> str:
    """The figures as text."""
    lines = [
        f"ES_uni {found.pooled / 1e6:.2f} M USD    ES_silo {found.siloed / 1e6:.2f} M USD (at the horizon)",
        "route time   collateral   saving   buffer   P(liquidation)",
    ]
    for hours, funded in found.funded:
        name = "never" if hours is None else f"{hours} h"
        lines.append(
            f"{name:>10}   {funded.total / 1e6:8.2f} M   {found.saving(funded):6.1%}   {funded.buffer_share:6.0%}   "
            f"{funded.probability:14.2%}"
        )
    return "\n".join(lines) + "\n"


def plot(found: Experiment) -> str:
    """The collateral by route time as an SVG image, one bar each."""
    left, right, bottom, top = 60, 700, 320, 50
    most = 0.5e6 * np.ceil(max(funded.total for _, funded in found.funded) / 0.5e6)
    step = (right - left) / len(found.funded)

    def up(usd: float) -> float:
        return bottom - usd / most * (bottom - top)

    def text(x: float, y: float, words: str, anchor: str = "middle", fill: str = "#222") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{words}</text>'

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 380" width="720" height="380"',
        'font-family="sans-serif" font-size="13">',
        "<title>Collateral for a perfect hedge across two venues by route time</title>",
        '<rect width="720" height="380" fill="#fff"/>',
        text(
            left,
            26,
            "Least collateral for a perfect hedge of 10 M USD, in M USD (and against no route)",
            "start",
        ),
    ]
    for tick in np.arange(0.0, most + 1.0, 0.5e6):
        parts.append(f'<path d="M{left} {up(tick):.1f}H{right}" stroke="#ddd"/>')
        parts.append(text(left - 10, up(tick) + 4, f"{tick / 1e6:.1f}", "end"))
    for number, (hours, funded) in enumerate(found.funded):
        middle, height = left + (number + 0.5) * step, up(funded.total)
        color = "#8a8a8a" if hours is None else "#1f5fa8"
        parts.append(
            f'<rect x="{middle - 0.3 * step:.1f}" y="{height:.1f}" width="{0.6 * step:.1f}" '
            f'height="{bottom - height:.1f}" fill="{color}"/>'
        )
        parts.append(text(middle, height - 6, f"{funded.total / 1e6:.2f}"))
        if hours is not None:
            parts.append(text(middle, height + 20, f"−{found.saving(funded):.1%}", fill="#fff"))
        parts.append(text(middle, bottom + 20, "never" if hours is None else f"{hours} h"))
    parts.append(text((left + right) / 2, bottom + 44, "route time"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How much collateral a perfect hedge across two venues needs.")
    parser.add_argument("--paths", type=int, default=PATHS, help="a multiple of 256")
    parser.add_argument("--jumps-per-hour", type=float, default=JUMPS_PER_HOUR)
    parser.add_argument("--jump-std", type=float, default=JUMP_STD)
    parser.add_argument("--plot", type=Path, help="write the figure to this SVG file")
    chosen = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    found = experiment(chosen.paths, chosen.jumps_per_hour, chosen.jump_std)
    sys.stdout.write(table(found))
    if chosen.plot is not None:
        chosen.plot.write_text(plot(found), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
