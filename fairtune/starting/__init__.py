"""What `fairtune init` does: look at images and their table, and write a configuration that works."""
