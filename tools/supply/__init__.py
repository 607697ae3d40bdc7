"""What Keyturn is made of: the locked set that is shipped, its audit, its SBOM, its licenses."""
