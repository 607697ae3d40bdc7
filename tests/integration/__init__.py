"""Tests of parts on a real RabbitMQ and a real S3 server."""
