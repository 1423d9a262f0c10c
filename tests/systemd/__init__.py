"""Tests of the units and of mount.dedupfs in a booted systemd."""
