"""Units under a grid: random ones, their padded arrays, and a slow twin of the form.

The twin knows plain dictionaries and `math`; it was written from the descriptions of the forms and shares no code with
them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from aggregator.cube import CubeBuilder, CubeRows
from aggregator.risk_units import DeltaOneRow, QuoteRow, UnitRow
from aggregator.rule_forms import (
    NO_DISCOUNT,
    BasisContingency,
    DeltaFloor,
    DeltaShock,
    GridPoint,
    MinimumCharge,
    PegLoss,
    PriceVolGrid,
    RollShock,
    StaticDiscount,
    VolShock,
)
from aggregator.unit_batch import UnitSizes, covering_units, unit_arrays, unit_sizes

Unit = dict[str, Any]
D = Decimal

FACTORS = ("peg:USDC", "price:BTC", "vol:BTC")


def number(value: float) -> Decimal:
    return D(repr(float(value)))


# ---- random units and grids ------------------------------------------------------------------------------------------


def random_unit(rng: np.random.Generator) -> Unit:
    """One unit as plain lists; every kind of holding, in an account in dollars, in a stable off its peg or in coins."""
    spot = float(rng.uniform(20_000, 90_000))
    stable = float(rng.choice([1.0, 0.973, spot]))
    days = [float(rng.choice([0.0, 0.008, 0.4, 7.0])), float(rng.choice([29.99, 30.0, 64.0])), 240.0]
    expiries = [(d / 365, spot * (1 + 0.0004 * d), float(rng.choice([0.0, 0.04, 0.11])), 1.0) for d in days]

    def money() -> float:
        return float(rng.choice([0.0, 1.0, 0.998]))

    options = []
    for _ in range(int(rng.integers(0, 7))):
        inverse = bool(rng.random() < 0.4)
        options.append(
            {
                "quantity": float(rng.choice([0.0, rng.normal() * 3])),
                "strike": spot * float(rng.choice([0.3, 0.9, 1.0, 1.07, 2.5])),
                "call": bool(rng.random() < 0.5),
                "vol": float(rng.choice([0.0, 0.45, 0.9])),
                "expiry": int(rng.integers(0, 3)),
                "inverse": inverse,
                "money": 1.0 if inverse else money(),
                "mark_offset": float(rng.normal()) * (1e-3 if inverse else 40.0),
                "delta_offset": float(rng.normal() * 0.02),
                "entry": float(rng.uniform(0, 0.2)) * (1.0 if inverse else spot),
            }
        )
    further = []
    for _ in range(int(rng.integers(0, 5))):
        inverse = bool(rng.random() < 0.5)
        further.append(
            {
                "quantity": float(rng.normal() * 2),
                "price": spot * float(rng.uniform(0.98, 1.05)),
                "confidence": float(rng.choice([1.0, 0.4])),
                "inverse": inverse,
                "money": 1.0 if inverse else money(),
                "expiry": int(rng.integers(-1, 3)),
            }
        )
    return {
        "spot": spot,
        "stable": stable,
        "perp": (float(rng.choice([0.0, rng.normal()])), (spot if stable != spot else 1.0) * 1.003),
        "collateral": [(float(rng.uniform(0, 2)), spot * 1.04, 1.0), (700.0, 0.999, 0.0)],
        "expiries": expiries,
        "options": options,
        "delta_one": further,
    }


def random_grid(rng: np.random.Generator) -> PriceVolGrid:
    def drawn(low: float, high: float) -> Decimal:
        return number(round(float(rng.uniform(low, high)), 6))

    def maybe(value: Any) -> Any:
        return value if rng.random() < 0.5 else None

    points = []
    for vol in ("up", "down", "none") * 3:
        own = maybe(drawn(-0.7, 1.2))
        dampener = drawn(0, 4000) if rng.random() < 0.3 else D(0)
        points.append(
            GridPoint(spot=drawn(0.3, 3.0), vol=vol, dampening=drawn(0.2, 1.2), vol_move=own, dampener=dampener)
        )
    points.append(GridPoint(spot=D(1), vol_move=D("-1.5")))
    discount = StaticDiscount(
        long_base=drawn(0.8, 1),
        long_rate_mult=D(1),
        long_rate_add=D("0.08"),
        short_base=drawn(0.95, 1.05),
        short_rate_mult=D("0.5"),
        short_rate_add=D("0.08"),
    )
    return PriceVolGrid(
        scenarios=tuple(points),
        vol_shock=VolShock(
            range_up=drawn(0, 2),
            range_down=drawn(0, 1.5),
            short_term_power=drawn(0, 0.5),
            long_term_power=drawn(0, 0.3),
            dte_floor_days=D(int(rng.integers(0, 3))),
            min_vol_up=drawn(0, 1),
            short_below_30_days=bool(rng.random() < 0.5),
        ),
        discount=NO_DISCOUNT if rng.random() < 0.5 else discount,
        initial_factor=D("1.3"),
        maintenance_factor=drawn(0.4, 1.1),
        basis=maybe(BasisContingency(spot_up=D("1.045"), spot_down=D("0.955"), add_factor=D("0.5"), mult_factor=D(2))),
        peg_loss=maybe(PegLoss(threshold=D("0.99"), factor=D(4))),
        settlement_window_s=maybe(D(1800)) or D(0),
        settlement_scales_profit=bool(rng.random() < 0.5),
        forward=str(rng.choice(["own", "spot"])),  # type: ignore[arg-type]
        profit_in=str(rng.choice(["unit", "coin"])),  # type: ignore[arg-type]
        round_digits=maybe(int(rng.integers(2, 10))),
        value_today=str(rng.choice(["model", "mark"])),  # type: ignore[arg-type]
        look_ahead_days=D(1) if rng.random() < 0.3 else D(0),
        delta_floor=maybe(DeltaFloor(unhedged=drawn(0, 0.6), hedged=drawn(0, 0.4))),
        roll=maybe(
            RollShock(
                annual_move=drawn(0, 0.3),
                minimum=drawn(0, 0.02),
                law=str(rng.choice(["exponential", "linear"])),  # type: ignore[arg-type]
                collateral=bool(rng.random() < 0.5),
            )
        ),
        delta_shock=maybe(DeltaShock(threshold=D(10_000), increment=drawn(0, 0.2), largest=drawn(0, 0.2))),
        minimum=maybe(
            MinimumCharge(
                delta_rate=drawn(0, 0.3),
                short_option_rate=drawn(0, 0.2),
                floors=(D(0), D(1000), D(20_000)),
                factors=(D(1), D(2), D(6)),
            )
        ),
        reported_worst=maybe(drawn(0, 1)) or D(0),
        reported_add_on=maybe(drawn(0, 1)) or D(0),
    )


# ---- from plain units to the padded arrays of a book -----------------------------------------------------------------


def unit_row(unit: Unit, grid: PriceVolGrid | None, **forms: Any) -> UnitRow:
    """The host row of a plain unit; its account's unit moves as the coin where it costs what the coin costs."""
    in_coin = unit["stable"] == unit["spot"]
    quotes = tuple(
        QuoteRow(o["mark_offset"], o["delta_offset"], o["entry"], o["inverse"], o["money"]) for o in unit["options"]
    )
    row = UnitRow(
        account=0,
        underlying="BTC",
        spot=unit["spot"],
        spot_confidence=1.0,
        stable_price=unit["stable"],
        price_factor="price:BTC",
        vol_factor="vol:BTC",
        stable_exponents=(("price:BTC" if in_coin else "peg:USDC", 1.0),),
        perp=(*unit["perp"], 1.0),
        collateral=tuple((q, p, 1.0, flag, 1 if flag else 2) for q, p, flag in unit["collateral"]),
        options=tuple((o["quantity"], o["strike"], o["call"], o["vol"], o["expiry"]) for o in unit["options"]),
        expiries=tuple(unit["expiries"]),
        grid=grid,
        contingencies=(),
        max_loss=None,
        delta_one=tuple(
            DeltaOneRow(d["quantity"], d["price"], d["confidence"], d["inverse"], d["money"], d["expiry"], 1.0)
            for d in unit["delta_one"]
        ),
        quotes=quotes if any(any(quote) for quote in quotes) else (),
    )
    return row._replace(**forms)


