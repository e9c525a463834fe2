#!lua flags=
-- Queue jobs. ARGV[2]: JSON [[id, rows, budget_ms, tenant, variant, key, max_attempts, digest, trace], ...],
-- ARGV[3...]: their payloads. Answer, per job: {"ok"|"dup", id, deadline} | {"full", what, retry_after_ms}
-- | {"conflict", first id}. The same id or idempotency key again is answered, not queued again.
local live = call('HMGET', COUNTS, 'jobs', 'bytes', 'seq', 'rt', 'r0', 'rj', 'rb')
local jobs, bytes, seq = tonumber(live[1] or 0), tonumber(live[2] or 0), tonumber(live[3] or 0)
local mine_jobs, mine_bytes, lines = {}, {}, {}
local other = other_layout()
if other and jobs > 0 then return other end
if other or S.layout and call('EXISTS', B .. ':layout') == 0 then call('SET', B .. ':layout', S.layout) end

-- When there is predicted to be room: what is over, by the recent rate; without one, the earliest deadline.
local function room_ms(over, kept)
  local rate = 0
  if live[4] then
    local span = math.max(MIN_RATE_SPAN_MS, math.min(RATE_MS, tonumber(live[4]) - tonumber(live[5] or live[4])))
    rate = tonumber(kept or 0) * math.exp((tonumber(live[4]) - T) / RATE_MS) / span
  end
  if rate > 0 then return math.min(MAX_ROOM_MS, math.max(MIN_ROOM_MS, math.ceil(over / rate))) end
  for _, tenant in ipairs(call('ZRANGE', ACTIVE, 0, 0)) do
    local head = call('ZRANGE', wait_key(tenant), 0, 0, 'WITHSCORES')
    return math.min(MAX_ROOM_MS, math.max(UNKNOWN_ROOM_MS, tonumber(head[2]) - T))
  end
  return UNKNOWN_ROOM_MS
end

local function bound(tenant, size)
  if jobs + 1 > S.max_jobs then return 'jobs', room_ms(jobs + 1 - S.max_jobs, live[6]) end
  if bytes + size > S.max_bytes then return 'bytes', room_ms(bytes + size - S.max_bytes, live[7]) end
  local own = S.bounds[tenant] or { 0, 0 }
  local most_jobs = own[1] > 0 and own[1] or S.tenant_jobs
  local most_bytes = own[2] > 0 and own[2] or S.tenant_bytes
  if not (most_jobs or most_bytes) then return nil end
  if not mine_jobs[tenant] then
    mine_jobs[tenant] = tonumber(call('HGET', B .. ':tenant_jobs', tenant) or 0)
    mine_bytes[tenant] = tonumber(call('HGET', B .. ':tenant_bytes', tenant) or 0)
  end
  if most_jobs and mine_jobs[tenant] + 1 > most_jobs then
    return 'tenant jobs', room_ms(mine_jobs[tenant] + 1 - most_jobs, live[6])
  end
  if most_bytes and mine_bytes[tenant] + size > most_bytes then
    return 'tenant bytes', room_ms(mine_bytes[tenant] + size - most_bytes, live[7])
  end
end

local function first_job(id, key)
  local first = key and call('GET', key) or id
  local f = call('HMGET', job_key(first), 'dg', 'dl')
  return first, f[1], f[2]
end

local function put(id, ro, budget, te, va, ky, ma, dg, tp, payload)
  local key = ky ~= '' and (B .. ':key:' .. te .. ':' .. ky) or nil
  local first, digest, deadline = first_job(id, key)
  if digest then
    if digest == dg then return { 'dup', first, deadline } end
    return { 'conflict', first }
  end
  local what, retry_after = bound(te, #payload)
  if what then return { 'full', what, retry_after } end
  seq = seq + 1
  local dl, sq = T + budget, string.format('%011x', seq)
  local fields = { 'st', 'p', 'dl', dl, 'su', T, 'ro', ro, 'sq', sq, 'dg', dg, 'by', #payload }
  local function set(name, value) fields[#fields + 1] = name; fields[#fields + 1] = value end
  if te ~= '' then set('te', te) end
  if va ~= '' then set('va', va) end
  if ky ~= '' then set('ky', ky) end
  if ma ~= DEFAULT_ATTEMPTS then set('ma', ma) end
  if tp ~= '' then set('tp', tp) end
  call('HSET', job_key(id), unpack(fields))
  call('SET', data_key(id), payload)
  if key then call('SET', key, id, 'PX', key_ttl(budget)) end
  lines[te] = lines[te] or {}
  lines[te][#lines[te] + 1] = dl
  lines[te][#lines[te] + 1] = sq .. ':' .. id
  jobs, bytes = jobs + 1, bytes + #payload
  mine_jobs[te], mine_bytes[te] = (mine_jobs[te] or 0) + 1, (mine_bytes[te] or 0) + #payload
  add('jobs', 1); add('bytes', #payload); add('rows', ro); add('wrows', ro); add('seq', 1); add('t_submitted', 1)
  tenant_jobs[te] = (tenant_jobs[te] or 0) + 1
  tenant_bytes[te] = (tenant_bytes[te] or 0) + #payload
  return { 'ok', id, dl }
end

local answer = {}
for i, m in ipairs(cjson.decode(ARGV[2])) do
  answer[i] = put(m[1], m[2], m[3], m[4], m[5], m[6], m[7], m[8], m[9], ARGV[i + 2])
end
for tenant, members in pairs(lines) do
  call('ZADD', wait_key(tenant), unpack(members))
  activate(tenant)
end
flush()
return answer
