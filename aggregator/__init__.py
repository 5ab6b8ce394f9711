"""The engine of crossmargin: one margin over the accounts that a desk keeps on many venues.

Canonical Arrow tables in, unified and venue-by-venue margin under many price scenarios out. The engine knows no venue
and no learned model: `adapters` reads venues, `models` is the place of learned tiers, and only `aggregator.run_inputs`,
`aggregator.sweep` and `aggregator.cli` may see all three. Importing this package imports nothing else, so that
`crossmargin --help` stays quick.
"""

__version__ = "0.1.0"
