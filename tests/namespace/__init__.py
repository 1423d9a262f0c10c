"""Tests of dedupfs.namespace."""
