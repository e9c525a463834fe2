"""The deadline queue: jobs of one model, earliest deadline first, claimed by lease, each ended exactly once.

Read :mod:`workers.queue.contract` first: verbs, outcomes and errors. :mod:`workers.queue.job` draws the
lifecycle of a job; ``memory`` and ``redis`` implement the contract; ``embedded`` runs the bundled server.
"""
