"""What the server does: one script for each operation, all of it or nothing.

A data set's keys begin with one hash tag, so they lie in one slot of a cluster:

    {pocket:main}         the counter: the last version given
    {pocket:main}:NAME    an entry: version, deadline (8 bytes each), the codec's record, and the version again
    {pocket:main}/names   a sorted set of all names, each with score 0: so they are ordered by their bytes
    {pocket:main}/ends    a sorted set of the names of entries that have a deadline, by deadline
    {pocket:main}/slots   a hash: what came of the last write of each slot (number, version, hour)
    {pocket:main}/hours   a sorted set of the slots, by the hour of their last use
    {pocket:main}/layout  the layout's number
    {pocket:main}/changes the channel on which each write's keys are published

The version stands in an entry twice. The record's checksum binds it to its key and deadline; the version is given here, where no
checksum can be made.
"""

from __future__ import annotations

import hashlib
import struct

LAYOUT = 1
"""The number of the layout above."""

HEAD = struct.Struct(">Qd")
"""Version and deadline; NaN for none."""

TAIL = struct.Struct(">Q")

LAST_VERSION = 2**53
"""Lua counts in doubles."""

SLACK = 60.0
"""Seconds after its deadline before an entry is removed: others' clocks may be behind."""


class Script:
    """A script and the name by which the server knows it."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self.name = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


# An own helper of each script that looks at entries: the version of one, 0 where there is none or it has expired.
_SEEN = """
local function seen(key, now)
  local head = redis.call('GETRANGE', key, 0, 15)
  if #head < 16 then return 0 end
  local version, deadline = struct.unpack('>I8d', head)
  if deadline <= now then return 0 end
  return version
end
"""

# KEYS: counter, names, ends, slots, hours, then entries: those expected, those changed. ARGV: slot, number, is it sent again?, now,
# channel, how many are expected, how many changes, the expected versions, then for each change its entry (empty: delete), a version of
# its own and a deadline ('' for none). Gives the version; {-1, …} with the places of the keys that differ; {-2} for a copy that comes late.
WRITE = Script(
    _SEEN
    + f"""
local counter, names, ends, slots, hours = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local slot, number, again, now = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local expected, changes = tonumber(ARGV[6]), tonumber(ARGV[7])
local last = tonumber(redis.call('GET', counter) or '0')
local noted, came_of, hour = 0, 0, 0
if changes > 0 then
  local note = redis.call('HGET', slots, slot)
  if note then
    noted, came_of, hour = struct.unpack('>I8I8I8', note)
    if noted > number then return {{-2}} end
    if noted == number and came_of > 0 then return came_of end
  end
end
local conflict = {{-1}}
for i = 1, expected do
  local wanted, version = tonumber(ARGV[7 + i]), seen(KEYS[5 + i], now)
  if version ~= wanted and not (wanted == -1 and version > 0) then conflict[#conflict + 1] = i end
end
if changes == 0 then
  if #conflict > 1 then return conflict end
  return last
end
local this_hour = math.floor(tonumber(redis.call('TIME')[1]) / 3600)
local function note(version)
  redis.call('HSET', slots, slot, struct.pack('>I8I8I8', number, version, this_hour))
  if hour == this_hour then return end
  redis.call('ZADD', hours, this_hour, slot)
  for _, old in ipairs(redis.call('ZRANGEBYSCORE', hours, '-inf', this_hour - 25, 'LIMIT', 0, 16)) do
    redis.call('HDEL', slots, old)
    redis.call('ZREM', hours, old)
  end
end
if noted == number then -- it was a conflict, of which the answer was lost
  if #conflict == 1 then for i = 1, expected do conflict[i + 1] = i end end
  return conflict
end
if #conflict > 1 then
  if again then note(0) end -- a copy that was sent before must not land after this answer
  return conflict
end
local version, highest = last + 1, last + 1
local told, skipped = {{}}, #counter + 2
for i = 0, changes - 1 do
  local key, entry, own, deadline = KEYS[6 + expected + i], ARGV[8 + expected + 3 * i], ARGV[9 + expected + 3 * i], ARGV[10 + expected + 3 * i]
  local name, mine, stands = string.sub(key, skipped), version, true
  if own ~= '' then
    mine = tonumber(own)
    if mine > highest then highest = mine end
    local head = redis.call('GETRANGE', key, 0, 7)
    if #head == 8 and head == redis.call('GETRANGE', key, -8, -1) then -- a damaged one is replaced
      local there = struct.unpack('>I8', head)
      stands = there < mine or (there == mine and entry == '')
    end
  end
  if not stands then
  elseif entry == '' then
    redis.call('DEL', key)
    redis.call('ZREM', names, name)
    redis.call('ZREM', ends, name)
  else
    local bytes = struct.pack('>I8', mine)
    redis.call('SET', key, bytes .. entry .. bytes)
    redis.call('ZADD', names, 0, name)
    if deadline == '' then redis.call('ZREM', ends, name) else redis.call('ZADD', ends, deadline, name) end
  end
  told[2 * i + 1], told[2 * i + 2] = name, string.format('%.0f', mine)
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now - {SLACK:.0f}, 'LIMIT', 0, 2 * changes)) do
  redis.call('DEL', counter .. ':' .. name)
  redis.call('ZREM', names, name)
  redis.call('ZREM', ends, name)
