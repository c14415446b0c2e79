"""One frozen, validated config section per module; YAML in and out."""
