"""Tests of dedupfs.cli."""
