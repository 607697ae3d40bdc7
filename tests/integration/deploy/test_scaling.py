"""The queries by which KEDA scales name metrics that RabbitMQ and a gateway really have."""
