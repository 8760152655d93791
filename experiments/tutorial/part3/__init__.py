"""When is a model provably robust?"""
