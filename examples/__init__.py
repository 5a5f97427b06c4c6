"""Programs that show the mesh at work. Each folder is one of them."""
