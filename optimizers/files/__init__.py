"""Text files as people write them: UTF-8 text, and YAML that becomes checked values or errors with a line.

Recipes and routing policies are both read here. Start with :mod:`optimizers.files.yaml`.
"""
