SELECT wfc.raise_revision_floor($1);
