"""The tables of the journal's file, and how an older file becomes one of this version."""

from __future__ import annotations

import sqlite3

from comfyui.exceptions import JournalError

_VERSION_1 = """
CREATE TABLE counter (value INTEGER NOT NULL);
INSERT INTO counter VALUES (0);

CREATE TABLE bodies (id INTEGER PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, data BLOB NOT NULL);

CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY, prompt_id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, callers_id INTEGER NOT NULL,
    created_at REAL NOT NULL, fingerprint TEXT, owner TEXT, face TEXT NOT NULL, workflow_name TEXT, client_id TEXT,
    labels TEXT, inputs TEXT, needs_secrets INTEGER NOT NULL, priority INTEGER NOT NULL, webhook TEXT,
    max_queued_s REAL, max_execution_s REAL, body_id INTEGER NOT NULL,
    run INTEGER NOT NULL, state TEXT NOT NULL, server TEXT, attempt INTEGER NOT NULL, losses INTEGER NOT NULL,
    number INTEGER NOT NULL, end_number INTEGER, queued_at REAL NOT NULL, started_at REAL, ended_at REAL,
    retryable INTEGER NOT NULL, error BLOB, result BLOB
);
CREATE INDEX jobs_by_state ON jobs (state, seq);
-- With the state, so that a list by both reads no job that is in another state.
CREATE INDEX jobs_by_owner ON jobs (owner, seq, state) WHERE owner IS NOT NULL;
CREATE INDEX jobs_by_workflow ON jobs (workflow_name, seq, state) WHERE workflow_name IS NOT NULL;
CREATE INDEX jobs_by_body ON jobs (body_id);
CREATE INDEX jobs_by_end ON jobs (ended_at, end_number) WHERE ended_at IS NOT NULL;
CREATE INDEX jobs_unfinished ON jobs (seq) WHERE ended_at IS NULL;
CREATE INDEX jobs_waiting ON jobs (number)
    WHERE kind = 'async' AND server IS NULL AND ended_at IS NULL AND state <> 'canceling';

CREATE TABLE labels (
    key TEXT NOT NULL, value TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (key, value, seq)
) WITHOUT ROWID;

CREATE TABLE runs (
    seq INTEGER NOT NULL, run INTEGER NOT NULL, state TEXT NOT NULL, server TEXT, attempt INTEGER NOT NULL,
    number INTEGER NOT NULL, end_number INTEGER NOT NULL, queued_at REAL NOT NULL, started_at REAL,
    ended_at REAL NOT NULL, error BLOB, PRIMARY KEY (seq, run)
) WITHOUT ROWID;

CREATE TABLE deliveries (
    place INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, seq INTEGER NOT NULL, run INTEGER NOT NULL,
    event TEXT NOT NULL, audience TEXT NOT NULL, url TEXT NOT NULL, receiver TEXT NOT NULL,
    due_at REAL NOT NULL, state TEXT NOT NULL, tries INTEGER NOT NULL, tried_at REAL, answer TEXT
);
CREATE INDEX deliveries_of_job ON deliveries (seq, audience, state, place);
CREATE INDEX deliveries_due ON deliveries (receiver, due_at, place) WHERE state = 'waiting';
"""

# Inputs that are fetched after the submission.
_VERSION_2 = """
ALTER TABLE jobs ADD COLUMN fetching INTEGER NOT NULL DEFAULT 0;
DROP INDEX jobs_waiting;
CREATE INDEX jobs_waiting ON jobs (fetching, number)
    WHERE kind = 'async' AND server IS NULL AND ended_at IS NULL AND state <> 'canceling';
"""

# Whether the present attempt has begun to run.
_VERSION_3 = """
ALTER TABLE jobs ADD COLUMN begun INTEGER NOT NULL DEFAULT 0;
UPDATE jobs SET begun = 1 WHERE state = 'running' AND server IS NOT NULL;
"""

