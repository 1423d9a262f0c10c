"""Tests of dedupfs.maintenance."""
