"""Venue adapters: one file per venue, from the venue's own payloads to the tables of `aggregator.schema`.

Adapters are found through the entry-point group `crossmargin.adapters`. They parse exact decimals and never import JAX.
"""
