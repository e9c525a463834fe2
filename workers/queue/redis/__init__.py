"""The deadline queue on Redis 7 or Valkey: one atomic Lua script per verb, for every process of a deployment.

Read :mod:`workers.queue.redis.keys` first: every key and field. ``queue`` has the verbs, ``lua/`` their
scripts.
"""
