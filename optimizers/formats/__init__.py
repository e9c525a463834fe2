"""The forms that a model can have: what comes in, conversion between forms, and storage as files.

Start with :mod:`optimizers.formats.forms`, which lists the forms and their conversions.
"""
