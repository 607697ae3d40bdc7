"""A KMS that answers as a test says, as the tests of master keys have it."""

from tests.unit.keyturn_workers.keys.master_keys.conftest import credentials_file, stub

__all__ = ["credentials_file", "stub"]
