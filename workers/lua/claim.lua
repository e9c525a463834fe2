#!lua flags=allow-oom
-- Lease waiting jobs. ARGV[2] n, [3] lease_ms, [4] worker, [5] token, [6] rows at most.
-- Answer: {JSON [[id, token, rows, deadline, attempts, tenant, variant, until, submitted, lost], ...], payload...}.
-- Tenants by start-time fair queueing (virtual time advances by rows over weight); within one, by deadline.
local n, lease_ms, token, max_rows = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[5], tonumber(ARGV[6])
local before = call('GET', B .. ':claim:' .. token)
if before then return leased_again(before, token) end

sweep(256)
local tenants, taken, rows, full = {}, {}, 0, false
local virtual = tonumber(call('HGET', COUNTS, 'vt') or 0)
local found
for _ = 1, 8 do -- a tenant with nothing but late jobs must not stand before one with work to do
  found = call('ZRANGE', ACTIVE, 0, n - 1, 'WITHSCORES')
  local expired = 0
  for i = 1, #found, 2 do expired = expired + expire_waiting(found[i], 256) end
  if expired == 0 then break end
end
for i = 1, #found, 2 do
  local t = { name = found[i], pass = tonumber(found[i + 1]), at = 0, took = 0 }
  t.weight = tonumber(S.weights[t.name] or 1)
  tenants[#tenants + 1] = t
end

-- The head of a tenant's line, nil at its end; read in one go when the tenant's turn first comes.
local function head(t)
  if not t.members then t.members = call('ZRANGE', wait_key(t.name), 0, n - 1) end
  local member = t.members[t.at + 1]
  return member and string.sub(member, string.find(member, ':', 1, true) + 1)
end

local function next_tenant()
  local best
  for _, t in ipairs(tenants) do
    if not t.empty and (not best or t.pass < best.pass) then best = t end
  end
  return best
end

while #taken < n and not full do
  local t = next_tenant()
  if not t then break end
  local id = head(t)
  if not id then
    t.empty = true
  else
    local f = call('HMGET', job_key(id), 'ro', 'dl', 'at', 'va', 'su', 'lo')
    local j = {
      id = id, te = t.name, ro = tonumber(f[1]), dl = tonumber(f[2]), at = tonumber(f[3] or 0), va = f[4] or '',
      su = tonumber(f[5]), lo = tonumber(f[6] or 0),
    }
    -- A job that lost its workers before goes alone, so that it takes no other down with it.
    local suspect = j.lo >= S.suspect_after
    if #taken > 0 and (suspect or rows + j.ro > max_rows) then
      full = true
    elseif j.dl <= T then
      t.empty = true -- more late ones than expire_waiting took: the next sweep has them
    else
      virtual = math.max(virtual, t.pass)
      taken[#taken + 1] = j
      rows = rows + j.ro
      t.at = t.at + 1
      t.pass = t.pass + j.ro / t.weight
      full = suspect
    end
  end
end

for _, t in ipairs(tenants) do
  if t.at > 0 then
    call('ZREM', wait_key(t.name), unpack(t.members, 1, t.at))
    call('ZADD', ACTIVE, 'XX', exact(t.pass), t.name)
    deactivate_if_empty(t.name)
  end
end
local answer = lease(taken, lease_ms, ARGV[4], token)
if #taken > 0 then
  call('HSET', COUNTS, 'vt', exact(virtual))
  local ids = {}
  for i, j in ipairs(taken) do ids[i] = j.id end
  call('SET', B .. ':claim:' .. token, table.concat(ids, ' '), 'PX', lease_ms)
end
flush()
return answer
