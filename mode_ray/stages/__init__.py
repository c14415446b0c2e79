"""How a stage that works shard by shard is executed on Ray: work units, manifests, resume, actors."""
