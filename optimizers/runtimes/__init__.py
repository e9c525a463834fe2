"""What a served variant needs: one module per runtime, imported only when a variant of it is loaded.

Start with :mod:`optimizers.runner`, which picks the module, then read :mod:`optimizers.runtimes.onnx`.
"""
