#!lua flags=allow-oom
-- Delete dead letters. ARGV[2...] ids. Answer: the ids that were deleted.
local answer = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  if call('ZREM', DEAD, id) == 1 then
    call('UNLINK', job_key(id), data_key(id))
    answer[#answer + 1] = id
  end
end
return answer
