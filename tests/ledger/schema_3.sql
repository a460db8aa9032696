-- SPDX-License-Identifier: Apache-2.0
-- A ledger of schema version 3, as the last release with that schema wrote it:
-- two active leases, one in FIN WAIT, one reserved, one ended.
PRAGMA application_id = 1413566547;
PRAGMA user_version = 3;
BEGIN TRANSACTION;
CREATE TABLE counter (         -- for naming 'next'; outlives boots
    template TEXT PRIMARY KEY,
    next     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO "counter" VALUES('vnet%d',4);
CREATE TABLE foreign_name (
    netns   INTEGER NOT NULL REFERENCES netns ON DELETE CASCADE,
    name    TEXT NOT NULL,
    ifindex INTEGER NOT NULL,  -- of the device that has it
    PRIMARY KEY (netns, name)
) STRICT, WITHOUT ROWID;
INSERT INTO "foreign_name" VALUES(1,'vnet1',5);
CREATE TABLE free (
    template INTEGER NOT NULL REFERENCES template ON DELETE CASCADE,
    first    INTEGER NOT NULL,
    last     INTEGER NOT NULL,
    PRIMARY KEY (template, first)
) STRICT, WITHOUT ROWID;
INSERT INTO "free" VALUES(1,4,99999999999);
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
    caller_uid     INTEGER
) STRICT;
INSERT INTO "history" VALUES(1,'vnet3','0000000000000008','vm3','tap','52:54:00:00:00:09',1073741827,'/run/netns/here',1700000000.0,1700000000.0,1700000000.0,NULL);
CREATE TABLE lease (
    id          TEXT NOT NULL UNIQUE,
    netns       INTEGER NOT NULL REFERENCES netns,
    name        TEXT NOT NULL,
    ifindex     INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    state       TEXT NOT NULL,
    owner       TEXT NOT NULL,
    mac         TEXT NOT NULL,
    lower        TEXT,
    mode        TEXT,
    queues      INTEGER NOT NULL,
    -- Its wiring. A list is separated by spaces, external_ids by newlines.
    bridge       TEXT,
    ovs          TEXT,
    isolated     INTEGER NOT NULL DEFAULT 0,
    learning     INTEGER NOT NULL DEFAULT 1,
    vlan         INTEGER,
    trunks       TEXT NOT NULL DEFAULT '',
    external_ids TEXT NOT NULL DEFAULT '', -- KEY=VALUE
    filter       INTEGER NOT NULL DEFAULT 0,
    addresses    TEXT NOT NULL DEFAULT '',
    inbound      TEXT,    -- average, peak, burst; '-' is none
    outbound     TEXT,
    mtu          INTEGER,
    up           INTEGER NOT NULL DEFAULT 1,
    backends        TEXT NOT NULL DEFAULT '', -- the planes that may have something of it
    created     REAL NOT NULL,
    fin_wait    REAL NOT NULL,
    deadline    REAL,
    released    REAL,
    pid         INTEGER,
    pid_start   INTEGER,
    pid_pidns   INTEGER,
    placeholder INTEGER NOT NULL DEFAULT 0,
    manager     INTEGER,
    caller_uid        INTEGER,       -- for whom the daemon acquired it
    on_close    INTEGER NOT NULL DEFAULT 0,
    vnet_hdr    INTEGER NOT NULL DEFAULT 1,
    guard       INTEGER NOT NULL DEFAULT 1 -- of its wiring, too
) STRICT;
INSERT INTO "lease" VALUES('0000000000000004',1,'vnet0',1073741825,'tap','active','vm1','52:54:00:00:00:05',NULL,NULL,1,'br0',NULL,0,1,7,'20 30','',1,'192.0.2.11','1000 2000 64','500 - -',NULL,1,'filter outbound',1700000000.0,5.0,NULL,NULL,10,20,30,0,NULL,1000,1,1,1);
INSERT INTO "lease" VALUES('0000000000000006',1,'vnet2',1073741826,'macvtap','active','vm2','52:54:00:00:00:07','eth0','vepa',1,NULL,NULL,0,1,NULL,'','',0,'',NULL,NULL,NULL,1,'',1700000000.0,5.0,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,0,1,1);
INSERT INTO "lease" VALUES('000000000000000a',1,'s10735682507875',1073741828,'tap','fin_wait','vm4','52:54:00:00:00:0b',NULL,NULL,1,NULL,NULL,0,1,NULL,'','',0,'',NULL,NULL,NULL,1,'',1700000000.0,5.0,15.0,1700000000.0,NULL,NULL,NULL,0,NULL,NULL,0,1,1);
INSERT INTO "lease" VALUES('000000000000000c',1,'vnet3',1073741829,'tap','reserved','vm5','52:54:00:00:00:0d',NULL,NULL,1,NULL,NULL,0,1,NULL,'','',0,'',NULL,NULL,NULL,1,'',1700000000.0,5.0,NULL,NULL,NULL,NULL,NULL,0,7,NULL,0,1,1);
CREATE TABLE meta (            -- one row a setting
    key   TEXT PRIMARY KEY,    -- 'ledger', 'next_ifindex', 'next_manager'
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO "meta" VALUES('ledger','00000002');
INSERT INTO "meta" VALUES('next_ifindex',1073741830);
INSERT INTO "meta" VALUES('next_manager',4);
CREATE TABLE netns (
    id     INTEGER PRIMARY KEY,
    boot   TEXT NOT NULL,
    cookie INTEGER NOT NULL,
    path   TEXT NOT NULL,
    pidns  INTEGER NOT NULL,
    UNIQUE (boot, cookie)
) STRICT;
INSERT INTO "netns" VALUES(1,'2f1c6a0e-0000-4000-8000-000000000001',1,'/run/netns/here',4026531836);
CREATE TABLE stable (          -- for naming 'stable'; outlives boots
    template TEXT NOT NULL,
    key      TEXT NOT NULL,
    number   INTEGER NOT NULL,
    PRIMARY KEY (template, key),
    UNIQUE (template, number)
) STRICT, WITHOUT ROWID;
INSERT INTO "stable" VALUES('s%d','k',10735682507875);
CREATE TABLE template (
    id    INTEGER PRIMARY KEY,
    netns INTEGER NOT NULL REFERENCES netns ON DELETE CASCADE,
    text  TEXT NOT NULL,
    UNIQUE (netns, text)
) STRICT;
INSERT INTO "template" VALUES(1,1,'vnet%d');
CREATE UNIQUE INDEX lease_name ON lease (name, netns);
CREATE UNIQUE INDEX lease_ifindex ON lease (netns, ifindex);
CREATE INDEX lease_mac ON lease (mac);
CREATE INDEX lease_deadline ON lease (deadline) WHERE state = 'fin_wait';
CREATE INDEX lease_process ON lease (pid) WHERE pid IS NOT NULL;
CREATE INDEX lease_manager ON lease (manager) WHERE manager IS NOT NULL;
CREATE INDEX lease_reserved ON lease (state) WHERE state = 'reserved';
CREATE INDEX lease_user ON lease (caller_uid, state);
CREATE INDEX history_name ON history (name);
CREATE INDEX history_lease ON history (lease);
CREATE INDEX foreign_ifindex ON foreign_name (netns, ifindex);
COMMIT;
