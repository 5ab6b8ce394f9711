"""The shapes of all tables: `canonical` ones are what every venue becomes, `results` are what a run leaves.

Every Arrow schema carries its table's name and version in its metadata, and every field its unit. Conventions of every
table: ids are strings; times `timestamp[us, UTC]`; exact quantities and money at the edge are `decimal128(38, 18)`,
measured values `float64`; long positive; rates are fractions. `casting.cast_table` is the one door to the canonical
tables.
"""
