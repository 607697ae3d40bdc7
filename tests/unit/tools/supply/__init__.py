"""What is shipped: lock, audit, SBOM, image."""
