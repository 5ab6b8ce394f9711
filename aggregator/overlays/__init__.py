"""Overlays: each wraps a scenario generator, leaves its draws as they are and adds factors to them."""
