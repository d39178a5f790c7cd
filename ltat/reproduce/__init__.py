"""The tables and figures of three papers: their runs, what these cost, and our figures beside the published ones."""
