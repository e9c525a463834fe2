"""Every tuned constant of the online path, with its reason or its measurement.

Where a comment gives no figure, the value is a choice that the simulator's tests hold. Durations are in ms.
"""

from __future__ import annotations

import math

# --- Admission: which variant, online or queue -----------------------------------------------------------

#: A variant that a request was degraded from a moment ago is chosen again only with this much time to spare,
#: so that a load at the edge does not make the answers' quality flicker, ...
STEP_UP_FACTOR = 1.25
#: ... for so long.
RECENTLY_DEGRADED_MS = 1_000.0
#: The queue's workers yield to online work without notice, so `auto` trusts the queue with half the budget.
QUEUE_SAFETY_FACTOR = 2.0
#: A server that takes no submit for so long is out of reach: statistics as old as that count as unknown, too.
MAX_SUBMIT_PATIENCE_MS = 1_000.0
#: What a call to a replica costs beside the model, where no deployment was asked.
ASSUMED_HOP_MS = 1.0

# --- Predictions -----------------------------------------------------------------------------------------

#: Batches are seldom full, so replicas cannot be kept busier than this with what the best batch allows.
MAX_UTILIZATION = 0.5
#: A margin that work ahead explains; a wider one is jitter's, which refusing does not cure.
MAX_MARGIN_FOR_WORK = 3.0
#: Statistics of a queue that are older say nothing of it.
STATS_VALID_MS = 1_000.0
#: What an answer through the queue takes at least (submit, claim, run, settle, notify), until a router has
#: seen one: with the bundled server and fsync on every write 10 to 20 ms were measured on two cores.
LEAST_QUEUE_MS = 10.0
#: A recent least value is forgotten after one to two times so many values.
RECENT_LEAST_WINDOW = 64
#: Shortest budgets are remembered for one to two times so long, and that anybody asked at all.
URGENCY_WINDOW_MS = 2_000.0
#: The exponential window over the rows that are asked for.
DEMAND_WINDOW_MS = 1_000.0

# --- The margin of a prediction (`calibration`) ----------------------------------------------------------

#: Of 100 predictions 99 are to hold. Aimed at is a little more: in a burst or a stall the margin widens only
#: so fast, and is too narrow meanwhile.
MARGIN_AIM = 0.993
#: One step, where batches end no more often than this interval.
MARGIN_GAIN, MARGIN_INTERVAL_MS = 0.1, 33.0
#: A stall widens it by no more at once, and no more a second: what is late together is one event.
MARGIN_MAX_STEP, MARGIN_MAX_STEP_PER_S = 0.6, 0.3
#: The margin of a router that has just started.
MARGIN_START = 1.0
MARGIN_MIN, MARGIN_MAX = -0.9, 4.0
#: Without answers a wide margin narrows by itself, with this half-life.
MARGIN_HALF_LIFE_MS = 1_000.0
#: Longer budgets than this are of one class.
MAX_BUDGET_CLASS_MS = 1e12

# --- Headroom beyond the margin (`headroom`) -------------------------------------------------------------

#: For a router that has just started: the mean excess in parts of what a row alone is bound to take, and how
#: often a prediction is exceeded.
EXCESS_START, EXCESS_SHARE_START = 0.35, 0.01
#: An excess counts for a tenth: those of one batch are one event.
EXCESS_GAIN = 0.1
#: The share of exceeded predictions is that of about so many answers, within these limits.
EXCESS_SHARE_WINDOW = 500.0
EXCESS_SHARE_MIN, EXCESS_SHARE_MAX = 1e-4, 0.05
#: Aimed at is this part of the misses that are allowed: after a change, learning of it takes a while.
MISS_BUDGET_SHARE = 0.7

# --- Row costs -------------------------------------------------------------------------------------------

#: What every row costs beside its content, in bytes of it: about the two tokens around each text.
ROW_FRAME_BYTES = 8.0
#: How fast the usual size follows, after the first few requests.
ROW_SIZE_GAIN = 0.01
#: No row costs more than this: a tokenizer cuts what is much longer.
MOST_ROW_COST = 16
#: A long text is rare: costs are counted over so many requests, and over half of those before.
ROW_COSTS_COUNTED = 1_000

# --- Batches ---------------------------------------------------------------------------------------------

