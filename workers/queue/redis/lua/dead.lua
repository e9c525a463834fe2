#!lua flags=no-writes
-- Dead letters, newest first. ARGV[2] offset, [3] limit. Answer: {how many there are, {{id, record}, ...}},
-- without those whose record is gone.
local answer, offset = {}, tonumber(ARGV[2])
local found = call('ZREVRANGE', DEAD, offset, offset + tonumber(ARGV[3]) - 1)
for _, id in ipairs(found) do
  local record = call('HGETALL', job_key(id))
  if #record > 0 then answer[#answer + 1] = { id, record } end
end
return { #found, answer }
