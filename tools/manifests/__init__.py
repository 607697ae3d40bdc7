"""Renders and checks `deploy/kubernetes` and `deploy/systemd`, for tests.

What comes out of `kubectl kustomize` is validated against schemas (`schemas`) and against the rules
that every deployment of Keyturn keeps (`policies`); `PodProcess` in `documents` is a rendered pod
as a process that can be started here.
"""
