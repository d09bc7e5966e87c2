"""The scripts that the server executes: one for each operation, each of them atomic.

A data set's keys begin with the same hash tag, so they are in the same hash slot of a cluster:

    {pocket:main}         a hash: field '' is the counter, the last version given; a field for each slot (of
                          `pocket_plug.backends.network.Slots`) is its last write's number and version; field 'turn' is the time
                          until which a caller may have a turn (milliseconds of the server's clock)
    {pocket:main}:NAME    an entry: version, deadline (8 bytes each), the codec's record, and the version again
    {pocket:main}/names   a sorted set of all names, each with score 0: so they are ordered by their bytes
    {pocket:main}/ends    a sorted set of the names of entries that have a deadline, by deadline
    {pocket:main}/slots   a sorted set of the slots, by the hour in which they were renewed
    {pocket:main}/turn/NAME  the caller that has the turn for a key; it expires
    {pocket:main}/line/NAME  a list: callers that wait for the turn block on it, and the one that gets its element is next
    {pocket:main}/layout  the layout's number
    {pocket:main}/changes the channel on which each write's keys are published

An entry contains its version twice, in place of a checksum: the record's checksum covers its key and deadline, but the version
is given by the script, which can't compute that checksum.
"""

from __future__ import annotations

import hashlib
import struct

LAYOUT = 1
"""The number of the layout above."""

HEAD = struct.Struct(">Qd")
"""Version and deadline; NaN for none."""

TAIL = struct.Struct(">Q")

LAST_VERSION = 2**53 - 1
"""The highest version: Lua's numbers are doubles, which are exact up to it and to the next number."""

SLACK = 60.0
"""Seconds that an entry is kept after its deadline, at least: the clocks of other programs may be behind."""

REAP_EVERY = 16
"""About one in so many writes, and each write of more than half as many changes, removes expired entries:
`2 * (REAP_EVERY + changes)` at most."""

HOURS = 25
"""Hours after which a slot that was not renewed is removed."""

RENEW_EVERY = 3600.0
"""Seconds: the first write of a slot in each such period renews it."""

CHANGE = struct.Struct(">QI")
"""What is published for each change: its version and the number of bytes of its name, before the name itself."""


class Script:
    """A script, and its SHA-1, by which the server knows it."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self.name = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


# A function for WRITE: the version of an entry, 0 if there is none or it has expired.
_SEEN = """
local function seen(key, now)
  local head = redis.call('GETRANGE', key, 0, 15)
  if #head < 16 then return head == '' and 0 or -2 end -- -2: what is left of a damaged one is as nobody expects it
  local version, deadline = struct.unpack('>I8d', head)
  if deadline <= now then return 0 end
  return version
end
"""

LATE = -2
"""The answer to a late copy of an earlier write."""

HELD = -3
"""The answer to a write while another caller has the turn; with the milliseconds until that turn ends, at most."""

LONGEST_TURN = 1000
"""Milliseconds that a turn lasts, at most."""

# `end_turn` ends the turn for a key, and wakes the caller that has waited longest. Until that caller takes the turn, for as
# long as a turn may last, the turn is nobody's ('').
_TURNS = f"""
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function end_turn(turn, line)
  redis.call('SET', turn, '', 'PX', {LONGEST_TURN})
  redis.call('RPUSH', line, '')
  redis.call('PEXPIRE', line, {LONGEST_TURN})
end
"""

# KEYS: state, turn, line. ARGV: the caller, has it got the line's element (1) or not (0)? Returns 0 if the caller has the turn
# now, else the milliseconds until the turn ends, at most.
TAKE = Script(
    _TURNS
    + f"""
local state, turn, line, who = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local whose = redis.call('GET', turn)
if whose and whose ~= who and (whose ~= '' or (ARGV[2] ~= '1' and not redis.call('LPOP', line))) then
  return math.max(redis.call('PTTL', turn), 1)
end
redis.call('DEL', line)
redis.call('SET', turn, who, 'PX', {LONGEST_TURN})
redis.call('HSET', state, 'turn', struct.pack('>I8', now_ms() + {LONGEST_TURN}))
return 0
"""
)

# KEYS: turn, line. ARGV: the caller. Ends the turn, if the caller has it.
LEAVE = Script(
    _TURNS
    + """
if redis.call('GET', KEYS[1]) == ARGV[1] then end_turn(KEYS[1], KEYS[2]) end
return 0
"""
)

# KEYS: state, names, ends, slots, then entries: those expected, those changed. ARGV: slot, number, is it sent
# again?, is the slot to be renewed?, the caller in its turn ('' without one), now, how many are expected, how many changes, the
# expected versions, then for each change its entry (empty: delete), a version of its own and a deadline ('' for none).
# Returns the version; or {-1, …} with the numbers (from 1) of the expected keys that differ; or {LATE}; or {HELD, milliseconds}.
WRITE = Script(
    _SEEN
    + _TURNS
    + f"""
local call, pack, unpack_ = redis.call, struct.pack, struct.unpack
local state, names, ends, slots = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local slot, number, turn, now = ARGV[1], tonumber(ARGV[2]), ARGV[5], tonumber(ARGV[6])
local expected, changes = tonumber(ARGV[7]), tonumber(ARGV[8])
local had = call('HMGET', state, '', slot, 'turn')
local counter, was_noted = had[1] or '0', false
local version = tonumber(counter)
if not string.find(counter, '^%d+$') or version > {LAST_VERSION} then
  return redis.error_reply("DAMAGED the counter of versions is '" .. string.sub(counter, 1, 40) .. "'")
end
if had[2] and changes > 0 then
  local noted, came_of = unpack_('>I8I8', had[2])
  if noted > number then return {{{LATE}}} end
  if noted == number and came_of > 0 then return came_of end
  was_noted = noted == number -- as a conflict
