"""Small general helpers without any knowledge of MoDE."""
