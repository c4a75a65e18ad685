-- What servers delete by themselves; see store/retention.py. Without rows: nothing. The table is new, so
-- the migration takes some milliseconds and waits for nobody.
-- oldest server: 4
CREATE TABLE wfc.retention_rules (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Of workflows their status, Complete or Terminated; else Event, Error or Command.
    kind text COLLATE "C" NOT NULL,
    definition_id text COLLATE "C" NOT NULL DEFAULT '',  -- '': all that have no rule of their own
    age_us bigint,  -- NULL: kept for ever
    set_time timestamptz NOT NULL DEFAULT now(),
    -- When a batch may be deleted again, and up to where they have come in the present pass.
    next_time timestamptz NOT NULL DEFAULT now(),
    after_time timestamptz,
    after_id text,
    passed_time timestamptz,  -- when the last pass was complete
    deleted_rows bigint NOT NULL DEFAULT 0,
    CONSTRAINT {prefix}retention_rules_pkey PRIMARY KEY (kind, definition_id)
);
