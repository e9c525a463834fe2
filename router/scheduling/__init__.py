"""Every decision about a request, as pure code: admission, predictions, batches, replicas, retries, rescues.

Start with `admission` (where does this request go?), then `scheduler` (what runs now, and where?).
"""
