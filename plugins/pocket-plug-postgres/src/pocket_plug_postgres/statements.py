"""The tables of one data set, the function that writes, and every statement that is run on them: SQL, and nothing else.

`{s}` stands for the data set's schema. Keys are stored as UTF-8 in `bytea`, which sorts them by code points, and may
contain NUL.
"""

from __future__ import annotations

SCHEMA_VERSION = 1
OLDEST_SERVER = 13

# Run once per connection. Plans are cached, and a plan that was made while the table was small must not scan all of it
# later. At the timeout the client has given up its attempt, so the server should stop its statement too. Rows that a policy
# hides would look like missing entries; without row_security, the server raises an error instead. With its own search path no
# operator of another role is called, with the rights of this one: up to PostgreSQL 14 any role may create some in `public`.
SESSION = """
SET search_path = pg_catalog;
SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off;
SET row_security = off; SET statement_timeout = {milliseconds}
"""

# The sequence begins at 0, which no write gets. Writes notify until `watched_until`, which each watcher keeps renewing.
TABLES = """
CREATE TABLE {s}.about (schema_version integer NOT NULL, watched_until timestamptz NOT NULL DEFAULT '-infinity');
INSERT INTO {s}.about VALUES ({version});
CREATE SEQUENCE {s}.versions MINVALUE 0 START 0;
SELECT nextval('{s}.versions');
CREATE TABLE {s}.entries (
    key bytea PRIMARY KEY, value bytea NOT NULL, version bigint NOT NULL, expires_at double precision
) WITH (fillfactor = 85);
CREATE INDEX entries_by_expiry ON {s}.entries (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE {s}.slots (
    id uuid PRIMARY KEY, sequence bigint NOT NULL, version bigint NOT NULL, used_at timestamptz NOT NULL
) WITH (fillfactor = 50);
"""

