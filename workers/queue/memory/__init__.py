"""The deadline queue in one process's memory, for tests and the simulator; it survives nothing.

Read :mod:`workers.queue.memory.queue` first. ``fair_queue`` decides which job is next; ``places`` holds where
each job is.
"""
