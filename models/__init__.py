"""The place of learned margin tiers. Nothing here is learned yet: the package holds no model and no weights.

Every tier and haircut that the engine applies today is the venue's own, read by an adapter or from a dated file.
"""
