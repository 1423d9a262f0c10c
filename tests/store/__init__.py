"""Tests of dedupfs.store."""
