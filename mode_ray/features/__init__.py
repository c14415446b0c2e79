"""Features of locked trunks, computed once for all training runs that share the trunk."""
