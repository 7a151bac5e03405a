"""A local page over run folders: it reads their files, and loads models only for its chat."""
