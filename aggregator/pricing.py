"""Revaluation: European options by Black-76, inverse options and perps, quanto forwards, SVI volatilities.

Every function is written for one contract (scalars in, scalars out) and is vmapped by its caller; arithmetic is float64
as long as the caller has x64 switched on. Prices in USD per unit of the underlying unless a name ends in `_coin`; times
in years of 365 days; volatilities annual and lognormal; `discount` is the discount factor to expiry. Long is positive.

No function returns NaN for finite inputs. An option that has no optionality left (expired, zero volatility, or a
forward or strike that is not positive) is worth its discounted intrinsic, and every derivative by `jax.grad` stays
finite there: the branch that is not taken is fed harmless numbers first, because `where` alone lets a NaN of the dead
branch through the gradient.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from .rounding import rounded

DAYS_PER_YEAR = 365.0

LARGEST_LOG_VOL_CHANGE = 2.0
"""Most that a scenario moves the logarithm of an option's volatility, either way: a factor of 7.4."""

# Below this total volatility (sigma sqrt(T)) the time value, at most 0.4 F v, is under half a unit in the last place of
# the forward: the price equals the intrinsic to rounding, while d1 = ln(F/K)/v would begin to overflow.
_LEAST_TOTAL_VOL = 1e-16

# Forwards and strikes outside of 1e-100 .. 1e100 USD are treated like 0 and infinity: F / K and its derivatives would
# leave the range of float64.
_LEAST_PRICE = 1e-100

_SQRT_HALF = 0.5**0.5
_INV_SQRT_2PI = 0.3989422804014327


class OptionGreeks(NamedTuple):
    """Price of one European option and its derivatives, USD per unit of underlying.

    `delta`, `gamma` by the forward; `vega` per 1.00 of volatility; `theta` per year of calendar time at constant
    forward, volatility and rate; `vanna` = d2/dF dsigma; `volga` = d2/dsigma2; `strike_delta` = d/dK.
    """

    price: Float[Array, ""]
    delta: Float[Array, ""]
    gamma: Float[Array, ""]
    vega: Float[Array, ""]
    theta: Float[Array, ""]
    vanna: Float[Array, ""]
    volga: Float[Array, ""]
    strike_delta: Float[Array, ""]


class InverseOptionGreeks(NamedTuple):
    """One inverse option (premium and settlement in the coin, payoff max(+-(S_T - K), 0) / S_T coins).

    `price_coin` in coins; `delta_usd` = dC/dF of the USD price, in coins; `premium_adjusted_delta` = `delta_usd` less
    the premium, what remains to hedge when the premium is itself held in coin; `price_coin_slope` = d price_coin / dF,
    coins per USD; `vega_coin` in coins per 1.00 of volatility.
    """

    price_coin: Float[Array, ""]
    delta_usd: Float[Array, ""]
    premium_adjusted_delta: Float[Array, ""]
    price_coin_slope: Float[Array, ""]
    vega_coin: Float[Array, ""]


class InversePerpValue(NamedTuple):
    """P&L of an inverse perp or future since entry: in coins, in USD at the mark, and its derivatives by the mark."""

    pnl_coin: Float[Array, ""]
    pnl_usd: Float[Array, ""]
    pnl_coin_slope: Float[Array, ""]
    pnl_coin_curvature: Float[Array, ""]


class LiquidationPrice(NamedTuple):
    """A price at which equity equals maintenance; `price` is 0 and means nothing where `exists` is False."""

    price: Float[Array, ""]
    exists: Bool[Array, ""]


class SviParameters(NamedTuple):
    """Raw SVI slice of total variance: w(k) = a + b (rho (k - m) + sqrt((k - m)^2 + sigma^2)), k = ln(K / F)."""

    a: ArrayLike
    b: ArrayLike
    rho: ArrayLike
    m: ArrayLike
    sigma: ArrayLike


