"""What the node is told: settings, application entities, its own identity, logging."""
