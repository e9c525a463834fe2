#!lua flags=allow-oom
-- Cancel a job that has not ended. ARGV[2] id. Answer: its state now, or nil if there is no such job.
local j = load(ARGV[2])
if not j then return nil end
if j.st == 'p' or j.st == 'l' then finish(j, 'c', 't_cancelled', 'cancelled') end
flush()
return j.st
