"""moto's AWS KMS with what it lacks for Keyturn: `python -m tools.servers.moto_kms_server`.

moto computes the MACs and describes the keys. It does not import key material, lets a disabled key
be used, answers with a key's id where AWS answers with its ARN, and checks no credentials. A
layer before it does these as AWS documents them; it is no proof of how AWS behaves.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from moto.kms.models import kms_backends
from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import ThreadedWSGIServer
from werkzeug.test import run_wsgi_app
from werkzeug.wrappers import Request, Response

from tools.servers.moto_server import Handler, atomic

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from moto.kms.models import Key, KmsBackend

_STATES = {
    "Disabled": ("DisabledException", "is disabled."),
    "PendingDeletion": ("KMSInvalidStateException", "is pending deletion."),
    "PendingImport": ("KMSInvalidStateException", "is pending import."),
}


class RefusedError(Exception):
    """An error of AWS KMS: its code and its text."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Kms:
    """The layer before moto.

    Args:
        moto: moto's application.
        backend: The keys of its one account and Region.
        access_key_id: The only access key that is accepted; `EXPIRED` has expired.
    """

    def __init__(self, moto: WSGIApplication, backend: KmsBackend, access_key_id: str) -> None:
        self._moto = moto
        self._backend = backend
        self._access_key_id = access_key_id
        self._wrapping_keys: dict[str, rsa.RSAPrivateKey] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        """Serve one request."""
        body = Request(environ).get_data()
        try:
            answer = self._serve(environ, body)
        except RefusedError as exc:
            answer = Response(json.dumps({"__type": exc.code, "message": str(exc)}), status=400)
        answer.content_type = "application/x-amz-json-1.1"
        return answer(environ, start_response)

    def _serve(self, environ: WSGIEnvironment, body: bytes) -> Response:
        self._authenticate(environ.get("HTTP_AUTHORIZATION", ""))
        operation = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        parameters = json.loads(body)
        if operation == "GetParametersForImport":
            return _json(self._parameters_for_import(parameters))
        if operation == "ImportKeyMaterial":
            return _json(self._import(parameters))
        if operation in ("GenerateMac", "Encrypt", "Decrypt"):
            self._require_enabled(parameters["KeyId"])
        return self._pass_on(operation, environ, body)

    def _authenticate(self, authorization: str) -> None:
        access_key_id = authorization.partition("Credential=")[2].partition("/")[0]
        if access_key_id == "EXPIRED":
            raise RefusedError("ExpiredTokenException", "The security token is expired")
        if access_key_id != self._access_key_id:
            raise RefusedError("UnrecognizedClientException", "The security token is invalid.")

    def _pass_on(self, operation: str, environ: WSGIEnvironment, body: bytes) -> Response:
        onward = Request.from_values(input_stream=None, data=body, environ_base=environ).environ
        parts, status, headers = run_wsgi_app(self._moto, onward, buffered=True)
        answer = Response(b"".join(parts), status=status, headers=headers)
        if answer.status_code == 200 and operation in ("CreateKey", "GenerateMac"):
            answer.set_data(json.dumps(self._corrected(operation, answer.get_json(force=True))))
        return answer

    def _corrected(self, operation: str, document: dict[str, Any]) -> dict[str, Any]:
        if operation == "GenerateMac":
            return {**document, "KeyId": self._key(document["KeyId"]).arn}
        if document["KeyMetadata"]["Origin"] == "EXTERNAL":
            key = self._key(document["KeyMetadata"]["KeyId"])
            key.key_state, key.enabled = "PendingImport", False
            return key.to_dict()
        return document

    def _parameters_for_import(self, parameters: dict[str, Any]) -> dict[str, Any]:
        key = self._external_key(parameters["KeyId"])
        if (parameters["WrappingAlgorithm"], parameters["WrappingKeySpec"]) != (
            "RSAES_OAEP_SHA_256",
            "RSA_4096",
        ):
            raise RefusedError("UnsupportedOperationException", "")
        wrapping = self._wrapping_keys[key.id] = rsa.generate_private_key(65537, 4096)
        public = wrapping.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return {
            "KeyId": key.arn,
            "ImportToken": base64.b64encode(key.id.encode()).decode(),
            "PublicKey": base64.b64encode(public).decode(),
            "ParametersValidTo": 4102444800,
        }

    def _import(self, parameters: dict[str, Any]) -> dict[str, Any]:
        key = self._external_key(parameters["KeyId"])
        wrapping = self._wrapping_keys.pop(key.id, None)
        if wrapping is None or base64.b64decode(parameters["ImportToken"]) != key.id.encode():
            raise RefusedError("InvalidImportTokenException", "")
        padding = OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)
        try:
            wrapped = base64.b64decode(parameters["EncryptedKeyMaterial"])
            material = wrapping.decrypt(wrapped, padding)
        except ValueError:
            raise RefusedError("InvalidCiphertextException", "") from None
        if len(material) != 32:
            raise RefusedError("IncorrectKeyMaterialException", "")
        key.key_material, key.key_state, key.enabled = material, "Enabled", True
        return {"KeyId": key.arn}

    def _external_key(self, key_id: str) -> Key:
        key = self._key(key_id)
        if key.origin != "EXTERNAL":
            raise RefusedError("UnsupportedOperationException", f"{key.arn} origin is AWS_KMS")
        if key.key_state != "PendingImport":
            raise RefusedError("KMSInvalidStateException", f"{key.arn} is {key.key_state}.")
        return key

    def _require_enabled(self, key_id: str) -> None:
        key = self._key(key_id)
        if key.key_state in _STATES:
            code, text = _STATES[key.key_state]
            raise RefusedError(code, f"{key.arn} {text}")

    def _key(self, key_id: str) -> Key:
        key = self._backend.keys.get(key_id.rpartition("/")[2])
        if key is None:
            raise RefusedError("NotFoundException", f"Key '{key_id}' does not exist")
        return key


def _json(document: dict[str, Any]) -> Response:
    return Response(json.dumps(document))


def create_key(backend: KmsBackend, arn: str, material: bytes) -> None:
    """Create an HMAC_256 key with a given ARN and key material."""
    key = backend.create_key(None, "GENERATE_VERIFY_MAC", "HMAC_256", "Keyturn's tests", None)
    backend.keys.pop(key.id)
    key.arn, key.id, key.key_material = arn, arn.rpartition("/")[2], material
    backend.keys.update({key.id: key})


def main() -> None:
    """Serve on loopback until killed."""
    parser = argparse.ArgumentParser(description="moto's AWS KMS")
    parser.add_argument("--port", type=int, required=True)
    port: int = parser.parse_args().port
    os.environ["MOTO_PORT"] = str(port)
    key = json.loads(os.environ["MOTO_KMS_KEY"])
    _, _, _, region, account, _ = key["arn"].split(":", 5)
    backend = kms_backends[account][region]
    create_key(backend, key["arn"], base64.b64decode(key["material"]))
    app = Kms(create_backend_app("kms"), backend, os.environ["MOTO_KMS_ACCESS_KEY_ID"])
    ThreadedWSGIServer("127.0.0.1", port, atomic(app), handler=Handler).serve_forever()


if __name__ == "__main__":
    main()
