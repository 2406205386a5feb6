"""Model cards, uploads behind the gate, merged weights, Spaces."""
