"""What binds a customer secret to its place where a KMS encrypts it (SPEC 2.6).

A store passes it on when it encrypts and decrypts, and so does a reader that asks the customer's
KMS itself: with anything else the KMS refuses.
"""

from keyturn.crypto.base64 import to_base64
from keyturn.crypto.labels import label


def encryption_context(deployment: str, project: str, secret_id: str) -> dict[str, str]:
    """Return AWS's encryption context of a customer secret, which a key policy can demand."""
    return {
        "keyturn:deployment": deployment,
        "keyturn:project": project,
        "keyturn:secret": secret_id,
    }


def associated_data(deployment: str, project: str, secret_id: str) -> str:
    """Return Vault's and OpenBao's `associated_data` of a customer secret, in base64."""
    return to_base64(label("keyturn/v1/customer-secret", deployment, project, secret_id))
