"""Can you trust the data of others?"""