end
redis.call('SET', counter, string.format('%.0f', highest))
note(version)
redis.call('PUBLISH', ARGV[5], cjson.encode(told))
return version
"""
)

# KEYS: names, ends. ARGV: the command, from, to, how many, now. Gives the last name looked at ('' where there are no more), then the live ones.
SCAN = Script(
    """
local page, now = redis.call(ARGV[1], KEYS[1], ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4]), tonumber(ARGV[5])
local found = {#page == tonumber(ARGV[4]) and page[#page] or ''}
for _, name in ipairs(page) do
  local deadline = redis.call('ZSCORE', KEYS[2], name)
  if not deadline or tonumber(deadline) > now then found[#found + 1] = name end
end
return found
"""
)

# KEYS: counter, names, ends, then entries. Gives a word for each fault, and the place of its entry.
CHECK = Script(
    """
local last, found = tonumber(redis.call('GET', KEYS[1]) or '0'), {}
for i = 4, #KEYS do
  local name, head = string.sub(KEYS[i], #KEYS[1] + 2), redis.call('GETRANGE', KEYS[i], 0, 15)
  local is_listed, ends = redis.call('ZSCORE', KEYS[2], name), redis.call('ZSCORE', KEYS[3], name)
  local function fault(what) found[#found + 1] = what; found[#found + 1] = i - 4 end
  if head == '' then
    if is_listed then fault('no entry') elseif ends then fault('no entry with a deadline') end
  else
    if not is_listed then fault('not listed') end
    if #head == 16 then
      local version, deadline = struct.unpack('>I8d', head)
      if version > last then fault('above the counter') end
      if deadline == deadline then
        if tonumber(ends or 'nan') ~= deadline then fault('another deadline') end
      elseif ends then fault('another deadline') end
    end
  end
end
return found
"""
)

# KEYS: a name for a try, twice. ARGV: the channel. Calls what the others call, so that what a user may not do is known before it matters.
TRY = Script(
    """
local key, set = KEYS[1], KEYS[2]
redis.call('SET', key, '')
redis.call('HSET', set, 'a', 'b')
redis.call('HGET', set, 'a')
redis.call('HDEL', set, 'a')
redis.call('ZADD', set, 0, 'a')
redis.call('ZSCORE', set, 'a')
redis.call('ZRANGEBYSCORE', set, 0, 0)
redis.call('ZRANGEBYLEX', set, '-', '+')
redis.call('ZREVRANGEBYLEX', set, '+', '-')
redis.call('ZREM', set, 'a')
redis.call('GET', key)
redis.call('GETRANGE', key, 0, 0)
redis.call('TIME')
redis.call('DEL', key, set)
redis.call('PUBLISH', ARGV[1], '[]')
"""
)
