"""The load of the command ``demo``: interactive and bulk requests on a real model, every answer checked.

Read :mod:`router.demo.interactive` and :mod:`router.demo.bulk` first: the two halves of the load.
"""
