#!lua flags=no-writes
-- What is known about jobs. ARGV[2...] ids. Answer, each: {record as field, value, ...; result or nil} or nil.
local answer = {}
for i = 2, #ARGV do
  local record = call('HGETALL', job_key(ARGV[i]))
  answer[i - 1] = #record > 0 and { record, result_of(ARGV[i]) } or false
end
return answer
