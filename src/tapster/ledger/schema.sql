-- SPDX-License-Identifier: Apache-2.0
-- The ledger. PRAGMA application_id marks the file, user_version its schema.

CREATE TABLE meta (            -- one row a setting
    key   TEXT PRIMARY KEY,    -- 'ledger', 'next_ifindex', 'next_manager'
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE netns (
    id     INTEGER PRIMARY KEY,
    boot   TEXT NOT NULL,
    cookie INTEGER NOT NULL,
    path   TEXT NOT NULL,
    pidns  INTEGER NOT NULL,
    UNIQUE (boot, cookie)
) STRICT;

CREATE TABLE lease (
    id          TEXT NOT NULL UNIQUE,
    netns       INTEGER NOT NULL REFERENCES netns,
    name        TEXT NOT NULL,
    ifindex     INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    state       TEXT NOT NULL,
    owner       TEXT NOT NULL,
    mac         TEXT NOT NULL,
    lower       TEXT,
    mode        TEXT,
    queues      INTEGER NOT NULL,
    -- The wiring. Spaces separate the items of a list, newlines those of external_ids.
    bridge       TEXT,
    ovs          TEXT,
    isolated     INTEGER NOT NULL DEFAULT 0,
    learning     INTEGER NOT NULL DEFAULT 1,
    vlan         INTEGER,
    trunks       TEXT NOT NULL DEFAULT '',
    external_ids TEXT NOT NULL DEFAULT '', -- KEY=VALUE
    filter       INTEGER NOT NULL DEFAULT 0,
    addresses    TEXT NOT NULL DEFAULT '',
    inbound      TEXT,    -- average, peak and burst; '-' means none
    outbound     TEXT,
    mtu          INTEGER,
    up           INTEGER NOT NULL DEFAULT 1,
    standby      INTEGER NOT NULL DEFAULT 0,
    backends     TEXT NOT NULL DEFAULT '', -- that may hold a part of its wiring
    created     REAL NOT NULL,
    fin_wait    REAL NOT NULL,
    deadline    REAL,
    released    REAL,
    pid         INTEGER,
    pid_start   INTEGER,
    pid_pidns   INTEGER,
    placeholder INTEGER NOT NULL DEFAULT 0,
    manager     INTEGER,
    caller_uid  INTEGER,       -- of the user for whom the daemon acquired it
    on_close    INTEGER NOT NULL DEFAULT 0,
    vnet_hdr    INTEGER NOT NULL DEFAULT 1,
    guard       INTEGER NOT NULL DEFAULT 1, -- of its wiring, too
    tap_owner   INTEGER,       -- who may open the tap by name
    tap_group   INTEGER,
    open_at_release INTEGER NOT NULL DEFAULT 0,
    labels      TEXT NOT NULL DEFAULT '', -- KEY=VALUE, one a line
    asked       TEXT,          -- the request, as the daemon's policy judges it
    root_guard  INTEGER NOT NULL DEFAULT 0, -- of its wiring, too
    bpdu_guard  INTEGER NOT NULL DEFAULT 0,
    outbound_pps INTEGER,
    redirect    TEXT
) STRICT;
CREATE UNIQUE INDEX lease_name ON lease (name, netns);
CREATE UNIQUE INDEX lease_ifindex ON lease (netns, ifindex); -- also finds by netns
CREATE INDEX lease_mac ON lease (mac);
CREATE INDEX lease_deadline ON lease (deadline) WHERE state = 'fin_wait';
CREATE INDEX lease_process ON lease (pid, pid_start, pid_pidns, state)
    WHERE pid IS NOT NULL; -- it covers `leases.processes`
CREATE INDEX lease_on_close ON lease (on_close) WHERE on_close AND state = 'active';
-- Each index that a row is in costs a page for each change. So these have few rows.
CREATE INDEX lease_unsettled ON lease (manager)
    WHERE manager IS NOT NULL OR state = 'reserved';
CREATE INDEX lease_user ON lease (caller_uid, state) WHERE caller_uid IS NOT NULL;

CREATE TABLE history (
    seq      INTEGER PRIMARY KEY,
    name     TEXT NOT NULL,
    lease    TEXT NOT NULL,
    owner    TEXT NOT NULL,
    kind     TEXT NOT NULL,
    mac      TEXT NOT NULL,
    ifindex  INTEGER NOT NULL,
    netns    TEXT NOT NULL,    -- its path
    created  REAL NOT NULL,    -- wall clock, seconds
    released REAL,
    ended    REAL NOT NULL,
    caller_uid INTEGER,
    labels   TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX history_name ON history (name, created);
CREATE INDEX history_owner ON history (owner, created);
CREATE INDEX history_mac ON history (mac, created);
CREATE INDEX history_created ON history (created);
CREATE INDEX history_ended ON history (ended);
CREATE INDEX history_lease ON history (lease);
CREATE INDEX history_caller ON history (caller_uid, created);

CREATE TABLE event (           -- what happened to devices beside their leases' lives
    seq    INTEGER PRIMARY KEY,
    time   REAL NOT NULL,      -- wall clock, seconds
    event  TEXT NOT NULL,      -- 'lost', 'moved', ...
    lease  TEXT NOT NULL,
    name   TEXT NOT NULL,
    owner  TEXT NOT NULL,
    caller_uid INTEGER,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX event_time ON event (time);
CREATE INDEX event_caller ON event (caller_uid, time);
CREATE INDEX event_lease ON event (lease);

-- The free numbers of a template in a namespace, as disjoint intervals. A number
-- outside every interval is blocked by a lease or by a foreign device. It returns
-- when that device is gone. A number inside an interval may turn out to be blocked
-- when it is picked. Then it is removed from the interval.
CREATE TABLE template (
    id    INTEGER PRIMARY KEY,
    netns INTEGER NOT NULL REFERENCES netns ON DELETE CASCADE,
    text  TEXT NOT NULL,
    UNIQUE (netns, text)
) STRICT;
CREATE TABLE free (
    template INTEGER NOT NULL REFERENCES template ON DELETE CASCADE,
    first    INTEGER NOT NULL,
    last     INTEGER NOT NULL,
    PRIMARY KEY (template, first)
) STRICT, WITHOUT ROWID;
CREATE TABLE foreign_name (
    netns   INTEGER NOT NULL REFERENCES netns ON DELETE CASCADE,
    name    TEXT NOT NULL,
    ifindex INTEGER NOT NULL,  -- of the device that has it
    PRIMARY KEY (netns, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX foreign_ifindex ON foreign_name (netns, ifindex);

CREATE TABLE counter (         -- for naming 'next'; outlives boots
    template TEXT PRIMARY KEY,
    next     INTEGER NOT NULL,
    caller_uid INTEGER         -- of the user of the daemon who was the first to use it
) STRICT, WITHOUT ROWID;
CREATE INDEX counter_caller ON counter (caller_uid) WHERE caller_uid IS NOT NULL;
CREATE TABLE stable (          -- for naming 'stable'; outlives boots
    template TEXT NOT NULL,
    key      TEXT NOT NULL,    -- of a user of the daemon: 'caller_uid\nkey'
    number   INTEGER NOT NULL,
    caller_uid INTEGER,        -- of the user for whom the daemon remembers the key
    mac     TEXT,              -- of the key's guest, unless every request gave one
    PRIMARY KEY (template, key),
    UNIQUE (template, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX stable_mac ON stable (mac) WHERE mac IS NOT NULL;
CREATE INDEX stable_caller ON stable (caller_uid, template)
    WHERE caller_uid IS NOT NULL; -- to count the keys of a user
