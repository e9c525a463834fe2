#!lua flags=no-writes
-- Whose jobs the queue holds. Answer: {the layout that was noted last or '', unfinished jobs}.
return { call('GET', B .. ':layout') or '', tonumber(call('HGET', COUNTS, 'jobs') or 0) }