class _BlackTerms(NamedTuple):
    """What price and Greeks share; finite also where `alive` is False, and meaningless there."""

    alive: Bool[Array, ""]
    forward: Float[Array, ""]
    strike: Float[Array, ""]
    sqrt_years: Float[Array, ""]
    vol: Float[Array, ""]
    d1: Float[Array, ""]
    d2: Float[Array, ""]


def log_moneyness(forward: ArrayLike, strike: ArrayLike) -> Float[Array, ""]:
    """ln(F/K), 0 where one of them is no price that an option can be valued at."""
    forward, strike = (jnp.asarray(x, dtype=jnp.float64) for x in (forward, strike))
    positive = _is_price(forward) & _is_price(strike)
    return jnp.log(jnp.where(positive, forward, 1.0) / jnp.where(positive, strike, 1.0))


def normal_cdf(x: ArrayLike) -> Float[Array, "..."]:
    """Standard normal distribution function, by `erfc`: keeps its relative precision in the lower tail.

    `jax.scipy.special.ndtr` gives the same numbers at about four times the cost.
    """
    return 0.5 * lax.erfc(rounded(-_SQRT_HALF * jnp.asarray(x)))


def normal_pdf(x: ArrayLike) -> Float[Array, "..."]:
    """Standard normal density."""
    x = jnp.asarray(x)
    return _INV_SQRT_2PI * jnp.exp(-0.5 * x * x)


def _is_price(value: Array) -> Array:
    return (value > _LEAST_PRICE) & (value < 1.0 / _LEAST_PRICE)


def _black_terms(
    forward: ArrayLike, strike: ArrayLike, years: ArrayLike, vol: ArrayLike, moneyness: ArrayLike | None = None
) -> _BlackTerms:
    forward, strike, years, vol = (jnp.asarray(x, dtype=jnp.float64) for x in (forward, strike, years, vol))
    positive = _is_price(forward) & _is_price(strike) & (years > 0) & (vol > 0)
    safe_years = jnp.where(positive, years, 1.0)
    safe_vol = jnp.where(positive, vol, 1.0)
    alive = positive & (safe_vol * jnp.sqrt(safe_years) > _LEAST_TOTAL_VOL)
    safe_forward = jnp.where(alive, forward, 1.0)
    safe_strike = jnp.where(alive, strike, 1.0)
    safe_vol = jnp.where(alive, safe_vol, 1.0)
    sqrt_years = jnp.sqrt(jnp.where(alive, safe_years, 1.0))
    total_vol = rounded(safe_vol * sqrt_years)
    log_ratio = jnp.log(safe_forward / safe_strike) if moneyness is None else jnp.where(alive, moneyness, 0.0)
    d1 = log_ratio / total_vol + 0.5 * total_vol
    return _BlackTerms(alive, safe_forward, safe_strike, sqrt_years, safe_vol, d1, d1 - total_vol)


def expiring_payoff(settlement_price: ArrayLike, strike: ArrayLike, *, is_call: ArrayLike) -> Float[Array, ""]:
    """Intrinsic value at expiry, USD per unit: max(S - K, 0) for a call, max(K - S, 0) for a put."""
    gain = jnp.asarray(settlement_price, dtype=jnp.float64) - jnp.asarray(strike, dtype=jnp.float64)
    return jnp.maximum(jnp.where(jnp.asarray(is_call), gain, -gain), 0.0)


def _undiscounted_price(terms: _BlackTerms, forward: ArrayLike, strike: ArrayLike, is_call: ArrayLike) -> Array:
    call_is_out = terms.strike >= terms.forward
    side = jnp.where(call_is_out, 1.0, -1.0)
    asset_part = rounded(terms.forward * normal_cdf(side * terms.d1))
    cash_part = rounded(terms.strike * normal_cdf(side * terms.d2))
    out_of_the_money = side * (asset_part - cash_part)
    # The difference of two nearly equal terms may round to -1e-17 F for a far option, and a price is never negative.
    out_of_the_money = jnp.maximum(out_of_the_money, 0.0)
    # Signed, not an absolute value, whose derivative at F = K would be lost.
    parity = jnp.where(call_is_out, terms.strike - terms.forward, terms.forward - terms.strike)
    time_value_and_parity = out_of_the_money + jnp.where(call_is_out == jnp.asarray(is_call), 0.0, parity)
    return jnp.where(terms.alive, time_value_and_parity, expiring_payoff(forward, strike, is_call=is_call))


