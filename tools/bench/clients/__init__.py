"""What an S3 request costs each client that Python has, beside the product's own storage."""
