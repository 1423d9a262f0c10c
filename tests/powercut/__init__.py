"""Power cuts on real file systems."""
