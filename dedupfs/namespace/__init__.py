"""Names, inodes, snapshots and views. Knows no pack offset and no FUSE; synchronous throughout."""
