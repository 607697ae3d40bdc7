"""Helpers that tests share: faulty proxies, certificates, fakes of hardware and of other systems.

Deployments, hand-made messages and worker processes are in `tools.harness`.
"""
