"""The conditions of a route, one class each: what a policy file may write under ``when``. Pure.

Start with `condition`, which says what every condition must be able to do, and `when`, which lists them all.
To add one, write its class in a file beside the others and name its key in `when`.
"""
