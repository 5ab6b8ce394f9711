"""Estimators of the calibration: pure functions on arrays, NumPy and SciPy only, deterministic, one idea per module.

Returns are daily log returns, arrays are [dates] or [dates, factors] unless a docstring says otherwise.
"""
