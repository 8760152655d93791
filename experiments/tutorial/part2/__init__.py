"""Can a model resist test-time attack?"""
