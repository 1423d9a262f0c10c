"""dedupfs: any number of almost equal directories out of one deduplicated store."""

__version__ = "0.1.0"