end
local ended = {{}}
if changes > 0 and had[3] then -- somebody may have a turn
  if unpack_('>I8', had[3]) < now_ms() then call('HDEL', state, 'turn') end
  for i = 1, changes do
    local name = string.sub(KEYS[4 + expected + i], #state + 2)
    local whose = call('GET', state .. '/turn/' .. name)
    if whose and whose ~= '' then
      if whose ~= turn then return {{{HELD}, math.max(call('PTTL', state .. '/turn/' .. name), 1)}} end
      ended[#ended + 1] = name
    end
  end
end
local conflict = {{-1}}
for i = 1, expected do
  local wanted, there = tonumber(ARGV[8 + i]), seen(KEYS[4 + i], now)
  if there ~= wanted and not (wanted == -1 and there > 0) then conflict[#conflict + 1] = i end
end
if changes == 0 then return #conflict > 1 and conflict or version end
local highest, stamps = version + 1, {{}}
if #conflict == 1 and not was_noted then -- it will land: what may fail comes before the first change
  version = version + 1
  local told, skipped = {{}}, #state + 2
  for i = 1, changes do
    local own, name = tonumber(ARGV[7 + expected + 3 * i]), string.sub(KEYS[4 + expected + i], skipped)
    stamps[i] = pack('>I8', own or version)
    if own and own > highest then highest = own end
    told[i] = stamps[i] .. pack('>I4', #name) .. name
  end
  for _, index in ipairs({{names, ends, slots}}) do call('ZCARD', index) end -- fails if it is another program's key
  call('HSET', state, '', had[1] or '0') -- changes nothing; fails if the server takes no writes now
  call('PUBLISH', state .. '/changes', table.concat(told)) -- fails without a right to the channel
end
for _, name in ipairs(ended) do end_turn(state .. '/turn/' .. name, state .. '/line/' .. name) end
if ARGV[4] == '1' then
  local hour = math.floor(tonumber(call('TIME')[1]) / 3600)
  for _, old in ipairs(call('ZRANGEBYSCORE', slots, '-inf', hour - {HOURS}, 'LIMIT', 0, 16)) do
    call('ZREM', slots, old)
    call('HDEL', state, old)
  end
  call('ZADD', slots, hour, slot)
end
if was_noted then
  if #conflict == 1 then for i = 1, expected do conflict[i + 1] = i end end
  return conflict
end
if #conflict > 1 then
  if ARGV[3] == '1' then -- a copy that was sent before must not land after this answer
    call('HSET', state, slot, pack('>I8I8', number, 0))
  end
  return conflict
end
for i = 1, changes do
  local at, key, stamp, stands = 6 + expected + 3 * i, KEYS[4 + expected + i], stamps[i], true
  local entry, own, deadline = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local name = string.sub(key, #state + 2)
  if own ~= '' then
    local given, head = tonumber(own), call('GETRANGE', key, 0, 7)
    if #head == 8 and head == call('GETRANGE', key, -8, -1) then -- a damaged one is replaced
      local there = unpack_('>I8', head)
      stands = there < given or (there == given and entry == '')
    end
  end
  if not stands then
  elseif entry == '' then
    call('DEL', key)
    call('ZREM', names, name)
    call('ZREM', ends, name)
  else
    call('SET', key, stamp .. entry .. stamp)
    call('ZADD', names, 0, name)
    if deadline == '' then call('ZREM', ends, name) else call('ZADD', ends, deadline, name) end
  end
end
if changes > {REAP_EVERY // 2} or version % {REAP_EVERY} == 0 then
  local most = 2 * (changes + {REAP_EVERY})
  for _, name in ipairs(call('ZRANGEBYSCORE', ends, '-inf', now - {SLACK:.0f}, 'LIMIT', 0, most)) do
    call('DEL', state .. ':' .. name)
    call('ZREM', names, name)
    call('ZREM', ends, name)
  end
end
call('HSET', state, '', string.format('%.0f', highest), slot, pack('>I8I8', number, version))
return version
"""
)

# KEYS: names, ends. ARGV: the command, first and last bound, how many, now. Returns the last name that it has read ('' if
# there are no more), then the names that have not expired.
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

# KEYS: state, names, ends, then entries. Returns for each fault its name, and the number (from 0) of its entry.
CHECK = Script(
    """
local last, found = tonumber(redis.call('HGET', KEYS[1], '') or '0'), {}
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

# KEYS: two for trials. ARGV: the channel. Calls the commands that other scripts call: so `open` finds missing permissions. An
# element is left at the second key, for a BLPOP. What an earlier trial has left that was refused is deleted first.
TRY = Script(
    """
local key, set = KEYS[1], KEYS[2]
redis.call('DEL', key, set)
redis.call('SET', key, '')
redis.call('HSET', set, 'a', 'b')
redis.call('HGET', set, 'a')
redis.call('HMGET', set, 'a')
redis.call('HDEL', set, 'a')
redis.call('ZADD', set, 0, 'a')
redis.call('ZCARD', set)
redis.call('ZSCORE', set, 'a')
redis.call('ZRANGEBYSCORE', set, 0, 0)
redis.call('ZRANGEBYLEX', set, '-', '+')
redis.call('ZREVRANGEBYLEX', set, '+', '-')
redis.call('ZREM', set, 'a')
redis.call('GET', key)
redis.call('MGET', key)
redis.call('GETRANGE', key, 0, 0)
redis.call('TIME')
redis.call('DEL', key, set)
redis.call('RPUSH', set, '', '')
redis.call('PEXPIRE', set, 1000)
redis.call('PTTL', set)
redis.call('LPOP', set)
redis.call('PUBLISH', ARGV[1], '')
"""
)
