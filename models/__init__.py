"""Learned margin tiers: forecasts of loss quantiles, ladders of rates made of them, and what governance can apply."""
