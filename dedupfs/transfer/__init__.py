"""Trees in and out of a store: directory -> snapshot, snapshot -> directory or tar, and diff.

Knows the file system outside and snapshots inside; no pack offset, no FUSE.
"""
