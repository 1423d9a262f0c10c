"""Snapshots and duplicates as files outside of a mount: links to packs, and what keeps them."""
