#!lua flags=no-writes
-- The claimable jobs of the earliest deadlines. ARGV[2] n. Answer: id, deadline, rows, tenant, variant, ...
local n, found, answer = tonumber(ARGV[2]), {}, {}
for _, tenant in ipairs(call('ZRANGE', ACTIVE, 0, -1)) do
  local heads = call('ZRANGEBYSCORE', wait_key(tenant), '(' .. T, '+inf', 'WITHSCORES', 'LIMIT', 0, n)
  for i = 1, #heads, 2 do found[#found + 1] = { heads[i], tonumber(heads[i + 1]) } end
end
table.sort(found, function(a, b) return a[2] < b[2] or (a[2] == b[2] and a[1] < b[1]) end)
for i = 1, math.min(n, #found) do
  local id = id_of(found[i][1])
  local f = call('HMGET', job_key(id), 'ro', 'te', 'va')
  if f[1] then answer[#answer + 1] = { id, found[i][2], tonumber(f[1]), f[2] or '', f[3] or '' } end
end
return answer
