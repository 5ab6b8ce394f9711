"""The result tables of the portfolios that a sweep shows in detail, the largest by requirement, and of its factors."""

from __future__ import annotations

import pyarrow as pa

from .fields import field, number, result_schema, text

ALLOCATION = result_schema(
    "allocation",
    [
        text("portfolio_id"),
        text("level", "venue | asset | position"),
        text("key", "venue id, asset symbol, or account and position"),
        text("venue", nullable=True),
        text("asset", nullable=True),
        text("account_id", nullable=True),
        number("value_usd", "USD, signed market value of the exposure"),
        number("es_99_usd", "USD, Euler contribution to the pooled ES"),
        number("es_995_usd", "USD, Euler contribution to the pooled ES"),
        number("es_99_isolated_usd", "USD, ES of the position alone", nullable=True),
        number("es_995_isolated_usd", "USD, ES of the position alone", nullable=True),
        number("var_99_isolated_usd", "USD", nullable=True),
        number("var_995_isolated_usd", "USD", nullable=True),
    ],
)

SCENARIOS_WORST = result_schema(
    "scenarios_worst",
    [
        text("portfolio_id"),
        field("rank", pa.int32(), "1 is the worst"),
        field("scenario", pa.int64(), "scenario index"),
        number("weight", "probability weight"),
        number("loss_usd", "USD"),
        text("drivers", "JSON list of {key, loss_usd}, largest first"),
        text("moves", "JSON of factor to relative move"),
        text("liquidated", "JSON list of account ids liquidated in it"),
    ],
)

GREEKS = result_schema(
    "greeks",
    [
        text("portfolio_id"),
        text("underlying"),
        number("delta_usd", "USD of profit per +100 % of the underlying, linearised"),
        number("gamma_usd", "0.01 * S^2 * d2V/dS2, USD: change of the hedge per +1 % of the underlying"),
        number("vega_usd", "USD of profit per +1 vol point"),
        number("theta_usd", "USD of profit per day"),
    ],
)

LOSS_HISTOGRAM = result_schema(
    "loss_histogram",
    [
        text("portfolio_id"),
        field("bin", pa.int32(), "0 is the largest profit"),
        number("loss_from_usd", "USD, inclusive"),
        number("loss_to_usd", "USD, exclusive (the last bin inclusive)"),
        number("probability", "probability"),
    ],
)

LIQUIDATION_PRICES = result_schema(
    "liquidation_prices",
    [
        text("portfolio_id"),
        text("account_id"),
        text("venue"),
        text("subject", "instrument (with /long or /short where both sides are held) or asset"),
        text("kind", "position | balance | underlying | factor"),
        text("factor", "what is moved: mark:INSTRUMENT alone, or price:ASSET with all that depends on it"),
        text("status", "ok | none | liquidatable_now | calculation"),
        number("price", "today's mark in its quote, or asset price in USD", nullable=True),
        number("log_move_down", "log move of what is moved, negative; within 1e-6 of today's price", nullable=True),
        number("price_down", "as price", nullable=True),
        number("log_move_up", "log move of what is moved, positive; within 1e6 times today's price", nullable=True),
        number("price_up", "as price", nullable=True),
        number("reported_liquidation_price", "as price, the venue's own", nullable=True),
        number("difference", "as price, recomputed minus reported, on the reported one's side", nullable=True),
    ],
    version=2,
)

REVERSE_STRESS = result_schema(
    "reverse_stress",
    [
        text("portfolio_id"),
        text("kind", "joint: the portfolio | account | asset: one price alone"),
        text("subject", "portfolio, account id, or price factor"),
        text("account_id", "the account that is liquidated first", nullable=True),
        text("venue", nullable=True),
        text("status", "ok | none | liquidatable_now | calculation"),
        number("distance", "standard deviations (Mahalanobis) under the covariance of the scenarios", nullable=True),
        text("moves", "JSON of factor to relative move", nullable=True),
        number("probability", "weight of the scenarios beyond the plane through the move", nullable=True),
    ],
)

RESULT_NODES = result_schema(
    "nodes",
    [
        text("portfolio_id"),
        text("point", "node id, withdrawal limit, shared limit or broker"),
        text("kind", "node | limit | shared | broker"),
        text("venue", "of a node", nullable=True),
        number("equity_usd", "USD at market value", nullable=True),
        number("surplus_usd", "USD above the level of liquidation today", nullable=True),
        number("withdrawable_usd", "USD that the venue lets out today", nullable=True),
        number("es_99_alone_usd", "USD, least collateral if the node stood alone", nullable=True),
        number("placement_usd", "USD that a best placement of the TCES puts there"),
        number("p_deficit", "probability that the node falls short, before transfers", nullable=True),
        number("top_up_usd", "USD to add, given what is there", nullable=True),
        number("buffer_value", "probability that a dollar more there is missing, over the tail's", nullable=True),
        number("prefunding_usd", "USD that the reactive policy needs there", nullable=True),
        number("reactive_buffer_usd", "USD at which the policy calls for collateral", nullable=True),
        number("hedge_break_usd", "USD that the book loses where the node is liquidated, mean of those", nullable=True),
        number("move_now_usd", "USD to move in (positive) or out now", nullable=True),
    ],
    version=2,
)

RESULT_ROUTES = result_schema(
    "routes",
    [
        text("portfolio_id"),
        text("kind", "route | channel | all"),
        text("name", "way or channel"),
        text("source", "point", nullable=True),
        text("target", "point", nullable=True),
        text("asset", nullable=True),
        text("through", "JSON list of channels", nullable=True),
        number("median_hours", "hours", nullable=True),
        number("p99_hours", "hours", nullable=True),
        number("capacity_usd", "USD that leave at most; null without a limit", nullable=True),
        number("fee", "fraction that does not arrive", nullable=True),
        number("p_open", "probability that it is up, of a route in time as well", nullable=True),
        number("value", "USD less of TCES per USD of capacity", nullable=True),
        number("worst_flow_usd", "USD that pass in time in the worst scenarios, mean", nullable=True),
        number("move_now_usd", "USD to send now", nullable=True),
        number("without_usd", "USD, bound of the TCES without it", nullable=True),
        number("without_increase_usd", "USD that its failure adds at most", nullable=True),
    ],
    version=2,
)

FACTORS = result_schema(
    "factors",
    [
        text("factor", "price:ASSET | vol:ASSET | peg:ASSET"),
        number("std_horizon", "weighted standard deviation of the log move over the horizon"),
        number("filled_share", "fraction of history cells that were filled"),
        text("source", "history | proxy | rule | figures"),
    ],
)
