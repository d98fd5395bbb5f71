"""What the admin wrote: the tables of htcebridge.toml, read once and checked."""
