"""Whole-store walkers: gc, check, scrub, reindex, usage; know packs only through ``store``.

All synchronous, and all but ``reindex`` work while other processes use the same store. Source:
docs/architecture.md, "Paths".
"""
