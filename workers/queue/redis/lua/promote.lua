#!lua flags=allow-oom
-- Lease exactly these jobs, where they are waiting. ARGV[2] lease_ms, [3] worker, [4] token, [5...] ids.
-- Answer as for claim.
local taken, token = {}, ARGV[4]
local before = call('GET', B .. ':claim:' .. token)
if before then return leased_again(before, token) end
local other = other_layout()
if other then return other end
local ids = {}
for i = 5, #ARGV do
  local j = load(ARGV[i])
  if j and j.st == 'p' and not j.nb and j.dl > T and call('EXISTS', data_key(j.id)) == 1 then
    call('ZREM', wait_key(j.te), j.sq .. ':' .. j.id)
    deactivate_if_empty(j.te)
    j.st = 'l'
    taken[#taken + 1] = j
    ids[#ids + 1] = j.id
  end
end
local answer = lease(taken, tonumber(ARGV[2]), ARGV[3], token)
if #ids > 0 then call('SET', B .. ':claim:' .. token, table.concat(ids, ' '), 'PX', tonumber(ARGV[2])) end
flush()
return answer
