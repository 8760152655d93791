"""What is measured against published numbers, each with the bars that it must reach."""
