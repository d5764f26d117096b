"""The MLX exporter: the folder that stock mlx-lm opens."""
