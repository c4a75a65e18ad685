ALTER TABLE wfc.workflows RESET (fillfactor);
