SELECT EXISTS (SELECT FROM wfc.workflows)
    OR EXISTS (SELECT FROM wfc.execution_pointers)
    OR EXISTS (SELECT FROM wfc.events)
    OR EXISTS (SELECT FROM wfc.event_subscriptions)
    OR EXISTS (SELECT FROM wfc.scheduled_commands)
    OR EXISTS (SELECT FROM wfc.execution_errors)
    OR EXISTS (SELECT FROM wfc.definition_sequences)
    OR EXISTS (SELECT FROM wfc.locks);
