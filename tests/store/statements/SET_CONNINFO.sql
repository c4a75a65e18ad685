SELECT set_config('wfe.conninfo', $1, true);
