"""Damage of every kind: found, named, contained."""
