"""How weight matrices are stored: in float, in float16, or as codes of few bits with a scale per block."""
