-- loses items of queues: SELECT count(*) FROM wfc.queue_items
-- loses configured queues: SELECT count(*) FROM wfc.queues
DROP TABLE wfc.queue_items, wfc.queues;
DROP SEQUENCE wfc.queue_item_numbers;
