"""The outer loop. Import from the files: `study` searches, `final` chooses, `winner` evaluates once."""
