SELECT owner_schema, namespace FROM wfc.wfe_store;
