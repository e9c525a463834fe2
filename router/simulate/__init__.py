"""The production decisions in virtual time, on arrivals from a trace or a generator.

Start with `engine`; `online` and `queued` are the two sides of a model, `result` is what comes out.
"""
