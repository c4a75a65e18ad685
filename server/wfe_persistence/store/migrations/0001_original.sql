-- The tables of the original crate (wfe-postgres), in the form of its latest version.
--
-- On an empty schema this creates them. On a store that the original made, of whatever age, it adds
-- what is missing and keeps every row. Names are written for the schema wfc; {prefix} stands for the
-- table prefix where a name can't be qualified.

CREATE TABLE IF NOT EXISTS wfc.workflows (
    id text PRIMARY KEY,
    name text NOT NULL UNIQUE,
    root_workflow_id text,
    definition_id text NOT NULL,
    version int NOT NULL,
    description text,
    reference text,
    status text NOT NULL,
    data jsonb NOT NULL DEFAULT '{}',
    next_execution bigint,
    create_time timestamptz NOT NULL,
    complete_time timestamptz,
    last_heartbeat_at timestamptz
);

-- The first age of the original had none of these columns, and its INSERTs still give no name.
ALTER TABLE wfc.workflows
    ADD COLUMN IF NOT EXISTS name text,
    ADD COLUMN IF NOT EXISTS root_workflow_id text,
    ADD COLUMN IF NOT EXISTS last_heartbeat_at timestamptz;
UPDATE wfc.workflows SET name = id WHERE name IS NULL;
-- A persist of the original writes an empty name where the host gave none; it is the id since create.
UPDATE wfc.workflows w SET name = id
    WHERE name = '' AND NOT EXISTS (SELECT FROM wfc.workflows o WHERE o.name = w.id);
ALTER TABLE wfc.workflows ALTER COLUMN name SET NOT NULL;
CREATE UNIQUE INDEX IF NOT EXISTS {prefix}workflows_name_key ON wfc.workflows (name);

CREATE TABLE IF NOT EXISTS wfc.definition_sequences (
    definition_id text PRIMARY KEY,
    next_num bigint NOT NULL
);

CREATE TABLE IF NOT EXISTS wfc.execution_pointers (
    id text PRIMARY KEY,
    workflow_id text NOT NULL REFERENCES wfc.workflows (id),
    step_id int NOT NULL,
    active boolean NOT NULL DEFAULT TRUE,
    status text NOT NULL,
    sleep_until timestamptz,
    persistence_data jsonb,
    start_time timestamptz,
    end_time timestamptz,
    event_name text,
    event_key text,
    event_published boolean DEFAULT FALSE,
    event_data jsonb,
    step_name text,
    retry_count int DEFAULT 0,
    children jsonb DEFAULT '[]',
    context_item jsonb,
    predecessor_id text,
    outcome jsonb,
    scope jsonb DEFAULT '[]',
    extension_attributes jsonb DEFAULT '{}'
);

CREATE TABLE IF NOT EXISTS wfc.events (
    id text PRIMARY KEY,
    event_name text NOT NULL,
    event_key text NOT NULL,
    event_data jsonb NOT NULL DEFAULT 'null',
    event_time timestamptz NOT NULL,
    is_processed boolean DEFAULT FALSE
);

CREATE TABLE IF NOT EXISTS wfc.event_subscriptions (
    id text PRIMARY KEY,
    workflow_id text NOT NULL,
    step_id int NOT NULL,
    execution_pointer_id text NOT NULL,
    event_name text NOT NULL,
    event_key text NOT NULL,
    subscribe_as_of timestamptz NOT NULL,
    subscription_data jsonb,
    external_token text,
    external_worker_id text,
    external_token_expiry timestamptz
);

CREATE TABLE IF NOT EXISTS wfc.execution_errors (
    id serial PRIMARY KEY,
    error_time timestamptz NOT NULL,
    workflow_id text NOT NULL,
    execution_pointer_id text NOT NULL,
    message text NOT NULL
);

CREATE TABLE IF NOT EXISTS wfc.scheduled_commands (
    id serial PRIMARY KEY,
    command_name text NOT NULL,
    data text NOT NULL,
    execute_time bigint NOT NULL,
    UNIQUE (command_name, data)
);
