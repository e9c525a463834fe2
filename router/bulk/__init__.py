"""Files of rows in, files of answers out, in order, and resumable at any point with a ledger beside them.

Read :mod:`router.bulk.run` first: it connects the source of rows, the requests and the file of results.
"""
