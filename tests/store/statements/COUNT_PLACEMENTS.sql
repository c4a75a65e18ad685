SELECT count(*) FROM wfc.placements WHERE database <> 'home';
