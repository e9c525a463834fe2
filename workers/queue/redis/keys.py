"""Every key of one model's queue, on one screen. The scripts in ``lua/`` build the same names.

The model's name stands in braces (a Redis Cluster hash tag), so that all keys of a queue live in one
slot and a script may touch them all. ``KEYS[1]`` of every script is :attr:`Keys.base`.

=====================  ======  =====================================================================
key                    type    holds
=====================  ======  =====================================================================
base:job:<id>          hash    the job's record, fields below; expires once the job has ended
base:data:<id>         string  its payload until it ends, then its result; of a dead one its payload
base:key:<t>:<key>     string  idempotency key of tenant t -> job id
base:wait:<tenant>     zset    claimable jobs, "<seq>:<id>" by deadline; seq breaks ties by arrival
base:active            zset    tenants that have claimable jobs, by virtual time (fair queueing)
base:delayed           zset    jobs in backoff, id by not-before: the deadline is not touched
base:leased            zset    leased jobs, id by the end of the lease
base:dead              zset    dead letters, id by when they died
base:claim:<token>     string  ids that a claim took, so that a repeated claim gives the same
base:layout            string  the tensors that the jobs are for, see workers/queue/redis/server_check.py
base:counts            hash    live counts, bytes, totals, rates, sequence, virtual time
base:tenant_jobs       hash    live jobs by tenant
base:tenant_bytes      hash    live payload bytes by tenant
base:ended             channel ids of ended jobs that somebody waits for, separated by blanks
base:work              channel woken when there is work and a worker said that it sleeps
=====================  ======  =====================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.queue.job import JobState

#: How a record spells a state.
STATES: dict[str, JobState] = {
    "p": JobState.PENDING,
    "l": JobState.LEASED,
    "d": JobState.DONE,
    "f": JobState.FAILED,
    "e": JobState.EXPIRED,
    "c": JobState.CANCELLED,
    "x": JobState.DEAD,
}

#: Fields of a record -> what they are. Short, because a million records repeat them; absent means
#: empty or 0. Further: ``w`` somebody waits, ``lt`` token and kind of the last giving back, ``ga`` a
#: worker gave up on it.
FIELDS: dict[str, str] = {
    "st": "state",
    "dl": "deadline_ms",
    "su": "submitted_ms",
    "ro": "rows",
    "by": "payload_bytes",
    "sq": "sequence",
    "dg": "digest",
    "te": "tenant",
    "va": "variant",
    "ky": "key",
    "ma": "max_attempts",
    "at": "attempts",
    "lo": "lost",
    "nb": "not_before_ms",
    "tk": "token",
    "cl": "claimed_ms",
    "wk": "worker",
    "fi": "finished_ms",
    "er": "error",
    "fa": "failures",
    "rv": "ran_variant",
    "tp": "trace",
}


@dataclass(frozen=True, slots=True)
class Keys:
    """The names that Python itself uses; all others are built inside the scripts."""

    base: str
    ended: str
    work: str

    @classmethod
    def of(cls, model: str, namespace: str = "hr") -> Keys:
        """Raises ``ValueError`` for a model name that would break the hash tag."""
        if not model or any(c in "{}" or c.isspace() for c in model):
            raise ValueError(f"model name {model!r}: must not be empty nor contain blanks or braces")
        base = f"{namespace}:{{{model}}}"
        return cls(base, f"{base}:ended", f"{base}:work")
