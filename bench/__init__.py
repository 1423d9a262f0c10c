"""Benchmarks: what dedupfs costs and saves, beside the native file system and other tools."""
