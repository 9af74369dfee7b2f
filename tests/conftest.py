from hypothesis import settings

# A slow machine is no bug, and this suite is for every `make test`.
settings.register_profile("hive", deadline=None, max_examples=150)
settings.load_profile("hive")
