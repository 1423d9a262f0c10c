"""Tests of dedupfs.format."""
