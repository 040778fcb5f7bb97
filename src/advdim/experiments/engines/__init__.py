"""Where points are computed: in child processes of this machine, or on a Ray cluster."""
