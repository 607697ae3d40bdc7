"""Renders and checks `deploy/kubernetes` and `deploy/systemd`, for tests.

What comes out of `kubectl kustomize` is validated against schemas (`schemas`) and against the rules
that every deployment of Keyturn keeps (`policies`); `pods` turns a rendered pod into a process that
can be started here.
"""