#: A batch led by a request with this many times the shortest budget asked for lately takes at most one such
#: part of that: it cannot be interrupted, and the next urgent request must find a replica in time.
RELAXED_BUDGETS = 4.0
#: A batch that is cut short for others' sake still runs at this share of the best throughput.
EFFICIENT_SHARE = 0.8
#: Live profiles are fitted anew no more often than this.
REFIT_EVERY_MS = 250.0
#: A slow replica's own profile is new there, and may change again: few batches count.
SLOW_FIT_HALF_LIFE, SLOW_FIT_PRIOR = 16.0, 4.0

# --- Replicas --------------------------------------------------------------------------------------------

#: Per replica one batch runs and the next is already there. Where other routers keep it busy, one is enough.
BATCHES_IN_FLIGHT = 2
#: A replica counts as shared from this share of its time on.
SHARED_USAGE = 0.1
#: No replica counts for less than this, however busy others keep it: a wait has to end some time.
MIN_ROOM = 0.1
#: How much slower than the others a replica is to be called slow, and below what it is one of them again.
SLOW_PACE, USUAL_PACE = math.log(1.4), math.log(1.15)
#: One answer says so much of the pace, and never more than this: a stall is no pace.
PACE_GAIN, MAX_PACE = 0.1, math.log(4.0)
#: How fast the wait for other routers' batches is learnt, and over how long their usage is averaged.
OTHERS_GAIN, USAGE_WINDOW_MS = 0.1, 1_000.0
#: A slow replica that has answered nothing for so long is tried with one row, to see whether it still is.
UNTESTED_MS = 1_000.0
#: A slow replica is taken although the answer comes a little later from it: what it does, the others need
#: not do.
SLOW_REPLICA_BONUS = 1.5
#: So many of the slow replicas are compared for one batch.
REPLICAS_CONSIDERED = 3

# --- Delivery --------------------------------------------------------------------------------------------

#: A batch is sent to so many replicas at most.
MAX_ATTEMPTS = 2
#: A batch is overdue beyond explanation when it has taken this many times its bound, and so much more.
SILENT_BOUNDS, SILENT_MS = 4.0, 100.0
#: An attempt is given up after so many times its bound and so many ms. For each further request in it so
#: many bounds more: where it fails, the replica may have to run them one by one, behind other batches.
GIVE_UP_BOUNDS, GIVE_UP_BOUNDS_PER_ITEM, GIVE_UP_MS = 20.0, 3.0, 5_000.0

# --- Probes ----------------------------------------------------------------------------------------------

#: After so long without an answer any estimate is probed; in doubt, after so long.
PROBE_MS, PROBE_IN_DOUBT_MS = 5_000.0, 250.0
#: What makes an estimate doubtful: see `probing.doubtful`.
DOUBTFUL_PESSIMISM, DOUBTFUL_HOP_MS, DOUBTFUL_MARGIN = 2.0, 5.0, 1.2
#: Where nobody asks, probes may take this part of a replica's time: they help whoever asks next, and
#: meanwhile other models want the processor.
PROBE_IDLE_SHARE = 0.02
#: A probe that takes longer than this and so many bounds shows a replica that has stopped.
PROBE_WITHIN_MS, PROBE_WITHIN_BOUNDS = 1_000.0, 4.0

# --- Rescues ---------------------------------------------------------------------------------------------

#: How often the queue is looked at.
RESCUE_INTERVAL_MS = 100.0
#: What would be too late to decide at the next look is decided now; looks take a while, too.
RESCUE_AHEAD_MS = 1.5 * RESCUE_INTERVAL_MS
#: A queue that nobody drains has no rate to predict by: its jobs are taken when so much time is left beyond
#: what they need online.
RESCUE_LAST_CALL_MS = 500.0
#: To lease the job and to settle it.
RESCUE_HANDOVER_MS = 10.0
#: What a quota that is not used saves up at most.
RESCUE_MAX_SAVED_MS = 5_000.0
#: How many of the most urgent jobs a round considers, and how many are remembered as having had their chance.
RESCUE_HEADS, RESCUES_REMEMBERED = 64, 4_096
#: How long a lease lasts beyond the latest deadline: until a late answer is settled.
RESCUE_LEASE_BEYOND_MS = 5_000
