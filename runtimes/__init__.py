"""Bundle -> tokens: the engine, and the backends it stitches."""