def black76_price(
    forward: ArrayLike,
    strike: ArrayLike,
    *,
    years: ArrayLike,
    vol: ArrayLike,
    is_call: ArrayLike,
    discount: ArrayLike = 1.0,
    moneyness: ArrayLike | None = None,
) -> Float[Array, ""]:
    """Price in USD per unit of a European option on `forward`.

        v = sigma sqrt(T);  d1 = ln(F/K)/v + v/2;  d2 = d1 - v;  C = df (F N(d1) - K N(d2));  C - P = df (F - K)

    The out-of-the-money one of the pair is computed, the other follows by parity, so that a deep in-the-money option
    keeps its small time value. `years` <= 0 or `vol` <= 0: the discounted intrinsic. `moneyness` is ln(F/K) for a
    caller that has it without taking a logarithm, which XLA calls once for every number on the CPU.

    Source: F. Black, "The pricing of commodity contracts", Journal of Financial Economics 3 (1976).
    """
    terms = _black_terms(forward, strike, years, vol, moneyness)
    return rounded(jnp.asarray(discount, dtype=jnp.float64) * _undiscounted_price(terms, forward, strike, is_call))


def black76_greeks(
    forward: ArrayLike,
    strike: ArrayLike,
    *,
    years: ArrayLike,
    vol: ArrayLike,
    is_call: ArrayLike,
    discount: ArrayLike = 1.0,
) -> OptionGreeks:
    """Price and closed-form Greeks of a European option on `forward` (formulas: `OptionGreeks`, `black76_price`).

        delta = +-df N(+-d1);  gamma = df n(d1) / (F v);  vega = df F n(d1) sqrt(T);  vanna = -df n(d1) d2 / sigma
        volga = vega d1 d2 / sigma;  theta = -df F n(d1) sigma / (2 sqrt(T)) + r price, r = -ln(df) / T

    With `years` <= 0 or `vol` <= 0 the deltas are those of the intrinsic (one half at F = K, a convention), the second
    derivatives and vega are 0, and theta is the carry r price alone (0 once expired).
    """
    discount = jnp.asarray(discount, dtype=jnp.float64)
    years = jnp.asarray(years, dtype=jnp.float64)
    terms = _black_terms(forward, strike, years, vol)
    side = jnp.where(jnp.asarray(is_call), 1.0, -1.0)
    price = discount * _undiscounted_price(terms, forward, strike, is_call)

    density = discount * normal_pdf(terms.d1)
    vega = terms.forward * density * terms.sqrt_years
    gain = side * (jnp.asarray(forward, dtype=jnp.float64) - jnp.asarray(strike, dtype=jnp.float64))
    exercised = jnp.where(gain > 0, 1.0, jnp.where(gain < 0, 0.0, 0.5))
    delta = side * discount * jnp.where(terms.alive, normal_cdf(side * terms.d1), exercised)
    strike_delta = -side * discount * jnp.where(terms.alive, normal_cdf(side * terms.d2), exercised)
    rate = jnp.where(years > 0, -jnp.log(discount) / jnp.where(years > 0, years, 1.0), 0.0)
    decay = -terms.forward * density * terms.vol / (2.0 * terms.sqrt_years)

    def if_alive(value: Array) -> Array:
        return jnp.where(terms.alive, value, 0.0)

    return OptionGreeks(
        price=price,
        delta=delta,
        gamma=if_alive(density / (terms.forward * terms.vol * terms.sqrt_years)),
        vega=if_alive(vega),
        theta=if_alive(decay) + rate * price,
        vanna=if_alive(-density * terms.d2 / terms.vol),
        volga=if_alive(vega * terms.d1 * terms.d2 / terms.vol),
        strike_delta=strike_delta,
    )


