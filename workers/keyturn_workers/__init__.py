"""The processes: upload and control workers, the keyring, storage, and the command line."""
