"""What networks are trained on: data in memory (`cifar`, `shapes`), and image files (`folders`, `images`)."""
