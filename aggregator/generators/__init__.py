"""Scenario generators, one law per module; `aggregator.scenarios` says what a generator is and draws from it."""
