#!lua flags=no-writes
-- Dead letters, newest first. ARGV[2] offset, [3] limit. Answer: id, record, ... pairs.
local answer, offset = {}, tonumber(ARGV[2])
for _, id in ipairs(call('ZREVRANGE', DEAD, offset, offset + tonumber(ARGV[3]) - 1)) do
  local record = call('HGETALL', job_key(id))
  if #record > 0 then answer[#answer + 1] = { id, record } end
end
return answer
