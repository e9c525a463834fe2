"""Recipes become measured artifacts: reading, running, caching, searching, measuring and reporting.

Start with :mod:`optimizers.pipeline.recipe`, what a recipe says, then :mod:`optimizers.pipeline.pipeline`.
"""
