#!lua flags=allow-oom
-- Renew leases. ARGV[2] lease_ms, then id, token, id, token, ... Answer: 1 or 0 each.
local answer, until_ms = {}, T + tonumber(ARGV[2])
for i = 3, #ARGV, 2 do
  local f = call('HMGET', job_key(ARGV[i]), 'st', 'tk')
  local held = f[1] == 'l' and f[2] == ARGV[i + 1]
  if held then call('ZADD', LEASED, until_ms, ARGV[i]) end
  answer[#answer + 1] = held and 1 or 0
end
return answer
