SELECT namespace, database, generation, moving_to, move_phase, move_detail FROM wfc.placements WHERE namespace = $1 FOR UPDATE;
