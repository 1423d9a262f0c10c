"""Bytes <-> values, one module per structure; pure. Byte tables: docs/format.md.

Contract of every decoder: any bytes at all give a value or a ``StoreError``, nothing else.
"""