def discount_at_horizon(discount: ArrayLike, years: ArrayLike, *, horizon_years: ArrayLike) -> Float[Array, ""]:
    """Discount factor that is left after `horizon_years` at a constant rate: df^((T - h) / T); 1 once expired."""
    years = jnp.asarray(years, dtype=jnp.float64)
    remaining = jnp.maximum(years - jnp.asarray(horizon_years, dtype=jnp.float64), 0.0)
    left = remaining > 0
    share = jnp.where(left, remaining, 0.0) / jnp.where(left, years, 1.0)
    return jnp.where(left, jnp.exp(share * jnp.log(jnp.asarray(discount, dtype=jnp.float64))), 1.0)


def vol_term_scale(years: ArrayLike, *, power: ArrayLike = 0.5) -> Float[Array, ""]:
    """How much an option's log volatility moves with the 30-day one: (30 / max(DTE, 1))^power, DTE = 365 `years`."""
    days = jnp.maximum(jnp.asarray(years, dtype=jnp.float64) * DAYS_PER_YEAR, 1.0)
    return (30.0 / days) ** jnp.asarray(power, dtype=jnp.float64)


def term_scaled_log_vol_change(
    log_vol_change: ArrayLike, years: ArrayLike, *, power: ArrayLike = 0.5, limit: ArrayLike = LARGEST_LOG_VOL_CHANGE
) -> Float[Array, ""]:
    """Change of the log implied volatility of one option, from that of its underlying's 30-day volatility.

        clip( dlnsigma * `vol_term_scale`, -limit, +limit )

    Short-dated volatilities move more than the 30-day one and long-dated less. The clip keeps an option of one day
    (factor 5.5) from being valued at absurd volatilities.
    """
    limit = jnp.asarray(limit, dtype=jnp.float64)
    change = jnp.asarray(log_vol_change, dtype=jnp.float64) * vol_term_scale(years, power=power)
    return jnp.clip(change, -limit, limit)


def option_value_change(
    forward: ArrayLike,
    strike: ArrayLike,
    *,
    years: ArrayLike,
    vol: ArrayLike,
    is_call: ArrayLike,
    log_return: ArrayLike,
    log_vol_change: ArrayLike = 0.0,
    horizon_years: ArrayLike = 0.0,
    discount: ArrayLike = 1.0,
) -> Float[Array, ""]:
    """Change in USD of the value of one long option, from today to a scenario at the horizon.

        V(F e^r, K, max(T - h, 0), sigma e^dlnsigma, df^((T-h)/T)) - V(F, K, T, sigma, df)

    Sticky strike: the option's own volatility moves by `log_vol_change` (see `term_scaled_log_vol_change`). An option
    that expires within the horizon is worth its intrinsic at the scenario's forward. Both values are float64 before
    they are subtracted, so the error is about 1e-16 of the forward and the difference may be kept in float32. Under
    `vmap` over scenarios, today's value is computed once.
    """
    forward = jnp.asarray(forward, dtype=jnp.float64)
    today = black76_price(forward, strike, years=years, vol=vol, is_call=is_call, discount=discount)
    scenario = black76_price(
        forward * jnp.exp(jnp.asarray(log_return, dtype=jnp.float64)),
        strike,
        years=jnp.asarray(years, dtype=jnp.float64) - jnp.asarray(horizon_years, dtype=jnp.float64),
        vol=jnp.asarray(vol, dtype=jnp.float64) * jnp.exp(jnp.asarray(log_vol_change, dtype=jnp.float64)),
        is_call=is_call,
        discount=discount_at_horizon(discount, years, horizon_years=horizon_years),
    )
    return scenario - today


