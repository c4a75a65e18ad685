-- Locks: one holder at a time for each resource.

-- oldest server: 4

-- A row is a lock that is held, or one that has expired and was not released: the next holder takes
-- over the row, and others delete a few such rows whenever they add one. `n` is the row's part of a
-- token, so that tokens are looked up by a narrow key. Rows are short and change often (renewals), so
-- dead ones are removed early.
CREATE TABLE wfc.locks (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    resource text COLLATE "C" NOT NULL UNIQUE,
    owner text NOT NULL DEFAULT '',
    token text NOT NULL DEFAULT '',
    epoch bigint NOT NULL DEFAULT 0,
    expiry timestamptz NOT NULL DEFAULT '-infinity',
    acquire_time timestamptz NOT NULL DEFAULT '-infinity',
    request_id uuid
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.1, autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 1000);
CREATE INDEX {prefix}locks_by_expiry ON wfc.locks (expiry);
