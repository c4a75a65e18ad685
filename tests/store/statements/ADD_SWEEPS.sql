INSERT INTO wfc.sweeps (kind) VALUES ('Event'), ('Workflow') ON CONFLICT DO NOTHING;
