"""A question about what a camera, a video or a folder shows, asked again and again."""
