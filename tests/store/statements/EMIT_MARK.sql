SELECT pg_logical_emit_message(TRUE, 'wfe-persistence', '');
