"""Whole examples on real data, each a recipe, a data set and a model."""