# Commands about the queue as a whole.
_VERSION_4 = """
CREATE TABLE queue (paused INTEGER NOT NULL);
INSERT INTO queue VALUES (0);
"""

# The owners of waiting jobs, usage, and the owners of files.
_VERSION_5 = """
-- What waits of one key, among all that has ended.
CREATE INDEX jobs_unfinished_by_owner ON jobs (owner, state) WHERE ended_at IS NULL AND owner IS NOT NULL;

-- What was used, by day (UTC), key and person: "" where there is none.
CREATE TABLE usage (
    day TEXT NOT NULL, key TEXT NOT NULL, person TEXT NOT NULL, workflow TEXT NOT NULL,
    succeeded INTEGER NOT NULL, failed INTEGER NOT NULL, canceled INTEGER NOT NULL, lost INTEGER NOT NULL,
    gpu_s REAL NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (day, key, person, workflow)
) WITHOUT ROWID;

-- Files that each key's jobs have made, see `comfyui.owners.place_of`.
CREATE TABLE files (key TEXT NOT NULL, place TEXT NOT NULL, day TEXT NOT NULL, PRIMARY KEY (key, place)) WITHOUT ROWID;
"""

# The identity: ComfyUI keeps it with each prompt whose job may not be recorded yet. And a job without a body has the
# body 0, which before was a body with the text null.
_VERSION_6 = """
CREATE TABLE identity (id TEXT NOT NULL);
INSERT INTO identity VALUES (lower(hex(randomblob(8))));
UPDATE jobs SET body_id = 0 WHERE body_id IN (SELECT id FROM bodies WHERE data = CAST('null' AS BLOB));
DELETE FROM bodies WHERE data = CAST('null' AS BLOB);
DROP INDEX jobs_by_body;
CREATE INDEX jobs_by_body ON jobs (body_id) WHERE body_id > 0;
"""

# Jobs that ComfyUI's history hides: single ones, and all that had ended when someone cleared it. A mark is one row for
# a key ("" for all of them), however many jobs it hides.
_VERSION_7 = """
ALTER TABLE jobs ADD COLUMN hidden INTEGER NOT NULL DEFAULT 0;
CREATE TABLE cleared (key TEXT PRIMARY KEY, up_to INTEGER NOT NULL) WITHOUT ROWID;
"""

# The last to end, of all and of one owner.
_VERSION_8 = """
CREATE INDEX jobs_by_end_number ON jobs (end_number) WHERE ended_at IS NOT NULL;
CREATE INDEX jobs_by_owner_and_end ON jobs (owner, end_number) WHERE ended_at IS NOT NULL AND owner IS NOT NULL;
"""

# The place that the caller asked for among its jobs.
_VERSION_9 = """
ALTER TABLE jobs ADD COLUMN turn REAL;
"""

# Whether the run may have ended a server, so that it is placed only on a server without other prompts.
_VERSION_10 = """
ALTER TABLE jobs ADD COLUMN alone INTEGER NOT NULL DEFAULT 0;
"""

# The server of each file: two servers may have files of the same name.
_VERSION_11 = """
DROP TABLE files;
CREATE TABLE files (
    place TEXT NOT NULL, server TEXT NOT NULL, key TEXT NOT NULL, day TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (place, server, key)
) WITHOUT ROWID;
"""

# Under which workflows, by their hash, ComfyUI's process ended.
_VERSION_12 = """
CREATE TABLE deaths (number INTEGER PRIMARY KEY, workflow TEXT NOT NULL, at REAL NOT NULL);
"""

# Files that clients uploaded: see `comfyui.jobs.journal.writes.KeptUpload`.
_VERSION_13 = """
CREATE TABLE uploads (
    key TEXT NOT NULL, place TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL, at REAL NOT NULL,
    used_at REAL NOT NULL, PRIMARY KEY (key, place)
) WITHOUT ROWID;
"""

