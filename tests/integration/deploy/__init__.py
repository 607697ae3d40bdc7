"""deploy/: manifests for Kubernetes and units for systemd."""
