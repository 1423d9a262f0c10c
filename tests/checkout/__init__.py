"""Tests of dedupfs.checkout."""
