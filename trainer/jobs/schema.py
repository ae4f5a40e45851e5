"""The store's schema, as the steps that lead to it: a database of an older trainer takes those it lacks."""

# PRAGMA user_version counts the steps taken. A step that has been released is never changed.
MIGRATIONS = (
    """
    CREATE TABLE projects (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, team TEXT NOT NULL, created_s REAL NOT NULL,
        UNIQUE (name, team)
    ) STRICT;
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        state TEXT NOT NULL,
        definition TEXT NOT NULL,
        gpus INTEGER NOT NULL,
        gpu_kind TEXT NOT NULL,
        gpu_indices TEXT NOT NULL DEFAULT '[]',
        priority INTEGER NOT NULL,
        retry_count INTEGER NOT NULL,
        availability TEXT NOT NULL,
        notes TEXT NOT NULL,
        created_s REAL NOT NULL,
        updated_s REAL NOT NULL,
        ready_s REAL,
        stop_requested_s REAL,
        error TEXT NOT NULL DEFAULT '',
        exit_code INTEGER,
        sync TEXT NOT NULL DEFAULT ''
    ) STRICT;
    CREATE INDEX jobs_by_state ON jobs (state);
    CREATE TABLE transitions (
        job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        state TEXT NOT NULL,
        at_s REAL NOT NULL,
        PRIMARY KEY (job_id, state)
    ) STRICT;
    CREATE TABLE phases (
        job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        began_s REAL NOT NULL,
        ended_s REAL,
        total_bytes INTEGER NOT NULL DEFAULT 0,
        tier_bytes TEXT NOT NULL DEFAULT '{}',
        PRIMARY KEY (job_id, name)
    ) STRICT;
    """,
    "ALTER TABLE jobs ADD COLUMN released_s REAL;",
)