# The prompt that made each file; older rows have "" there.
_VERSION_14 = """
CREATE TABLE made (
    place TEXT NOT NULL, server TEXT NOT NULL, key TEXT NOT NULL, prompt_id TEXT NOT NULL, day TEXT NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (place, server, key, prompt_id)
) WITHOUT ROWID;
INSERT INTO made SELECT place, server, key, '', day, at FROM files;
DROP TABLE files;
-- What was made last of each key.
CREATE INDEX made_by_key ON made (key, at);
"""

# Servers that get no more prompts.
_VERSION_15 = """
CREATE TABLE drained (server TEXT PRIMARY KEY) WITHOUT ROWID;
"""

# How far attempts are at a platform that knows no ids of ours.
_VERSION_16 = """
CREATE TABLE attempts (
    seq INTEGER PRIMARY KEY, run INTEGER NOT NULL, attempt INTEGER NOT NULL, sent_at REAL NOT NULL, ref TEXT, reply BLOB
);
"""

# Assets of Comfy API v2: see `comfyui.jobs.journal.asset_writes.Asset`, and `OutputFacts` there.
_VERSION_17 = """
CREATE TABLE assets (
    id TEXT PRIMARY KEY, owner TEXT, blake3 TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
    content_type TEXT NOT NULL, file_path TEXT NOT NULL, tags TEXT NOT NULL, created_at REAL NOT NULL,
    expires_at REAL NOT NULL, lifetime_s REAL NOT NULL, idempotency_key TEXT
) WITHOUT ROWID;
CREATE INDEX assets_by_hash ON assets (blake3);
CREATE INDEX assets_by_expiry ON assets (expires_at);
CREATE INDEX assets_by_bytes ON assets (digest, size);
CREATE INDEX assets_by_owner ON assets (owner);
CREATE INDEX assets_by_idempotency_key ON assets (idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE output_facts (
    seq INTEGER NOT NULL, id TEXT NOT NULL, run INTEGER NOT NULL, size INTEGER NOT NULL, blake3 TEXT,
    PRIMARY KEY (seq, id)
) WITHOUT ROWID;
"""

# Data that came with a job of Comfy API v2.
_VERSION_18 = """
ALTER TABLE jobs ADD COLUMN idempotency_key TEXT;
ALTER TABLE jobs ADD COLUMN note TEXT;
CREATE INDEX jobs_by_idempotency_key ON jobs (idempotency_key, seq) WHERE idempotency_key IS NOT NULL;
"""

# How the named workflow was called that a job runs.
_VERSION_19 = """
ALTER TABLE jobs ADD COLUMN call BLOB;
"""

# The outputs with given bytes.
_VERSION_20 = """
CREATE INDEX output_facts_by_hash ON output_facts (blake3) WHERE blake3 IS NOT NULL;
"""

# One script for each version, forward only. A script that was released never changes: a change is a new one.
MIGRATIONS = (
    _VERSION_1,
    _VERSION_2,
    _VERSION_3,
    _VERSION_4,
    _VERSION_5,
    _VERSION_6,
    _VERSION_7,
    _VERSION_8,
    _VERSION_9,
    _VERSION_10,
    _VERSION_11,
    _VERSION_12,
    _VERSION_13,
    _VERSION_14,
    _VERSION_15,
    _VERSION_16,
    _VERSION_17,
    _VERSION_18,
    _VERSION_19,
    _VERSION_20,
)


def migrate(database: sqlite3.Connection) -> None:
    """Bring the file to the newest version, in one transaction. Raises `JournalError` for one that is newer."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise JournalError(
            f"STATE_DIR: the journal was written by a newer version of the gateway (its schema is {version}, and this"
            f" version reads up to {len(MIGRATIONS)}). Run that version, or set another folder"
        )
    if version == len(MIGRATIONS):
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        for script in MIGRATIONS[version:]:
            for statement in _statements(script):
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    """`executescript` would commit before it begins."""
    statements: list[str] = []
    text = ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            statements.append(text)
            text = ""
    return statements
