-- SPDX-License-Identifier: Apache-2.0
-- What a ledger remembers of a fleet. `tapster fleet join` adds these tables and
-- triggers, `leave` removes them. The triggers change a record in the transaction
-- that changes its lease, whichever release or process does it, so no crash can
-- separate the two. Statements are separated by empty lines.

CREATE TABLE fleet_segment (      -- which segment a bridge or lower device is on
    device TEXT PRIMARY KEY,
    segment TEXT NOT NULL
) STRICT, WITHOUT ROWID

CREATE TABLE fleet_block (
    block TEXT PRIMARY KEY,       -- the first five bytes of its MACs
    next  INTEGER NOT NULL,       -- the last byte of the next one
    lost  INTEGER NOT NULL DEFAULT 0 -- the store gives it to another host
) STRICT, WITHOUT ROWID

CREATE TABLE fleet_record (
    lease   TEXT NOT NULL,
    segment TEXT NOT NULL,
    mac     TEXT NOT NULL,
    vm      TEXT NOT NULL,
    term    INTEGER,              -- its epoch; NULL while it is unordered
    step    INTEGER,
    state   TEXT NOT NULL,
    since   REAL NOT NULL,
    sent    INTEGER NOT NULL DEFAULT 0,
    dirty   INTEGER NOT NULL DEFAULT 0, -- the store may say something else
    serial  INTEGER NOT NULL,     -- grows with each change
    changed REAL NOT NULL,        -- wall clock of the last change of state
    problem TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (lease, segment)
) STRICT, WITHOUT ROWID

CREATE INDEX fleet_serial ON fleet_record (serial)

CREATE INDEX fleet_dirty ON fleet_record (serial) WHERE dirty

CREATE INDEX fleet_mac ON fleet_record (mac)

CREATE VIEW fleet_lease AS        -- where each lease is
SELECT lease.id, lease.mac, lease.state, lease.standby, lease.created, coalesce(
    (SELECT segment FROM fleet_segment WHERE device = coalesce(bridge, ovs, lower)),
    'default') AS segment
FROM lease

CREATE TRIGGER fleet_reserve AFTER INSERT ON lease BEGIN
    INSERT INTO fleet_record (lease, segment, mac, vm, state, since, serial, changed)
    SELECT id, segment, lower(mac), 'lease/' || id, 'reserved', created,
        (SELECT coalesce(max(serial), 0) + 1 FROM fleet_record), created
    FROM fleet_lease WHERE id = NEW.id;
END

CREATE TRIGGER fleet_activate AFTER UPDATE OF state ON lease
WHEN NEW.state = 'active' AND OLD.state != 'active' BEGIN
    UPDATE fleet_record SET state = iif(NEW.standby, 'standby', 'active'), dirty = 1,
        serial = (SELECT max(serial) + 1 FROM fleet_record),
        changed = CAST(strftime('%s', 'now') AS REAL)
    WHERE lease = NEW.id AND state = 'reserved';
END

CREATE TRIGGER fleet_take AFTER UPDATE OF standby ON lease
WHEN OLD.standby AND NOT NEW.standby BEGIN
    UPDATE fleet_record SET state = 'active', dirty = 1,
        serial = (SELECT max(serial) + 1 FROM fleet_record),
        changed = CAST(strftime('%s', 'now') AS REAL)
    WHERE lease = NEW.id AND state = 'standby';
END

CREATE TRIGGER fleet_release AFTER UPDATE OF state ON lease
WHEN NEW.state = 'fin_wait' AND OLD.state != 'fin_wait' BEGIN
    DELETE FROM fleet_record
    WHERE lease = NEW.id AND NOT sent AND state IN ('reserved', 'standby');
    UPDATE fleet_record SET dirty = 1,
        state = CASE vm WHEN 'lease/' || lease THEN 'ended' ELSE 'parked' END,
        serial = (SELECT max(serial) + 1 FROM fleet_record),
        changed = CAST(strftime('%s', 'now') AS REAL)
    WHERE lease = NEW.id AND state IN ('reserved', 'standby', 'active');
END

CREATE TRIGGER fleet_remove AFTER DELETE ON lease
WHEN OLD.state != 'fin_wait' BEGIN
    DELETE FROM fleet_record
    WHERE lease = OLD.id AND NOT sent AND state IN ('reserved', 'standby');
    UPDATE fleet_record SET dirty = 1,
        state = CASE vm WHEN 'lease/' || lease THEN 'ended' ELSE 'parked' END,
        serial = (SELECT max(serial) + 1 FROM fleet_record),
        changed = CAST(strftime('%s', 'now') AS REAL)
    WHERE lease = OLD.id AND state IN ('reserved', 'standby', 'active');
END

CREATE TRIGGER fleet_move AFTER UPDATE OF bridge, ovs, name ON lease
WHEN NEW.bridge IS NOT OLD.bridge OR NEW.ovs IS NOT OLD.ovs OR NEW.name != OLD.name
BEGIN
    -- Another segment: the registration there ends, and another begins here.
    UPDATE fleet_record SET dirty = 1,
        state = CASE vm WHEN 'lease/' || lease THEN 'ended' ELSE 'parked' END,
        serial = (SELECT max(serial) + 1 FROM fleet_record),
        changed = CAST(strftime('%s', 'now') AS REAL)
    WHERE lease = NEW.id AND state IN ('reserved', 'standby', 'active')
        AND segment != (SELECT segment FROM fleet_lease WHERE id = NEW.id);
    INSERT INTO fleet_record
        (lease, segment, mac, vm, state, since, dirty, serial, changed)
    SELECT id, segment, lower(mac),
        (SELECT vm FROM fleet_record WHERE lease = NEW.id),
        CASE WHEN standby THEN 'standby' WHEN state = 'active' THEN 'active'
            ELSE 'reserved' END, created,
        1, (SELECT max(serial) + 1 FROM fleet_record), created
    FROM fleet_lease WHERE id = NEW.id AND state IN ('reserved', 'active')
    ON CONFLICT (lease, segment) DO UPDATE SET
        dirty = 1, serial = excluded.serial,
        term = CASE WHEN state IN ('ended', 'parked') THEN NULL ELSE term END,
        step = CASE WHEN state IN ('ended', 'parked') THEN NULL ELSE step END,
        state = CASE WHEN state IN ('ended', 'parked')
            THEN excluded.state ELSE state END;
END

INSERT INTO fleet_record (lease, segment, mac, vm, state, since, dirty, serial, changed)
SELECT id, segment, lower(mac), 'lease/' || id,
    CASE WHEN standby THEN 'standby' WHEN state = 'active' THEN 'active'
        ELSE 'reserved' END, created,
    state = 'active', row_number() OVER (ORDER BY created), created
FROM fleet_lease WHERE state IN ('reserved', 'active')
