"""Makes, stores, loads and describes variants of a model; knows nothing of queues and routers.

Start with :mod:`optimizers.artifact`, what a variant is on disk, then :mod:`optimizers.runner`, how it is
loaded, and :mod:`optimizers.task`, how you describe a model of your own.
"""
