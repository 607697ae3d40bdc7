"""What tests share: deployments, hand-made messages, worker processes, an independent reader."""
