"""Tests of what hostile users, trees, names and peers can do."""
