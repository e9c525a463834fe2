#!lua flags=allow-oom
-- End or give back leased jobs, each by itself. ARGV[2]: JSON [[id, token, kind, text, draw], ...], kind
-- "done" (text: variant), "failed", "retry", "missed" (text: error) or "release"; ARGV[3...]: the results
-- of the done ones, in order. Answer: 1 where it holds (also when it was applied before), 0 where stale.
local results = 2

-- The same arithmetic as workers/retry.py, after_failure.
local function retry(j, err, draw)
  j.at = j.at + 1
  call('HSET', job_key(j.id), 'at', j.at)
  note_failure(j, err)
  if T >= j.dl then return finish(j, 'e', 't_expired', err) end
  if j.at >= j.ma then return finish(j, 'x', 't_dead', 'failed ' .. j.at .. ' times; last: ' .. err) end
  local full = math.min(S.retry_cap, S.retry_base * 2 ^ math.min(j.at - 1, 40))
  local not_before = T + math.max(1, math.floor(full * (0.5 + 0.5 * draw)))
  if not_before >= j.dl then
    return finish(j, 'x', 't_dead', 'the next try would start after the deadline; last: ' .. err)
  end
  add('t_retried', 1)
  requeue(j, not_before)
end

local function apply(j, kind, text, draw, result)
  call('HSET', job_key(j.id), 'lt', j.tk)
  if kind == 'done' then
    call('SET', res_key(j.id), result, 'PX', S.keep)
    if text ~= '' then call('HSET', job_key(j.id), 'rv', text) end
    finish(j, 'd', 't_done')
    call('HDEL', job_key(j.id), 'er')
  elseif kind == 'failed' then
    note_failure(j, text)
    finish(j, 'f', 't_failed', text)
  elseif kind == 'missed' then
    finish(j, 'e', 't_expired', text)
  elseif kind == 'release' then
    requeue(j)
  else
    retry(j, text, draw)
  end
end

local answer = {}
for i, o in ipairs(cjson.decode(ARGV[2])) do
  local j, result = load(o[1]), nil
  if o[3] == 'done' then
    results = results + 1
    result = ARGV[results]
  end
  answer[i] = 0
  if j and j.st == 'l' and j.tk == o[2] then
    apply(j, o[3], o[4], o[5], result)
    answer[i] = 1
  elseif j and j.lt == o[2] then
    answer[i] = 1
  end
end
flush()
return answer
