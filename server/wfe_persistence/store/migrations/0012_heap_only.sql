-- Steps write no index of workflows that they do not change.
-- oldest server: 4

-- A host that goes on at once leaves next_execution as it was, and no other indexed column of a workflow
-- changes in a step. Then the new version of the row needs no entry in any index, if there is room for
-- it on the page of the old one. Pages that are full by now make room as their rows are written.
ALTER TABLE wfc.workflows SET (fillfactor = 80);
