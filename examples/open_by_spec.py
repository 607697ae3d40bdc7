"""Open a stored object by docs/spec.md alone, with `cryptography` and nothing of Keyturn.

    python examples/open_by_spec.py PROJECT KEY LINK.json BODY > FILE

LINK.json is a ciphertext link, or any JSON object whose `metadata` is the object's. BODY has the
stored bytes. The API key is in KEYTURN_API_KEY and the pepper, if there is one, in KEYTURN_PEPPER.
FILE is whole only if the exit status is 0.
"""

import base64
import hmac
import io
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

CHUNK_BYTES = 16384 + 16


def opened(key: bytes, context: bytes, sealed: BinaryIO) -> Iterator[bytes]:  # section 3
    salt, commitment = sealed.read(24), sealed.read(32)
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + salt + context
    derived = HKDFExpand(SHA512(), 76, info).derive(key)
    if not hmac.compare_digest(derived[44:], commitment):
        sys.exit("this key does not open the object")
    aead, nonce = AESGCM(derived[:32]), int.from_bytes(derived[32:44], "big")
    for number in itertools.count():
        chunk = sealed.read(CHUNK_BYTES)
        yield aead.decrypt((nonce ^ number).to_bytes(12, "big"), chunk, None)
        if len(chunk) < CHUNK_BYTES:  # the last one, which is always there
            return


project, key, link, body = sys.argv[1:]
metadata = json.loads(Path(link).read_text())["metadata"]
api_key, pepper = os.environ["KEYTURN_API_KEY"], os.environ.get("KEYTURN_PEPPER", "")
kek_info = b"\0".join([b"keyturn/v1/user-kek", project.encode()])  # section 2
kek = HKDF(SHA256(), 32, pepper.encode(), kek_info).derive(api_key.encode())
generation = metadata["enc-kek-user"].partition(":")[0]  # section 4.3
place = ["keyturn/v1/dek", "user", metadata["enc-algo"], project, key, generation]
wrap = io.BytesIO(base64.b64decode(metadata["enc-dek-user"]))
dek = b"".join(opened(kek, "\0".join(place).encode(), wrap))
with Path(body).open("rb") as file:
    for plaintext in opened(dek, b"keyturn/v1/body", file):  # section 4.2
        sys.stdout.buffer.write(plaintext)
