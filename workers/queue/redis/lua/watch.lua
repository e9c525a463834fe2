#!lua flags=allow-oom
-- As state, for jobs that have ended; the others are marked so that their end is announced.
-- ARGV[2...] ids. Answer, each: {record; result or nil}, nil where it has not ended, 0 where it is unknown.
local answer = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local st = call('HGET', job_key(id), 'st')
  if not st then
    answer[i - 1] = 0
  elseif st == 'p' or st == 'l' then
    call('HSET', job_key(id), 'w', 1)
    answer[i - 1] = false
  else
    answer[i - 1] = { call('HGETALL', job_key(id)), result_of(id) }
  end
end
return answer
