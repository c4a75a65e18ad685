LOCK wfc.event_subscriptions, wfc.scheduled_commands, wfc.queue_items, wfc.locks
    IN SHARE ROW EXCLUSIVE MODE;
