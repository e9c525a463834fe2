-- The queue's clock: epoch milliseconds of the server itself, so that no two machines' clocks meet.
local function clock()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end
