"""A fresh deployment for one test: its secrets and its environment variables."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyturn.crypto import IntakeKey, SigningKey, VerifyKey, new_api_key, to_base64
from keyturn.settings import NamedIntakeKey, PublisherSettings, S3Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.servers import S3Server


@dataclass(frozen=True)
class Deployment:
    """Fresh keys, and the addresses of the broker and the storage."""

    amqp_url: str
    s3: S3Server
    bucket: str
    name: str = "test"
    master_key: bytes = field(default_factory=lambda: os.urandom(32))
    intake_seed: bytes = field(default_factory=lambda: os.urandom(32))
    event_seed: bytes = field(default_factory=lambda: os.urandom(32))
    publisher_seed: bytes = field(default_factory=lambda: os.urandom(32))
    narrow_seed: bytes = field(default_factory=lambda: os.urandom(32))
    gateway_seed: bytes = field(default_factory=lambda: os.urandom(32))
    api_key: str = field(default_factory=new_api_key)
    more_master_keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    pepper: str = ""

    @property
    def master_keys(self) -> dict[str, bytes]:
        """All master keys of the workers; `m1` is the active one."""
        return {"m1": self.master_key, **self.more_master_keys}

    @property
    def intake(self) -> IntakeKey:
        return IntakeKey.from_seed(self.intake_seed)

    @property
    def publisher_key(self) -> SigningKey:
        return SigningKey.from_seed(self.publisher_seed)

    @property
    def narrow_key(self) -> SigningKey:
        return SigningKey.from_seed(self.narrow_seed)

    @property
    def gateway_key(self) -> SigningKey:
        return SigningKey.from_seed(self.gateway_seed)

    @property
    def event_key(self) -> SigningKey:
        return SigningKey.from_seed(self.event_seed)

    def s3_env(self) -> dict[str, str]:
        """The settings for access to the bucket."""
        return {
            "KEYTURN_S3_ENDPOINT_URL": self.s3.endpoint_url,
            "KEYTURN_S3_REGION": self.s3.region,
            "KEYTURN_S3_BUCKET": self.bucket,
            "KEYTURN_S3_ACCESS_KEY_ID": self.s3.access_key_id,
            "KEYTURN_S3_SECRET_ACCESS_KEY": self.s3.secret_access_key,
        }

    def s3_settings(self, endpoint_url: str = "") -> S3Settings:
        """The same as settings, at another URL of the storage if one is given."""
        return S3Settings.model_validate(
            {
                "s3_endpoint_url": endpoint_url or self.s3.endpoint_url,
                "s3_region": self.s3.region,
                "s3_bucket": self.bucket,
                "s3_access_key_id": self.s3.access_key_id,
                "s3_secret_access_key": self.s3.secret_access_key,
            }
        )

    def publisher_settings(self, amqp_url: str = "") -> PublisherSettings:
        """The settings of the publisher `api`, at another URL of the broker if one is given."""
        return PublisherSettings(
            deployment=self.name,
            amqp_url=amqp_url or self.amqp_url,
            publisher_name="api",
            publisher_key=self.publisher_key,
            intake_public_key=NamedIntakeKey("main", self.intake.public_key),
            event_public_key=VerifyKey.from_bytes(self.event_key.public_bytes),
        )

    def publishers(self) -> dict[str, dict[str, list[str]]]:
        """The value of the setting `PUBLISHERS`."""
        return {
            "api": {
                "keys": [to_base64(self.publisher_key.public_bytes)],
                "may": ["*"],
                "projects": ["*"],
            },
            "narrow": {
                "keys": [to_base64(self.narrow_key.public_bytes)],
                "may": ["upload.requested"],
                "projects": ["other"],
            },
            "gateway": {
                "keys": [to_base64(self.gateway_key.public_bytes)],
                "may": ["upload.requested", "rotation.requested", "delete.requested"],
                "projects": ["*"],
            },
        }

    def worker_env(self, **more: str) -> dict[str, str]:
        """The complete environment of a worker; `more` without the prefix."""
        env = {
            **self.s3_env(),
            "KEYTURN_DEPLOYMENT": self.name,
            "KEYTURN_AMQP_URL": self.amqp_url,
            "KEYTURN_MASTER_KEYS": json.dumps(
                {name: to_base64(key) for name, key in self.master_keys.items()}
            ),
            "KEYTURN_ACTIVE_MASTER_KEY": "m1",
            "KEYTURN_INTAKE_KEYS": json.dumps({"main": to_base64(self.intake_seed)}),
            "KEYTURN_EVENT_KEY": to_base64(self.event_seed),
            "KEYTURN_PUBLISHERS": json.dumps(self.publishers()),
            "KEYTURN_LOG_FORMAT": "json",
        }
        return env | {f"KEYTURN_{name}": value for name, value in more.items()}

    def publisher_env(self) -> dict[str, str]:
        """The complete environment of the publisher `api`."""
        return {
            **self.s3_env(),
            "KEYTURN_DEPLOYMENT": self.name,
            "KEYTURN_AMQP_URL": self.amqp_url,
            "KEYTURN_PUBLISHER_NAME": "api",
            "KEYTURN_PUBLISHER_KEY": to_base64(self.publisher_seed),
            "KEYTURN_INTAKE_PUBLIC_KEY": f"main:{to_base64(self.intake.public_bytes)}",
            "KEYTURN_EVENT_PUBLIC_KEY": to_base64(self.event_key.public_bytes),
        }

    def gateway_env(self, **more: str) -> dict[str, str]:
        """The complete environment of a gateway on a free port; `more` without the prefix."""
        env = {
            **self.publisher_env(),
            "KEYTURN_PUBLISHER_NAME": "gateway",
            "KEYTURN_PUBLISHER_KEY": to_base64(self.gateway_seed),
            "KEYTURN_MASTER_KEYS": json.dumps(
                {name: to_base64(key) for name, key in self.master_keys.items()}
            ),
            "KEYTURN_PEPPER": self.pepper,
            "KEYTURN_GATEWAY_PORT": "0",
            "KEYTURN_LOG_FORMAT": "json",
        }
        return env | {f"KEYTURN_{name}": value for name, value in more.items()}
