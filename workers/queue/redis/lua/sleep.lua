#!lua flags=allow-oom
-- A worker is about to sleep. ARGV[2] for how many ms. Answer: 0 if there is work, else the ms until a
-- backoff or a lease ends, or -1; having said so, it is woken through base:work.
if call('EXISTS', ACTIVE) == 1 then return 0 end
local at
for _, index in ipairs({ DELAYED, LEASED }) do
  local first = call('ZRANGE', index, 0, 0, 'WITHSCORES')
  if first[2] and (not at or tonumber(first[2]) < at) then at = tonumber(first[2]) end
end
if at and at <= T then return 0 end
call('HSET', COUNTS, 'idle', math.max(tonumber(call('HGET', COUNTS, 'idle') or 0), T + tonumber(ARGV[2])))
return at and at - T or -1
