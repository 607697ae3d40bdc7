"""A report with its file."""

from __future__ import annotations

from django.contrib import admin  # type: ignore[import-untyped]
from django.db import models  # type: ignore[import-untyped]


class Report(models.Model):  # type: ignore[misc]
    file = models.FileField(upload_to="reports", max_length=40)

    def __str__(self) -> str:
        return str(self.file)


admin.site.register(Report)
