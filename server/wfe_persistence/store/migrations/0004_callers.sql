-- No caller can hurt another: what the server must know about a store to keep callers apart.

-- Whose store it is: that of the servers started with `--schema <owner_schema>`, under this name.
-- Without it, the namespace `test` of `--schema app` and the store of `--schema app_test` could not be
-- told apart. There is at most one row; none: a store that is older than this table, and that no
-- server has claimed yet.
CREATE TABLE wfc.wfe_store (
    only_row boolean PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    owner_schema text NOT NULL,
    namespace text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
);