@functools.cache
def cube() -> CubeRows:
    """Rows 1 and 2 move with the coin and with the stable."""
    builder = CubeBuilder()
    assert [builder.factor_row({"price:BTC": 1.0}), builder.factor_row({"peg:USDC": 1.0})] == [1, 2]
    return builder.build(FACTORS)


# What the figures by hand need beside the book: one shape serves all of them, because every shape costs a compilation.
BY_HAND = UnitSizes(
    units=2,
    options=4,
    expiries=2,
    collaterals=2,
    contingencies=1,
    grid_points=64,
    has_grid=True,
    has_expiry=False,
    has_contract=False,
    has_quotes=True,
    looks_ahead=True,
    delta_one=4,
    slices=8,
)


def arrays_of(rows: Sequence[UnitRow], sizes: UnitSizes | None = None) -> Any:
    index = {name: place for place, name in enumerate(FACTORS)}
    return unit_arrays(rows, sizes or covering_units([unit_sizes(rows), wide()]), index)


# ---- the twin --------------------------------------------------------------------------------------------------------


def cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def black(forward: float, strike: float, years: float, vol: float, call: bool) -> tuple[float, float]:
    """(price, delta by the forward), undiscounted."""
    deviation, sign = vol * math.sqrt(years), 1 if call else -1
    if deviation == 0:
        gain = sign * (forward - strike)
        return max(gain, 0.0), sign * (0.5 if gain == 0 else float(gain > 0))
    d1 = math.log(forward / strike) / deviation + deviation / 2
    put = strike * cdf(deviation - d1) - forward * cdf(-d1)
    return put + (forward - strike if call else 0.0), cdf(d1) - (0.0 if call else 1.0)


