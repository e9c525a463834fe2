-- What the verbs share; put in front of each by workers/queue/redis/scripts.py. Key and field names: workers/queue/redis/keys.py.
-- KEYS[1] base name of the queue. ARGV[1] its settings as JSON. A verb ends with flush(). Numbers in capitals
-- that stand nowhere here come from workers/queue/limits.py.
local B, call = KEYS[1], redis.call
local S = cjson.decode(ARGV[1])
local T = clock()
local COUNTS, ACTIVE, DELAYED, LEASED, DEAD = B .. ':counts', B .. ':active', B .. ':delayed', B .. ':leased', B .. ':dead'

local delta, tenant_jobs, tenant_bytes, ended, unleased, unlinked = {}, {}, {}, {}, {}, {}
local ended_jobs, ended_rows, ended_bytes, woken = 0, 0, 0, false

local function add(field, n) delta[field] = (delta[field] or 0) + n end
local function wait_key(tenant) return B .. ':wait:' .. tenant end
local function job_key(id) return B .. ':job:' .. id end
local function data_key(id) return B .. ':data:' .. id end
local function exact(x) return string.format('%.17g', x) end
-- An idempotency key outlives its job: while it waits, then as long as its record (see finish).
local function key_ttl(budget_ms) return budget_ms + S.keep + 86400000 end
local function id_of(member) return string.sub(member, string.find(member, ':', 1, true) + 1) end

