#!lua flags=allow-oom
-- Lease waiting jobs. ARGV[2] n, [3] lease_ms, [4] worker, [5] token, [6] rows at most.
-- Answer: {JSON [[id, token, rows, deadline, attempts, tenant, variant, until, submitted, lost], ...], payload...}.
-- Tenants by start-time fair queueing (virtual time advances by rows over weight); within one, by deadline.
local n, lease_ms, token, max_rows = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[5], tonumber(ARGV[6])
local before = call('GET', B .. ':claim:' .. token)
if before then return leased_again(before, token) end
local other = other_layout()
if other then return other end

sweep(256)
local tenants, taken, lost, skipped, rows, bytes, full = {}, {}, {}, 0, 0, 0, false
local virtual = tonumber(call('HGET', COUNTS, 'vt') or 0)
local found, may_expire = nil, S.max_expired
for _ = 1, CLAIM_ROUNDS do -- a tenant with nothing but late jobs must not stand before one with work to do
  found = call('ZRANGE', ACTIVE, 0, n - 1, 'WITHSCORES')
  local before = may_expire
  for i = 1, #found, 2 do
    if may_expire > 0 then may_expire = may_expire - expire_waiting(found[i], may_expire) end
  end
  if may_expire == before then break end
end
for i = 1, #found, 2 do
  local t = { name = found[i], pass = tonumber(found[i + 1]), at = 0, members = {} }
  t.weight = tonumber(S.weights[t.name] or 1)
  tenants[#tenants + 1] = t
end

-- The head of a tenant's line, nil at its end; read a few at a time, once the tenant's turn has come.
local function head(t)
  if t.at == #t.members then
    for _, member in ipairs(call('ZRANGE', wait_key(t.name), t.at, t.at + 63)) do t.members[#t.members + 1] = member end
  end
  return t.members[t.at + 1]
end

local function next_tenant()
  local best
  for _, t in ipairs(tenants) do
    if not t.empty and (not best or t.pass < best.pass) then best = t end
  end
  return best
end

while #taken < n and skipped < 1000 and not full do
  local t = next_tenant()
  if not t then break end
  local member = head(t)
  local id = member and id_of(member)
  local f = id and call('HMGET', job_key(id), 'ro', 'dl', 'at', 'va', 'su', 'lo', 'sq', 'by', 'ga')
  if not id then
    t.empty = true
  elseif not f[1] or f[7] .. ':' .. id ~= member then
    drop_orphan(id, t.name, true)
    t.at, skipped = t.at + 1, skipped + 1
  elseif call('EXISTS', data_key(id)) == 0 then
    lost[#lost + 1] = id
    t.at, skipped = t.at + 1, skipped + 1
  else
    local j = {
      id = id, te = t.name, ro = tonumber(f[1]), dl = tonumber(f[2]), at = tonumber(f[3] or 0), va = f[4] or '',
      su = tonumber(f[5]), lo = tonumber(f[6] or 0),
    }
    -- A job that lost its workers before, or hung one, goes alone: it takes no other down with it.
    local suspect = j.lo >= S.suspect_after or f[9]
    local too_much = rows + j.ro > max_rows or bytes + tonumber(f[8]) > S.claim_bytes
    if #taken > 0 and (suspect or too_much) then
      full = true
    elseif j.dl <= T then
      t.empty = true -- more late ones than may expire in one call: the next one has them
    else
      virtual = math.max(virtual, t.pass)
      taken[#taken + 1] = j
      rows, bytes = rows + j.ro, bytes + tonumber(f[8])
      t.at = t.at + 1
      t.pass = t.pass + j.ro / t.weight
      full = suspect
    end
  end
end

for _, t in ipairs(tenants) do
  local gone = {}
  for at = 1, t.at do gone[at] = t.members[at] end
  if t.at > 0 then
    in_slices(gone, 'ZREM', wait_key(t.name))
    call('ZADD', ACTIVE, 'XX', exact(t.pass), t.name)
  end
  if t.at > 0 or t.empty then deactivate_if_empty(t.name) end
end
for _, id in ipairs(lost) do fail_orphan(load(id)) end
local answer = lease(taken, lease_ms, ARGV[4], token)
if #taken > 0 then
  call('HSET', COUNTS, 'vt', exact(virtual))
  local ids = {}
  for i, j in ipairs(taken) do ids[i] = j.id end
  call('SET', B .. ':claim:' .. token, table.concat(ids, ' '), 'PX', lease_ms)
end
flush()
return answer
