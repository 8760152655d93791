"""Speed, as ratios to the floor and to other libraries, measured in one run."""
