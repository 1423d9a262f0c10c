"""The tests; `tests/NAME/` mirrors `dedupfs/NAME/`, one test file per module."""
