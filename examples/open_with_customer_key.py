"""Open an object of a project with a customer key in AWS KMS, without the gateway's decryption.

    python examples/open_with_customer_key.py PROJECT KEY > FILE

This program's own AWS credentials decrypt the customer secret, and the storage sends the body. FILE
is whole only if the exit status is 0.
"""

import asyncio
import base64
import os
import sys
from typing import Any

import boto3

from keyturn.gateway import Client, WrappedSecret
from keyturn.open import open_object


def decrypt(secret: WrappedSecret) -> bytes:
    kms: Any = boto3.client("kms", region_name=secret.key.split(":")[3])
    wrapped = base64.b64decode(secret.wrapped)
    answer = kms.decrypt(KeyId=secret.key, CiphertextBlob=wrapped, EncryptionContext=secret.context)
    return bytes(answer["Plaintext"])


async def main(project: str, key: str) -> None:
    api_key, pepper = os.environ["KEYTURN_API_KEY"], os.environ.get("KEYTURN_PEPPER", "")
    async with Client.connect(os.environ["KEYTURN_GATEWAY_URL"], api_key) as client:
        link = await client.ciphertext_link(project, key)
        keys = await client.keys(project)  # after the link: it may be of a new generation
    needed = [each.customer_key for each in keys.generations if each.customer_key is not None]
    secrets = [decrypt(secret) for secret in {each.secret_id: each for each in needed}.values()]
    names = {"project": project, "object_key": key, "api_key": api_key, "pepper": pepper}
    async with open_object(link, customer_secrets=secrets, **names) as opened:
        async for piece in opened.chunks():
            sys.stdout.buffer.write(piece)


asyncio.run(main(*sys.argv[1:]))
