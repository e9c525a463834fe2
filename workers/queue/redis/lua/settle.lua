#!lua flags=allow-oom
-- End or give back leased jobs, each by itself. ARGV[2]: JSON [[id, token, kind, text, draw], ...], kind
-- "done" (text: variant), "failed", "retry", "missed", "lost" (text: error) or "release"; ARGV[3...]: the
-- results of the done ones, in order. Answer: 1 where it holds (also when it was applied before), 0 where stale.
local results = 2

-- Where each kind of outcome may have brought the job that it ended.
local ENDS = { done = 'd', failed = 'f', missed = 'e', retry = 'ex', lost = 'ex', release = '' }

local function applied_before(j, token, kind)
  if j.st ~= 'l' and j.tk == token then return string.find(ENDS[kind], j.st, 1, true) ~= nil end
  return call('HGET', job_key(j.id), 'lt') == token .. ':' .. kind
end

-- The same arithmetic as workers/queue/retry.py, after_failure.
local function retry(j, err, draw)
  j.at = j.at + 1
  call('HSET', job_key(j.id), 'at', j.at)
  note_failure(j, err)
  if T >= j.dl then return finish(j, 'e', 't_expired', err, true) end
  if j.at >= j.ma then return finish(j, 'x', 't_dead', 'failed ' .. j.at .. ' times; last: ' .. err, true) end
  local full = math.min(S.retry_cap, S.retry_base * 2 ^ math.min(j.at - 1, 40))
  local not_before = T + math.max(1, math.floor(full * (0.5 + 0.5 * draw)))
  if not_before >= j.dl then
    return finish(j, 'x', 't_dead', 'the next try would start after the deadline; last: ' .. err, true)
  end
  add('t_retried', 1)
  give_back(j, 'retry', not_before)
end

local function done(j, variant, result)
  call('SET', data_key(j.id), result, 'PX', S.keep)
  if variant ~= '' then call('HSET', job_key(j.id), 'rv', variant) end
  if j.at > 0 then call('HDEL', job_key(j.id), 'er') end
  finish(j, 'd', 't_done', nil, true)
end

local function apply(j, kind, text, draw)
  if kind == 'failed' then
    note_failure(j, text)
    finish(j, 'f', 't_failed', text, true)
  elseif kind == 'missed' then
    finish(j, 'e', 't_expired', text, true)
  elseif kind == 'lost' then
    lose(j, text)
  elseif kind == 'release' then
    give_back(j, 'release')
  else
    retry(j, text, draw)
  end
end

local answer = {}
for i, o in ipairs(cjson.decode(ARGV[2])) do
  local j = load_leased(o[1])
  local held = j and j.st == 'l' and j.tk == o[2]
  if o[3] == 'done' then
    results = results + 1
    if held then done(j, o[4], ARGV[results]) end
  elseif held then
    apply(load(o[1]), o[3], o[4], o[5])
  end
  answer[i] = (held or j and applied_before(j, o[2], o[3])) and 1 or 0
end
flush()
return answer
