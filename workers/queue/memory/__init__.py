"""The deadline queue in one process's memory, for tests and the simulator; it survives nothing.

Read :mod:`workers.queue.memory.queue` first. ``fair_queue`` says who is next, ``places`` where each job is.
"""
