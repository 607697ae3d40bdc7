"""Rules and dashboards of `deploy/` on a real Prometheus."""
