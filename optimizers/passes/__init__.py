"""The techniques that make a variant of a model, one file each: spec, function and registration.

Start with :mod:`optimizers.passes.technique`. A file without ``TECHNIQUE`` holds what techniques share.
"""