def inverse_option_value_change(
    forward: ArrayLike,
    strike: ArrayLike,
    *,
    years: ArrayLike,
    vol: ArrayLike,
    is_call: ArrayLike,
    index: ArrayLike,
    log_return: ArrayLike,
    log_vol_change: ArrayLike = 0.0,
    horizon_years: ArrayLike = 0.0,
) -> Float[Array, ""]:
    """Change in USD of the value of one long inverse option on one coin, each value at its own coin price.

    The premium is C/F coins and a coin is worth `index` USD, so the USD value is (S/F) C; S/F keeps today's ratio, as
    every mark does in a scenario. Otherwise as `option_value_change`.
    """
    change = option_value_change(
        forward,
        strike,
        years=years,
        vol=vol,
        is_call=is_call,
        log_return=log_return,
        log_vol_change=log_vol_change,
        horizon_years=horizon_years,
    )
    return change * (jnp.asarray(index, dtype=jnp.float64) / jnp.asarray(forward, dtype=jnp.float64))


def linear_value_change(price: ArrayLike, log_return: ArrayLike) -> Float[Array, ""]:
    """Change in USD of one unit of spot, linear perp or linear future: P (e^r - 1), exact for small r too."""
    return jnp.asarray(price, dtype=jnp.float64) * jnp.expm1(jnp.asarray(log_return, dtype=jnp.float64))


def inverse_option_greeks(
    forward: ArrayLike, strike: ArrayLike, *, years: ArrayLike, vol: ArrayLike, is_call: ArrayLike
) -> InverseOptionGreeks:
    """Price in coins and deltas of one inverse option on one coin; the undiscounted Black-76 price over the forward.

        price_coin = C / F;  premium-adjusted delta = N(d1) - C/F;  d price_coin / dF = (N(d1) - C/F) / F;  vega / F

    Sources: Deribit support, "Inverse Options"; Alexander and Imeraj, "Inverse Options in a Black-Scholes World"
    (2021). `forward` must be positive: a premium in a coin that is worth nothing has no finite size.
    """
    greeks = black76_greeks(forward, strike, years=years, vol=vol, is_call=is_call)
    forward = jnp.asarray(forward, dtype=jnp.float64)
    price_coin = greeks.price / forward
    adjusted = greeks.delta - price_coin
    return InverseOptionGreeks(
        price_coin=price_coin,
        delta_usd=greeks.delta,
        premium_adjusted_delta=adjusted,
        price_coin_slope=adjusted / forward,
        vega_coin=greeks.vega / forward,
    )


def inverse_perp_value(usd_notional: ArrayLike, entry: ArrayLike, *, mark: ArrayLike) -> InversePerpValue:
    """P&L of `usd_notional` (USD, long positive) of an inverse contract entered at `entry`, at `mark`.

        pnl_coin = N (1/E - 1/S) = N (S - E) / (E S);  in USD N (S/E - 1);  slope N/S^2;  curvature -2 N/S^3

    The difference of prices is taken before the division: the two reciprocals agree in most digits near entry.
    """
    notional, entry, mark = (jnp.asarray(x, dtype=jnp.float64) for x in (usd_notional, entry, mark))
    pnl_usd = notional * (mark - entry) / entry
    slope = notional / (mark * mark)
    return InversePerpValue(pnl_usd / mark, pnl_usd, slope, -2.0 * slope / mark)


def inverse_perp_value_change(
    usd_notional: ArrayLike, entry: ArrayLike, *, mark: ArrayLike, log_return: ArrayLike
) -> Float[Array, ""]:
    """Change in USD of an inverse perp's P&L when the mark moves to S e^r: N/E coins' worth, linear in the mark."""
    coins = jnp.asarray(usd_notional, dtype=jnp.float64) / jnp.asarray(entry, dtype=jnp.float64)
    return coins * linear_value_change(mark, log_return)


