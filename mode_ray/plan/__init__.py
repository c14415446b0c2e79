"""How long a run takes and what it costs: rates measured on one machine, arithmetic for a cluster."""
