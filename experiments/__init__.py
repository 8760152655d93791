"""Scripts that regenerate the tables and figures of the tutorial; `lib` holds what they share."""
