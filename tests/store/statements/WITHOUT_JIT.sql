SELECT set_config('jit', 'off', true);
