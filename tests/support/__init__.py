"""What tests share: deployments, hand-made messages, worker processes, a reader of its own."""
