"""Request and answer bodies to tensors and back: JSON, and the binary tensor extension. No calls.

Read ``protocol.py`` first. The other modules are parts of its work, in steps that let other requests run.
"""
