"""Batch workers: claim jobs from the deadline queue, run them in batches, settle each one by itself.

Read :mod:`workers.batch.loop` first. ``deployment`` puts the loop into Ray Serve, ``autoscale`` sets how many
workers run.
"""
