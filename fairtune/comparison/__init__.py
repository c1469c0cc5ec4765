"""Methods against each other under one protocol. Import from the files: `compare` tells the story."""
