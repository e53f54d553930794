"""Images by class, out of whatever users train on."""