-- Lua takes some 8,000 arguments in one call; so many at a time are safe.
local function in_slices(list, command, ...)
  for i = 1, #list, 1000 do
    local args = { ... }
    for at = i, math.min(i + 999, #list) do args[#args + 1] = list[at] end
    call(command, unpack(args))
  end
end

-- The answer to who would put in or take out jobs of a model with other tensors; nil: go on.
local function other_layout()
  local noted = S.layout and call('GET', B .. ':layout')
  if not noted or noted == S.layout then return nil end
  return redis.error_reply('OTHERLAYOUT ' .. (call('HGET', COUNTS, 'jobs') or '0') .. ' ' .. noted)
end

-- What is enough to end a leased job as done; load() has the rest.
local function load_leased(id)
  local f = call('HMGET', job_key(id), 'st', 'ro', 'by', 'tk', 'te', 'ky', 'at', 'w')
  if not f[1] then return nil end
  return {
    id = id, st = f[1], ro = tonumber(f[2]), by = tonumber(f[3]), tk = f[4], te = f[5] or '', ky = f[6],
    at = tonumber(f[7] or 0), w = f[8],
  }
end

local function load(id)
  local j = load_leased(id)
  if not j then return nil end
  local f = call('HMGET', job_key(id), 'dl', 'sq', 'ma', 'lo', 'nb', 'va', 'su', 'wk', 'lt')
  j.dl, j.sq, j.ma, j.lo = tonumber(f[1]), f[2], tonumber(f[3] or DEFAULT_ATTEMPTS), tonumber(f[4] or 0)
  j.nb, j.va, j.su, j.wk, j.lt = f[5], f[6] or '', tonumber(f[7]), f[8] or '', f[9]
  return j
end

-- A tenant that comes back joins at the present virtual time: idleness earns no credit.
local function activate(tenant)
  if not call('ZSCORE', ACTIVE, tenant) then
    call('ZADD', ACTIVE, call('HGET', COUNTS, 'vt') or '0', tenant)
  end
  woken = true
end

local function deactivate_if_empty(tenant)
  if call('EXISTS', wait_key(tenant)) == 0 then call('ZREM', ACTIVE, tenant) end
end

local function enqueue(j)
  call('ZADD', wait_key(j.te), j.dl, j.sq .. ':' .. j.id)
  activate(j.te)
end

local function unindex(j)
  if j.st == 'l' then
    unleased[#unleased + 1] = j.id
    return
  end
  add('wrows', -j.ro)
  if j.nb then
    call('ZREM', DELAYED, j.id)
  else
    call('ZREM', wait_key(j.te), j.sq .. ':' .. j.id)
    deactivate_if_empty(j.te)
  end
end

-- The only way into a terminal state. The caller has made sure that the job is in none. A token that
-- ended its job stays in the record, so that settling again can be answered; any other goes.
local function finish(j, state, total, err, settled)
  local job, keep = job_key(j.id), S.keep
  unindex(j)
  call('HSET', job, 'st', state, 'fi', T)
  if err then call('HSET', job, 'er', err) end
  if j.nb or not settled then call('HDEL', job, 'tk', 'nb') end
  if state == 'x' then
    keep = S.keep_dead
    call('PEXPIRE', data_key(j.id), keep)
    call('ZADD', DEAD, T, j.id)
  elseif state ~= 'd' then
    unlinked[#unlinked + 1] = data_key(j.id)
  end
  call('PEXPIRE', job, keep)
  if j.ky then call('PEXPIRE', B .. ':key:' .. j.te .. ':' .. j.ky, keep) end
  add('jobs', -1); add('rows', -j.ro); add('bytes', -j.by); add(total, 1)
  tenant_jobs[j.te] = (tenant_jobs[j.te] or 0) - 1
  tenant_bytes[j.te] = (tenant_bytes[j.te] or 0) - j.by
  ended_jobs, ended_rows, ended_bytes = ended_jobs + 1, ended_rows + j.ro, ended_bytes + j.by
  if j.w then
    ended[#ended + 1] = j.id
    call('HDEL', job, 'w')
  end
  j.st = state
end

-- Done in one go, at the latest by flush; before anything is leased in the same call.
local function unlease()
  in_slices(unleased, 'ZREM', LEASED)
  unleased = {}
end

-- A job whose record is gone (evicted, or deleted by hand); the caller takes it from its index. What it
-- counted for stood in the record: an average job's share goes, and flush puts it right when all have ended.
local function drop_orphan(id, tenant, waiting)
  local live, size = call('HMGET', COUNTS, 'jobs', 'rows'), call('STRLEN', data_key(id))
  local jobs = tonumber(live[1] or 0) + (delta.jobs or 0)
  local rows = math.floor((tonumber(live[2] or 0) + (delta.rows or 0)) / math.max(1, jobs))
  add('jobs', -1); add('rows', -rows); add('bytes', -size); add('t_orphaned', 1)
  if waiting then add('wrows', -rows) end
  if tenant then
    tenant_jobs[tenant] = (tenant_jobs[tenant] or 0) - 1
    tenant_bytes[tenant] = (tenant_bytes[tenant] or 0) - size
  end
  if call('EXISTS', job_key(id)) == 0 then unlinked[#unlinked + 1] = data_key(id) end
end

-- A job that cannot run because its payload is gone: ended, so that whoever waits for it is answered.
local function fail_orphan(j)
  add('t_orphaned', 1)
  finish(j, 'f', 't_failed', "its payload is gone from the queue's server: evicted, or deleted by hand")
end

-- Back to waiting, at once or not before a moment; the deadline and the place in line stay.
local function requeue(j, not_before)
  unleased[#unleased + 1] = j.id
  call('HDEL', job_key(j.id), 'tk')
  call('HSET', job_key(j.id), 'st', 'p')
  add('wrows', j.ro)
  if not_before and not_before > T then
    call('HSET', job_key(j.id), 'nb', not_before)
    call('ZADD', DELAYED, not_before, j.id)
  else
    enqueue(j)
  end
end

-- Remembered with what was done, so that the same outcome again is answered alike, and another is stale.
local function give_back(j, kind, not_before)
  call('HSET', job_key(j.id), 'lt', j.tk .. ':' .. kind)
  requeue(j, not_before)
end

local function note_failure(j, err)
  local fa = cjson.decode(call('HGET', job_key(j.id), 'fa') or '[]')
  fa[#fa + 1] = { at_ms = T, worker = j.wk, error = err }
  if #fa > KEPT_FAILURES then table.remove(fa, 1) end
  call('HSET', job_key(j.id), 'fa', cjson.encode(fa), 'er', err)
end

-- A lease ran out, or its holder gives up on it without blaming the job; why: what the holder says.
local function lose(j, why)
  j.lo = j.lo + 1
  call('HSET', job_key(j.id), 'lo', j.lo)
  add('t_lost', 1)
  if why then
    note_failure(j, why)
    call('HSET', job_key(j.id), 'ga', 1)
  end
  if T >= j.dl then
    finish(j, 'e', 't_expired', why or 'the deadline passed while its worker was gone', why)
  elseif j.lo >= S.max_lost then
    local reason = 'lost its lease ' .. j.lo .. ' times' .. (why and '; last: ' .. why or '')
    if not why then note_failure(j, reason) end
    finish(j, 'x', 't_dead', reason, why)
  elseif why then
    give_back(j, 'lost')
  else
    requeue(j)
  end
end

-- Jobs taken by a claim or a promotion: mark, index, and describe them for the answer.
local function lease(taken, lease_ms, worker, token)
  local rows, answer, until_ms, scores = {}, { '[]' }, T + lease_ms, {}
  for i, j in ipairs(taken) do
    call('HSET', job_key(j.id), 'st', 'l', 'tk', token, 'cl', T, 'wk', worker)
    scores[#scores + 1] = until_ms
    scores[#scores + 1] = j.id
    rows[i] = { j.id, token, j.ro, j.dl, j.at, j.te, j.va, until_ms, j.su, j.lo }
    answer[i + 1] = call('GET', data_key(j.id))
    add('wrows', -j.ro)
  end
  if #taken > 0 then
    in_slices(scores, 'ZADD', LEASED)
    answer[1] = cjson.encode(rows)
  end
  return answer
end

-- The answer of an earlier claim with the same token, for a client that lost it.
local function leased_again(ids, token)
  local rows, answer = {}, { '[]' }
  for id in string.gmatch(ids, '%S+') do
    local j = load(id)
    local until_ms = call('ZSCORE', LEASED, id)
    local payload = j and j.st == 'l' and j.tk == token and until_ms and call('GET', data_key(id))
    if payload then
      rows[#rows + 1] = { id, token, j.ro, j.dl, j.at, j.te, j.va, tonumber(until_ms), j.su, j.lo }
      answer[#answer + 1] = payload
    end
  end
  if #rows > 0 then answer[1] = cjson.encode(rows) end
  return answer
end

local function result_of(id)
  return call('HGET', job_key(id), 'st') == 'd' and call('GET', data_key(id)) or false
end

-- Leases that ran out, and backoffs that are over. At most `limit` of each; gives how many were moved.
local function sweep(limit)
  local moved = 0
  for _, id in ipairs(call('ZRANGEBYSCORE', LEASED, '-inf', T, 'LIMIT', 0, limit)) do
    local j = load(id)
    moved = moved + 1
    if j and j.st == 'l' then
      lose(j)
    else
      drop_orphan(id)
      unleased[#unleased + 1] = id
    end
  end
  for _, id in ipairs(call('ZRANGEBYSCORE', DELAYED, '-inf', T, 'LIMIT', 0, limit)) do
    local j = load(id)
    moved = moved + 1
    call('ZREM', DELAYED, id)
    if j and j.nb then
      call('HDEL', job_key(id), 'nb')
      j.nb = false
      enqueue(j)
    else
      drop_orphan(id, nil, true)
    end
  end
  unlease()
  return moved
end

local function expire_waiting(tenant, limit)
  local late = call('ZRANGEBYSCORE', wait_key(tenant), '-inf', T, 'LIMIT', 0, limit)
  for _, member in ipairs(late) do
    local j = load(id_of(member))
    if j and j.sq .. ':' .. j.id == member then
      finish(j, 'e', 't_expired', 'the deadline passed before it could run')
    else
      drop_orphan(id_of(member), tenant, true)
      call('ZREM', wait_key(tenant), member)
      deactivate_if_empty(tenant)
    end
  end
  return #late
end

-- Rates decay; r0 is when the present spell of activity began.
local function note_rate()
  local r = call('HMGET', COUNTS, 'rt', 'rj', 'rr', 'rb')
  local last = tonumber(r[1] or 0)
  local keep = math.exp((last - T) / RATE_MS)
  if T - last > RATE_PAUSE_MS then call('HSET', COUNTS, 'r0', T) end
  call('HSET', COUNTS, 'rt', T,
    'rj', exact(tonumber(r[2] or 0) * keep + ended_jobs), 'rr', exact(tonumber(r[3] or 0) * keep + ended_rows),
    'rb', exact(tonumber(r[4] or 0) * keep + ended_bytes))
end

local function flush()
  if ended_jobs > 0 then note_rate() end
  for field, n in pairs(delta) do
    if n ~= 0 then call('HINCRBY', COUNTS, field, n) end
  end
  for tenant, n in pairs(tenant_jobs) do
    if call('HINCRBY', B .. ':tenant_jobs', tenant, n) <= 0 then
      call('HDEL', B .. ':tenant_jobs', tenant)
      call('HDEL', B .. ':tenant_bytes', tenant)
      tenant_bytes[tenant] = nil
    end
  end
  unlease()
  in_slices(unlinked, 'UNLINK')
  for tenant, n in pairs(tenant_bytes) do call('HINCRBY', B .. ':tenant_bytes', tenant, n) end
  if (delta.jobs or 0) < 0 and call('HGET', COUNTS, 'jobs') == '0' and call('HEXISTS', COUNTS, 't_orphaned') == 1 then
    call('HDEL', COUNTS, 'rows', 'wrows', 'bytes')
    call('DEL', B .. ':tenant_jobs', B .. ':tenant_bytes')
  end
  if #ended > 0 then call('PUBLISH', B .. ':ended', table.concat(ended, ' ')) end
  if woken and tonumber(call('HGET', COUNTS, 'idle') or 0) > T then
    call('HDEL', COUNTS, 'idle')
    call('PUBLISH', B .. ':work', '')
  end
end
