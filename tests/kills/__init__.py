"""SIGKILL at any moment, to any process, and disks that are full or fail."""