def inverse_liquidation_price(
    collateral_coin: ArrayLike, usd_notional: ArrayLike, *, entry: ArrayLike, maintenance_rate: ArrayLike
) -> LiquidationPrice:
    """Mark at which an account of coins and one inverse position has equity equal to maintenance.

        c + N (1/E - 1/S) = mm |N| / S   =>   S = (N + mm |N|) / (c + N/E)

    No such price where the ratio is not positive or the denominator vanishes: then the coins hedge the short exactly
    (a synthetic dollar) or more than exactly, and no mark liquidates it. A denominator within four units of rounding of
    zero counts as zero.
    """
    coins, notional, entry, rate = (
        jnp.asarray(x, dtype=jnp.float64) for x in (collateral_coin, usd_notional, entry, maintenance_rate)
    )
    position_coins = notional / entry
    denominator = coins + position_coins
    rounding = 4.0 * jnp.finfo(jnp.float64).eps * (jnp.abs(coins) + jnp.abs(position_coins))
    solvable = jnp.abs(denominator) > rounding
    price = (notional + rate * jnp.abs(notional)) / jnp.where(solvable, denominator, 1.0)
    exists = solvable & (price > 0)
    return LiquidationPrice(jnp.where(exists, price, 0.0), exists)


def quanto_forward(
    forward: ArrayLike,
    years: ArrayLike,
    *,
    vol: ArrayLike,
    coin_vol: ArrayLike,
    correlation: ArrayLike,
) -> Float[Array, ""]:
    """USD-measure forward of S that is paid at a fixed rate in coin X, per X_0: F exp(rho sigma_S sigma_X T).

    The option on it is `black76_price(quanto_forward(...), strike, years=years, vol=vol, ...)`. For margin nothing of
    this is needed: multiply the simulated payoff in coin by the simulated coin.
    """
    forward, years, vol, coin_vol, correlation = (
        jnp.asarray(x, dtype=jnp.float64) for x in (forward, years, vol, coin_vol, correlation)
    )
    return forward * jnp.exp(correlation * vol * coin_vol * years)


def svi_total_variance(log_moneyness: ArrayLike, svi: SviParameters) -> Float[Array, ""]:
    """Total variance w(k) of a raw SVI slice at k = ln(K / F), as given: neither clamped nor floored.

    Source: Gatheral and Jacquier, "Arbitrage-free SVI volatility surfaces" (2014).
    """
    a, b, rho, m, sigma = (jnp.asarray(x, dtype=jnp.float64) for x in svi)
    shifted = jnp.asarray(log_moneyness, dtype=jnp.float64) - m
    return a + b * (rho * shifted + jnp.sqrt(shifted * shifted + sigma * sigma))


def svi_vol(
    strike: ArrayLike,
    forward: ArrayLike,
    *,
    svi: SviParameters,
    fit_years: ArrayLike,
    max_total_variance: ArrayLike = 144.0,
) -> Float[Array, ""]:
    """Annual volatility of an SVI slice at `strike`, with Derive's clamp of the moneyness.

        k = clamp(ln(K/F), +-B),  B = 4 sqrt(a + b sigma);   vol = sqrt(min(w(k), w_max) / tau)

    `forward` and `fit_years` (tau) belong to the fit, not to now. Without the clamp most of Derive's own portfolio
    cases come out wrong. A negative total variance counts as 0; `fit_years`, `strike` or `forward` <= 0 gives 0.

    Source: derivexyz/lyra-utils @759e9625, SVI.sol (rule only).
    """
    strike, forward, tau, w_max = (
        jnp.asarray(x, dtype=jnp.float64) for x in (strike, forward, fit_years, max_total_variance)
    )
    usable = (strike > 0) & (forward > 0) & (tau > 0)
    k = jnp.log(jnp.where(usable, strike, 1.0) / jnp.where(usable, forward, 1.0))
    squared_bound = jnp.asarray(svi.a, dtype=jnp.float64) + jnp.asarray(svi.b, dtype=jnp.float64) * jnp.asarray(
        svi.sigma, dtype=jnp.float64
    )
    bounded = squared_bound > 0
    bound = jnp.where(bounded, 4.0 * jnp.sqrt(jnp.where(bounded, squared_bound, 1.0)), 0.0)
    variance = jnp.minimum(svi_total_variance(jnp.clip(k, -bound, bound), svi), w_max)
    positive = usable & (variance > 0)
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0) / jnp.where(positive, tau, 1.0)), 0.0)
