"""Tests of dedupfs.fuse."""
