"""`keyturn_workers.storage.exchange`, on both event loops."""