# Each statement in the function sees what was committed before it began. So the locks come first: what is read under them
# stays unchanged until the commit. All callers pass the locks in the same order, so that there are no deadlocks.
#
# Returns {version}; {0, number of an expectation, …} if these are not met; {-1} if the slot has a later sequence number.
WRITE_FUNCTION = """
CREATE FUNCTION {s}.write(
    _slot uuid, _sequence bigint, _again boolean, _durable boolean, _locks bigint[], _now double precision, _reap integer,
    _expected bytea[], _versions bigint[], _keys bytea[], _values bytea[], _ends double precision[], _owns bigint[]
) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    _lock bigint;
    _last bigint;
    _given bigint;
    _highest bigint;
    _unmet bigint[];
    _change record;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the isolation level is %', current_setting('transaction_isolation') USING ERRCODE = 'PP001';
    END IF;
    IF NOT _durable THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    ELSIF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;

    FOREACH _lock IN ARRAY _locks LOOP
        IF _lock & 1 = 1 THEN
            PERFORM pg_advisory_xact_lock(_lock - 1);
        ELSE
            PERFORM pg_advisory_xact_lock_shared(_lock);
        END IF;
    END LOOP;

    SELECT s.sequence, s.version INTO _last, _given FROM {s}.slots s WHERE s.id = _slot;
    IF _last > _sequence THEN
        RETURN ARRAY[-1];
    ELSIF _last = _sequence AND _given > 0 THEN
        RETURN ARRAY[_given];
    END IF;
    IF cardinality(_expected) > 0 THEN
        SELECT array_agg(x.number) INTO _unmet
        FROM unnest(_expected, _versions) WITH ORDINALITY x (key, version, number)
        LEFT JOIN LATERAL (
            SELECT e.version FROM {s}.entries e
            WHERE e.key = x.key AND (e.expires_at IS NULL OR e.expires_at > _now) OFFSET 0
        ) found ON true
        WHERE CASE WHEN found.version IS NULL THEN x.version <> 0 ELSE x.version NOT IN (found.version, -1) END;
        IF _last = _sequence THEN  -- a conflict was noted, and may have been told
            RETURN ARRAY[0] || coalesce(_unmet, (SELECT array_agg(n) FROM generate_series(1, cardinality(_expected)) n));
        END IF;
        IF _unmet IS NOT NULL THEN
            IF _again THEN
                INSERT INTO {s}.slots VALUES (_slot, _sequence, 0, now())
                ON CONFLICT (id) DO UPDATE SET sequence = _sequence, version = 0, used_at = now();
            END IF;
            RETURN ARRAY[0] || _unmet;
        END IF;
    END IF;

    _given := nextval('{s}.versions');
    _highest := _given;
    FOR _change IN
        SELECT c.key, c.value, c.ends, c.own
        FROM unnest(_keys, _values, _ends, _owns) WITH ORDINALITY c (key, value, ends, own, number) ORDER BY c.number
    LOOP
        IF _change.value IS NOT NULL THEN
            INSERT INTO {s}.entries AS e VALUES (_change.key, _change.value, coalesce(_change.own, _given), _change.ends)
            ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version, expires_at = excluded.expires_at
            WHERE CASE WHEN _change.own IS NULL THEN e.version <= _highest ELSE e.version < _change.own END;
            IF NOT FOUND AND _change.own IS NULL THEN  -- the sequence was set back
                RAISE EXCEPTION 'the sequence gave %, and an entry has a higher version; run: SELECT setval(''{s}.versions'', '
                    '(SELECT max(version) FROM {s}.entries))', _given USING ERRCODE = 'PP002';
            END IF;
        ELSE
            DELETE FROM {s}.entries e WHERE e.key = _change.key AND (_change.own IS NULL OR e.version <= _change.own);
        END IF;
        IF _change.own > _highest THEN
            _highest := _change.own;
        END IF;
    END LOOP;
    IF _highest > _given THEN  -- such a write has the whole data set locked
        PERFORM setval('{s}.versions', _highest);
    END IF;

    IF _last IS NULL THEN
        INSERT INTO {s}.slots VALUES (_slot, _sequence, _highest, now());
    ELSE
        UPDATE {s}.slots s SET sequence = _sequence, version = _highest, used_at = now() WHERE s.id = _slot;
    END IF;
    IF _reap > 0 THEN
        DELETE FROM {s}.entries e USING (
            SELECT r.key FROM {s}.entries r
            WHERE r.expires_at <= least(_now, extract(epoch FROM clock_timestamp())::double precision) - {slack}
            ORDER BY r.expires_at LIMIT _reap FOR UPDATE SKIP LOCKED
        ) gone WHERE e.key = gone.key AND e.expires_at <= _now;
    END IF;
    IF (SELECT a.watched_until > clock_timestamp() FROM {s}.about a) THEN
        PERFORM pg_notify('{channel}', CASE WHEN length(told.text) < 7900 THEN told.text ELSE '' END) FROM (
            SELECT string_agg(coalesce(c.own, _given)::text || ':' || encode(c.key, 'hex'), ' ') AS text
            FROM unnest(_keys, _owns) c (key, own)
        ) told;
    END IF;
    RETURN ARRAY[_highest];
END
$$
"""

READ = "SELECT value, version, expires_at FROM {s}.entries WHERE key = $1::bytea"
READ_MANY = "SELECT value, version, expires_at, key FROM {s}.entries WHERE key = ANY ($1::bytea[])"
CHECK = """
SELECT v.last_value, (
    SELECT array_agg(x.number) FROM unnest($1::bytea[], $2::bigint[]) WITH ORDINALITY x (key, version, number)
    LEFT JOIN LATERAL (
        SELECT e.version FROM {s}.entries e
        WHERE e.key = x.key AND (e.expires_at IS NULL OR e.expires_at > $3::double precision) OFFSET 0
    ) found ON true
    WHERE CASE WHEN found.version IS NULL THEN x.version <> 0 ELSE x.version NOT IN (found.version, -1) END
) FROM {s}.versions v
"""
VERSION = "SELECT last_value FROM {s}.versions"
# The bounds: no byte of UTF-8 is FF, so a prefix followed by FF sorts after all keys that begin with the prefix.
SCAN = """
SELECT key, expires_at FROM {s}.entries WHERE key >= $1::bytea AND key < $2::bytea ORDER BY key LIMIT $3::integer
"""
SCAN_BACK = SCAN.replace("ORDER BY key", "ORDER BY key DESC")
WRITE = """
SELECT {s}.write($1::uuid, $2::bigint, $3::boolean, $4::boolean, $5::bigint[], $6::double precision, $7::integer,
                 $8::bytea[], $9::bigint[], $10::bytea[], $11::bytea[], $12::double precision[], $13::bigint[])
"""
FORGET_SLOTS = "DELETE FROM {s}.slots WHERE used_at < now() - interval '1 day'"
