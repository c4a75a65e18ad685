DO $wfe$
BEGIN
    EXECUTE format('CREATE SUBSCRIPTION %I CONNECTION %L PUBLICATION %I WITH (
        create_slot = FALSE, slot_name = {slot}, enabled = {enabled}, copy_data = TRUE)',
        '{subscription}', current_setting('wfe.conninfo'), '{publication}');
EXCEPTION WHEN OTHERS THEN
    RAISE EXCEPTION USING MESSAGE = SQLERRM, ERRCODE = SQLSTATE;
END
$wfe$;
