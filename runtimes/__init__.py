"""Bundle -> tokens: a model, and the backends it stitches."""
