#!lua flags=no-writes
-- Answer: {now, leased, delayed, dead, earliest deadline or nil, counts as field, value, ...}.
local earliest
for _, tenant in ipairs(call('ZRANGE', ACTIVE, 0, -1)) do
  local head = call('ZRANGE', wait_key(tenant), 0, 0, 'WITHSCORES')
  if head[2] and (not earliest or tonumber(head[2]) < earliest) then earliest = tonumber(head[2]) end
end
return {
  T, call('ZCARD', LEASED), call('ZCARD', DELAYED), call('ZCARD', DEAD), earliest or false, call('HGETALL', COUNTS),
}
