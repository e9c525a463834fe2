#!lua flags=no-writes
-- One dead letter. ARGV[2] id. Answer: {record, payload} or nil.
if not call('ZSCORE', DEAD, ARGV[2]) then return nil end
return { call('HGETALL', job_key(ARGV[2])), call('GET', data_key(ARGV[2])) }