class Twin:
    """One plain unit under one grid."""

    def __init__(self, unit: Unit, form: PriceVolGrid) -> None:
        self.unit, self.form = unit, form
        self.spot, self.stable = unit["spot"], unit["stable"]
        self.in_coin = form.profit_in == "coin"

    def usd(self, money: float) -> float:
        return money or self.stable

    def open_share(self, x: int) -> float:
        window = float(self.form.settlement_window_s)
        return min(1.0, self.unit["expiries"][x][0] * 365 * 86400 / window) if window else 1.0

    def vol(self, option: Mapping[str, Any], point: GridPoint | None) -> float:
        shock, vol = self.form.vol_shock, float(option["vol"])
        if point is None:
            return vol
        days = self.unit["expiries"][option["expiry"]][0] * 365
        short = days < 30 if shock.short_below_30_days else days <= 30
        power = float(shock.short_term_power if short else shock.long_term_power)
        stretch = (30 / max(days, float(shock.dte_floor_days), 1 / 86400)) ** power
        if point.vol_move is not None:
            move = float(point.vol_move)
        else:
            move = {"up": float(shock.range_up), "down": -float(shock.range_down), "none": 0.0}[point.vol]
        if point.vol_move is None and point.vol == "none":
            return vol
        moved = max(0.0, vol * (1 + move * stretch))
        upward = move > 0 or (point.vol_move is None and point.vol == "up")
        return max(moved, float(shock.min_vol_up)) if upward else moved

    def expiry_value(self, x: int, spot: float, point: GridPoint | None, *, passes: bool) -> float:
        """Value of the options of an expiry after a spot move, in the account's unit or in coin, without marks."""
        years, forward, rate, _ = self.unit["expiries"][x]
        ahead = min(float(self.form.look_ahead_days) / 365, years) if passes else 0.0
        share = 1.0 if self.form.settlement_scales_profit else self.open_share(x)
        moved = forward * (1 + share * (spot - 1))
        if self.form.forward == "spot":
            moved *= math.exp(-rate * ahead)
        total = 0.0
        for option in self.unit["options"]:
            if option["expiry"] == x:
                price, _ = black(moved, option["strike"], years - ahead, self.vol(option, point), option["call"])
                price *= math.exp(-rate * (years - ahead))
                money = 1.0 if self.in_coin else self.usd(option["money"]) / self.stable
                total += option["quantity"] * price * money
        return total / moved if self.in_coin else total

    def beside_model(self, x: int) -> float:
        """What the venue's marks add to the value of an expiry's options today."""
        forward, total = self.unit["expiries"][x][1], 0.0
        for option in self.unit["options"]:
            if option["expiry"] != x:
                continue
            in_coins = option["mark_offset"] if option["inverse"] else option["mark_offset"] / forward
            if self.in_coin:
                total += option["quantity"] * in_coins
            else:
                total += option["quantity"] * in_coins * forward * self.usd(option["money"]) / self.stable
        return total

    def delta_one_profit(self, holding: Mapping[str, Any], spot: float) -> float:
        share = 1.0 if holding["expiry"] < 0 else self.open_share(holding["expiry"])
        scales = self.form.settlement_scales_profit
        move = (spot - 1) * (1.0 if scales else share)
        counts = share if scales else 1.0
        if self.in_coin and holding["inverse"]:
            return counts * holding["quantity"] * (1 - 1 / (1 + move))
        dollars = counts * holding["quantity"] * holding["price"] * self.usd(holding["money"]) * move
        return dollars / (self.spot * spot) if self.in_coin else dollars / self.stable

    def profit(self, point: GridPoint) -> float:
        spot, discount = float(point.spot), self.form.discount
        total = 0.0
        for x, (years, _, rate, _) in enumerate(self.unit["expiries"]):
            then = self.expiry_value(x, spot, point, passes=True)
            now = self.expiry_value(x, 1.0, None, passes=False)
            if self.form.value_today == "mark":
                now += self.beside_model(x)
            if then >= 0:
                then *= float(discount.long_base) * math.exp(
                    -years * (rate * float(discount.long_rate_mult) + float(discount.long_rate_add))
                )
            else:
                exponent = years * (rate * float(discount.short_rate_mult) + float(discount.short_rate_add))
                then *= min(math.exp(rate * years), float(discount.short_base) * math.exp(exponent))
            total += (then - now) * (self.open_share(x) if self.form.settlement_scales_profit else 1.0)
        quantity, price = self.unit["perp"]
        dollars = quantity * price * self.stable
        dollars += sum(q * p for q, p, in_grid in self.unit["collateral"] if in_grid)
        total += dollars * (spot - 1) / (self.spot * spot if self.in_coin else self.stable)
        total += sum(self.delta_one_profit(holding, spot) for holding in self.unit["delta_one"])
        total *= float(point.dampening)
        amount = float(point.dampener) / (self.spot if self.in_coin else self.stable)
        return math.copysign(max(abs(total) - amount, 0.0), total)

    def basis(self) -> float:
        rule, loss = self.form.basis, 0.0
        for x, (years, _, _, _) in enumerate(self.unit["expiries"] if rule else ()):
            assert rule is not None
            now = self.expiry_value(x, 1.0, None, passes=False)
            moves = [self.expiry_value(x, float(s), None, passes=False) for s in (rule.spot_up, rule.spot_down)]
            loss += max(now - min(moves), 0.0) * (float(rule.add_factor) + float(rule.mult_factor) * years)
        return loss

    def deltas(self) -> list[tuple[str, float, int]]:
        """(kind, delta, expiry) of every holding; spot and perpetuals have expiry -1."""
        out = [("perp", self.unit["perp"][0], -1)]
        out += [("spot", q * p / self.spot, -1) for q, p, in_grid in self.unit["collateral"] if in_grid]
        out += [("future", h["quantity"], h["expiry"]) for h in self.unit["delta_one"]]
        for option in self.unit["options"]:
            years, forward, rate, _ = self.unit["expiries"][option["expiry"]]
            _, delta = black(forward, option["strike"], years, option["vol"], option["call"])
            delta *= 1.0 if self.form.forward == "spot" else math.exp(-rate * years)
            kind = "long" if option["quantity"] > 0 else "short"
            out.append((kind, option["quantity"] * (delta + option["delta_offset"]), option["expiry"]))
        return out

    def charges(self) -> tuple[float, float, float, float]:
        """(delta floor, roll shock, delta shock, minimum charge) in dollars."""
        form, held = self.form, self.deltas()
        net, gross = sum(d for _, d, _ in held), sum(abs(d) for _, d, _ in held)
        floor = roll = shock = least = 0.0
        if form.delta_floor:
            floor = (
                float(form.delta_floor.unhedged) * abs(net) + float(form.delta_floor.hedged) * (gross - abs(net)) / 2
            )
        if form.roll:
            for x in range(-1, len(self.unit["expiries"])):
                years = self.unit["expiries"][x][0] if x >= 0 else 0.0
                grown = float(form.roll.annual_move) * years
                move = math.exp(grown) - 1 if form.roll.law == "exponential" else grown
                counted = [d for kind, d, own in held if own == x and (form.roll.collateral or kind != "spot")]
                roll += abs(sum(counted)) * max(float(form.roll.minimum), move)
        if form.delta_shock:
            long = sum(d for kind, d, _ in held if kind == "long")
            other = sum(d for kind, d, _ in held if kind in ("perp", "future", "short"))
            left = other if long * other >= 0 else math.copysign(max(abs(other) - abs(long), 0.0), other)
            excess = max(abs(left) * self.spot - float(form.delta_shock.threshold), 0.0)
            shock = min(
                excess * abs(left) * float(form.delta_shock.increment),
                float(form.delta_shock.largest) * self.spot * abs(left),
            )
        if form.minimum:
            of_derivatives = sum(d for kind, d, _ in held if kind != "spot")
            shorts = sum(max(0.0, -o["quantity"]) for o in self.unit["options"])
            raw = float(form.minimum.delta_rate) * abs(of_derivatives) + float(form.minimum.short_option_rate) * shorts
            raw *= self.spot
            tops = [*(float(f) for f in form.minimum.floors[1:]), math.inf]
            for low, top, factor in zip(form.minimum.floors, tops, form.minimum.factors, strict=True):
                least += float(factor) * max(0.0, min(raw, top) - float(low))
        return floor * self.spot, roll * self.spot, shock, least

    def requirement(self) -> tuple[float, float]:
        form = self.form
        worst = max(0.0, *(-self.profit(point) for point in form.scenarios))
        if form.round_digits is not None:
            worst = round(worst, form.round_digits)
        loss = max(worst, self.basis()) * (self.spot / self.stable if self.in_coin else 1.0)
        floor, roll, shock, least = (dollars / self.stable for dollars in self.charges())
        loss = max(loss, floor, float(form.reported_worst))
        total = max(loss + roll + shock + float(form.reported_add_on), least)
        peg = (
            max(0.0, float(form.peg_loss.threshold) - self.stable) * float(form.peg_loss.factor) if form.peg_loss else 0
        )
        return (float(form.initial_factor) + peg) * total, float(form.maintenance_factor) * total


