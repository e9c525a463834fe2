#!lua flags=no-writes
-- One dead letter. ARGV[2] id. Answer: {record, payload} or nil.
if not call('ZSCORE', DEAD, ARGV[2]) then return nil end
local record = call('HGETALL', job_key(ARGV[2]))
return #record > 0 and { record, call('GET', data_key(ARGV[2])) } or nil
