"""Running a model safely, online and in batches: in its own thread, watched for hangs, errors traced to rows.

Read :mod:`workers.execution.model_thread` first. ``faults`` finds the rows at fault; ``work_watch`` detects
a model that hangs.
"""
