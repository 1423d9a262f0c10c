"""Tests of dedupfs.transfer."""
