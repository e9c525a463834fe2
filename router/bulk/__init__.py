"""Bulk files through the server: rows read, sent by chunks, answered in order, resumable at any point.

Without ceremony for the caller and bounded in memory: :mod:`router.bulk.run` has the loop, the other
modules one concern each.
"""
