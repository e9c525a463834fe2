#!lua flags=allow-oom
-- Do what time asks for. ARGV[2] at most how many of each kind. Answer: how many jobs were moved.
local limit = tonumber(ARGV[2])
local moved = sweep(limit)
for _, tenant in ipairs(call('ZRANGE', ACTIVE, 0, -1)) do
  if moved >= limit then break end
  moved = moved + expire_waiting(tenant, limit - moved)
end
call('ZREMRANGEBYSCORE', DEAD, '-inf', T - S.keep_dead)
local over = call('ZCARD', DEAD) - S.max_dead
if over > 0 then
  for _, id in ipairs(call('ZRANGE', DEAD, 0, math.min(over, limit) - 1)) do
    call('ZREM', DEAD, id)
    call('UNLINK', job_key(id), data_key(id))
  end
end
flush()
return moved