def after(unit: Unit, *, price: float, vol: float, peg: float, years: float) -> Unit:
    """The unit after log moves of the coin, of its vol and of the stable, `years` later."""
    growth, in_coin = math.exp(price), unit["stable"] == unit["spot"]

    def moved_vol(option: Mapping[str, Any]) -> float:
        days = max(unit["expiries"][option["expiry"]][0] * 365, 1.0)
        return float(option["vol"]) * math.exp(min(max(vol * math.sqrt(30 / days), -2.0), 2.0))

    return {
        "spot": unit["spot"] * growth,
        "stable": unit["spot"] * growth if in_coin else unit["stable"] * math.exp(peg),
        "perp": (unit["perp"][0], unit["perp"][1] * growth),
        "collateral": [
            (q, p * (growth if in_grid else math.exp(peg)), in_grid) for q, p, in_grid in unit["collateral"]
        ],
        "expiries": [(max(t - years, 0.0), f * growth, rate, c) for t, f, rate, c in unit["expiries"]],
        "options": [o | {"vol": moved_vol(o)} for o in unit["options"]],
        "delta_one": [
            d | {"price": d["price"] * growth, "quantity": d["quantity"] / (growth if d["inverse"] else 1.0)}
            for d in unit["delta_one"]
        ],
    }


UNITS = 64


@functools.cache
def book() -> tuple[tuple[Unit, PriceVolGrid], ...]:
    return tuple((random_unit(rng), random_grid(rng)) for rng in map(np.random.default_rng, range(UNITS)))


def book_rows() -> list[UnitRow]:
    return [unit_row(unit, grid) for unit, grid in book()]


@functools.cache
def wide() -> UnitSizes:
    """A shape with room for more of everything than the book and the figures by hand have."""
    sizes = covering_units([unit_sizes(book_rows()), BY_HAND])
    return sizes._replace(
        units=sizes.units * 2,
        options=sizes.options * 2,
        expiries=sizes.expiries * 2,
        collaterals=8,
        contingencies=3,
        grid_points=sizes.grid_points + 1,
        delta_one=sizes.delta_one * 2,
        slices=sizes.slices + 1,
    )


@functools.cache
def tight_arrays() -> Any:
    """The book in the smallest shape that holds it."""
    rows = book_rows()
    return arrays_of(rows, unit_sizes(rows))
