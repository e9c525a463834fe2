#!lua flags=
-- Queue dead letters again, with all their attempts and a new deadline. ARGV[2] budget_ms, [3...] ids.
-- Answer: the ids that were moved.
local answer = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  local j = load(id)
  if j and j.st == 'x' and call('EXISTS', data_key(id)) == 1 then
    j.dl = T + tonumber(ARGV[2])
    call('ZREM', DEAD, id)
    call('PERSIST', job_key(id))
    call('PERSIST', data_key(id))
    if j.ky then call('PEXPIRE', B .. ':key:' .. j.te .. ':' .. j.ky, key_ttl(tonumber(ARGV[2]))) end
    call('HDEL', job_key(id), 'fi', 'er', 'at', 'lo', 'lt', 'tk', 'cl', 'ga')
    call('HSET', job_key(id), 'st', 'p', 'dl', j.dl, 'su', T)
    enqueue(j)
    add('jobs', 1); add('rows', j.ro); add('wrows', j.ro); add('bytes', j.by)
    tenant_jobs[j.te] = (tenant_jobs[j.te] or 0) + 1
    tenant_bytes[j.te] = (tenant_bytes[j.te] or 0) + j.by
    answer[#answer + 1] = id
  end
end
flush()
return answer
