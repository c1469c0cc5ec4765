"""The served model, the server around it, and its client; see the modules for the public names."""
