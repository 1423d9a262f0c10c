"""Duplicate files of a directory outside of a mount -> links to one copy in the store, and back.

``run`` orders the steps, ``undo`` goes back. Source: docs/architecture.md, "Dedupe".
"""
