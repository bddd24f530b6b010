"""Everything that knows the bytes of the file: the engine, keys, definitions, segments and manifests."""
