"""A Django project with one model, whose file is on Keyturn, and the admin."""

from __future__ import annotations

from typing import Any

import django  # type: ignore[import-untyped]
from django.conf import settings  # type: ignore[import-untyped]
from django.core.management import call_command  # type: ignore[import-untyped]

_CONTRIB = ("admin", "auth", "contenttypes", "sessions", "messages")


def storages(**options: Any) -> dict[str, Any]:
    """`STORAGES` with a storage of Keyturn that has these options."""
    static = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    return {
        "default": {
            "BACKEND": "keyturn.django.KeyturnStorage",
            "OPTIONS": {"project": "acme", "location": "media", **options},
        },
        "staticfiles": static,
    }


def set_up() -> None:
    """Configure Django, once in a process, with a database in memory."""
    if settings.configured:
        return
    settings.configure(
        SECRET_KEY="of a test",
        INSTALLED_APPS=[*(f"django.contrib.{name}" for name in _CONTRIB), __name__],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        MIGRATION_MODULES=dict.fromkeys(_CONTRIB),  # tables at once are faster
        ROOT_URLCONF=f"{__name__}.urls",
        STATIC_URL="static/",
        USE_TZ=True,
        ALLOWED_HOSTS=["testserver"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
    )
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)
